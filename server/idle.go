package server

import (
	"math"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// There is one ticker for the whole server. Each shard is swept twice a second,
// also when it has more to do than it can: in its own turn it looks at every
// slot that is in use, and ends what has taken too long. Nothing else keeps
// time.
const (
	tickEvery  = 100 * time.Millisecond
	sweepEvery = 500 * time.Millisecond
	maxTimeout = 24 * time.Hour

	// A gap between two ticks of more than this is a stall of ours: the process
	// was stopped, or its machine suspended or overloaded. The server's clock
	// goes on by this much and no more, so that nobody is cut for what could not
	// be received meanwhile.
	stallAfter = 2 * sweepEvery
	// Nor is what a peer sent meanwhile, and which now comes at once, held
	// against it: for as long as the stall, and at most for this long, control
	// frames are not counted.
	maxAmnesty = 10 * time.Second
	pauseAfter = 3 * time.Second // a stall that is worth a line in the log
)

// tickTime is one moment on both clocks: the kernel's, and the server's, which
// does not count stalls.
type tickTime struct{ kernel, server time.Duration }

// stampAt turns a time of the kernel's clock into one of the server's clock.
func (srv *Server) stampAt(now time.Duration) stamp {
	t := srv.lastTick.Load()
	// A turn may come before the ticker has seen a stall. It may also have read
	// now before the stall, and come here behind the ticker.
	return stamp((t.server + min(max(now-t.kernel, 0), stallAfter)) / stampUnit)
}

// passTick sets the clocks and returns how long the last tick is ago.
func (srv *Server) passTick(now time.Duration) (gap time.Duration) {
	last := srv.lastTick.Load()
	gap = now - last.kernel
	srv.lastTick.Store(&tickTime{now, last.server + min(gap, stallAfter)})
	return gap
}

// runTicker wakes shards until stop is closed: all that have connections at
// every sweep, and those in a hurry at every tick.
func (srv *Server) runTicker(stop <-chan struct{}) {
	next := srv.kernel.Now() + sweepEvery
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
		gap := srv.passTick(now)
		sweep := now >= next
		if sweep {
			next = now + sweepEvery
			srv.once.forget(now)
			srv.hub.forget(now)
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
		if gap > pauseAfter {
			srv.cfg.Logger.Warn("the process did not run for a while; timeouts are extended by it", "pause", gap.String())
		}
		t.Reset(wait)
	}
}

// hasten asks the ticker to wake the shard every tickEvery instead of every
// sweepEvery. It holds until a sweep finds no waiting hook, no paced walk and no
// drain.
func (s *shard) hasten() {
	if s.hurry.Swap(true) {
		return
	}
	select {
	case s.srv.hurried <- struct{}{}:
	default:
	}
}

// sweep looks at every slot of the shard that is in use.
func (w *worker) sweep() {
	s := w.shard
	leak := w.leak()
	quiet := w.srv.cfg.PingInterval
	if quiet < 0 {
		quiet = math.MaxInt64
	}
	for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
		c := s.at(i)
		c.control -= uint8(min(int(c.control), leak))
		if c.state == stateOpen && c.ext == nil && w.now.since(c.stamp) < quiet {
			continue // as most are: nothing is unfinished, no ping is due
		}
		if w.overdue(c) == onTime || w.overdueStill(c) == onTime {
			w.pingIfSilent(c)
		}
	}
	w.dropStaleHooks()
	s.hurry.Store(len(s.waiting) > 0 || s.paced > 0 || s.drain.active)
}

// leak returns how many control frames the time since the last sweep takes off
// each connection's count.
func (w *worker) leak() int {
	s := w.shard
	w.noticeStall() // before swept is set: this turn may have been the one that was stopped
	// In units of frames × time.Second, so that no fraction is lost.
	s.leaked += int64(w.exact-s.swept) * int64(w.srv.cfg.MaxControl)
	s.swept = w.exact
	leak := s.leaked / int64(time.Second)
	s.leaked %= int64(time.Second)
	return int(leak)
}

// lateness is which deadline a connection has missed.
type lateness uint8

