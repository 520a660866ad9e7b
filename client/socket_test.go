package client

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

func TestPingIsAnswered(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		_, p := s.dial("", Options{})
		for _, payload := range []string{"", "are you there", strings.Repeat("x", 125)} {
			p.raw(wire.AppendFrame(nil, ws.OpPing, []byte(payload)))
			if f := p.nextFrame(); f.Header.OpCode != ws.OpPong || string(f.Payload) != payload {
				t.Errorf("got opcode %d %q, want a Pong with %q", f.Header.OpCode, f.Payload, payload)
			}
		}
	})
}

func TestFragments(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		_, p := s.dial("", Options{})
		text := []byte(`{"topic":"t","data":"héllo"}`)
		for cut := range len(text) + 1 {
			var b []byte
			b = append(wire.AppendHeader(b, ws.OpText, false, cut), text[:cut]...)
			b = wire.AppendFrame(b, ws.OpPing, []byte("x"))
			b = append(wire.AppendHeader(b, ws.OpContinuation, true, len(text)-cut), text[cut:]...)
			p.raw(b)
			if f := p.nextFrame(); f.Header.OpCode != ws.OpPong {
				t.Fatalf("got opcode %d, want a Pong", f.Header.OpCode)
			}
			if m := s.nextEvent().Message; m == nil || string(m.Data) != `"héllo"` {
				t.Fatalf("cut at %d: %+v", cut, m)
			}
		}
	})
}

func TestStrict(t *testing.T) {
	const fin, mask = 0x80, 0x80
	frame := func(op ws.OpCode, payload string) string {
		return string(wire.AppendFrame(nil, op, []byte(payload)))
	}
	for _, tt := range []struct {
		name, bytes string
		code        wire.CloseCode
	}{
		{"masked", string([]byte{fin | 1, mask | 2, 1, 2, 3, 4, 'a', 'b'}), 1002},
		{"reserved data opcode", string([]byte{fin | 3, 0}), 1002},
		{"reserved control opcode", string([]byte{fin | 11, 0}), 1002},
		{"rsv1", string([]byte{fin | 0x40 | 1, 0}), 1002},
		{"fragmented ping", string([]byte{9, 0}), 1002},
		{"long ping", string([]byte{fin | 9, 126, 0, 126}), 1002},
		{"continuation of nothing", string([]byte{fin, 0}), 1002},
		{"text inside a message", string([]byte{1, 0, fin | 1, 0}), 1002},
		{"length in too many bytes", string([]byte{fin | 1, 126, 0, 2, '{', '}'}), 1002},
		{"length with the highest bit", string([]byte{fin | 1, 127, 0x80, 0, 0, 0, 0, 0, 0, 0}), 1002},
		{"binary", frame(ws.OpBinary, "{}"), 1003},
		{"not UTF-8", frame(ws.OpText, "{\"topic\":\"\xff\"}"), 1007},
		{"too big", frame(ws.OpText, strings.Repeat(" ", 1025)), 1009},
		{"huge", string([]byte{fin | 1, 127, 0x7f, 0, 0, 0, 0, 0, 0, 0}), 1009},
		{"too big in fragments", string([]byte{1, 126, 4, 0}) + strings.Repeat(" ", 1024) + string([]byte{fin, 1, ' '}), 1009},
		{"not JSON", frame(ws.OpText, "hello"), 1002},
		{"Close of one byte", frame(ws.OpClose, "x"), 1002},
		{"Close with 999", string(wire.AppendClose(nil, 999, "")), 1002},
		{"Close with 1005", string(wire.AppendClose(nil, 1005, "")), 1002},
		{"Close reason not UTF-8", frame(ws.OpClose, "\x03\xe9\xff"), 1002},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, s *fake) {
				c, p := s.dial("", Options{MaxMessage: 1024, NoReconnect: true})
				go func() { _, _ = io.WriteString(p.conn, tt.bytes) }() // the client may stop in the middle
				p.wantClose(tt.code)
				<-c.Done()
				err, ok := errors.AsType[*CloseError](c.Err())
				if !ok || err.Code != tt.code || err.Unwrap() == nil {
					t.Errorf("ended with %v", c.Err())
				}
				s.wantNoEvent()
			})
		})
	}
}

