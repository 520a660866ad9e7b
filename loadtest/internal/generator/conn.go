//go:build linux

package generator

import (
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
)

// The life of a connection.
const (
	idle     = iota // not wanted, or not yet
	waiting         // in the dial queue
	dialing         // connect(2) is on its way
	securing        // the TLS handshake has the socket
	asked           // the request is sent
	opened
)

// conn is all that a connection costs while nothing is half-read or unsent.
type conn struct {
	extra *extra
	at    int64  // when it is due in the dial queue; then when the handshake or the message that runs began
	fd    int32  // -1 without one
	high  uint32 // the highest sequence delivered
	sent  uint32 // messages of the echo
	got   uint32 // and their replies
	retry uint32 // milliseconds that goodbye asked for
	state uint8
	tries uint8 // in a row that failed
}

// extra is what a connection has only for moments.
type extra struct {
	half     []byte   // of a frame or response head that is not whole
	fragment []byte   // of a message that is not whole
	out      []byte   // refused by the socket
	tls      *secured // stays, where TLS is spoken
}

// more returns the connection's extra, a new one if it has none.
func (c *conn) more() *extra {
	if c.extra == nil {
		c.extra = &extra{}
	}
	return c.extra
}

// less lets go of an extra that holds nothing.
func (c *conn) less() {
	if x := c.extra; x != nil && x.tls == nil && len(x.half)+len(x.fragment)+len(x.out) == 0 {
		c.extra = nil
	}
}

// free says that the socket holds nothing back.
func (c *conn) free() bool {
	return c.state == opened && (c.extra == nil || len(c.extra.out) == 0)
}

// shaking says that a handshake is not over.
func (c *conn) shaking() bool { return c.state >= dialing && c.state <= asked }

// send writes b whole.
func (c *conn) send(b []byte) unix.Errno {
	if c.extra != nil && c.extra.tls != nil {
		sealed, err := c.extra.tls.seal(b)
		if err != nil {
			return unix.EPROTO // TLS has ended before
		}
		b = sealed
	}
	return c.put(b)
}

// put gives b to the socket; what that refuses is kept and sent when it can be.
func (c *conn) put(b []byte) unix.Errno {
	n := 0
	if c.extra == nil || len(c.extra.out) == 0 {
		var errno unix.Errno
		if n, errno = floor.Send(int(c.fd), b); errno != 0 && errno != unix.EAGAIN {
			return errno
		}
	}
	if n < len(b) {
		x := c.more()
		x.out = append(x.out, b[n:]...)
	}
	return 0
}
