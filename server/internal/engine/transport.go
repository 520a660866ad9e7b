package engine

import (
	"net/netip"

	"github.com/tocsin-push/tocsin/netpoll"
)

// A connection's bytes come and go through receive and transmit alone. What
// waits in an outbox has not passed transmit yet.

// receive reads what c's socket has into b, without blocking: recv(2). A call
// that a signal has interrupted is repeated: no edge would tell of the rest.
func (t *Turn) receive(c *Conn, b []byte) (n int, errno netpoll.Errno) {
	for {
		if n, errno = t.kernel.Recv(int(c.fd), b); errno != netpoll.EINTR {
			return n, errno
		}
	}
}

// transmit writes as much of b as c's socket takes, without blocking: send(2). It
// repeats a call as receive does.
func (t *Turn) transmit(c *Conn, b []byte) (n int, errno netpoll.Errno) {
	for {
		if n, errno = t.kernel.Send(int(c.fd), b); errno != netpoll.EINTR {
			return n, errno
		}
	}
}

// broken reports whether transmit failed because of more than a full socket.
func broken(errno netpoll.Errno) bool { return errno != 0 && errno != netpoll.EAGAIN }

// Peer returns the address of the other end of c, the zero value if it has none.
func (t *Turn) Peer(c *Conn) netip.AddrPort { return t.kernel.Peer(int(c.fd)) }
