package server_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// echoServer starts a server that sends every data message back, and returns
// its address. It ends with the test, and has to end well.
func echoServer(t *testing.T) string {
	t.Helper()
	return startServer(t, server.Config{
		Dev:            true,
		MaxControl:     100,
		MaxMessage:     16 << 20,
		MaxFrames:      1 << 17,
		MaxOutbox:      32 << 20,
		OutboxBudget:   1 << 30,
		MessageTimeout: time.Minute,
		PingInterval:   -1,
		OnMessage: func(c server.Conn, op ws.OpCode, payload []byte) bool {
			c.Send(op, payload)
			return true
		},
	})
}

// startServer is serve with a log, for tests in which no hook panics.
func startServer(t *testing.T, cfg server.Config) (addr string) {
	t.Helper()
	var srv *server.Server
	t.Cleanup(func() { // behind serve's
		if n := srv.Stats().HookPanics; n != 0 {
			t.Errorf("%d hook panics", n)
		}
	})
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	srv, addr = serve(t, cfg)
	return addr
}

// dialEcho opens a connection to an echoServer, past its welcome.
func dialEcho(t *testing.T, addr string) *wstest.Conn {
	t.Helper()
	c := wstest.Dial(t, addr, "/ws")
	c.WantWelcome()
	return c
}

// A round is what a case writes, each element in a call of its own, and what
// has to come back before the next round.
type round struct {
	writes [][]byte
	want   []wstest.Frame
}

// A conformanceCase is one of the Autobahn test suite's. Without end the
// client closes with 1000 after the last round and nothing else may be on its
// way; with it the server ends the connection, with one of these codes (0:
// none), and sends nothing else.
type conformanceCase struct {
	id   string
	play func() []round // made late: some are 16 MiB
	end  []wire.CloseCode
}

func (c conformanceCase) run(t *testing.T, addr string) {
	conn := dialEcho(t, addr)
	for _, r := range c.play() {
		for _, b := range r.writes {
			conn.SendRaw(b)
		}
		for _, f := range r.want {
			conn.Want(f)
		}
	}
	if c.end == nil {
		conn.WantNothing()
		return
	}
	conn.WantClosed(c.end...)
}

// The three ways of the suite to write frames.

func oneWrite(frames ...wstest.Frame) [][]byte { return [][]byte{wstest.Encode(frames...)} }

func perFrame(frames ...wstest.Frame) (writes [][]byte) {
	for _, f := range frames {
		writes = append(writes, wstest.Encode(f))
	}
	return writes
}

func inPieces(size int) func(...wstest.Frame) [][]byte {
	return func(frames ...wstest.Frame) (writes [][]byte) {
		for b := wstest.Encode(frames...); len(b) > 0; b = b[min(size, len(b)):] {
			writes = append(writes, b[:min(size, len(b))])
		}
		return writes
	}
}

var bytewise = inPieces(1)

// cases collects a section of the suite.
type cases []conformanceCase

// add appends a case of one round.
func (cs *cases) add(id string, writes [][]byte, want []wstest.Frame, end ...wire.CloseCode) {
	cs.addRounds(id, func() []round { return []round{{writes, want}} }, end...)
}

func (cs *cases) addRounds(id string, play func() []round, end ...wire.CloseCode) {
	*cs = append(*cs, conformanceCase{id, play, end})
}

// addEcho appends a case in which the message that frames make up comes back.
func (cs *cases) addEcho(id string, writes [][]byte, back wstest.Frame) {
	cs.add(id, writes, []wstest.Frame{back})
}

// textOf returns n bytes of UTF-8 with characters of every length.
func textOf(n int) []byte {
	const unit = "Tocsin é€🔔 "
	b := []byte(strings.Repeat(unit, n/len(unit)))
	return append(b, strings.Repeat(".", n-len(b))...)
}

// binaryOf returns n bytes of every value.
func binaryOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

