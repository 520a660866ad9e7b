package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/server/internal/engine/enginetest"
)

// feature is one thing that the server can do, as the simulation knows it: what
// may happen, and what must hold. A new one is a file with one of these, and a
// line in features.
type feature struct {
	events []happening
	often  func() // judges while things happen
	relax  func() // does what it was asked to, at once
	still  func() // judges when nothing can be done at this moment, and everybody has read
	ease   func() // lets go all that it keeps from going on, when nothing more is to happen
	calm   func() // judges when nothing is left to do and everybody has read
	end    func() // judges when everybody has gone
	ended  func() // judges when the server has been shut down
}

// happening is something that may happen in a step.
type happening struct {
	name   string
	weight int
	do     func() bool // false: it could not happen
}

// features make those of a world, before its server is made. They set their part
// of its Config.
var features = []func(*world) feature{
	simKernel,
	simTime,
	simClients,
	simPublish,
	simShutdown,
	simBuses,
	simHooks,
	simGuests,
	simTargets,
}

// world is one run of the simulation.
type world struct {
	*enginetest.Kernel
	seed  uint64
	cfg   Config
	srv   *Server
	probe *engine.Probe

	listener *enginetest.Listener
	people   *clientele
	clients  []*simClient // all that were
	guests   int          // of them a request is being served, and they have no descriptor
	ledger   simLedger
	bus      *simBus // nil for the local one
	features []feature
	wish     int // of all happenings' weights
	work     int // of a hundred steps so many are the server's

	step     int
	steps    int // to stop at; 0 is for the end
	skip     map[int]bool
	happened map[string]int
	frames   int // that clients were sent

	hooks  *hooks        // nil without
	hung   []*simHang    // who waits until somebody lets it go
	buried chan struct{} // closed when the world has failed
	newest time.Time     // the latest that the clock of the day was

	callers  []*caller // who have not returned, in the order in which they called
	called   int
	phase    string
	failure  error
	fatal    []error
	deafened bool // the poller had no time once
	narrow   bool // sockets take less than they could
	stopping bool // the server is being shut down
	hasty    bool // who shut it down has lost the patience, and hooks may still run
}

// simStop is the panic that ends a world that has failed.
type simStop struct{}

const simLength = 1500 // steps of a seed

func newWorld(seed uint64) *world {
	w := &world{seed: seed, happened: map[string]int{}, phase: "in its life", buried: make(chan struct{})}
	w.Kernel = enginetest.New(w, seed)
	w.Virtual = true
	w.Go = func(f func()) {
		time.Sleep(time.Nanosecond) // no two contexts end at the same moment
		go f()
		synctest.Wait()
	}
	w.ledger = simLedger{w: w, topics: map[string]*simTopic{}}
	w.cfg = Config{
		Logger: silent, kernel: w.Kernel, onFatal: func(err error) { w.fatal = append(w.fatal, err) },
		Shards: 1 + w.Rng.IntN(4), Workers: 1 + w.Rng.IntN(2), HookWorkers: 4, MaxConnections: 10_000,
	}
	for _, f := range features {
		w.features = append(w.features, f(w))
	}
	for i := range w.features {
		for j := range w.features[i].events {
			e := &w.features[i].events[j]
			e.weight *= []int{0, 1, 1, 1, 2, 5}[w.Rng.IntN(6)] // not everything happens in every world
			w.wish += e.weight
		}
	}
	w.work = 30 + w.Rng.IntN(60)
	return w
}

// live runs the world to its end, or to what must not happen.
func (w *world) live() {
	defer w.bury()
	w.begin()
	limit := simLength
	if w.steps > 0 {
		limit = min(limit, w.steps)
	}
	pcg := rand.NewPCG(0, 0)
	w.Rng = rand.New(pcg)
	for w.step = 0; w.step < limit; w.step++ {
		if w.skip[w.step] {
			continue
		}
		pcg.Seed(w.seed, uint64(w.step)+1) // a step that is left out changes no other
		w.one()
		w.look(w.step%8 == 0)
	}
	pcg.Seed(w.seed, 0)
	w.settle("once nobody does anything more")
	for _, f := range w.features {
		if f.calm != nil {
			f.calm()
		}
	}
	w.leave()
}

