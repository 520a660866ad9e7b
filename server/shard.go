package server

import (
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
)

// shard is some thousands of connections that are served together. At most one
// goroutine at a time has its turn. That goroutine owns all fields whose
// comment does not say otherwise, and the shard's connections, which therefore
// need no lock.
type shard struct {
	srv   *Server      // static
	index int          // static
	set   *netpoll.Set // static

	inbox inbox        // any goroutine appends, the turn takes
	state atomic.Int32 // shardIdle, shardBusy, shardAgain
	ready atomic.Bool  // set by the poller: the set reported and is not armed
	tick  atomic.Bool  // set by the ticker: a sweep is due
	hurry atomic.Bool  // set by the turn: it wants a wake-up at every tick
	woken atomic.Int64 // kernel.Now of the wake-up that the turn answers

	pages         []*page
	slots         members     // slots in use
	open          members     // connections in stateOpen
	walks         []*walk     // fan-outs in progress, round robin
	everybody     *walk       // the broadcasts among them, without a rate
	paced         int         // walks with a rate
	again         []ref       // connections that have more to read than their share
	waiting       []*hookCall // hooks that the pool had no room for
	items         []item      // taken from the inbox
	done          int         // of items
	spareAccepted []int32     // the inbox's other half
	extras        []*extra    // free list
	idle          []*walk     // free list
	drain         drainPlan
	swept         time.Duration // kernel.Now of the last sweep
	leaked        int64         // see worker.leak
	amnesty       time.Duration // kernel.Now until which control frames are not counted

	conns atomic.Int64 // slots in use, as others read it
	count counters
}

// The states of a shard.
const (
	shardIdle  int32 = iota // no turn is queued or running
	shardBusy               // a turn is queued or running
	shardAgain              // as busy; and something came that the turn may not have seen
)

const (
	turnBudget  = 2 * time.Millisecond // then other shards go first
	sliceBudget = time.Millisecond     // of a fan-out, before reads go first
	// The poller's goroutine only ever leaves its processor for system calls.
	// The runtime's monitor takes the processor from one that has not been
	// rescheduled for 10 ms, and then watches closely, every 20 µs, for a
	// while; a goroutine that yields in time lets it sleep. At 10,000 messages
	// a second that is 9 % of the CPU.
	yieldAfter   = 4 * time.Millisecond
	inlineBudget = 250 * time.Microsecond // then a turn moves from the poller to the pool
)

func newShard(srv *Server, index int) (*shard, error) {
	set, err := netpoll.NewSet()
	if err != nil {
		return nil, err
	}
	return &shard{srv: srv, index: index, set: set}, nil
}

// at returns the slot at a local index, whose page must be there.
func (s *shard) at(local int) *conn {
	return &s.pages[local/pageSize][local%pageSize]
}

func (s *shard) local(c *conn) int { return localIndex(int(c.fd), len(s.srv.shards)) }

// lookup returns the connection that r names, or nil if it has ended.
func (s *shard) lookup(r ref) *conn {
	local := localIndex(r.fd(), len(s.srv.shards))
	if local/pageSize < len(s.pages) {
		if c := s.at(local); c.gen == r.gen() && c.state != stateFree {
			return c
		}
	}
	s.count.stale.Add(1)
	return nil
}

// wake makes sure that the shard gets a turn after this call. Any goroutine
// may call it.
func (s *shard) wake() {
	for {
		switch s.state.Load() {
		case shardIdle:
			if s.state.CompareAndSwap(shardIdle, shardBusy) {
				s.submit()
				return
			}
		case shardBusy:
			if s.state.CompareAndSwap(shardBusy, shardAgain) {
				return
			}
		default:
			return
		}
	}
}

func (s *shard) submit() {
	s.woken.Store(int64(s.srv.kernel.Now()))
	s.srv.turns.Submit(s) // there is room for every shard
}

// onReady is called by the poller when the set has something.
func (s *shard) onReady() {
	s.ready.Store(true)
	s.wakeHere(s.srv.inline)
}

// wakeHere is wake for the poller's goroutine, whose own worker is w. If the
// pool is idle it takes the turn itself, which saves handing it over. After
// inlineBudget the turn moves to the pool.
func (s *shard) wakeHere(w *worker) {
	if !s.srv.turns.Idle() || !s.state.CompareAndSwap(shardIdle, shardBusy) {
		s.wake()
		return
	}
	s.woken.Store(int64(s.srv.kernel.Now()))
	w.guardedTurn(s)
	if w.exact-w.yielded > yieldAfter {
		w.yielded = w.exact
		runtime.Gosched()
	}
}

// guardedTurn takes a turn and recovers a panic of it, as the pool does for the
// turns that it runs.
func (w *worker) guardedTurn(s *shard) {
	defer func() {
		if v := recover(); v != nil {
			w.srv.turnPanicked(s, v, debug.Stack())
		}
	}()
	w.turn(s, true)
}

