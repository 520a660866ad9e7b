package wire_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
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
var limits = wire.Limits{MaxMessage: 200, MaxFrames: 5}

// events feeds stream to a reader in the given pieces; what is behind them is
// one more. It fails if more is kept than was received or is allowed. If moving
// is set, each piece that finds nothing unfinished has a reader of its own, from
// which another takes what it could not finish.
func events(t *testing.T, stream, pieces []byte, moving bool) (out []event) {
	t.Helper()
	var kept wire.Reader
	stream = bytes.Clone(stream) // the reader unmasks in place
	received := 0
	for i := 0; len(stream) > 0; i++ {
		n := len(stream)
		if i < len(pieces) {
			n = min(n, 1+int(pieces[i]))
		}
		b := stream[:n]
		stream = stream[n:]
		received += n
		var fresh wire.Reader
		r := &kept
		if moving && kept.Empty() {
			r = &fresh
		}
		for len(b) > 0 {
			f, n, done, bad := r.Next(b, limits)
			if bad.Code != 0 {
				return append(out, event{bad: bad.Code})
			}
			b = b[n:]
			wantBounded(t, r, received)
			if done && n == 0 {
				t.Fatal("a frame of no bytes")
			}
			if !done {
				break
			}
			out = append(out, event{op: f.Op, payload: string(f.Payload)})
		}
		if len(b) > 0 {
			t.Fatalf("%d bytes were not taken", len(b))
		}
		if r == &fresh {
			moved(t, r, &kept)
		}
	}
	return out
}

// wantBounded wants r to keep no more than was received, nor than is allowed.
func wantBounded(t *testing.T, r *wire.Reader, received int) {
	t.Helper()
	message, control, header := wire.Kept(r)
	kept := message + control + header
	if message > limits.MaxMessage || control > ws.MaxControlFramePayloadSize || kept > min(received, limits.MaxMessage+wire.MaxHeader+ws.MaxControlFramePayloadSize) {
		t.Fatalf("%d bytes kept of %d: message %d, control %d, header %d", kept, received, message, control, header)
	}
	if r.Empty() && kept > 0 {
		t.Fatalf("empty with %d bytes", kept)
	}
}

// moved moves what is unfinished in r and wants nothing to be lost.
func moved(t *testing.T, r, to *wire.Reader) {
	t.Helper()
	was := fmt.Sprint(r.Empty(), r.InMessage())
	before := fmt.Sprint(wire.Kept(r))
	r.MoveTo(to)
	if is := fmt.Sprint(to.Empty(), to.InMessage()); is != was || fmt.Sprint(wire.Kept(to)) != before {
		t.Fatalf("%s with %s became %s with %v", was, before, is, fmt.Sprint(wire.Kept(to)))
	}
	if !r.Empty() || r.InMessage() {
		t.Fatal("a reader is not empty after its move")
	}
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
		want := events(t, stream, nil, false)
		for _, moving := range []bool{false, true} {
			if got := events(t, stream, pieces, moving); !slices.Equal(got, want) {
				t.Fatalf("in pieces %v, moving %v: %v, at once %v", pieces, moving, got, want)
			}
			if got := events(t, stream, make([]byte, len(stream)), moving); !slices.Equal(got, want) {
				t.Fatalf("byte by byte, moving %v: %v, at once %v", moving, got, want)
			}
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
		for _, moving := range []bool{false, true} {
			if got := events(t, stream, pieces, moving); !slices.Equal(got, want) {
				t.Fatalf("%v in pieces %v, moving %v: %v, want %v", frames, pieces, moving, got, want)
			}
		}
	}
}

// size returns n in the long run, TOCSIN_FULL=1, and a tenth of it otherwise.
func size(n int) int {
	if os.Getenv("TOCSIN_FULL") != "" {
		return n
	}
	return (n + 9) / 10
}

