package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// drainPlan is how a shard spreads the end of its connections. Owned by the
// shard's turn.
type drainPlan struct {
	active bool
	begun  bool          // something was closed
	until  time.Duration // kernel.Now by which all are closed
	next   time.Duration // when the next part is due
	at     int           // the next local index
}

// Shutdown drains the server: it stops accepting, sends every connection a
// goodbye and a Close, spread over Config.Drain, flushes what waits, and ends
// every goroutine it started. The goodbye's retry_after_ms is half a second and
// a part of Config.ReturnWindow; the parts differ, so that the clients come back
// spread over it. When ctx ends first the rest is closed at once and ctx's error
// returned. Any goroutine may call it; later calls wait for the first.
func (srv *Server) Shutdown(ctx context.Context) error {
	srv.shutdown.Do(func() {
		srv.shutdownErr = srv.drainAll(ctx)
		close(srv.ended)
	})
	<-srv.ended
	return srv.shutdownErr
}

func (srv *Server) drainAll(ctx context.Context) (err error) {
	srv.beginDrain()
	if !srv.waitFor(ctx, func() bool { return srv.conns.Load() == 0 && srv.hooksWaiting.Load() == 0 }) {
		err = fmt.Errorf("drain: %d connections were closed at once: %w", srv.conns.Load(), ctx.Err())
		srv.hurryDrain.Store(true)
		for _, s := range srv.shards {
			s.inbox.append(item{kind: itemDrain})
			s.wake()
		}
		srv.waitFor(context.Background(), func() bool { return srv.conns.Load() == 0 })
	}
	srv.stop(ctx)
	return err
}

// beginDrain stops accepting and tells every shard to drain.
func (srv *Server) beginDrain() {
	srv.mu.Lock()
	srv.draining.Store(true)
	listeners := srv.listeners
	srv.listeners = nil
	srv.mu.Unlock()
	for _, l := range listeners {
		l.close()
	}
	srv.cfg.Logger.Info("draining", "connections", srv.opened.Load(), "over", srv.cfg.Drain, "return-window", srv.cfg.ReturnWindow)
	srv.drainUntil = srv.kernel.Now() + srv.cfg.Drain
	srv.retryWindow = max(srv.cfg.ReturnWindow.Milliseconds(), 1)
	for _, s := range srv.shards {
		s.inbox.append(item{kind: itemDrain})
		s.wake()
	}
}

// waitFor waits until ended, or ctx ends, and reports which.
func (srv *Server) waitFor(ctx context.Context, ended func() bool) bool {
	for !ended() {
		select {
		case <-srv.empty:
		case <-ctx.Done():
			return ended()
		}
	}
	return true
}

// stop ends what the server runs on, from the outside in.
func (srv *Server) stop(ctx context.Context) {
	close(srv.tickerStop)
	<-srv.tickerEnded
	if err := srv.hooks.Release(ctx); err != nil {
		srv.cfg.Logger.Warn("hooks still run", "error", err)
	}
	srv.closed.Store(true)
	if err := srv.hub.bus.Close(); err != nil {
		srv.cfg.Logger.Warn("close bus", "error", err)
	}
	if err := srv.poller.Close(); err != nil {
		srv.cfg.Logger.Warn("close poller", "error", err)
	}
	if err := srv.turns.Release(context.Background()); err != nil {
		srv.cfg.Logger.Warn("release workers", "error", err)
	}
	for _, s := range srv.shards {
		s.set.Close()
	}
}

// startDrain begins the drain of a shard. When Shutdown's context has ended it
// is called again, and closes everything at once.
func (w *worker) startDrain() {
	s := w.shard
	s.drain.active, s.drain.until = true, w.srv.drainUntil
	s.hasten()
	atOnce := w.srv.hurryDrain.Load()
	for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
		c := s.at(i)
		switch {
		case c.state == stateHead, c.state == stateAuth && atOnce:
			w.refuse(c, shuttingDown())
		case c.state == stateOpen && atOnce:
			w.goodbye(c)
		}
		if atOnce && c.state != stateFree {
			w.detach(c)
		}
	}
}

// drainSome closes this tick's part of the shard's connections. If a tenth of
// the time that is left is one tick, it closes a tenth of those that are left.
func (w *worker) drainSome() {
	s := w.shard
	if w.exact < s.drain.next {
		return
	}
	left := s.drain.until - w.exact
	if !s.drain.begun && len(s.walks) > s.paced && left > w.srv.cfg.Drain*9/10 {
		return // what was published before goes out first
	}
	s.drain.begun = true
	s.drain.next = w.exact + tickEvery*9/10
	n := s.open.len()
	if left > tickEvery {
		// The fraction is rounded by chance, so that shards do not step together.
		share := float64(n) * float64(tickEvery) / float64(left)
		n = int(share + rand.Float64())
	}
	for ; n > 0; n-- {
		i := s.open.next(s.drain.at)
		if i < 0 {
			if i = s.open.next(0); i < 0 {
				return
			}
		}
		s.drain.at = i + 1
		w.goodbye(s.at(i))
	}
}

// goodbye tells c when to come back and closes it, behind what waits for it.
func (w *worker) goodbye(c *conn) {
	if c.format == formatV1 {
		after := w.srv.retryNext.Add(1) * retryStride % w.srv.retryWindow
		w.scratch = wire.AppendGoodbye(w.scratch[:0], wire.Goodbye{
			Code: wire.CloseShutdown, Reason: wire.CloseShutdown.String(), RetryAfterMS: int(leastReturn.Milliseconds() + after),
		})
		r := c.ref()
		w.reply(ws.OpText, w.scratch)
		w.flushReplies(c)
		if c.ref() != r {
			return
		}
	}
	w.shut(c, wire.CloseShutdown, wire.CloseShutdown.String())
}

// leastReturn is what a client is away at least, so that it does not meet the
// server that it left.
const leastReturn = 500 * time.Millisecond

// retryStride is a prime larger than any window. So its multiples, modulo the
// window, give every millisecond once before they give one twice.
const retryStride = 2_147_483_647
