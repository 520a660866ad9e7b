package engine

import (
	"fmt"
	"time"

	"github.com/gobwas/ws"
)

// What tests must know of the engine's inside.
const (
	ReadSize    = readSize
	StampUnit   = stampUnit
	SweepEvery  = sweepEvery
	StallAfter  = stallAfter
	TickEvery   = tickEvery
	InboxSlice  = inboxSlice
	MaxHead     = maxHead
	MaxGaps     = maxGaps
	MaxTimeout  = maxTimeout
	MaxAmnesty  = maxAmnesty
	SliceBudget = sliceBudget
	AcceptBatch = acceptBatch
)

// System returns the real kernel.
func System() Kernel { return system{start: time.Now()} }

// Stalled returns for how long nothing has run that should have, in all.
func (e *Engine) Stalled() time.Duration {
	t := e.lastTick.Load()
	return t.kernel - t.own
}

// Ticked returns the time of the last tick.
func (e *Engine) Ticked() time.Duration { return e.lastTick.Load().kernel }

// Descriptors returns how many connections have one.
func (e *Engine) Descriptors() int { return int(e.conns.Load()) }

// Probe has the turns of an engine and looks into it, for a simulation. Nobody
// else may have a turn meanwhile.
type Probe struct {
	e *Engine
	t *Turn
}

// Probe returns one.
func (e *Engine) Probe() *Probe { return &Probe{e, newTurn(e)} }

// Admit takes new connections, as if they had been accepted.
func (p *Probe) Admit(fds ...int) {
	p.e.conns.Add(int64(len(fds)))
	p.e.admit(fds)
}

// PassTick sets the clocks as if nothing had ever stalled.
func (p *Probe) PassTick() {
	now := p.e.kernel.Now()
	p.e.lastTick.Store(&tickTime{now, now})
}

// Begin begins a turn of a shard.
func (p *Probe) Begin(shard int) *Turn {
	p.t.begin(p.e.shards[shard])
	return p.t
}

// Round begins a turn of a shard, does one round of it with the set looked at,
// and reports whether something is left.
func (p *Probe) Round(shard int) (more bool) {
	t := p.Begin(shard)
	t.shard.ready.Store(true)
	return t.round()
}

// GoOn does one more round of a turn that has begun, after a look at the clock
// or without.
func (p *Probe) GoOn(t *Turn, look bool) (more bool) {
	if look {
		t.clock()
	}
	t.shard.ready.Store(true)
	return t.round()
}

// DueSweep has the next round of a shard sweep.
func (p *Probe) DueSweep(shard int) { p.e.shards[shard].tick.Store(true) }

// WakeToSweep has a shard sweep in a turn that the runner gives it. Unlike
// everything else here it is for an engine whose turns others have.
func (p *Probe) WakeToSweep(shard int) {
	p.DueSweep(shard)
	p.e.shards[shard].wake()
}

// BeginDrain is the beginning of [Engine.Shutdown].
func (p *Probe) BeginDrain(atOnce bool) {
	p.e.drain.atOnce.Store(atOnce)
	p.e.beginDrain()
}

// Receive has c take b as if its socket had it. Its control frames are not
// counted against it.
func (p *Probe) Receive(c *Conn, b []byte) {
	c.control = 0
	p.t.received(c, b)
	p.t.reap()
}

// Deliver sends parcels to c in one call, as a walk does.
func (p *Probe) Deliver(c *Conn, parcels ...*Parcel) Status {
	batch := p.t.one[:0]
	for _, parcel := range parcels {
		batch = append(batch, walkEntry{p: parcel})
	}
	status := p.t.deliver(c, batch, &parcels[0].frames)
	p.t.reap()
	return status
}

// Slot is what stands in the slot of a descriptor.
type Slot struct {
	Conn     *Conn
	State    string // free, head, auth, open, closing
	Finished bool   // the end of file was sent
	Extra    bool   // it has more than its slot
	Buffers  int    // bytes of capacity of its buffers, and entries of its queue
	Rest     []byte // received behind a call
	Queue    []Waiting
	Begun    int // bytes of the first of Queue that have left
	Pong     bool
}

// Waiting is an entry of an outbox.
type Waiting struct {
	Bytes  []byte
	Parcel *Parcel // nil for another frame
	Gap    bool
}

// Slot returns that of a descriptor.
func (p *Probe) Slot(fd int) Slot {
	s := p.e.shards[shardOf(fd, len(p.e.shards))]
	c := s.at(localIndex(fd, len(p.e.shards)))
	out := Slot{Conn: c, State: stateNames[c.state], Finished: c.flags&flagFinished != 0}
	x := c.ext
	if x == nil {
		return out
	}
	out.Extra, out.Rest, out.Begun, out.Pong = true, x.rest, x.out.off, len(x.out.pong) > 0
	out.Buffers = cap(x.head.buf) + x.in.Capacity() + cap(x.rest) + cap(x.out.q)
	for _, e := range x.out.q {
		out.Queue = append(out.Queue, Waiting{e.b, e.parcel, e.gap != nil})
	}
	return out
}

var stateNames = [...]string{stateFree: "free", stateHead: "head", stateAuth: "auth", stateOpen: "open", stateClosing: "closing", stateDead: "dead"}

