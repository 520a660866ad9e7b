//go:build linux

package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// A deadline is one of the sweep's: how a connection gets into the state, and
// how it is seen that the sweep has ended it.
type deadline struct {
	name  string
	limit func(*Config) *time.Duration
	begin func(*sim) *peer
	ended func(*peer) bool
}

// stuck dials a connection whose socket takes nothing, and queues for it.
func stuck(s *sim) *peer {
	p := s.dial("/ws?topics=a")
	p.drain(0)
	if _, err := s.srv.Publish(s.t.Context(), "a", Message{Data: []byte(`"x"`)}); err != nil {
		s.t.Fatal(err)
	}
	s.run()
	return p
}

func wasClosed(code wire.CloseCode) func(*peer) bool {
	return func(p *peer) bool {
		p.drain(-1) // lets the Close frame out; what waited was dropped
		p.s.run()
		for _, f := range p.frames() {
			if f.Op == ws.OpClose && f.CloseCode() == code {
				return true
			}
		}
		return false
	}
}

var deadlines = []deadline{
	{
		"handshake", func(c *Config) *time.Duration { return &c.HandshakeTimeout },
		func(s *sim) *peer { return s.open() },
		func(p *peer) bool { return p.Gone && strings.HasPrefix(string(p.Out), "HTTP/1.1 408 ") },
	},
	{
		"message", func(c *Config) *time.Duration { return &c.MessageTimeout },
		func(s *sim) *peer {
			p := s.dial("/ws")
			p.send(wstest.Frame{Op: ws.OpText, Payload: []byte("a"), More: true})
			s.run()
			return p
		}, wasClosed(wire.ClosePolicy),
	},
	{"write", func(c *Config) *time.Duration { return &c.WriteTimeout }, stuck, wasClosed(wire.CloseSlow)},
	{"drain rate", func(c *Config) *time.Duration { return &c.OutboxAge }, stuck, wasClosed(wire.CloseSlow)},
	{
		"ping", func(c *Config) *time.Duration { return &c.PingInterval },
		func(s *sim) *peer { return s.dial("/ws") },
		func(p *peer) bool { f := p.frames(); return len(f) == 1 && f[0].Op == ws.OpPing },
	},
	{
		"pong", func(c *Config) *time.Duration { return &c.PongTimeout },
		func(s *sim) *peer {
			p := s.dial("/ws")
			s.sweep(s.srv.cfg.PingInterval)
			p.frames()
			return p
		}, wasClosed(wire.CloseNoPong),
	},
	{
		"close", func(c *Config) *time.Duration { return &c.CloseTimeout },
		func(s *sim) *peer {
			p := s.dial("/ws")
			s.srv.engine.Close(p.Ref, wire.CloseForceDisconnect, "")
			s.run()
			return p
		},
		func(p *peer) bool { return p.Gone },
	},
}

// Whatever the clock says and however far apart the sweeps are, each timeout
// strikes in the first sweep that is late enough and in none before, across the
// wrap of the stamps too (docs/faults.md K5).
func TestTimeoutsStrikeInTheFirstLateSweep(t *testing.T) {
	for _, d := range deadlines {
		t.Run(d.name, func(t *testing.T) {
			for seed := range uint64(size(300)) {
				rng := rand.New(rand.NewPCG(seed, 5))
				cfg := Config{}
				for _, other := range deadlines {
					*other.limit(&cfg) = engine.MaxTimeout
				}
				limit := time.Duration(1+rng.IntN(30_000)) * time.Millisecond
				if d.name == "pong" {
					cfg.PingInterval = time.Second
				}
				*d.limit(&cfg) = limit
				s := newSim(t, seed, cfg)
				s.Time = []time.Duration{0, 1<<32*engine.StampUnit - limit/2, time.Duration(rng.Int64N(1 << 60))}[rng.IntN(3)]
				p := d.begin(s)
				start, due := s.Time/engine.StampUnit, (limit+engine.StampUnit-1)/engine.StampUnit
				for {
					s.sweep(time.Duration(rng.Int64N(int64(limit)/3 + 1)))
					late := s.Time/engine.StampUnit-start >= due
					if c := s.slot(p); !late && (p.Gone || c.Finished && d.name != "close") {
						t.Fatalf("seed %d: ended %s after %s, the limit is %s", seed, s.Time-start*engine.StampUnit, start*engine.StampUnit, limit)
					}
					if late {
						break
					}
				}
				if !d.ended(p) {
					t.Fatalf("seed %d: not ended %s after %s, the limit is %s; %q", seed, s.Time-start*engine.StampUnit, start*engine.StampUnit, limit, p.Out)
				}
			}
		})
	}
}

