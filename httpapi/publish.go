package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// receipt is what an answer tells about a message that was accepted.
type receipt struct {
	server.Receipt
	wait server.Wait // more is known the longer somebody waited
}

// appendTo appends the members of r.
func (r *receipt) appendTo(b []byte) []byte {
	b = wire.AppendString(append(b, `"id":`...), r.ID)
	if r.Seq != 0 {
		b = appendInt(b, `,"seq":`, int(r.Seq))
	}
	if r.Epoch != "" {
		b = wire.AppendString(append(b, `,"epoch":`...), r.Epoch)
	}
	b = appendInt(b, `,"subscribers":`, r.Subscribers)
	if r.wait >= server.WaitSent {
		b = appendInt(b, `,"written":`, r.Written)
		b = appendInt(b, `,"queued":`, r.Queued)
		b = appendInt(b, `,"dropped":`, r.Dropped)
		b = r.appendDevices(b)
	}
	return strconv.AppendBool(append(b, `,"duplicate":`...), r.Duplicate)
}

// appendDevices appends what became of each device, and of how many it is
// known that the message was understood.
func (r *receipt) appendDevices(b []byte) []byte {
	if r.wait == server.WaitAck {
		acked := 0
		for _, d := range r.Devices {
			if d.Status == server.StatusAcked {
				acked++
			}
		}
		b = appendInt(b, `,"acked":`, acked)
	}
	for i, d := range r.Devices {
		if i == 0 {
			b = append(b, `,"devices":[`...)
		} else {
			b = append(b, ',')
		}
		b = wire.AppendString(append(b, `{"conn":`...), d.Conn)
		b = wire.AppendString(append(b, `,"status":`...), d.Status)
		b = append(b, '}')
	}
	if len(r.Devices) > 0 {
		b = append(b, ']')
	}
	return b
}

func appendInt(b []byte, key string, n int) []byte {
	return strconv.AppendInt(append(b, key...), int64(n), 10)
}

func publish(x *exchange) error {
	return x.send(onPublish, func(q *request) (server.Receipt, error) {
		return x.api.backend.Publish(x.r.Context(), q.topic, q.message)
	})
}

func push(x *exchange) error {
	return x.send(onPush, func(q *request) (server.Receipt, error) {
		return x.api.backend.Push(x.r.Context(), q.to, q.message)
	})
}

func broadcast(x *exchange) error {
	return x.send(onBroadcast, func(q *request) (server.Receipt, error) {
		return x.api.backend.Broadcast(x.r.Context(), q.message)
	})
}

// send hands a message to the backend and answers with its receipt.
func (x *exchange) send(on routes, to func(*request) (server.Receipt, error)) error {
	q, err := x.request(on)
	if err != nil {
		return err
	}
	if len(q.message.Data) > x.api.cfg.MaxPublish {
		return tooBig(x.api.cfg.MaxPublish)
	}
	got, err := to(q)
	r, err := x.outcome(got, err, q.message.Wait)
	if err != nil {
		return err
	}
	b := r.appendTo(append(make([]byte, 0, 512), '{'))
	x.answer(http.StatusOK, typeJSON, append(b, "}\n"...))
	return nil
}

// outcome returns what is told about a message: its receipt, or a problem.
// That nobody acknowledged is no failure: the message was sent, and the receipt
// tells how far each device got. A status that proxies repeat by themselves
// would send it again.
func (x *exchange) outcome(got server.Receipt, err error, wait server.Wait) (*receipt, error) {
	r := &receipt{got, wait}
	if err == nil || errors.Is(err, server.ErrNoAck) {
		return r, nil
	}
	p := x.problemOf(err)
	if p.code == codeUnknown {
		p.detail = "The request ended before its outcome was known; with an idempotency_key the same request tells it."
	}
	if got.ID != "" {
		p.receipt = r
	}
	return nil, p
}

func tooBig(limit int) *problem {
	return refusef(codeTooBig, "The field data may have at most %d bytes, see max-publish.", limit)
}

// request reads the body of a request to one of the routes.
func (x *exchange) request(on routes) (*request, error) {
	body, err := x.readBody(bodyRule{[]string{jsonType}, x.api.cfg.MaxPublish + envelope, "see max-publish"})
	if err != nil {
		return nil, err
	}
	return parse(body, on)
}

// disconnect closes connections. Which codes are allowed, and what is the
// default, is the backend's rule.
func disconnect(x *exchange) error {
	q, err := x.request(onDisconnect)
	if err != nil {
		return err
	}
	n, err := x.api.backend.Disconnect(x.r.Context(), q.to, q.code, q.reason)
	if err != nil {
		return err
	}
	x.answer(http.StatusOK, typeJSON, append(appendInt(nil, `{"disconnected":`, n), "}\n"...))
	return nil
}

func subscribe(x *exchange) error {
	return x.enroll("subscribed", x.api.backend.Subscribe)
}

func unsubscribe(x *exchange) error {
	return x.enroll("unsubscribed", x.api.backend.Unsubscribe)
}

// enroll has the backend subscribe or unsubscribe connections, and answers how
// many.
func (x *exchange) enroll(word string, do func(context.Context, server.Target, string) (int, error)) error {
	q, err := x.request(onSubscribe)
	if err != nil {
		return err
	}
	n, err := do(x.r.Context(), q.to, q.topic)
	if err != nil {
		return err
	}
	x.answer(http.StatusOK, typeJSON, append(appendInt(nil, `{"`+word+`":`, n), "}\n"...))
	return nil
}
