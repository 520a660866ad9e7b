//go:build linux

package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// A wait that is interrupted is repeated; one that fails ends the process,
// loudly (docs/faults.md E12).
func TestEpollWaitErrorsAreHandled(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.dial("/ws")
	for range 1000 {
		s.WaitErr = append(s.WaitErr, unix.EINTR)
	}
	p.send(wstest.Ping("still here"))
	s.turn(0)
	if f := p.frames(); len(f) != 1 || string(f[0].Payload) != "still here" || len(s.WaitErr) > 0 || s.fatal != nil {
		t.Fatalf("after 1,000 interruptions: %v, %d left, %v", f, len(s.WaitErr), s.fatal)
	}
	s.WaitErr = []netpoll.Errno{unix.EBADF}
	s.turn(0)
	if len(s.fatal) != 1 || !errors.Is(s.fatal[0], unix.EBADF) {
		t.Errorf("a wait on a closed set ends with %v", s.fatal)
	}
}

// A connection that always has more to read has its share of a round and no
// more (docs/faults.md E3).
func TestBusyConnectionHasItsShareAndNoMore(t *testing.T) {
	s := newSim(t, 1, Config{MaxMessage: 1 << 30, MaxControl: 100})
	flood, idle := s.dial("/ws"), s.dial("/ws")
	flood.send(wstest.Frame{Op: ws.OpBinary, Declared: 1 << 29})
	s.run()
	more := make([]byte, 10*engine.ReadSize)
	for round := range 20 {
		flood.write(more) // an edge each time
		idle.send(wstest.Ping("now"))
		s.Recvs = 0
		s.probe.Round(0)
		if f := idle.frames(); len(f) != 1 || s.Recvs > 3 {
			t.Fatalf("round %d: %d reads, the other connection got %v", round, s.Recvs, f)
		}
	}
}

// A message is encoded once; one more subscriber costs no allocation
// (docs/faults.md B6).
func TestMessageIsEncodedOnce(t *testing.T) {
	cost := func(subscribers int) float64 {
		s := newSim(t, 1, Config{})
		for range subscribers {
			s.dial("/ws?topics=hot")
		}
		s.Sink = true
		m := Message{Data: []byte(`"` + strings.Repeat("x", 1022) + `"`)}
		return testing.AllocsPerRun(20, func() {
			m.ID = ""
			if _, err := s.srv.Publish(t.Context(), "hot", m); err != nil {
				t.Fatal(err)
			}
			s.turn(0)
		})
	}
	few, many := cost(10), cost(size(1500))
	if many > few+1 {
		t.Errorf("%v allocations for 10 subscribers, %v for %d", few, many, size(1500))
	}
}

// No delivery and no inbound frame allocates (docs/design.md law 9).
func TestNothingAllocates(t *testing.T) {
	s := newSim(t, 1, Config{MaxControl: 100})
	p := s.dial("/ws?topics=a")
	s.Sink = true
	s.probe.Begin(0)
	c := s.slot(p).Conn
	m := &engine.Parcel{Flow: &engine.Flow{Name: "a"}}
	s.srv.engine.Encode(m, wire.Message{Topic: "a", Seq: 1, ID: "x", Data: []byte(`{"a":1}`)}, true)
	for name, frame := range map[string]wstest.Frame{
		"command": wstest.Text(`{"id":1,"ping":{}}`), "ping": wstest.Ping("p"), "pong": wstest.Pong(""), "error": wstest.Text(`{"id":2,"unsubscribe":{"topic":"b"}}`),
	} {
		in := wstest.Encode(frame)
		b := make([]byte, len(in))
		most := 0.0
		if name == "error" {
			most = 1 // the sentence
		}
		if n := testing.AllocsPerRun(100, func() {
			copy(b, in)
			s.probe.Receive(c, b)
		}); n > most {
			t.Errorf("%v allocations for a %s", n, name)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		if s.probe.Deliver(c, m) != engine.Written {
			t.Fatal("not written")
		}
	}); n != 0 || s.Sent == 0 {
		t.Errorf("%v allocations for a delivery", n)
	}
	s.Sink = false
	p.drain(0)
	s.probe.GrowQueue(c, 200)
	if n := testing.AllocsPerRun(100, func() {
		if s.probe.Deliver(c, m) != engine.Queued {
			t.Fatal("not queued")
		}
	}); n != 0 || len(s.slot(p).Queue) != 101 {
		t.Errorf("%v allocations for a delivery into the outbox", n)
	}
}
