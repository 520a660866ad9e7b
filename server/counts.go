package server

import (
	"maps"
	"sync/atomic"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// counts are what is counted beside the engine.
type counts struct {
	published atomic.Uint64
	publishes tallies // refused, by Reason
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
