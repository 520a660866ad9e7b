package server

import (
	"net/http"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
)

// expiring starts a server in the sim, for connections that end an hour after
// they begin.
func expiring(t *testing.T) *sim {
	var s *sim
	s = newSim(t, 1, Config{PingInterval: -1, Auth: func(*http.Request) (Identity, error) {
		return Identity{Expires: s.Date().Add(time.Hour)}, nil
	}})
	return s
}

const aSweep = 500 * time.Millisecond

func (s *sim) wantExpired(p *peer) {
	s.t.Helper()
	frames := p.Frames()
	if len(frames) != 1 || string(frames[0].Payload) != string(wstest.Close(wire.CloseExpired, "expired").Payload) {
		s.t.Errorf("it got %v, want a close with 3005", frames)
	}
}

// An identity expires by the clock of the day, whichever way that is set, and
// whether or not the process has run meanwhile (docs/faults.md A12).
func TestExpiryFollowsTheClockOfTheDay(t *testing.T) {
	for name, tt := range map[string]struct {
		set    time.Duration // by which the clock is set
		before time.Duration // that passes without an end
	}{
		"nobody sets it": {0, time.Hour - 2*aSweep},
		"forward":        {time.Hour - 10*time.Second, 10*time.Second - 2*aSweep},
		"back":           {-time.Hour, 2*time.Hour - 2*aSweep},
		"past it":        {time.Hour - aSweep, 0},
	} {
		s := expiring(t)
		p := s.dial("/ws")
		s.Ahead = tt.set
		s.sweep(tt.before)
		if frames := p.Frames(); !s.isOpen(p) || len(frames) > 0 {
			t.Errorf("%s: it ended early, with %v", name, frames)
		}
		s.sweep(2 * aSweep)
		s.wantExpired(p)
		s.check()
	}
}

// Connections that come and go before they expire are forgotten.
func TestExpiriesDoNotPileUp(t *testing.T) {
	s := expiring(t)
	for range 10 * leastTidy {
		p := s.dial("/ws")
		p.HangUp()
		s.run()
	}
	stay := s.dial("/ws")
	if n := len(s.srv.shards[0].expiries.list); n > 2*leastTidy {
		t.Errorf("%d are remembered, one is there", n)
	}
	s.sweep(time.Hour)
	s.wantExpired(stay)
	if n := len(s.srv.shards[0].expiries.list); n > 0 {
		t.Errorf("%d are remembered after all have expired", n)
	}
	s.check()
}

// One sweep finds all that have expired, and those that have not are served on.
func TestManyExpireInOneSweep(t *testing.T) {
	s := expiring(t)
	s.Ahead = -time.Minute
	var ends []*peer
	for range 3000 {
		ends = append(ends, s.dial("/ws"))
	}
	s.Ahead = 0
	stays := s.dial("/ws")
	s.Time += time.Hour - time.Second
	stays.Write(wstest.Encode(wstest.Text(`{"id":1,"ping":{}}`)))
	s.probe.DueSweep(0)
	s.turn(0)
	if frames := stays.Frames(); len(frames) != 1 {
		t.Errorf("it was answered by %v", frames)
	}
	for _, p := range ends {
		s.wantExpired(p)
	}
	s.check()
}
