package server

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
)

// event is what a stream of frames means: a message, a control frame or the end.
type event struct {
	op      ws.OpCode
	payload string
	bad     wire.CloseCode
}

// limits are small, so that random streams meet them.
var limits = Config{MaxMessage: 200, MaxFrames: 5}

// events feeds stream to a half in the given pieces; what is behind them is
// one more. It fails if more is kept than was received or is allowed.
func events(t *testing.T, stream []byte, pieces []byte) (out []event) {
	t.Helper()
	var h half
	stream = bytes.Clone(stream) // take unmasks in place
	received := 0
	for i := 0; len(stream) > 0; i++ {
		n := len(stream)
		if i < len(pieces) {
			n = min(n, 1+int(pieces[i]))
		}
		b := stream[:n]
		stream = stream[n:]
		received += n
		for len(b) > 0 {
			f, n, done, bad := h.take(b, &limits)
			if bad.code != 0 {
				return append(out, event{bad: bad.code})
			}
			b = b[n:]
			kept := len(h.buf) + len(h.ctl) + int(h.have)
			if len(h.buf) > limits.MaxMessage || len(h.ctl) > ws.MaxControlFramePayloadSize || kept > min(received, limits.MaxMessage+wire.MaxHeader+ws.MaxControlFramePayloadSize) {
				t.Fatalf("%d bytes kept of %d: message %d, control %d, header %d", kept, received, len(h.buf), len(h.ctl), h.have)
			}
			if h.empty() && kept > 0 || done && n == 0 {
				t.Fatalf("empty %v with %d bytes, done %v after %d", h.empty(), kept, done, n)
			}
			if !done {
				break
			}
			out = append(out, event{op: f.op, payload: string(f.payload)})
		}
		if len(b) > 0 {
			t.Fatalf("%d bytes were not taken", len(b))
		}
	}
	return out
}