// A pong that has arrived counts, even if its shard has not read it when the
// sweep comes (docs/faults.md L5).
func TestPongThatHasArrivedCounts(t *testing.T) {
	s := newSim(t, 1, Config{})
	cfg := &s.srv.cfg
	p := s.dial("/ws")
	for range 10 {
		s.sweep(cfg.PingInterval)
		f := p.frames()
		if len(f) != 1 || f[0].Op != ws.OpPing {
			t.Fatalf("after silence: %v", f)
		}
		p.send(wstest.Pong(""))
		edge := p.Edge
		p.Edge = netpoll.Event{} // on its way from the kernel to the shard
		s.sweep(cfg.PongTimeout)
		if !s.isOpen(p) {
			t.Fatal("closed with its pong in the socket")
		}
		p.raise(edge)
		s.run()
	}
}

// A connection that is not pinged because data waits for it is not closed for
// want of a pong either.
func TestNoPingNoPong(t *testing.T) {
	s := newSim(t, 1, Config{WriteTimeout: time.Hour, OutboxAge: time.Hour})
	p := stuck(s)
	for range 20 {
		s.sweep(s.srv.cfg.PingInterval)
		p.drain(1) // it reads, slowly
		s.run()
	}
	p.drain(-1)
	s.run()
	s.sweep(s.srv.cfg.PongTimeout)
	for _, f := range p.frames() {
		if f.Op == ws.OpClose {
			t.Fatalf("%v", f)
		}
	}
	if f := p.frames(); !s.isOpen(p) {
		t.Fatalf("closed: %v", f)
	}
}

// jumpKernel is the real one with a clock that jumps.
type jumpKernel struct {
	engine.Kernel
	offset atomic.Int64
}

func (k *jumpKernel) Now() time.Duration {
	return k.Kernel.Now() + time.Duration(k.offset.Load())
}

// started starts a server on the given kernel, and ends it with the test.
func started(t testing.TB, cfg Config) (srv *Server, addr string) {
	t.Helper()
	setDefault(&cfg.Drain, time.Millisecond)
	setDefault(&cfg.Logger, silent)
	cfg.Dev = true
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	lc := net.ListenConfig{}
	if small, ok := cfg.kernel.(interface{ sendBuffer() int }); ok {
		lc.Control = setBuffer(unix.SO_SNDBUF, small.sendBuffer())
	}
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) { // a test's own
			t.Error(err)
		}
		<-ended
	})
	return srv, ln.Addr().String()
}

// When the clock jumps, or the process did not run, nobody is cut, not even by
// a sweep that comes before the ticker knows (docs/faults.md K1 and K2).
func TestClockJumpsCutNobody(t *testing.T) {
	parallel(t)
	k := &jumpKernel{Kernel: engine.System()}
	// Each jump counts for engine.StallAfter, so three of them must fit in PongTimeout:
	// they come faster than peers on a busy machine can answer a ping.
	srv, addr := started(t, Config{kernel: k, PingInterval: time.Second, PongTimeout: 4 * engine.StallAfter})
	n := size(1000)
	for i := range n {
		c := dial(t, addr, fmt.Sprint("/ws?user=", i))
		if i%2 == 0 { // half a message, whose time runs
			c.send(wstest.Frame{Op: ws.OpText, Payload: []byte("a"), More: true})
		}
		go c.pongs()
	}
	paused := srv.engine.Stalled
	for _, jump := range []time.Duration{time.Hour, 24 * time.Hour, 30 * time.Second} {
		before := paused()
		k.offset.Add(int64(jump))
		for i := range srv.shards { // a sweep that was due when the clock jumped
			srv.engine.Probe().WakeToSweep(i)
		}
		eventually(t, "the ticker to see the pause", func() bool { return paused() > before })
		r, err := srv.Broadcast(t.Context(), Message{Data: []byte("1"), Wait: WaitSent})
		if err != nil || r.Written != n {
			t.Fatalf("after a jump of %s: %+v, %v; closes %v", jump, r, err, srv.Stats().Closes)
		}
	}
}
