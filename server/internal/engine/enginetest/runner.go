package enginetest

import (
	"context"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// set is an epoll set.
type set struct {
	k     *Kernel
	index int
}

// scheduler is what Step needs.
type scheduler struct {
	watches  map[int]*watch // by descriptor; those of sets are the first
	order    []int          // the descriptors, in which they were watched
	timers   []*timer       // by their time
	started  int            // timers so far
	polling  bool           // a watch is being called: there is one poller
	accepted int            // accepts that it has made
	busy     []int          // shards whose turn is under way, one for each worker
	running  int            // calls that have begun and have not returned
	idle     chan struct{}  // closed when none is; nil if nobody waits
	scratch  []choice

	mu        sync.Mutex
	parked    []*parked // goroutines that have waited and may go on, by caller
	abandoned bool      // they all do
}

// parked is a goroutine that waits until Step has it go on.
type parked struct {
	caller int
	gone   chan struct{}
}

// Caller is the key of a context's value that names the goroutine of a user,
// with a number that no other has.
type Caller struct{}

// Woken implements engine.Kernel.
func (k *Kernel) Woken(ctx context.Context) {
	if k.Virtual {
		caller, _ := ctx.Value(Caller{}).(int)
		k.Park(caller)
	}
}

// Park has a goroutine wait until Step has it go on. So at any time one alone
// is running, and which one is a matter of the seed.
func (k *Kernel) Park(caller int) {
	p := &parked{caller, make(chan struct{})}
	s := &k.sched
	s.mu.Lock()
	if s.abandoned {
		s.mu.Unlock()
		return
	}
	at, _ := slices.BinarySearchFunc(s.parked, caller, func(p *parked, caller int) int { return p.caller - caller })
	s.parked = slices.Insert(s.parked, at, p)
	s.mu.Unlock()
	<-p.gone
}

// goOn has a parked goroutine go on until it waits for something or ends.
func (k *Kernel) goOn(i int) {
	s := &k.sched
	s.mu.Lock()
	p := s.parked[i]
	s.parked = slices.Delete(s.parked, i, i+1)
	s.mu.Unlock()
	k.Note(uint64(p.caller), nil)
	close(p.gone)
	synctest.Wait()
}

// settle waits until nobody runs beside the caller.
func (k *Kernel) settle() {
	if k.Go != nil {
		synctest.Wait()
	}
}

type watch struct {
	ready func()
	armed bool
}

type timer struct {
	due    time.Duration
	number int
	f      func()
}

// Open implements engine.Kernel.
func (k *Kernel) Open() (engine.Set, error) {
	s := &set{k: k, index: len(k.sets)}
	k.sets = append(k.sets, s)
	return s, nil
}

// FD implements engine.Set.
func (s *set) FD() int { return s.index }

// Add implements engine.Set.
func (s *set) Add(fd int, key uint64) netpoll.Errno {
	p := s.k.peer(fd)
	if p == nil {
		return netpoll.Errno(9)
	}
	p.Ref = engine.Ref(key)
	if s.k.Virtual { // what came before is told at once: epoll_ctl(2)
		p.Raise(netpoll.Event{Readable: len(p.In) > 0 || p.EOF || p.Broken, Writable: true, HangUp: p.EOF || p.Broken})
	}
	return 0
}

// Close implements engine.Set.
func (s *set) Close() error { return nil }

// Wait implements engine.Set. It reports the edges of a set in any order, now
// and then one for a connection that has ended.
func (s *set) Wait(events []netpoll.Event) (int, netpoll.Errno) {
	k := s.k
	k.interrupted()
	if len(k.WaitErr) > 0 {
		errno := k.WaitErr[0]
		k.WaitErr = k.WaitErr[1:]
		if errno != 0 {
			return 0, errno
		}
	}
	if k.Happens(k.Chance.Signal, "a wait that a signal interrupts") {
		return 0, netpoll.EINTR
	}
	n := k.tell(s.index, events)
	k.saw('e', s.index, n, 0, nil)
	return n, 0
}

// tell fills events with the edges of a set.
func (k *Kernel) tell(set int, events []netpoll.Event) (n int) {
	for _, e := range k.stale {
		if n < len(events) && engine.Ref(e.Key).Shard(len(k.sets)) == set {
			events[n] = e
			n++
		}
	}
	k.stale = slices.DeleteFunc(k.stale, func(e netpoll.Event) bool { return engine.Ref(e.Key).Shard(len(k.sets)) == set })
	k.Rng.Shuffle(len(k.ready), func(i, j int) { k.ready[i], k.ready[j] = k.ready[j], k.ready[i] })
	later := k.ready[:0]
	for _, p := range k.ready {
		switch {
		case p.Gone || p.Edge == netpoll.Event{}:
			p.queued = false
			continue
		case p.Ref == 0 || p.Ref.Shard(len(k.sets)) != set || n == len(events), k.Happens(k.Chance.Late, "an edge that is told late"):
			later = append(later, p)
			continue
		}
		events[n] = p.Edge
		events[n].Key = uint64(p.Ref)
		n++
		if k.Happens(k.Chance.Double, "an edge that is told twice") {
			later = append(later, p)
			continue
		}
		p.Edge, p.queued = netpoll.Event{}, false
	}
	clear(k.ready[len(later):])
	k.ready = later
	return n
}

// Stale has the next wait report an edge of a connection that has ended.
func (k *Kernel) Stale(e netpoll.Event) { k.stale = append(k.stale, e) }

// After implements engine.Kernel.
func (k *Kernel) After(d time.Duration, f func()) func() bool {
	switch {
	case k.Virtual:
		return k.sched.after(k.Time+d, f)
	case k.Timer != nil:
		return k.Timer(d, f)
	}
	return func() bool { return false }
}

func (s *scheduler) after(due time.Duration, f func()) (stop func() bool) {
	s.started++
	t := &timer{due: due, number: s.started, f: f}
	at, _ := slices.BinarySearchFunc(s.timers, t, func(a, b *timer) int {
		if a.due != b.due {
			return int(max(min(a.due-b.due, 1), -1))
		}
		return a.number - b.number
	})
	s.timers = slices.Insert(s.timers, at, t)
	return func() bool {
		i := slices.Index(s.timers, t)
		if i < 0 {
			return false
		}
		s.timers = slices.Delete(s.timers, i, i+1)
		return true
	}
}

// NextTimer returns when the next timer is due; ok is false if there is none.
func (k *Kernel) NextTimer() (due time.Duration, ok bool) {
	if len(k.sched.timers) == 0 {
		return 0, false
	}
	return k.sched.timers[0].due, true
}

// RunTimer runs the first timer that is due.
func (k *Kernel) RunTimer() bool {
	s := &k.sched
	if len(s.timers) == 0 || s.timers[0].due > k.Time {
		return false
	}
	t := s.timers[0]
	s.timers = slices.Delete(s.timers, 0, 1)
	k.Note('t', nil)
	if k.Timed == nil {
		t.f()
		return true
	}
	k.Timed()
	t.f()
	k.Timed()
	return true
}

// Runner implements engine.Kernel.
func (k *Kernel) Runner(w engine.Work) (engine.Runner, error) {
	k.Work = w
	k.sched.watches = map[int]*watch{}
	return runner{k}, nil
}

// runner implements engine.Runner.
type runner struct{ k *Kernel }

func (r runner) Watch(fd int, ready func()) error {
	r.k.sched.watches[fd] = &watch{ready: ready, armed: true}
	r.k.sched.order = append(r.k.sched.order, fd)
	return nil
}

func (r runner) Rearm(fd int) error {
	if fd < len(r.k.sets) { // that of a listener is done with its lock held
		r.k.interrupted()
	}
	if w := r.k.sched.watches[fd]; w != nil {
		w.armed = true
	}
	return nil
}

func (r runner) Unwatch(fd int) error {
	s := &r.k.sched
	delete(s.watches, fd)
	s.order = slices.DeleteFunc(s.order, func(other int) bool { return other == fd })
	return nil
}

func (r runner) Turn(shard int) {
	if r.k.Virtual && slices.Contains(r.k.pending, shard) {
		r.k.T.Fatalf("shard %d wants two turns at once", shard)
	}
	r.k.pending = append(r.k.pending, shard)
}

// Idle is false where the test says what runs, so that a turn is never inside of
// another's.
func (r runner) Idle() bool {
	k := r.k
	return k.Virtual && k.sched.polling && len(k.pending) == 0 && len(k.sched.busy) == 0 && k.Chance.Inline > 0 && k.Rng.IntN(k.Chance.Inline) == 0
}

func (r runner) Calls() int   { return len(r.k.calls) }
func (r runner) Close() error { return nil }

func (r runner) ReleaseCalls(ctx context.Context) error {
	k := r.k
	if !k.Virtual {
		return nil
	}
	for (len(k.calls) > 0 || k.sched.running > 0) && !k.sched.abandoned {
		idle := make(chan struct{})
		k.sched.idle = idle
		select {
		case <-idle:
		case <-ctx.Done():
		}
		k.Woken(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (r runner) Call(c *engine.Call) bool {
	if r.k.CallRoom >= 0 && len(r.k.calls) >= r.k.CallRoom {
		return false
	}
	r.k.calls = append(r.k.calls, c)
	return true
}

// Turn has a shard served until it has nothing left: its set is reported, and
// it has every turn that it wants.
func (k *Kernel) Turn(shard int) {
	k.report(shard)
	for i := 0; ; i++ {
		at := slices.Index(k.pending, shard)
		if at < 0 {
			return
		}
		if i == 10_000 {
			k.T.Fatal("turns without end")
			return
		}
		k.pending = slices.Delete(k.pending, at, at+1)
		k.turn(shard)
	}
}

// report calls a watch that is armed.
func (k *Kernel) report(fd int) {
	if w := k.sched.watches[fd]; w != nil && w.armed {
		w.armed = false
		k.sched.polling, k.sched.accepted = true, 0
		w.ready()
		k.sched.polling = false
	}
}

func (k *Kernel) turn(shard int) {
	s := &k.sched
	worker := len(s.busy)
	s.busy = append(s.busy, shard)
	defer func() {
		s.busy = s.busy[:worker]
		if k.WantPanics == 0 {
			return
		}
		if v := recover(); v != nil {
			k.WantPanics--
			k.Work.TurnPanicked(shard, v, debug.Stack())
		}
	}()
	k.Work.Turn(worker, shard)
}

// RunCalls runs the calls that wait.
func (k *Kernel) RunCalls() {
	for len(k.calls) > 0 {
		k.runCall(0)
	}
}

// RunCall runs one of the calls that wait, whichever: several workers take them.
func (k *Kernel) RunCall() {
	if len(k.calls) > 0 {
		k.runCall(k.Rng.IntN(len(k.calls)))
	}
}

func (k *Kernel) runCall(i int) {
	c := k.calls[i]
	k.calls = slices.Delete(k.calls, i, i+1)
	k.sched.running++
	run := func() {
		k.Work.Call(c)
		if k.sched.running--; k.sched.running == 0 && len(k.calls) == 0 && k.sched.idle != nil {
			close(k.sched.idle)
			k.sched.idle = nil
		}
	}
	if k.Go != nil {
		k.Go(run)
	} else {
		run()
	}
}

// HasCalls reports whether calls wait.
func (k *Kernel) HasCalls() bool { return len(k.calls) > 0 }

// Wanting reports whether a shard wants a turn.
func (k *Kernel) Wanting() bool { return len(k.pending) > 0 }

// TakeCalls returns the calls that wait, which then do not any more.
func (k *Kernel) TakeCalls() []*engine.Call {
	calls := k.calls
	k.calls = nil
	return calls
}

// choice is something that could run.
type choice struct {
	kind byte // 'w'atch, 't'urn, 'c'all, 'd'ue timer, 'p'arked goroutine
	n    int
}

// Step runs one of all that could run now, by chance: the poller tells of a set
// or a listener, a shard has a turn, a call runs, a timer is due, a goroutine of
// a user goes on. It reports false if there is nothing.
func (k *Kernel) Step() bool {
	k.settle()
	c, ok := pick(k.Rng, k.choices(false))
	if !ok {
		return false
	}
	k.run(c)
	return true
}

func pick(rng *rand.Rand, all []choice) (choice, bool) {
	if len(all) == 0 {
		return choice{}, false
	}
	return all[rng.IntN(len(all))], true
}

func (k *Kernel) run(c choice) {
	k.Note(uint64(c.kind), nil)
	switch c.kind {
	case 'w':
		k.report(c.n)
	case 't':
		at := slices.Index(k.pending, c.n)
		k.pending = slices.Delete(k.pending, at, at+1)
		k.turn(c.n)
	case 'c':
		k.RunCall()
	case 'd':
		k.RunTimer()
	case 'p':
		k.goOn(c.n)
	}
}

// choices is what could run; inside is for the middle of a turn.
func (k *Kernel) choices(inside bool) []choice {
	s := &k.sched
	all := s.scratch[:0]
	if !s.polling && !k.Deaf {
		for _, fd := range s.order {
			if w := s.watches[fd]; w.armed && (k.hasNews(fd) || k.Happens(k.Chance.Spurious, "a set that is reported for nothing")) {
				all = append(all, choice{'w', fd})
			}
		}
	}
	if len(s.busy) < k.Work.Workers {
		for _, shard := range k.pending {
			all = append(all, choice{'t', shard})
		}
	}
	if len(k.calls) > 0 {
		all = append(all, choice{'c', 0})
	}
	if len(s.timers) > 0 && s.timers[0].due <= k.Time {
		all = append(all, choice{'d', 0})
	}
	if !inside {
		s.mu.Lock()
		for i := range s.parked {
			all = append(all, choice{'p', i})
		}
		s.mu.Unlock()
	}
	s.scratch = all
	return all
}

// hasNews reports whether a descriptor that is watched is ready.
func (k *Kernel) hasNews(fd int) bool {
	if fd < len(k.sets) {
		return k.readyOf(fd)
	}
	l := k.fds[fd].listen
	return l != nil && len(l.queue) > 0
}

// interrupted may have others go on in the middle of a system call, as they do
// beside a turn that another worker has. Where the poller's goroutine is at work
// it may hold the lock of a listener, which others would then find held by them.
func (k *Kernel) interrupted() {
	if !k.Virtual || k.Chance.Interrupt == 0 || len(k.sched.busy) == 0 || k.sched.polling || k.Rng.IntN(k.Chance.Interrupt) != 0 {
		return
	}
	all := k.choices(true)
	if n := k.Rng.IntN(len(all) + 1); n < len(all) {
		k.run(all[n])
	} else if k.Interrupt != nil {
		k.Interrupt()
	}
}

// Abandon has every goroutine go on that waits for Step, now and from now on.
func (k *Kernel) Abandon() {
	s := &k.sched
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abandoned = true
	for _, p := range s.parked {
		close(p.gone)
	}
	s.parked = nil
	k.calls, k.sched.running = nil, 0
	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}