// message returns a message of n bytes as one frame.
func message(op ws.OpCode, n int) wstest.Frame {
	if op == ws.OpText {
		return wstest.Frame{Op: op, Payload: textOf(n)}
	}
	return wstest.Frame{Op: op, Payload: binaryOf(n)}
}

var dataOps = []ws.OpCode{ws.OpText, ws.OpBinary}

// section1 is echoes of every form of length.
func section1() (cs cases) {
	for i, op := range dataOps {
		for j, n := range []int{0, 125, 126, 127, 128, 65535, 65536} {
			m := message(op, n)
			cs.addEcho(fmt.Sprintf("1.%d.%d", i+1, j+1), oneWrite(m), m)
		}
		m := message(op, 65536)
		cs.addEcho(fmt.Sprintf("1.%d.8", i+1), inPieces(997)(m), m)
	}
	return cs
}

// section2 is pings and pongs.
func section2() (cs cases) {
	var (
		none       []wstest.Frame
		notUTF8    = "\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
		longest    = strings.Repeat("\xfe", 125)
		pings, ten []wstest.Frame
	)
	pong := func(s string) []wstest.Frame { return []wstest.Frame{wstest.Pong(s)} }
	for i := range 10 {
		pings = append(pings, wstest.Ping(fmt.Sprint("payload-", i)))
		ten = append(ten, wstest.Pong(fmt.Sprint("payload-", i)))
	}
	cs.add("2.1", oneWrite(wstest.Ping("")), pong(""))
	cs.add("2.2", oneWrite(wstest.Ping("Hello, world!")), pong("Hello, world!"))
	cs.add("2.3", oneWrite(wstest.Ping(notUTF8)), pong(notUTF8))
	cs.add("2.4", oneWrite(wstest.Ping(longest)), pong(longest))
	cs.add("2.5", oneWrite(wstest.Ping(longest+"\xfe")), none, 1002)
	cs.add("2.6", bytewise(wstest.Ping(longest)), pong(longest))
	cs.add("2.7", oneWrite(wstest.Pong("")), none)
	cs.add("2.8", oneWrite(wstest.Pong("unsolicited")), none)
	cs.add("2.9", oneWrite(wstest.Pong("unsolicited"), wstest.Ping("ping")), pong("ping"))
	cs.add("2.10", perFrame(pings...), ten)
	cs.add("2.11", bytewise(pings...), ten)
	return cs
}

// section3 is reserved bits.
func section3() (cs cases) {
	hello := wstest.Text("Hello, world!")
	rsv := func(f wstest.Frame, bits byte) wstest.Frame { f.RSV = bits; return f }
	echo := []wstest.Frame{hello}
	cs.add("3.1", oneWrite(rsv(hello, 1)), nil, 1002)
	cs.add("3.2", oneWrite(hello, rsv(hello, 2), wstest.Ping("")), echo, 1002)
	cs.add("3.3", perFrame(hello, rsv(hello, 3), wstest.Ping("")), echo, 1002)
	cs.add("3.4", bytewise(hello, rsv(hello, 4), wstest.Ping("")), echo, 1002)
	cs.add("3.5", oneWrite(rsv(wstest.Binary([]byte("\x00\xff")), 5)), nil, 1002)
	cs.add("3.6", oneWrite(rsv(wstest.Ping("Hello, world!"), 6)), nil, 1002)
	cs.add("3.7", oneWrite(rsv(wstest.Close(1000, ""), 7)), nil, 1002)
	return cs
}

// section4 is reserved opcodes.
func section4() (cs cases) {
	hello := wstest.Text("Hello, world!")
	for i, first := range []ws.OpCode{0x3, 0xb} {
		for j := range 5 {
			reserved := wstest.Frame{Op: first + ws.OpCode(j)}
			if j == 1 || j >= 3 {
				reserved.Payload = hello.Payload
			}
			id := fmt.Sprintf("4.%d.%d", i+1, j+1)
			if j < 2 {
				cs.add(id, oneWrite(reserved), nil, 1002)
			} else {
				cs.add(id, oneWrite(hello, reserved, wstest.Ping("")), []wstest.Frame{hello}, 1002)
			}
		}
	}
	return cs
}

