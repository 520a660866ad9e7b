package wstest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// maxPayload bounds what a server may send in one frame, in bytes.
const maxPayload = 64 << 20

// defaultMask is the key of frames that do not name one.
var defaultMask = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// Frame is one frame, as it was read or as it is to be written, right or
// wrong. With nothing but Op and Payload it is a correct final client frame.
type Frame struct {
	Op       ws.OpCode
	Payload  []byte
	More     bool    // FIN = 0
	RSV      byte    // 0–7
	Unmasked bool    // no masking key; a server has to refuse that
	Mask     [4]byte // the masking key; zero: a fixed one
	Wide     int     // bytes of extended length, 2 or 8; 0: as few as possible
	Declared uint64  // the length that the header tells; 0: that of Payload
}

// Text returns a text frame.
func Text(s string) Frame { return Frame{Op: ws.OpText, Payload: []byte(s)} }

// Binary returns a binary frame.
func Binary(b []byte) Frame { return Frame{Op: ws.OpBinary, Payload: b} }

// Ping returns a ping.
func Ping(s string) Frame { return Frame{Op: ws.OpPing, Payload: []byte(s)} }

// Pong returns a pong.
func Pong(s string) Frame { return Frame{Op: ws.OpPong, Payload: []byte(s)} }

// Close returns a Close frame.
func Close(code wire.CloseCode, reason string) Frame {
	return Frame{Op: ws.OpClose, Payload: append([]byte{byte(code >> 8), byte(code)}, reason...)}
}

// Fragments cuts a message after every size bytes into frames.
func Fragments(op ws.OpCode, payload []byte, size int) (frames []Frame) {
	for {
		n := min(size, len(payload))
		frames = append(frames, Frame{Op: op, Payload: payload[:n], More: true})
		if payload = payload[n:]; len(payload) == 0 {
			frames[len(frames)-1].More = false
			return frames
		}
		op = ws.OpContinuation
	}
}

// Append appends the bytes of f. They are written here by hand, so that the
// packages under test do not check themselves.
func (f Frame) Append(dst []byte) []byte {
	b0 := f.RSV<<4 | byte(f.Op)
	if !f.More {
		b0 |= 0x80
	}
	length := f.Declared
	if length == 0 {
		length = uint64(len(f.Payload))
	}
	masked := byte(0x80)
	if f.Unmasked {
		masked = 0
	}
	switch {
	case f.Wide == 8 || length > 0xffff:
		dst = binary.BigEndian.AppendUint64(append(dst, b0, masked|127), length)
	case f.Wide == 2 || length > 125:
		dst = binary.BigEndian.AppendUint16(append(dst, b0, masked|126), uint16(length))
	default:
		dst = append(dst, b0, masked|byte(length))
	}
	if f.Unmasked {
		return append(dst, f.Payload...)
	}
	key := f.Mask
	if key == [4]byte{} {
		key = defaultMask
	}
	dst = append(dst, key[:]...)
	at := len(dst)
	dst = append(dst, f.Payload...)
	for i := range dst[at:] {
		dst[at+i] ^= key[i%4]
	}
	return dst
}

// Encode returns the bytes of frames, one behind the other.
func Encode(frames ...Frame) (b []byte) {
	for _, f := range frames {
		b = f.Append(b)
	}
	return b
}

// CloseCode returns the code of a Close frame, 0 when it has none.
func (f Frame) CloseCode() wire.CloseCode {
	if len(f.Payload) < 2 {
		return 0
	}
	return wire.CloseCode(binary.BigEndian.Uint16(f.Payload))
}

// String shows f in the words of a test's failure.
func (f Frame) String() string {
	names := map[ws.OpCode]string{
		ws.OpContinuation: "continuation", ws.OpText: "text", ws.OpBinary: "binary",
		ws.OpClose: "Close", ws.OpPing: "ping", ws.OpPong: "pong",
	}
	if f.Op == ws.OpClose && len(f.Payload) >= 2 {
		return fmt.Sprintf("Close %d %.125q", f.CloseCode(), f.Payload[2:])
	}
	return fmt.Sprintf("%s of %d bytes %.80q", names[f.Op], len(f.Payload), f.Payload)
}

