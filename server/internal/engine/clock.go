package engine

import "time"

func (t *Turn) clock() {
	t.exact = t.kernel.Now()
	t.now = t.e.stampAt(t.exact)
}

// noticeStall begins an amnesty if the last sweep is too long ago, before
// anything is read that came meanwhile.
func (t *Turn) noticeStall() {
	s := t.shard
	switch stall := t.exact - s.swept; {
	case s.slots.len() == 0:
		s.swept = t.exact // a shard without connections is not swept
	case stall > stallAfter:
		s.amnesty = max(s.amnesty, t.exact+min(stall, maxAmnesty))
	}
}

// tickTime is one moment on both clocks: the kernel's, and the engine's own,
// which does not count stalls.
type tickTime struct{ kernel, own time.Duration }

// stampAt turns a time of the kernel's clock into one of the engine's clock.
func (e *Engine) stampAt(now time.Duration) stamp {
	t := e.lastTick.Load()
	// A turn may come before the ticker has seen a stall. It may also have read
	// now before the stall, and come here behind the ticker.
	return stamp((t.own + min(max(now-t.kernel, 0), stallAfter)) / stampUnit)
}

// passTick sets the clocks and returns how long the last tick is ago.
func (e *Engine) passTick(now time.Duration) (gap time.Duration) {
	last := e.lastTick.Load()
	gap = now - last.kernel
	e.lastTick.Store(&tickTime{now, last.own + min(gap, stallAfter)})
	return gap
}
