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

// The codes of problems.
const (
	codeBadRequest   code = "bad_request"
	codeUnauthorized code = "unauthorized"
	codeOrigin       code = "origin"
	codeNotFound     code = "not_found"
	codeNobody       code = "nobody"
	codeMethod       code = "method_not_allowed"
	codeBodyTimeout  code = "body_timeout"
	codeReused       code = "reused"
	codeTooManyTopic code = "too_many_topics"
	codeTooBig       code = "too_big"
	codeTooMany      code = "too_many_items"
	codeMediaType    code = "media_type"
	codeRate         code = "rate"
	codeBusy         code = "busy"
	codeInternal     code = "internal"
	codeClosed       code = "closed"
	codeUnknown      code = "outcome_unknown"
)

// refusals says the status of each code, and which error of a backend has
// which code and sentence.
var refusals = []struct {
	code   code
	status int
	err    error // nil: the API's own
	detail string
}{
	{codeBadRequest, http.StatusBadRequest, server.ErrBadMessage, "The request cannot be served: %s."},
	{codeUnauthorized, http.StatusUnauthorized, nil, ""},
	{codeOrigin, http.StatusForbidden, nil, ""},
	{codeNotFound, http.StatusNotFound, nil, ""},
	{codeNobody, http.StatusNotFound, server.ErrNobody, "Nobody is there: no connection has that user, topic or id."},
	{codeMethod, http.StatusMethodNotAllowed, nil, ""},
	{codeBodyTimeout, http.StatusRequestTimeout, nil, ""},
	{codeReused, http.StatusConflict, server.ErrReused, "The idempotency_key or id came within two minutes with another message."},
	{codeTooManyTopic, http.StatusConflict, server.ErrTooManyTopics, "At least one of the connections is subscribed to as many topics as it may, see max-topics."},
	{codeTooBig, http.StatusRequestEntityTooLarge, server.ErrTooBig, "The field data is too big, see max-publish."},
	{codeTooMany, http.StatusRequestEntityTooLarge, nil, ""},
	{codeMediaType, http.StatusUnsupportedMediaType, nil, ""},
	{codeRate, http.StatusTooManyRequests, nil, ""},
	{codeBusy, http.StatusTooManyRequests, server.ErrBusy, "Too much is published and not yet delivered, see publish-budget."},
	{codeInternal, http.StatusInternalServerError, nil, ""},
	{codeClosed, http.StatusServiceUnavailable, server.ErrClosed, "The server is shutting down."},
	{codeUnknown, http.StatusGatewayTimeout, context.Canceled, askAgain},
	{codeUnknown, http.StatusGatewayTimeout, context.DeadlineExceeded, askAgain},
}

const askAgain = "The request ended before its outcome was known; with an idempotency_key the same request tells it."

// problem is a refusal, RFC 9457.
type problem struct {
	code    code
	detail  string        // one sentence
	retry   time.Duration // Retry-After, rounded up to seconds; 0: none
	receipt *receipt      // what is known of a message all the same
}

// Error implements error.
func (p *problem) Error() string { return p.detail }

// status returns the HTTP status of the code.
func (c code) status() int {
	for _, r := range refusals {
		if r.code == c {
			return r.status
		}
	}
	panic("httpapi: no status for " + c)
}

func refusef(c code, format string, args ...any) *problem {
	return &problem{code: c, detail: fmt.Sprintf(format, args...)}
}

// problemOf returns what the client is told about err. One that it does not
// know is told to the operator alone.
func (x *exchange) problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	for _, r := range refusals {
		if r.err == nil || !errors.Is(err, r.err) {
			continue
		}
		p := &problem{code: r.code, detail: r.detail}
		switch r.code {
		case codeBadRequest:
			why := err.Error()
			if _, told, ok := strings.Cut(why, r.err.Error()+": "); ok {
				why = told
			}
			p.detail = fmt.Sprintf(r.detail, why)
		case codeBusy:
			p.retry = time.Second
		}
		return p
	}
	x.api.cfg.Logger.Error("api request failed", "route", x.route.path, "err", err)
	return refusef(codeInternal, "The server failed, its log says why.")
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
