package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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
	onSubscribe // and unsubscribe
	onItem      // of a batch

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
	maxTTL        = 30 * 24 * 60 * 60 // seconds
	maxAckTimeout = 10 * 60 * 1000    // milliseconds
	maxRate       = 1e9               // deliveries a second
	maxReason     = 123               // bytes that a Close frame has room for
)

var words = []word{
	text("topic", onPublish|onItem|onSubscribe, func(q *request) *string { return &q.topic }),
	text("user", onPush|onDisconnect|onItem|onSubscribe, func(q *request) *string { return &q.to.User }),
	{"users", onItem, "a list of at least one string", func(q *request, raw []byte) bool { return setTexts(&q.users, raw) }},
	text("conn", onPush|onDisconnect|onItem|onSubscribe, func(q *request) *string { return &q.to.Conn }),
	{"data", onMessages, "a JSON value", func(q *request, raw []byte) bool {
		q.message.Data = raw
		return true
	}},
	text("id", onMessages, func(q *request) *string { return &q.message.ID }),
	text("collapse_key", onMessages, func(q *request) *string { return &q.message.CollapseKey }),
	text("idempotency_key", onMessages, func(q *request) *string { return &q.message.IdempotencyKey }),
	{"urgency", onMessages, "very-low, low, normal or high", func(q *request, raw []byte) bool {
		return setText(&q.message.Urgency, raw) && slices.Contains(urgencies, q.message.Urgency)
	}},
	whole("ttl", onMessages, "seconds", maxTTL, func(q *request, n int64) { q.message.TTL = time.Duration(n) * time.Second }),
	whole("rate", onBroadcast, "deliveries a second", maxRate, func(q *request, n int64) { q.message.Rate = int(n) }),
	{"wait", onMessages, "none or sent, and ack only for /api/push", func(q *request, raw []byte) bool {
		var s string
		i := -1
		if setText(&s, raw) {
			i = slices.Index(waits, s)
		}
		q.message.Wait = server.Wait(max(i, 0))
		return i >= 0
	}},
	whole("timeout_ms", onPush, "milliseconds", maxAckTimeout, func(q *request, n int64) { q.message.AckTimeout = time.Duration(n) * time.Millisecond }),
	{"code", onDisconnect, "a close code: 1000, or 3000 to 4999", func(q *request, raw []byte) bool {
		n, ok := number(raw, 4999)
		q.code = wire.CloseCode(n)
		return ok && q.code.ForApps()
	}},
	{"reason", onDisconnect, fmt.Sprintf("a string of at most %d bytes", maxReason), func(q *request, raw []byte) bool {
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

// text is a word for a string.
func text(name string, on routes, field func(*request) *string) word {
	return word{name, on, "a string", func(q *request, raw []byte) bool { return setText(field(q), raw) }}
}

// whole is a word for a whole number of something.
func whole(name string, on routes, of string, most int64, set func(*request, int64)) word {
	return word{name, on, fmt.Sprintf("a whole number of %s from 1 to %d", of, most), func(q *request, raw []byte) bool {
		n, ok := number(raw, most)
		set(q, n)
		return ok
	}}
}

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
		return nil, unreadable(err)
	}
	return q, q.check(on)
}

// unreadable returns why a body is refused that could not be walked.
func unreadable(err error) error {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	return refusef(codeBadRequest, "The body cannot be read: %s.", err)
}

// named returns why a name is refused, nil if it is not.
func named(bad *wire.Error) error {
	if bad == nil {
		return nil
	}
	return refusef(codeBadRequest, "The %s.", bad.Message)
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
	if q.topic != "" {
		if err := named(wire.CheckTopic(q.topic)); err != nil {
			return err
		}
	}
	if q.to.User != "" {
		return named(wire.CheckUser(q.to.User))
	}
	return nil
}

// checkAddress wants exactly as many addresses as the route takes.
func (q *request) checkAddress(on routes) error {
	if on == onSubscribe && q.topic == "" {
		return refusef(codeBadRequest, "The field topic is missing.")
	}
	given := 0
	for _, is := range []bool{q.topic != "" && on != onSubscribe, q.to.User != "", q.to.Conn != "", len(q.users) > 0} {
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
