package server

import (
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// half is what has been received of something unfinished: a request head, a
// frame, or a message of several frames. The zero value is empty. It holds only
// bytes that have come; nothing is allocated for a length that a peer declares
// (docs/design.md, law 6).
type half struct {
	buf    []byte // the head so far, or the message so far, unmasked
	ctl    []byte // the control frame so far, unmasked
	header [wire.MaxHeader]byte
	have   uint8 // bytes of header; 0 when a frame's payload is expected or nothing is
	inside bool  // h is complete and left bytes of its payload are missing
	text   utf8Tail
	op     ws.OpCode // of the message that buf begins; 0 if none
	h      ws.Header
	left   int64
	frames int   // of the message
	since  stamp // first byte of the head or message

	scan headScan // see head.go
}

func (h *half) empty() bool {
	return len(h.buf) == 0 && len(h.ctl) == 0 && h.have == 0 && !h.inside && h.op == 0
}

// frame is one whole message or control frame. Its payload lives until the
// next call of take.
type frame struct {
	op      ws.OpCode
	payload []byte
}

// fault is a reason to fail the connection, RFC 6455 section 7.1.7. The zero
// value is none.
type fault struct {
	code   wire.CloseCode
	reason string
}

// take consumes bytes of b, unmasking them in place, until a message or control
// frame is whole, b is used up or the peer broke the protocol. It returns how
// many it took. The result does not depend on how a stream is cut into calls.
func (h *half) take(b []byte, c *Config) (f frame, n int, done bool, bad fault) {
	for {
		if !h.inside {
			size, ok, bad := h.takeHeader(b[n:], c)
			n += size
			if !ok || bad.code != 0 {
				return frame{}, n, false, bad
			}
		}
		part := b[n:]
		if int64(len(part)) > h.left {
			part = part[:h.left]
		}
		n += len(part)
		f, done, bad = h.takePayload(part)
		if done || bad.code != 0 || h.inside {
			return f, n, done, bad
		}
		// A fragment that is not the last; the next frame may follow.
	}
}

// takeHeader completes a frame header and judges it before a byte of payload
// is looked at: RFC 6455 section 5.2 and the limits.
func (h *half) takeHeader(b []byte, c *Config) (n int, ok bool, bad fault) {
	var size int
	if h.have == 0 {
		if h.h, size = wire.ParseHeader(b); size == 0 {
			h.have = uint8(copy(h.header[:], b))
			return len(b), false, fault{}
		}
		n = size
	} else {
		old := int(h.have)
		copied := copy(h.header[old:], b)
		if h.h, size = wire.ParseHeader(h.header[:old+copied]); size == 0 {
			h.have += uint8(copied)
			return copied, false, fault{}
		}
		n = size - old
		h.have = 0
	}
	if h.h.Length >= 0 && ws.HeaderSize(h.h) != size {
		return n, false, fault{wire.CloseProtocolError, "frame length is not in its shortest form"}
	}
	state := ws.StateServerSide
	if h.op != 0 {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(h.h, state); err != nil {
		return n, false, fault{wire.CloseProtocolError, err.Error()}
	}
	if h.h.Length < 0 {
		return n, false, fault{wire.CloseProtocolError, "frame length has its highest bit set"}
	}
	if !h.h.OpCode.IsControl() {
		if h.h.OpCode != ws.OpContinuation {
			h.op, h.frames, h.text = h.h.OpCode, 0, utf8Tail{}
		}
		if h.frames++; h.frames > c.MaxFrames {
			return n, false, fault{wire.ClosePolicy, "too many frames in a message"}
		}
		// What is left of the limit, because a sum could wrap.
		if h.h.Length > int64(c.MaxMessage-len(h.buf)) {
			return n, false, fault{wire.CloseTooBig, "message too big"}
		}
	}
	h.inside, h.left = true, h.h.Length
	return n, true, fault{}
}

// takePayload takes part, which is no longer than what is left of the frame.
func (h *half) takePayload(part []byte) (f frame, done bool, bad fault) {
	ws.Cipher(part, h.h.Mask, int((h.h.Length-h.left)&3))
	h.left -= int64(len(part))
	whole := h.left == 0
	if whole {
		h.inside = false
	}
	if h.h.OpCode.IsControl() {
		if whole && len(h.ctl) == 0 {
			return frame{h.h.OpCode, part}, true, fault{}
		}
		h.ctl = append(h.ctl, part...)
		if !whole {
			return frame{}, false, fault{}
		}
		f = frame{h.h.OpCode, h.ctl}
		h.ctl = h.ctl[:0]
		return f, true, fault{}
	}
	last := whole && h.h.Fin
	if h.op == ws.OpText && !h.checkText(part, last) {
		return frame{}, false, fault{wire.CloseInvalidData, "text is not UTF-8"}
	}
	if last && len(h.buf) == 0 {
		f = frame{h.op, part} // the common case: nothing was copied
		h.op = 0
		return f, true, fault{}
	}
	h.buf = append(h.buf, part...)
	if !last {
		return frame{}, false, fault{}
	}
	f = frame{h.op, h.buf}
	h.op, h.buf = 0, h.buf[:0]
	return f, true, fault{}
}

func (h *half) checkText(part []byte, last bool) bool {
	if h.text.n == 0 && last {
		return utf8.Valid(part)
	}
	return h.text.write(part) && (!last || h.text.n == 0)
}

// utf8Tail checks UTF-8 that comes in pieces, and fails at the first byte that
// cannot be part of it. It keeps the bytes of a rune that is not whole.
type utf8Tail struct {
	tail [utf8.UTFMax]byte
	n    uint8
}

func (u *utf8Tail) write(p []byte) bool {
	for u.n > 0 && len(p) > 0 {
		u.tail[u.n] = p[0]
		u.n++
		p = p[1:]
		if utf8.FullRune(u.tail[:u.n]) {
			if r, size := utf8.DecodeRune(u.tail[:u.n]); r == utf8.RuneError && size == 1 {
				return false
			}
			u.n = 0
		}
	}
	// The last bytes may begin a rune: at most three, from its first byte on.
	cut := len(p)
	for i := len(p) - 1; i >= 0 && i >= len(p)-3; i-- {
		if utf8.RuneStart(p[i]) {
			if !utf8.FullRune(p[i:]) {
				cut = i
			}
			break
		}
	}
	if !utf8.Valid(p[:cut]) {
		return false
	}
	if cut < len(p) {
		u.n = uint8(copy(u.tail[:], p[cut:]))
	}
	return true
}
