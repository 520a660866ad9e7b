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
)

// problem is a refusal, RFC 9457.
type problem struct {
	status  int
	detail  string        // one sentence
	retry   time.Duration // Retry-After, rounded up to seconds; 0: none
	receipt *receipt      // what is known of a message all the same
}

// Error implements error.
func (p *problem) Error() string { return p.detail }

func refusef(status int, format string, args ...any) *problem {
	return &problem{status: status, detail: fmt.Sprintf(format, args...)}
}

// problemOf returns what the client is told about err. known is false when it
// is told nothing and the operator everything.
func (a *api) problemOf(err error) (p *problem, known bool) {
	if p, ok := errors.AsType[*problem](err); ok {
		return p, true
	}
	switch {
	case errors.Is(err, server.ErrNobody):
		return refusef(http.StatusNotFound, "Nobody is there: no connection has that topic, user or id."), true
	case errors.Is(err, server.ErrBadMessage):
		why := strings.TrimPrefix(err.Error(), server.ErrBadMessage.Error()+": ")
		return refusef(http.StatusBadRequest, "The message cannot be sent: %s.", why), true
	case errors.Is(err, server.ErrTooBig):
		return tooBig(a.cfg.MaxPublish), true
	case errors.Is(err, server.ErrReused):
		return refusef(http.StatusConflict, "The idempotency_key or id came within two minutes with another message."), true
	case errors.Is(err, server.ErrBusy):
		p = refusef(http.StatusTooManyRequests, "Too much is published and not yet delivered, see publish-budget.")
		p.retry = time.Second
		return p, true
	case errors.Is(err, server.ErrNoAck):
		return refusef(http.StatusGatewayTimeout, "No device acknowledged within timeout_ms."), true
	case errors.Is(err, server.ErrClosed):
		return refusef(http.StatusServiceUnavailable, "The server is shutting down."), true
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return refusef(http.StatusServiceUnavailable, "The request ended before its message was on its way."), true
	}
	return refusef(http.StatusInternalServerError, "The server failed, its log says why."), false
}

func tooBig(limit int) *problem {
	return refusef(http.StatusRequestEntityTooLarge, "The field data may have %d bytes, see max-publish.", limit)
}

func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p, known := a.problemOf(err)
	if !known {
		a.cfg.Logger.Error("api request failed", "route", r.Pattern, "err", err)
	}
	if p.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((p.retry+time.Second-1)/time.Second)))
	}
	writeJSON(w, p.status, "application/problem+json", struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		*receipt
	}{"about:blank", http.StatusText(p.status), p.status, p.detail, p.receipt})
}

// writeJSON answers with v, which has only what encoding/json can encode.
func writeJSON(w http.ResponseWriter, status int, mediaType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // an error means that nobody is there to be told
}
