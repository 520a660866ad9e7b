package enginetest

import (
	"net"
	"slices"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// Peer is the other end of one connection.
type Peer struct {
	k      *Kernel
	FD     int            // -1 before it was accepted
	Ref    engine.Ref     // once its shard has it
	In     []byte         // on its way to the server
	EOF    bool           // behind In
	Heard  bool           // the server has read the EOF
	Out    []byte         // from the server, not yet read
	Ends   bool           // behind Out
	Room   int            // bytes that the socket takes until it refuses; negative: all
	Gone   bool           // the server has closed the descriptor
	Panics bool           // the next send to it does
	Broken bool           // it was reset: no call on the socket succeeds any more
	Sent   func(b []byte) // is told what the server has sent, nil if the socket was full; unless it is nil itself
	Edge   netpoll.Event  // that the next wait will report
	full   bool           // a send was refused; room makes an edge
	queued bool           // it is in Kernel.ready
}

// Socket makes a connection that the server has not accepted yet, under the
// lowest free descriptor.
func (k *Kernel) Socket() *Peer {
	fd := k.take()
	p := &Peer{k: k, FD: fd, Room: -1}
	k.fds[fd] = descriptor{peer: p}
	return p
}

// Alive returns how many connections the server has not closed.
func (k *Kernel) Alive() (n int) {
	for i := range k.fds {
		if p := k.fds[i].peer; p != nil && !p.Gone {
			n++
		}
	}
	return n
}

// Descriptors returns how many are open, those of listeners and reserves too.
func (k *Kernel) Descriptors() int { return k.open }

// Raise makes an edge, which the next wait may tell.
func (p *Peer) Raise(e netpoll.Event) {
	p.Edge.Readable = p.Edge.Readable || e.Readable
	p.Edge.Writable = p.Edge.Writable || e.Writable
	p.Edge.HangUp = p.Edge.HangUp || e.HangUp
	if !p.queued {
		p.queued = true
		p.k.ready = append(p.k.ready, p)
	}
}

// Readable reports whether the next wait will report p.
func (p *Peer) Readable() bool { return p.Edge != netpoll.Event{} }

// Write sends bytes to the server.
func (p *Peer) Write(b []byte) {
	p.In = append(p.In, b...)
	p.Raise(netpoll.Event{Readable: true})
}

// Send sends frames to the server.
func (p *Peer) Send(frames ...wstest.Frame) { p.Write(wstest.Encode(frames...)) }

// HangUp ends the peer's side.
func (p *Peer) HangUp() {
	p.EOF = true
	p.Raise(netpoll.Event{Readable: true, HangUp: true})
}

// Reset ends the connection as a peer does that is not there any more.
func (p *Peer) Reset() {
	p.Broken = true
	p.Raise(netpoll.Event{Readable: true, Writable: true, HangUp: true})
}

// Drain makes room for n more bytes; negative for any number.
func (p *Peer) Drain(n int) {
	p.Room = n
	if p.full {
		p.full = false
		p.Raise(netpoll.Event{Writable: true})
	}
}

// Frames reads what has come as whole frames and leaves the rest.
func (p *Peer) Frames() (out []wstest.Frame) {
	p.k.T.Helper()
	for {
		h, size := wire.ParseHeader(p.Out)
		if size == 0 || int64(len(p.Out)-size) < h.Length {
			return out
		}
		if h.Masked || h.Rsv != 0 || !h.Fin || h.OpCode == ws.OpContinuation || h.OpCode.IsReserved() {
			p.k.T.Fatalf("a bad frame from the server: %+v", h)
		}
		out = append(out, wstest.Frame{Op: h.OpCode, Payload: p.Out[size : size+int(h.Length)]})
		p.Out = p.Out[size+int(h.Length):]
	}
}

// Listener is a listening socket; it implements net.Listener as far as a server
// needs that.
type Listener struct {
	net.Listener
	k     *Kernel
	fd    int // of the server's own, once it has taken it
	queue []*Peer
	Down  bool // the server has closed it
}

// Listen returns a listening socket, for engine.Engine.Serve.
func (k *Kernel) Listen() *Listener { return &Listener{k: k, fd: -1} }

// Close implements net.Listener. The server has a descriptor of its own.
func (l *Listener) Close() error { return nil }

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 80} }

// close ends it and with it the connections that nobody has accepted.
func (l *Listener) close() {
	l.Down = true
	for _, p := range l.queue {
		p.Gone = true
	}
	l.queue = nil
}

// Connect returns a connection that waits to be accepted. What it writes at once
// is there when it is. It returns nil if nobody listens.
func (l *Listener) Connect() *Peer {
	if l.fd < 0 || l.Down {
		return nil
	}
	p := &Peer{k: l.k, FD: -1, Room: -1}
	l.queue = append(l.queue, p)
	return p
}

// Accepted reports whether the server has taken p.
func (p *Peer) Accepted() bool { return p.FD >= 0 }

// Conn is a connection that an http.Server has, see [Kernel.Hand].
type Conn struct {
	net.Conn
	peer *Peer
}

// Hand returns a connection whose request an http.Server has read, and what that
// has of it: engine.Guest takes it over.
func (k *Kernel) Hand() (*Peer, *Conn) {
	p := &Peer{k: k, FD: -1, Room: -1}
	return p, &Conn{peer: p}
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	if c.peer.FD < 0 {
		c.peer.Gone = true
	}
	return nil
}

// readyOf reports whether the set has something to tell.
func (k *Kernel) readyOf(set int) bool {
	return slices.ContainsFunc(k.ready, func(p *Peer) bool {
		return !p.Gone && p.Ref != 0 && p.Ref.Shard(len(k.sets)) == set && p.Edge != netpoll.Event{}
	}) || slices.ContainsFunc(k.stale, func(e netpoll.Event) bool { return engine.Ref(e.Key).Shard(len(k.sets)) == set })
}
