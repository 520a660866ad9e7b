package server

import (
	"time"
)

// simTime lets time pass: a little, much, or at once while nobody runs. It judges
// the deadlines: nobody stays longer than he may.
func simTime(w *world) feature {
	cfg := &w.cfg
	cfg.HandshakeTimeout = 3 * time.Second
	cfg.AuthTimeout = 3 * time.Second
	cfg.MessageTimeout = 3 * time.Second
	cfg.PingInterval, cfg.PongTimeout = 5*time.Second, 2*time.Second
	cfg.WriteTimeout, cfg.OutboxAge, cfg.CloseTimeout = 6*time.Second, 9*time.Second, 2*time.Second
	cfg.Drain = 2 * time.Second
	return feature{
		events: []happening{
			{"a moment passes", 100, func() bool { w.jump(time.Duration(w.Rng.IntN(int(5 * time.Millisecond)))); return true }},
			{"the next timer is due", 60, w.toTimer},
			{"the process is stopped for a while", 2, func() bool {
				w.jump(time.Duration(w.Rng.IntN(int(20 * time.Second))))
				w.Seen.Faults["the process stops"]++
				return true
			}},
			{"the clock of the day is set", 2, func() bool {
				w.Ahead += time.Duration(w.Rng.IntN(int(2*time.Hour))) - time.Hour
				w.Seen.Faults["the clock of the day is set"]++
				return true
			}},
		},
	}
}

// toTimer lets time pass until the next timer is due.
func (w *world) toTimer() bool {
	due, ok := w.NextTimer()
	if !ok || due <= w.Time {
		return false
	}
	w.jump(due - w.Time)
	return true
}
