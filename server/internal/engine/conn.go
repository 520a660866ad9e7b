package engine

import (
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// Conn is one connection: a slot that belongs to a descriptor number, 24 bytes.
// Slots stand in pages and never move. What only some connections have hangs
// off ext. All of it is owned by the shard's turn.
type Conn struct {
	ext *extra
	fd  int32  // static
	gen uint32 // which connection of this descriptor number, from 1; changes at its end
	// stamp is when the state began or, in stateOpen, when something was last received.
	stamp   stamp
	state   state
	flags   flags
	control uint8 // control frames in the leaky bucket
	codec   uint8
}

type flags uint8

const (
	flagPinged   flags = 1 << iota // a ping is unanswered
	flagCall                       // a call runs or waits; nothing is parsed
	flagUnread                     // the socket may have bytes that were not read because of a call
	flagFinished                   // the write side was shut down
	flagDeaf                       // a refused handshake: nothing is read any more
	flagGarbled                    // what the peer sends cannot be parsed any more
	flagPeerDone                   // the peer has sent Close
)

// Ref returns the name of c.
func (c *Conn) Ref() Ref { return Ref(c.gen)<<32 | Ref(uint32(c.fd)) }

// Open reports whether c was upgraded and its end has not begun.
func (c *Conn) Open() bool { return c.state == stateOpen }

// Calling reports whether a call of c is on its way; see [Turn.Call].
func (c *Conn) Calling() bool { return c.flags&flagCall != 0 }

// Codec returns which of Config.Codecs c was upgraded with.
func (c *Conn) Codec() int { return int(c.codec) }

// Ref names a connection by descriptor and generation. After the connection has
// ended no connection has that name. It is never 0.
type Ref uint64

// Shard returns which of so many shards r belongs to.
func (r Ref) Shard(shards int) int { return shardOf(r.fd(), shards) }

func (r Ref) fd() int     { return int(int32(r)) }
func (r Ref) gen() uint32 { return uint32(r >> 32) }

// extra is what a connection has only while something is unfinished.
type extra struct {
	head  headBuf
	in    wire.Reader
	began stamp // first byte of the message that in has begun
	wants int32 // room in out that the App wants to be told of, in bytes, and one more; 0: none
	out   outbox
	rest  []byte // received behind what a call is busy with
	call  *Call  // the one that flagCall is about
}

// idle reports whether nothing is left that needs x.
func (x *extra) idle() bool {
	return len(x.head.buf) == 0 && x.in.Empty() && x.out.empty() && len(x.rest) == 0 && x.call == nil
}

// extraOf returns c's extra, which it makes if there is none.
func (t *Turn) extraOf(c *Conn) *extra {
	if c.ext == nil {
		s := t.shard
		if n := len(s.freeExtras); n > 0 {
			c.ext, s.freeExtras = s.freeExtras[n-1], s.freeExtras[:n-1]
		} else {
			c.ext = &extra{}
		}
	}
	return c.ext
}

// keep moves what is unfinished to c's own reader, and returns that. It does
// nothing if in is c's already, or empty.
func (t *Turn) keep(c *Conn, in *wire.Reader) *wire.Reader {
	if in.Empty() || c.ext != nil && in == &c.ext.in {
		return in
	}
	x := t.extraOf(c)
	in.MoveTo(&x.in)
	return &x.in
}

// slim gives c's extra back when nothing needs it: an idle connection keeps no
// buffer (docs/design.md, law 7). If something in it is needed, the empty
// buffers go.
func (t *Turn) slim(c *Conn) {
	switch x := c.ext; {
	case x == nil:
	case x.idle():
		t.recycle(x)
		c.ext = nil
	default:
		x.trim()
	}
}

// trim lets go of buffers that are empty.
func (x *extra) trim() {
	if len(x.head.buf) == 0 {
		x.head.buf = nil
	}
	x.in.Trim()
	if len(x.out.q) == 0 {
		x.out.q = nil
	}
}

// recycle empties x and puts it on the shard's free list. It keeps small
// buffers and drops large ones.
func (t *Turn) recycle(x *extra) {
	s := t.shard
	if len(s.freeExtras) >= 64 {
		return
	}
	q, in, head := x.out.q[:0], x.in, x.head.buf[:0]
	if cap(q) > 32 {
		q = nil
	}
	if cap(head) > 1024 {
		head = nil
	}
	in.Reset(1024)
	*x = extra{head: headBuf{buf: head}, in: in, out: outbox{q: q}}
	s.freeExtras = append(s.freeExtras, x)
}

// Descriptor numbers belong to shards in blocks of blockSize: the first block
// to shard 0, the next to shard 1, and so on in a circle. As the kernel hands
// out the lowest free number, shards fill evenly, and a number always returns
// to the shard that closed it. The local index counts the descriptors of one
// shard without gaps.
const blockSize = 16

func shardOf(fd, shards int) int { return fd / blockSize % shards }

func localIndex(fd, shards int) int { return fd/blockSize/shards*blockSize + fd%blockSize }

const pageSize = 64

type page [pageSize]Conn

// stamp is a point in time in units of 10 ms. It wraps after 497 days, so two
// stamps may be subtracted and never compared.
type stamp uint32

const stampUnit = 10 * time.Millisecond

func (s stamp) since(earlier stamp) time.Duration {
	return time.Duration(int32(s-earlier)) * stampUnit
}

// dropCall lets go of the call of a connection that ends.
func (x *extra) dropCall() {
	if x.call != nil && x.call.paused {
		x.call.job.(pause).Gone()
		x.call = nil
	}
}