// section5 is fragments.
func section5() (cs cases) {
	var (
		part1, part2 = "fragment1", "fragment2"
		first        = wstest.Frame{Op: ws.OpText, Payload: []byte(part1), More: true}
		last         = wstest.Frame{Op: ws.OpContinuation, Payload: []byte(part2)}
		stray        = wstest.Frame{Op: ws.OpContinuation, Payload: []byte("non-continuation"), More: true}
		finalStray   = wstest.Frame{Op: ws.OpContinuation, Payload: []byte("non-continuation")}
		whole        = wstest.Text(part1 + part2)
		text         = wstest.Text("Hello, world!")
		ways         = []func(...wstest.Frame) [][]byte{oneWrite, perFrame, bytewise}
	)
	more := func(f wstest.Frame) wstest.Frame { f.More = true; return f }
	id := func(n int) string { return fmt.Sprint("5.", n) }

	cs.add("5.1", oneWrite(more(wstest.Ping(part1)), last), nil, 1002)
	cs.add("5.2", oneWrite(more(wstest.Pong(part1)), last), nil, 1002)
	for i, write := range ways {
		cs.addEcho(id(3+i), write(first, last), whole)
	}
	for i, write := range ways {
		cs.add(id(6+i), write(first, wstest.Ping("ping"), last), []wstest.Frame{wstest.Pong("ping"), whole})
	}
	for i, write := range ways {
		cs.add(id(9+i), write(finalStray, text), nil, 1002)
	}
	for i, write := range ways {
		cs.add(id(12+i), write(stray, text), nil, 1002)
	}
	cs.add("5.15", oneWrite(first, last, stray, text), []wstest.Frame{whole}, 1002)
	cs.add("5.16", oneWrite(stray, first, last, stray, first, last), nil, 1002)
	cs.add("5.17", oneWrite(finalStray, first, last, finalStray, first, last), nil, 1002)
	cs.add("5.18", oneWrite(first, wstest.Text(part2)), nil, 1002)

	// The suite pauses after the first ping; its pong says as much.
	five := wstest.Fragments(ws.OpText, []byte("fragment1fragment2fragment3fragment4fragment5"), 9)
	for i, write := range ways[:2] {
		cs.addRounds(id(19+i), func() []round {
			return []round{
				{write(five[0], five[1], wstest.Ping("pongme 1!")), []wstest.Frame{wstest.Pong("pongme 1!")}},
				{
					write(five[2], five[3], wstest.Ping("pongme 2!"), five[4]),
					[]wstest.Frame{wstest.Pong("pongme 2!"), wstest.Text("fragment1fragment2fragment3fragment4fragment5")},
				},
			}
		})
	}
	return cs
}

