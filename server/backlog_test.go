//go:build linux

package server

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
)

// docs/faults.md X10: a peer that writes more than a turn reads, and ends, is
// read to its end.
func TestEndOfFileBehindABacklog(t *testing.T) {
	for _, size := range []int{1, engine.ReadSize - 1, engine.ReadSize, engine.ReadSize + 1, 3*engine.ReadSize - 1, 3 * engine.ReadSize, 3*engine.ReadSize + 8000} {
		s := newSim(t, 1, Config{MaxMessage: 1 << 20})
		p := s.dial("/ws")
		p.write(wstest.Frame{Op: ws.OpText, Payload: bytes.Repeat([]byte(" "), 1<<20), More: true}.Append(nil)[:size])
		p.hangUp()
		s.run()
		if !p.Gone {
			t.Errorf("%d bytes and an end of file: the connection stays", size)
		}
		s.check()
	}
}

// A refused peer whose request was longer than a turn reads gets the refusal:
// it is not closed under its feet.
func TestRefusalBehindABacklogIsDelivered(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.open()
	p.write(bytes.Repeat([]byte("x"), 2*engine.ReadSize))
	s.run()
	if p.Gone || !p.Ends || !bytes.HasPrefix(p.Out, []byte("HTTP/1.1 4")) {
		t.Errorf("gone %v, end of file %v, answer %q", p.Gone, p.Ends, p.Out)
	}
	p.hangUp()
	s.run()
	if !p.Gone {
		t.Error("the peer has hung up, its descriptor is kept")
	}
}

// docs/faults.md X6: a message that came in pieces leaves no buffer on a
// connection, however many topics it has.
func TestIdleConnectionKeepsNoBuffer(t *testing.T) {
	for topics := range 6 {
		names := make([]string, topics)
		for i := range names {
			names[i] = strconv.Itoa(i)
		}
		s := newSim(t, 1, Config{})
		p := s.dial("/ws?topics=" + strings.Join(names, ","))
		for _, f := range wstest.Fragments(ws.OpText, bytes.Repeat([]byte(" "), 60_000), 20_000) {
			p.send(f)
			s.run()
		}
		ping := wstest.Ping(strings.Repeat("p", 100)).Append(nil)
		p.write(ping[:50])
		s.run()
		p.write(ping[50:])
		s.run()
		p.drain(0)
		p.send(wstest.Text(`{"id":1,"ping":{}}`))
		s.run()
		p.drain(-1)
		s.run()
		if frames := p.frames(); len(frames) != 3 {
			t.Fatalf("%d answers, want 3: %v", len(frames), frames)
		}
		if s.slot(p).Extra {
			t.Errorf("with %d topics an idle connection keeps an extra", topics)
		}
	}
}

// holdHooks has hooks wait until runHooks, which runs them in the test.
func (s *sim) holdHooks() {
	s.hold = true
}

func (s *sim) runHooks() { s.RunCalls() }

// docs/faults.md X11: what is behind a hook's command is copied once, not again
// for each command.
func TestCommandsBehindAHookAreCopiedOnce(t *testing.T) {
	const frames = 5000
	seen := 0
	s := newSim(t, 1, Config{OnMessage: func(_ Conn, _ ws.OpCode, payload []byte) bool {
		seen += len(payload)
		return true
	}})
	s.holdHooks()
	p := s.dial("/ws")
	p.write(bytes.Repeat(wstest.Text("x").Append(nil), frames))
	var before []byte
	for range frames {
		s.run()
		s.runHooks()
		rest := s.slot(p).Rest
		if len(rest) > 0 && len(before) > 0 && &rest[len(rest)-1] != &before[len(before)-1] {
			t.Fatalf("%d bytes behind a hook were copied again", len(rest))
		}
		before = rest
	}
	s.run()
	if seen != frames || s.slot(p).Extra {
		t.Errorf("%d of %d messages were handled", seen, frames)
	}
}

// An Auth that does not return costs its own connection, which is told in
// time; what it says later is for nobody, whoever has the descriptor by then
// (docs/faults.md A5 and A11).
func TestAuthThatHangsIsTimedOut(t *testing.T) {
	asked := 0
	s := newSim(t, 1, Config{Auth: func(r *http.Request) (Identity, error) {
		asked++
		return Identity{User: "ann"}, nil
	}})
	s.holdHooks()
	p := s.open()
	p.write([]byte(wstest.Request("tocsin.test", "/ws", wstest.NewKey())))
	s.run()
	hung := s.TakeCalls()[0]
	s.sweep(s.srv.cfg.AuthTimeout - engine.StampUnit)
	if p.Gone || len(p.Out) > 0 {
		t.Fatalf("ended before its time: %q", p.Out)
	}
	s.sweep(engine.StampUnit)
	if !p.Gone || !bytes.HasPrefix(p.Out, []byte("HTTP/1.1 503 ")) {
		t.Fatalf("after auth-timeout: gone %v, %q", p.Gone, p.Out)
	}
	next := s.open() // has the descriptor
	s.Work.Call(hung)
	s.run()
	if next.FD != p.FD || len(next.Out) > 0 || s.slot(next).State != "head" || s.srv.Stats().Users != 0 {
		t.Errorf("descriptor %d after %d: state %s, %q", next.FD, p.FD, s.slot(next).State, next.Out)
	}
	if asked > 1 {
		t.Errorf("Auth was asked %d times", asked)
	}
	s.check()
}

// Peers that come and go while no worker is free for Auth leave nothing behind
// (docs/faults.md A11).
func TestNobodyWaitsForAuthOfTheGone(t *testing.T) {
	s := newSim(t, 1, Config{Auth: func(*http.Request) (Identity, error) { return Identity{}, nil }})
	s.CallRoom = 0
	for i := range 100 {
		p := s.open()
		p.write([]byte(wstest.Request("tocsin.test", "/ws", wstest.NewKey())))
		s.run()
		if i%2 == 0 {
			p.hangUp()
		}
	}
	s.sweep(s.srv.cfg.AuthTimeout)
	stay := s.open()
	stay.write([]byte(wstest.Request("tocsin.test", "/ws", wstest.NewKey())))
	s.sweep(engine.SweepEvery)
	if kept, counted := s.probe.WaitingCalls(0); kept != 1 || counted != 1 {
		t.Errorf("%d calls wait for 1 handshake, %d are counted", kept, counted)
	}
}

// An Auth that runs after its connection has ended is told the address of its
// own peer, not of the one who has the descriptor by then (docs/faults.md X13).
func TestAuthIsToldItsOwnPeer(t *testing.T) {
	parallel(t)
	release, told := make(chan struct{}), make(chan string, 3)
	srv, addr := started(t, Config{
		HookWorkers: 1, AuthTimeout: 100 * time.Millisecond,
		Auth: func(r *http.Request) (Identity, error) {
			<-release
			told <- r.RemoteAddr
			return Identity{}, nil
		},
	})
	var want []string
	for range 3 { // each is timed out before the next comes: they share a descriptor
		c := connect(t, addr, 0)
		want = append(want, c.LocalAddr().String())
		c.write(wstest.Request("tocsin.test", "/ws", wstest.NewKey()))
		if status := c.status(); status != http.StatusServiceUnavailable {
			t.Fatalf("status %d", status)
		}
		eventually(t, "it to be gone", func() bool { return srv.engine.Descriptors() == 0 })
	}
	close(release)
	for _, want := range want {
		if got := <-told; got != want {
			t.Errorf("Auth was told %s, its peer is %s", got, want)
		}
	}
}
