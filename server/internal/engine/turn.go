package engine

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// Turn is one goroutine's turn with one shard, and the buffers that it needs,
// which connections use one after the other. An [App] is given it and must not
// keep it. Each worker of the runner has one, and so has the poller's goroutine.
type Turn struct {
	// Static after construction.
	e      *Engine
	cfg    *Config
	kernel Kernel
	app    App
	counts *counts
	limits wire.Limits

	shard *shard        // whose turn it is
	exact time.Duration // kernel.Now, read once a round
	now   stamp         // the engine's clock, which does not count stalls

	steps   uint          // of walks; the clock is read now and then
	yielded time.Duration // when the poller's goroutine last gave way to others

	in         []byte // received
	out        []byte // replies of the connection being served
	sendBuf    []byte // outbox entries that leave together
	events     [128]netpoll.Event
	unfinished []*walk
	one        [1]walkEntry
}

const (
	readSize    = 64 << 10 // also what one connection may have of a turn
	sendBufSize = 64 << 10

	turnBudget   = 2 * time.Millisecond   // then other shards go first
	inlineBudget = 250 * time.Microsecond // then a turn moves from the poller's goroutine to the pool
	sliceBudget  = time.Millisecond       // of a fan-out, before reads go first
)

func newTurn(e *Engine) *Turn {
	return &Turn{
		e: e, cfg: &e.cfg, kernel: e.kernel, app: e.app, counts: &e.counts,
		limits:  wire.Limits{MaxMessage: e.cfg.MaxMessage, MaxFrames: e.cfg.MaxFrames},
		in:      make([]byte, readSize),
		out:     make([]byte, 0, 4<<10),
		sendBuf: make([]byte, 0, sendBufSize),
	}
}

// Now returns the kernel's clock as it was when the round began.
func (t *Turn) Now() time.Duration { return t.exact }

// Shard returns which shard's turn it is, from 0.
func (t *Turn) Shard() int { return t.shard.index }

// Index returns c's place among the connections of its shard. Places are used
// again, the lowest first.
func (t *Turn) Index(c *Conn) int { return t.shard.local(c) }

// take serves s until nothing is left or its time is up; then it gives the
// shard back, to the poller or to the end of the queue.
func (t *Turn) take(s *shard, budget time.Duration) {
	t.begin(s)
	start := t.exact
	t.counts.wait.Observe(start - time.Duration(s.woken.Load()))
	defer func() {
		t.counts.turn.Observe(t.kernel.Now() - start)
	}()
	for {
		more := t.round()
		t.clock()
		if more && t.exact-start > budget {
			s.submit()
			return
		}
		if more {
			continue
		}
		if s.ready.Swap(false) {
			if err := t.e.runner.Rearm(s.set.FD()); err != nil && !t.e.closed.Load() {
				t.e.fatal("cannot watch a shard any more", err)
			}
		}
		if s.state.CompareAndSwap(shardBusy, shardIdle) {
			return
		}
		s.state.Store(shardBusy) // it was shardUnseen
	}
}

func (t *Turn) begin(s *shard) {
	t.shard = s
	t.out = t.out[:0] // a turn that panicked may have left something
	t.clock()
	t.noticeStall()
}

// guarded is take with a recover, as the pool does it for the turns that it
// runs.
func (t *Turn) guarded(s *shard, budget time.Duration) {
	defer func() {
		if v := recover(); v != nil {
			t.e.turnPanicked(s.index, v, debug.Stack())
		}
	}()
	t.take(s, budget)
}

// round does a part of each kind of work that there is and reports whether
// some is left. Each part is bounded, so that a round is short however much
// there is to do, and a sweep that is due happens in it.
func (t *Turn) round() (more bool) {
	s := t.shard
	t.takeInbox()
	if s.ready.Load() {
		more = t.serveEvents()
	}
	if len(s.unread) > 0 {
		t.serveUnread()
	}
	if len(s.walks) > 0 {
		more = t.walkSome() || more
		t.reap()
	}
	if len(s.waiting) > 0 {
		t.retryCalls()
	}
	if s.drain.active {
		t.drainSome()
	}
	if s.tick.Swap(false) {
		t.sweep()
	}
	return t.takeInbox() || more || len(s.unread) > 0
}