func TestCloseWithoutStatus(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		c, p := s.dial("", Options{})
		p.raw(wire.AppendFrame(nil, ws.OpClose, nil))
		if f := p.nextFrame(); f.Header.OpCode != ws.OpClose || len(f.Payload) != 0 {
			t.Errorf("got opcode %d %q, want an empty Close frame", f.Header.OpCode, f.Payload)
		}
		p.wantGone()
		<-c.Done()
		if err, ok := errors.AsType[*CloseError](c.Err()); !ok || err.Code != 1005 {
			t.Errorf("ended with %v", c.Err())
		}
	})
}

// A server whose message is refused can send it to its end and then read why.
func TestRefusedMessageIsNotReset(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		code wire.CloseCode
	}{
		{"too big", wire.AppendFrame(nil, ws.OpText, bytes.Repeat([]byte{' '}, 16<<20)), wire.CloseTooBig},
		{"binary", wire.AppendFrame(nil, ws.OpBinary, make([]byte, 16<<20)), wire.CloseUnsupported},
		{
			"not UTF-8, with more behind it",
			append(wire.AppendFrame(nil, ws.OpText, []byte("\xff")), make([]byte, 16<<20)...), wire.CloseInvalidData,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := make(chan error, 1)
			dial, _ := serveRaw(t, func(conn net.Conn) { seen <- sendAndReadClose(conn, tt.b, tt.code) })
			c, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{NetDial: dial, NoReconnect: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := <-seen; err != nil {
				t.Error(err)
			}
			<-c.Done()
			if err, ok := errors.AsType[*CloseError](c.Err()); !ok || err.Code != tt.code {
				t.Errorf("the client ended with %v", c.Err())
			}
		})
	}
}

// sendAndReadClose is a server that writes b to its end before it reads.
func sendAndReadClose(conn net.Conn, b []byte, code wire.CloseCode) error {
	u := ws.Upgrader{Protocol: func(name []byte) bool { return string(name) == tocsin.Subprotocol }}
	if _, err := u.Upgrade(conn); err != nil {
		return err
	}
	if _, err := conn.Write(wire.AppendFrame(nil, ws.OpText, []byte(welcome))); err != nil {
		return err
	}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	f, err := readFrame(conn)
	if err != nil {
		return err
	}
	if f.Header.OpCode != ws.OpClose || len(f.Payload) < 2 || wire.CloseCode(binary.BigEndian.Uint16(f.Payload)) != code {
		return fmt.Errorf("got opcode %d, %q, want Close %d", f.Header.OpCode, f.Payload, code)
	}
	return nil
}

// nowhere is a connection whose writes vanish.
type nowhere struct{ net.Conn }

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) Close() error                { return nil }

// messages reads all messages of a connection that brings what r has.
func messages(r io.Reader) (all [][]byte, end string) {
	near, far := net.Pipe()
	near.Close()
	far.Close()
	s := &socket{conn: nowhere{near}, br: bufio.NewReader(r), max: 1 << 16}
	for {
		m, err := s.message()
		if err != nil {
			return all, err.Error()
		}
		all = append(all, m)
	}
}

// Every byte sequence is judged, and judged the same however it arrives.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{0x81, 2, '{', '}', 0x89, 1, 'x', 0x88, 2, 3, 0xe8})
	f.Add([]byte{0x01, 1, '{', 0x80, 1, '}'})
	f.Add([]byte{0x81, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, end := messages(bytes.NewReader(b))
		single, singleEnd := messages(iotest.OneByteReader(bytes.NewReader(b)))
		if end != singleEnd || len(whole) != len(single) {
			t.Fatalf("whole: %d messages, %s; byte by byte: %d, %s", len(whole), end, len(single), singleEnd)
		}
		for i := range whole {
			if !bytes.Equal(whole[i], single[i]) {
				t.Fatalf("message %d is %q whole and %q byte by byte", i, whole[i], single[i])
			}
		}
	})
}