// begin makes the server, which listens.
func (w *world) begin() {
	var err error
	if w.srv, err = New(w.cfg); err != nil {
		w.fail("%v", err)
	}
	w.probe = w.srv.engine.Probe()
	w.listener = w.Listen()
	w.call("serve", func(context.Context) func() {
		err := w.srv.Serve(w.listener)
		return func() {
			if !w.stopping || !errors.Is(err, ErrClosed) {
				w.fail("Serve returned %v", err)
			}
		}
	})
}

// one is one step: the server does a part of its work, or something happens.
func (w *world) one() {
	if w.Rng.IntN(100) < w.work {
		if w.Step() {
			return
		}
	}
	n := w.Rng.IntN(max(w.wish, 1))
	for i := range w.features {
		for j := range w.features[i].events {
			e := &w.features[i].events[j]
			if n -= e.weight; n >= 0 {
				continue
			}
			if w.Show {
				fmt.Printf("%d: %s\n", w.step, e.name)
			}
			if e.do() {
				w.happened[e.name]++
				w.Note(uint64(j)<<8^uint64(i), nil)
			}
			return
		}
	}
}

// look has the clients read and, now and then, the judges judge.
func (w *world) look(judge bool) {
	w.returned()
	if now := w.Date(); now.After(w.newest) {
		w.newest = now
	}
	for _, c := range w.clients {
		c.read()
	}
	if len(w.fatal) > 0 {
		w.fail("the process would have ended: %v", w.fatal[0])
	}
	if w.failure != nil {
		panic(simStop{})
	}
	if !judge {
		return
	}
	if err := w.probe.Check(w.Alive(), w.guests); err != nil {
		w.fail("%v", err)
	}
	for _, f := range w.features {
		if f.often != nil {
			f.often()
		}
	}
}

// settle has nothing more happen and waits until the server has nothing to do.
func (w *world) settle(phase string) {
	w.phase = phase
	w.Chance, w.Look, w.MaxFDs, w.CallRoom = enginetest.Chance{}, 0, 0, -1
	for _, f := range w.features {
		if f.ease != nil {
			f.ease()
		}
	}
	d := 6 * time.Second
	if w.bus != nil { // so long is waited for what it has lost
		d += expectTimeout
	}
	w.passes(d)
	w.look(true)
}

// passes lets time pass in which everybody reads and nothing more happens.
func (w *world) passes(d time.Duration) {
	const part = 500 * time.Millisecond
	for ; d > 0; d -= part {
		w.relax()
		w.rest()
		for _, f := range w.features {
			if f.still != nil {
				f.still()
			}
		}
		w.pass(part)
	}
	w.rest()
}

// relax has everybody do what is asked of him.
func (w *world) relax() {
	for _, c := range w.clients {
		c.relax()
	}
	for _, f := range w.features {
		if f.relax != nil {
			f.relax()
		}
	}
}

// rest runs what can run at this time.
func (w *world) rest() {
	for i := 0; w.Step(); i++ {
		w.look(false)
		if i > 50_000 {
			w.fail("the server is never done")
		}
	}
	w.look(false)
	if err := w.probe.Unserved(); err != nil {
		w.fail("%v", err)
	}
}

// pass lets time pass, as short as possible from timer to timer.
func (w *world) pass(d time.Duration) {
	for end := w.Time + d; ; {
		due, ok := w.NextTimer()
		if !ok || due > end {
			w.jump(end - w.Time)
			w.rest()
			return
		}
		w.jump(due - w.Time)
		w.rest()
	}
}

// jump lets time pass in which nobody does anything.
func (w *world) jump(d time.Duration) {
	if d <= 0 {
		return
	}
	w.Time += d
	if len(w.callers) > 1 || len(w.hung) > 0 || w.bus != nil { // contexts have the bubble's clock
		time.Sleep(d)
	}
}

// leave has everybody go, and the server shut down.
func (w *world) leave() {
	w.phase = "once everybody has gone"
	if w.Rng.IntN(2) == 0 {
		for _, c := range w.clients {
			c.leave()
		}
		w.rest()
		w.pass(3 * time.Second)
	}
	for _, f := range w.features {
		if f.end != nil && !w.stopping {
			f.end()
		}
	}
	w.phase = "in its shutdown"
	w.shutdown()
	for range 400 {
		w.relax()
		if w.rest(); len(w.callers) == 0 {
			break
		}
		w.pass(100 * time.Millisecond)
	}
	for _, c := range w.callers {
		w.fail("%s has not returned", c.what)
	}
	w.ended()
}

