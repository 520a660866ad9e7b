package server

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strconv"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// Publish sends m to the subscribers of topic. What the Receipt tells depends
// on m.Wait. Errors wrap [ErrNobody], [ErrBadMessage], [ErrTooBig], [ErrBusy],
// [ErrReused] or [ErrClosed], or are ctx's. Any goroutine may call it.
func (srv *Server) Publish(ctx context.Context, topic string, m Message) (Receipt, error) {
	if err := wire.CheckTopic(topic); err != nil {
		srv.stats.publishRejected(ErrBadMessage)
		return Receipt{}, fmt.Errorf("publish: %w: %s", ErrBadMessage, err.Message)
	}
	return srv.send(ctx, "publish", "topic "+topic, &m, func(out *message) (Receipt, error) {
		at, err := srv.hub.bus.Publish(ctx, Publication{Topic: topic, Message: m, out: out})
		if err == nil && !out.taken.Swap(true) {
			srv.delivered(out) // nobody here, or it will come from elsewhere
		}
		return Receipt{Seq: at.Seq, Epoch: at.Epoch}, err
	})
}

// Push sends m to every device of a user, or to one connection, on topic
// $user. The Receipt lists the devices. Errors are as of [Server.Publish], and
// [ErrNoAck] for [WaitAck] when no device acknowledged in time; the Receipt
// is then valid too.
func (srv *Server) Push(ctx context.Context, to Target, m Message) (Receipt, error) {
	refs, err := srv.resolve(to)
	if err != nil {
		srv.stats.publishRejected(err)
		return Receipt{}, fmt.Errorf("push: %w", err)
	}
	return srv.send(ctx, "push", "user "+to.User+" conn "+to.Conn, &m, func(out *message) (Receipt, error) {
		if len(refs) == 0 {
			return Receipt{}, fmt.Errorf("%w: %s has no connection", ErrNobody, to)
		}
		out.encode(&wire.Message{Topic: wire.UserTopic, ID: m.ID, Ack: m.Wait == WaitAck, Data: m.Data}, srv.hub.raw.Load() > 0)
		out.subscribers.Store(int32(len(refs)))
		out.devices = make([]deviceNote, len(refs))
		out.pending.Store(int32(len(refs)))
		for i, r := range refs {
			out.devices[i] = deviceNote{ref: r, status: StatusPending}
		}
		if m.Wait == WaitAck {
			out.acks = srv.acks.expect(m.ID, refs)
		}
		for i, r := range refs {
			srv.post(r, item{kind: itemDirect, m: out, device: int32(i)})
		}
		return Receipt{}, nil
	})
}

// Broadcast sends m to every open connection, on topic $all.
func (srv *Server) Broadcast(ctx context.Context, m Message) (Receipt, error) {
	return srv.send(ctx, "broadcast", "everybody", &m, func(out *message) (Receipt, error) {
		n := int(srv.opened.Load())
		if n == 0 {
			return Receipt{}, fmt.Errorf("%w: no connection is open", ErrNobody)
		}
		out.encode(&wire.Message{Topic: wire.AllTopic, ID: m.ID, Data: m.Data}, srv.hub.raw.Load() > 0)
		out.pending.Store(int32(len(srv.shards)))
		for _, s := range srv.shards {
			s.inbox.append(item{kind: itemAll, m: out})
			s.wake()
		}
		return Receipt{Subscribers: n}, nil // about; the shards count
	})
}

// send is the common way of a publish: check, once, budget, place, wait.
func (srv *Server) send(ctx context.Context, verb, address string, m *Message, place func(*message) (Receipt, error)) (Receipt, error) {
	receipt, err := srv.sendOnce(ctx, address, m, place)
	if err != nil {
		srv.stats.publishRejected(err)
		return receipt, fmt.Errorf("%s: %w", verb, err)
	}
	return receipt, nil
}

