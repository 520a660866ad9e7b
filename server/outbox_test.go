//go:build linux

package server

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// queueModel is a connection whose socket takes what it is allowed to take,
// and everything that was sent to it.
type queueModel struct {
	s       *sim
	p       *peer
	topics  map[engine.Policy]*engine.Flow
	sent    []*engine.Parcel
	ids     map[string]*engine.Parcel
	last    map[*engine.Flow]int              // number of the last message that came, or that a gap told of
	placed  map[*engine.Flow][]*engine.Parcel // by seq, from 1 on
	came    map[*engine.Parcel]bool
	frames  map[*engine.Parcel][]byte
	written map[*engine.Parcel]int
	pings   int
	ponged  int
}

func newQueueModel(t *testing.T) *queueModel {
	m := &queueModel{
		s:      newSim(t, 1, Config{MaxOutbox: 2000, MaxControl: 100, PingInterval: -1}),
		topics: map[engine.Policy]*engine.Flow{}, ids: map[string]*engine.Parcel{}, last: map[*engine.Flow]int{}, placed: map[*engine.Flow][]*engine.Parcel{}, came: map[*engine.Parcel]bool{}, frames: map[*engine.Parcel][]byte{}, written: map[*engine.Parcel]int{},
	}
	m.p = m.s.dial("/ws")
	m.p.drain(0)
	for p := range engine.Latest + 1 {
		m.topics[p] = &engine.Flow{Name: fmt.Sprint("topic", p)}
	}
	return m
}

// give has the worker send one message of n bytes.
func (m *queueModel) give(p engine.Policy, key string, n int) {
	if !m.s.isOpen(m.p) {
		return // it has left its topics
	}
	id := fmt.Sprint(len(m.sent))
	to := m.topics[p]
	out := &engine.Parcel{Flow: to, Policy: p, Key: key, Seq: uint64(len(m.placed[to]) + 1)}
	m.placed[to] = append(m.placed[to], out)
	text := wire.Message{Topic: to.Name, Seq: out.Seq, ID: id, Data: []byte(`"` + strings.Repeat("x", n) + `"`)}
	m.s.srv.engine.Encode(out, text, false)
	m.frames[out] = wire.AppendFrame(nil, ws.OpText, tocsin.Codec{}.AppendMessage(nil, text))
	m.sent = append(m.sent, out)
	m.ids[id] = out
	m.s.probe.Begin(0)
	if m.s.probe.Deliver(m.s.slot(m.p).Conn, out) == engine.Written {
		m.written[out] = 1 // which the walk would count
	}
}

// gap notes which messages of its topic a notice tells of: those that were
// dropped, in their place.
func (m *queueModel) gap(g *wire.Gap) {
	t := m.s.t
	t.Helper()
	for _, to := range m.topics {
		for n := int(g.From); to.Name == g.Topic && n <= int(g.To); n++ {
			out := m.placed[to][n-1]
			if _, _, dropped := out.Outcome(); dropped != 1 || m.came[out] || n != m.last[to]+1 {
				t.Fatalf("%+v names message %d: %d times dropped, came %v, behind %d", *g, n, dropped, m.came[out], m.last[to])
			}
			m.last[to] = n
		}
	}
}

// check reads what came and compares all accounts.
func (m *queueModel) check() {
	m.s.t.Helper()
	for _, f := range m.p.frames() {
		m.read(f)
	}
	m.s.check()
	waiting := m.waiting()
	for i, out := range m.sent {
		m.checkOne(i, out, waiting[out])
	}
}

// read takes a frame that came.
func (m *queueModel) read(f wstest.Frame) {
	t := m.s.t
	t.Helper()
	switch f.Op {
	case ws.OpPong:
		var n int
		if _, err := fmt.Sscan(string(f.Payload), &n); err != nil || n == m.ponged || n > m.pings {
			t.Fatalf("pong %q of %d pings, the last one was %d", f.Payload, m.pings, m.ponged)
		}
		m.ponged = max(m.ponged, n)
	case ws.OpText:
		e, err := tocsin.ParseEvent(f.Payload)
		if err == nil && e.Gap != nil {
			m.gap(e.Gap)
			return
		}
		if err != nil || e.Message == nil || m.ids[e.Message.ID] == nil {
			t.Fatalf("%v in %v", err, f)
		}
		out := m.ids[e.Message.ID]
		if m.came[out] || int(e.Message.Seq) != m.last[out.Flow]+1 || out.Flow.Name != e.Message.Topic {
			t.Fatalf("message %d of %s came behind %d", e.Message.Seq, out.Flow.Name, m.last[out.Flow])
		}
		m.came[out] = true
		m.last[out.Flow] = int(e.Message.Seq)
	case ws.OpClose:
		if f.CloseCode() != wire.CloseSlow {
			t.Fatalf("closed with %v", f)
		}
	default:
		t.Fatalf("got %v", f)
	}
}