// section6 is UTF-8.
func section6() (cs cases) {
	const text = "Hello-µ@ßöäüàá-UTF-8!!"
	const word = "κ\u1f79σμε"
	empty := wstest.Frame{Op: ws.OpText, More: true}
	middle := wstest.Frame{Op: ws.OpContinuation, Payload: []byte("middle frame payload"), More: true}
	cs.addEcho("6.1.1", oneWrite(wstest.Text("")), wstest.Text(""))
	cs.addEcho("6.1.2", oneWrite(wstest.Frame{Op: ws.OpText, More: true}, wstest.Frame{More: true}, wstest.Frame{}), wstest.Text(""))
	cs.addEcho("6.1.3", oneWrite(empty, middle, wstest.Frame{}), wstest.Text("middle frame payload"))

	cut := strings.Index(text, "ö")
	cs.addEcho("6.2.1", oneWrite(wstest.Text(text)), wstest.Text(text))
	cs.addEcho("6.2.2", oneWrite(
		wstest.Frame{Op: ws.OpText, Payload: []byte(text[:cut]), More: true},
		wstest.Frame{Op: ws.OpContinuation, Payload: []byte(text[cut:])}), wstest.Text(text))
	cs.addEcho("6.2.3", oneWrite(wstest.Fragments(ws.OpText, []byte(text), 1)...), wstest.Text(text))
	cs.addEcho("6.2.4", oneWrite(wstest.Fragments(ws.OpText, []byte(word), 1)...), wstest.Text(word))

	bad := []byte(word + "\xed\xa0\x80edited")
	cs.add("6.3.1", oneWrite(wstest.Frame{Op: ws.OpText, Payload: bad}), nil, 1007)
	cs.add("6.3.2", oneWrite(wstest.Fragments(ws.OpText, bad, 1)...), nil, 1007)

	// 6.4: the server has to fail right after the bad part. The suite waits for
	// a second between the parts; here a pong tells that the first has been
	// read, and the third is never sent.
	for i, parts := range [][2]string{{word, "\xf4\x90\x80\x80"}, {word + "\xf4", "\x90"}} {
		ping, pong := wstest.Ping("read"), []wstest.Frame{wstest.Pong("read")}
		cs.addRounds(fmt.Sprint("6.4.", i+1), func() []round {
			return []round{
				{oneWrite(ping, wstest.Frame{Op: ws.OpText, Payload: []byte(parts[0]), More: true}), pong},
				{oneWrite(wstest.Frame{Op: ws.OpContinuation, Payload: []byte(parts[1]), More: true}), nil},
			}
		}, 1007)
		cs.addRounds(fmt.Sprint("6.4.", i+3), func() []round {
			b := wstest.Encode(ping, wstest.Text(parts[0]+parts[1]+"edited"))
			unsent := len("edited")
			second := len(b) - unsent - len(parts[1])
			return []round{{[][]byte{b[:second]}, pong}, {[][]byte{b[second : len(b)-unsent]}, nil}}
		}, 1007)
	}
	for group, payloads := range utf8Samples() {
		for i, p := range payloads {
			id := fmt.Sprintf("6.%d.%d", group+5, i+1)
			if m := wstest.Text(p); utf8.ValidString(p) {
				cs.addEcho(id, oneWrite(m), m)
			} else {
				cs.add(id, oneWrite(m), nil, 1007)
			}
		}
	}
	return cs
}

