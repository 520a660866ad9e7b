package engine

import (
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// drainPlan is how a shard spreads the end of its connections. Owned by the
// shard's turn.
type drainPlan struct {
	active bool
	begun  bool          // something was closed
	next   time.Duration // when the next part is due
	at     int           // the next local index
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