// checkUTF8 writes b in pieces and wants the verdict in the piece with the
// first bad byte, and at the end that of utf8.Valid.
func checkUTF8(t *testing.T, b, pieces []byte) {
	t.Helper()
	var u wire.UTF8Tail
	bad := wstest.BadUTF8(b)
	for at, i := 0, 0; at < len(b); i++ {
		n := len(b) - at
		if i < len(pieces) {
			n = min(n, int(pieces[i])) // an empty piece too
		}
		ok := u.Write(b[at : at+n])
		at += n
		if fine := bad < 0 || bad >= at; ok != fine {
			t.Fatalf("%q up to %d is %v, want %v (pieces %v)", b, at, ok, fine, pieces)
		} else if !ok {
			return
		}
	}
	if whole := u.Whole(); whole != utf8.Valid(b) {
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
	limits := wire.Limits{MaxMessage: 64 << 10, MaxFrames: 128}
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
				var r wire.Reader
				var bad wire.Fault // its sentence may cost an allocation
				allocs := testing.AllocsPerRun(1, func() {
					r = wire.Reader{}
					_, _, _, bad = r.Next(header, limits)
				})
				message, control, _ := wire.Kept(&r)
				if bad.Code != want || allocs > 1 || message+control > 0 {
					t.Errorf("opcode %d with length %d: close %d, want %d; %v allocations, %d bytes kept", op, length, bad.Code, want, allocs, message+control)
				}
			}
		}
	}
}

// docs/faults.md X1: what a continuation declares is held against what is left
// of the limit, up to the lengths that would wrap if they were added to it.
func TestContinuationIsJudgedByItsHeader(t *testing.T) {
	limits := wire.Limits{MaxMessage: 64 << 10, MaxFrames: 128}
	for _, had := range []int{1, 2, 125, 126, 40_000, limits.MaxMessage - 1, limits.MaxMessage} {
		left := uint64(limits.MaxMessage - had)
		lengths := []uint64{left + 1, left + 2, 1 << 31, 1 << 32, 1<<62 - 1, 1 << 62}
		for n := range uint64(4) {
			lengths = append(lengths, 1<<63-uint64(had)-1+n, 1<<63-1-n)
		}
		for _, length := range lengths {
			if length >= 1<<63 {
				continue // TestFrameIsJudgedByItsHeader has those
			}
			var r wire.Reader
			first := wstest.Frame{Op: ws.OpBinary, Payload: make([]byte, had), More: true}.Append(nil)
			next := wstest.Frame{Op: ws.OpContinuation, Declared: length}.Append(nil)
			if _, n, _, bad := r.Next(first, limits); bad.Code != 0 || n != len(first) {
				t.Fatalf("a fragment of %d bytes: %v", had, bad)
			}
			for cut := range next {
				r := r // each split of the header
				_, _, _, bad := r.Next(next[:cut:cut], limits)
				if bad.Code == 0 {
					_, _, _, bad = r.Next(next[cut:], limits)
				}
				if message, _, _ := wire.Kept(&r); bad.Code != wire.CloseTooBig || message != had {
					t.Fatalf("%d bytes, then a continuation of %d split at %d: close %d, %d bytes kept", had, length, cut, bad.Code, message)
				}
			}
		}
	}
}

// The parser counts frames, empty ones too (docs/faults.md W2).
func TestManyFragments(t *testing.T) {
	limits := wire.Limits{MaxMessage: 64 << 10, MaxFrames: 128}
	var r wire.Reader
	empty := wstest.Frame{Op: ws.OpContinuation, More: true}.Append(nil)
	first := wstest.Frame{Op: ws.OpText, More: true}.Append(nil)
	for i := 1; ; i++ {
		b := empty
		if i == 1 {
			b = first
		}
		if _, _, _, bad := r.Next(b, limits); bad.Code != 0 {
			if i != 129 || bad.Code != wire.ClosePolicy {
				t.Errorf("frame %d: %v", i, bad)
			}
			return
		}
	}
}

