package engine

import (
	"net/netip"

	"github.com/tocsin-push/tocsin/netpoll"
)

// A connection's bytes come and go through receive and transmit alone. What
// waits in an outbox has not passed transmit yet.

// receive reads what c's socket has into b, without blocking: recv(2).
func (t *Turn) receive(c *Conn, b []byte) (n int, errno netpoll.Errno) {
	return t.kernel.Recv(int(c.fd), b)
}

// transmit writes as much of b as c's socket takes, without blocking: send(2).
func (t *Turn) transmit(c *Conn, b []byte) (n int, errno netpoll.Errno) {
	return t.kernel.Send(int(c.fd), b)
}

// broken reports whether transmit failed because of more than a full socket or
// a signal.
func broken(errno netpoll.Errno) bool {
	return errno != 0 && errno != netpoll.EAGAIN && errno != netpoll.EINTR
}

// Peer returns the address of the other end of c, the zero value if it has none.
func (t *Turn) Peer(c *Conn) netip.AddrPort { return t.kernel.Peer(int(c.fd)) }
