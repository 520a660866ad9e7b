package wire

import (
	"encoding/binary"
	"strings"

	"github.com/gobwas/ws"
)

// MaxHeader is the longest frame header a client sends: two bytes, eight of
// length, four of mask. RFC 6455 section 5.2.
const MaxHeader = 14

// AppendHeader appends the header of an unmasked frame with n bytes of payload.
func AppendHeader(dst []byte, op ws.OpCode, fin bool, n int) []byte {
	b0 := byte(op)
	if fin {
		b0 |= 0x80
	}
	switch {
	case n < 126:
		return append(dst, b0, byte(n))
	case n <= 0xffff:
		return append(dst, b0, 126, byte(n>>8), byte(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, b0, 127), uint64(n))
	}
}

// AppendFrame appends a whole unmasked frame, as a server sends it.
func AppendFrame(dst []byte, op ws.OpCode, payload []byte) []byte {
	return append(AppendHeader(dst, op, true, len(payload)), payload...)
}

// AppendMasked appends a whole masked frame, as a client sends it.
func AppendMasked(dst []byte, op ws.OpCode, fin bool, mask [4]byte, payload []byte) []byte {
	at := len(dst) + 1
	dst = AppendHeader(dst, op, fin, len(payload))
	dst[at] |= 0x80
	dst = append(append(dst, mask[:]...), payload...)
	ws.Cipher(dst[len(dst)-len(payload):], mask, 0)
	return dst
}

// AppendClose appends an unmasked Close frame. The reason is cut to the 123
// bytes that a control frame leaves for it, and is UTF-8 whatever it was.
func AppendClose(dst []byte, code CloseCode, reason string) []byte {
	reason = strings.ToValidUTF8(reason[:min(len(reason), ws.MaxControlFramePayloadSize-2)], "")
	dst = AppendHeader(dst, ws.OpClose, true, 2+len(reason))
	return append(append(dst, byte(code>>8), byte(code)), reason...)
}

// ParseHeader reads a frame header from the start of b and returns how many
// bytes it has; 0 means that b does not hold all of it. It judges nothing but
// a length with its highest bit set, which it reports as negative: for the
// rest there is [ws.CheckHeader].
func ParseHeader(b []byte) (h ws.Header, size int) {
	if len(b) < 2 {
		return h, 0
	}
	h.Fin = b[0]&0x80 != 0
	h.Rsv = b[0] >> 4 & 7
	h.OpCode = ws.OpCode(b[0] & 0x0f)
	h.Masked = b[1]&0x80 != 0
	size = 2
	switch n := b[1] & 0x7f; n {
	case 126:
		size = 4
	case 127:
		size = 10
	default:
		h.Length = int64(n)
	}
	lengthEnd := size
	if h.Masked {
		size += 4
	}
	if len(b) < size {
		return h, 0
	}
	switch lengthEnd {
	case 4:
		h.Length = int64(binary.BigEndian.Uint16(b[2:]))
	case 10:
		h.Length = int64(binary.BigEndian.Uint64(b[2:]))
	}
	if h.Masked {
		h.Mask = [4]byte(b[lengthEnd:])
	}
	return h, size
}
