//go:build linux

package generator

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

// expect begins a round.
func (u *unicast) expect(l *ledger, conns []conn, o *order) {
	*u = unicast{mark: []byte("~" + o.Run + "."), phase: l.begin()}
	for i := range conns {
		conns[i].high = 0
	}
}

// take counts b if it is a push of the round; n is the number of c in the
// fleet. A push for another connection is foreign, and has not come.
func (u *unicast) take(l *ledger, n int, c *conn, b []byte) bool {
	_, rest, ok := bytes.Cut(b, u.mark)
	if u.mark == nil || !ok {
		return false
	}
	x, rest := number(rest)
	to, rest := number(rest)
	due, _ := number(rest)
	switch {
	case x < 1 || x > MaxPushes:
		return false
	case to != int64(n):
		l.total.Foreign++
		return true
	case has(u.came, int(x)):
		l.total.Doubled++
		return true
	}
	if missing := int(x)/8 + 1 - len(u.came); missing > 0 {
		u.came = append(u.came, make([]byte, missing)...)
	}
	u.came[x/8] |= 1 << (x % 8)
	l.total.Delivered++
	l.record(HistPush, machine.Now()-due)
	l.follow(c, x)
	return true
}

// has tells whether bit n is set.
func has(bits []byte, n int) bool { return n/8 < len(bits) && bits[n/8]&(1<<(n%8)) != 0 }

// tell returns the answer which pushes of the round have come.
func (u *unicast) tell(l *ledger, o *order) tally {
	l.end(u.phase)
	return tally{ID: o.ID, Came: u.came}
}
