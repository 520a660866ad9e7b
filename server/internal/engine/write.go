package engine

import (
	"slices"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// flushReplies sends what was collected in t.out to c, the connection that is
// being served.
func (t *Turn) flushReplies(c *Conn) {
	if len(t.out) == 0 {
		return
	}
	b := t.out
	t.out = t.out[:0]
	if cap(b) > sendBufSize {
		t.out = make([]byte, 0, 4<<10)
	}
	t.send(c, b)
}

// Send sends c messages of its own at once, behind what waits for it. Empty ones
// are not sent. It is for tasks; while c is served there is [Turn.Reply].
func (t *Turn) Send(c *Conn, payloads ...[]byte) {
	var frames []byte
	for _, payload := range payloads {
		if len(payload) > 0 {
			frames = wire.AppendFrame(frames, t.cfg.Codecs[c.codec].Op(), payload)
		}
	}
	if len(frames) > 0 {
		t.send(c, frames)
	}
}

// send sends b, whole frames of c's own, behind what waits for it. What the
// socket does not take is copied to the outbox.
func (t *Turn) send(c *Conn, b []byte) {
	if c.state == stateDead {
		return
	}
	left := 0
	if c.ext == nil || c.ext.out.empty() {
		n, errno := t.transmit(c, b)
		if n == len(b) {
			return
		}
		if broken(errno) {
			t.lose(c)
			return
		}
		left = n
	}
	o := &t.extraOf(c).out
	if len(o.q) > 0 && o.bytes+len(b) > t.cfg.MaxOutbox && c.state == stateOpen {
		t.cut(c, CutOutbox)
		return
	}
	o.push(entry{b: append([]byte(nil), b...), queued: t.now}, left)
	t.budget(len(b) - left)
}

// flush sends what waits in c's outbox, as much as the socket takes.
func (t *Turn) flush(c *Conn) {
	o := &c.ext.out
	for !o.empty() {
		t.loseAll(c, DropTTL, func(p *Parcel) bool { return p.expired(t.exact) })
		t.counts.outboxBytes.Add(int64(o.usePong(t.now)))
		b := o.fill(t.sendBuf[:0])
		if len(b) == 0 {
			break
		}
		n, errno := t.transmit(c, b)
		if broken(errno) {
			t.lose(c)
			return
		}
		o.sent(n, t.now)
		t.counts.outboxBytes.Add(-int64(n))
		if n < len(b) {
			t.tellRoom(c)
			return
		}
	}
	if c.state == stateClosing {
		t.finish(c)
		return
	}
	t.tellRoom(c)
	t.slim(c)
}

// Fits reports whether c's outbox has room for n more bytes; an empty one has
// room for any number. If it has not, [App.Room] is called once it has.
func (t *Turn) Fits(c *Conn, n int) bool {
	if c.ext == nil || c.ext.out.fits(n, t.cfg.MaxOutbox) {
		return true
	}
	c.ext.wants = int32(n + 1)
	return false
}

// tellRoom tells the App of room that it waits for.
func (t *Turn) tellRoom(c *Conn) {
	if x := c.ext; x.wants > 0 && c.state == stateOpen && x.out.fits(int(x.wants)-1, t.cfg.MaxOutbox) {
		x.wants = 0
		t.app.Room(t, c)
	}
}

// budget counts n more bytes waiting, and sheds load when all outboxes
// together are over Config.OutboxBudget.
func (t *Turn) budget(n int) {
	if t.counts.outboxBytes.Add(int64(n)) > t.cfg.OutboxBudget {
		t.shed()
	}
}

// shed makes room when all outboxes together are over Config.OutboxBudget. It
// looks at the connections of this shard, the longest outboxes first. What the
// policies of parcels let go is dropped; if that is not enough connections are
// cut, and those that were cut before end at once. It stops at 1/64 under the
// budget, because each call looks at all of the shard's slots. The shard that
// goes over the budget is the one that sheds, so the sum exceeds it by at most
// one message a worker.
func (t *Turn) shed() {
	s := t.shard
	var waiting []*Conn
	for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
		if c := s.at(i); c.ext != nil && c.ext.out.bytes > 0 && c.state != stateDead {
			waiting = append(waiting, c)
		}
	}
	slices.SortFunc(waiting, func(a, b *Conn) int { return b.ext.out.bytes - a.ext.out.bytes })
	enough := t.cfg.OutboxBudget - t.cfg.OutboxBudget/64
	for _, c := range waiting {
		if t.counts.outboxBytes.Load() <= enough {
			return
		}
		if t.tellsGaps(c) { // else it could not be told
			t.loseAll(c, DropBudget, func(p *Parcel) bool { return p.Policy != Disconnect })
		}
	}
	for _, c := range waiting {
		switch {
		case t.counts.outboxBytes.Load() <= enough:
			return
		case c.state == stateOpen:
			t.cut(c, CutBudget)
		default: // cut before; or meanwhile: cut queues a Close frame, which sheds again
			t.die(c)
		}
	}
}

// dropQueued drops what waits for c, except an entry that has begun to leave.
func (t *Turn) dropQueued(c *Conn) {
	o := &c.ext.out
	o.pong = nil
	for len(o.q) > o.begun() {
		last := len(o.q) - 1
		if p := o.q[last].parcel; p != nil {
			t.unqueued(p, DropGone)
		}
		t.counts.outboxBytes.Add(-int64(o.drop(last)))
	}
}

// dropAll drops all that waits for a connection that ends.
func (t *Turn) dropAll(x *extra) {
	for _, e := range x.out.q {
		if e.parcel != nil {
			t.unqueued(e.parcel, DropGone)
		}
	}
	t.counts.outboxBytes.Add(-int64(x.out.bytes))
	clear(x.out.q)
	x.out = outbox{q: x.out.q[:0]}
}

// Reply adds a message to what is sent to c, the connection that the turn
// is serving, when the App's method returns. payload is copied.
// An empty one is not sent.
func (t *Turn) Reply(c *Conn, payload []byte) {
	if len(payload) > 0 {
		t.reply(t.cfg.Codecs[c.codec].Op(), payload)
	}
}

func (t *Turn) reply(op ws.OpCode, payload []byte) { t.out = wire.AppendFrame(t.out, op, payload) }

// drop counts n copies of p that will not be sent.
func (t *Turn) drop(p *Parcel, why Drop, n int) Status {
	p.countDropped(n)
	t.counts.drops.add(why, n)
	return Dropped
}

// unqueued counts one copy of p that was queued and will not be sent.
func (t *Turn) unqueued(p *Parcel, why Drop) {
	p.countUnqueued()
	t.counts.drops.add(why, 1)
}
