package server

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/server/internal/engine/enginetest"
)

// sim is a server, built as in production, on a kernel without sockets: its
// turns run when the test says so, and its clock stands still until then.
type sim struct {
	*enginetest.Kernel
	t     testing.TB
	srv   *Server
	probe *engine.Probe
	order []*peer // those that live, and some that did

	hold  bool    // calls are not run by themselves
	fatal []error // what would have ended the process; the test expects it if it asks
}

// peer is the other end of one connection.
type peer struct {
	*enginetest.Peer
	s *sim
}

func newSim(t testing.TB, seed uint64, cfg Config) *sim {
	s := &sim{Kernel: enginetest.New(t, seed), t: t}
	cfg.Dev, cfg.Logger, cfg.kernel = true, silent, s.Kernel
	setDefault(&cfg.Shards, 1)
	setDefault(&cfg.Workers, 1)
	setDefault(&cfg.MaxConnections, 10_000)
	cfg.onFatal = func(err error) { s.fatal = append(s.fatal, err) }
	var err error
	if s.srv, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	s.probe = s.srv.engine.Probe()
	// Those of the engine and the server have begun: nothing comes of them.
	s.Timer = func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }
	return s
}

// open accepts one connection; nothing is said yet.
func (s *sim) open() *peer {
	s.t.Helper()
	p := s.socket()
	s.probe.Admit(p.FD)
	s.run()
	return p
}

func (s *sim) socket() *peer {
	p := &peer{s.Socket(), s}
	s.order = append(slices.DeleteFunc(s.order, func(p *peer) bool { return p.Gone }), p)
	return p
}

// slot is what the engine has of p.
func (s *sim) slot(p *peer) engine.Slot { return s.probe.Slot(p.FD) }

// isOpen reports whether p's connection is open.
func (s *sim) isOpen(p *peer) bool { return s.slot(p).State == "open" }

// session is what the server has of p.
func (s *sim) session(p *peer) *session {
	t := s.probe.Begin(p.Ref.Shard(len(s.srv.shards)))
	return s.srv.session(t, s.slot(p).Conn)
}

// dial opens and upgrades; the answer is read.
func (s *sim) dial(path string) *peer {
	s.t.Helper()
	p := s.open()
	p.Write([]byte(wstest.Request("tocsin.test", path, "dGhlIHNhbXBsZSBub25jZQ==")))
	for p.Readable() { // reads may be cut
		s.run()
	}
	head, rest, _ := bytes.Cut(p.Out, []byte("\r\n\r\n"))
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		s.t.Fatalf("upgrade of %s: %q", path, p.Out)
	}
	p.Out = rest
	if !strings.Contains(path, "raw") {
		p.Frames()
	}
	return p
}

// turn serves one shard until nothing is left.
func (s *sim) turn(shard int) {
	s.probe.PassTick() // the ticker has just been
	s.Turn(shard)
}

// run serves every shard twice, as what one does can be another's work, and
// runs the calls.
func (s *sim) run() {
	for range 2 {
		for _, i := range s.Rng.Perm(len(s.srv.shards)) {
			s.turn(i)
		}
		if !s.hold {
			s.RunCalls()
		}
	}
	if !s.hold && s.HasCalls() || s.Wanting() {
		s.run()
	}
}

// sweep lets d pass and has every shard look at its deadlines.
func (s *sim) sweep(d time.Duration) {
	s.Time += d
	for i := range s.srv.shards {
		s.probe.DueSweep(i)
		s.turn(i)
	}
	s.run()
}

// check compares the server's accounts with what there is. The test has the
// turn, so it may look.
func (s *sim) check() {
	s.t.Helper()
	if err := s.probe.Check(s.Alive(), 0); err != nil {
		s.t.Fatal(err)
	}
	if n := s.srv.publishBytes.Load(); n < 0 {
		s.t.Fatalf("%d bytes are published", n)
	}
	if len(s.fatal) > 0 {
		s.t.Fatalf("fatal: %v", s.fatal)
	}
}

// The words of a peer.

func (p *peer) write(b []byte)              { p.Write(b) }
func (p *peer) send(frames ...wstest.Frame) { p.Send(frames...) }
func (p *peer) hangUp()                     { p.HangUp() }
func (p *peer) drain(n int)                 { p.Drain(n) }
func (p *peer) frames() []wstest.Frame      { p.s.t.Helper(); return p.Frames() }
func (p *peer) raise(e netpoll.Event)       { p.Raise(e) }