func FuzzFrameStream(f *testing.F) {
	long := strings.Repeat("aé€😀", 12)
	for _, frames := range [][]wstest.Frame{
		{wstest.Text("hello")},
		{wstest.Text(""), wstest.Ping(""), wstest.Close(wire.CloseNormal, "bye")},
		append(wstest.Fragments(ws.OpText, []byte(long), 25), wstest.Pong("x")),
		{{Op: ws.OpText, Payload: []byte("a"), More: true}, wstest.Ping(strings.Repeat("p", 125)), {Op: ws.OpContinuation, Payload: []byte("b")}},
		{{Op: ws.OpText, Payload: []byte("a\xff"), More: true}, {Op: ws.OpContinuation}},
		{{Op: ws.OpText, Payload: []byte("\xf0\x9f"), More: true}, {Op: ws.OpContinuation, Payload: []byte("\x98\x80")}},
		wstest.Fragments(ws.OpBinary, make([]byte, 60), 10),
		{{Op: ws.OpBinary, Declared: 201}},
		{{Op: ws.OpBinary, Declared: 1 << 63}},
		{{Op: ws.OpContinuation}},
		{{Op: ws.OpText, RSV: 4}},
		{{Op: 3}},
		{{Op: ws.OpPing, More: true}},
		{{Op: ws.OpText, Unmasked: true}},
		{{Op: ws.OpText, Payload: []byte("wide"), Wide: 8}},
	} {
		stream := wstest.Encode(frames...)
		f.Add(stream, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		f.Add(stream[:len(stream)-1], []byte{5, 0, 1})
	}
	f.Fuzz(func(t *testing.T, stream, pieces []byte) {
		want := events(t, stream, nil)
		if got := events(t, stream, pieces); !slices.Equal(got, want) {
			t.Fatalf("in pieces %v: %v, at once %v", pieces, got, want)
		}
		if got := events(t, stream, make([]byte, len(stream))); !slices.Equal(got, want) {
			t.Fatalf("byte by byte: %v, at once %v", got, want)
		}
	})
}

// Random valid messages, cut into frames and pieces at random, are read as they
// were written (docs/faults.md W4).
func TestMessagesInPiecesAreReadAsWritten(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for range size(10_000) {
		var frames []wstest.Frame
		var want []event
		for range 1 + rng.IntN(4) {
			text := []byte(strings.Repeat([]string{"a", "é", "€", "😀"}[rng.IntN(4)], rng.IntN(50)))
			for i, f := range wstest.Fragments(ws.OpText, text, max(1+rng.IntN(60), len(text)/5+1)) {
				if i > 0 && rng.IntN(3) == 0 {
					frames = append(frames, wstest.Ping(fmt.Sprint(i)))
					want = append(want, event{op: ws.OpPing, payload: fmt.Sprint(i)})
				}
				f.Mask = [4]byte{byte(rng.Uint32()), 1, 2, byte(rng.Uint32())}
				frames = append(frames, f)
			}
			want = append(want, event{op: ws.OpText, payload: string(text)})
		}
		stream := wstest.Encode(frames...)
		pieces := make([]byte, rng.IntN(len(stream)))
		for i := range pieces {
			pieces[i] = byte(rng.IntN(1 + rng.IntN(40)))
		}
		if got := events(t, stream, pieces); !slices.Equal(got, want) {
			t.Fatalf("%v in pieces %v: %v, want %v", frames, pieces, got, want)
		}
	}
}

// badUTF8 returns the index of the first byte that no UTF-8 text can have
// there, or -1: table 3-7 of the Unicode standard, byte by byte.
func badUTF8(b []byte) int {
	need, low, high := 0, byte(0x80), byte(0xbf)
	for i, c := range b {
		if need > 0 {
			if c < low || c > high {
				return i
			}
			need--
			low, high = 0x80, 0xbf
			continue
		}
		switch {
		case c < 0x80:
		case c >= 0xc2 && c <= 0xdf:
			need = 1
		case c >= 0xe0 && c <= 0xef:
			need = 2
			switch c {
			case 0xe0:
				low = 0xa0
			case 0xed:
				high = 0x9f
			}
		case c >= 0xf0 && c <= 0xf4:
			need = 3
			switch c {
			case 0xf0:
				low = 0x90
			case 0xf4:
				high = 0x8f
			}
		default:
			return i
		}
	}
	return -1
}

// checkUTF8 writes b in pieces and wants the verdict in the piece with the
// first bad byte, and at the end that of utf8.Valid.
func checkUTF8(t *testing.T, b, pieces []byte) {
	t.Helper()
	var u utf8Tail
	bad := badUTF8(b)
	for at, i := 0, 0; at < len(b); i++ {
		n := len(b) - at
		if i < len(pieces) {
			n = min(n, int(pieces[i])) // an empty piece too
		}
		ok := u.write(b[at : at+n])
		at += n
		if fine := bad < 0 || bad >= at; ok != fine {
			t.Fatalf("%q up to %d is %v, want %v (pieces %v)", b, at, ok, fine, pieces)
		} else if !ok {
			return
		}
	}
	if whole := u.n == 0; whole != utf8.Valid(b) {
		t.Fatalf("%q is whole: %v", b, whole)
	}
}

func FuzzUTF8(f *testing.F) {
	for _, s := range []string{"", "aé€😀", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf0\x9f\x98", "\xff", "a\xe2\x82", "\xf8\x88\x80\x80\x80", "€\x80"} {
		f.Add([]byte(s), []byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
		f.Add([]byte(s), []byte{0, 2, 0, 3})
	}
	f.Fuzz(checkUTF8)
}

// Random invalid sequences, split at random, fail at the first bad byte
// (docs/faults.md W6).
func TestInvalidUTF8FailsAtItsFirstBadByte(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	for range size(100_000) {
		b := []byte(strings.Repeat("aé€😀", 1+rng.IntN(4)))
		for range 1 + rng.IntN(2) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		pieces := make([]byte, len(b))
		for i := range pieces {
			pieces[i] = byte(rng.IntN(5))
		}
		checkUTF8(t, b, pieces)
	}
}

// A frame is judged by its header alone, which costs nothing, whatever length
// it declares (docs/faults.md W1).
func TestFrameIsJudgedByItsHeader(t *testing.T) {
	cfg := Config{MaxMessage: 64 << 10, MaxFrames: 128}
	for _, op := range []ws.OpCode{ws.OpText, ws.OpBinary, ws.OpPing} {
		for bit := range 64 {
			for _, length := range []uint64{1<<bit - 1, 1 << bit, 1<<bit + 1} {
				header := wstest.Frame{Op: op, Declared: max(length, 1)}.Append(nil)
				if length >= 1<<63 {
					header = wstest.Frame{Op: op, Declared: length}.Append(nil)
				}
				want := wire.CloseCode(0)
				switch {
				case op.IsControl() && length > 125, length >= 1<<63:
					want = wire.CloseProtocolError
				case length > 64<<10:
					want = wire.CloseTooBig
				}
				var h half
				var bad fault // its sentence may cost an allocation
				allocs := testing.AllocsPerRun(1, func() {
					h = half{}
					_, _, _, bad = h.take(header, &cfg)
				})
				if bad.code != want || allocs > 1 || len(h.buf)+len(h.ctl) > 0 {
					t.Errorf("opcode %d with length %d: close %d, want %d; %v allocations, %d bytes kept", op, length, bad.code, want, allocs, len(h.buf)+len(h.ctl))
				}
			}
		}
	}
}

// docs/faults.md X1: what a continuation declares is held against what is left
// of the limit, up to the lengths that would wrap if they were added to it.
func TestContinuationIsJudgedByItsHeader(t *testing.T) {
	cfg := Config{MaxMessage: 64 << 10, MaxFrames: 128}
	for _, had := range []int{1, 2, 125, 126, 40_000, cfg.MaxMessage - 1, cfg.MaxMessage} {
		left := uint64(cfg.MaxMessage - had)
		lengths := []uint64{left + 1, left + 2, 1 << 31, 1 << 32, 1<<62 - 1, 1 << 62}
		for n := range uint64(4) {
			lengths = append(lengths, 1<<63-uint64(had)-1+n, 1<<63-1-n)
		}
		for _, length := range lengths {
			if length >= 1<<63 {
				continue // TestFrameIsJudgedByItsHeader has those
			}
			var h half
			first := wstest.Frame{Op: ws.OpBinary, Payload: make([]byte, had), More: true}.Append(nil)
			next := wstest.Frame{Op: ws.OpContinuation, Declared: length}.Append(nil)
			if _, n, _, bad := h.take(first, &cfg); bad.code != 0 || n != len(first) {
				t.Fatalf("a fragment of %d bytes: %v", had, bad)
			}
			for cut := range next {
				h := h // each split of the header
				_, _, _, bad := h.take(next[:cut:cut], &cfg)
				if bad.code == 0 {
					_, _, _, bad = h.take(next[cut:], &cfg)
				}
				if bad.code != wire.CloseTooBig || len(h.buf) != had {
					t.Fatalf("%d bytes, then a continuation of %d split at %d: close %d, %d bytes kept", had, length, cut, bad.code, len(h.buf))
				}
			}
		}
	}
}

// The parser counts frames, empty ones too (docs/faults.md W2).
func TestManyFragments(t *testing.T) {
	cfg := Config{MaxMessage: 64 << 10, MaxFrames: 128}
	var h half
	empty := wstest.Frame{Op: ws.OpContinuation, More: true}.Append(nil)
	first := wstest.Frame{Op: ws.OpText, More: true}.Append(nil)
	for i := 1; ; i++ {
		b := empty
		if i == 1 {
			b = first
		}
		if _, _, _, bad := h.take(b, &cfg); bad.code != 0 {
			if i != 129 || bad.code != wire.ClosePolicy {
				t.Errorf("frame %d: %v", i, bad)
			}
			return
		}
	}
}

func TestTakeAllocatesNothing(t *testing.T) {
	cfg := Config{MaxMessage: 64 << 10, MaxFrames: 128}
	text := wstest.Text(strings.Repeat("é", 60)).Append(nil)
	ping := wstest.Ping("p").Append(nil)
	stream := slices.Concat(text, ping, text)
	b := make([]byte, len(stream))
	var h half
	if n := testing.AllocsPerRun(100, func() {
		copy(b, stream)
		for rest := b; len(rest) > 0; {
			_, n, done, bad := h.take(rest, &cfg)
			if !done || bad.code != 0 {
				t.Fatal("not taken whole")
			}
			rest = rest[n:]
		}
	}); n != 0 {
		t.Errorf("%v allocations for three frames", n)
	}
}