// utf8Samples returns the payloads of 6.5 to 6.23, by section.
func utf8Samples() (groups [][]string) {
	unhex := func(list string) (payloads []string) {
		for s := range strings.FieldsSeq(list) {
			b, err := hex.DecodeString(s)
			if err != nil {
				panic(err)
			}
			payloads = append(payloads, string(b))
		}
		return payloads
	}
	const word = "κ\u1f79σμε"
	var prefixes, lonely, nonCharacters []string
	for i := range len(word) {
		prefixes = append(prefixes, word[:i+1])
	}
	stray := unhex("80 bf 80bf 80bf80 80bf80bf 80bf80bf80 80bf80bf80bf")
	var all []byte
	for c := range 63 {
		all = append(all, byte(0x80+c))
	}
	stray = append(stray, string(all))
	for _, r := range [][2]int{{0xc0, 0xde}, {0xe0, 0xee}, {0xf0, 0xf6}, {0xf8, 0xfa}, {0xfc, 0xfc}} {
		var b []byte
		for c := r[0]; c <= r[1]; c++ {
			b = append(b, byte(c), ' ')
		}
		lonely = append(lonely, string(b))
	}
	truncated := unhex("c0 e080 f08080 f8808080 fc80808080 df efbf f7bfbf fbbfbfbf fdbfbfbfbf")
	for plane := range rune(17) {
		nonCharacters = append(nonCharacters, string(plane<<16|0xfffe), string(plane<<16|0xffff))
	}
	return [][]string{
		unhex("68656c6c6f24776f726c64 68656c6c6fc2a2776f726c64 68656c6c6fe282ac776f726c64 68656c6c6ff0a4ada2776f726c64 cebae1bdb9cf83cebcceb5"),
		prefixes,
		unhex("00 c280 e0a080 f0908080"),
		unhex("f888808080 fc8480808080"),
		unhex("7f dfbf efbfbf f48fbfbf"),
		unhex("f7bfbfbf fbbfbfbfbf fdbfbfbfbfbf"),
		unhex("ed9fbf ee8080 efbfbd f48fbfbf f4908080"),
		stray,
		lonely,
		truncated,
		{strings.Join(truncated, "")},
		unhex("fe ff fefeffff"),
		unhex("c0af e080af f08080af f8808080af fc80808080af"),
		unhex("c1bf e09fbf f08fbfbf f887bfbfbf fc83bfbfbfbf"),
		unhex("c080 e08080 f0808080 f880808080 fc8080808080"),
		unhex("eda080 edadbf edae80 edafbf edb080 edbe80 edbfbf"),
		unhex("eda080edb080 eda080edbfbf edadbfedb080 edadbfedbfbf edae80edb080 edae80edbfbf edafbfedb080 edafbfedbfbf"),
		nonCharacters,
		unhex("efbfb9 efbfba efbfbb efbfbc efbfbd efbfbe efbfbf"),
	}
}

// section7 is the closing handshake.
func section7() (cs cases) {
	var (
		text   = wstest.Text("Hello World!")
		normal = wstest.Close(1000, "")
		first  = wstest.Frame{Op: ws.OpText, Payload: []byte("fragment1"), More: true}
		last   = wstest.Frame{Op: ws.OpContinuation, Payload: []byte("fragment2")}
		long   = message(ws.OpText, 256<<10)
	)
	cs.add("7.1.1", oneWrite(text, normal), []wstest.Frame{text}, 1000)
	cs.add("7.1.2", oneWrite(normal, normal), nil, 1000)
	cs.add("7.1.3", oneWrite(normal, wstest.Ping("")), nil, 1000)
	cs.add("7.1.4", oneWrite(normal, text), nil, 1000)
	cs.add("7.1.5", oneWrite(first, normal, last), nil, 1000)
	cs.add("7.1.6", oneWrite(long, text, normal, wstest.Ping("")), []wstest.Frame{long, text}, 1000)

	cs.add("7.3.1", oneWrite(wstest.Frame{Op: ws.OpClose}), nil, 0, 1000)
	cs.add("7.3.2", oneWrite(wstest.Frame{Op: ws.OpClose, Payload: []byte("a")}), nil, 1002)
	cs.add("7.3.3", oneWrite(normal), nil, 1000)
	cs.add("7.3.4", oneWrite(wstest.Close(1000, "Hello World!")), nil, 1000)
	cs.add("7.3.5", oneWrite(wstest.Close(1000, strings.Repeat("*", 123))), nil, 1000)
	cs.add("7.3.6", oneWrite(wstest.Close(1000, strings.Repeat("*", 124))), nil, 1002)
	cs.add("7.5.1", oneWrite(wstest.Close(1000, "κ\u1f79σμε\xed\xa0\x80edited")), nil, 1002, 1007)

	for i, code := range []wire.CloseCode{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		cs.add(fmt.Sprint("7.7.", i+1), oneWrite(wstest.Close(code, "")), nil, code)
	}
	for i, code := range []wire.CloseCode{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999} {
		cs.add(fmt.Sprint("7.9.", i+1), oneWrite(wstest.Close(code, "")), nil, 1002)
	}
	for i, code := range []wire.CloseCode{5000, 65535} {
		cs.add(fmt.Sprint("7.13.", i+1), oneWrite(wstest.Close(code, "")), nil, 1002)
	}
	return cs
}