func (srv *Server) sendOnce(ctx context.Context, address string, m *Message, place func(*message) (Receipt, error)) (Receipt, error) {
	if err := srv.check(m); err != nil {
		return Receipt{}, err
	}
	if srv.draining.Load() && srv.conns.Load() == 0 || srv.closed.Load() {
		return Receipt{}, ErrClosed
	}
	key := m.IdempotencyKey
	if key == "" {
		key = m.ID
	}
	if m.ID == "" {
		m.ID = srv.newID()
	}
	if key == "" {
		return srv.deliverAndWait(ctx, m, place)
	}
	return srv.once.do(ctx, key, address, m, func() (Receipt, error) {
		return srv.deliverAndWait(ctx, m, place)
	})
}

func (srv *Server) deliverAndWait(ctx context.Context, m *Message, place func(*message) (Receipt, error)) (Receipt, error) {
	out := srv.newMessage(m)
	if srv.publishBytes.Add(out.cost) > srv.cfg.PublishBudget {
		srv.publishBytes.Add(-out.cost)
		return Receipt{}, ErrBusy
	}
	if m.Wait > WaitNone {
		out.done = make(chan struct{})
	}
	start := srv.kernel.Now()
	receipt, err := place(out)
	if err != nil {
		if !out.taken.Swap(true) {
			srv.publishBytes.Add(-out.cost)
		}
		return Receipt{}, err
	}
	srv.stats.published.Add(1)
	receipt.ID, receipt.Subscribers = m.ID, max(receipt.Subscribers, int(out.subscribers.Load()))
	if m.Wait == WaitNone {
		return receipt, nil
	}
	if out.acks != nil {
		defer srv.acks.forget(m.ID, out.acks)
	}
	select {
	case <-out.done:
		srv.stats.fanout.observe(srv.kernel.Now() - start)
	case <-ctx.Done():
		return receipt, fmt.Errorf("wait for delivery: %w", ctx.Err())
	}
	switch {
	case out.allGone():
		err = fmt.Errorf("%w: every connection has ended", ErrNobody)
	case out.acks != nil:
		for _, d := range out.devices {
			if d.status == StatusDropped {
				out.acks.giveUp(d.ref)
			}
		}
		err = out.acks.wait(ctx, m.AckTimeout)
	}
	out.fill(srv, &receipt)
	return receipt, err
}

// allGone reports whether m is a push and none of its connections is there
// any more.
func (m *message) allGone() bool {
	for _, d := range m.devices {
		if !d.gone {
			return false
		}
	}
	return len(m.devices) > 0
}

// fill completes the receipt of a message that all shards have walked.
func (m *message) fill(srv *Server, r *Receipt) {
	r.Subscribers = int(m.subscribers.Load())
	r.Written, r.Queued, r.Dropped = m.outcome.read()
	for _, d := range m.devices {
		status := d.status
		if m.acks != nil && m.acks.has(d.ref) {
			status = StatusAcked
		}
		r.Devices = append(r.Devices, Device{Conn: string(srv.ids.append(nil, d.ref)), Status: status})
	}
}

// check refuses what cannot be sent and fills in defaults.
func (srv *Server) check(m *Message) error {
	switch {
	case len(m.Data) == 0:
		return fmt.Errorf("%w: data is missing", ErrBadMessage)
	case len(m.Data) > srv.cfg.MaxPublish:
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooBig, len(m.Data), srv.cfg.MaxPublish)
	case len(m.ID) > wire.MaxID:
		return fmt.Errorf("%w: id has %d bytes, the limit is %d", ErrBadMessage, len(m.ID), wire.MaxID)
	case len(m.IdempotencyKey) > wire.MaxID:
		return fmt.Errorf("%w: idempotency_key has %d bytes, the limit is %d", ErrBadMessage, len(m.IdempotencyKey), wire.MaxID)
	case len(m.CollapseKey) > wire.MaxID:
		return fmt.Errorf("%w: collapse_key has %d bytes, the limit is %d", ErrBadMessage, len(m.CollapseKey), wire.MaxID)
	case m.TTL < 0 || m.Rate < 0 || m.AckTimeout < 0:
		return fmt.Errorf("%w: ttl, rate and timeout cannot be negative", ErrBadMessage)
	}
	switch m.Urgency {
	case "", "very-low", "low", "normal", "high":
	default:
		return fmt.Errorf("%w: urgency is %q, it must be very-low, low, normal or high", ErrBadMessage, m.Urgency)
	}
	if err := wire.CheckJSON(m.Data); err != nil {
		return fmt.Errorf("%w: data: %w", ErrBadMessage, err)
	}
	setDefault(&m.AckTimeout, 10*time.Second)
	return nil
}

