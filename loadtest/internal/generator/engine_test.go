//go:build linux

package generator

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/wire"
)

// testEngine is an engine with open connections that have no sockets.
func testEngine(conns int) *engine {
	e := &engine{buf: make([]byte, 64<<10), ledger: newLedger(), now: machine.Now()}
	for range conns {
		e.conns = append(e.conns, conn{fd: -1, state: opened})
	}
	return e
}

func TestLateIsCountedExactly(t *testing.T) {
	e := testEngine(1)
	e.deliver.arm(e.conns, &order{Run: "r", Rounds: 100, Late: time.Duration(machine.Now() / 2)})
	for seq := 1; seq <= 100; seq++ {
		at := machine.Now()
		if seq%10 == 0 {
			at = 1 // when the machine was started
		}
		e.message(0, &e.conns[0], appendStamp(nil, "r", seq, at))
	}
	if e.total.Late != 10 || e.total.Delivered != 100 {
		t.Errorf("%d late of %d, want 10 of 100", e.total.Late, e.total.Delivered)
	}
}

// TestCountsAreExact mixes up the messages of many rounds at random and
// compares with counting them one by one.
func TestCountsAreExact(t *testing.T) {
	const conns, rounds = 7, 300
	e := testEngine(conns)
	e.deliver.arm(e.conns, &order{Run: "abc", Rounds: rounds, Late: time.Hour})
	rng := rand.New(rand.NewPCG(1, 2))
	var delivered, doubled, misordered uint64
	for i := range conns {
		seen, high := map[int]bool{}, 0
		for range 2 * rounds {
			seq := 1 + rng.IntN(rounds)
			e.message(i, &e.conns[i], appendStamp([]byte(`{"x":"`), "abc", seq, machine.Now()))
			switch {
			case seen[seq]:
				doubled++
			case seq < high:
				misordered++
				delivered++
			default:
				delivered++
			}
			if !seen[seq] {
				high = max(high, seq)
			}
			seen[seq] = true
		}
	}
	if c := e.total; c.Delivered != delivered || c.Doubled != doubled || c.Misordered != misordered {
		t.Errorf("delivered %d, doubled %d, out of order %d; want %d, %d, %d", c.Delivered, c.Doubled, c.Misordered, delivered, doubled, misordered)
	}
	e.message(0, &e.conns[0], appendStamp(nil, "another", 1, machine.Now()))
	e.message(0, &e.conns[0], appendStamp(nil, "abc", rounds+1, machine.Now()))
	if e.total.Delivered != delivered || e.total.Doubled != doubled {
		t.Error("a message of another run was counted")
	}
}

// TestHistogramsAreMerged sends random latencies through the histograms of
// three workers and their merging, and compares with the sorted values.
func TestHistogramsAreMerged(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	merged := NewHistogram()
	var values []float64
	for range 3 {
		e := testEngine(0)
		for range 20000 {
			v := int64(math.Exp(rng.Float64()*15) * 1000) // 1 µs to 3 s
			e.record(HistDelivery, v)
			values = append(values, float64(v))
		}
		b, err := e.hists[HistDelivery].Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			t.Fatal(err)
		}
		h, err := hdrhistogram.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		merged.Merge(h)
	}
	slices.Sort(values)
	for _, at := range []float64{0, 50, 90, 99, 99.9, 100} {
		rank := max(1, int(math.Ceil(at/100*float64(len(values)))))
		want := values[rank-1]
		got := float64(merged.ValueAtQuantile(at))
		if math.Abs(got-want) > want/1000+1000 { // 0.1 %, and microseconds
			t.Errorf("%v %% are within %v ns, of the sorted values it is %v", at, got, want)
		}
	}
}

// TestPushesAreCountedExactly compares with counting one by one.
func TestPushesAreCountedExactly(t *testing.T) {
	e := testEngine(3)
	e.plan.First = 10
	e.unicast.expect(&e.ledger, e.conns, &order{Run: "run"})
	say := func(i, n, to int) {
		e.message(i, &e.conns[i], appendStamp([]byte(`{"data":"`), "run", n, int64(to), machine.Now()))
	}
	say(0, 7, 10)
	say(0, 9, 10)
	say(0, 8, 10) // out of order
	say(0, 9, 10) // doubled
	say(1, 1, 11)
	say(1, 2, 10)                                                  // foreign
	say(2, 100_000, 12)                                            // far ahead
	say(2, MaxPushes+1, 12)                                        // no number of ours
	say(2, 0, 12)                                                  // nor that
	e.message(2, &e.conns[2], appendStamp(nil, "other", 3, 12, 1)) // of another round
	if c := e.total; c.Delivered != 5 || c.Doubled != 1 || c.Misordered != 1 || c.Foreign != 1 {
		t.Errorf("%+v", c)
	}
	for n, want := range map[int]bool{7: true, 8: true, 9: true, 1: true, 2: false, 3: false, 100_000: true, 99_999: false, 1 << 40: false} {
		if has(e.unicast.came, n) != want {
			t.Errorf("push %d: came is %v", n, !want)
		}
	}
	e.unicast.expect(&e.ledger, e.conns, &order{Run: "next"})
	if len(e.unicast.came) != 0 || e.conns[0].high != 0 {
		t.Error("the next round begins with what came in the last")
	}
}

