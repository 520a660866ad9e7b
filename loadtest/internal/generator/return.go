//go:build linux

package generator

import (
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// herd brings connections back when they end.
type herd struct {
	order    int
	keep     int
	drop     bool  // it was dropped here, all at once
	goodbye  bool  // wait as it says
	dropped  int   // connections that ended
	back     int   // and are open again
	changed  int64 // when either last changed
	deadline int64
	since    []int64 // by connection: when it ended
	phase    phase
}

// settled is how long nothing may happen before a herd that something else
// dropped counts as back.
const settled = time.Second

func (h *herd) has(i int) bool { return h.order != 0 && i >= h.keep }

// begin takes the order to keep the connections from Keep on coming back.
func (h *herd) begin(l *ledger, now int64, conns int, o *order) {
	*h = herd{
		order: o.ID, keep: o.Keep, drop: o.Drop, goodbye: o.Obey, changed: never,
		deadline: now + int64(o.Timeout), since: make([]int64, conns), phase: l.begin(),
	}
}

// left notes that a connection ended, and returns how long it stays away.
func (h *herd) left(i int, c *conn) (pause time.Duration) {
	h.dropped++
	h.changed = machine.Now()
	h.since[i] = h.changed
	if h.goodbye {
		pause = time.Duration(c.retry) * time.Millisecond
	}
	return pause
}

// returned notes that a connection is back.
func (h *herd) returned(l *ledger, i int) {
	if !h.has(i) || h.since[i] == 0 {
		return
	}
	h.back++
	h.changed = machine.Now()
	l.record(HistOutage, h.changed-h.since[i])
	h.since[i] = 0
}

func (h *herd) nextDue(pending int) int64 {
	switch {
	case h.order == 0:
		return never
	case pending == 0 && h.changed < never-int64(settled):
		return min(h.deadline, h.changed+int64(settled))
	}
	return h.deadline
}

// finish returns the answer when all are back, pending being how many are not,
// or it is too late for them.
func (h *herd) finish(l *ledger, now int64, pending int) *tally {
	if h.order == 0 {
		return nil
	}
	quiet := h.drop || h.changed < never-int64(settled) && now >= h.changed+int64(settled)
	if now < h.deadline && (pending > 0 || !quiet) {
		return nil
	}
	l.end(h.phase)
	t := &tally{ID: h.order, Round: &Round{Expected: h.dropped, Got: h.back, Last: h.changed}}
	h.order = 0
	return t
}
