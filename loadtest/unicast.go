//go:build linux

package main

import (
	"bytes"
	"strconv"
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

// A push holds, anywhere, and so that JSON has nothing to escape in it:
// ~run.number.connection.nanoseconds~ where the connection is the one it is
// for, and the time when it was due.
func appendPushStamp(dst []byte, run string, number, to int, due int64) []byte {
	dst = append(append(append(dst, '~'), run...), '.')
	dst = append(strconv.AppendInt(dst, int64(number), 10), '.')
	dst = append(strconv.AppendInt(dst, int64(to), 10), '.')
	return append(strconv.AppendInt(dst, due, 10), '~')
}

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
	if u.mark == nil {
		return false
	}
	at := bytes.Index(b, u.mark)
	if at < 0 {
		return false
	}
	n, rest := number(b[at+len(u.mark):])
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
	e.record(histPush, nanos()-due)
	if uint32(n) < c.high {
		e.total.Misordered++
	} else {
		c.high = uint32(n)
	}
	return true
}

// has tells whether bit n is set.
func has(bits []byte, n int) bool { return n/8 < len(bits) && bits[n/8]&(1<<(n%8)) != 0 }

// tellPushes answers which pushes of the round have come.
func (e *engine) tellPushes(o *order) error {
	e.end(e.unicast.phase)
	return e.report(tally{ID: o.ID, Came: e.unicast.came})
}
