//go:build linux

package generator

import (
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// dialer opens connections when they are due, some at a time.
type dialer struct {
	queue    dialQueue
	flights  []flight // handshakes in the order they began; those that are over too
	flying   int      // handshakes that are not over
	pending  int      // connections wanted and not open
	order    int      // the connect order that runs, or 0
	schedule bool     // it has a rate, and latency counts from when a connection was due
	phase    phase
}

type flight struct {
	i, fd int32
	until int64
}

// connect takes the order to open more connections.
func (e *engine) connect(o *order) {
	d := &e.dial
	d.order, d.schedule, d.phase = o.ID, o.Rate > 0, e.begin()
	e.conns = slices.Grow(e.conns, o.N)
	d.queue = slices.Grow(d.queue, o.N)
	for k := range o.N {
		at := e.now
		if d.schedule {
			at += int64(float64(k) * 1e9 / o.Rate)
		}
		e.conns = append(e.conns, conn{fd: -1, at: at, state: waiting})
		d.queue.push(e.conns, len(e.conns)-1)
	}
	d.pending += o.N
}

// finishConnect returns the answer when all connections are there, or failed.
func (e *engine) finishConnect() *tally {
	d := &e.dial
	if d.order == 0 || d.pending != 0 {
		return nil
	}
	e.end(d.phase)
	debug.FreeOSMemory() // what opening them took is not what holding them takes
	t := &tally{ID: d.order}
	d.order = 0
	return t
}

// nextDue returns when the dialer wants to be called again.
func (d *dialer) nextDue(e *engine) int64 {
	due := int64(never)
	if len(d.queue) > 0 && d.flying < e.plan.Concurrency {
		due = e.conns[d.queue[0]].at
	}
	if len(d.flights) > 0 {
		due = min(due, d.flights[0].until)
	}
	return due
}

// dialDue begins the handshakes that are due and ends those that took too long.
func (e *engine) dialDue() {
	d := &e.dial
	for range dialBatch {
		if len(d.queue) == 0 || d.flying >= e.plan.Concurrency || e.conns[d.queue[0]].at > e.now {
			break
		}
		e.dialOne(d.queue.pop(e.conns))
	}
	for len(d.flights) > 0 {
		f := d.flights[0]
		c := &e.conns[f.i]
		flies := c.fd == f.fd && c.shaking()
		if flies && f.until > e.now {
			break
		}
		d.flights = d.flights[1:]
		if flies {
			e.fail(int(f.i), c, "timeout")
		}
	}
}

// stopDialing gives up what waits, and ends the handshakes that are not over.
func (e *engine) stopDialing() {
	d := &e.dial
	d.pending -= d.queue.clear(e.conns)
	for _, f := range d.flights {
		if c := &e.conns[f.i]; c.fd == f.fd && c.shaking() {
			e.fail(int(f.i), c, "interrupted")
		}
	}
	d.flights = nil
}

func (e *engine) dialOne(i int) {
	c := &e.conns[i]
	c.state = dialing
	e.dial.flying++
	e.total.Attempts++
	if !e.dial.schedule {
		c.at = machine.Now()
	}
	n := e.plan.First + i
	server := e.servers[n%len(e.servers)]
	var source unix.Sockaddr
	if len(e.sources) > 0 {
		source = e.sources[n/len(e.servers)%len(e.sources)]
	}
	fd, err := openSocket(server, source)
	if err != nil {
		e.fail(i, c, machine.ErrnoName(err))
		return
	}
	c.fd = int32(fd)
	const mask = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
	if errno := floor.Control(e.epfd, unix.EPOLL_CTL_ADD, fd, mask, int32(i), c.fd); errno != 0 {
		e.fail(i, c, machine.ErrnoName(errno))
		return
	}
	e.dial.flights = append(e.dial.flights, flight{int32(i), c.fd, e.now + int64(e.plan.Timeout)})
}

// ask goes on when connect(2) has ended, well or not.
func (e *engine) ask(i int, c *conn) {
	if e.plan.TLS != nil {
		e.secure(i, c)
	} else {
		e.request(i, c)
	}
}

// request sends the upgrade request; its failure is that of connect(2) too.
func (e *engine) request(i int, c *conn) {
	var key [24]byte
	n := e.plan.First + i
	b := e.requests[n%len(e.requests)].append(e.buf[:0], n, e.seed.appendKey(key[:0], n))
	c.state = asked
	if errno := c.send(b); errno != 0 {
		e.fail(i, c, machine.ErrnoName(errno))
	}
}

// fail ends a handshake.
func (e *engine) fail(i int, c *conn, reason string) {
	e.closeConn(c)
	e.dial.flying--
	count(&e.total.Failures, reason)
	if e.herd.has(i) && reason != "interrupted" {
		c.tries = min(c.tries+1, 6)
		pause := 50 * time.Millisecond << c.tries
		e.again(i, c, pause/2+rand.N(pause))
		return
	}
	c.state = idle
	e.dial.pending--
}

// again dials a connection anew after a pause.
func (e *engine) again(i int, c *conn, pause time.Duration) {
	c.state = waiting
	c.at = e.now + int64(pause)
	e.dial.queue.push(e.conns, i)
}

func (e *engine) closeConn(c *conn) {
	switch {
	case c.state == securing:
		_ = unix.Shutdown(int(c.fd), unix.SHUT_RDWR) // ends the TLS handshake, and shaken closes it
	case c.fd >= 0:
		floor.Close(int(c.fd))
	}
	c.fd, c.extra = -1, nil
}

// welcome notes that a handshake succeeded.
func (e *engine) welcome(i int, c *conn) {
	now := machine.Now()
	e.record(HistHandshake, now-c.at)
	c.state, c.tries, c.retry = opened, 0, 0
	e.dial.flying--
	e.dial.pending--
	e.total.Open++
	e.total.Opened++
	e.herd.returned(&e.ledger, i)
	e.check(i, c, e.echo.joined(&e.ledger, e.now, i, c))
}
