package engine

import "slices"

// entry is one entry of an outbox: bytes of its own, or a shared message.
type entry struct {
	b      []byte
	parcel *Parcel  // nil: a reply or notice of this connection
	gap    *gapNote // the notice that b is, if it is one of a gap
	queued stamp
	pong   bool
}

// outbox is what waits for one connection, first in, first out. The first off
// bytes of the first entry have left.
type outbox struct {
	q     []entry
	off   int
	bytes int    // of all entries, without off
	pong  []byte // the newest unanswered ping's pong; goes before the next entry
	moved stamp  // when a byte last left, or the outbox began
}

func (o *outbox) empty() bool { return len(o.q) == 0 && len(o.pong) == 0 }

// fits reports whether n more bytes may be pushed, if so many may wait.
func (o *outbox) fits(n, most int) bool { return len(o.q) == 0 || n <= most-o.bytes }

// push appends e, whose first off bytes have left already. off is 0 unless the
// outbox is empty.
func (o *outbox) push(e entry, off int) {
	if len(o.q) == 0 {
		o.moved, o.off = e.queued, off
	}
	o.q = append(o.q, e)
	o.bytes += len(e.b) - off
}

// begun returns how many entries cannot be dropped any more, nor can anything go
// before them: the first, once a part of it has left or if it begins with the
// answer to the handshake. That is known by its first byte: all frames that we
// send have FIN set.
func (o *outbox) begun() int {
	if o.off > 0 || len(o.q) > 0 && o.q[0].b[0]&0x80 == 0 {
		return 1
	}
	return 0
}

// drop takes entry i out and returns its size.
func (o *outbox) drop(i int) int {
	n := len(o.q[i].b)
	copy(o.q[i:], o.q[i+1:])
	o.q[len(o.q)-1] = entry{}
	o.q = o.q[:len(o.q)-1]
	o.bytes -= n
	return n
}

// find returns the first droppable parcel of a flow, with key if collapse is
// set, or -1.
func (o *outbox) find(f *Flow, key string, collapse bool) int {
	for i := o.begun(); i < len(o.q); i++ {
		if p := o.q[i].parcel; p != nil && p.Flow == f && (!collapse || p.Key == key) {
			return i
		}
	}
	return -1
}

// sent takes n bytes off the front and returns how many parcels left whole.
func (o *outbox) sent(n int, now stamp) (whole int) {
	if n > 0 {
		o.moved = now
	}
	o.bytes -= n
	n += o.off
	i := 0
	for i < len(o.q) && n >= len(o.q[i].b) {
		n -= len(o.q[i].b)
		if o.q[i].parcel != nil {
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
	o.q = slices.Insert(o.q, at, entry{b: o.pong, queued: now, pong: true})
	o.bytes += len(o.pong)
	o.pong = nil
	return n
}
