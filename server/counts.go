package server

import (
	"errors"
	"maps"
	"sync/atomic"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// counts are what is counted beside the engine.
type counts struct {
	published atomic.Uint64
	publishes tallies // refused, by reason
	commands  tallies // refused, by code
	fanout    engine.Times
}

// tallies counts by names that come up.
type tallies struct {
	mu lockorder.Mutex[lockorder.Leaf]
	of map[string]uint64
}

func (t *tallies) add(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[string]uint64{}
	}
	t.of[name]++
}

func (t *tallies) snapshot() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.of)
}

func (c *counts) publishRejected(err error) {
	reason := "error"
	for _, r := range publishReasons {
		if errors.Is(err, r.err) {
			reason = r.name
		}
	}
	c.publishes.add(reason)
}

var publishReasons = []struct {
	err  error
	name string
}{
	{ErrNobody, "nobody"},
	{ErrClosed, "closed"},
	{ErrBusy, "busy"},
	{ErrBadMessage, "bad_message"},
	{ErrTooBig, "too_big"},
	{ErrReused, "reused"},
	{ErrNoAck, "no_ack"},
}
