//go:build linux

package main

import (
	"bytes"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// unicast follows the pushes of one round, each of which is for one
// connection, exactly: a bit for each by its number.
type unicast struct {
	mark  []byte // what a payload of the round has before its number
	came  []byte // bit number%8 of byte number/8
	phase phase
}

// maxPushes bounds the numbers of a round, which come from the server.
const maxPushes = 1 << 30

// expectPushes begins a round.
func (e *engine) expectPushes(o *order) {
	e.unicast = unicast{mark: []byte("~" + o.Run + "."), phase: e.begin()}
	for i := range e.conns {
		e.conns[i].high = 0
	}
}

// take counts b if it is a push of the round. A push for another connection
// is foreign, and has not come.
func (u *unicast) take(e *engine, i int, c *conn, b []byte) bool {
	_, rest, ok := bytes.Cut(b, u.mark)
	if u.mark == nil || !ok {
		return false
	}
	n, rest := number(rest)
	to, rest := number(rest)
	due, _ := number(rest)
	switch {
	case n < 1 || n > maxPushes:
		return false
	case to != int64(e.plan.First+i):
		e.total.Foreign++
		return true
	case has(u.came, int(n)):
		e.total.Doubled++
		return true
	}
	if missing := int(n)/8 + 1 - len(u.came); missing > 0 {
		u.came = append(u.came, make([]byte, missing)...)
	}
	u.came[n/8] |= 1 << (n % 8)
	e.total.Delivered++
	e.record(histPush, machine.Now()-due)
	e.follow(c, n)
	return true
}

// has tells whether bit n is set.
func has(bits []byte, n int) bool { return n/8 < len(bits) && bits[n/8]&(1<<(n%8)) != 0 }

// tellPushes answers which pushes of the round have come.
func (e *engine) tellPushes(o *order) error {
	e.end(e.unicast.phase)
	return e.report(tally{ID: o.ID, Came: e.unicast.came})
}
