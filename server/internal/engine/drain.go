package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// drain is what a shutdown needs.
type drain struct {
	on     atomic.Bool
	atOnce atomic.Bool
	cut    chan struct{} // closed with atOnce
	empty  chan struct{} // gets a token when the last connection or waiting call goes

	// Set before shards are told.
	until       time.Duration // kernel.Now by which all are closed
	retryWindow int64         // ms over which clients are told to come back
	retryNext   atomic.Int64
}

// drainPlan is how a shard spreads the end of its connections. Owned by the
// shard's turn.
type drainPlan struct {
	active bool
	begun  bool          // something was closed
	next   time.Duration // when the next part is due
	at     int           // the next local index
}

// Shutdown drains the engine: it stops accepting, sends every connection a
// goodbye and a Close, spread over Config.Drain, flushes what waits, and ends
// all that runs. The goodbyes tell clients to come back after half a second and
// a part of Config.ReturnWindow; the parts differ, so that they come spread over
// it. When ctx ends first the rest is closed at once and ctx's error returned.
// It is called once.
func (e *Engine) Shutdown(ctx context.Context) (err error) {
	e.beginDrain()
	if !e.waitFor(ctx, func() bool { return e.conns.Load() == 0 && e.counts.waitingCalls.Load() == 0 }) {
		err = fmt.Errorf("drain: %d connections were closed at once: %w", e.conns.Load(), ctx.Err())
		e.drain.atOnce.Store(true)
		close(e.drain.cut)
		e.tellShards()
		e.waitFor(context.Background(), func() bool { return e.conns.Load() == 0 })
	}
	e.stop(ctx)
	return err
}

// beginDrain stops accepting and tells every shard to drain.
func (e *Engine) beginDrain() {
	e.mu.Lock()
	e.drain.on.Store(true)
	listeners := e.listeners
	e.listeners = nil
	e.mu.Unlock()
	for _, l := range listeners {
		l.close()
		<-l.ended // it may be accepting
	}
	e.cfg.Logger.Info("draining", "connections", e.counts.opened.Load(), "over", e.cfg.Drain, "return-window", e.cfg.ReturnWindow)
	e.drain.until = e.kernel.Now() + e.cfg.Drain
	e.drain.retryWindow = max(e.cfg.ReturnWindow.Milliseconds(), 1)
	e.tellShards()
}

func (e *Engine) tellShards() {
	for _, s := range e.shards {
		s.leave(item{kind: itemShard, task: drainTask{}})
	}
}

// signal has Shutdown look again whether everything has ended.
func (d *drain) signal() {
	select {
	case d.empty <- struct{}{}:
	default:
	}
}

// waitFor waits until ended, or ctx ends, and reports which.
func (e *Engine) waitFor(ctx context.Context, ended func() bool) bool {
	for !ended() {
		select {
		case <-e.drain.empty:
		case <-ctx.Done():
			return ended()
		}
	}
	return true
}

// stop ends what the engine runs on.
func (e *Engine) stop(ctx context.Context) {
	e.ticker.end()
	if err := e.runner.ReleaseCalls(ctx); err != nil {
		e.cfg.Logger.Warn("hooks still run", "error", err)
	}
	e.closed.Store(true)
	if err := e.runner.Close(); err != nil && !errors.Is(err, context.Canceled) {
		e.cfg.Logger.Warn("close poller and release workers", "error", err)
	}
	e.closeSets()
}

// drainTask begins the drain of a shard. When Shutdown's context has ended it is
// done again, and closes everything at once.
type drainTask struct{}

// Do implements Task.
func (drainTask) Do(t *Turn, _ *Conn) {
	s := t.shard
	s.drain.active = true
	s.wakeEveryTick()
	atOnce := t.e.drain.atOnce.Load()
	for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
		c := s.at(i)
		switch {
		case c.state == stateHead, c.state == stateAuth && atOnce:
			t.refuse(c, shuttingDown())
		case c.state == stateOpen && atOnce:
			t.goodbye(c)
		}
		if atOnce {
			t.die(c)
		}
		t.reap()
	}
}

// drainSome closes this tick's part of the shard's connections. If a tenth of
// the time that is left is one tick, it closes a tenth of those that are left.
func (t *Turn) drainSome() {
	s := t.shard
	if t.exact < s.drain.next {
		return
	}
	left := t.e.drain.until - t.exact
	if !s.drain.begun && len(s.walks) > s.paced && left > t.cfg.Drain*9/10 {
		return // what was published before goes out first
	}
	s.drain.begun = true
	s.drain.next = t.exact + tickEvery*9/10
	n := s.open.len()
	if left > tickEvery {
		// The fraction is rounded by chance, so that shards do not step together.
		share := float64(n) * float64(tickEvery) / float64(left)
		n = int(share + float64(t.e.random()>>11)/(1<<53))
	}
	for ; n > 0; n-- {
		i := s.open.next(s.drain.at)
		if i < 0 {
			if i = s.open.next(0); i < 0 {
				return
			}
		}
		s.drain.at = i + 1
		t.goodbye(s.at(i))
		t.reap()
	}
}

// goodbye tells c when to come back and closes it, behind what waits for it.
func (t *Turn) goodbye(c *Conn) {
	if t.tellsGaps(c) {
		d := &t.e.drain
		after := d.retryNext.Add(1) * retryStride % d.retryWindow
		t.Send(c, t.cfg.Codecs[c.codec].AppendGoodbye(nil, wire.Goodbye{
			Code: wire.CloseShutdown, Reason: wire.CloseShutdown.String(), RetryAfterMS: int(leastReturn.Milliseconds() + after),
		}))
	}
	t.shut(c, End{Code: wire.CloseShutdown, By: ByServer, Reason: wire.CloseShutdown.String()})
}

// leastReturn is what a client is away at least, so that it does not meet the
// server that it left.
const leastReturn = 500 * time.Millisecond

// retryStride is a prime larger than any window. So its multiples, modulo the
// window, give every millisecond once before they give one twice.
const retryStride = 2_147_483_647
