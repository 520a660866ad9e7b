package engine

import (
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
)

// ticker is what wakes the shards for their sweeps. Its lock comes before those
// of inboxes and of the runner.
type ticker struct {
	e *Engine // static once it has started

	mu        lockorder.Mutex[lockorder.Outer]
	next      time.Duration // kernel.Now of the next sweep
	stopTimer func() bool
	ended     bool
}

func (k *ticker) start(e *Engine) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.e, k.next = e, e.kernel.Now()+sweepEvery
	k.stopTimer = e.kernel.After(sweepEvery, k.pass)
}

// end waits until no tick is under way and has none begin any more.
func (k *ticker) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.stopTimer()
}

// sooner has the next tick come at once.
func (k *ticker) sooner() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ended && k.stopTimer() {
		k.stopTimer = k.e.kernel.After(0, k.pass)
	}
}

// pass is one tick.
func (k *ticker) pass() {
	if gap := k.wakeShards(); gap > pauseAfter {
		k.e.cfg.Logger.Warn("the process did not run for a while; timeouts are extended by it", "pause", gap.String())
	}
}

// wakeShards wakes all shards that have connections at every sweep, and those
// that want it at every tick. It returns how long the last tick is ago.
func (k *ticker) wakeShards() (gap time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return 0
	}
	e := k.e
	now := e.kernel.Now()
	gap = e.passTick(now)
	sweep := now >= k.next
	if sweep {
		k.next = now + sweepEvery
	}
	wait := k.next - now
	for _, s := range e.shards {
		often := s.everyTick.Load()
		if often {
			wait = min(wait, tickEvery)
		}
		if sweep && (often || s.conns.Load() > 0) {
			s.tick.Store(true)
			s.wake()
		} else if often {
			s.wake()
		}
	}
	k.stopTimer = e.kernel.After(wait, k.pass)
	return gap
}

// wakeEveryTick asks the ticker to wake the shard every tickEvery instead of
// every sweepEvery. It holds until a sweep finds no waiting call, no paced walk
// and no drain.
func (s *shard) wakeEveryTick() {
	if !s.everyTick.Swap(true) {
		s.e.ticker.sooner()
	}
}
