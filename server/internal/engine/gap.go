package engine

import (
	"math"
	"slices"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// Whoever is not sent a parcel of a flow is told so: a gap notice stands in the
// outbox where the parcel would have stood. Neighbours with the same reason
// become one, so a reader that is too slow has few of them. Some codecs know no
// seq and cannot tell, see [wire.Codec]; of parcels without a flow the loss
// is told to their owner alone.

// gapNote is a notice that waits: the range of a flow that a connection will
// not get, and why.
type gapNote struct {
	flow     *Flow
	epoch    string
	from, to uint64
	reason   Drop
	frames   [maxCodecs][]byte // made when they are needed
}

// maxGaps is what the notices of an outbox may have beyond Config.MaxOutbox,
// in bytes. A reader that is so far behind is cut.
const maxGaps = 16 << 10

// gapFrame returns the frame that tells g to c. Nobody changes its bytes.
func (t *Turn) gapFrame(c *Conn, g *gapNote) []byte {
	if g.frames[c.codec] == nil {
		b := t.cfg.Codecs[c.codec].AppendGap(nil, wire.Gap{Topic: g.flow.Name, Epoch: g.epoch, From: g.from, To: g.to, Reason: string(g.reason)})
		g.frames[c.codec] = wire.AppendFrame(nil, ws.OpText, b)
	}
	return g.frames[c.codec]
}

// tellsGaps reports whether c can be told what it misses.
func (t *Turn) tellsGaps(c *Conn) bool { return t.cfg.Codecs[c.codec].TellsGaps() }

// gapOf is the notice that p is not sent.
func gapOf(p *Parcel, why Drop) gapNote {
	return gapNote{flow: p.Flow, epoch: p.Epoch, from: p.Seq, to: p.Seq, reason: why}
}

// lostBefore is the notice that p is.
func lostBefore(p *Parcel) *gapNote {
	return &gapNote{flow: p.Flow, epoch: p.Epoch, from: p.Lost.From, to: p.Seq, reason: p.Lost.why()}
}

// countLost counts what p tells of as not sent to n connections. How much of a
// new numbering was lost nobody knows.
func (t *Turn) countLost(p *Parcel, n int) {
	if !p.Lost.New {
		t.counts.drops.add(DropBus, n*int(min(p.Seq-p.Lost.From, math.MaxInt32-1)+1)) // a bus may name any number
	}
}

// note puts g in c's queue before entry i, or makes the notice larger that
// stands before or behind it in its flow. It returns how many bytes more wait
// then.
func (t *Turn) note(c *Conn, i int, g gapNote, queued stamp) (grown int) {
	o := &c.ext.out
	before := o.bytes
	if j := o.neighbour(i-1, -1, &g); j >= 0 {
		t.widen(c, j, &g)
	} else if j := o.neighbour(i, +1, &g); j >= 0 {
		t.widen(c, j, &g)
	} else {
		b := t.gapFrame(c, &g)
		o.q = slices.Insert(o.q, i, entry{b: b, gap: &g, queued: queued})
		o.bytes += len(b)
	}
	return o.bytes - before
}

// neighbour looks from entry i in one direction for the next of g's flow, and
// returns it if it is a notice that g continues, otherwise -1. It does not
// look past a reply, whose place among the notices has a meaning.
func (o *outbox) neighbour(i, step int, g *gapNote) int {
	for ; i >= o.begun() && i < len(o.q); i += step {
		switch e := &o.q[i]; {
		case e.gap != nil && e.gap.flow == g.flow:
			if e.gap.reason == g.reason && e.gap.epoch == g.epoch && (e.gap.to+1 == g.from || g.to+1 == e.gap.from) {
				return i
			}
			return -1
		case e.parcel != nil && e.parcel.Flow == g.flow:
			return -1
		case e.parcel == nil && e.gap == nil && !e.pong:
			return -1
		}
	}
	return -1
}

func (t *Turn) widen(c *Conn, i int, g *gapNote) {
	o := &c.ext.out
	e := &o.q[i]
	e.gap.from, e.gap.to = min(e.gap.from, g.from), max(e.gap.to, g.to)
	e.gap.frames = [maxCodecs][]byte{}
	o.bytes -= len(e.b)
	e.b = t.gapFrame(c, e.gap)
	o.bytes += len(e.b)
}

// loseOne drops entry i of c's outbox, a parcel, and leaves a notice in its
// place.
func (t *Turn) loseOne(c *Conn, i int, why Drop) {
	o := &c.ext.out
	p, queued := o.q[i].parcel, o.q[i].queued
	t.unqueued(p, why)
	grown := -o.drop(i)
	if p.Flow != nil && t.tellsGaps(c) {
		grown += t.note(c, i, gapOf(p, why), queued)
	}
	t.counts.outboxBytes.Add(int64(grown))
}

// loseAll drops the parcels of c's outbox that are such, unless a part of one
// has left, and leaves notices in their place. It goes through the queue once,
// however many there are.
func (t *Turn) loseAll(c *Conn, why Drop, such func(*Parcel) bool) {
	o := &c.ext.out
	q, first := o.q, o.begun()
	for first < len(q) && (q[first].parcel == nil || !such(q[first].parcel)) {
		first++
	}
	if first == len(q) {
		return
	}
	before, notices := o.bytes, t.tellsGaps(c)
	o.q = q[:first]
	for _, e := range q[first:] {
		switch {
		case e.gap != nil: // may continue the one before it now
			o.bytes -= len(e.b)
			t.note(c, len(o.q), *e.gap, e.queued)
		case e.parcel == nil || !such(e.parcel):
			o.q = append(o.q, e)
		default:
			t.unqueued(e.parcel, why)
			o.bytes -= len(e.b)
			if e.parcel.Flow != nil && notices {
				t.note(c, len(o.q), gapOf(e.parcel, why), e.queued)
			}
		}
	}
	clear(q[len(o.q):])
	t.counts.outboxBytes.Add(int64(o.bytes - before))
}

// skip tells c that it is not sent the parcels of g: behind what waits for it,
// or at once.
func (t *Turn) skip(c *Conn, g *gapNote) {
	if !t.tellsGaps(c) {
		return
	}
	b := t.gapFrame(c, g)
	if c.ext == nil || c.ext.out.empty() {
		t.send(c, b)
		return
	}
	t.counts.outboxBytes.Add(int64(t.note(c, len(c.ext.out.q), *g, t.now)))
	// A reader that has too many notices waiting is cut.
	if c.ext.out.bytes > t.cfg.MaxOutbox+maxGaps {
		t.cut(c, CutOutbox)
	}
}
