//go:build linux

package server

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
)

// docs/faults.md X2: a shard that always has something left to do keeps every
// deadline.
func TestDeadlinesHoldInABusyShard(t *testing.T) {
	flood := wstest.Encode(wstest.Text(strings.Repeat(" ", 1000)))
	for _, d := range deadlines {
		t.Run(d.name, func(t *testing.T) {
			s := newSim(t, 1, Config{MaxControl: 100})
			p := d.begin(s)
			busy := s.dial("/ws?format=raw")
			s.Time += *d.limit(&s.srv.cfg)
			s.probe.PassTick()
			s.probe.DueSweep(0)
			for range 5 {
				for len(busy.In) < 2*engine.ReadSize {
					busy.write(flood)
				}
				if !s.probe.Round(0) {
					t.Fatal("the shard had nothing left to do")
				}
			}
			if !d.ended(p) {
				t.Errorf("not ended; %q", p.Out)
			}
		})
	}
}

// docs/faults.md X2: allowed pings are not held against a peer because a busy
// shard is swept late.
func TestControlFramesLeakByTime(t *testing.T) {
	for _, rate := range []int{1, 2, 3, 7, 10, 100} {
		rng := rand.New(rand.NewPCG(2, uint64(rate)))
		s := newSim(t, 1, Config{MaxControl: rate})
		p := s.dial("/ws")
		for next := s.Time; next < time.Hour+5*time.Minute; {
			next += time.Second / time.Duration(rate)
			for s.Time < next {
				s.sweep(min(next-s.Time, time.Duration(rng.Int64N(int64(engine.StallAfter)))))
			}
			p.send(wstest.Ping("p"))
			s.run()
			if !s.isOpen(p) {
				t.Fatalf("closed after %s of %d pings a second, the limit: %v", s.Time-time.Hour, rate, p.frames())
			}
			p.Out = nil
		}
	}
}

// docs/faults.md X7, K2: what arrived while the process stood still is not held
// against a peer. A flood is, once as much time as the stop took is over.
func TestBurstAfterAStopIsForgiven(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.dial("/ws")
	for range 5 { // a healthy peer
		s.sweep(engine.SweepEvery)
		p.send(wstest.Ping(""))
		s.run()
	}
	s.Time += 40 * time.Second // SIGSTOP
	for range 400 {
		p.send(wstest.Ping(strings.Repeat("p", 125)), wstest.Text(`{"id":1,"ping":{}}`))
	}
	s.run()
	s.sweep(0)
	s.sweep(engine.StallAfter + engine.StampUnit) // another stop, a short one, behind it
	s.sweep(engine.StallAfter)
	s.sweep(engine.StallAfter)
	for range 400 {
		p.send(wstest.Ping("late"))
	}
	s.run()
	if !s.isOpen(p) {
		t.Fatalf("closed for what arrived during a stop: %v", p.frames())
	}
	for range engine.MaxAmnesty/engine.SweepEvery + 1 {
		s.sweep(engine.SweepEvery)
	}
	for range 2*s.srv.cfg.MaxControl + 1 {
		p.send(wstest.Ping(""))
	}
	s.run()
	frames := p.frames()
	if f := frames[len(frames)-1]; f.Op != ws.OpClose || f.CloseCode() != wire.ClosePolicy {
		t.Errorf("a flood is answered with %v", f)
	}
}

// docs/faults.md X7: nor is it held against a peer if the stop came in the
// middle of a turn, whether the peer is read or the shard swept first.
func TestStopDuringATurnIsForgiven(t *testing.T) {
	for _, sweptFirst := range []bool{false, true} {
		s := newSim(t, 1, Config{})
		p := s.dial("/ws")
		s.sweep(0)
		turn := s.probe.Begin(0)
		s.Time += 40 * time.Second // SIGSTOP
		if sweptFirst {
			s.probe.DueSweep(0)
			s.probe.GoOn(turn, true) // a walk looks at the clock too
		}
		for range 400 {
			p.send(wstest.Ping("held up"))
		}
		s.probe.GoOn(turn, false)
		if !s.isOpen(p) {
			t.Errorf("swept first: %v: closed for what arrived during a stop: %v", sweptFirst, p.frames())
		}
	}
}

// docs/faults.md X2: many topics of one subscriber each have one slice of a
// round together, as the subscribers of one topic have.
func TestSmallWalksShareASlice(t *testing.T) {
	const n = 200
	s := newSim(t, 1, Config{})
	var peers []*peer
	for i := range n {
		peers = append(peers, s.dial(fmt.Sprint("/ws?topics=", i)))
	}
	for i := range n {
		if _, err := s.srv.Publish(t.Context(), fmt.Sprint(i), Message{Data: []byte("1")}); err != nil {
			t.Fatal(err)
		}
	}
	s.Look = engine.SliceBudget // each look at the clock takes that long
	more := s.probe.Round(0)
	came := 0
	for _, p := range peers {
		came += len(p.frames())
	}
	if !more || came == 0 || came > 16 {
		t.Errorf("one round delivered %d of %d, and has more to do: %v", came, n, more)
	}
	s.run()
	for _, p := range peers {
		came += len(p.frames())
	}
	if came != n {
		t.Errorf("%d of %d came", came, n)
	}
}

// docs/faults.md X2: one turn does not do all of a long inbox before it looks
// at its connections.
func TestLongInboxLeavesRoomForReads(t *testing.T) {
	s := newSim(t, 1, Config{})
	p, q := s.dial("/ws"), s.dial("/ws")
	const pushes = 20 * engine.InboxSlice
	for range pushes {
		if _, err := s.srv.Push(t.Context(), Target{Conn: s.srv.ids.name(p.Ref)}, Message{Data: []byte("1")}); err != nil {
			t.Fatal(err)
		}
	}
	q.send(wstest.Ping("now"))
	if !s.probe.Round(0) {
		t.Error("nothing was left after one round")
	}
	if f := q.frames(); len(f) != 1 || f[0].Op != ws.OpPong {
		t.Errorf("behind %d pushes a ping was answered with %v", pushes, f)
	}
	s.run()
	if n := len(p.frames()); n != pushes {
		t.Errorf("%d of %d pushes came", n, pushes)
	}
}

// A message has its own time: what was unfinished before it, and has ended, does
// not count.
func TestMessageTimeoutBeginsWithTheMessage(t *testing.T) {
	s := newSim(t, 1, Config{MaxControl: 100})
	p := s.dial("/ws")
	ping := wstest.Encode(wstest.Ping("half"))
	p.write(ping[:5])
	for range 3 * int(s.srv.cfg.MessageTimeout/engine.SweepEvery) {
		s.sweep(engine.SweepEvery)
		p.write(ping[5:])
		p.write(ping[:5])
		s.run()
	}
	if !s.isOpen(p) {
		t.Errorf("closed: %v", p.frames())
	}
}
