//go:build linux

package generator

import (
	"bytes"

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

// arm begins a run.
func (d *delivery) arm(conns []conn, o *order) {
	*d = delivery{
		mark: []byte("~" + o.Run + "."), words: (o.Rounds + 63) / 64, rounds: o.Rounds, late: int64(o.Late),
		got: make([]int, o.Rounds+1), last: make([]int64, o.Rounds+1), deadline: never,
	}
	d.seen = make([]uint64, d.words*len(conns))
	for i := range conns {
		conns[i].high = 0
	}
}

// take counts b if it belongs to the run.
func (d *delivery) take(l *ledger, i int, c *conn, b []byte) bool {
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
		l.total.Doubled++
		return true
	}
	*word |= bit
	l.total.Delivered++
	l.record(HistDelivery, now-sent)
	if now-sent > d.late {
		l.total.Late++
	}
	l.follow(c, seq)
	d.got[seq]++
	d.last[seq] = now
	if int(seq) == d.seq {
		if !d.begun {
			d.begun, d.busy = true, l.begin()
		}
		d.want--
	}
	return true
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

// await takes the order to answer when every connection has a message. It
// returns an answer if there is no such message.
func (d *delivery) await(now int64, conns []conn, o *order) *tally {
	if o.Seq < 1 || o.Seq > d.rounds {
		return &tally{ID: o.ID, Error: "await of a message that no run has"}
	}
	for n := len(conns) * d.words; len(d.seen) < n; {
		d.seen = append(d.seen, 0)
	}
	d.order, d.seq, d.want, d.expected, d.begun = o.ID, o.Seq, 0, 0, false
	d.deadline = now + int64(o.Timeout)
	for i := range conns {
		if conns[i].state == opened {
			d.expected++
			if !d.has(i, d.seq) {
				d.want++
			}
		}
	}
	return nil
}

func (d *delivery) nextDue() int64 {
	if d.order == 0 {
		return never
	}
	return d.deadline
}

// finish returns the answer when the message is everywhere, or late.
func (d *delivery) finish(l *ledger, now int64) *tally {
	if d.order == 0 || d.want > 0 && now < d.deadline {
		return nil
	}
	if d.begun {
		l.end(d.busy)
	}
	t := &tally{ID: d.order, Round: &Round{Expected: d.expected, Got: d.got[d.seq], Last: d.last[d.seq]}}
	d.order, d.seq = 0, 0
	return t
}
