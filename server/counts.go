package server

import (
	"sync/atomic"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// counts are what is counted beside the engine.
type counts struct {
	published atomic.Uint64
	publishes engine.Tallies[string] // refused, by Reason
	commands  engine.Tallies[string] // refused, by code
	fanout    engine.Times
}
