package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
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
		e.waitFor(context.WithoutCancel(ctx), func() bool { return e.conns.Load() == 0 })
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

// waitFor waits until ended, or ctx ends, and reports which.
func (e *Engine) waitFor(ctx context.Context, ended func() bool) bool {
	for !ended() && ctx.Err() == nil {
		select {
		case <-e.drain.empty:
		case <-ctx.Done():
		}
		e.kernel.Woken(ctx)
	}
	return ended()
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
