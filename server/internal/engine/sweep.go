package engine

import (
	"math"
	"net/http"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// There is one ticker for the whole engine. Each shard is swept twice a second,
// also when it has more to do than it can: in its own turn it looks at every
// slot that is in use, and ends what has taken too long. Nothing else keeps
// time.
const (
	tickEvery  = 100 * time.Millisecond
	sweepEvery = 500 * time.Millisecond
	maxTimeout = 24 * time.Hour // the longest that a timeout may be: stamps wrap

	// A gap between two ticks of more than this is a stall of ours: the process
	// was stopped, or its machine suspended or overloaded. The engine's clock
	// goes on by this much and no more, so that nobody is cut for what could not
	// be received meanwhile.
	stallAfter = 2 * sweepEvery
	// Nor is what a peer sent meanwhile, and which now comes at once, held
	// against it: for as long as the stall, and at most for this long, control
	// frames are not counted.
	maxAmnesty = 10 * time.Second
	pauseAfter = 3 * time.Second // a stall that is worth a line in the log
)

// sweep looks at every slot of the shard that is in use.
func (t *Turn) sweep() {
	s := t.shard
	leak := t.leak()
	quiet := t.cfg.PingInterval
	if quiet < 0 {
		quiet = math.MaxInt64
	}
	for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
		c := s.at(i)
		c.control -= uint8(min(int(c.control), leak))
		if c.state == stateOpen && c.ext == nil && t.now.since(c.stamp) < quiet {
			continue // as most are: nothing is unfinished, no ping is due
		}
		if t.overdue(c) == onTime || t.overdueStill(c) == onTime {
			t.pingIfSilent(c)
		}
		t.reap()
	}
	t.app.Sweep(t)
	t.dropStaleCalls()
	s.everyTick.Store(len(s.waiting) > 0 || s.paced > 0 || s.drain.active)
}

// leak returns how many control frames the time since the last sweep takes off
// each connection's count.
func (t *Turn) leak() int {
	s := t.shard
	t.noticeStall() // before swept is set: this turn may have been the one that was stopped
	// In units of frames × time.Second, so that no fraction is lost.
	s.leaked += int64(t.exact-s.swept) * int64(t.cfg.MaxControl)
	s.swept = t.exact
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
func (t *Turn) overdue(c *Conn) lateness {
	cfg := &t.e.cfg
	silent := t.now.since(c.stamp)
	switch c.state {
	case stateHead:
		return missed(lateHead, silent >= cfg.HandshakeTimeout)
	case stateAuth:
		return missed(lateAuth, silent >= cfg.AuthTimeout)
	case stateClosing:
		return missed(lateClose, silent >= cfg.CloseTimeout)
	case stateFree, stateDead:
		return onTime
	}
	if e := c.ext; e != nil {
		switch {
		case len(e.out.q) > 0 && t.now.since(e.out.moved) >= cfg.WriteTimeout:
			return lateWrite
		case len(e.out.q) > 0 && t.now.since(e.out.q[0].queued) >= cfg.OutboxAge:
			return lateRead
		case !e.in.Empty() && t.now.since(e.began) >= cfg.MessageTimeout:
			return lateMessage
		}
	}
	return missed(latePong, c.flags&flagPinged != 0 && c.flags&flagCall == 0 && silent >= cfg.PingInterval+cfg.PongTimeout)
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
func (t *Turn) overdueStill(c *Conn) lateness {
	if c.ext != nil && !c.ext.out.empty() {
		t.flush(c)
	}
	t.serve(c, false)
	late := t.overdue(c)
	switch late {
	case lateHead:
		t.expire(c, &refusal{http.StatusRequestTimeout, RejectTimeout, "the request head took too long"})
	case lateAuth:
		t.expire(c, authLate())
	case lateMessage:
		t.shut(c, End{Code: wire.ClosePolicy, By: ByServer, Reason: "a message took too long"})
	case lateWrite:
		t.cut(c, CutStalled)
	case lateRead:
		t.cut(c, CutTrickle)
	case latePong:
		t.shut(c, End{Code: wire.CloseNoPong, By: ByServer, Reason: "no pong"})
	case lateClose:
		t.die(c)
	}
	return late
}

// pingIfSilent pings an open connection of which nothing was heard for
// PingInterval. While a call runs nothing is read, so a pong could not be seen.
// Behind an outbox a ping would wait; the outbox has timeouts of its own.
func (t *Turn) pingIfSilent(c *Conn) {
	cfg := &t.e.cfg
	switch {
	case c.state != stateOpen || cfg.PingInterval < 0 || c.flags&(flagCall|flagPinged) != 0:
	case t.now.since(c.stamp) < cfg.PingInterval:
	case c.ext != nil && !c.ext.out.empty():
	default:
		c.flags |= flagPinged
		// The pong is due PongTimeout after this ping, however late it is.
		c.stamp = t.now - stamp(cfg.PingInterval/stampUnit)
		t.ping(c)
	}
}

// ping sends what c's codec calls a ping.
func (t *Turn) ping(c *Conn) {
	t.shard.count.pings.Add(1)
	t.send(c, t.e.pings[c.codec])
}