// frameReader reads a server's frames and holds it to RFC 6455.
type frameReader struct {
	br      *bufio.Reader
	message []byte    // what has come of a fragmented message
	op      ws.OpCode // its opcode; OpContinuation: none is under way
	closed  bool      // a Close frame has come
}

// next reads one frame. io.EOF means that the stream ended between two.
func (r *frameReader) next() (f Frame, err error) {
	var head [10]byte
	if _, err := io.ReadFull(r.br, head[:1]); err != nil {
		return f, err
	}
	if _, err := io.ReadFull(r.br, head[1:2]); err != nil {
		return f, cut(err)
	}
	f = Frame{Op: ws.OpCode(head[0] & 0x0f), More: head[0]&0x80 == 0, RSV: head[0] >> 4 & 7, Unmasked: head[1]&0x80 == 0}
	length := uint64(head[1] & 0x7f)
	if wide := map[uint64]int{126: 2, 127: 8}[length]; wide > 0 {
		if _, err := io.ReadFull(r.br, head[2:2+wide]); err != nil {
			return f, cut(err)
		}
		least := length // 16 bits begin at 126
		if wide == 2 {
			length = uint64(binary.BigEndian.Uint16(head[2:]))
		} else {
			length, least = binary.BigEndian.Uint64(head[2:]), 1<<16
		}
		if length < least {
			return f, fmt.Errorf("length %d is not in its shortest form", length)
		}
	}
	if err := r.checkHeader(f, length); err != nil {
		return f, err
	}
	// A buffer that grows with what arrives: the length is only a claim.
	var payload bytes.Buffer
	if _, err := io.CopyN(&payload, r.br, int64(length)); err != nil {
		return f, cut(err)
	}
	f.Payload = payload.Bytes()
	return f, r.checkPayload(f)
}

// cut makes an end inside a frame an error of its own.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *frameReader) checkHeader(f Frame, length uint64) error {
	switch {
	case r.closed:
		return errors.New("a frame behind the Close frame")
	case !f.Unmasked:
		return errors.New("a server's frame is masked")
	case f.RSV != 0:
		return fmt.Errorf("RSV is %d without an extension", f.RSV)
	case f.Op.IsReserved():
		return fmt.Errorf("opcode %d is reserved", f.Op)
	case f.Op.IsControl() && f.More:
		return errors.New("a fragmented control frame")
	case f.Op.IsControl() && length > 125:
		return fmt.Errorf("a control frame of %d bytes", length)
	case f.Op == ws.OpContinuation && r.op == ws.OpContinuation:
		return errors.New("a continuation of nothing")
	case f.Op.IsData() && f.Op != ws.OpContinuation && r.op != ws.OpContinuation:
		return errors.New("a new message inside a fragmented one")
	case length > maxPayload:
		return fmt.Errorf("a frame of %d bytes", length)
	}
	return nil
}

func (r *frameReader) checkPayload(f Frame) error {
	switch f.Op {
	case ws.OpClose:
		r.closed = true
		switch {
		case len(f.Payload) == 1:
			return errors.New("half a close code")
		case len(f.Payload) > 1 && !f.CloseCode().ValidReceived():
			return fmt.Errorf("close code %d may not be sent", f.CloseCode())
		case len(f.Payload) > 1 && !utf8.Valid(f.Payload[2:]):
			return errors.New("a close reason that is not UTF-8")
		}
		return nil
	case ws.OpPing, ws.OpPong:
		return nil
	case ws.OpText, ws.OpBinary:
		r.op, r.message = f.Op, nil
	}
	whole := f.Payload
	if f.More || f.Op == ws.OpContinuation {
		r.message = append(r.message, f.Payload...)
		whole = r.message
	}
	if f.More {
		return nil
	}
	text := r.op == ws.OpText
	r.op = ws.OpContinuation
	if text && !utf8.Valid(whole) {
		return errors.New("a text message that is not UTF-8")
	}
	return nil
}
