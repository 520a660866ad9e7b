//go:build linux

package generator

import (
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/wire"
)

// echo is the talk of the first connections: each message is answered by one,
// in order. Where a message cannot be sent an errno is returned, and the
// connection is lost.
type echo struct {
	order    int
	active   int
	frame    []byte
	rate     float64 // messages a second; 0: each when the last was answered
	start    int64
	end      int64 // of sending
	deadline int64 // of waiting for the last replies
	next     uint64
	waiting  int // replies that are owed by connections that are alive
	phase    phase
}

const lastReplies = 5 * time.Second

// begin takes the order to talk. Those of the active connections that are open
// join now, the others when they are.
func (t *echo) begin(l *ledger, now int64, conns int, o *order) {
	*t = echo{
		order: o.ID, active: min(o.Active, conns), rate: o.Rate,
		frame: wire.AppendMasked(nil, ws.OpText, true, [4]byte{0x37, 0xfa, 0x21, 0x3d}, []byte(o.Message)),
		start: now, phase: l.begin(),
	}
	t.end = t.start + int64(o.Duration)
	t.deadline = t.end + int64(lastReplies)
}

// joined makes a connection talk.
func (t *echo) joined(l *ledger, now int64, i int, c *conn) unix.Errno {
	if t.order == 0 || i >= t.active {
		return 0
	}
	_ = unix.SetsockoptInt(int(c.fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // else the kernel holds a second message back
	if t.rate == 0 {
		if now < t.end {
			return t.say(l, c)
		}
		return 0
	}
	c.sent = t.share(i)
	c.got = c.sent
	return 0
}

// planned returns when message k of connection i is due: the connections
// take turns.
func (t *echo) planned(i int, k uint32) int64 {
	return t.start + int64(float64(uint64(i)+uint64(k)*uint64(t.active))*1e9/t.rate)
}

// share returns how many of the messages before next are connection i's.
func (t *echo) share(i int) uint32 {
	if t.next <= uint64(i) {
		return 0
	}
	return uint32((t.next-1-uint64(i))/uint64(t.active)) + 1
}

// say sends one message.
func (t *echo) say(l *ledger, c *conn) unix.Errno {
	if t.rate == 0 {
		c.at = machine.Now()
	}
	if errno := c.send(t.frame); errno != 0 {
		return errno
	}
	c.sent++
	t.waiting++
	l.total.Sent++
	return 0
}

// due returns the connection whose message is due next by the schedule, what
// was due before the end even behind it; -1 if none is. It does not wait for
// replies.
func (t *echo) due(now int64) int {
	if t.order == 0 || t.rate == 0 {
		return -1
	}
	now = min(now, t.end-1)
	if t.next > uint64(float64(now-t.start)*t.rate/1e9) {
		return -1
	}
	t.next++
	return int((t.next - 1) % uint64(t.active))
}

// sayDue sends what is due. Only a socket that takes no more holds its own
// messages back.
func (t *echo) sayDue(l *ledger, i int, c *conn) unix.Errno {
	if !c.free() {
		return 0
	}
	l.record(HistLag, machine.Now()-t.planned(i, c.sent)) // what a full socket holds back is the server's
	return t.say(l, c)
}

// catchUp sends what a full socket held back.
func (t *echo) catchUp(l *ledger, i int, c *conn) unix.Errno {
	if t.order == 0 || i >= t.active || t.rate == 0 {
		return 0
	}
	for due := t.share(i); c.free() && c.sent < due; {
		if errno := t.say(l, c); errno != 0 {
			return errno
		}
	}
	return 0
}

// replied takes a message that belongs to nothing else as the answer to the
// oldest unanswered one.
func (t *echo) replied(l *ledger, now int64, i int, c *conn) unix.Errno {
	if t.order == 0 || i >= t.active || c.got >= c.sent {
		return 0
	}
	began := c.at
	if t.rate > 0 {
		began = t.planned(i, c.got)
	}
	c.got++
	t.waiting--
	l.total.Replies++
	l.record(HistEcho, machine.Now()-began)
	if t.rate == 0 && now < t.end {
		return t.say(l, c)
	}
	return 0
}

// lost gives up the replies that a connection owed.
func (t *echo) lost(i int, c *conn) {
	if t.order != 0 && i < t.active {
		t.waiting -= int(c.sent - c.got)
		c.got = c.sent
	}
}

func (t *echo) nextDue(now int64) int64 {
	switch {
	case t.order == 0:
		return never
	case now >= t.end:
		return t.deadline
	case t.rate == 0:
		return t.end
	}
	return min(t.end, t.start+int64(float64(t.next)*1e9/t.rate))
}

// finish returns the answer when the time is over and all replies are there,
// or late.
func (t *echo) finish(l *ledger, now int64) *tally {
	if t.order == 0 || now < t.end || t.waiting > 0 && now < t.deadline {
		return nil
	}
	l.end(t.phase)
	answer := &tally{ID: t.order}
	t.order = 0
	return answer
}