// section9 is large messages, and many. The contents are compared too, which
// the suite does not.
func section9() (cs cases) {
	echo := func(op ws.OpCode, n int, write func(wstest.Frame) [][]byte) func() []round {
		return func() []round {
			m := message(op, n)
			return []round{{write(m), []wstest.Frame{m}}}
		}
	}
	whole := func(m wstest.Frame) [][]byte { return oneWrite(m) }
	for i, op := range dataOps {
		for j, n := range []int{64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20} {
			cs.addRounds(fmt.Sprintf("9.%d.%d", 1+i, j+1), echo(op, server.Size(n), whole))
		}
		for j := range 9 {
			fragmented := func(m wstest.Frame) [][]byte { return oneWrite(wstest.Fragments(op, m.Payload, 64<<(2*j))...) }
			cs.addRounds(fmt.Sprintf("9.%d.%d", 3+i, j+1), echo(op, server.Size(4<<20), fragmented))
		}
		for j := range 6 {
			chopped := func(m wstest.Frame) [][]byte { return inPieces(64 << j)(m) }
			cs.addRounds(fmt.Sprintf("9.%d.%d", 5+i, j+1), echo(op, server.Size(1<<20), chopped))
		}
		for j, n := range []int{0, 16, 64, 256, 1024, 4096} {
			cs.addRounds(fmt.Sprintf("9.%d.%d", 7+i, j+1), func() (rounds []round) {
				for range server.Size(1000) {
					rounds = append(rounds, echo(op, n, whole)()...)
				}
				return rounds
			})
		}
	}
	return cs
}

// section10 is automatic fragmentation.
func section10() (cs cases) {
	m := message(ws.OpText, 65536)
	cs.addEcho("10.1.1", oneWrite(wstest.Fragments(ws.OpText, m.Payload, 1300)...), m)
	return cs
}

// TestConformance plays sections 1–7, 9 and 10 of the Autobahn test suite. All
// verdicts are strict: what the suite calls non-strict or informational fails
// here (docs/faults.md W5 and W9).
func TestConformance(t *testing.T) {
	var all cases
	for _, s := range []struct {
		cases cases
		count int
	}{
		{section1(), 16},
		{section2(), 11},
		{section3(), 7},
		{section4(), 10},
		{section5(), 20},
		{section6(), 145},
		{section7(), 37},
		{section9(), 54},
		{section10(), 1},
	} {
		if len(s.cases) != s.count {
			t.Errorf("the section of %s has %d cases, want %d", s.cases[0].id, len(s.cases), s.count)
		}
		all = append(all, s.cases...)
	}
	if len(all) != 301 {
		t.Fatalf("%d cases, want 301", len(all))
	}
	addr := echoServer(t)
	seen := map[string]bool{}
	for _, c := range all {
		if seen[c.id] {
			t.Errorf("%s is there twice", c.id)
		}
		seen[c.id] = true
		t.Run(c.id, func(t *testing.T) {
			t.Parallel()
			c.run(t, addr)
		})
	}
}

// TestReceivedCloseCodes has codes judged as RFC 6455 section 7.4 says: a
// valid one comes back, any other is a protocol error. All 65,536 in the long
// run, the edges of the ranges and every 97th otherwise; wire tests the
// verdict itself for all (docs/faults.md W7).
func TestReceivedCloseCodes(t *testing.T) {
	addr := echoServer(t)
	edges := map[int]bool{}
	for _, edge := range []int{0, 999, 1000, 1003, 1004, 1005, 1006, 1007, 1014, 1015, 1016, 2999, 3000, 3999, 4000, 4999, 5000, 65535} {
		edges[edge] = true
	}
	valid := func(code int) bool {
		return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
	}
	const block = 1 << 13
	for first := 0; first < 1<<16; first += block {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			for code := first; code < first+block; code++ {
				if !server.Full && !edges[code] && code%97 != 0 {
					continue
				}
				want := wire.CloseCode(code)
				if !valid(code) {
					want = wire.CloseProtocolError
				}
				c := dialEcho(t, addr)
				c.Send(wstest.Close(wire.CloseCode(code), "because"))
				c.WantClosed(want)
				c.Drop()
			}
		})
	}
}

