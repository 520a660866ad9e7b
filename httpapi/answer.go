package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// code is the stable name of a refusal, for programs.
type code string

// The codes of problems that the API has of its own. A backend's errors have the
// words of [server.Reason].
const (
	codeBadRequest   code = "bad_request"
	codeUnauthorized code = "unauthorized"
	codeOrigin       code = "origin"
	codeNotFound     code = "not_found"
	codeMethod       code = "method_not_allowed"
	codeBodyTimeout  code = "body_timeout"
	codeTooBig       code = "too_big" // a backend's, too
	codeTooMany      code = "too_many_items"
	codeMediaType    code = "media_type"
	codeRate         code = "rate"
	codeInternal     code = "internal"
	codeUnknown      code = "outcome_unknown"
)

// refusal is what is answered with a code.
type refusal struct {
	status int
	detail string        // if it is for an error of a backend
	retry  time.Duration // likewise; see problem
}

var refusals = map[code]refusal{
	codeBadRequest:      {http.StatusBadRequest, "The request cannot be served: %s.", 0},
	codeUnauthorized:    {http.StatusUnauthorized, "", 0},
	codeOrigin:          {http.StatusForbidden, "", 0},
	codeNotFound:        {http.StatusNotFound, "", 0},
	"nobody":            {http.StatusNotFound, "Nobody is there: no connection has that user, topic or id.", 0},
	codeMethod:          {http.StatusMethodNotAllowed, "", 0},
	codeBodyTimeout:     {http.StatusRequestTimeout, "", 0},
	"reused":            {http.StatusConflict, "The idempotency_key or id came within two minutes with another message.", 0},
	"too_many_topics":   {http.StatusConflict, "At least one of the connections is subscribed to as many topics as it may, see max-topics.", 0},
	codeTooBig:          {http.StatusRequestEntityTooLarge, "The field data is too big, see max-publish.", 0},
	codeTooMany:         {http.StatusRequestEntityTooLarge, "", 0},
	codeMediaType:       {http.StatusUnsupportedMediaType, "", 0},
	codeRate:            {http.StatusTooManyRequests, "", 0},
	"busy":              {http.StatusTooManyRequests, "Too much is published and not yet delivered, see publish-budget.", time.Second},
	codeInternal:        {http.StatusInternalServerError, "The server failed, its log says why.", 0},
	"closed":            {http.StatusServiceUnavailable, "The server is shutting down.", 0},
	"topic_unavailable": {http.StatusServiceUnavailable, "Nobody can be subscribed to this topic now, the server's log says why.", time.Second},
	codeUnknown:         {http.StatusGatewayTimeout, "The request ended before its outcome was known; it can be sent again.", 0},
}

func (c code) status() int { return refusals[c].status }

// codeOf returns the code of a backend's error.
func codeOf(err error) code {
	c := code(server.Reason(err))
	_, has := refusals[c]
	switch {
	case has:
		return c
	case errors.Is(err, server.ErrBadMessage):
		return codeBadRequest
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return codeUnknown
	}
	return codeInternal
}

// problem is a refusal, RFC 9457.
type problem struct {
	code    code
	detail  string        // one sentence
	retry   time.Duration // Retry-After, rounded up to seconds; 0: none
	receipt *receipt      // what is known of a message all the same
}

// Error implements error.
func (p *problem) Error() string { return p.detail }

func refusef(c code, format string, args ...any) *problem {
	return &problem{code: c, detail: fmt.Sprintf(format, args...)}
}

// problemOf returns what the client is told about err. One that it does not
// know is told to the operator alone.
func (x *exchange) problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	c := codeOf(err)
	p := &problem{code: c, detail: refusals[c].detail, retry: refusals[c].retry}
	switch c {
	case codeBadRequest:
		why := err.Error()
		if _, told, ok := strings.Cut(why, server.ErrBadMessage.Error()+": "); ok {
			why = told
		}
		p.detail = fmt.Sprintf(p.detail, why)
	case codeInternal:
		x.api.cfg.Logger.Error("api request failed", "route", x.route.path, "err", err)
	}
	return p
}

// refuse answers with a problem.
func (x *exchange) refuse(err error) {
	x.leaveBody()
	p := x.problemOf(err)
	x.code = p.code
	h := x.w.Header()
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retry+time.Second-1)/time.Second)))
	}
	status := p.code.status()
	b := append(make([]byte, 0, 512), `{"type":"about:blank","title":`...)
	b = wire.AppendString(b, http.StatusText(status))
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(p.appendTo(append(b, ',')), "}\n"...)
	x.answer(status, typeProblem, b)
}

// appendTo appends the members of p that a line of a batch has too.
func (p *problem) appendTo(b []byte) []byte {
	b = append(b, `"code":"`...)
	b = append(b, p.code...)
	b = append(b, `","detail":`...)
	b = wire.AppendString(b, p.detail)
	if p.receipt != nil {
		b = p.receipt.appendTo(append(b, ','))
	}
	return b
}

// The media types of answers. They are shared by all answers and never changed.
var (
	typeJSON    = []string{"application/json"}
	typeLines   = []string{"application/x-ndjson"}
	typeProblem = []string{"application/problem+json"}
	typeYAML    = []string{"application/yaml"}
	typeText    = []string{"text/plain; charset=utf-8"}
	typeHTML    = []string{"text/html; charset=utf-8"}
	noStore     = []string{"no-store"}
	noSniff     = []string{"nosniff"}
)

// answer sends a whole answer.
func (x *exchange) answer(status int, mediaType []string, body []byte) {
	if len(body) > 1<<10 { // net/http counts what is short
		x.w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	x.answerHead(status, mediaType)
	_, _ = x.w.Write(body) // an error means that nobody is there to be told
}

// answerHead begins an answer. A backend that took its time has used up the
// deadline that the request began with.
func (x *exchange) answerHead(status int, mediaType []string) {
	x.ready = time.Now()
	if x.ready.Sub(x.start) > x.api.cfg.WriteTimeout/2 {
		x.setWriteDeadline(x.ready)
	}
	h := x.w.Header()
	h["Content-Type"] = mediaType
	h["Cache-Control"] = noStore
	h["X-Content-Type-Options"] = noSniff
	x.status = status
	x.w.WriteHeader(status)
}

// answerJSON answers with v, which has only what encoding/json can encode.
func (x *exchange) answerJSON(v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	x.answer(http.StatusOK, typeJSON, append(body, '\n'))
}
