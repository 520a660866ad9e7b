package server

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// Publish sends m to the subscribers of topic; a topic without any is no error,
// and the Receipt says Subscribers: 0. What else the Receipt tells depends on
// m.Wait. Errors wrap [ErrBadMessage], [ErrTooBig], [ErrBusy], [ErrReused] or
// [ErrClosed], or are ctx's. Any goroutine may call it.
//
// When ctx ends after the message has got its place, the message is delivered
// all the same; only the caller waits no longer.
func (srv *Server) Publish(ctx context.Context, topic string, m Message) (Receipt, error) {
	return srv.send(ctx, &address{verb: verbPublish, topic: topic}, &m)
}

// publishFrom is Publish for a client. Its ids are keys of its own: a user's,
// or without a user the connection's, never a backend's.
func (srv *Server) publishFrom(c Conn, topic string, m Message) (Receipt, error) {
	caller := "user " + c.user
	if c.user == "" {
		caller = "conn " + strconv.FormatUint(uint64(c.ref), 36)
	}
	ctx, cancel := context.WithTimeout(context.Background(), placeTimeout)
	defer cancel()
	return srv.send(ctx, &address{verb: verbPublish, topic: topic, caller: caller}, &m)
}

// Push sends m to every device of a user, or to one connection, on topic
// $user. The Receipt lists the devices. Errors are as of [Server.Publish],
// [ErrNobody] when there is no such connection, and [ErrNoAck] for [WaitAck]
// when no device acknowledged in time; the Receipt is then valid too.
func (srv *Server) Push(ctx context.Context, to Target, m Message) (Receipt, error) {
	return srv.send(ctx, &address{verb: verbPush, to: to}, &m)
}

// Broadcast sends m to every open connection, on topic $all. Errors are as of
// [Server.Publish].
func (srv *Server) Broadcast(ctx context.Context, m Message) (Receipt, error) {
	return srv.send(ctx, &address{verb: verbBroadcast}, &m)
}

// address says who a message is for, and who sends it.
type address struct {
	verb   verb
	topic  string // of a publish
	to     Target // of a push
	caller string // whose ids and keys these are; "" for backends
}

// verb is the way of sending; errors begin with it.
type verb string

const (
	verbPublish   verb = "publish"
	verbPush      verb = "push"
	verbBroadcast verb = "broadcast"
)

func (a *address) check() error {
	switch a.verb {
	case verbPublish:
		if err := wire.CheckTopic(a.topic); err != nil {
			return fmt.Errorf("%w: %s", ErrBadMessage, err.Message)
		}
	case verbPush:
		return a.to.check()
	}
	return nil
}

// sending is a message that has its place, and what is needed to wait for it.
// Several callers may wait for one.
type sending struct {
	id    string
	at    Position
	wait  Wait
	about int // connections that it is for, if they are counted later
	out   *message
	entry *onceEntry // of a message with a key, nil without; if set, its own sending has the fields above
	again bool       // another publish with this key came first
}

// send is the common way of a single publish.
func (srv *Server) send(ctx context.Context, a *address, m *Message) (Receipt, error) {
	var r Receipt
	s, err := srv.begin(ctx, a, m, nil)
	if err == nil {
		r, err = srv.await(ctx, &s)
	}
	return r, srv.refused(a.verb, err)
}

// refused counts err and says what failed; nil stays nil.
func (srv *Server) refused(v verb, err error) error {
	if err == nil {
		return nil
	}
	srv.counts.publishes.Add(Reason(err))
	return fmt.Errorf("%s: %w", v, err)
}

// begin checks m and gives it its place; with a key only if no other has had
// it. b is the batch that m belongs to, or nil.
func (srv *Server) begin(ctx context.Context, a *address, m *Message, b *batch) (sending, error) {
	if err := a.check(); err != nil {
		return sending{}, err
	}
	if err := srv.check(m, b.known(m.Data)); err != nil {
		return sending{}, err
	}
	if m.Rate > 0 && a.verb != verbBroadcast {
		return sending{}, fmt.Errorf("%w: only a broadcast has a rate", ErrBadMessage)
	}
	if b != nil {
		b.valid = m.Data
	}
	if srv.engine.Ended() {
		return sending{}, ErrClosed
	}
	key := cmp.Or(m.IdempotencyKey, m.ID)
	if m.ID == "" {
		m.ID = srv.newID()
	}
	if a.verb == verbPublish && !srv.hub.immediate {
		m.Data = bytes.Clone(m.Data) // the bus may keep it, and the caller may reuse his
	}
	if key == "" {
		return srv.place(ctx, a, m, b)
	}
	return srv.placeOnce(ctx, onceKey{a.caller, key}, a, m, b)
}

