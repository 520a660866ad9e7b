package server

import (
	"context"
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
	epochs atomic.Uint64    // topics begun so far
	bus    Bus
	srv    *Server

	immediate bool    // the bus is [Immediate]
	history   History // the bus, if it is one

	// Beside each stripe of topics; guarded by that stripe.
	lingering [64]lingering
	busSides  [64]busSide
	lingers   lingerTotals

	subscriptions atomic.Int64
}

func newHub(srv *Server) *hub {
	hash := srv.engine.Hash()
	h := &hub{users: newIndex[*session](hash), topics: newIndex[*topic](hash), epoch: srv.randomName() + "-", srv: srv, bus: srv.cfg.Bus}
	if h.bus == nil {
		h.bus = localBus{h}
	}
	_, h.immediate = h.bus.(Immediate)
	h.history, _ = h.bus.(History)
	return h
}

// topic is a topic with subscribers, or one that lingers without any, or one
// that the bus was asked for. When it is forgotten and somebody subscribes again,
// it starts with another epoch. Everything but the name is guarded by the topic's
// stripe of the index. It is 48 bytes, a size class of Go's allocator.
type topic struct {
	flow  engine.Flow // static; its name
	seq   uint64
	epoch *string // that the bus gave; nil if it is this process's and born says which; unready or refused before
	born  uint32  // which of this process's epochs, see nextEpoch, and in the lowest two bits its policy
	n     int32   // holds and subscribers, those included whose joining is in an inbox
	subs  *subset // nil if there are no subscribers
}

func (t *topic) policy() engine.Policy { return engine.Policy(t.born & 3) }

