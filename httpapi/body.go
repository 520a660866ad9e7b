package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// request is what a body asks for.
type request struct {
	topic   string
	to      server.Target
	message server.Message
	code    wire.CloseCode
	reason  string
}

// routes is a set of the paths that take a body.
type routes uint8

const (
	onPublish routes = 1 << iota
	onPush
	onBroadcast
	onDisconnect

	onMessages = onPublish | onPush | onBroadcast
)

// word is a field of a body: where it has a meaning, what it must be, and how
// it gets into a request; set reports whether it was that.
type word struct {
	on   routes
	want string
	set  func(q *request, raw json.RawMessage) bool
}

const (
	maxTTL        = 30 * 24 * time.Hour
	maxAckTimeout = 10 * time.Minute
	maxReason     = 123 // bytes that a Close frame has room for
)

var words = map[string]word{
	"topic": {onPublish, "a string", text(func(q *request) *string { return &q.topic })},
	"user":  {onPush | onDisconnect, "a string", text(func(q *request) *string { return &q.to.User })},
	"conn":  {onPush | onDisconnect, "a string", text(func(q *request) *string { return &q.to.Conn })},
	"data": {onMessages, "a JSON value", func(q *request, raw json.RawMessage) bool {
		q.message.Data = raw
		return true
	}},
	"id":              {onMessages, "a string", text(func(q *request) *string { return &q.message.ID })},
	"collapse_key":    {onMessages, "a string", text(func(q *request) *string { return &q.message.CollapseKey })},
	"idempotency_key": {onMessages, "a string", text(func(q *request) *string { return &q.message.IdempotencyKey })},
	"urgency": {onMessages, "very-low, low, normal or high", func(q *request, raw json.RawMessage) bool {
		_, ok := oneOf(raw, "very-low", "low", "normal", "high")
		return ok && json.Unmarshal(raw, &q.message.Urgency) == nil
	}},
	"ttl": {onMessages, "a whole number of seconds from 1 to 2592000", func(q *request, raw json.RawMessage) bool {
		n, ok := number(raw, int64(maxTTL/time.Second))
		q.message.TTL = time.Duration(n) * time.Second
		return ok
	}},
	"rate": {onBroadcast, "a whole number of deliveries a second from 1 to 1000000000", func(q *request, raw json.RawMessage) bool {
		n, ok := number(raw, 1e9)
		q.message.Rate = int(n)
		return ok
	}},
	"wait": {onMessages, `none or sent, and ack only for /api/push`, func(q *request, raw json.RawMessage) bool {
		i, ok := oneOf(raw, "none", "sent", "ack")
		q.message.Wait = [...]server.Wait{server.WaitNone, server.WaitSent, server.WaitAck}[i]
		return ok
	}},
	"timeout_ms": {onPush, "a whole number of milliseconds from 1 to 600000", func(q *request, raw json.RawMessage) bool {
		n, ok := number(raw, int64(maxAckTimeout/time.Millisecond))
		q.message.AckTimeout = time.Duration(n) * time.Millisecond
		return ok
	}},
	"code": {onDisconnect, "a close code: 1000, or 3000 to 4999", func(q *request, raw json.RawMessage) bool {
		n, ok := number(raw, 4999)
		q.code = wire.CloseCode(n)
		return ok && q.code.ForApps()
	}},
	"reason": {onDisconnect, "a string of at most 123 bytes", func(q *request, raw json.RawMessage) bool {
		return json.Unmarshal(raw, &q.reason) == nil && len(q.reason) <= maxReason
	}},
}

func text(field func(*request) *string) func(*request, json.RawMessage) bool {
	return func(q *request, raw json.RawMessage) bool { return json.Unmarshal(raw, field(q)) == nil }
}

// oneOf returns which of allowed the JSON string raw is.
func oneOf(raw json.RawMessage, allowed ...string) (i int, ok bool) {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		for i, a := range allowed {
			if s == a {
				return i, true
			}
		}
	}
	return 0, false
}

