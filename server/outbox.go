package server

import (
	"slices"
	"sync/atomic"
	"time"
)

// message is one published message on its way: encoded and framed once for
// each format, shared by every outbox and shard, never changed, left to the
// garbage collector. Its counters are the publisher's receipt.
type message struct {
	frames  [formats][]byte // framed; nil for raw while no connection wants it
	data    []byte          // the payload
	topic   *topic          // nil for a push or broadcast
	policy  policy          // of the topic
	key     string          // collapse key
	expires time.Duration   // kernel.Now; 0: never
	rate    int             // deliveries a second over all shards; 0: no limit
	cost    int64           // what it takes of the publish budget
	seq     uint64          // its place in the topic
	epoch   string          // set if it may be dropped: a gap names it

	taken       atomic.Bool  // it is on its way to shards, or was given up
	subscribers atomic.Int32 // connections it is for; a broadcast's are known when done
	outcome     tally
	paced       atomic.Int64  // deliveries made of a message with a rate
	began       time.Duration // kernel.Now at the publish
	pending     atomic.Int32  // shards that have not walked it yet
	done        chan struct{} // closed when there are none; nil if nobody waits
	devices     []deviceNote  // of a push, by ordinal
	acks        *ackWait      // of a push that waits for them
}

// tally counts what became of a message's copies. A copy that was queued may
// be dropped at any time, so those two are one value: their sum is always right.
type tally struct {
	written atomic.Int32
	rest    atomic.Uint64 // queued << 32 | dropped
}

const (
	oneQueued = 1 << 32
	unqueue   = 1<<64 - oneQueued + 1 // one queued less, one dropped more
)

func (t *tally) drop(n int) { t.rest.Add(uint64(n)) }
func (t *tally) queue()     { t.rest.Add(oneQueued) }
func (t *tally) unqueue()   { t.rest.Add(unqueue) }

func (t *tally) read() (written, queued, dropped int) {
	rest := t.rest.Load()
	return int(t.written.Load()), int(rest >> 32), int(rest & (oneQueued - 1))
}

// mayGo reports whether m's rate allows one more delivery at now, and counts it.
func (m *message) mayGo(now time.Duration) bool {
	due := int64((now-m.began).Seconds()*float64(m.rate)) + 1
	for {
		n := m.paced.Load()
		if n >= due {
			return false
		}
		if m.paced.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// deviceNote is what became of one device's copy; only that device's shard
// writes status, and the publisher reads it after done.
type deviceNote struct {
	ref    ref
	status DeviceStatus
	gone   bool // the connection had ended
}

// size is how many bytes m is of in the format that most connections have.
func (m *message) size() int { return len(m.frames[formatV1]) }

func (m *message) expired(now time.Duration) bool { return m.expires != 0 && now >= m.expires }

// pendingOut is one entry of an outbox: bytes of its own, or a shared message.
type pendingOut struct {
	b      []byte
	m      *message // nil: a reply or notice of this connection
	gap    *gapNote // the notice that b is, if it is one of a gap
	queued stamp
	pong   bool
}

// outbox is what waits for one connection, first in, first out. The first off
// bytes of the first entry have left.
type outbox struct {
	q     []pendingOut
	off   int
	bytes int    // of all entries, without off
	pong  []byte // the newest unanswered ping's pong; goes before the next entry
	moved stamp  // when a byte last left, or the outbox began
}

func (o *outbox) empty() bool { return len(o.q) == 0 && len(o.pong) == 0 }

// push appends e, whose first off bytes have left already. off is 0 unless the
// outbox is empty.
func (o *outbox) push(e pendingOut, off int) {
	if len(o.q) == 0 {
		o.moved, o.off = e.queued, off
	}
	o.q = append(o.q, e)
	o.bytes += len(e.b) - off
}

// begun returns how many entries cannot be dropped any more: the first, once a
// part of it has left.
func (o *outbox) begun() int {
	if o.off > 0 {
		return 1
	}
	return 0
}

// drop takes entry i out and returns its size.
func (o *outbox) drop(i int) int {
	n := len(o.q[i].b)
	copy(o.q[i:], o.q[i+1:])
	o.q[len(o.q)-1] = pendingOut{}
	o.q = o.q[:len(o.q)-1]
	o.bytes -= n
	return n
}

// find returns the first droppable message of topic t, with key if collapse is
// set, or -1.
func (o *outbox) find(t *topic, key string, collapse bool) int {
	for i := o.begun(); i < len(o.q); i++ {
		if m := o.q[i].m; m != nil && m.topic == t && (!collapse || m.key == key) {
			return i
		}
	}
	return -1
}

// sent takes n bytes off the front and returns how many shared messages left
// whole.
func (o *outbox) sent(n int, now stamp) (whole int) {
	if n > 0 {
		o.moved = now
	}
	o.bytes -= n
	n += o.off
	i := 0
	for i < len(o.q) && n >= len(o.q[i].b) {
		n -= len(o.q[i].b)
		if o.q[i].m != nil {
			whole++
		}
		i++
	}
	o.off = n
	kept := copy(o.q, o.q[i:])
	clear(o.q[kept:])
	o.q = o.q[:kept]
	return whole
}

// fill appends what should leave next to buf, up to its capacity, and returns
// it. It takes nothing off; sent does.
func (o *outbox) fill(buf []byte) []byte {
	off := o.off
	for _, e := range o.q {
		part := e.b[off:]
		off = 0
		if len(part) > cap(buf)-len(buf) {
			if len(buf) == 0 || cap(buf)-len(buf) > 4096 {
				buf = append(buf, part[:cap(buf)-len(buf)]...)
			}
			break
		}
		buf = append(buf, part...)
	}
	return buf
}

// usePong queues the waiting pong in front of every entry that has not begun to
// leave; an older pong there is replaced. It returns by how many bytes the
// outbox has grown.
func (o *outbox) usePong(now stamp) (n int) {
	if len(o.pong) == 0 {
		return 0
	}
	at := o.begun()
	if at < len(o.q) && o.q[at].pong {
		n = -o.drop(at)
	}
	n += len(o.pong)
	o.q = slices.Insert(o.q, at, pendingOut{b: o.pong, queued: now, pong: true})
	o.bytes += len(o.pong)
	o.pong = nil
	return n
}