// newMessage makes what shards pass on; encode gives it its bytes.
func (srv *Server) newMessage(m *Message) *message {
	out := &message{key: m.CollapseKey, rate: m.Rate, cost: int64(len(m.Data)) + 512}
	out.began = srv.kernel.Now()
	if m.TTL > 0 {
		out.expires = out.began + m.TTL
	}
	return out
}

// delivered is called once for each message, when no shard has it any more.
func (srv *Server) delivered(m *message) {
	srv.publishBytes.Add(-m.cost)
	if m.done != nil {
		close(m.done)
	}
}

// newID returns a message id that no other message has.
func (srv *Server) newID() string {
	return srv.idPrefix + strconv.FormatUint(srv.idNext.Add(1), 36)
}

func randomName() string {
	var b [5]byte
	rand.Read(b[:])
	return base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])
}

// String describes the target for an error message.
func (t Target) String() string {
	if t.User != "" {
		return fmt.Sprintf("user %q", t.User)
	}
	return fmt.Sprintf("conn %q", t.Conn)
}

// resolve returns the connections that t names. One that has ended meanwhile
// may be among them.
func (srv *Server) resolve(t Target) ([]ref, error) {
	switch {
	case (t.User == "") == (t.Conn == ""):
		return nil, fmt.Errorf("%w: give either user or conn", ErrBadMessage)
	case t.User != "":
		if err := wire.CheckUser(t.User); err != nil {
			return nil, fmt.Errorf("%w: %s", ErrBadMessage, err.Message)
		}
		return srv.hub.devices(nil, t.User), nil
	}
	r, ok := srv.ids.parse(t.Conn)
	if !ok {
		return nil, fmt.Errorf("%w: %s is not a connection of this server", ErrNobody, t)
	}
	return []ref{r}, nil
}

// post leaves it in the inbox of the shard that r belongs to.
func (srv *Server) post(r ref, it item) {
	it.ref = r
	s := srv.shards[shardOf(r.fd(), len(srv.shards))]
	s.inbox.append(it)
	s.wake()
}

// Disconnect closes the connections of a target and returns how many it asked
// to close. Code must be one of 1000 and 3000–4999; 0 means 3503.
func (srv *Server) Disconnect(_ context.Context, to Target, code wire.CloseCode, reason string) (int, error) {
	setDefault(&code, wire.CloseForceDisconnect)
	if code != wire.CloseNormal && (code < 3000 || code > 4999) {
		return 0, fmt.Errorf("disconnect: %w: code is %d, it must be 1000 or 3000 to 4999", ErrBadMessage, code)
	}
	if reason == "" {
		reason = code.String()
	}
	refs, err := srv.resolve(to)
	if err == nil && len(refs) == 0 {
		err = fmt.Errorf("%w: %s has no connection", ErrNobody, to)
	}
	if err != nil {
		return 0, fmt.Errorf("disconnect: %w", err)
	}
	for _, r := range refs {
		srv.post(r, item{kind: itemClose, x: closing{code, reason}})
	}
	return len(refs), nil
}

// User returns the ids of the user's connections, none if there are none.
func (srv *Server) User(name string) []string {
	var conns []string
	for _, r := range srv.hub.devices(nil, name) {
		conns = append(conns, string(srv.ids.append(nil, r)))
	}
	return conns
}

// Topic returns where a topic stands and how many connections are subscribed
// to it; ok is false if none is, nor was for Config.TopicLinger.
func (srv *Server) Topic(name string) (at Position, subscribers int, ok bool) {
	st := srv.hub.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := srv.hub.findLocked(st, name)
	if t == nil {
		return Position{}, 0, false
	}
	return Position(srv.hub.position(t)), int(t.n), true
}