// place puts m on its way. An error means that it was sent to nobody.
func (srv *Server) place(ctx context.Context, a *address, m *Message, b *batch) (sending, error) {
	out := srv.newMessage(m)
	if !srv.reserve(out.cost) {
		return sending{}, ErrBusy
	}
	if m.Wait > WaitNone || b != nil {
		out.done = make(chan struct{})
	}
	var at Position
	var err error
	about := 0
	switch a.verb {
	case verbPublish:
		at, about, err = srv.overBus(ctx, out, a.topic, m)
	case verbPush:
		if err = srv.push(out, a.to, m, b); err != nil {
			srv.release(out.cost)
		}
	case verbBroadcast:
		about = srv.engine.Connections()
		srv.broadcast(out, m)
	}
	if err != nil {
		return sending{}, err
	}
	srv.counts.published.Add(1)
	return sending{id: m.ID, at: at, wait: m.Wait, about: about, out: out}, nil
}

// overBus publishes out to a topic. about is how many subscribers there are, if
// nobody waits to learn it from the delivery.
func (srv *Server) overBus(ctx context.Context, out *message, topic string, m *Message) (at Position, about int, err error) {
	origin := srv.flight.add(out)
	at, err = srv.hub.publish(ctx, Publication{Topic: topic, Message: *m, Origin: origin})
	switch {
	case err != nil:
		if srv.flight.take(origin) != nil {
			srv.release(out.cost)
		}
	case m.Wait == WaitNone && out.Total() > 0: // it was delivered
	case m.Wait > WaitNone && at != (Position{}) && srv.flight.has(out) && srv.hub.comes(topic, at):
		srv.flight.expect(expected{out, topic, at, srv.engine.Now()})
	default: // it is with the shards, or nobody is here, or nobody waits
		if srv.flight.take(origin) != nil {
			out.Delivered()
		}
		if m.Wait == WaitNone && at != (Position{}) {
			about = srv.hub.subscribers(topic)
		}
	}
	return at, about, err
}

// push gives out to every connection of a target.
func (srv *Server) push(out *message, to Target, m *Message, b *batch) error {
	var few [4]engine.Ref
	refs := srv.resolve(few[:0], to)
	if len(refs) == 0 {
		return fmt.Errorf("%w: %s has no connection", ErrNobody, to)
	}
	srv.engine.Encode(&out.Parcel, wire.Message{Topic: wire.UserTopic, ID: m.ID, Urgency: m.Urgency, Ack: m.Wait == WaitAck, Data: m.Data}, false)
	out.Share(len(refs), len(refs))
	out.To = make([]engine.Address, len(refs))
	for i, r := range refs {
		out.To[i].Ref = r
	}
	if m.Wait == WaitAck {
		out.acks = srv.acks.expect(m.ID, refs, m.AckTimeout)
	}
	for i := range refs {
		if b != nil {
			b.mail.SendOne(&out.Parcel, i)
		} else {
			srv.engine.SendOne(&out.Parcel, i)
		}
	}
	return nil
}

// broadcast gives out to every shard.
func (srv *Server) broadcast(out *message, m *Message) {
	srv.engine.Encode(&out.Parcel, wire.Message{Topic: wire.AllTopic, ID: m.ID, Urgency: m.Urgency, Data: m.Data}, true)
	srv.engine.SendAll(&out.Parcel)
}

// await waits as the message asks and returns its receipt. The error of a
// caller who does not wait to the end is ctx's.
func (srv *Server) await(ctx context.Context, s *sending) (Receipt, error) {
	if s.entry != nil {
		return srv.awaitOnce(ctx, s.entry, s.again)
	}
	out := s.out
	r := Receipt{ID: s.id, Seq: s.at.Seq, Epoch: s.at.Epoch, Subscribers: max(s.about, out.Total())}
	if s.wait == WaitNone {
		return r, nil
	}
	err := srv.wait(ctx, out.done)
	switch {
	case err != nil:
		return r, fmt.Errorf("wait for delivery: %w", err)
	case out.allGone():
		err = fmt.Errorf("%w: every connection has ended", ErrNobody)
	case out.acks != nil:
		for _, to := range out.To {
			if to.Status == engine.Dropped {
				srv.acks.giveUp(out.acks, to.Ref)
			}
		}
		if err = srv.wait(ctx, out.acks.end); err != nil {
			err = fmt.Errorf("wait for acknowledgements: %w", err)
		} else {
			err = srv.acks.result(out.acks)
		}
	}
	out.fill(srv, &r)
	return r, err
}
