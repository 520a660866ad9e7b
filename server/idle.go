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
	pauseAfter = 2 * time.Second
)

// stampAt turns a time of the kernel's clock into one of the server's clock,
// which stands still during pauses.
func (srv *Server) stampAt(now time.Duration) stamp {
	return stamp((now - time.Duration(srv.paused.Load())) / stampUnit)
}

// runTicker wakes shards until stop is closed.
func (srv *Server) runTicker(stop <-chan struct{}) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	const ticksPerSweep = int(sweepEvery / tickEvery)
	last := srv.kernel.Now()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		now := srv.kernel.Now()
		if gap := now - last; gap > pauseAfter {
			srv.paused.Add(int64(gap - tickEvery))
			srv.cfg.Logger.Warn("the process did not run for a while; timeouts are extended by it", "pause", gap)
		}
		last = now
		for i, s := range srv.shards {
			if i%ticksPerSweep == n%ticksPerSweep {
				s.tick.Store(true)
				s.wake()
			} else if s.hurry.Load() {
				s.wake()
			}
		}
		srv.once.forget(now)
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
			case w.now.since(e.out.q[0].queued) >= cfg.DrainRate:
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
		c.flags |= flagPinged
		// The pong is due PongTimeout after this ping, however late it is.
		c.stamp = w.now - stamp(cfg.PingInterval/stampUnit)
		w.ping(c)
	case silent >= cfg.PingInterval+cfg.PongTimeout:
		w.shut(c, wire.CloseNoPong, "no pong")
	}
}

// ping sends an empty ping. Behind data that waits it would say nothing that
// the outbox's own timeouts do not.
func (w *worker) ping(c *conn) {
	if c.ext != nil && !c.ext.out.empty() {
		return
	}
	var frame [2]byte
	w.shard.count.pings.Add(1)
	w.send(c, wire.AppendHeader(frame[:0], ws.OpPing, true, 0))
}
