package wstest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// serverFrame returns f as a server would send it.
func serverFrame(f Frame) string {
	f.Unmasked = true
	return string(f.Append(nil))
}

// readAll reads frames to the end or the first error.
func readAll(stream string) (frames []Frame, err error) {
	r := frameReader{br: bufio.NewReader(strings.NewReader(stream))}
	for {
		f, err := r.next()
		if err != nil {
			return frames, err
		}
		frames = append(frames, f)
	}
}

func TestGoodFrames(t *testing.T) {
	long := strings.Repeat("é", 40000)
	var stream strings.Builder
	sent := []Frame{
		Text(""), Text(strings.Repeat("x", 125)), Text(strings.Repeat("x", 126)), Text(strings.Repeat("x", 65535)), Text(long),
		Binary([]byte("\xff")), Ping("a"), Pong("b"),
	}
	sent = append(sent, Fragments(ws.OpText, []byte(long), 7)...)
	sent = append(sent, Frame{Op: ws.OpBinary, More: true}, Ping("between"), Frame{Op: ws.OpContinuation, Payload: []byte("\xff")})
	sent = append(sent, Close(wire.CloseNormal, "bye"))
	for _, f := range sent {
		stream.WriteString(serverFrame(f))
	}
	got, err := readAll(stream.String())
	if !errors.Is(err, io.EOF) || len(got) != len(sent) {
		t.Fatalf("read %d frames of %d: %v", len(got), len(sent), err)
	}
	for i, f := range sent {
		if got[i].Op != f.Op || got[i].More != f.More || !bytes.Equal(got[i].Payload, f.Payload) {
			t.Errorf("frame %d is %v, want %v", i, got[i], f)
		}
	}
}

func TestBadFrames(t *testing.T) {
	closed := serverFrame(Close(wire.CloseNormal, ""))
	for name, stream := range map[string]string{
		"masked":                      string(Text("a").Append(nil)),
		"rsv":                         serverFrame(Frame{Op: ws.OpText, RSV: 4}),
		"reserved opcode":             serverFrame(Frame{Op: 3}),
		"reserved control opcode":     serverFrame(Frame{Op: 0xb}),
		"fragmented ping":             serverFrame(Frame{Op: ws.OpPing, More: true}),
		"long ping":                   serverFrame(Ping(strings.Repeat("x", 126))),
		"16 bits for 125":             serverFrame(Frame{Op: ws.OpText, Payload: make([]byte, 125), Wide: 2}),
		"64 bits for 65535":           serverFrame(Frame{Op: ws.OpText, Payload: make([]byte, 65535), Wide: 8}),
		"huge":                        serverFrame(Frame{Op: ws.OpText, Declared: 1 << 40}),
		"highest bit of the length":   serverFrame(Frame{Op: ws.OpText, Declared: 1 << 63}),
		"stray continuation":          serverFrame(Frame{Op: ws.OpContinuation}),
		"continuation of a whole one": serverFrame(Text("a")) + serverFrame(Frame{Op: ws.OpContinuation}),
		"message in a message":        serverFrame(Frame{Op: ws.OpText, More: true}) + serverFrame(Text("a")),
		"text not UTF-8":              serverFrame(Text("\xff")),
		"fragments not UTF-8":         serverFrame(Frame{Op: ws.OpText, Payload: []byte("\xc3"), More: true}) + serverFrame(Frame{Op: ws.OpContinuation}),
		"half a close code":           serverFrame(Frame{Op: ws.OpClose, Payload: []byte{3}}),
		"close code 1005":             serverFrame(Close(1005, "")),
		"close reason not UTF-8":      serverFrame(Close(1000, "\xff")),
		"close behind close":          closed + closed,
		"text behind close":           closed + serverFrame(Text("a")),
		"half a header":               "\x81",
		"half a length":               "\x81\x7e\x00",
		"half a payload":              "\x81\x02a",
	} {
		if got, err := readAll(stream); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}
}

// TestAppend has gobwas read what this package writes by hand.
func TestAppend(t *testing.T) {
	for _, f := range []Frame{
		Text("hello"),
		{Op: ws.OpBinary, Payload: make([]byte, 126), More: true, RSV: 5, Mask: [4]byte{1, 2, 3, 4}},
		{Op: ws.OpPing, Payload: make([]byte, 70000)},
		{Op: ws.OpText, Payload: []byte("x"), Wide: 8, Unmasked: true},
		{Op: ws.OpText, Declared: 1 << 40},
	} {
		r := bytes.NewReader(f.Append(nil))
		h, err := ws.ReadHeader(r)
		length := max(uint64(len(f.Payload)), f.Declared)
		if err != nil || h.Fin == f.More || h.Rsv != f.RSV || h.OpCode != f.Op || h.Masked == f.Unmasked || uint64(h.Length) != length {
			t.Fatalf("%v reads as %+v, %v", f, h, err)
		}
		payload, _ := io.ReadAll(r)
		if h.Masked {
			ws.Cipher(payload, h.Mask, 0)
		}
		if !bytes.Equal(payload, f.Payload) {
			t.Errorf("%v reads back as %q", f, payload)
		}
	}
}
