package server

import (
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine/enginetest"
)

// simKernel has the kernel do what a kernel may do.
func simKernel(w *world) feature {
	often := func(n int) int { return some(w, []int{0, n, n, 4 * n}) }
	w.Chance = enginetest.Chance{
		Cut: often(6), Signal: often(60), Narrow: often(100), Reset: often(2000), Late: often(8), Double: often(12), Spurious: often(50), Accept: often(10),
		Interrupt: often(12), Inline: some(w, []int{0, 1, 3}),
	}
	w.narrow = w.Chance.Narrow > 0
	if w.Rng.IntN(4) == 0 {
		w.MaxFDs = 6 + w.Rng.IntN(10)
	}
	w.Look = some(w, []time.Duration{0, 0, time.Microsecond, 20 * time.Microsecond})
	return feature{events: []happening{
		{"an event of a connection that has ended", 10, w.staleEvent},
		{"the pool of hooks is full", 5, func() bool { w.CallRoom = w.Rng.IntN(3); return true }},
		{"the pool of hooks has room", 10, func() bool { w.CallRoom = -1; return true }},
	}}
}

// staleEvent has the poller tell of a connection that was there before.
func (w *world) staleEvent() bool {
	c := some(w, w.clients)
	if c == nil || c.Ref>>32 < 2 {
		return false
	}
	w.Stale(netpoll.Event{Key: uint64(c.Ref - 1<<32), Readable: true, Writable: w.Rng.IntN(2) == 0, HangUp: w.Rng.IntN(2) == 0})
	w.Seen.Faults["an event of a connection that has ended"]++
	return true
}
