package server

import (
	"bytes"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// serve reads what c has and acts on it. One call takes at most readSize
// bytes; a connection with more comes again when the others had theirs. toEnd
// has it read on after a short read too, because an end of file may stand
// behind it.
func (w *worker) serve(c *conn, toEnd bool) {
	if c.flags&flagHook != 0 {
		c.flags |= flagUnread // a hook is busy; read on when it returns
		return
	}
	if c.flags&flagDeaf != 0 {
		return
	}
	r := c.ref()
	n, errno := w.srv.kernel.Recv(int(c.fd), w.in)
	switch {
	case errno == netpoll.EAGAIN:
		return
	case errno == netpoll.EINTR:
		w.shard.again = append(w.shard.again, r)
		return
	case errno != 0 || n == 0:
		w.lost(c)
		return
	}
	w.shard.count.bytesIn.Add(uint64(n))
	w.received(c, w.in[:n])
	if c.ref() != r {
		return
	}
	// A short read means that the socket is empty (epoll(7)), unless the end
	// of file stands behind it.
	if n == len(w.in) || toEnd {
		if c.flags&flagHook != 0 {
			c.flags |= flagUnread
			return
		}
		w.shard.again = append(w.shard.again, r)
	}
}

// received takes bytes that came in for c, in whatever state it is.
func (w *worker) received(c *conn, b []byte) {
	switch c.state {
	case stateHead:
		w.takeHead(c, b)
	case stateOpen:
		c.stamp = w.now
		c.flags &^= flagPinged
		w.feed(c, b)
	case stateClosing:
		w.feedClosing(c, b)
		return
	}
	w.slim(c)
}

// feed parses the bytes of an open connection and acts on each whole frame.
// When a frame needs a hook, feed stops and keeps a copy of the bytes behind it
// in ext.rest until the hook returns.
func (w *worker) feed(c *conn, b []byte) {
	if rest := w.parse(c, b); len(rest) > 0 {
		c.ext.rest = bytes.Clone(rest)
	}
}

// parse acts on the frames of b until a hook is busy, and returns what is
// behind that one's frame.
func (w *worker) parse(c *conn, b []byte) (rest []byte) {
	h := &w.half
	if c.ext != nil {
		h = &c.ext.in
	}
	began := h.empty()
	for len(b) > 0 {
		f, n, done, bad := h.take(b, &w.srv.cfg)
		b = b[n:]
		if bad.code != 0 {
			w.half = half{}
			w.fail(c, bad)
			return nil
		}
		if !done {
			break
		}
		began = began || h.op == 0 // no message is unfinished
		w.shard.count.framesIn.Add(1)
		r := c.ref()
		w.frame(c, f)
		if c.ref() != r || c.state != stateOpen {
			w.half = half{}
			return nil
		}
		if c.flags&flagHook != 0 {
			break
		}
	}
	h = w.keepHalf(c, h)
	if began && !h.empty() {
		h.since = w.now
	}
	w.flushReplies(c)
	if c.flags&flagHook == 0 || len(b) == 0 { // all of it was taken, or sending the replies has ended c
		return nil
	}
	return b
}

// keepHalf moves an unfinished message from the worker's own half to c's, and
// returns the half that has it now. It does nothing if h is c's already, or
// empty.
func (w *worker) keepHalf(c *conn, h *half) *half {
	if h != &w.half || h.empty() {
		return h
	}
	e := w.extraOf(c)
	buf := e.in.buf
	e.in = *h
	if len(h.buf) == 0 {
		e.in.buf = buf
	}
	w.half = half{}
	return &e.in
}

// feedClosing looks for the peer's answer to our Close frame and throws away
// everything else. When it has come, and all of ours has left, the socket is
// closed: the server is the first to do so, RFC 6455 section 7.1.1.
func (w *worker) feedClosing(c *conn, b []byte) {
	h := &w.half
	if c.ext != nil {
		h = &c.ext.in
	}
	for len(b) > 0 && c.flags&(flagGarbled|flagPeerDone) == 0 {
		f, n, done, bad := h.take(b, &w.srv.cfg)
		b = b[n:]
		switch {
		case bad.code != 0:
			c.flags |= flagGarbled
		case done && f.op == ws.OpClose:
			c.flags |= flagPeerDone
		}
	}
	h = w.keepHalf(c, h)
	if c.flags&flagPeerDone != 0 && c.flags&flagFinished != 0 {
		w.half = half{}
		w.detach(c)
	}
	if c.flags&flagGarbled != 0 {
		*h = half{}
	}
}

// frame acts on one message or control frame.
func (w *worker) frame(c *conn, f frame) {
	if f.op.IsControl() && !w.controlAllowed(c) {
		w.fail(c, fault{wire.ClosePolicy, "too many control frames"})
		return
	}
	switch f.op {
	case ws.OpPing:
		w.pong(c, f.payload)
	case ws.OpPong:
	case ws.OpClose:
		w.peerClosed(c, f.payload)
	default:
		w.message(c, f)
	}
}

// pong answers a ping. While an outbox waits only the newest pong is kept, and
// it goes before the data: RFC 6455 section 5.5.3.
func (w *worker) pong(c *conn, payload []byte) {
	if c.ext != nil && !c.ext.out.empty() {
		c.ext.out.pong = wire.AppendFrame(nil, ws.OpPong, payload)
		return
	}
	w.reply(ws.OpPong, payload)
}

// closeCode returns the code of a Close frame's payload, closeNoStatus if it has
// none, or what is wrong with it: RFC 6455 sections 5.5.1 and 7.4.
func closeCode(payload []byte) (wire.CloseCode, fault) {
	switch len(payload) {
	case 0:
		return closeNoStatus, fault{}
	case 1:
		return 0, fault{wire.CloseProtocolError, "close frame of one byte"}
	}
	code := wire.CloseCode(payload[0])<<8 | wire.CloseCode(payload[1])
	if !code.ValidReceived() {
		return 0, fault{wire.CloseProtocolError, "invalid close code"}
	}
	if !utf8.Valid(payload[2:]) {
		return 0, fault{wire.CloseInvalidData, "close reason is not UTF-8"}
	}
	return code, fault{}
}

// peerClosed answers a Close frame with its own code, RFC 6455 section 5.5.1.
func (w *worker) peerClosed(c *conn, payload []byte) {
	code, bad := closeCode(payload)
	if bad.code != 0 {
		w.fail(c, bad)
		return
	}
	w.flushReplies(c)
	if c.state != stateOpen {
		return
	}
	reason := ""
	if len(payload) > 2 {
		reason = string(payload[2:])
	}
	w.endOpen(c, code, byClient, reason)
	w.close(c, code, "")
}

// message gives a data message to the OnMessage hook, or takes it as a command.
func (w *worker) message(c *conn, f frame) {
	if w.srv.cfg.OnMessage != nil {
		w.hookMessage(c, f)
		return
	}
	w.unhandled(c, f)
}

// unhandled acts on a message that OnMessage did not handle: text is a command,
// binary closes with 1003.
func (w *worker) unhandled(c *conn, f frame) {
	if f.op == ws.OpBinary {
		w.fail(c, fault{wire.CloseUnsupported, "binary messages are not spoken here"})
		return
	}
	w.command(c, f.payload)
}

// fail closes a connection that broke the protocol. The replies to what it sent
// before go out first.
func (w *worker) fail(c *conn, bad fault) {
	r := c.ref()
	w.flushReplies(c)
	if c.ref() == r {
		c.flags |= flagGarbled
		w.shut(c, bad.code, bad.reason)
	}
}

// controlAllowed counts a control frame and reports whether c may send it. At
// most 2 × MaxControl may be on the count; the sweep takes MaxControl off for
// each second. Right after a stall of the process nothing is counted, because
// frames that were held up come all at once.
func (w *worker) controlAllowed(c *conn) bool {
	if w.exact < w.shard.amnesty {
		return true
	}
	if c.control++; int(c.control) <= 2*w.srv.cfg.MaxControl {
		return true
	}
	w.clock() // the process may have been stopped since this round began
	w.noticeStall()
	return w.exact < w.shard.amnesty
}
