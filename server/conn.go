package server

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// conn is one connection: a slot that belongs to a descriptor number, 64 bytes,
// one cache line. Slots stand in pages and never move. What only some
// connections have hangs off ext.
//
// Owned by the shard's turn, except where a comment says otherwise.
type conn struct {
	ext  *extra
	user string // guarded for others by its stripe of the user index
	next *conn  // next device of the same user; guarded by that stripe
	subs [2]*subset
	fd   int32  // static
	gen  uint32 // which connection of this descriptor number; changes at its end
	// stamp is when the state began or, in stateOpen, when something was last received.
	stamp   stamp
	state   connState
	flags   connFlags
	control uint8 // control frames in the leaky bucket
	format  format
}

type connState uint8

const (
	stateFree    connState = iota
	stateHead              // accepted; the request head is not whole
	stateAuth              // the head is whole; a hook decides
	stateOpen              // upgraded
	stateClosing           // Close was sent or is queued; reads are thrown away
)

type connFlags uint8

const (
	flagPinged   connFlags = 1 << iota // a ping is unanswered
	flagHook                           // a hook runs or waits; nothing is parsed
	flagUnread                         // the socket may have bytes that were not read because a hook runs
	flagFinished                       // the write side was shut down
	flagListed                         // in the user index
	flagDeaf                           // a refused handshake: nothing is read any more
	flagGarbled                        // what the peer sends cannot be parsed any more
	flagPeerDone                       // the peer has sent Close
)

// format is how a connection wants its messages.
type format uint8

const (
	formatV1  format = iota // enveloped, tocsin.v1
	formatRaw               // the payload alone
	formats
)

// extra is what a connection has only while something is unfinished.
type extra struct {
	in   half
	out  outbox
	subs []*subset // beyond conn.subs
	rest []byte    // received behind what a hook is busy with
	call *hookCall // the hook that flagHook is about
}

// idle reports whether nothing is left that needs e.
func (e *extra) idle() bool {
	return e.in.empty() && e.out.empty() && len(e.subs) == 0 && len(e.rest) == 0 && e.call == nil
}

// trim lets go of buffers that are empty.
func (e *extra) trim() {
	if len(e.in.buf) == 0 {
		e.in.buf = nil
	}
	if len(e.in.ctl) == 0 {
		e.in.ctl = nil
	}
	if len(e.out.q) == 0 {
		e.out.q = nil
	}
}

// ref names a connection by descriptor and generation. After the connection has
// ended no slot has that generation: [shard.lookup] returns nil for it.
type ref uint64

func (c *conn) ref() ref { return ref(c.gen)<<32 | ref(uint32(c.fd)) }

func (r ref) fd() int     { return int(int32(r)) }
func (r ref) gen() uint32 { return uint32(r >> 32) }

// Descriptor numbers belong to shards in blocks of blockSize: the first block
// to shard 0, the next to shard 1, and so on in a circle. As the kernel hands
// out the lowest free number, shards fill evenly, and a number always returns
// to the shard that closed it. The local index counts the descriptors of one
// shard without gaps.
const blockSize = 16

func shardOf(fd, shards int) int { return fd / blockSize % shards }

func localIndex(fd, shards int) int { return fd/blockSize/shards*blockSize + fd%blockSize }

const pageSize = 64

type page [pageSize]conn

// ids turns refs into connection ids that cannot be guessed: one AES block of
// the ref and zeros, under a key of this process. Nothing is stored.
type ids struct{ block cipher.Block }

func newIDs() ids {
	var key [16]byte
	rand.Read(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key has a valid length
	}
	return ids{block}
}

const idLength = 22 // 16 bytes in unpadded base64url

func (i ids) append(dst []byte, r ref) []byte {
	// The block stands behind the room for its text: cipher.Block would make
	// one of our own escape to the heap.
	at := len(dst) + idLength
	dst = append(dst, make([]byte, idLength+aes.BlockSize)...)
	b := dst[at:]
	binary.LittleEndian.PutUint64(b, uint64(r))
	i.block.Encrypt(b, b)
	base64.RawURLEncoding.Encode(dst[at-idLength:at], b)
	return dst[:at]
}

func (i ids) parse(id string) (ref, bool) {
	var b [aes.BlockSize]byte
	if len(id) != idLength {
		return 0, false
	}
	if n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(id)); err != nil || n != len(b) {
		return 0, false
	}
	i.block.Decrypt(b[:], b[:])
	return ref(binary.LittleEndian.Uint64(b[:])), binary.LittleEndian.Uint64(b[8:]) == 0
}

// Conn is a handle on one connection, given to hooks. It is a small value that
// may be kept and used from any goroutine; after the connection has ended its
// methods do nothing.
type Conn struct {
	srv  *Server
	ref  ref
	user string
}

// ID returns the connection's id, as in its welcome and in [Target].
func (c Conn) ID() string { return string(c.srv.ids.append(nil, c.ref)) }

// User returns the user that Auth named, "" if there is none.
func (c Conn) User() string { return c.user }

// Send queues one text or binary message for the connection; payload is copied.
// It is not told whether the connection still exists.
func (c Conn) Send(op ws.OpCode, payload []byte) {
	frame := wire.AppendFrame(make([]byte, 0, len(payload)+10), op, payload)
	c.srv.post(c.ref, item{kind: itemSend, x: frame})
}

// Close starts the closing handshake with the given code and reason.
func (c Conn) Close(code wire.CloseCode, reason string) {
	c.srv.post(c.ref, item{kind: itemClose, x: closing{code, reason}})
}

// stamp is a point in time in units of 10 ms. It wraps after 497 days, so two
// stamps may be subtracted and never compared.
type stamp uint32

const stampUnit = 10 * time.Millisecond

func (s stamp) since(earlier stamp) time.Duration {
	return time.Duration(int32(s-earlier)) * stampUnit
}
