package httpapi

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"os"
	"slices"
	"strings"
	"time"
)

// The media types of bodies.
const (
	jsonType  = "application/json"
	linesType = "application/x-ndjson"
)

// bodyRule says what a body may be.
type bodyRule struct {
	mediaTypes []string
	limit      int    // bytes
	advice     string // to who comes with more
}

// readBody returns the body of the request, of which it reads at most the
// limit and one byte more, and spends one request of the key's rate.
func (x *exchange) readBody(rule bodyRule) ([]byte, error) {
	if err := x.checkType(rule.mediaTypes); err != nil {
		return nil, err
	}
	tooBig := func() error {
		return refusef(codeTooBig, "The body has more than %d bytes, %s.", rule.limit, rule.advice)
	}
	announced := x.r.ContentLength
	if announced > int64(rule.limit) {
		return nil, tooBig()
	}
	// An error means a recorder, which is never slow.
	_ = x.control.SetReadDeadline(x.start.Add(x.api.cfg.BodyTimeout))
	var buf bytes.Buffer
	buf.Grow(int(min(max(announced, 0), 64<<10)) + bytes.MinRead) // believed no further than this
	n, err := buf.ReadFrom(io.LimitReader(x.r.Body, int64(rule.limit)+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refusef(codeBodyTimeout, "The body took longer than %s, see api-timeout.", x.api.cfg.BodyTimeout)
	case err != nil:
		return nil, refusef(codeBadRequest, "The body ended early.")
	case n > int64(rule.limit):
		return nil, tooBig()
	}
	x.bodyRead = true
	_ = x.control.SetReadDeadline(time.Time{}) // the call may wait for longer
	return buf.Bytes(), x.key.take()
}

// checkType wants the body to be of one of the media types, which it remembers,
// and not encoded.
func (x *exchange) checkType(allowed []string) error {
	x.mediaType = x.r.Header.Get("Content-Type")
	if !slices.Contains(allowed, x.mediaType) {
		var err error
		if x.mediaType, _, err = mime.ParseMediaType(x.mediaType); err != nil || !slices.Contains(allowed, x.mediaType) {
			return refusef(codeMediaType, "The Content-Type must be %s.", strings.Join(allowed, " or "))
		}
	}
	if x.r.Header.Get("Content-Encoding") != "" {
		return refusef(codeMediaType, "The body must come without a Content-Encoding.")
	}
	return nil
}
