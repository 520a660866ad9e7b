//go:build linux

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// request is an upgrade request cut where the connection's number and its key
// go: {n} and {key}.
type request []string

func parseRequest(s string) request {
	var r request
	for s != "" {
		at := strings.IndexByte(s, '{')
		if at < 0 {
			return append(r, s)
		}
		word := ""
		for _, w := range []string{"{n}", "{key}"} {
			if strings.HasPrefix(s[at:], w) {
				word = w
			}
		}
		if word == "" {
			at, word = at+1, "" // a brace that means itself
		}
		if at > 0 {
			r = append(r, s[:at])
		}
		if word != "" {
			r = append(r, word)
		}
		s = s[at+len(word):]
	}
	return r
}

func (r request) append(dst []byte, n int, key []byte) []byte {
	for _, part := range r {
		switch part {
		case "{n}":
			dst = strconv.AppendInt(dst, int64(n), 10)
		case "{key}":
			dst = append(dst, key...)
		default:
			dst = append(dst, part...)
		}
	}
	return dst
}

// appendKey appends the Sec-WebSocket-Key of connection n; it is made of the
// number, so that nobody has to remember it.
func (e *engine) appendKey(dst []byte, n int) []byte {
	var raw [16]byte
	binary.LittleEndian.PutUint64(raw[:], e.seed)
	binary.LittleEndian.PutUint64(raw[8:], uint64(n))
	return base64.StdEncoding.AppendEncode(dst, raw[:])
}

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

// dialQueue is a heap of connections by when they are due.
type dialQueue []int32

func (q *dialQueue) push(conns []conn, i int) {
	*q = append(*q, int32(i))
	for at := len(*q) - 1; at > 0; {
		parent := (at - 1) / 2
		if conns[(*q)[parent]].at <= conns[(*q)[at]].at {
			return
		}
		(*q)[parent], (*q)[at] = (*q)[at], (*q)[parent]
		at = parent
	}
}

func (q *dialQueue) pop(conns []conn) int {
	h := *q
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	for at := 0; ; {
		child := 2*at + 1
		if child >= last {
			break
		}
		if child+1 < last && conns[h[child+1]].at < conns[h[child]].at {
			child++
		}
		if conns[h[at]].at <= conns[h[child]].at {
			break
		}
		h[at], h[child] = h[child], h[at]
		at = child
	}
	*q = h
	return int(first)
}

// clear gives up what waits.
func (q *dialQueue) clear(e *engine) {
	for _, i := range *q {
		e.conns[i].state = idle
		e.dial.pending--
	}
	*q = (*q)[:0]
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

func (e *engine) finishConnect() {
	if d := &e.dial; d.order != 0 && d.pending == 0 {
		e.end(d.phase)
		debug.FreeOSMemory() // what opening them took is not what holding them takes
		e.answer(tally{ID: d.order})
		d.order = 0
	}
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

// shaking says that a handshake is not over.
func (c *conn) shaking() bool { return c.state >= dialing && c.state <= asked }

// failAll ends the handshakes that are not over.
func (d *dialer) failAll(e *engine) {
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
	b := e.requests[n%len(e.requests)].append(e.buf[:0], n, e.appendKey(key[:0], n))
	c.state = asked
	if errno := e.send(c, b); errno != 0 {
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

func count(reasons *map[string]uint64, reason string) {
	if *reasons == nil {
		*reasons = map[string]uint64{}
	}
	(*reasons)[reason]++
}

// answered reads the response head at the start of b and returns how long it
// is, 0 if it is not whole, and why it is not an upgrade.
func (e *engine) answered(i int, b []byte) (size int, reason string) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	line, _, _ := bytes.Cut(b, []byte("\r\n"))
	proto, status, ok := bytes.Cut(line, []byte(" "))
	if !ok || !bytes.HasPrefix(proto, []byte("HTTP/1.")) {
		if end < 0 && len(b) < 16 {
			return 0, ""
		}
		return 0, "not HTTP"
	}
	if end < 0 {
		if len(b) > 16<<10 {
			return 0, "response head over 16 KiB"
		}
		return 0, ""
	}
	if code := string(status[:min(3, len(status))]); code != "101" {
		return 0, "HTTP " + code
	}
	var key [24]byte
	var accept [28]byte
	floor.AppendAccept(accept[:0], e.appendKey(key[:0], e.plan.First+i))
	if !bytes.Contains(b[:end], accept[:]) {
		return 0, "wrong Sec-WebSocket-Accept"
	}
	return end + 4, ""
}

// welcome notes that a handshake succeeded.
func (e *engine) welcome(i int, c *conn) {
	now := machine.Now()
	e.record(histHandshake, now-c.at)
	c.state, c.tries, c.retry = opened, 0, 0
	e.dial.flying--
	e.dial.pending--
	e.total.Open++
	e.total.Opened++
	e.herd.returned(e, i)
	e.echo.joined(e, i)
}
