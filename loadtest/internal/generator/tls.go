//go:build linux

package generator

import (
	"crypto/tls"
	"errors"
	"io"
	"os"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// handshake is one that is over.
type handshake struct {
	i   int
	t   *secured
	err error
}

// secure begins the TLS handshake of a connection, in a goroutine: crypto/tls
// cannot be left in the middle of one. The goroutine has the socket until it
// is over.
func (e *engine) secure(i int, c *conn) {
	t := &secured{fd: int(c.fd)}
	t.tls = tls.Client(t, e.plan.TLS.config((e.plan.First+i)%len(e.servers)))
	c.state = securing
	go func() {
		err := t.tls.Handshake()
		e.handshakes <- handshake{i, t, err}
		e.ring()
	}()
}

// shaken takes a connection back from its handshake.
func (e *engine) shaken(h handshake) {
	c, fd := &e.conns[h.i], h.t.fd
	h.t.fd = -1
	switch {
	case int(c.fd) != fd:
		floor.Close(fd) // given up meanwhile
	case h.err != nil:
		c.state = asked // the socket is the loop's again
		e.fail(h.i, c, machine.ErrnoName(h.err))
	default:
		c.more().tls = h.t
		e.request(h.i, c)
		if int(c.fd) == fd {
			e.read(h.i, c, true) // whatever has come meanwhile has been told already
		}
	}
}

// decrypt takes what came from the socket of a TLS connection. It returns
// false when the connection is gone.
func (e *engine) decrypt(i int, c *conn, b []byte) bool {
	t := c.extra.tls
	t.in = b
	if e.plain == nil {
		e.plain = make([]byte, 16<<10) // a record's worth
	}
	for {
		n, err := t.tls.Read(e.plain)
		if answer := t.written(); len(answer) > 0 { // of TLS itself
			if errno := c.put(answer); errno != 0 {
				e.ended(i, c, machine.ErrnoName(errno))
				return false
			}
		}
		if n > 0 && !e.take(i, c, e.plain[:n]) {
			return false
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return true
		case errors.Is(err, io.EOF):
			e.ended(i, c, "end of stream")
			return false
		default:
			e.ended(i, c, err.Error())
			return false
		}
	}
}