// Walks returns how many walks a shard has, and how many of them have a rate.
func (p *Probe) Walks(shard int) (all, paced int) {
	return len(p.e.shards[shard].walks), p.e.shards[shard].paced
}

// WaitingCalls returns how many calls a shard keeps for want of room, and how
// many are counted for all shards.
func (p *Probe) WaitingCalls(shard int) (kept, counted int) {
	return len(p.e.shards[shard].waiting), int(p.e.counts.waitingCalls.Load())
}

// SetClosed has the engine look shut down.
func (p *Probe) SetClosed(closed bool) { p.e.closed.Store(closed) }

// GrowQueue gives c's outbox room for n entries.
func (p *Probe) GrowQueue(c *Conn, n int) { p.t.extraOf(c).out.q = make([]entry, 0, n) }

// Check compares the accounts with what there is: so many connections that have
// a descriptor, and so many guests who have not been refused and have none yet.
func (p *Probe) Check(alive, guests int) error {
	waiting, conns, open, handshaking, calls := 0, 0, 0, guests, 0
	var formats [maxCodecs]int64
	for _, s := range p.e.shards {
		calls += len(s.waiting)
		coming := s.coming()
		conns, handshaking = conns+coming, handshaking+coming
		if len(s.dead) > 0 {
			return fmt.Errorf("shard %d has %d dead that nobody reaped", s.index, len(s.dead))
		}
		for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
			c := s.at(i)
			conns++
			if (c.state == stateOpen) != s.open.has(i) || c.state == stateFree {
				return fmt.Errorf("slot %d of shard %d is in state %s", i, s.index, stateNames[c.state])
			}
			switch c.state {
			case stateHead, stateAuth:
				handshaking++
			case stateOpen:
				open++
				formats[c.codec]++
			}
			n, err := p.checkExtra(c)
			if err != nil {
				return err
			}
			waiting += n
		}
	}
	c := &p.e.counts
	if c.outboxBytes.Load() != int64(waiting) || int(c.opened.Load()) != open || conns != alive || int(p.e.conns.Load()) != alive+guests {
		return fmt.Errorf("the accounts say %d bytes waiting, %d open and %d connections; there are %d, %d and %d of %d, and %d guests",
			c.outboxBytes.Load(), c.opened.Load(), p.e.conns.Load(), waiting, open, alive, conns, guests)
	}
	if int(c.handshaking.Load()) != handshaking || int(c.waitingCalls.Load()) != calls {
		return fmt.Errorf("the accounts say %d handshakes and %d calls that wait; there are %d and %d",
			c.handshaking.Load(), c.waitingCalls.Load(), handshaking, calls)
	}
	for i, n := range formats {
		if p.e.formats[i].Load() != n {
			return fmt.Errorf("the accounts say %d connections of codec %d, there are %d", p.e.formats[i].Load(), i, n)
		}
	}
	return nil
}

// coming returns how many connections wait in the inbox for their slot.
func (s *shard) coming() int {
	s.inbox.mu.Lock()
	defer s.inbox.mu.Unlock()
	n := len(s.inbox.accepted)
	for _, items := range [][]item{s.items[s.done:], s.inbox.items} {
		for _, it := range items {
			if _, ok := it.task.(*arrival); ok {
				n++
			}
		}
	}
	return n
}

// checkExtra returns how many bytes wait for c.
func (p *Probe) checkExtra(c *Conn) (n int, err error) {
	if c.ext == nil {
		return 0, nil
	}
	o := &c.ext.out
	for _, e := range o.q {
		n += len(e.b)
	}
	n -= o.off
	if n != o.bytes || len(o.q) > 0 && o.off >= len(o.q[0].b) || len(o.q) == 0 && o.off != 0 {
		return 0, fmt.Errorf("an outbox of %d bytes says %d, %d of its first entry have left", n, o.bytes, o.off)
	}
	// Pongs and the Close frame go in whatever there is.
	if most := p.e.cfg.MaxOutbox + maxGaps + 4*(2+ws.MaxControlFramePayloadSize); n > most && len(o.q) > 2 {
		return 0, fmt.Errorf("an outbox of %d bytes in %d entries, the limit is %d", n, len(o.q), most)
	}
	if c.state == stateOpen && c.ext.idle() {
		return 0, fmt.Errorf("a connection keeps an extra that nothing needs")
	}
	return n, nil
}

// Abandon has everybody who waits for the engine wait no longer, when a
// simulation has failed.
func (p *Probe) Abandon() {
	for _, l := range p.e.listeners {
		if !l.closed {
			close(l.ended)
		}
	}
	p.e.listeners = nil
	p.e.conns.Store(0)
	p.e.counts.waitingCalls.Store(0)
	p.e.drain.signal()
}

// Unserved reports a shard that has something to do and will not be given a turn
// for it, when nothing runs.
func (p *Probe) Unserved() error {
	for _, s := range p.e.shards {
		s.inbox.mu.Lock()
		n := len(s.inbox.items) + len(s.inbox.accepted) + len(s.items) - s.done + len(s.unread)
		s.inbox.mu.Unlock()
		if n > 0 && s.state.Load() == shardIdle && !p.e.closed.Load() {
			return fmt.Errorf("shard %d has %d things to do and no turn", s.index, n)
		}
	}
	return nil
}
