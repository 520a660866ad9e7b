//go:build linux

package main

import (
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/wire"
)

// echo is the talk of the first connections: each message is answered by one,
// in order.
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

// startEcho takes the order to talk. Connections that are not open when it
// begins join when they are.
func (e *engine) startEcho(o *order) {
	t := &e.echo
	e.now = machine.Now()
	*t = echo{
		order: o.ID, active: min(o.Active, len(e.conns)), rate: o.Rate,
		frame: wire.AppendMasked(nil, ws.OpText, true, [4]byte{0x37, 0xfa, 0x21, 0x3d}, []byte(o.Message)),
		start: e.now, phase: e.begin(),
	}
	t.end = t.start + int64(o.Duration)
	t.deadline = t.end + int64(lastReplies)
	for i := range t.active {
		c := &e.conns[i]
		c.sent, c.got = 0, 0
		if c.state == opened {
			t.joined(e, i)
		}
	}
}

// joined makes a connection talk.
func (t *echo) joined(e *engine, i int) {
	if t.order == 0 || i >= t.active {
		return
	}
	c := &e.conns[i]
	_ = unix.SetsockoptInt(int(c.fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // else the kernel holds a second message back
	if t.rate == 0 {
		if e.now < t.end {
			t.say(e, i, c)
		}
		return
	}
	c.sent = t.share(i)
	c.got = c.sent
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
func (t *echo) say(e *engine, i int, c *conn) {
	if t.rate == 0 {
		c.at = machine.Now()
	}
	if errno := e.send(c, t.frame); errno != 0 {
		e.lose(i, c, machine.ErrnoName(errno))
		return
	}
	c.sent++
	t.waiting++
	e.total.Sent++
}

// free says that the socket holds nothing back.
func (c *conn) free() bool {
	return c.state == opened && (c.extra == nil || len(c.extra.out) == 0)
}

// sendDue sends what is due by the schedule, what was due before the end even
// behind it. It does not wait for replies; only a socket that takes no more
// holds its own messages back.
func (e *engine) sendDue() {
	t := &e.echo
	if t.order == 0 || t.rate == 0 {
		return
	}
	now := min(e.now, t.end-1)
	for due := uint64(float64(now-t.start)*t.rate/1e9) + 1; t.next < due; t.next++ {
		i := int(t.next % uint64(t.active))
		if c := &e.conns[i]; c.free() {
			e.record(histLag, machine.Now()-t.planned(i, c.sent)) // what a full socket holds back is the server's
			t.say(e, i, c)
		}
	}
}

// catchUp sends what a full socket held back.
func (t *echo) catchUp(e *engine, i int, c *conn) {
	if t.order == 0 || i >= t.active || t.rate == 0 {
		return
	}
	for due := t.share(i); c.free() && c.sent < due; {
		t.say(e, i, c)
	}
}

// replied takes a message that belongs to nothing else as the answer to the
// oldest unanswered one.
func (e *engine) replied(i int, c *conn) {
	t := &e.echo
	if t.order == 0 || i >= t.active || c.got >= c.sent {
		return
	}
	began := c.at
	if t.rate > 0 {
		began = t.planned(i, c.got)
	}
	c.got++
	t.waiting--
	e.total.Replies++
	e.record(histEcho, machine.Now()-began)
	if t.rate == 0 && e.now < t.end {
		t.say(e, i, c)
	}
}

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

func (e *engine) finishEcho() {
	t := &e.echo
	if t.order == 0 || e.now < t.end || t.waiting > 0 && e.now < t.deadline {
		return
	}
	e.end(t.phase)
	e.answer(tally{ID: t.order})
	t.order = 0
}
