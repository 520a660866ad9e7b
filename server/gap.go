package server

import (
	"slices"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// Whoever is not sent a message of a topic is told so: a gap notice stands in
// the outbox where the message would have stood. Neighbours with the same
// reason become one, so a reader that is too slow has few of them. Raw
// connections know no seq and get no notices; pushes and broadcasts have no
// seq, so their loss is told to the publisher alone.

// gapNote is a notice that waits: the range of a topic that a connection will
// not get, and why.
type gapNote struct {
	topic    *topic
	epoch    string
	from, to uint64
	reason   dropReason
	framed   []byte // its frame, if many connections get the same; else nil
}

// maxGaps is what the notices of an outbox may have beyond Config.MaxOutbox,
// in bytes. A reader that is so far behind is cut.
const maxGaps = 16 << 10

// frame returns the frame that tells g. Nobody changes its bytes.
func (g *gapNote) frame() []byte {
	if g.framed != nil {
		return g.framed
	}
	b := wire.AppendGap(nil, wire.Gap{Topic: g.topic.name, Epoch: g.epoch, From: g.from, To: g.to, Reason: dropNames[g.reason]})
	return wire.AppendFrame(nil, ws.OpText, b)
}

// gapOf is the notice that m is not sent.
func gapOf(m *message, why dropReason) gapNote {
	return gapNote{topic: m.topic, epoch: m.epoch, from: m.seq, to: m.seq, reason: why}
}

// note puts g in the queue before entry i, or makes the notice larger that
// stands before or behind it in its topic. It returns how many bytes more wait
// then.
func (o *outbox) note(i int, g gapNote, queued stamp) (grown int) {
	before := o.bytes
	if j := o.neighbour(i-1, -1, &g); j >= 0 {
		o.widen(j, g)
	} else if j := o.neighbour(i, +1, &g); j >= 0 {
		o.widen(j, g)
	} else {
		b := g.frame()
		o.q = slices.Insert(o.q, i, pendingOut{b: b, gap: &g, queued: queued})
		o.bytes += len(b)
	}
	return o.bytes - before
}

// neighbour looks from entry i in one direction for the next of g's topic, and
// returns it if it is a notice that g continues, otherwise -1. It does not
// look past a reply, whose place among the notices has a meaning.
func (o *outbox) neighbour(i, step int, g *gapNote) int {
	for ; i >= o.begun() && i < len(o.q); i += step {
		switch e := &o.q[i]; {
		case e.gap != nil && e.gap.topic == g.topic:
			if e.gap.reason == g.reason && e.gap.epoch == g.epoch && (e.gap.to+1 == g.from || g.to+1 == e.gap.from) {
				return i
			}
			return -1
		case e.m != nil && e.m.topic == g.topic:
			return -1
		case e.m == nil && e.gap == nil && !e.pong:
			return -1
		}
	}
	return -1
}

func (o *outbox) widen(i int, g gapNote) {
	e := &o.q[i]
	e.gap.from, e.gap.to, e.gap.framed = min(e.gap.from, g.from), max(e.gap.to, g.to), nil
	o.bytes -= len(e.b)
	e.b = e.gap.frame()
	o.bytes += len(e.b)
}

// lose drops entry i of c's outbox, a message, and leaves a notice in its
// place.
func (w *worker) lose(c *conn, i int, why dropReason) {
	o := &c.ext.out
	m, queued := o.q[i].m, o.q[i].queued
	w.unqueued(m, why)
	grown := -o.drop(i)
	if m.topic != nil && c.format != formatRaw {
		grown += o.note(i, gapOf(m, why), queued)
	}
	w.srv.outboxBytes.Add(int64(grown))
}

// loseAll drops the messages of c's outbox that are such, unless a part of one
// has left, and leaves notices in their place. It goes through the queue once,
// however many there are.
func (w *worker) loseAll(c *conn, why dropReason, such func(*message) bool) {
	o := &c.ext.out
	q, first := o.q, o.begun()
	for first < len(q) && (q[first].m == nil || !such(q[first].m)) {
		first++
	}
	if first == len(q) {
		return
	}
	before := o.bytes
	o.q = q[:first]
	for _, e := range q[first:] {
		switch {
		case e.gap != nil: // may continue the one before it now
			o.bytes -= len(e.b)
			o.note(len(o.q), *e.gap, e.queued)
		case e.m == nil || !such(e.m):
			o.q = append(o.q, e)
		default:
			w.unqueued(e.m, why)
			o.bytes -= len(e.b)
			if e.m.topic != nil && c.format != formatRaw {
				o.note(len(o.q), gapOf(e.m, why), e.queued)
			}
		}
	}
	clear(q[len(o.q):])
	w.srv.outboxBytes.Add(int64(o.bytes - before))
}

// skip tells c that it is not sent the messages of g: behind what waits for
// it, or at once.
func (w *worker) skip(c *conn, g gapNote) {
	if c.format == formatRaw {
		return
	}
	if c.ext == nil || c.ext.out.empty() {
		w.send(c, g.frame())
		return
	}
	o := &c.ext.out
	w.srv.outboxBytes.Add(int64(o.note(len(o.q), g, w.now)))
	w.checkGaps(c)
}

// checkGaps cuts a reader that has too many notices waiting.
func (w *worker) checkGaps(c *conn) {
	if c.ext.out.bytes > w.srv.cfg.MaxOutbox+maxGaps {
		w.cut(c, cutOutbox)
	}
}