// TestFullSocketIsNotTheGeneratorsLag has a message leave late because the
// server did not read.
func TestFullSocketIsNotTheGeneratorsLag(t *testing.T) {
	e := testEngine(1)
	e.echo = echo{order: 1, active: 1, rate: 1000, start: machine.Now() - int64(time.Second), end: never, next: 1, frame: []byte("late")}
	_ = e.echo.catchUp(&e.ledger, 0, &e.conns[0]) // it has no socket
	if n := e.hists[HistLag].TotalCount(); n != 0 {
		t.Errorf("%d of them count as its own lag", n)
	}
}

// stream is what comes from a server: the head, a welcome, a ping, a message in
// pieces, and the messages 1 to rounds.
func stream(e *engine, rounds int) []byte {
	var key [24]byte
	b := append([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "), floor.AppendAccept(nil, e.seed.appendKey(key[:0], 0))...)
	b = append(b, "\r\n\r\n"...)
	b = wire.AppendFrame(b, ws.OpText, []byte(`{"welcome":{"conn":"x"}}`))
	b = wire.AppendFrame(b, ws.OpPong, []byte("?"))
	for seq := 1; seq <= rounds; seq++ {
		m := append(appendStamp([]byte(`{"topic":"t","data":"`), "run", seq, machine.Now()), bytes.Repeat([]byte("."), seq%200)...)
		if seq%3 == 0 {
			b = append(wire.AppendHeader(b, ws.OpText, false, 30), m[:30]...)
			b = wire.AppendFrame(b, ws.OpPong, nil)
			b = append(wire.AppendHeader(b, ws.OpContinuation, true, len(m)-30), m[30:]...)
			continue
		}
		b = wire.AppendFrame(b, ws.OpText, m)
	}
	return b
}

func asking(rounds int) *engine {
	e := testEngine(1)
	e.conns[0].state = asked
	e.dial.flying, e.dial.pending = 1, 1
	e.deliver.arm(e.conns, &order{Run: "run", Rounds: rounds, Late: time.Hour})
	return e
}

// TestEverySplit cuts a stream in two at every byte.
func TestEverySplit(t *testing.T) {
	const rounds = 6
	whole := stream(asking(rounds), rounds)
	for cut := range whole {
		e := asking(rounds)
		for _, part := range [][]byte{whole[:cut], whole[cut:]} {
			if len(part) > 0 && !e.take(0, &e.conns[0], bytes.Clone(part)) {
				t.Fatalf("cut at %d: the connection was given up: %v %v", cut, e.total.Failures, e.total.Lost)
			}
		}
		if e.total.Delivered != rounds || e.total.Messages != rounds+1 || e.total.Misordered+e.total.Doubled != 0 || e.conns[0].extra != nil {
			t.Fatalf("cut at %d: %+v, extra %v", cut, e.total, e.conns[0].extra)
		}
	}
}

// FuzzTake feeds a worker what a server must not send.
func FuzzTake(f *testing.F) {
	f.Add(stream(asking(4), 4), uint8(7))
	f.Add([]byte("HTTP/1.1 503 Service Unavailable\r\n\r\n"), uint8(3))
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), uint8(1))
	f.Add([]byte("HTTP/1. 101ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n\x89\x0f00000000000000000"), uint8('%')) // the pong cannot be sent
	hists := testEngine(0).hists                                                                          // five large ones
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		e := &engine{ledger: ledger{hists: hists}, conns: []conn{{fd: -1, state: asked}}}
		e.dial.flying, e.dial.pending = 1, 1
		e.deliver.arm(e.conns, &order{Run: "run", Rounds: 4, Late: time.Hour})
		for size := int(step) + 1; len(b) > 0; {
			n := min(size, len(b))
			if !e.take(0, &e.conns[0], bytes.Clone(b[:n])) {
				break
			}
			b = b[n:]
		}
		if c := e.total; c.Delivered > 4 || c.Open < 0 || c.Open > 1 || e.dial.pending < 0 {
			t.Errorf("%+v", c)
		}
	})
}

func TestTakeDoesNotAllocate(t *testing.T) {
	e := testEngine(1)
	e.deliver.arm(e.conns, &order{Run: "run", Rounds: 1000, Late: time.Hour})
	frame := wire.AppendFrame(nil, ws.OpText, appendStamp([]byte(`{"topic":"t","seq":1,"data":"`), "run", 5, machine.Now()))
	if n := testing.AllocsPerRun(1000, func() { e.take(0, &e.conns[0], frame) }); n != 0 {
		t.Errorf("%v allocations a delivery", n)
	}
}

// TestConnIsSmall keeps the generator able to hold a million.
func TestConnIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(conn{}); size > 48 {
		t.Errorf("a connection has %d bytes, want at most 48", size)
	}
}

func TestRequestIsCut(t *testing.T) {
	if got := string(parseRequest("a{n}b{x}c{key}{n").append(nil, 7, []byte("K"))); got != "a7b{x}cK{n" {
		t.Errorf("request %q", got)
	}
}
