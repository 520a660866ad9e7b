package wire

import (
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// Reader reads a client's frames from a stream that may be cut anywhere. It
// keeps what is unfinished: a part of a header or frame, or a message of several
// frames. The zero value is empty and ready, and cheap enough for a variable on
// the stack; [Reader.MoveTo] takes to the heap what such a one could not finish.
//
// It holds only bytes that have come: nothing is allocated for a length that a
// peer declares (docs/design.md, law 6).
type Reader struct {
	message []byte // what has come of it, if it did not come in one piece; unmasked
	control []byte // the same of a control frame

	header    [MaxHeader]byte
	have      uint8     // bytes of header; 0 when payload is expected or nothing is
	inPayload bool      // frame is set, and left bytes of its payload are missing
	text      utf8Tail  // of a text message
	op        ws.OpCode // of the message that has begun; 0 if none has
	frame     ws.Header
	left      int64
	frames    int // of the message
}

// Limits are what a Reader allows of one message.
type Limits struct {
	MaxMessage int // bytes
	MaxFrames  int // empty ones count too
}

// Frame is a whole message, of however many frames it was, or a control frame.
type Frame struct {
	Op      ws.OpCode
	Payload []byte // unmasked; the text of a text message is UTF-8
}

// Fault is a reason to fail the connection, RFC 6455 section 7.1.7. The zero
// value is none.
type Fault struct {
	Code   CloseCode
	Reason string
}

// Empty reports whether nothing is unfinished.
func (r *Reader) Empty() bool {
	return len(r.message) == 0 && len(r.control) == 0 && r.have == 0 && !r.inPayload && r.op == 0
}

// InMessage reports whether a message has begun that is not whole. Control
// frames may stand between its frames.
func (r *Reader) InMessage() bool { return r.op != 0 }

// MoveTo moves what is unfinished to another reader, which is empty, and leaves
// r as the zero value. A buffer for messages that the other has is kept if r
// needs none.
func (r *Reader) MoveTo(to *Reader) {
	buf := to.message
	*to = *r
	if len(r.message) == 0 {
		to.message = buf
	}
	*r = Reader{}
}

// Capacity returns how many bytes the buffers of r have room for.
func (r *Reader) Capacity() int { return cap(r.message) + cap(r.control) }

// Trim lets go of buffers that hold nothing.
func (r *Reader) Trim() {
	if len(r.message) == 0 {
		r.message = nil
	}
	if len(r.control) == 0 {
		r.control = nil
	}
}

// Reset forgets what is unfinished. It keeps the buffer for messages, for the
// next one, if that is of at most keep bytes.
func (r *Reader) Reset(keep int) {
	buf := r.message[:0]
	if cap(buf) > keep {
		buf = nil
	}
	*r = Reader{message: buf}
}

// Next takes bytes of b, unmasking them in place, until a message or control
// frame is whole, b is used up or the peer broke the protocol. It returns how
// many it took. The frame's payload lives until the next call and as long as
// b's bytes; after a fault only [Reader.Reset] may follow. The results do not
// depend on how a stream is cut into calls.
func (r *Reader) Next(b []byte, limits Limits) (f Frame, n int, done bool, bad Fault) {
	for {
		if !r.inPayload {
			size, ok, bad := r.readHeader(b[n:], limits)
			n += size
			if !ok || bad.Code != 0 {
				return Frame{}, n, false, bad
			}
		}
		part := b[n:]
		if int64(len(part)) > r.left {
			part = part[:r.left]
		}
		n += len(part)
		f, done, bad = r.readPayload(part)
		if done || bad.Code != 0 || r.inPayload {
			return f, n, done, bad
		}
		// A fragment that is not the last; the next frame may follow.
	}
}

// readHeader completes a frame header and judges it before a byte of payload
// is looked at: RFC 6455 section 5.2 and the limits.
func (r *Reader) readHeader(b []byte, limits Limits) (n int, ok bool, bad Fault) {
	var size int
	if r.have == 0 {
		if r.frame, size = ParseHeader(b); size == 0 {
			r.have = uint8(copy(r.header[:], b))
			return len(b), false, Fault{}
		}
		n = size
	} else {
		old := int(r.have)
		copied := copy(r.header[old:], b)
		if r.frame, size = ParseHeader(r.header[:old+copied]); size == 0 {
			r.have += uint8(copied)
			return copied, false, Fault{}
		}
		n = size - old
		r.have = 0
	}
	if r.frame.Length >= 0 && ws.HeaderSize(r.frame) != size {
		return n, false, Fault{CloseProtocolError, "frame length is not in its shortest form"}
	}
	state := ws.StateServerSide
	if r.op != 0 {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(r.frame, state); err != nil {
		return n, false, Fault{CloseProtocolError, err.Error()}
	}
	if r.frame.Length < 0 {
		return n, false, Fault{CloseProtocolError, "frame length has its highest bit set"}
	}
	if !r.frame.OpCode.IsControl() {
		if r.frame.OpCode != ws.OpContinuation {
			r.op, r.frames, r.text = r.frame.OpCode, 0, utf8Tail{}
		}
		if r.frames++; r.frames > limits.MaxFrames {
			return n, false, Fault{ClosePolicy, "too many frames in a message"}
		}
		// What is left of the limit, because a sum could wrap.
		if r.frame.Length > int64(limits.MaxMessage-len(r.message)) {
			return n, false, Fault{CloseTooBig, "message too big"}
		}
	}
	r.inPayload, r.left = true, r.frame.Length
	return n, true, Fault{}
}

// readPayload takes part, which is no longer than what is left of the frame.
func (r *Reader) readPayload(part []byte) (f Frame, done bool, bad Fault) {
	ws.Cipher(part, r.frame.Mask, int((r.frame.Length-r.left)&3))
	r.left -= int64(len(part))
	whole := r.left == 0
	if whole {
		r.inPayload = false
	}
	if r.frame.OpCode.IsControl() {
		if whole && len(r.control) == 0 {
			return Frame{r.frame.OpCode, part}, true, Fault{}
		}
		r.control = append(r.control, part...)
		if !whole {
			return Frame{}, false, Fault{}
		}
		f = Frame{r.frame.OpCode, r.control}
		r.control = r.control[:0]
		return f, true, Fault{}
	}
	last := whole && r.frame.Fin
	if r.op == ws.OpText && !r.checkText(part, last) {
		return Frame{}, false, Fault{CloseInvalidData, "text is not UTF-8"}
	}
	if last && len(r.message) == 0 {
		f = Frame{r.op, part} // the common case: nothing was copied
		r.op = 0
		return f, true, Fault{}
	}
	r.message = append(r.message, part...)
	if !last {
		return Frame{}, false, Fault{}
	}
	f = Frame{r.op, r.message}
	r.op, r.message = 0, r.message[:0]
	return f, true, Fault{}
}

func (r *Reader) checkText(part []byte, last bool) bool {
	if r.text.n == 0 && last {
		return utf8.Valid(part)
	}
	return r.text.write(part) && (!last || r.text.n == 0)
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
