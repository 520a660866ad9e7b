package engine

import (
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// Parcel is one message on its way: encoded and framed once for each codec,
// shared by every outbox and shard, left to the garbage collector. Whoever
// sends it sets the exported fields before that, and nobody changes them then. It
// is 200 bytes; a message of package server with one in it just fits a size class
// of Go's allocator.
type Parcel struct {
	Flow    *Flow         // what it is a part of; nil for a message without a number
	Seq     uint64        // its place in the flow
	Epoch   string        // of that numbering; set if it may be dropped: a gap names it
	Key     string        // collapse key, for [Latest]
	Expires time.Duration // kernel clock; 0: never
	Began   time.Duration // kernel clock, for Rate
	Rate    int           // deliveries a second over all shards; 0: no limit
	Owner   Owner         // told when no shard has it any more
	To      []Address     // whom it is for, if it is sent to single connections
	Lost    *Lost         // if it is no message, but the notice that some will not come
	Policy  Policy        // what happens to it when an outbox is full

	pending atomic.Int32      // shards or addresses that it has not been sent to yet
	frames  [maxCodecs][]byte // framed; nil for a codec that no connection had
	total   atomic.Int32      // connections it is for
	written atomic.Int32
	rest    atomic.Uint64 // queued << 32 | dropped: a queued copy may be dropped at any time, and their sum is always right
	paced   atomic.Int64  // deliveries made of a parcel with a rate
}

// Lost is a range of a flow that was lost before it came here, up to the Seq of
// its parcel. If the Epoch is a new one it is all of that numbering so far.
type Lost struct {
	From uint64
	New  bool // the epoch
}

// why is the reason that connections are told.
func (l *Lost) why() Drop {
	if l.New {
		return lostEpoch
	}
	return DropBus
}

// Flow is an ordered numbering of parcels, of which connections are told what
// they miss.
type Flow struct{ Name string }

// Owner of a parcel. Delivered is called once, by any goroutine, when every
// copy was written, queued or dropped; it must not block.
type Owner interface{ Delivered() }

// Policy is what happens when an outbox is full.
type Policy uint8

// The policies.
const (
	Disconnect Policy = iota // the connection is closed with 3008
	DropOldest               // the oldest waiting parcels of the flow go
	Latest                   // one waits for each collapse key, the newest
)

// Address is one connection that a parcel is for, and what became of its copy.
// Only that connection's shard writes Status and Gone; they may be read when the
// parcel was delivered.
type Address struct {
	Ref    Ref
	Status Status
	Gone   bool // the connection had ended
}

// Status is what became of one copy of a parcel.
type Status uint8

// The statuses.
const (
	Pending Status = iota
	Written
	Queued
	Dropped
)

// Encode makes p's frames: for each codec that a connection has, or with every
// set for all of them.
func (e *Engine) Encode(p *Parcel, m wire.Message, every bool) {
	for i, codec := range e.cfg.Codecs {
		if every || e.formats[i].Load() > 0 {
			p.frames[i] = frameOf(codec, m)
		}
	}
}

func frameOf(codec wire.Codec, m wire.Message) []byte {
	var header [10]byte // the longest of a frame without a mask
	b := make([]byte, len(header), len(header)+len(m.Data)+len(m.Topic)+len(m.ID)+96)
	b = codec.AppendMessage(b, m)
	n := len(wire.AppendHeader(header[:0], codec.Op(), true, len(b)-len(header)))
	b = b[len(header)-n:]
	copy(b, header[:n])
	return b
}

// Share says that p will be sent to n connections in so many calls of
// [Engine.Send]. It comes before the first of them.
func (p *Parcel) Share(n, sends int) {
	p.total.Store(int32(n))
	p.pending.Store(int32(sends))
}

// Total returns how many connections p is for. That of [Engine.SendAll] is known
// when it is delivered.
func (p *Parcel) Total() int { return int(p.total.Load()) }

// Done reports whether p was delivered: no shard has it any more.
func (p *Parcel) Done() bool { return p.pending.Load() == 0 }

// Outcome returns what became of the copies of p so far. Their sum, once it is
// delivered, is Total.
func (p *Parcel) Outcome() (written, queued, dropped int) {
	rest := p.rest.Load()
	return int(p.written.Load()), int(rest >> 32), int(rest & (oneQueued - 1))
}

const (
	oneQueued = 1 << 32
	unqueue   = 1<<64 - oneQueued + 1 // one queued less, one dropped more
)

func (p *Parcel) countDropped(n int) { p.rest.Add(uint64(n)) }
func (p *Parcel) countQueued()       { p.rest.Add(oneQueued) }
func (p *Parcel) countUnqueued()     { p.rest.Add(unqueue) }

// walked counts one shard's or one address's part of p as done.
func (p *Parcel) walked() {
	if p.pending.Add(-1) == 0 && p.Owner != nil {
		p.Owner.Delivered()
	}
}

// mayGo reports whether p's rate allows one more delivery at now, and counts it.
func (p *Parcel) mayGo(now time.Duration) bool {
	due := int64((now-p.Began).Seconds()*float64(p.Rate)) + 1
	for {
		n := p.paced.Load()
		if n >= due {
			return false
		}
		if p.paced.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Size is how many bytes p is of in the largest of its codecs.
func (p *Parcel) Size() (n int) {
	for _, b := range p.frames {
		n = max(n, len(b))
	}
	return n
}

func (p *Parcel) expired(now time.Duration) bool { return p.Expires != 0 && now >= p.Expires }