const (
	onTime lateness = iota
	lateHead
	lateAuth
	lateMessage
	lateWrite // nothing was written for too long
	lateRead  // something waits for too long
	latePong
	lateClose
)

// overdue returns the deadline that c has missed.
func (w *worker) overdue(c *conn) lateness {
	cfg := &w.srv.cfg
	silent := w.now.since(c.stamp)
	switch c.state {
	case stateHead:
		return missed(lateHead, silent >= cfg.HandshakeTimeout)
	case stateAuth:
		return missed(lateAuth, silent >= cfg.AuthTimeout)
	case stateClosing:
		return missed(lateClose, silent >= cfg.CloseTimeout)
	case stateFree:
		return onTime
	}
	if e := c.ext; e != nil {
		switch {
		case len(e.out.q) > 0 && w.now.since(e.out.moved) >= cfg.WriteTimeout:
			return lateWrite
		case len(e.out.q) > 0 && w.now.since(e.out.q[0].queued) >= cfg.OutboxAge:
			return lateRead
		case !e.in.empty() && w.now.since(e.in.since) >= cfg.MessageTimeout:
			return lateMessage
		}
	}
	return missed(latePong, c.flags&flagPinged != 0 && c.flags&flagHook == 0 && silent >= cfg.PingInterval+cfg.PongTimeout)
}

func missed(d lateness, late bool) lateness {
	if late {
		return d
	}
	return onTime
}

// overdueStill reads what c's socket has and writes what it takes, because a
// busy shard may not have come to it, and then ends c if it still misses a
// deadline. It returns the deadline that is missed then.
func (w *worker) overdueStill(c *conn) lateness {
	r := c.ref()
	if c.ext != nil && !c.ext.out.empty() {
		w.flush(c)
	}
	if c.ref() == r {
		w.serve(c, false)
	}
	if c.ref() != r {
		return lateClose // it has ended by itself
	}
	late := w.overdue(c)
	switch late {
	case lateHead:
		w.expireHandshake(c, &refusal{408, rejectTimeout, "the request head took too long"})
	case lateAuth:
		w.expireHandshake(c, &refusal{503, rejectTimeout, "authentication took too long"})
	case lateMessage:
		w.shut(c, wire.ClosePolicy, "a message took too long")
	case lateWrite:
		w.cut(c, cutStalled)
	case lateRead:
		w.cut(c, cutTrickle)
	case latePong:
		w.shut(c, wire.CloseNoPong, "no pong")
	case lateClose:
		w.detach(c)
	}
	return late
}

// expireHandshake sends a refusal in one write and closes the socket at once,
// without waiting for a peer that was too slow already.
func (w *worker) expireHandshake(c *conn, no *refusal) {
	w.srv.stats.reject(no.reject)
	w.logRefusal(c, no)
	w.srv.handshaking.Add(-1)
	var buf [512]byte
	w.srv.kernel.Send(int(c.fd), appendRefusal(buf[:0], no.status, no.text))
	w.detach(c)
}

// pingIfSilent pings an open connection of which nothing was heard for
// PingInterval. While a hook runs nothing is read, so a pong could not be seen.
// Behind an outbox a ping would wait; the outbox has timeouts of its own.
func (w *worker) pingIfSilent(c *conn) {
	cfg := &w.srv.cfg
	switch {
	case c.state != stateOpen || cfg.PingInterval < 0 || c.flags&(flagHook|flagPinged) != 0:
	case w.now.since(c.stamp) < cfg.PingInterval:
	case c.ext != nil && !c.ext.out.empty():
	default:
		c.flags |= flagPinged
		// The pong is due PongTimeout after this ping, however late it is.
		c.stamp = w.now - stamp(cfg.PingInterval/stampUnit)
		w.ping(c)
	}
}

// emptyPing is the same for everybody.
var emptyPing = wire.AppendHeader(nil, ws.OpPing, true, 0)

// ping sends an empty ping.
func (w *worker) ping(c *conn) {
	w.shard.count.pings.Add(1)
	w.send(c, emptyPing)
}
