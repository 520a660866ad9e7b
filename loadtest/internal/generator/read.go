//go:build linux

package generator

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/wire"
)

// read takes what a socket has; a read that does not fill the buffer has
// emptied it, but for the end of the stream, which no other event tells.
func (e *engine) read(i int, c *conn, ending bool) {
	for {
		n, errno := floor.Recv(int(c.fd), e.buf)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0:
			e.ended(i, c, machine.ErrnoName(errno))
			return
		case n == 0:
			e.ended(i, c, "end of stream")
			return
		}
		if !e.receive(i, c, e.buf[:n]) || n < len(e.buf) && !ending {
			return
		}
	}
}

// receive takes what came from a socket. It returns false when the connection
// is gone.
func (e *engine) receive(i int, c *conn, b []byte) bool {
	if c.extra != nil && c.extra.tls != nil {
		return e.decrypt(i, c, b)
	}
	return e.take(i, c, b)
}

// ended is the end of a socket, in or after the handshake.
func (e *engine) ended(i int, c *conn, how string) {
	if c.state == opened {
		e.lose(i, c, how)
	} else {
		e.fail(i, c, how)
	}
}

// lose ends an open connection.
func (e *engine) lose(i int, c *conn, how string) {
	e.closeConn(c)
	e.total.Open--
	count(&e.total.Lost, how)
	e.deliver.lost(i)
	e.echo.lost(i, c)
	if !e.herd.has(i) {
		c.state = idle
		return
	}
	e.dial.pending++
	e.again(i, c, e.herd.left(i, c))
}

// check loses a connection whose socket has failed.
func (e *engine) check(i int, c *conn, errno unix.Errno) {
	if errno != 0 {
		e.lose(i, c, machine.ErrnoName(errno))
	}
}

// take reads b, which came behind what was left over before. It returns false
// when the connection is gone.
func (e *engine) take(i int, c *conn, b []byte) bool {
	if x := c.extra; x != nil && len(x.half) > 0 {
		b = append(x.half, b...)
		x.half = nil
	}
	if c.state == asked {
		var key [24]byte
		size, reason := readHead(b, e.seed.appendKey(key[:0], e.plan.First+i))
		if reason != "" {
			e.fail(i, c, reason)
			return false
		}
		if size == 0 {
			c.more().half = slices.Clone(b)
			return true
		}
		b = b[size:]
		e.welcome(i, c)
	}
	for len(b) > 0 {
		h, size := wire.ParseHeader(b)
		if size > 0 && (h.Length < 0 || h.Length > maxFrame || h.Masked || h.Rsv != 0) {
			e.lose(i, c, "not a frame that a server may send")
			return false
		}
		if size == 0 || int64(len(b)-size) < h.Length {
			c.more().half = slices.Clone(b)
			return true
		}
		e.frame(i, c, h, b[size:size+int(h.Length)])
		if c.state != opened { // it has ended, and may even be dialled again
			return false
		}
		b = b[size+int(h.Length):]
	}
	c.less()
	return true
}

func (e *engine) frame(i int, c *conn, h ws.Header, payload []byte) {
	switch {
	case h.OpCode == ws.OpPing:
		e.total.Pings++
		e.check(i, c, c.send(wire.AppendMasked(nil, ws.OpPong, true, [4]byte{1, 2, 3, 4}, payload)))
	case h.OpCode == ws.OpClose:
		how := "close without a code"
		if len(payload) >= 2 {
			how = "close " + strconv.Itoa(int(binary.BigEndian.Uint16(payload)))
		}
		_ = c.send(wire.AppendMasked(nil, ws.OpClose, true, [4]byte{1, 2, 3, 4}, payload[:min(2, len(payload))])) // it is over either way
		e.lose(i, c, how)
	case h.OpCode == ws.OpPong:
	case !h.Fin:
		x := c.more()
		x.fragment = append(x.fragment, payload...)
		if len(x.fragment) > maxFrame {
			e.lose(i, c, "message over 16 MiB")
		}
	case h.OpCode == ws.OpContinuation && c.extra != nil:
		whole := append(c.extra.fragment, payload...)
		c.extra.fragment = nil
		e.message(i, c, whole)
	default:
		e.message(i, c, payload)
	}
}

// message takes a whole data message.
func (e *engine) message(i int, c *conn, b []byte) {
	e.total.Messages++
	switch {
	case bytes.HasPrefix(b, []byte(`{"welcome":`)):
	case bytes.HasPrefix(b, []byte(`{"goodbye":`)):
		var notice wire.Event
		if json.Unmarshal(b, &notice) == nil && notice.Goodbye != nil {
			e.total.Goodbyes++
			c.retry = uint32(max(notice.Goodbye.RetryAfterMS, 0))
		}
	case e.deliver.take(&e.ledger, i, c, b):
	case e.unicast.take(&e.ledger, e.plan.First+i, c, b):
	default:
		e.check(i, c, e.echo.replied(&e.ledger, e.now, i, c))
	}
}

// flush sends what was refused, and then the messages that were due meanwhile.
func (e *engine) flush(i int, c *conn) {
	x := c.extra
	n, errno := floor.Send(int(c.fd), x.out)
	if errno != 0 {
		if errno != unix.EAGAIN {
			e.ended(i, c, machine.ErrnoName(errno))
		}
		return
	}
	x.out = x.out[n:]
	if len(x.out) == 0 {
		x.out = nil
		c.less()
		e.check(i, c, e.echo.catchUp(&e.ledger, i, c))
	}
}
