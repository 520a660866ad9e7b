package engine

import (
	"bytes"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// serve reads what c has and acts on it. One call takes at most readSize
// bytes; a connection with more comes again when the others had theirs. toEnd
// has it read on after a short read too, because an end of file may stand
// behind it.
func (t *Turn) serve(c *Conn, toEnd bool) {
	switch {
	case c.state == stateDead || c.flags&flagDeaf != 0:
		return
	case c.flags&flagCall != 0:
		c.flags |= flagUnread // read on when the call returns
		return
	}
	n, errno := t.receive(c, t.in)
	switch {
	case errno == netpoll.EAGAIN:
		return
	case errno != 0 || n == 0:
		t.lose(c)
		return
	}
	t.shard.count.bytesIn.Add(uint64(n))
	t.received(c, t.in[:n])
	// A short read means that the socket is empty (epoll(7)), unless the end
	// of file stands behind it.
	switch {
	case c.state == stateDead || n < len(t.in) && !toEnd:
	case c.flags&flagCall != 0:
		c.flags |= flagUnread
	default:
		t.shard.unread = append(t.shard.unread, c.Ref())
	}
}

// received takes bytes that came in for c, in whatever state it is.
func (t *Turn) received(c *Conn, b []byte) {
	switch c.state {
	case stateHead:
		t.takeHead(c, b)
	case stateOpen:
		c.stamp = t.now
		c.flags &^= flagPinged
		t.read(c, b)
	case stateClosing:
		t.readClosing(c, b)
		return
	}
	t.slim(c)
}

// read parses the bytes of an open connection and acts on each whole frame.
// When a frame needs a call, read stops and keeps a copy of the bytes behind it
// in ext.rest until the call returns.
func (t *Turn) read(c *Conn, b []byte) {
	if rest := t.parse(c, b); len(rest) > 0 {
		c.ext.rest = bytes.Clone(rest)
	}
}

// parse acts on the frames of b until a call is busy, and returns what is
// behind that one's frame.
func (t *Turn) parse(c *Conn, b []byte) (rest []byte) {
	var own wire.Reader // for a connection that has none
	in := &own
	if c.ext != nil {
		in = &c.ext.in
	}
	began := in.Empty()
	for len(b) > 0 {
		f, n, done, bad := in.Next(b, t.limits)
		b = b[n:]
		if bad.Code != 0 {
			t.fail(c, bad)
			return nil
		}
		if !done {
			break
		}
		began = began || !in.InMessage()
		t.shard.count.framesIn.Add(1)
		t.frame(c, f)
		if c.state != stateOpen || c.flags&flagCall != 0 {
			break
		}
	}
	if in = t.keep(c, in); began && !in.Empty() {
		c.ext.began = t.now
	}
	t.flushReplies(c)
	switch {
	case len(b) == 0 || c.state == stateDead:
		return nil
	case c.state == stateClosing: // the peer's answer may stand there, or a frame before it may begin
		t.readClosing(c, b)
		return nil
	}
	return b
}

// frame acts on one message or control frame.
func (t *Turn) frame(c *Conn, f wire.Frame) {
	if f.Op.IsControl() && !t.controlAllowed(c) {
		t.fail(c, wire.Fault{Code: wire.ClosePolicy, Reason: "too many control frames"})
		return
	}
	switch f.Op {
	case ws.OpPing:
		t.pong(c, f.Payload)
	case ws.OpPong:
	case ws.OpClose:
		t.peerClosed(c, f.Payload)
	default:
		t.app.Message(t, c, f.Op, f.Payload)
	}
}

// pong answers a ping. While an outbox waits only the newest pong is kept, and
// it goes before the data: RFC 6455 section 5.5.3.
func (t *Turn) pong(c *Conn, payload []byte) {
	if c.ext != nil && !c.ext.out.empty() {
		c.ext.out.pong = wire.AppendFrame(nil, ws.OpPong, payload)
		return
	}
	t.reply(ws.OpPong, payload)
}

// controlAllowed counts a control frame and reports whether c may send it. At
// most 2 × MaxControl may be on the count; the sweep takes MaxControl off for
// each second. Right after a stall of the process nothing is counted, because
// frames that were held up come all at once.
func (t *Turn) controlAllowed(c *Conn) bool {
	if t.exact < t.shard.amnesty {
		return true
	}
	if c.control++; int(c.control) <= 2*t.cfg.MaxControl {
		return true
	}
	t.clock() // the process may have been stopped since this round began
	t.noticeStall()
	return t.exact < t.shard.amnesty
}
