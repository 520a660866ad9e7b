//go:build linux

package server

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// A connection that turns out to be broken in the middle of a fan-out is closed
// in that turn.
func TestBrokenInAWalkIsClosedAtOnce(t *testing.T) {
	s := newSim(t, 1, Config{})
	broken, other := s.dial("/ws?topics=t"), s.dial("/ws?topics=t")
	broken.Reset()
	broken.Edge = netpoll.Event{} // which comes later
	s.publish("t", Message{Data: []byte("1")})
	if !broken.Gone {
		t.Error("it is not closed")
	}
	if got, _ := other.data(); len(got) != 1 {
		t.Errorf("the other got %v", got)
	}
}

// Whoever is cut by the first of two frames is not sent the second behind its
// Close frame.
func TestNothingIsSentBehindAClose(t *testing.T) {
	s := newSim(t, 1, Config{MaxOutbox: 1000})
	p := s.dial("/ws?topics=full")
	p.drain(10) // of the first message
	for range 2 {
		s.publish("full", Message{Data: []byte(`"` + strings.Repeat("x", 390) + `"`)})
	}
	p.send(wstest.Text(`{"id":1,"subscribe":{"topic":"` + strings.Repeat("t", 100) + `","after":5,"epoch":"another"}}`))
	s.run()
	p.drain(-1)
	s.run()
	all := p.frames()
	at := slices.IndexFunc(all, func(f wstest.Frame) bool { return f.Op == ws.OpClose })
	if at < 0 || all[at].CloseCode() != wire.CloseSlow || at < len(all)-1 {
		t.Errorf("got %v", all)
	}
	s.check()
}

// The end of OnClose is nobody's event.
func TestOnCloseIsNoStaleEvent(t *testing.T) {
	closed := 0
	s := newSim(t, 1, Config{OnClose: func(Conn, int) { closed++ }})
	s.dial("/ws").hangUp()
	s.run()
	if n := s.srv.Stats().StaleEvents; closed != 1 || n != 0 {
		t.Errorf("closed %d times, %d stale events", closed, n)
	}
}

// panicOnce is a log whose first line panics.
type panicOnce struct {
	slog.Handler
	lines int
}

func (h *panicOnce) Enabled(context.Context, slog.Level) bool { return true }

func (h *panicOnce) Handle(context.Context, slog.Record) error {
	if h.lines++; h.lines == 1 {
		panic("a log that panics")
	}
	return nil
}

// A turn that panics where a connection ends has ended it all the same, once.
func TestEndOutlivesAPanic(t *testing.T) {
	s := newSim(t, 1, Config{TopicLinger: -1})
	p := s.dial("/ws?user=ann&topics=a,b,c")
	s.srv.cfg.Logger = slog.New(&panicOnce{Handler: slog.DiscardHandler})
	p.hangUp()
	s.WantPanics = 1
	s.turn(0)
	if s.WantPanics != 0 {
		t.Fatal("nothing panicked")
	}
	s.check()
	s.sweep(2 * s.srv.cfg.CloseTimeout)
	if s.check(); !p.Gone {
		t.Error("it is not closed")
	}
	next := s.dial("/ws?topics=c") // in the same place
	s.publish("a", Message{Data: []byte("1")})
	s.publish("c", Message{Data: []byte("2")})
	if got, _ := next.data(); len(got) != 1 || got[0] != "2" {
		t.Errorf("the next connection got %v", got)
	}
	next.hangUp()
	s.run()
	s.check()
	if st := s.srv.Stats(); st.Connections+st.Users+st.Topics+st.Subscriptions != 0 {
		t.Errorf("left behind: %+v", st)
	}
}
