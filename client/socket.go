package client

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// writeTimeout bounds one write; a socket that takes longer is given up.
const writeTimeout = 10 * time.Second

// socket is one WebSocket connection after the upgrade: checked messages in,
// masked frames out.
type socket struct {
	// Static after the welcome.
	conn    net.Conn
	max     int           // bytes of an inbound message
	silence time.Duration // after which the server is taken for gone; 0: never
	welcome wire.Welcome

	// Owned by the reading goroutine.
	br *bufio.Reader

	outMu sync.Mutex
	// Guarded by outMu.
	out    []byte // scratch
	closed bool   // a Close frame has left, and nothing follows it
}

// message returns the payload of the next text message. Control frames are
// answered on the way. Its error is a [*CloseError]; end comes next.
func (s *socket) message() ([]byte, error) {
	var payload bytes.Buffer
	state := ws.StateClientSide
	for {
		if s.silence > 0 {
			_ = s.conn.SetReadDeadline(time.Now().Add(s.silence)) // a closed socket says so below
		}
		h, err := s.header(state)
		if err != nil {
			return nil, err
		}
		if h.OpCode.IsControl() {
			if err := s.control(h); err != nil {
				return nil, err
			}
			continue
		}
		switch {
		case h.OpCode == ws.OpBinary:
			return nil, s.fail(wire.CloseUnsupported, errors.New("binary message"))
		case h.Length > int64(s.max-payload.Len()):
			return nil, s.fail(wire.CloseTooBig, fmt.Errorf("message over %d bytes, see Options.MaxMessage", s.max))
		}
		// The buffer grows with what arrives, not with what was declared.
		if _, err := io.CopyN(&payload, s.br, h.Length); err != nil {
			return nil, s.lost(err)
		}
		if !h.Fin {
			state = state.Set(ws.StateFragmented)
			continue
		}
		if !utf8.Valid(payload.Bytes()) {
			return nil, s.fail(wire.CloseInvalidData, errors.New("text is not UTF-8"))
		}
		return payload.Bytes(), nil
	}
}

// header reads and checks a frame header, RFC 6455 section 5.2: besides what
// gobwas judges, the length must be encoded in the fewest bytes.
func (s *socket) header(state ws.State) (ws.Header, error) {
	b, err := s.br.Peek(2)
	if err != nil {
		return ws.Header{}, s.lost(err)
	}
	if b[1]&0x80 != 0 {
		return ws.Header{}, s.fail(wire.CloseProtocolError, ws.ErrProtocolMaskUnexpected)
	}
	size := 2
	switch b[1] {
	case 126:
		size = 4
	case 127:
		size = 10
	}
	if b, err = s.br.Peek(size); err != nil {
		return ws.Header{}, s.lost(err)
	}
	h, _ := wire.ParseHeader(b)
	if h.Length < 0 {
		return h, s.fail(wire.CloseProtocolError, ws.ErrHeaderLengthMSB)
	}
	if err := ws.CheckHeader(h, state); err != nil {
		return h, s.fail(wire.CloseProtocolError, err)
	}
	if ws.HeaderSize(h) != size {
		return h, s.fail(wire.CloseProtocolError, errors.New("length is not minimally encoded"))
	}
	_, err = s.br.Discard(size)
	return h, err
}

// control answers a control frame; a Close ends the connection.
func (s *socket) control(h ws.Header) error {
	var buf [ws.MaxControlFramePayloadSize]byte
	payload := buf[:h.Length]
	if _, err := io.ReadFull(s.br, payload); err != nil {
		return s.lost(err)
	}
	switch h.OpCode {
	case ws.OpPing:
		if err := s.write(ws.OpPong, payload); err != nil {
			return s.lost(err)
		}
	case ws.OpClose:
		return s.closing(payload)
	}
	return nil
}

// closing answers the server's Close frame, RFC 6455 section 5.5.1.
func (s *socket) closing(payload []byte) error {
	if len(payload) == 0 {
		_ = s.write(ws.OpClose, nil) // the connection is over either way
		return &CloseError{Code: 1005, Reason: "no status"}
	}
	if len(payload) == 1 {
		return s.fail(wire.CloseProtocolError, errors.New("Close frame of one byte"))
	}
	code, reason := wire.CloseCode(binary.BigEndian.Uint16(payload)), payload[2:]
	if !code.ValidReceived() || !utf8.Valid(reason) {
		return s.fail(wire.CloseProtocolError, fmt.Errorf("Close frame with code %d, reason %q", uint16(code), reason))
	}
	_ = s.write(ws.OpClose, payload[:2])
	return &CloseError{Code: code, Reason: string(reason)}
}

// fail tells the server what is wrong with its bytes. Nothing is read after it.
func (s *socket) fail(code wire.CloseCode, cause error) error {
	s.close(code, cause.Error())
	return &CloseError{Code: code, Reason: "by the client", cause: cause}
}

// lost closes the socket because nothing can be read from it.
func (s *socket) lost(cause error) error {
	s.abort()
	return &CloseError{Code: 1006, Reason: "connection lost", cause: cause}
}

// close sends a Close frame; the reading goroutine sees the answer to it.
func (s *socket) close(code wire.CloseCode, reason string) {
	frame := wire.AppendClose(nil, code, reason)
	_ = s.write(ws.OpClose, frame[2:]) // a failed write has closed the socket
}

// end closes the socket after the server has closed it, RFC 6455 section 7.1.1,
// or after closeTimeout. What arrives meanwhile is dropped: a socket that is
// closed with unread bytes is reset, and the server may never see our Close
// frame. The reading goroutine calls it.
func (s *socket) end() {
	_ = s.conn.SetReadDeadline(time.Now().Add(closeTimeout)) // a closed socket says so below
	_, _ = io.Copy(io.Discard, s.conn)
	s.abort()
}

// abort closes the socket at once; the reading goroutine sees that.
func (s *socket) abort() { _ = s.conn.Close() }

// text sends a text frame.
func (s *socket) text(payload []byte) error { return s.write(ws.OpText, payload) }

// write sends one frame in one call. After a Close frame it sends nothing.
// Any goroutine calls it.
func (s *socket) write(op ws.OpCode, payload []byte) error {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = op == ws.OpClose
	var mask [4]byte
	binary.NativeEndian.PutUint32(mask[:], rand.Uint32()) // ChaCha8: not to be guessed, RFC 6455 section 10.3
	s.out = wire.AppendMasked(s.out[:0], op, true, mask, payload)
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // a closed socket says so below
	_, err := s.conn.Write(s.out)
	if err != nil {
		s.abort()
	}
	return err
}
