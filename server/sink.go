package server

import (
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// The hub is the bus's [Sink]. A topic is held first: then somebody wants it,
// and the bus was asked for it. When the bus has said where it stands, and not
// before, connections enter it. Those that came before that wait, paused.

// What topic.epoch points to while the bus has not given one.
var (
	unready = new(string) // it was asked for the topic
	refused = new(string) // it has none; the hub has forgotten the topic
)

// ready reports whether it is known where t stands. The caller holds the stripe.
func (t *topic) ready() bool { return t.epoch != unready && t.epoch != refused }

// busSide is what the bus and one stripe of topics have to do with each other.
// It is guarded by that stripe.
type busSide struct {
	waiting map[*topic]*waiting      // that are not ready, and for which a connection waits
	tails   map[*topic]*tail         // of those with which somebody catches up
	lost    map[string]time.Duration // when to ask again for topics with subscribers that the bus has no more
	calls   []busCall                // of the bus, in this order
	made    int                      // so many of them
	calling bool                     // somebody makes them
}

// waiting is who waits for a topic.
type waiting struct {
	since time.Duration
	all   map[waiter]int // each with its number, by which they are woken
	next  int
}

// waiter is who waits: a connection, or a goroutine. wake is called with the
// stripe held.
type waiter interface{ wake() }

// blocked is a goroutine that waits. It is closed to wake that.
type blocked chan struct{}

func (b blocked) wake() { close(b) }

// busCall is a call of Subscribe or Unsubscribe.
type busCall struct {
	topic string
	begin bool
}

// later has the bus called. The caller holds the stripe, and calls callBus when it
// has let go of it; or it is called by the bus, and the ticker does.
func (b *busSide) later(c busCall) { b.calls = append(b.calls, c) }

// callBus makes the calls of stripe i. Of all who come here at once one makes
// them, so they keep their order and no lock is held.
func (h *hub) callBus(i int) {
	mu, b := &h.topics.stripes[i].mu, &h.busSides[i]
	mu.Lock()
	defer mu.Unlock()
	if b.calling {
		return
	}
	b.calling = true
	defer func() { b.calling = false }()
	for b.made < len(b.calls) {
		c := b.calls[b.made]
		b.calls[b.made] = busCall{}
		b.made++
		h.callUnlocked(mu, c)
	}
	if b.calls, b.made = b.calls[:0], 0; cap(b.calls) > 64 {
		b.calls = nil
	}
}

func (h *hub) callUnlocked(mu sync.Locker, c busCall) {
	mu.Unlock()
	defer mu.Lock()
	if err := h.call(c); err != nil && c.begin {
		h.Ready(c.topic, Position{}, err)
	}
}

func (h *hub) call(c busCall) (err error) {
	defer h.caught(&err)
	if c.begin {
		h.bus.Subscribe(c.topic)
	} else {
		h.bus.Unsubscribe(c.topic)
	}
	return nil
}

// publish has the bus publish.
func (h *hub) publish(ctx context.Context, p Publication) (at Position, err error) {
	defer h.caught(&err)
	return h.bus.Publish(ctx, p)
}

// caught makes a panic of the bus, which is somebody else's code, an error.
func (h *hub) caught(err *error) {
	if v := recover(); v != nil {
		h.srv.cfg.Logger.Error("the bus panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		*err = fmt.Errorf("the bus panicked: %v", v)
	}
}

// await has w woken when the held topic t is ready or refused.
func (h *hub) await(t *topic, w waiter) {
	i := h.topics.number(t.flow.Name)
	mu, b := &h.topics.stripes[i].mu, &h.busSides[i]
	mu.Lock()
	defer mu.Unlock()
	if t.epoch != unready {
		w.wake()
		return
	}
	of := b.waiting[t]
	if of == nil {
		if b.waiting == nil {
			b.waiting = map[*topic]*waiting{}
		}
		of = &waiting{since: h.srv.engine.Now(), all: map[waiter]int{}}
		b.waiting[t] = of
	}
	of.all[w] = of.next
	of.next++
}

// forsake undoes an await.
func (h *hub) forsake(t *topic, w waiter) {
	i := h.topics.number(t.flow.Name)
	mu, b := &h.topics.stripes[i].mu, &h.busSides[i]
	mu.Lock()
	defer mu.Unlock()
	if of := b.waiting[t]; of != nil {
		delete(of.all, w)
	}
}

// awaitAll waits in the caller's goroutine until all of topics, which are held, are
// ready. wait waits until its argument is closed or returns false: then awaitAll
// gives up and does too. It fails if one of them is refused.
func (h *hub) awaitAll(topics []*topic, wait func(<-chan struct{}) bool) (waited bool, err error) {
	for _, t := range topics {
		if !h.awaitOne(t, wait) {
			return false, nil
		}
		if ready, _ := h.stands(t); !ready {
			return true, ErrTopicUnavailable
		}
	}
	return true, nil
}

// awaitOne is awaitAll for one topic, of which it does not say how it stands.
func (h *hub) awaitOne(t *topic, wait func(<-chan struct{}) bool) (waited bool) {
	woken := make(blocked)
	h.await(t, woken)
	defer func() { // also if wait panics
		if !waited {
			h.forsake(t, woken)
		}
	}()
	return wait(woken)
}

// wakeLocked wakes those who wait for t.
func (h *hub) wakeLocked(b *busSide, t *topic) {
	w := b.waiting[t]
	if w == nil {
		return
	}
	for _, who := range slices.SortedFunc(maps.Keys(w.all), func(a, b waiter) int { return w.all[a] - w.all[b] }) {
		who.wake()
	}
	if delete(b.waiting, t); len(b.waiting) == 0 {
		b.waiting = nil
	}
}

// Ready implements [Sink].
func (h *hub) Ready(name string, at Position, err error) {
	if err != nil {
		h.srv.log.Error("the bus has no subscription of a topic", "topic", name, "error", err)
		h.refuse(name)
		return
	}
	h.ready(name, at.Seq, &at.Epoch)
}

// ready is Ready without an error. A nil epoch is one of this process's
// numbering.
func (h *hub) ready(name string, seq uint64, epoch *string) {
	i := h.topics.number(name)
	st := &h.topics.stripes[i]
	st.mu.Lock()
	defer st.mu.Unlock()
	h.busSides[i].found(name)
	switch t := h.findLocked(st, name); {
	case t == nil: // it was unsubscribed meanwhile
	case t.epoch == unready:
		if epoch == nil && t.born>>2 == 0 { // born has no room for its number
			own := h.epochName(h.epochs.Add(1))
			epoch = &own
		}
		t.seq, t.epoch = seq, epoch
		h.wakeLocked(&h.busSides[i], t)
	case epoch != nil:
		h.missedLocked(t, Position{seq, *epoch})
	}
}

// refuse is Ready with an error.
func (h *hub) refuse(name string) {
	i := h.topics.number(name)
	st, b := &h.topics.stripes[i], &h.busSides[i]
	st.mu.Lock()
	defer st.mu.Unlock()
	if l := h.lingeringOf(name).find(name); l != nil {
		h.forgetLocked(h.lingeringOf(name), l)
		return
	}
	at := st.find(name)
	switch {
	case at == nil:
	case (*at).epoch == unready:
		h.refuseLocked(st, b, *at)
	default:
		if b.lost == nil {
			b.lost = map[string]time.Duration{}
		}
		b.lost[name] = 0
	}
}

// refuseLocked forgets t, which is not ready. Nobody joins it any more; the next
// who wants it asks the bus again.
func (h *hub) refuseLocked(st *stripe[*topic], b *busSide, t *topic) {
	t.epoch = refused
	st.remove(t.flow.Name)
	b.later(busCall{t.flow.Name, false})
	h.wakeLocked(b, t)
}

// Deliver implements [Sink].
func (h *hub) Deliver(p Publication, at Position) {
	st := h.topics.stripe(p.Topic)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := h.findLocked(st, p.Topic)
	if t == nil || !t.ready() || at.Seq == 0 {
		return
	}
	h.missedLocked(t, Position{at.Seq - 1, at.Epoch})
	if at.Seq <= t.seq {
		return // it was delivered, or told as lost
	}
	t.seq = at.Seq
	h.deliverLocked(t, &p)
}

// Gap implements [Sink].
func (h *hub) Gap(name string, at Position) {
	st := h.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	if t := h.findLocked(st, name); t != nil && t.ready() {
		h.missedLocked(t, at)
	}
}

// missedLocked tells the subscribers of t, if what they were given ends before
// at, that the rest is lost.
func (h *hub) missedLocked(t *topic, at Position) {
	from, renumbered := t.seq+1, t.epoch == nil || *t.epoch != at.Epoch
	if renumbered {
		from = 1
		epoch := at.Epoch
		t.epoch = &epoch
	} else if at.Seq <= t.seq { // not at.Seq < from: that wraps behind the last number there is
		return
	}
	t.seq = at.Seq
	if tl := h.tailLocked(t); tl != nil {
		tl.clear()
	}
	if t.subs == nil {
		return // it lingers
	}
	h.sendLocked(t, &engine.Parcel{Flow: &t.flow, Seq: at.Seq, Epoch: at.Epoch, Lost: &engine.Lost{From: from, New: renumbered}})
}

// comes reports whether a message that was published at that position will be
// delivered to subscribers here, as far as can be known.
func (h *hub) comes(name string, at Position) bool {
	st := h.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := h.findLocked(st, name)
	if t == nil || !t.ready() || t.subs == nil {
		return false
	}
	return t.epoch == nil || *t.epoch != at.Epoch || t.seq < at.Seq
}

// subscribers returns how many subscribers a topic has.
func (h *hub) subscribers(name string) int {
	st := h.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := h.findLocked(st, name)
	if t == nil {
		return 0
	}
	n, _ := t.subscribers()
	return n
}

// tick ends the numbering of topics that have lingered for long enough, and the
// wait for topics of which the bus does not say where they stand. It asks again
// for those that the bus has lost.
func (h *hub) tick(now time.Duration) {
	for i := range h.topics.stripes {
		if silent := h.tickStripe(i, now); silent > 0 {
			h.srv.log.Error("the bus does not answer", "topics", silent, "for", h.srv.cfg.AuthTimeout)
		}
		h.callBus(i)
	}
}

// tickStripe is tick for one stripe. It returns of how many topics the bus has
// said nothing for too long. It goes by their names: what happens has one order.
func (h *hub) tickStripe(i int, now time.Duration) (silent int) {
	st, b := &h.topics.stripes[i], &h.busSides[i]
	st.mu.Lock()
	defer st.mu.Unlock()
	h.forgetLingeringLocked(&h.lingering[i], now)
	for _, t := range slices.SortedFunc(maps.Keys(b.waiting), byName) {
		if now-b.waiting[t].since >= h.srv.cfg.AuthTimeout {
			h.refuseLocked(st, b, t)
			silent++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.lost)) {
		t, again := h.findLocked(st, name), b.lost[name]
		switch {
		case t == nil || !t.ready():
			b.found(name)
			continue
		case now < again:
			continue
		case again > 0:
			silent++
		}
		b.later(busCall{name, false})
		b.later(busCall{name, true})
		b.lost[name] = now + h.srv.cfg.AuthTimeout
	}
	return silent
}

// found no longer has the bus asked again for a topic.
func (b *busSide) found(name string) {
	if delete(b.lost, name); len(b.lost) == 0 {
		b.lost = nil
	}
}

func byName(a, b *topic) int { return strings.Compare(a.flow.Name, b.flow.Name) }
