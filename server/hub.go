package server

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"unsafe"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// hub knows who is where: the connections of each user, and the shards that
// have subscribers of each topic.
type hub struct {
	users  *index[*conn]  // the first of a user's chain of connections
	topics *index[*topic] // those with a subscriber
	epoch  string         // of this process
	epochs atomic.Uint32  // topics begun so far
	bus    Bus
	srv    *Server

	lingering [64]lingering // beside each stripe of topics; guarded by that stripe
	lingers   lingerTotals

	subscriptions atomic.Int64
	raw           atomic.Int64 // connections that want raw frames
}

// remote reports whether the bus is one between nodes, which may block and may
// keep what it is given.
func (h *hub) remote() bool {
	_, local := h.bus.(localBus)
	return !local
}

// topic is a topic with subscribers, or one that lingers without any. When it is
// forgotten and somebody subscribes again, it starts with another epoch.
// Everything but the name is guarded by the topic's stripe of the index.
type topic struct {
	name  string // static
	seq   uint64
	epoch *string // of a bus between nodes; nil for this process's numbering
	born  uint32  // which topic of this process's epoch
	n     int32   // subscribers, those included whose joining is in an inbox
	subs  *subset
}

// policy is an [Overflow] in a byte.
type policy uint8

const (
	policyDisconnect policy = iota
	policyDropOldest
	policyLatest
)

func policyOf(o Overflow) policy {
	switch o {
	case DropOldest:
		return policyDropOldest
	case Latest:
		return policyLatest
	}
	return policyDisconnect
}

// subset is a topic's subscribers in one shard.
type subset struct {
	topic *topic  // static
	shard int32   // static
	n     int32   // subscribers here, joining ones too; guarded by the topic's stripe
	next  *subset // the topic's next shard; guarded by the topic's stripe

	// Owned by the shard's turn.
	set  members
	walk *walk // messages on their way to set; nil if there are none
}

func (t *topic) indexName() string { return t.name }
func (c *conn) indexName() string  { return c.user }

