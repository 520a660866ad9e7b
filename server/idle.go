package server

import (
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// There is one ticker for the whole server. Each shard is swept once a second:
// in its own turn it looks at every slot that is in use, and ends what has
// taken too long. Nothing else keeps time.
const (
	tickEvery  = 100 * time.Millisecond
	sweepEvery = time.Second
	maxTimeout = 24 * time.Hour

	// A process that did not run for longer than this (stopped, or its machine
	// suspended) was paused, and the pause counts as no time at all: nobody is
	// cut for what could not be received meanwhile.
	pauseAfter = 3 * time.Second
)

// stampAt turns a time of the kernel's clock into one of the server's clock,
// which stands still during pauses.
func (srv *Server) stampAt(now time.Duration) stamp {
	// A turn may come before the ticker has seen a pause.
	now = min(now, time.Duration(srv.ticked.Load())+pauseAfter)
	return stamp((now - time.Duration(srv.paused.Load())) / stampUnit)
}

// runTicker wakes shards until stop is closed: all that have connections once a
// second, and those in a hurry at every tick.
func (srv *Server) runTicker(stop <-chan struct{}) {
	last := srv.kernel.Now()
	next := last + sweepEvery
	t := time.NewTimer(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		case <-srv.hurried:
		}
		now := srv.kernel.Now()
		if gap := now - last; gap > pauseAfter {
			srv.paused.Add(int64(gap - sweepEvery))
			srv.cfg.Logger.Warn("the process did not run for a while; timeouts are extended by it", "pause", gap)
		}
		last = now
		srv.ticked.Store(int64(now))
		sweep := now >= next
		if sweep {
			next = now + sweepEvery
			srv.once.forget(now)
		}
		wait := next - now
		for _, s := range srv.shards {
			hurry := s.hurry.Load()
			if hurry {
				wait = min(wait, tickEvery)
			}
			if sweep && (hurry || s.conns.Load() > 0) {
				s.tick.Store(true)
				s.wake()
			} else if hurry {
				s.wake()
			}
		}
		t.Reset(wait)
	}
}

// hasten asks for a wake-up of the shard at every tick, until a sweep finds
// that there is no reason any more.
func (s *shard) hasten() {
	if s.hurry.Swap(true) {
		return
	}
	select {
	case s.srv.hurried <- struct{}{}:
	default:
	}
}

// sweep looks at every slot of the shard that is in use. What can still be
// read was read before it (see round), so a peer is not judged by an answer
// that has arrived.
func (w *worker) sweep() {
	s := w.shard
	for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
		c := s.at(i)
		c.control -= uint8(min(int(c.control), w.srv.cfg.MaxControl))
		switch c.state {
		case stateHead:
			if w.now.since(c.stamp) >= w.srv.cfg.HandshakeTimeout {
				w.expireHandshake(c, 408, rejectTimeout, "the request head took too long")
			}
		case stateAuth:
			if w.now.since(c.stamp) >= w.srv.cfg.AuthTimeout {
				w.expireHandshake(c, 503, rejectTimeout, "authentication took too long")
			}
		case stateClosing:
			if w.now.since(c.stamp) >= w.srv.cfg.CloseTimeout {
				w.detach(c)
			}
		case stateOpen:
			w.sweepOpen(c)
		}
	}
	s.hurry.Store(len(s.waiting) > 0 || s.paced > 0 || s.drain.active)
}

// expireHandshake answers in one write and closes at once: a peer that was
// slow so far is not waited for again.
func (w *worker) expireHandshake(c *conn, status int, why rejectReason, text string) {
	w.srv.stats.reject(why)
	w.srv.handshaking.Add(-1)
	var buf [512]byte
	w.srv.kernel.Send(int(c.fd), appendRefusal(buf[:0], status, text))
	w.detach(c)
}

func (w *worker) sweepOpen(c *conn) {
	cfg := &w.srv.cfg
	if e := c.ext; e != nil {
		if len(e.out.q) > 0 {
			switch {
			case w.now.since(e.out.moved) >= cfg.WriteTimeout:
				w.cut(c, cutStalled)
				return
			case w.now.since(e.out.q[0].queued) >= cfg.OutboxAge:
				w.cut(c, cutTrickle)
				return
			}
		}
		if !e.in.empty() && w.now.since(e.in.since) >= cfg.MessageTimeout {
			w.shut(c, wire.ClosePolicy, "a message took too long, see message_timeout")
			return
		}
	}
	if cfg.PingInterval < 0 || c.flags&flagHook != 0 {
		return
	}
	silent := w.now.since(c.stamp)
	switch {
	case silent < cfg.PingInterval:
	case c.flags&flagPinged == 0:
		if c.ext != nil && !c.ext.out.empty() {
			return // it would queue; the outbox has timeouts of its own
		}
		c.flags |= flagPinged
		// The pong is due PongTimeout after this ping, however late it is.
		c.stamp = w.now - stamp(cfg.PingInterval/stampUnit)
		w.ping(c)
	case silent >= cfg.PingInterval+cfg.PongTimeout:
		r := c.ref()
		w.serve(c, false) // its pong may have arrived without an event yet
		if c.ref() == r && c.flags&flagPinged != 0 {
			w.shut(c, wire.CloseNoPong, "no pong")
		}
	}
}

// emptyPing is the same for everybody.
var emptyPing = wire.AppendHeader(nil, ws.OpPing, true, 0)

// ping sends an empty ping.
func (w *worker) ping(c *conn) {
	w.shard.count.pings.Add(1)
	w.send(c, emptyPing)
}