// TestEverySplit cuts streams at every byte and wants the server to say the
// same, to the byte, wherever the cut is. Each begins with a ping: once its
// pong is there, the piece it came in has been read.
func TestEverySplit(t *testing.T) {
	addr := echoServer(t)
	masked := func(f wstest.Frame, key string) wstest.Frame { f.Mask = [4]byte([]byte(key)); return f }
	more := func(f wstest.Frame) wstest.Frame { f.More = true; return f }
	text := textOf(300)
	for name, script := range map[string]struct {
		end    wire.CloseCode
		frames []wstest.Frame
	}{
		"valid": {4321, []wstest.Frame{
			masked(wstest.Text("hé"), "\x01\x02\x03\x04"),
			more(masked(wstest.Text("fragm\xe2\x82"), "\xff\x00\xaa\x55")),
			wstest.Ping("between"),
			more(wstest.Frame{}),
			masked(wstest.Frame{Payload: []byte("\xac")}, "\x00\x00\x00\x01"),
			masked(wstest.Binary(binaryOf(130)), "\x80\x40\x20\x10"),
			wstest.Pong("unsolicited"),
			wstest.Text(""),
			wstest.Close(4321, "bye"),
		}},
		"rsv":                    {1002, []wstest.Frame{wstest.Text("good"), {Op: ws.OpText, Payload: []byte("bad"), RSV: 4}, wstest.Ping("")}},
		"unmasked":               {1002, []wstest.Frame{wstest.Text("good"), {Op: ws.OpText, Payload: []byte("bad"), Unmasked: true}}},
		"long ping":              {1002, []wstest.Frame{more(wstest.Text("half")), wstest.Ping(string(text[:126])), wstest.Text("a")}},
		"stray":                  {1002, []wstest.Frame{wstest.Text("good"), {Payload: []byte("stray")}}},
		"not UTF-8":              {1007, []wstest.Frame{more(wstest.Text("good \xf4")), wstest.Ping(""), {Payload: []byte("\x90 bad")}, wstest.Text("a")}},
		"ends inside":            {1007, []wstest.Frame{more(wstest.Text("good \xf4")), {}, wstest.Text("a")}},
		"4 in 16 bits":           {1002, []wstest.Frame{wstest.Text("good"), {Op: ws.OpText, Payload: []byte("wide"), Wide: 2}}},
		"130 in 64 bits":         {1002, []wstest.Frame{wstest.Text("good"), {Op: ws.OpBinary, Payload: binaryOf(130), Wide: 8}}},
		"too big":                {1009, []wstest.Frame{wstest.Text("good"), {Op: ws.OpText, Declared: 1<<63 - 1}}},
		"highest bit":            {1002, []wstest.Frame{wstest.Text("good"), {Op: ws.OpText, Declared: 1 << 63}}},
		"half a code":            {1002, []wstest.Frame{wstest.Text("good"), {Op: ws.OpClose, Payload: []byte{3}}, wstest.Text("a")}},
		"data behind the close":  {1000, []wstest.Frame{wstest.Close(1000, "bye"), wstest.Text("late"), wstest.Ping("late")}},
		"close inside a message": {1001, []wstest.Frame{more(wstest.Text("half")), wstest.Close(1001, ""), {Payload: []byte("late")}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			everySplit(t, addr, script.end, script.frames)
		})
	}
}