// ended looks at what is left when the server has been shut down.
func (w *world) ended() {
	if n := w.Descriptors(); n != 0 {
		w.fail("%d descriptors are open", n)
	}
	st := w.srv.Stats()
	if len(w.callers) > 0 { // who subscribes somebody has the topic still
		st.Topics = 0
	}
	if st.Connections+st.Users+st.Topics+st.Subscriptions+st.ShardMax != 0 || st.Handshaking != w.guests || st.OutboxBytes != 0 {
		w.fail("left behind: %d connections, %d users, %d topics, %d subscriptions, %d slots, %d handshakes, %d bytes", st.Connections, st.Users, st.Topics, st.Subscriptions, st.ShardMax, st.Handshaking, st.OutboxBytes)
	}
	for _, f := range w.features {
		if f.ended != nil {
			f.ended()
		}
	}
}

// bury ends what still runs in a world, if it has failed.
func (w *world) bury() {
	switch v := recover().(type) {
	case nil:
		return
	case simStop:
	default:
		panic(v)
	}
	close(w.buried)
	w.Abandon()
	for _, c := range w.callers {
		c.cancel()
	}
	synctest.Wait() // who leaves is counted
	w.probe.Abandon()
	synctest.Wait()
	select {
	case <-w.srv.ended:
	default:
		close(w.srv.ended)
	}
	synctest.Wait()
}

// fail ends the world: something happened that must not.
func (w *world) fail(format string, args ...any) {
	w.Fatalf(format, args...)
	panic(simStop{})
}

// Helper implements enginetest.T.
func (w *world) Helper() {}

// Fatal implements enginetest.T.
func (w *world) Fatal(args ...any) { w.Fatalf("%s", fmt.Sprint(args...)) }

// Fatalf implements enginetest.T. It returns: any goroutine may call it.
func (w *world) Fatalf(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf(format, args...)
	}
}

// report says what failed, and how to see it again.
func (w *world) report() string {
	return fmt.Sprintf("seed %d, step %d, %s: %v\nreplay it with: go test -run 'TestSim$' ./server -seed=%d -show\n(trace %016x, %d events)",
		w.seed, w.step, w.phase, w.failure, w.seed, w.Trace, w.events())
}

// events counts what has happened: steps, system calls, and frames that clients
// were sent. What floods send is not counted: it would be most.
func (w *world) events() int { return w.step + w.Seen.Calls + w.frames }

// caller is a goroutine that calls the server, as a user's does.
type caller struct {
	what    string
	cancel  context.CancelFunc
	then    func() // judges what was returned; nil while it has not
	done    bool
	started int // step
}

// call has f call the server beside all else, until ctx ends or it returns. What
// f returns is called when it has, and judges.
func (w *world) call(what string, f func(ctx context.Context) (then func())) *caller {
	w.called++
	c := &caller{what: what, started: w.step}
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), enginetest.Caller{}, w.called))
	c.cancel = cancel
	w.callers = append(w.callers, c)
	go func() {
		c.then = f(ctx)
		c.done = true
	}()
	synctest.Wait()
	return c
}

// returned judges the calls that have returned.
func (w *world) returned() {
	if len(w.callers) == 0 {
		return
	}
	synctest.Wait()
	for i := 0; i < len(w.callers); i++ {
		c := w.callers[i]
		if !c.done {
			continue
		}
		w.callers = slices.Delete(w.callers, i, i+1)
		i--
		if c.then != nil {
			c.then() // it may ask whether ctx has ended
		}
		c.cancel()
	}
}

// some returns one of list by chance; the zero value if it is empty.
func some[T any](w *world, list []T) (one T) {
	if len(list) == 0 {
		return one
	}
	return list[w.Rng.IntN(len(list))]
}

// sorted returns the keys of a map in an order that is always the same.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// pad is so many bytes of payload.
func pad(n int) string { return padding[:n] }

var padding = strings.Repeat("x", 1<<17)
