package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/gobwas/ws"
)

var (
	frameLengths = []int{0, 1, 125, 126, 127, 65535, 65536, 70000}
	frameOps     = []ws.OpCode{ws.OpContinuation, ws.OpText, ws.OpBinary, ws.OpClose, ws.OpPing, ws.OpPong}
)

// TestFramesReadBack has gobwas read what this package writes.
func TestFramesReadBack(t *testing.T) {
	mask := [4]byte{0xa1, 0x02, 0xff, 0x00}
	for _, n := range frameLengths {
		payload := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
		for _, op := range frameOps {
			for _, fin := range []bool{true, false} {
				plain := append(AppendHeader([]byte("before"), op, fin, n), payload...)
				wantFrame(t, plain[6:], ws.Header{Fin: fin, OpCode: op, Length: int64(n)}, payload)
				masked := AppendMasked([]byte("before"), op, fin, mask, payload)
				wantFrame(t, masked[6:], ws.Header{Fin: fin, OpCode: op, Masked: true, Mask: mask, Length: int64(n)}, payload)
			}
			wantFrame(t, AppendFrame(nil, op, payload), ws.Header{Fin: true, OpCode: op, Length: int64(n)}, payload)
		}
	}
}

func wantFrame(t *testing.T, b []byte, want ws.Header, payload []byte) {
	t.Helper()
	r := bytes.NewReader(b)
	h, err := ws.ReadHeader(r)
	if err != nil || h != want {
		t.Fatalf("header %+v, %v, want %+v", h, err, want)
	}
	got := b[len(b)-r.Len():]
	if h.Masked {
		got = bytes.Clone(got)
		ws.Cipher(got, h.Mask, 0)
	}
	if !bytes.Equal(got, payload) {
		t.Fatalf("%d bytes of payload differ from the %d written", len(got), len(payload))
	}
}

// TestParseHeaderEveryStart reads every combination of the first two bytes,
// and every prefix of it.
func TestParseHeaderEveryStart(t *testing.T) {
	b := []byte{0, 0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03, 0x11, 0x22, 0x33, 0x44, 0x55}
	for start := range 1 << 16 {
		b[0], b[1] = byte(start>>8), byte(start)
		for n := range b {
			sameHeader(t, b[:n])
		}
	}
}

// sameHeader wants ParseHeader to say of b what gobwas says. The one
// difference: a length with its highest bit set is negative here and an error
// there.
func sameHeader(t *testing.T, b []byte) {
	t.Helper()
	r := bytes.NewReader(b)
	want, err := ws.ReadHeader(r)
	got, size := ParseHeader(b)
	switch {
	case errors.Is(err, ws.ErrHeaderLengthMSB):
		if size == 0 || got.Length >= 0 {
			t.Fatalf("ParseHeader(%x) = %+v, %d, want a negative length", b, got, size)
		}
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		if size != 0 {
			t.Fatalf("ParseHeader(%x) = %+v, %d, want 0: the header is not whole", b, got, size)
		}
	case err != nil:
		t.Fatalf("ReadHeader(%x): %v", b, err)
	case got != want || size != len(b)-r.Len() || size > MaxHeader:
		t.Fatalf("ParseHeader(%x) = %+v, %d, want %+v, %d", b, got, size, want, len(b)-r.Len())
	}
}

func FuzzFrameHeader(f *testing.F) {
	for _, n := range frameLengths {
		f.Add(AppendHeader(nil, ws.OpText, true, n))
		f.Add(AppendMasked(nil, ws.OpContinuation, false, [4]byte{1, 2, 3, 4}, make([]byte, n))[:min(n+6, MaxHeader)])
	}
	for _, s := range []string{
		"", "\x81", "\xff\xff", "\x81\x7e\x00", "\x81\x7e\x00\x05", "\x81\xfe\xff\xff\x01\x02\x03",
		"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00", "\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04",
		"\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x01", "\xf3\x80\x00\x00\x00\x00", "GET / HTTP/1.1\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		sameHeader(t, b)
		h, size := ParseHeader(b)
		if size == 0 || h.Length < 0 {
			return
		}
		// Of headers in the shortest form, what was read is written again.
		var again bytes.Buffer
		if err := ws.WriteHeader(&again, h); err != nil {
			t.Fatal(err)
		}
		if shortest := again.Len() == size; shortest && !bytes.Equal(again.Bytes(), b[:size]) {
			t.Fatalf("%x reads as %+v, which is written as %x", b[:size], h, again.Bytes())
		}
		if h2, size2 := ParseHeader(again.Bytes()); h2 != h || size2 > size {
			t.Fatalf("%+v reads back as %+v", h, h2)
		}
		if h.Rsv == 0 && !h.Masked && h.Length <= 1<<40 {
			if mine := AppendHeader(nil, h.OpCode, h.Fin, int(h.Length)); !bytes.Equal(mine, again.Bytes()) {
				t.Fatalf("AppendHeader of %+v is %x, want %x", h, mine, again.Bytes())
			}
		}
	})
}
