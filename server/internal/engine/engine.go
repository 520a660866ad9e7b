// Package engine keeps connections: it takes them from listeners, reads their
// frames, writes what is sent to them, pings them, and ends them when they are
// late. It knows no topic, no user and no command; those are its [App]'s, which
// is package server.
//
// A connection is a slot of 24 bytes (type [Conn]) in pages indexed by
// descriptor, without net.Conn, goroutine, timer, lock or buffer. Connections
// are dealt to shards by descriptor number. A shard has an epoll set and an
// inbox and is served in turns: at most one goroutine has the turn of a shard
// ([Turn]), and it alone touches the shard's connections.
//
// Follow a message in: serve (read.go), parse, App.Message. Follow one out:
// [Engine.Send] (inbox.go), walk (fanout.go), deliver, transmit. The end of a
// connection is in close.go.
package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/internal/seldom"
	"github.com/tocsin-push/tocsin/wire"
)

// Engine keeps connections. Any goroutine may call its methods.
type Engine struct {
	// Static after construction.
	cfg      Config
	app      App
	kernel   Kernel
	runner   Runner
	capacity int // connections at once
	shards   []*shard
	log      *seldom.Log
	pings    [maxCodecs][]byte // frames, of each codec
	inline   *Turn             // owned by the poller's goroutine

	// What any goroutine counts or sets.
	conns    atomic.Int64 // descriptors of connections
	formats  [maxCodecs]atomic.Int64
	counts   counts
	lastTick atomic.Pointer[tickTime]
	closed   atomic.Bool

	ticker ticker
	drain  drain

	mu        lockorder.Mutex[lockorder.Outer] // guards listeners
	listeners []*listener
}

// New makes an engine that does not run yet: nothing of it is open, and nothing
// runs. Errors say which limit of the process is too low.
func New(cfg Config, app App) (*Engine, error) {
	e := &Engine{cfg: cfg, app: app, kernel: cfg.Kernel}
	if e.kernel == nil {
		e.kernel = system{start: time.Now()}
	}
	e.log = seldom.New(cfg.Logger, e.kernel.Now)
	e.lastTick.Store(&tickTime{kernel: e.kernel.Now()})
	e.counts.init()
	for i, codec := range cfg.Codecs {
		op, payload := codec.Ping()
		e.pings[i] = wire.AppendFrame(nil, op, payload)
	}
	e.drain.empty, e.drain.cut = make(chan struct{}, 1), make(chan struct{})
	var err error
	if e.capacity, err = e.kernel.Capacity(cfg.MaxConnections, cfg.Shards); err != nil {
		return nil, err
	}
	for i := range cfg.Shards {
		e.shards = append(e.shards, &shard{e: e, index: i})
	}
	e.inline = newTurn(e)
	return e, nil
}

// Start makes what runs, and returns at once. After an error everything that
// was made is ended. [Engine.Shutdown] ends it otherwise.
func (e *Engine) Start() (err error) {
	defer func() {
		if err != nil {
			e.closeSets()
		}
	}()
	for _, s := range e.shards {
		if s.set, err = e.kernel.Open(); err != nil {
			return err
		}
	}
	turns := make([]*Turn, e.cfg.Workers)
	for i := range turns {
		turns[i] = newTurn(e)
	}
	e.runner, err = e.kernel.Runner(Work{
		Shards: e.cfg.Shards, Workers: e.cfg.Workers, CallWorkers: e.cfg.CallWorkers,
		Turn:         func(worker, shard int) { turns[worker].take(e.shards[shard], turnBudget) },
		TurnPanicked: e.turnPanicked,
		Call:         e.runCall,
		CallPanicked: e.callPanicked,
		Failed:       e.pollerFailed,
	})
	if err != nil {
		return err
	}
	for _, s := range e.shards {
		if err := e.runner.Watch(s.set.FD(), s.onReady); err != nil {
			return errors.Join(err, e.runner.ReleaseCalls(context.Background()), e.runner.Close())
		}
	}
	e.ticker.start(e)
	return nil
}

// callPanicked is for a panic outside of user code, which protect has caught.
func (e *Engine) callPanicked(_ *Call, value any, stack []byte) {
	e.cfg.Logger.Error("the hook pool panicked; this is a bug in tocsin", "panic", fmt.Sprint(value), "stack", string(stack))
}

// Capacity returns how many connections the engine takes at once.
func (e *Engine) Capacity() int { return e.capacity }

// Now returns the kernel's monotonic clock.
func (e *Engine) Now() time.Duration { return e.kernel.Now() }

// Date returns the time of the day.
func (e *Engine) Date() time.Time { return e.kernel.Date() }

// After has the kernel's clock call f in a goroutine of its own once d has
// passed, unless stop is called before; stop reports whether it was.
func (e *Engine) After(d time.Duration, f func()) (stop func() bool) { return e.kernel.After(d, f) }

// Hash returns a hash of strings whose results cannot be guessed.
func (e *Engine) Hash() func(string) uint64 { return e.kernel.Hash() }

// Woken is called by whoever has waited for the engine; see [Kernel].
func (e *Engine) Woken(ctx context.Context) { e.kernel.Woken(ctx) }

// Rand fills b with bytes that cannot be guessed.
func (e *Engine) Rand(b []byte) { e.kernel.Rand(b) }

// Connections returns how many connections are open.
func (e *Engine) Connections() int { return int(e.counts.opened.Load()) }

// Draining reports whether [Engine.Shutdown] was called.
func (e *Engine) Draining() bool { return e.drain.on.Load() }

// Ended reports whether nothing is delivered any more: the shutdown has begun
// and no connection is left.
func (e *Engine) Ended() bool {
	return e.drain.on.Load() && e.conns.Load() == 0 || e.closed.Load()
}