// turn serves s until nothing is left or its time is up; then it gives the
// shard back, to the poller or to the end of the queue.
func (w *worker) turn(s *shard, inline bool) {
	budget := turnBudget
	if inline {
		budget = inlineBudget
	}
	w.shard = s
	w.out, w.half = w.out[:0], half{} // a turn that panicked may have left something
	w.clock()
	start := w.exact
	w.noticeStall()
	s.srv.stats.wait.observe(start - time.Duration(s.woken.Load()))
	defer func() {
		s.srv.stats.turn.observe(s.srv.kernel.Now() - start)
	}()
	for {
		more := w.round()
		w.clock()
		if more && w.exact-start > budget {
			s.submit()
			return
		}
		if more {
			continue
		}
		if s.ready.Swap(false) {
			if err := s.srv.poller.Rearm(s.set.FD()); err != nil && !s.srv.closed.Load() {
				s.srv.fatal("cannot watch a shard any more", err)
			}
		}
		if s.state.CompareAndSwap(shardBusy, shardIdle) {
			return
		}
		s.state.Store(shardBusy) // it was shardAgain
	}
}

// noticeStall begins an amnesty if the last sweep is too long ago, before
// anything is read that came meanwhile.
func (w *worker) noticeStall() {
	s := w.shard
	switch stall := w.exact - s.swept; {
	case s.slots.len() == 0:
		s.swept = w.exact // a shard without connections is not swept
	case stall > stallAfter:
		s.amnesty = max(s.amnesty, w.exact+min(stall, maxAmnesty))
	}
}

// round does a part of each kind of work that there is and reports whether
// some is left. Each part is bounded, so that a round is short however much
// there is to do, and a sweep that is due happens in it.
func (w *worker) round() (more bool) {
	s := w.shard
	w.takeInbox()
	if s.ready.Load() {
		more = w.serveEvents()
	}
	if len(s.again) > 0 {
		w.serveAgain()
	}
	if len(s.walks) > 0 {
		more = w.walkSome() || more
	}
	if len(s.waiting) > 0 {
		w.retryHooks()
	}
	if s.drain.active {
		w.drainSome()
	}
	if s.tick.Swap(false) {
		w.sweep()
	}
	return w.takeInbox() || more || len(s.again) > 0
}

// serveEvents serves one batch of ready connections.
func (w *worker) serveEvents() (more bool) {
	s := w.shard
	events := w.events[:]
	n, errno := s.srv.kernel.Wait(s.set, events)
	if errno == netpoll.EINTR {
		return true
	}
	if errno != 0 {
		s.srv.fatal("epoll_wait of a shard failed", errno)
		return false
	}
	for i := range events[:n] {
		e := &events[i]
		c := s.lookup(ref(e.Key))
		if c == nil {
			continue
		}
		if e.Writable && c.ext != nil && !c.ext.out.empty() {
			w.flush(c)
			if c.ref() != ref(e.Key) {
				continue
			}
		}
		switch {
		case e.HangUp && c.flags&flagDeaf != 0:
			w.detach(c)
		case e.Readable:
			w.serve(c, e.HangUp)
		}
	}
	return n == len(events)
}

// serveAgain serves those that had more to read than their budget, to the very
// end: the edge that told of an end of file may be used up.
func (w *worker) serveAgain() {
	slices.Sort(w.shard.again) // an event may have put one there twice
	again := slices.Compact(w.shard.again)
	w.shard.again = nil
	for _, r := range again {
		if c := w.shard.lookup(r); c != nil {
			w.serve(c, true)
		}
	}
	if w.shard.again == nil {
		w.shard.again = again[:0]
	}
}

// inboxSlice is how many items of an inbox a round does before it goes on.
const inboxSlice = 256

// takeInbox does a part of what other goroutines left for the shard and
// reports whether some of it is left.
func (w *worker) takeInbox() (more bool) {
	s := w.shard
	if s.done == len(s.items) {
		var accepted []int32
		s.items, accepted = s.inbox.take(s.items[:0], s.spareAccepted)
		s.done, s.spareAccepted = 0, nil
		for _, fd := range accepted { // first, so that a drain finds them
			w.attach(int(fd), nil)
		}
		if cap(accepted) <= keepInbox {
			s.spareAccepted = accepted[:0]
		}
	}
	for end := min(s.done+inboxSlice, len(s.items)); s.done < end; {
		it := &s.items[s.done]
		s.done++ // before: one that panics is not done twice
		w.do(it)
		*it = item{}
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

func (w *worker) do(it *item) {
	s := w.shard
	switch it.kind {
	case itemAdopt:
		w.attach(it.ref.fd(), it.x.([]byte))
		return
	case itemPublish:
		w.startWalk(&it.sub.walk, &it.sub.set, walkEntry{m: it.m, count: it.device})
		return
	case itemAll:
		w.startBroadcast(it.m)
		return
	case itemDrain:
		w.startDrain()
		return
	case itemDirect:
		w.direct(it)
		return
	case itemJoin:
		w.joined(it)
		return
	}
	c := s.lookup(it.ref)
	if c == nil {
		return
	}
	switch it.kind {
	case itemSend:
		if c.state == stateOpen {
			w.send(c, it.x.([]byte))
		}
	case itemClose:
		why := it.x.(closing)
		w.shut(c, why.code, why.reason)
	case itemHook:
		w.hookReturned(c, it.x.(*hookCall))
	}
}