// peek is b as a string for a look-up; it must not be kept.
func peek(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// position is where the topic stands; the caller holds the stripe.
func (h *hub) position(t *topic) wire.Position {
	if t.epoch != nil {
		return wire.Position{Seq: t.seq, Epoch: *t.epoch}
	}
	return wire.Position{Seq: t.seq, Epoch: h.epoch + strconv.FormatUint(uint64(t.born), 36)}
}

// join adds a subscriber of topic name in shard s. It calls begin with the
// topic's position and appends the item that begin returns to the shard's
// inbox, in front of every later message. The caller holds no lock, may reuse
// name, and calls leave once when the subscriber goes.
func (h *hub) join(s *shard, name string, begin func(*subset, wire.Position) item) (*subset, error) {
	st := h.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	var t *topic
	if at := st.find(name); at != nil {
		t = *at
	} else if t = h.reviveLocked(name); t != nil {
		st.insert(t)
	} else {
		t = h.newTopic(name)
		if err := h.bus.Subscribe(t.name, h.deliver); err != nil {
			return nil, fmt.Errorf("subscribe to %q: %w", t.name, err)
		}
		st.insert(t)
	}
	sub := t.subs
	for sub != nil && sub.shard != int32(s.index) {
		sub = sub.next
	}
	if sub == nil {
		sub = &subset{topic: t, shard: int32(s.index), next: t.subs}
		t.subs = sub
	}
	t.n++
	sub.n++
	h.subscriptions.Add(1)
	s.inbox.append(begin(sub, h.position(t)))
	return sub, nil
}

// again is join for a connection that is subscribed already: it counts nothing
// and only appends the item that begin returns for the topic's position.
func (h *hub) again(sub *subset, begin func(*subset, wire.Position) item) {
	st := h.topics.stripe(sub.topic.name)
	st.mu.Lock()
	h.srv.shards[sub.shard].inbox.append(begin(sub, h.position(sub.topic)))
	st.mu.Unlock()
}

// leave undoes a join. The caller is the shard's turn and has taken the
// connection out of sub.set.
func (h *hub) leave(sub *subset) {
	t := sub.topic
	st := h.topics.stripe(t.name)
	st.mu.Lock()
	defer st.mu.Unlock()
	h.subscriptions.Add(-1)
	t.n--
	if sub.n--; sub.n == 0 {
		at := &t.subs
		for *at != sub {
			at = &(*at).next
		}
		*at = sub.next
	}
	if t.n == 0 {
		st.remove(t.name)
		h.lingerLocked(t)
	}
}

// login lists c under its user name. It refuses, and returns false, one over
// the limit of a user's connections.
func (h *hub) login(c *conn, user string) bool {
	st := h.users.stripe(user)
	st.mu.Lock()
	defer st.mu.Unlock()
	c.user = user
	at := st.find(user)
	if at == nil {
		st.insert(c)
		return true
	}
	n := 0
	for d := *at; d != nil; d = d.next {
		n++
	}
	if n >= h.srv.cfg.MaxUserConns {
		return false
	}
	c.next = (*at).next
	(*at).next = c
	return true
}

// logout takes c off the list of its user.
func (h *hub) logout(c *conn) {
	st := h.users.stripe(c.user)
	st.mu.Lock()
	defer st.mu.Unlock()
	at := st.find(c.user)
	switch {
	case *at != c:
		d := *at
		for d.next != c {
			d = d.next
		}
		d.next = c.next
	case c.next == nil:
		st.remove(c.user)
	default:
		*at = c.next
	}
	c.next = nil
}

// devices appends the refs of a user's connections to dst.
func (h *hub) devices(dst []ref, user string) []ref {
	st := h.users.stripe(user)
	st.mu.Lock()
	defer st.mu.Unlock()
	if at := st.find(user); at != nil {
		for d := *at; d != nil; d = d.next {
			dst = append(dst, d.ref())
		}
	}
	return dst
}

// deliver is what a bus calls with each message of a topic.
func (h *hub) deliver(p Publication, at Position) {
	st := h.topics.stripe(p.Topic)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := h.findLocked(st, p.Topic)
	if t == nil {
		return
	}
	t.seq, t.epoch = at.Seq, &at.Epoch
	h.deliverLocked(t, p, at.Seq)
}

// findLocked returns the topic of that name, with subscribers or lingering,
// nil if it is neither. The caller holds its stripe.
func (h *hub) findLocked(st *stripe[*topic], name string) *topic {
	if at := st.find(name); at != nil {
		return *at
	}
	if l := h.lingeringOf(name).find(name); l != nil {
		return &l.topic
	}
	return nil
}

// deliverLocked encodes p and appends it to the inbox of every shard with a
// subscriber. This is where the order of a topic is decided: the caller holds
// its stripe.
func (h *hub) deliverLocked(t *topic, p Publication, seq uint64) {
	if t.n == 0 {
		return // it lingers
	}
	m := p.out
	if m == nil || m.taken.Swap(true) {
		m = h.srv.newMessage(&p.Message)
		h.srv.publishBytes.Add(m.cost)
	}
	m.topic, m.policy = t, policyOf(h.srv.cfg.overflow(t.name))
	m.encode(&wire.Message{Topic: t.name, Seq: seq, ID: p.Message.ID, Urgency: p.Message.Urgency, Data: p.Message.Data}, h.raw.Load() > 0)
	m.seq = seq
	if m.policy != policyDisconnect || m.expires != 0 {
		m.epoch = h.position(t).Epoch // a gap names it
	}
	m.subscribers.Store(t.n)
	shards := int32(0)
	for sub := t.subs; sub != nil; sub = sub.next {
		shards++
	}
	m.pending.Store(shards)
	for sub := t.subs; sub != nil; sub = sub.next {
		s := h.srv.shards[sub.shard]
		s.inbox.append(item{kind: itemPublish, sub: sub, m: m, device: sub.n})
		s.wake()
	}
}

// encode makes the frames of m, one for each format. It makes the raw one only
// if raw is set, which means that a connection wants it.
func (m *message) encode(w *wire.Message, raw bool) {
	var header [10]byte // the longest of a frame without a mask
	b := make([]byte, len(header), len(header)+len(w.Data)+len(w.Topic)+len(w.ID)+96)
	b = wire.AppendMessage(b, w)
	n := len(wire.AppendHeader(header[:0], ws.OpText, true, len(b)-len(header)))
	m.frames[formatV1] = b[len(header)-n:]
	copy(m.frames[formatV1], header[:n])
	end := len(m.frames[formatV1]) - len("}")
	m.data = m.frames[formatV1][end-len(w.Data) : end] // the caller keeps his
	if raw {
		m.frames[formatRaw] = wire.AppendFrame(make([]byte, 0, len(w.Data)+10), ws.OpText, w.Data)
	}
}

// frame returns the bytes that a connection of format f gets.
func (m *message) frame(f format) []byte {
	if b := m.frames[f]; b != nil {
		return b
	}
	// The first raw connection came after m was encoded.
	return wire.AppendFrame(nil, ws.OpText, m.data)
}

// localBus is the default [Bus], for one process. It has no state: a topic in
// the index keeps the number of its last message.
type localBus struct{ hub *hub }

func (b localBus) Publish(_ context.Context, p Publication) (Position, error) {
	h := b.hub
	st := h.topics.stripe(p.Topic)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := h.findLocked(st, p.Topic)
	if t == nil { // nobody is there, nor was a moment ago: it has no numbering
		return Position{}, nil
	}
	t.seq++
	h.deliverLocked(t, p, t.seq)
	return Position(h.position(t)), nil
}

func (localBus) Subscribe(string, func(Publication, Position)) error { return nil }
func (localBus) Unsubscribe(string)                                  {}
func (localBus) Close() error                                        { return nil }