// everySplit sends frames, which end in a Close of end, in all the pieces.
func everySplit(t *testing.T, addr string, end wire.CloseCode, frames []wstest.Frame) {
	t.Helper()
	stream := wstest.Encode(append([]wstest.Frame{wstest.Ping("first")}, frames...)...)
	barrier := len(wstest.Encode(wstest.Ping("first")))
	isClose := func(f wstest.Frame) bool { return f.Op == ws.OpClose && f.CloseCode() == end }
	late := slices.ContainsFunc(frames, isClose) && !isClose(frames[len(frames)-1])
	whole := dialEcho(t, addr)
	whole.SendRaw(stream)
	f := whole.NextFrame()
	for f.Op != ws.OpClose {
		f = whole.NextFrame()
	}
	if f.CloseCode() != end {
		t.Fatalf("got %v, want a Close of %d", f, end)
	}
	whole = dialEcho(t, addr)
	whole.SendRaw(stream)
	whole.WantPong("first")
	want := whole.Rest()
	for cut := 1; cut <= len(stream); cut++ {
		c := dialEcho(t, addr)
		c.SendRaw(stream[:cut])
		if cut < barrier {
			c.SendRaw(stream[cut:])
		}
		c.WantPong("first")
		if cut >= barrier {
			c.SendRaw(stream[cut:])
		}
		if got := c.Rest(); !bytes.Equal(got, want) {
			t.Fatalf("cut at %d of %d the server says\n%q, in one piece\n%q", cut, len(stream), got, want)
		}
		c.Drop()
	}
	c := dialEcho(t, addr)
	for piece := range slices.Chunk(stream, 1) {
		if _, err := c.Write(piece); err != nil && late {
			break // the server has closed
		} else if err != nil {
			t.Fatal(err)
		}
	}
	c.WantPong("first")
	if got := c.Rest(); !bytes.Equal(got, want) {
		t.Fatalf("byte by byte the server says\n%q, in one piece\n%q", got, want)
	}
}

// TestRandomMessages sends text, often not UTF-8, in random fragments and
// random writes. Good text comes back; bad text ends the connection at its
// first bad byte, with the rest not sent.
func TestRandomMessages(t *testing.T) {
	addr := echoServer(t)
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			var c *wstest.Conn
			for range server.Size(2500) {
				if c == nil {
					c = dialEcho(t, addr)
				}
				text := randomText(rnd)
				stream, reach := randomFrames(rnd, text)
				bad := wstest.BadUTF8(text)
				if bad >= 0 {
					stream = stream[:reach[bad]]
				}
				for len(stream) > 0 {
					n := 1 + rnd.IntN(len(stream))
					c.SendRaw(stream[:n])
					stream = stream[n:]
				}
				if bad < 0 && utf8.Valid(text) {
					c.WantText(string(text))
					continue
				}
				c.WantClosed(wire.CloseInvalidData)
				c.Drop()
				c = nil
			}
		})
	}
}

// randomText returns a few characters, one time in three with a byte changed.
func randomText(rnd *rand.Rand) (text []byte) {
	for range 1 + rnd.IntN(20) {
		limit := []int32{0x80, 0x800, 0x10000, 0x110000}[rnd.IntN(4)]
		text = utf8.AppendRune(text, rnd.Int32N(limit))
	}
	if rnd.IntN(3) == 0 {
		text[rnd.IntN(len(text))] = byte(rnd.Uint32())
	}
	return text
}

// randomFrames returns text in random fragments, empty ones among them, and
// for each byte of text how much of the stream has to be sent to reach it.
func randomFrames(rnd *rand.Rand, text []byte) (stream []byte, reach []int) {
	op := ws.OpText
	for rest := text; ; op = ws.OpContinuation {
		n := rnd.IntN(len(rest) + 1)
		f := wstest.Frame{Op: op, Payload: rest[:n], More: n < len(rest) || rnd.IntN(4) == 0}
		stream = f.Append(stream)
		for i := range n {
			reach = append(reach, len(stream)-n+i+1)
		}
		if rest = rest[n:]; !f.More {
			return stream, reach
		}
	}
}
