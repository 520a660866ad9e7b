package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/tocsin-push/tocsin/internal/nearest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// request is what a body asks for.
type request struct {
	topic   string
	to      server.Target
	users   []string
	message server.Message
	code    wire.CloseCode
	reason  string
}

// routes is a set of the bodies that there are.
type routes uint8

const (
	onPublish routes = 1 << iota
	onPush
	onBroadcast
	onDisconnect
	onItem // of a batch

	onMessages = onPublish | onPush | onBroadcast | onItem
)

// word is a field of a body: where it has a meaning, what it must be, and how
// it gets into a request; set reports whether it was that.
type word struct {
	name string
	on   routes
	want string
	set  func(q *request, raw []byte) bool
}

const (
	maxTTL        = 30 * 24 * time.Hour
	maxAckTimeout = 10 * time.Minute
	maxReason     = 123 // bytes that a Close frame has room for
)

var words = []word{
	{"topic", onPublish | onItem, "a string", func(q *request, raw []byte) bool { return setText(&q.topic, raw) }},
	{"user", onPush | onDisconnect | onItem, "a string", func(q *request, raw []byte) bool { return setText(&q.to.User, raw) }},
	{"users", onItem, "a list of at least one string", func(q *request, raw []byte) bool { return setTexts(&q.users, raw) }},
	{"conn", onPush | onDisconnect | onItem, "a string", func(q *request, raw []byte) bool { return setText(&q.to.Conn, raw) }},
	{"data", onMessages, "a JSON value", func(q *request, raw []byte) bool {
		q.message.Data = raw
		return true
	}},
	{"id", onMessages, "a string", func(q *request, raw []byte) bool { return setText(&q.message.ID, raw) }},
	{"collapse_key", onMessages, "a string", func(q *request, raw []byte) bool { return setText(&q.message.CollapseKey, raw) }},
	{"idempotency_key", onMessages, "a string", func(q *request, raw []byte) bool { return setText(&q.message.IdempotencyKey, raw) }},
	{"urgency", onMessages, "very-low, low, normal or high", func(q *request, raw []byte) bool {
		return setText(&q.message.Urgency, raw) && slices.Contains(urgencies, q.message.Urgency)
	}},
	{"ttl", onMessages, "a whole number of seconds from 1 to 2592000", func(q *request, raw []byte) bool {
		n, ok := number(raw, int64(maxTTL/time.Second))
		q.message.TTL = time.Duration(n) * time.Second
		return ok
	}},
	{"rate", onBroadcast, "a whole number of deliveries a second from 1 to 1000000000", func(q *request, raw []byte) bool {
		n, ok := number(raw, 1e9)
		q.message.Rate = int(n)
		return ok
	}},
	{"wait", onMessages, "none or sent, and ack only for /api/push", func(q *request, raw []byte) bool {
		var s string
		i := -1
		if setText(&s, raw) {
			i = slices.Index(waits, s)
		}
		q.message.Wait = server.Wait(max(i, 0))
		return i >= 0
	}},
	{"timeout_ms", onPush, "a whole number of milliseconds from 1 to 600000", func(q *request, raw []byte) bool {
		n, ok := number(raw, int64(maxAckTimeout/time.Millisecond))
		q.message.AckTimeout = time.Duration(n) * time.Millisecond
		return ok
	}},
	{"code", onDisconnect, "a close code: 1000, or 3000 to 4999", func(q *request, raw []byte) bool {
		n, ok := number(raw, 4999)
		q.code = wire.CloseCode(n)
		return ok && q.code.ForApps()
	}},
	{"reason", onDisconnect, "a string of at most 123 bytes", func(q *request, raw []byte) bool {
		return setText(&q.reason, raw) && len(q.reason) <= maxReason
	}},
}

var (
	urgencies = []string{"very-low", "low", "normal", "high"}
	waits     = []string{server.WaitNone: "none", server.WaitSent: "sent", server.WaitAck: "ack"}

	wordIndex = func() map[string]int {
		m := make(map[string]int, len(words))
		for i, w := range words {
			m[w.name] = i
		}
		return m
	}()
)