// subscribers counts the subscribers, and the shards that they are in.
func (t *topic) subscribers() (n, shards int) {
	for sub := t.subs; sub != nil; sub = sub.next {
		n += int(sub.n)
		shards++
	}
	return n, shards
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

func (h *hub) busSide(name string) *busSide { return &h.busSides[h.topics.number(name)] }

func (t *topic) indexName() string { return t.flow.Name }

// position is where the topic stands; the caller holds the stripe.
func (h *hub) position(t *topic) wire.Position {
	if t.epoch != nil {
		return wire.Position{Seq: t.seq, Epoch: *t.epoch}
	}
	return wire.Position{Seq: t.seq, Epoch: h.epochName(uint64(t.born >> 2))}
}

func (h *hub) epochName(n uint64) string { return h.epoch + strconv.FormatUint(n, 36) }

// nextEpoch returns the number of a new topic's epoch. It is 0 when the 30 bits of
// topic.born are used up, after a billion topics. Then topic.epoch has the name,
// which costs a few bytes more, so that none comes twice.
func (h *hub) nextEpoch() uint32 {
	if n := h.epochs.Add(1); n < 1<<30 {
		return uint32(n)
	}
	return 0
}

// hold keeps topic name, which it begins if need be, for somebody who wants to
// join it; who undoes that with enter or release. It is ready if the bus has said
// where it stands; else see [hub.await]. The caller holds no lock and may reuse
// name.
func (h *hub) hold(name string) (t *topic, ready bool) {
	i := h.topics.number(name)
	st := &h.topics.stripes[i]
	st.mu.Lock()
	if at := st.find(name); at != nil {
		t = *at
	} else if t = h.reviveLocked(name); t != nil {
		st.insert(t)
	} else {
		t = h.newTopic(name)
		st.insert(t)
		h.busSides[i].later(busCall{t.flow.Name, true})
	}
	t.n++
	ready = t.ready()
	st.mu.Unlock()
	if !ready {
		h.callBus(i)
		ready, _ = h.stands(t)
	}
	return t, ready
}

// stands reports whether a held topic is ready, and whether the bus has decided
// that: if it has and the topic is not, nobody can join it.
func (h *hub) stands(t *topic) (ready, decided bool) {
	st := h.topics.stripe(t.flow.Name)
	st.mu.Lock()
	defer st.mu.Unlock()
	return t.ready(), t.epoch != unready
}

// enter makes a hold of a topic that is ready a subscription, in a shard. It
// calls behind, which appends to the shard's inbox, with the topic's position, in
// front of every later message. The caller holds no lock, and calls leave once
// when the subscriber goes.
func (h *hub) enter(t *topic, shard int, behind func(*subset, wire.Position)) *subset {
	st := h.topics.stripe(t.flow.Name)
	st.mu.Lock()
	defer st.mu.Unlock()
	sub := h.enterLocked(t, shard)
	behind(sub, h.position(t))
	return sub
}

func (h *hub) enterLocked(t *topic, shard int) *subset {
	sub := t.subs
	for sub != nil && sub.shard != int32(shard) {
		sub = sub.next
	}
	if sub == nil {
		sub = &subset{topic: t, shard: int32(shard), next: t.subs}
		t.subs = sub
	}
	sub.n++
	h.subscriptions.Add(1)
	return sub
}

// release undoes the holds of somebody who does not join.
func (h *hub) release(topics []*topic) {
	for _, t := range topics {
		i := h.topics.number(t.flow.Name)
		st := &h.topics.stripes[i]
		st.mu.Lock()
		h.releaseLocked(st, t)
		st.mu.Unlock()
		h.callBus(i)
	}
}

func (h *hub) releaseLocked(st *stripe[*topic], t *topic) {
	if t.n--; t.n > 0 || t.epoch == refused {
		return
	}
	st.remove(t.flow.Name)
	if t.epoch == unready {
		b := h.busSide(t.flow.Name)
		delete(b.waiting, t)
		b.later(busCall{t.flow.Name, false})
		return
	}
	h.lingerLocked(t)
}

// reannounce is enter for a connection that is subscribed already: it counts
// nothing and only calls behind with the topic's position.
func (h *hub) reannounce(sub *subset, behind func(*subset, wire.Position)) {
	st := h.topics.stripe(sub.topic.flow.Name)
	st.mu.Lock()
	defer st.mu.Unlock()
	behind(sub, h.position(sub.topic))
}

// leave undoes an enter. The caller is the shard's turn and has taken the
// connection out of sub's group.
func (h *hub) leave(sub *subset) {
	t := sub.topic
	i := h.topics.number(t.flow.Name)
	st := &h.topics.stripes[i]
	st.mu.Lock()
	h.subscriptions.Add(-1)
	if sub.n--; sub.n == 0 {
		at := &t.subs
		for *at != sub {
			at = &(*at).next
		}
		*at = sub.next
	}
	h.releaseLocked(st, t)
	calls := len(h.busSides[i].calls) > 0
	st.mu.Unlock()
	if calls {
		h.callBus(i)
	}
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

// deliverLocked encodes p, which stands at t.seq, and appends it to the inbox of
// every shard with a subscriber. The caller holds t's stripe.
func (h *hub) deliverLocked(t *topic, p *Publication) {
	m, tl := h.srv.flight.take(p.Origin), h.tailLocked(t)
	if t.subs == nil && tl == nil { // it lingers
		if m != nil {
			m.Delivered()
		}
		return
	}
	if m == nil {
		m = h.srv.newMessage(&p.Message)
		h.srv.publishBytes.Add(m.cost)
	}
	m.Flow, m.Policy, m.Seq = &t.flow, t.policy(), t.seq
	if m.Policy != engine.Disconnect || m.Expires != 0 {
		m.Epoch = h.position(t).Epoch // a gap names it
	}
	h.srv.engine.Encode(&m.Parcel, wire.Message{Topic: t.flow.Name, Seq: t.seq, ID: p.Message.ID, Urgency: p.Message.Urgency, Data: p.Message.Data}, tl != nil)
	if tl != nil {
		tl.keep(&m.Parcel, h.page())
	}
	if t.subs == nil {
		m.Delivered()
		return
	}
	h.sendLocked(t, &m.Parcel)
}

// sendLocked appends p to the inbox of every shard with a subscriber of t. This
// is where the order of a topic is decided: the caller holds its stripe.
func (h *hub) sendLocked(t *topic, p *engine.Parcel) {
	n, shards := t.subscribers()
	p.Share(n, shards)
	for sub := t.subs; sub != nil; sub = sub.next {
		h.srv.engine.Send(int(sub.shard), &sub.group, int(sub.n), p)
	}
}

// localBus is the default [Bus], for one process. It has no state: a topic in
// the index keeps the number of its last message.
type localBus struct{ hub *hub }

// Immediate implements [Immediate].
func (localBus) Immediate() {}

// Start implements [Bus].
func (localBus) Start(Sink) error { return nil }

// Publish implements [Bus].
func (b localBus) Publish(_ context.Context, p Publication) (Position, error) {
	h := b.hub
	st := h.topics.stripe(p.Topic)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := h.findLocked(st, p.Topic)
	if t == nil || !t.ready() { // nobody is there, nor was a moment ago: it has no numbering
		return Position{}, nil
	}
	t.seq++
	h.deliverLocked(t, &p)
	return Position(h.position(t)), nil
}

// Subscribe implements [Bus].
func (b localBus) Subscribe(topic string) { b.hub.ready(topic, 0, nil) }

// Unsubscribe implements [Bus].
func (localBus) Unsubscribe(string) {}

// Close implements [Bus].
func (localBus) Close() error { return nil }