// A reader on the stack costs no allocation, nor does it to begin one that a
// reader with a buffer goes on with.
func TestReaderAllocatesNothing(t *testing.T) {
	limits := wire.Limits{MaxMessage: 64 << 10, MaxFrames: 128}
	said := strings.Repeat("é", 60)
	text := wstest.Text(said).Append(nil)
	ping := wstest.Ping("p").Append(nil)
	stream := slices.Concat(text, ping, text)
	b := make([]byte, len(stream))
	if n := testing.AllocsPerRun(100, func() {
		copy(b, stream)
		var r wire.Reader
		for rest := b; len(rest) > 0; {
			_, n, done, bad := r.Next(rest, limits)
			if !done || bad.Code != 0 {
				t.Fatal("not taken whole")
			}
			rest = rest[n:]
		}
	}); n != 0 {
		t.Errorf("%v allocations for three frames", n)
	}
	var kept wire.Reader
	if n := testing.AllocsPerRun(100, func() {
		copy(b, stream)
		var r wire.Reader
		if _, n, done, bad := r.Next(b[:3], limits); n != 3 || done || bad.Code != 0 {
			t.Fatal("half a header is not that")
		}
		r.MoveTo(&kept)
		if _, n, done, bad := kept.Next(b[3:50], limits); n != 47 || done || bad.Code != 0 {
			t.Fatal("half a message is not that")
		}
		if f, _, done, bad := kept.Next(b[50:len(text)], limits); !done || bad.Code != 0 || string(f.Payload) != said {
			t.Fatal("not read whole")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a message in three pieces", n)
	}
}

// What a reader keeps between messages is what its owner says.
func TestReaderLetsGoOfBuffers(t *testing.T) {
	limits := wire.Limits{MaxMessage: 64 << 10, MaxFrames: 128}
	begin := func(n int) *wire.Reader {
		var r wire.Reader
		b := wstest.Encode(wstest.Frame{Op: ws.OpBinary, Payload: make([]byte, n), More: true}, wstest.Ping("half of it"))
		if _, _, done, bad := r.Next(b[:len(b)-1], limits); done || bad.Code != 0 || r.Empty() || !r.InMessage() {
			t.Fatal("nothing is unfinished")
		}
		return &r
	}
	end := func(r *wire.Reader) {
		b := wstest.Encode(wstest.Ping("half of it"), wstest.Frame{Op: ws.OpContinuation})
		b = b[len(wstest.Ping("half of it").Append(nil))-1:]
		for len(b) > 0 {
			_, n, done, bad := r.Next(b, limits)
			if !done || bad.Code != 0 {
				t.Fatal("the rest is not read")
			}
			b = b[n:]
		}
		if !r.Empty() || r.InMessage() {
			t.Fatal("something is unfinished")
		}
	}
	want := func(when string, r *wire.Reader, message, control bool) {
		t.Helper()
		if m, c := wire.Buffers(r); m > 0 != message || c > 0 != control {
			t.Errorf("%s: buffers of %d and %d bytes", when, m, c)
		}
	}

	r := begin(1000)
	r.Trim()
	want("unfinished, trimmed", r, true, true)
	end(r)
	want("finished", r, true, true)
	new(wire.Reader).MoveTo(r)
	want("moved to by one without a message", r, true, false)
	from := begin(10)
	from.MoveTo(r)
	want("moved", from, false, false)
	end(r)
	want("moved to by one with a message", r, true, true)
	r.Trim()
	want("finished, trimmed", r, false, false)

	for n, kept := range map[int]bool{1000: true, 2000: false} {
		r := begin(n)
		r.Reset(1024)
		want(fmt.Sprintf("reset with %d bytes", n), r, kept, false)
		if !r.Empty() || r.InMessage() {
			t.Error("not empty after a reset")
		}
		if _, _, done, bad := r.Next(wstest.Text("a").Append(nil), limits); !done || bad.Code != 0 {
			t.Errorf("a reset reader reads %v", bad)
		}
	}
}

// BenchmarkReader reads a message with a reader on the stack, and with one
// that is kept.
func BenchmarkReader(b *testing.B) {
	limits := wire.Limits{MaxMessage: 64 << 10, MaxFrames: 128}
	for _, size := range []int{0, 64, 1024} {
		// Under a mask of zeros it can be unmasked again and again.
		frame := wire.AppendMasked(nil, ws.OpText, true, [4]byte{}, bytes.Repeat([]byte("x"), size))
		b.Run(fmt.Sprintf("fresh/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var r wire.Reader
				if _, _, done, _ := r.Next(frame, limits); !done {
					b.Fatal("not read")
				}
			}
		})
		b.Run(fmt.Sprintf("kept/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			var r wire.Reader
			for b.Loop() {
				if _, _, done, _ := r.Next(frame, limits); !done {
					b.Fatal("not read")
				}
			}
		})
	}
}
