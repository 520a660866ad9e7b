package server

import (
	"slices"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// extraOf returns c's extra, which it makes if there is none.
func (w *worker) extraOf(c *conn) *extra {
	if c.ext == nil {
		s := w.shard
		if n := len(s.extras); n > 0 {
			c.ext, s.extras = s.extras[n-1], s.extras[:n-1]
		} else {
			c.ext = &extra{}
		}
	}
	return c.ext
}

// slim returns c's extra to the shard's free list when it is idle. If something
// else in it is needed, it frees the empty buffers: an idle connection keeps no
// buffer (docs/design.md, law 7).
func (w *worker) slim(c *conn) {
	switch e := c.ext; {
	case e == nil:
	case e.idle():
		w.recycle(e)
		c.ext = nil
	default:
		e.trim()
	}
}

// recycle empties e and puts it on the shard's free list. It keeps small
// buffers and drops large ones.
func (w *worker) recycle(e *extra) {
	s := w.shard
	if len(s.extras) >= 64 {
		return
	}
	q, buf := e.out.q[:0], e.in.buf[:0]
	if cap(q) > 32 {
		q = nil
	}
	if cap(buf) > 1024 {
		buf = nil
	}
	*e = extra{}
	e.out.q, e.in.buf = q, buf
	s.extras = append(s.extras, e)
}

// reply adds a frame to what flushReplies will send.
func (w *worker) reply(op ws.OpCode, payload []byte) { w.out = wire.AppendFrame(w.out, op, payload) }

// flushReplies sends what was collected in w.out to c, the connection that is
// being served.
func (w *worker) flushReplies(c *conn) {
	if len(w.out) == 0 {
		return
	}
	b := w.out
	w.out = w.out[:0]
	if cap(b) > joinSize {
		w.out = make([]byte, 0, 4<<10)
	}
	w.send(c, b)
}

// send sends b, whole frames of c's own, behind what waits for it. What the
// socket does not take is copied to the outbox.
func (w *worker) send(c *conn, b []byte) {
	left := 0
	if c.ext == nil || c.ext.out.empty() {
		n, errno := w.srv.kernel.Send(int(c.fd), b)
		if n == len(b) {
			return
		}
		if broken(errno) {
			w.lost(c)
			return
		}
		left = n
	}
	o := &w.extraOf(c).out
	if len(o.q) > 0 && o.bytes+len(b) > w.srv.cfg.MaxOutbox && c.state == stateOpen {
		w.cut(c, cutOutbox)
		return
	}
	o.push(pendingOut{b: append([]byte(nil), b...), queued: w.now}, left)
	w.budget(len(b) - left)
}

// broken reports whether a send failed because of more than a full socket or a
// signal.
func broken(errno netpoll.Errno) bool {
	return errno != 0 && errno != netpoll.EAGAIN && errno != netpoll.EINTR
}

// flush sends what waits in c's outbox, as much as the socket takes.
func (w *worker) flush(c *conn) {
	o := &c.ext.out
	for !o.empty() {
		w.loseAll(c, dropTTL, func(m *message) bool { return m.expired(w.exact) })
		w.srv.outboxBytes.Add(int64(o.usePong(w.now)))
		b := o.fill(w.join[:0])
		if len(b) == 0 {
			break
		}
		n, errno := w.srv.kernel.Send(int(c.fd), b)
		if broken(errno) {
			w.lost(c)
			return
		}
		o.sent(n, w.now)
		w.srv.outboxBytes.Add(-int64(n))
		if n < len(b) {
			return
		}
	}
	if c.state == stateClosing {
		w.finish(c)
		return
	}
	w.slim(c)
}

// budget counts n more bytes waiting, and sheds load when all outboxes
// together are over Config.OutboxBudget.
func (w *worker) budget(n int) {
	if w.srv.outboxBytes.Add(int64(n)) > w.srv.cfg.OutboxBudget {
		w.shed()
	}
}

// shed makes room when all outboxes together are over Config.OutboxBudget. It
// looks at the connections of this shard, the longest outboxes first. What the
// policies of topics let go is dropped; if that is not enough connections are
// cut, and those that were cut before end at once. It stops at 1/64 under the
// budget, because each call looks at all of the shard's slots. The shard that
// goes over the budget is the one that sheds, so the sum exceeds it by at most
// one message a worker.
func (w *worker) shed() {
	s := w.shard
	var waiting []*conn
	for i := s.slots.next(0); i >= 0; i = s.slots.next(i + 1) {
		if c := s.at(i); c.ext != nil && c.ext.out.bytes > 0 {
			waiting = append(waiting, c)
		}
	}
	slices.SortFunc(waiting, func(a, b *conn) int { return b.ext.out.bytes - a.ext.out.bytes })
	enough := w.srv.cfg.OutboxBudget - w.srv.cfg.OutboxBudget/64
	for _, c := range waiting {
		if w.srv.outboxBytes.Load() <= enough {
			return
		}
		if c.format != formatRaw { // it could not be told
			w.loseAll(c, dropBudget, func(m *message) bool { return m.policy != policyDisconnect })
		}
	}
	for _, c := range waiting {
		switch {
		case w.srv.outboxBytes.Load() <= enough:
			return
		case c.ext == nil: // ended meanwhile: cut queues a Close frame, which sheds again
		case c.state == stateOpen:
			w.cut(c, cutBudget)
		default:
			w.detach(c)
		}
	}
}

// cut ends a connection that is too slow.
func (w *worker) cut(c *conn, why cutReason) {
	w.srv.stats.cut(why)
	w.srv.log.sometimesInfo("a slow reader was closed with 3008, see "+cutKnobs[why], "reason", cutNames[why], "user", c.user)
	w.shut(c, wire.CloseSlow, why.String())
}

// shut starts the closing handshake of c. It takes c out of its topics and its
// user's devices and queues a Close frame. Queued messages are dropped, unless
// the close code is 1000, 3001 or 3503. The peer then has CloseTimeout to
// answer and close. A connection that is not upgraded yet gets a 503 instead.
func (w *worker) shut(c *conn, code wire.CloseCode, reason string) {
	switch c.state {
	case stateFree, stateClosing:
		return
	case stateHead, stateAuth:
		w.refuse(c, &refusal{503, rejectShutdown, reason})
		return
	}
	w.endOpen(c, code, byServer, reason)
	w.close(c, code, reason)
}

// endOpen does the accounts of the end of an open connection: it leaves its
// topics and its user, is counted, and OnClose is told.
func (w *worker) endOpen(c *conn, code wire.CloseCode, by, reason string) {
	w.logClose(c, code, by, reason)
	w.leaveAll(c)
	w.srv.stats.closed(code, by)
	w.ended(c, code)
}

// close sends the Close frame and goes to stateClosing.
func (w *worker) close(c *conn, code wire.CloseCode, reason string) {
	c.state, c.stamp = stateClosing, w.now
	if e := c.ext; e != nil {
		if c.flags&flagGarbled != 0 {
			e.in = half{}
		}
		e.rest, e.call = nil, nil
		c.flags &^= flagHook
		if code != wire.CloseShutdown && code != wire.CloseNormal && code != wire.CloseForceDisconnect {
			w.dropQueued(c)
		}
	}
	var buf [ws.MaxHeaderSize + ws.MaxControlFramePayloadSize]byte
	frame := wire.AppendClose(buf[:0], code, reason)
	if code == closeNoStatus { // the peer's Close had no code; neither has the answer
		frame = wire.AppendHeader(buf[:0], ws.OpClose, true, 0)
	}
	w.send(c, frame)
	if c.state == stateClosing && (c.ext == nil || c.ext.out.empty()) {
		w.finish(c)
	}
}

// dropQueued drops what waits for c, except an entry that has begun to leave.
func (w *worker) dropQueued(c *conn) {
	o := &c.ext.out
	o.pong = nil
	for len(o.q) > o.begun() {
		last := len(o.q) - 1
		if m := o.q[last].m; m != nil {
			w.unqueued(m, dropGone)
		}
		w.srv.outboxBytes.Add(-int64(o.drop(last)))
	}
}

// finish is called when everything has left. It sends the end of file, so that
// the peer can read all of it. If the peer has answered our Close already it
// closes the socket.
func (w *worker) finish(c *conn) {
	if c.flags&flagPeerDone != 0 {
		w.detach(c)
		return
	}
	if c.flags&flagFinished == 0 {
		c.flags |= flagFinished
		w.srv.kernel.CloseWrite(int(c.fd))
	}
}

// lost ends c without a closing handshake: the peer is gone or the socket failed.
func (w *worker) lost(c *conn) {
	w.abandon(c)
	w.detach(c)
}

// abandon counts the end of a connection that had no closing handshake, and
// takes an open one out of its topics and its user's devices.
func (w *worker) abandon(c *conn) {
	switch c.state {
	case stateOpen:
		w.endOpen(c, closeAbnormal, byLost, "")
	case stateHead, stateAuth:
		w.srv.stats.reject(rejectGone)
		w.srv.handshaking.Add(-1)
	}
}

// closeAbnormal is what RFC 6455 section 7.4.1 calls the end without a Close
// frame; closeNoStatus a Close frame without a code.
const (
	closeNoStatus wire.CloseCode = 1005
	closeAbnormal wire.CloseCode = 1006
)

// leaveAll takes an open connection out of its topics and its user's devices.
func (w *worker) leaveAll(c *conn) {
	s := w.shard
	local := s.local(c)
	s.open.remove(local)
	for i, sub := range c.subs {
		if sub != nil {
			w.leave(local, sub)
			c.subs[i] = nil
		}
	}
	if c.ext != nil {
		for _, sub := range c.ext.subs {
			w.leave(local, sub)
		}
		c.ext.subs = nil
	}
	if c.flags&flagListed != 0 {
		c.flags &^= flagListed
		w.srv.hub.logout(c)
	}
	if c.format == formatRaw {
		w.srv.hub.raw.Add(-1)
	}
	w.srv.opened.Add(-1)
}

func (w *worker) leave(local int, sub *subset) {
	sub.set.remove(local)
	w.srv.hub.leave(sub)
}

// detach frees the slot and closes the descriptor: the one place that does.
func (w *worker) detach(c *conn) {
	fd := int(c.fd)
	w.free(c)
	w.srv.kernel.Close(fd)
	w.srv.gone()
}

// free gives back the slot of c and all that hangs off it.
func (w *worker) free(c *conn) {
	s := w.shard
	if c.ext != nil {
		o := &c.ext.out
		for _, e := range o.q {
			if e.m != nil {
				w.unqueued(e.m, dropGone)
			}
		}
		w.srv.outboxBytes.Add(-int64(o.bytes))
		if call := c.ext.call; call != nil && c.state == stateAuth {
			call.stale = true
		}
		w.recycle(c.ext)
	}
	s.slots.remove(s.local(c))
	s.conns.Add(-1)
	*c = conn{fd: c.fd, gen: c.gen + 1}
}
