//go:build linux

package main

import (
	"bytes"
	"strconv"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// delivery follows the messages of one run, exactly: a bit for each message
// and connection.
type delivery struct {
	mark   []byte // what a payload of the run has before its number
	words  int    // of seen, a connection
	rounds int
	seen   []uint64
	late   int64
	got    []int   // by number: connections that have it
	last   []int64 // by number: when the last of them got it

	// The message that is awaited.
	order    int
	seq      int
	want     int // connections that do not have it yet
	expected int
	deadline int64
	busy     phase
	begun    bool
}

// appendPayload appends size bytes of JSON with a stamp.
func appendPayload(dst []byte, size int, run string, number int, more ...int64) []byte {
	end := len(dst) + size
	dst = appendStamp(append(dst, `{"loadtest":"`...), run, number, more...)
	dst = append(dst, `","pad":"`...)
	for len(dst) < end-2 {
		dst = append(dst, '.')
	}
	return append(dst, `"}`...)
}

// appendStamp appends what a payload of a run holds, anywhere, and so that JSON
// has nothing to escape in it: ~run.number.nanoseconds~, the time when it was
// sent; for a push ~run.number.connection.nanoseconds~, the connection that it
// is for and the time when it was due.
func appendStamp(dst []byte, run string, number int, more ...int64) []byte {
	dst = append(append(append(dst, '~'), run...), '.')
	dst = strconv.AppendInt(dst, int64(number), 10)
	for _, n := range more {
		dst = strconv.AppendInt(append(dst, '.'), n, 10)
	}
	return append(dst, '~')
}

// arm begins a run.
func (e *engine) arm(o *order) {
	d := &e.deliver
	*d = delivery{
		mark: []byte("~" + o.Run + "."), words: (o.Rounds + 63) / 64, rounds: o.Rounds, late: int64(o.Late),
		got: make([]int, o.Rounds+1), last: make([]int64, o.Rounds+1), deadline: never,
	}
	d.seen = make([]uint64, d.words*len(e.conns))
	for i := range e.conns {
		e.conns[i].high = 0
	}
}

// take counts b if it belongs to the run.
func (d *delivery) take(e *engine, i int, c *conn, b []byte) bool {
	_, rest, ok := bytes.Cut(b, d.mark)
	if d.mark == nil || !ok {
		return false
	}
	seq, rest := number(rest)
	sent, _ := number(rest)
	if seq < 1 || seq > int64(d.rounds) || (i+1)*d.words > len(d.seen) {
		return false
	}
	now := machine.Now()
	word, bit := &d.seen[i*d.words+int(seq-1)/64], uint64(1)<<((seq-1)%64)
	if *word&bit != 0 {
		e.total.Doubled++
		return true
	}
	*word |= bit
	e.total.Delivered++
	e.record(histDelivery, now-sent)
	if now-sent > d.late {
		e.total.Late++
	}
	e.follow(c, seq)
	d.got[seq]++
	d.last[seq] = now
	if int(seq) == d.seq {
		if !d.begun {
			d.begun, d.busy = true, e.begin()
		}
		d.want--
	}
	return true
}

// follow counts a delivery that comes behind a later one of its connection.
func (e *engine) follow(c *conn, number int64) {
	if uint32(number) < c.high {
		e.total.Misordered++
	} else {
		c.high = uint32(number)
	}
}

// number reads digits and skips what ends them.
func number(b []byte) (n int64, rest []byte) {
	for k, c := range b {
		if c < '0' || c > '9' {
			return n, b[k+1:]
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

// lost takes a connection out of those that the awaited message is wanted on.
func (d *delivery) lost(i int) {
	if d.order != 0 && !d.has(i, d.seq) {
		d.want--
	}
}

func (d *delivery) has(i, seq int) bool {
	return (i+1)*d.words <= len(d.seen) && d.seen[i*d.words+(seq-1)/64]&(1<<((seq-1)%64)) != 0
}

// await takes the order to answer when every connection has a message.
func (e *engine) await(o *order) {
	d := &e.deliver
	if o.Seq < 1 || o.Seq > d.rounds {
		e.answer(tally{ID: o.ID, Error: "await of a message that no run has"})
		return
	}
	for n := len(e.conns) * d.words; len(d.seen) < n; {
		d.seen = append(d.seen, 0)
	}
	d.order, d.seq, d.want, d.expected, d.begun = o.ID, o.Seq, 0, 0, false
	d.deadline = e.now + int64(o.Timeout)
	for i := range e.conns {
		if e.conns[i].state == opened {
			d.expected++
			if !d.has(i, d.seq) {
				d.want++
			}
		}
	}
}

func (d *delivery) nextDue() int64 {
	if d.order == 0 {
		return never
	}
	return d.deadline
}

func (e *engine) finishAwait() {
	d := &e.deliver
	if d.order == 0 || d.want > 0 && e.now < d.deadline {
		return
	}
	if d.begun {
		e.end(d.busy)
	}
	e.answer(tally{ID: d.order, Round: &round{Expected: d.expected, Got: d.got[d.seq], Last: d.last[d.seq]}})
	d.order, d.seq = 0, 0
}