// serveEvents serves one batch of ready connections.
func (t *Turn) serveEvents() (more bool) {
	events := t.events[:]
	n, errno := t.shard.set.Wait(events)
	if errno == netpoll.EINTR {
		return true
	}
	if errno != 0 {
		t.e.fatal("epoll_wait of a shard failed", errno)
		return false
	}
	for i := range events[:n] {
		e := &events[i]
		c := t.shard.lookup(Ref(e.Key))
		if c == nil {
			continue
		}
		if e.Writable && c.ext != nil && !c.ext.out.empty() {
			t.flush(c)
		}
		switch {
		case e.HangUp && c.flags&flagDeaf != 0:
			t.die(c)
		case e.Readable:
			t.serve(c, e.HangUp)
		}
		t.reap()
	}
	return n == len(events)
}

// serveUnread serves those that had more to read than their budget, to the very
// end: the edge that told of an end of file may be used up.
func (t *Turn) serveUnread() {
	s := t.shard
	slices.Sort(s.unread) // an event may have put one there twice
	unread := slices.Compact(s.unread)
	s.unread = nil
	for _, r := range unread {
		if c := s.lookup(r); c != nil {
			t.serve(c, true)
			t.reap()
		}
	}
	if s.unread == nil {
		s.unread = unread[:0]
	}
}

// inboxSlice is how many items of an inbox a round does before it goes on.
const inboxSlice = 256

// takeInbox does a part of what other goroutines left for the shard and
// reports whether some of it is left.
func (t *Turn) takeInbox() (more bool) {
	s := t.shard
	if s.done == len(s.items) {
		var accepted []int32
		s.items, accepted = s.inbox.swap(s.items[:0], s.spareAccepted)
		s.done, s.spareAccepted = 0, nil
		for _, fd := range accepted { // first, so that a drain finds them
			t.attach(int(fd))
			t.reap()
		}
		if cap(accepted) <= keepInbox {
			s.spareAccepted = accepted[:0]
		}
	}
	for end := min(s.done+inboxSlice, len(s.items)); s.done < end; {
		it := &s.items[s.done]
		s.done++ // before: one that panics is not done twice
		t.do(it)
		*it = item{}
		t.reap()
	}
	if s.done < len(s.items) {
		return true
	}
	if cap(s.items) > keepInbox {
		s.items = nil
	}
	s.items, s.done = s.items[:0], 0
	return false
}

// do does one item of the inbox.
func (t *Turn) do(it *item) {
	switch it.kind {
	case itemGroup:
		t.startWalk(it.group, walkEntry{p: it.parcel, count: it.n})
	case itemAll:
		t.startBroadcast(it.parcel)
	case itemOne:
		t.sendOne(it.parcel, it.n)
	case itemBehind:
		t.doBehind(it.group, behind{it.ref, it.task})
	case itemTask:
		if c := t.shard.lookup(it.ref); c != nil {
			it.task.Do(t, c)
		}
	case itemAsk:
		it.task.Do(t, t.shard.lookup(it.ref))
	case itemShard:
		it.task.Do(t, nil)
	}
}

// onReady is called by the poller when the set has something.
func (s *shard) onReady() {
	s.ready.Store(true)
	s.wakeHere(s.e.inline)
}

// The poller's goroutine only ever leaves its processor for system calls.
// The runtime's monitor takes the processor from one that has not been
// rescheduled for 10 ms, and then watches closely, every 20 µs, for a while; a
// goroutine that yields in time lets it sleep. At 10,000 messages a second that
// is 9 % of the CPU.
const yieldAfter = 4 * time.Millisecond

// wakeHere is wake for the poller's goroutine, whose own Turn is t. If the
// runner is idle it takes the turn itself, which saves handing it over. After
// inlineBudget the turn moves to the runner.
func (s *shard) wakeHere(t *Turn) {
	if !s.e.runner.Idle() || !s.state.CompareAndSwap(shardIdle, shardBusy) {
		s.wake()
		return
	}
	s.woken.Store(int64(s.e.kernel.Now()))
	t.guarded(s, inlineBudget)
	if t.exact-t.yielded > yieldAfter {
		t.yielded = t.exact
		runtime.Gosched()
	}
}

// turnPanicked gives a shard whose turn panicked back, so that its other
// connections go on; the one that was being served may be left half done, and
// the next sweep finds it.
func (e *Engine) turnPanicked(shard int, value any, stack []byte) {
	s := e.shards[shard]
	e.cfg.Logger.Error("a turn panicked; this is a bug in tocsin", "shard", s.index, "panic", fmt.Sprint(value), "stack", string(stack))
	s.ready.Store(true)
	s.state.Store(shardIdle)
	s.wake()
}
