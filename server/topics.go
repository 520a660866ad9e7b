package server

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// hub knows who is where: the connections of each user, and the shards that
// have subscribers of each topic.
type hub struct {
	users  *index[*session] // the first of a user's chain of sessions
	topics *index[*topic]   // those with a subscriber
	epoch  string           // of this process
	epochs atomic.Uint32    // topics begun so far
	bus    Bus
	srv    *Server

	lingering [64]lingering // beside each stripe of topics; guarded by that stripe
	lingers   lingerTotals

	subscriptions atomic.Int64
}

func newHub(srv *Server) *hub {
	h := &hub{users: newIndex[*session](), topics: newIndex[*topic](), epoch: srv.randomName() + "-", srv: srv, bus: srv.cfg.Bus}
	if h.bus == nil {
		h.bus = localBus{h}
	}
	return h
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
	flow  engine.Flow // static; its name
	seq   uint64
	epoch *string // of a bus between nodes; nil for this process's numbering
	born  uint32  // which topic of this process's epoch
	n     int32   // subscribers, those included whose joining is in an inbox
	subs  *subset
}

func policyOf(o Overflow) engine.Policy {
	switch o {
	case DropOldest:
		return engine.DropOldest
	case Latest:
		return engine.Latest
	}
	return engine.Disconnect
}

// subset is a topic's subscribers in one shard.
type subset struct {
	topic *topic  // static
	shard int32   // static
	n     int32   // subscribers here, joining ones too; guarded by the topic's stripe
	next  *subset // the topic's next shard; guarded by the topic's stripe

	group engine.Group // those that have joined; owned by the shard's turn
}

func (t *topic) indexName() string { return t.flow.Name }

// position is where the topic stands; the caller holds the stripe.
func (h *hub) position(t *topic) wire.Position {
	if t.epoch != nil {
		return wire.Position{Seq: t.seq, Epoch: *t.epoch}
	}
	return wire.Position{Seq: t.seq, Epoch: h.epoch + strconv.FormatUint(uint64(t.born), 36)}
}

// join adds a subscriber of topic name in a shard. It calls behind, which
// appends to the shard's inbox, with the topic's position, in front of every
// later message. The caller holds no lock, may reuse name, and calls leave once
// when the subscriber goes.
func (h *hub) join(shard int, name string, behind func(*subset, wire.Position)) (*subset, error) {
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
		if err := h.bus.Subscribe(t.flow.Name, h.deliver); err != nil {
			return nil, fmt.Errorf("subscribe to %q: %w", t.flow.Name, err)
		}
		st.insert(t)
	}
	sub := t.subs
	for sub != nil && sub.shard != int32(shard) {
		sub = sub.next
	}
	if sub == nil {
		sub = &subset{topic: t, shard: int32(shard), next: t.subs}
		t.subs = sub
	}
	t.n++
	sub.n++
	h.subscriptions.Add(1)
	behind(sub, h.position(t))
	return sub, nil
}

// reannounce is join for a connection that is subscribed already: it counts
// nothing and only calls behind with the topic's position.
func (h *hub) reannounce(sub *subset, behind func(*subset, wire.Position)) {
	st := h.topics.stripe(sub.topic.flow.Name)
	st.mu.Lock()
	defer st.mu.Unlock()
	behind(sub, h.position(sub.topic))
}

// leave undoes a join. The caller is the shard's turn and has taken the
// connection out of sub.set.
func (h *hub) leave(sub *subset) {
	t := sub.topic
	st := h.topics.stripe(t.flow.Name)
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
		st.remove(t.flow.Name)
		h.lingerLocked(t)
	}
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
	m.Flow, m.Policy, m.Seq = &t.flow, policyOf(h.srv.cfg.overflow(t.flow.Name)), seq
	if m.Policy != engine.Disconnect || m.Expires != 0 {
		m.Epoch = h.position(t).Epoch // a gap names it
	}
	e := h.srv.engine
	e.Encode(&m.Parcel, wire.Message{Topic: t.flow.Name, Seq: seq, ID: p.Message.ID, Urgency: p.Message.Urgency, Data: p.Message.Data}, false)
	shards := 0
	for sub := t.subs; sub != nil; sub = sub.next {
		shards++
	}
	m.Share(int(t.n), shards)
	for sub := t.subs; sub != nil; sub = sub.next {
		e.Send(int(sub.shard), &sub.group, int(sub.n), &m.Parcel)
	}
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
