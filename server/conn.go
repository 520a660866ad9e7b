package server

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// Conn is a handle on one connection, given to hooks. It is a small value that
// may be kept and used from any goroutine; after the connection has ended its
// methods do nothing.
type Conn struct {
	srv  *Server
	ref  engine.Ref
	user string
}

// handle returns the handle on c.
func (srv *Server) handle(c *engine.Conn, s *session) Conn {
	return Conn{srv: srv, ref: c.Ref(), user: s.user}
}

// ID returns the connection's id, as in its welcome and in [Target].
func (c Conn) ID() string { return c.srv.ids.name(c.ref) }

// User returns the user that Auth named, "" if there is none.
func (c Conn) User() string { return c.user }

// Send queues one text or binary message for the connection; payload is copied.
// It is not told whether the connection still exists.
func (c Conn) Send(op ws.OpCode, payload []byte) { c.srv.engine.SendFrame(c.ref, op, payload) }

// Close starts the closing handshake with the given code and reason.
func (c Conn) Close(code wire.CloseCode, reason string) { c.srv.engine.Close(c.ref, code, reason) }

// ids turns refs into connection ids that cannot be guessed: one AES block of
// the ref and zeros, under a key of this process. Nothing is stored.
type ids struct{ block cipher.Block }

func newIDs(random func([]byte)) ids {
	var key [16]byte
	random(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key has a valid length
	}
	return ids{block}
}

const idLength = 22 // 16 bytes in unpadded base64url

func (i ids) name(r engine.Ref) string { return string(i.append(nil, r)) }

func (i ids) append(dst []byte, r engine.Ref) []byte {
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

func (i ids) parse(id string) (engine.Ref, bool) {
	var b [aes.BlockSize]byte
	if len(id) != idLength {
		return 0, false
	}
	if n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(id)); err != nil || n != len(b) {
		return 0, false
	}
	i.block.Decrypt(b[:], b[:])
	return engine.Ref(binary.LittleEndian.Uint64(b[:])), binary.LittleEndian.Uint64(b[8:]) == 0
}
