package server

import (
	"testing"

	"github.com/tocsin-push/tocsin/netpoll"
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
