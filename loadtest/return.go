//go:build linux

package main

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

// startHerd takes the order to keep the connections from Keep on coming back,
// and to drop them first if it says so.
func (e *engine) startHerd(o *order) {
	h := &e.herd
	*h = herd{
		order: o.ID, keep: o.Keep, drop: o.Drop, goodbye: o.Obey, changed: never,
		deadline: e.now + int64(o.Timeout), since: make([]int64, len(e.conns)), phase: e.begin(),
	}
	e.dial.schedule = true // a handshake that has to wait for others is late
	for i := o.Keep; o.Drop && i < len(e.conns); i++ {
		if c := &e.conns[i]; c.state == opened {
			e.lose(i, c, "dropped")
		}
	}
}

// left notes that a connection ended and has it come back.
func (h *herd) left(e *engine, i int, c *conn) {
	h.dropped++
	h.changed = machine.Now()
	h.since[i] = h.changed
	e.dial.pending++
	pause := time.Duration(0)
	if h.goodbye {
		pause = time.Duration(c.retry) * time.Millisecond
	}
	e.again(i, c, pause)
}

// returned notes that a connection is back.
func (h *herd) returned(e *engine, i int) {
	if !h.has(i) || h.since[i] == 0 {
		return
	}
	h.back++
	h.changed = machine.Now()
	e.record(histOutage, h.changed-h.since[i])
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

func (e *engine) finishHerd() {
	h := &e.herd
	if h.order == 0 {
		return
	}
	quiet := h.drop || h.changed < never-int64(settled) && e.now >= h.changed+int64(settled)
	if e.now < h.deadline && (e.dial.pending > 0 || !quiet) {
		return
	}
	e.end(h.phase)
	e.answer(tally{ID: h.order, Round: &round{Expected: h.dropped, Got: h.back, Last: h.changed}})
	h.order = 0
}