// waiting returns the messages in the outbox. It has one of each key of Latest,
// and few pongs.
func (m *queueModel) waiting() map[*engine.Parcel]bool {
	t := m.s.t
	t.Helper()
	waiting := map[*engine.Parcel]bool{}
	latest := map[string]bool{}
	pongs := 0
	if c := m.s.slot(m.p); c.Extra {
		for i, e := range c.Queue {
			if e.Parcel == nil {
				if e.Bytes[0] == 0x8a {
					pongs++
				}
				continue
			}
			waiting[e.Parcel] = true
			if e.Parcel.Policy == engine.Latest && (i > 0 || c.Begun == 0) {
				if latest[e.Parcel.Key] {
					t.Fatalf("two messages with key %q wait", e.Parcel.Key)
				}
				latest[e.Parcel.Key] = true
			}
		}
	}
	if pongs > 3 { // one that the socket refused, one that has begun to leave, the newest
		t.Fatalf("%d pongs wait", pongs)
	}
	return waiting
}

// checkOne wants a message to have one fate.
func (m *queueModel) checkOne(i int, out *engine.Parcel, waiting bool) {
	t := m.s.t
	t.Helper()
	written, queued, lost := out.Outcome()
	written += m.written[out]
	if written+queued+lost != 1 {
		t.Fatalf("message %d: %d written, %d queued, %d dropped", i, written, queued, lost)
	}
	dropped, n := lost == 1, 0
	for _, is := range []bool{dropped, waiting, m.came[out]} {
		if is {
			n++
		}
	}
	// A message that has left but has not come whole is none of these.
	if n > 1 || n == 0 && !bytes.HasPrefix(m.frames[out], m.p.Out) {
		t.Fatalf("message %d: %d times dropped, waiting %v, came %v", i, lost, waiting, m.came[out])
	}
}

// FuzzSendQueue: first in, first out, but for what a policy drops; every byte
// accounted for; never over the cap; of pongs the newest, before the data.
func FuzzSendQueue(f *testing.F) {
	f.Add([]byte("\x00\x40\x00\x40\x70\xff"))
	f.Add([]byte("\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff"))                 // cut
	f.Add([]byte("\x10\xff\x10\xff\x70\x03\x10\xff\x10\xff\x10\xff\x10\xff\x10\xff\x10\xff\x10\xff\x70\xff")) // drop_oldest
	f.Add([]byte("\x20\x10\x21\x10\x20\x20\x70\x05\x21\x30\x20\x10\x60\x00\x60\x00\x70\x03\x70\xff"))         // latest
	f.Add([]byte("\x00\x40\x60\x00\x60\x00\x70\x01\x60\x00\x70\xff\x60\x00"))                                 // pongs
	f.Add(append(bytes.Repeat([]byte("\x10\xf0\x23\x80"), 8), bytes.Repeat([]byte("\x70\x60"), 20)...))
	f.Fuzz(func(t *testing.T, commands []byte) {
		m := newQueueModel(t)
		for ; len(commands) > 1 && len(m.sent) < 200; commands = commands[2:] {
			switch c, n := commands[0], int(commands[1]); c >> 4 & 7 {
			case 0, 3:
				m.give(engine.Disconnect, "", 2*n)
			case 1, 4:
				m.give(engine.DropOldest, "", 2*n)
			case 2, 5:
				m.give(engine.Latest, fmt.Sprint(c&3), 2*n)
			case 6:
				if m.p.Ends || m.pings == 150 {
					continue
				}
				m.pings++
				m.p.send(wstest.Ping(fmt.Sprint(m.pings)))
				m.s.run()
			case 7:
				m.p.drain(4 * n)
				m.s.run()
			}
			m.check()
		}
		m.p.drain(-1)
		m.s.run()
		m.check()
		for to, last := range m.last {
			if m.s.isOpen(m.p) && last != len(m.placed[to]) {
				t.Fatalf("topic %s is at %d, the reader at %d", to.Name, len(m.placed[to]), last)
			}
		}
		if c := m.s.slot(m.p); c.State == "open" && (c.Extra || m.ponged < m.pings) {
			t.Fatalf("with room for all, the outbox is %+v; pong %d of %d", c, m.ponged, m.pings)
		}
	})
}

// A pong does not queue behind data, only behind the frame that has begun to
// leave (docs/faults.md B7).
func TestPongDoesNotQueueBehindData(t *testing.T) {
	s := newSim(t, 1, Config{MaxOutbox: 1 << 20})
	p := s.dial("/ws?topics=big")
	p.drain(1000)
	for range 5 {
		if _, err := s.srv.Publish(t.Context(), "big", Message{Data: []byte(`"` + strings.Repeat("x", 60_000) + `"`)}); err != nil {
			t.Fatal(err)
		}
	}
	s.run()
	p.send(wstest.Ping("first"), wstest.Ping("second"))
	s.run()
	p.drain(-1)
	s.run()
	var got []string
	for _, f := range p.frames() {
		got = append(got, fmt.Sprintf("%d %.6s", f.Op, f.Payload))
	}
	want := `[1 {"topi 10 second 1 {"topi 1 {"topi 1 {"topi 1 {"topi]`
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	s.check()
}