// setText makes field the JSON string raw, which is JSON.
func setText(field *string, raw []byte) bool {
	if raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 {
		*field = string(raw[1 : len(raw)-1])
		return true
	}
	return json.Unmarshal(raw, field) == nil
}

// setTexts makes list the JSON array of strings raw, which is JSON. It is none
// if it is empty.
func setTexts(list *[]string, raw []byte) bool {
	err := wire.Elements(raw, func(val []byte) error {
		var s string
		if val[0] != '"' || !setText(&s, val) {
			return errNotText
		}
		*list = append(*list, s)
		return nil
	})
	return err == nil && len(*list) > 0
}

var errNotText = errors.New("not a string")

// number returns the JSON number raw if it is a whole one from 1 to most.
func number(raw []byte, most int64) (n int64, ok bool) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < 1 || n > most {
		return 0, false
	}
	return n, true
}

// parse reads a body, or an item of a batch.
func parse(body []byte, on routes) (*request, error) {
	q := &request{}
	q.message.Wait = server.WaitSent
	var seen uint32 // which words came
	err := wire.Members(body, func(key, val []byte) error {
		i, known := wordIndex[string(key)]
		if !known {
			return unknownField(string(key), on)
		}
		// A key that comes twice could mean one thing here and another to who
		// let the request through.
		if seen&(1<<i) != 0 {
			return refusef(codeBadRequest, "The field %s comes twice.", key)
		}
		seen |= 1 << i
		w := &words[i]
		switch {
		case string(val) == "null" && w.name != "data":
		case w.on&on == 0:
			return refusef(codeBadRequest, "The field %s does not belong %s.", key, place(on))
		case !w.set(q, val):
			return refusef(codeBadRequest, "The field %s must be %s.", key, w.want)
		}
		return nil
	})
	if err != nil {
		if p, ok := errors.AsType[*problem](err); ok {
			return nil, p
		}
		return nil, refusef(codeBadRequest, "The body cannot be read: %s.", err)
	}
	return q, q.check(on)
}

func place(on routes) string {
	if on == onItem {
		return "in a batch"
	}
	return "on this path"
}

func unknownField(name string, on routes) error {
	var here []string
	for _, w := range words {
		if w.on&on != 0 {
			here = append(here, w.name)
		}
	}
	if meant, ok := nearest.Word(name, here); ok {
		return refusef(codeBadRequest, "There is no field %q, did you mean %s?", name, meant)
	}
	return refusef(codeBadRequest, "There is no field %.64q %s.", name, place(on))
}

// check wants the fields that the route needs.
func (q *request) check(on routes) error {
	m := &q.message
	switch {
	case on&onMessages != 0 && m.Data == nil:
		return refusef(codeBadRequest, "The field data is missing.")
	case m.Wait == server.WaitAck && on == onItem:
		return refusef(codeBadRequest, "The field wait must be none or sent in a batch; /api/push can wait for an ack.")
	case m.Wait == server.WaitAck && on != onPush:
		return refusef(codeBadRequest, "The field wait must be %s.", words[wordIndex["wait"]].want)
	case m.AckTimeout != 0 && m.Wait != server.WaitAck:
		return refusef(codeBadRequest, `The field timeout_ms needs "wait":"ack".`)
	}
	if err := q.checkAddress(on); err != nil {
		return err
	}
	var bad *wire.Error
	if q.topic != "" {
		bad = wire.CheckTopic(q.topic)
	} else if q.to.User != "" {
		bad = wire.CheckUser(q.to.User)
	}
	if bad != nil {
		return refusef(codeBadRequest, "The %s.", bad.Message)
	}
	return nil
}

// checkAddress wants exactly as many addresses as the route takes.
func (q *request) checkAddress(on routes) error {
	given := 0
	for _, is := range []bool{q.topic != "", q.to.User != "", q.to.Conn != "", len(q.users) > 0} {
		if is {
			given++
		}
	}
	switch {
	case on == onBroadcast || given == 1:
		return nil
	case on == onPublish:
		return refusef(codeBadRequest, "The field topic is missing.")
	case on == onItem:
		return refusef(codeBadRequest, "Exactly one of the fields topic, user, users and conn must be given.")
	}
	return refusef(codeBadRequest, "Exactly one of the fields user and conn must be given.")
}