// number returns the JSON number raw if it is a whole one from 1 to most.
func number(raw json.RawMessage, most int64) (n int64, ok bool) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < 1 || n > most {
		return 0, false
	}
	return n, true
}

// readBody returns the body of r, of which it reads at most the limit and one
// byte more.
func (a *api) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return nil, refusef(http.StatusUnsupportedMediaType, "The Content-Type must be application/json.")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, refusef(http.StatusUnsupportedMediaType, "The body must come without a Content-Encoding.")
	}
	limit := int64(a.cfg.MaxPublish + envelope)
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, tooBig(a.cfg.MaxPublish)
	}
	// Only net/http's own connections have a deadline; a recorder does not, and
	// needs none.
	deadline := http.NewResponseController(w)
	_ = deadline.SetReadDeadline(time.Now().Add(a.cfg.BodyTimeout))
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return nil, refusef(http.StatusRequestTimeout, "The body took longer than %s, see api-timeout.", a.cfg.BodyTimeout)
	case err != nil:
		w.Header().Set("Connection", "close")
		return nil, refusef(http.StatusBadRequest, "The body ended early.")
	case int64(len(body)) > limit:
		w.Header().Set("Connection", "close")
		return nil, tooBig(a.cfg.MaxPublish)
	}
	_ = deadline.SetReadDeadline(time.Time{})
	return body, nil
}

// parse reads a body that came on one of the routes.
func parse(body []byte, on routes) (q request, err error) {
	members, err := members(body)
	if err != nil {
		return q, err
	}
	q.message.Wait = server.WaitSent
	for _, m := range members {
		w, known := words[m.key]
		switch {
		case !known || string(m.raw) == "null" && m.key != "data":
		case w.on&on == 0:
			return q, refusef(http.StatusBadRequest, "The field %s does not belong on this path.", m.key)
		case !w.set(&q, m.raw):
			return q, refusef(http.StatusBadRequest, "The field %s must be %s.", m.key, w.want)
		}
	}
	return q, q.check(on)
}

type member struct {
	key string
	raw json.RawMessage
}

// members returns the fields of the one object that body is. A key that comes
// twice could mean one thing here and another to who let the request through.
func members(body []byte) (out []member, err error) {
	if err := wire.CheckJSON(body); err != nil {
		return nil, refusef(http.StatusBadRequest, "The body cannot be read: %s.", err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, refusef(http.StatusBadRequest, "The body must be a JSON object.")
	}
	seen := make(map[string]bool)
	for d.More() {
		key, err := d.Token()
		var m member
		if err == nil {
			err = d.Decode(&m.raw)
		}
		if m.key, _ = key.(string); err != nil {
			return nil, refusef(http.StatusBadRequest, "The body cannot be read: %s.", err)
		}
		if seen[m.key] {
			return nil, refusef(http.StatusBadRequest, "The field %.64q comes twice.", m.key)
		}
		seen[m.key] = true
		out = append(out, m)
	}
	return out, nil
}

// check wants the fields that the route needs.
func (q *request) check(on routes) error {
	m := &q.message
	switch {
	case on&onMessages != 0 && m.Data == nil:
		return refusef(http.StatusBadRequest, "The field data is missing.")
	case m.Wait == server.WaitAck && on != onPush:
		return refusef(http.StatusBadRequest, "The field wait must be %s.", words["wait"].want)
	case m.AckTimeout != 0 && m.Wait != server.WaitAck:
		return refusef(http.StatusBadRequest, `The field timeout_ms needs "wait":"ack".`)
	}
	var bad *wire.Error
	switch {
	case on == onPublish && q.topic == "":
		return refusef(http.StatusBadRequest, "The field topic is missing.")
	case on == onPublish:
		bad = wire.CheckTopic(q.topic)
	case on == onBroadcast:
	case (q.to.User == "") == (q.to.Conn == ""):
		return refusef(http.StatusBadRequest, "Exactly one of the fields user and conn must be given.")
	case q.to.User != "":
		bad = wire.CheckUser(q.to.User)
	}
	if bad != nil {
		return refusef(http.StatusBadRequest, "The %s.", bad.Message)
	}
	return nil
}
