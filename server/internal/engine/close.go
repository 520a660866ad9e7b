package engine

import (
	"context"
	"log/slog"
	"net/http"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// The life of a connection, and its end. Every arrow to the right or down is a
// function of this file; nobody else changes a state to closing, dead or free.
//
//	         takeHead          Upgrade
//	  head ───────────► auth ───────────► open
//	   │ │              │  │              │  │
//	   │ └── Refuse ──┐ │  │              │  │
//	   │              ▼ ▼  │              │  │
//	   │            closing│◄── Close ────┘  │    the peer has CloseTimeout
//	   │              │    │   fail, cut     │    to answer and to close
//	  lose          die   lose             lose
//	   │              │    │                 │
//	   └──────────────┴────┴──────► dead ◄───┘    in the middle of an event
//	                                 │
//	                               reap            at its end
//	                                 ▼
//	                                free
//
// A connection that dies keeps its slot until the event is over, so that
// callers need not ask whether it is still theirs. The reaper alone frees slots
// and closes descriptors.

type state uint8

const (
	stateFree    state = iota
	stateHead          // accepted; the request head is not whole
	stateAuth          // the head is whole; the App decides
	stateOpen          // upgraded
	stateClosing       // Close or a refusal was sent or is queued; reads are thrown away
	stateDead          // ended; the reaper comes at the end of the event
)

// closeAbnormal is what RFC 6455 section 7.4.1 calls the end without a Close
// frame; closeNoStatus a Close frame without a code.
const (
	closeNoStatus wire.CloseCode = 1005
	closeAbnormal wire.CloseCode = 1006
)

// End says how an upgraded connection ended.
type End struct {
	Code   wire.CloseCode
	By     By
	Reason string // of the Close frame; it lives until App.Closed returns
	Cut    Cut    // if it was too slow, else ""
}

// Refuse answers an upgrade with something else than 101: status, and text as
// the body. The connection then ends. reason is what it counts as.
func (t *Turn) Refuse(c *Conn, status int, reason Reject, text string) {
	t.refuse(c, &refusal{status, reason, text})
}

// refuse sends the refusal and then the end of file. Nothing more is read of c;
// it is closed when the peer closes, or after CloseTimeout.
func (t *Turn) refuse(c *Conn, no *refusal) {
	t.countRefusal(c, no)
	t.become(c, stateClosing)
	c.flags = c.flags&^flagCall | flagDeaf
	if x := c.ext; x != nil {
		x.dropCall()
		x.head, x.in, x.rest, x.call = headBuf{}, wire.Reader{}, nil, nil
	}
	t.out = t.e.appendRefusal(t.out[:0], no.status, no.text)
	t.flushReplies(c)
	t.finishIfSent(c)
}

// expire is refuse for a peer that was too slow already: one write, and the end
// at once.
func (t *Turn) expire(c *Conn, no *refusal) {
	t.countRefusal(c, no)
	var buf [512]byte
	t.transmit(c, t.e.appendRefusal(buf[:0], no.status, no.text))
	t.die(c)
}

func (t *Turn) countRefusal(c *Conn, no *refusal) {
	t.counts.rejects.add(no.reject, 1)
	t.counts.handshaking.Add(-1)
	if !t.e.debugs() {
		return
	}
	// It never says what was asked for: a query may have a token.
	t.cfg.Logger.Debug("refused", "conn", t.cfg.NameOf(c.Ref()), "peer", t.Peer(c).String(), "status", no.status, "reason", string(no.reject), "text", no.text)
}

func (e *Engine) debugs() bool {
	return e.cfg.Logger.Enabled(context.Background(), slog.LevelDebug)
}

// become changes the state of c, which begins now.
func (t *Turn) become(c *Conn, s state) { c.state, c.stamp = s, t.now }

// Close starts the closing handshake of c: it sends what was replied, then a
// Close frame, and App.Closed is called before it returns. Queued messages are
// dropped, unless the code is 1000, 3001 or 3503. The peer has CloseTimeout to
// answer and close. A connection that is not upgraded yet gets a 503 instead,
// one that is closing already goes on with that.
func (t *Turn) Close(c *Conn, code wire.CloseCode, reason string) {
	t.flushReplies(c)
	t.shut(c, End{Code: code, By: ByServer, Reason: reason})
}

// shut is Close for connections other than the one that is being served.
func (t *Turn) shut(c *Conn, end End) {
	switch c.state {
	case stateHead, stateAuth:
		t.refuse(c, &refusal{http.StatusServiceUnavailable, RejectShutdown, end.Reason})
	case stateOpen:
		t.count(c, end)
		t.sendClose(c, end.Code, end.Reason)
	}
}

// fail closes a connection that broke the protocol. The replies to what it sent
// before go out first.
func (t *Turn) fail(c *Conn, bad wire.Fault) {
	t.flushReplies(c)
	c.flags |= flagGarbled
	t.shut(c, End{Code: bad.Code, By: ByServer, Reason: bad.Reason})
}

// cut ends a connection that is too slow.
func (t *Turn) cut(c *Conn, why Cut) {
	t.counts.cuts.add(why, 1)
	t.shut(c, End{Code: wire.CloseSlow, By: ByServer, Reason: cuts[why].text, Cut: why})
}

// peerClosed answers a Close frame with its own code, RFC 6455 section 5.5.1.
func (t *Turn) peerClosed(c *Conn, payload []byte) {
	code, bad := closeCode(payload)
	if bad.Code != 0 {
		t.fail(c, bad)
		return
	}
	t.flushReplies(c)
	if c.state != stateOpen {
		return
	}
	reason := ""
	if len(payload) > 2 {
		reason = string(payload[2:])
	}
	t.count(c, End{Code: code, By: ByClient, Reason: reason})
	t.sendClose(c, code, "")
}

// lose ends c without a closing handshake: the peer is gone or the socket failed.
func (t *Turn) lose(c *Conn) {
	t.abandon(c)
	t.die(c)
}

// abandon does the accounts of a connection that ends without a handshake.
func (t *Turn) abandon(c *Conn) {
	switch c.state {
	case stateOpen:
		t.count(c, End{Code: closeAbnormal, By: ByLost})
	case stateHead, stateAuth:
		t.counts.rejects.add(RejectGone, 1)
		t.counts.handshaking.Add(-1)
	}
}

// count does the accounts of the end of an open connection, and tells the App.
// It is open no longer when the App is told, so that a panic there is no reason
// to be told again.
func (t *Turn) count(c *Conn, end End) {
	t.become(c, stateClosing)
	t.shard.open.remove(t.shard.local(c))
	t.e.formats[c.codec].Add(-1)
	t.counts.opened.Add(-1)
	t.counts.closed(end.Code, end.By)
	t.app.Closed(t, c, end)
}

// sendClose sends the Close frame of a connection that was counted as closed.
func (t *Turn) sendClose(c *Conn, code wire.CloseCode, reason string) {
	var rest []byte
	if x := c.ext; x != nil {
		rest = x.rest
		if c.flags&flagGarbled != 0 {
			x.in = wire.Reader{}
		}
		x.dropCall()
		x.rest, x.call = nil, nil
		c.flags &^= flagCall
		if code != wire.CloseShutdown && code != wire.CloseNormal && code != wire.CloseForceDisconnect {
			t.dropQueued(c)
		}
	}
	var buf [ws.MaxHeaderSize + ws.MaxControlFramePayloadSize]byte
	frame := wire.AppendClose(buf[:0], t.cfg.Codecs[c.codec].CloseCode(code), reason)
	if code == closeNoStatus { // the peer's Close had no code; neither has the answer
		frame = wire.AppendHeader(buf[:0], ws.OpClose, true, 0)
	}
	t.send(c, frame)
	t.finishIfSent(c)
	if len(rest) > 0 && c.state == stateClosing { // a frame may have begun there, in front of the peer's answer
		t.readClosing(c, rest)
	}
}

// readClosing looks for the peer's answer to our Close frame and throws away
// everything else. When it has come, and all of ours has left, the socket is
// closed: the server is the first to do so, RFC 6455 section 7.1.1.
func (t *Turn) readClosing(c *Conn, b []byte) {
	var own wire.Reader
	in := &own
	if c.ext != nil {
		in = &c.ext.in
	}
	for len(b) > 0 && c.flags&(flagGarbled|flagPeerDone) == 0 {
		f, n, done, bad := in.Next(b, t.limits)
		b = b[n:]
		switch {
		case bad.Code != 0:
			c.flags |= flagGarbled
		case done && f.Op == ws.OpClose:
			c.flags |= flagPeerDone
		}
	}
	switch {
	case c.flags&flagPeerDone != 0 && c.flags&flagFinished != 0:
		t.die(c)
	case c.flags&flagGarbled != 0:
		in.Reset(0)
	default:
		t.keep(c, in)
	}
}

// finishIfSent is finish, if nothing waits for a closing connection.
func (t *Turn) finishIfSent(c *Conn) {
	if c.state == stateClosing && (c.ext == nil || c.ext.out.empty()) {
		t.finish(c)
	}
}

// finish is called when everything has left. It sends the end of file, so that
// the peer can read all of it. If the peer has answered our Close already it
// closes the socket.
func (t *Turn) finish(c *Conn) {
	if c.flags&flagPeerDone != 0 {
		t.die(c)
		return
	}
	if c.flags&flagFinished == 0 {
		c.flags |= flagFinished
		t.kernel.CloseWrite(int(c.fd))
	}
}

// die ends c: nothing more is read or sent, and the reaper will free it. Its
// accounts are done already.
func (t *Turn) die(c *Conn) {
	if c.state == stateDead {
		return
	}
	if x := c.ext; x != nil {
		t.dropAll(x)
		x.dropCall()
		if x.call != nil && c.state == stateAuth {
			x.call.stale = true
		}
	}
	c.state = stateDead
	t.shard.dead = append(t.shard.dead, c)
}

// reap frees the slots of those that have died, and closes their descriptors.
// It comes at the end of every event, when nobody holds them any more.
func (t *Turn) reap() {
	s := t.shard
	if len(s.dead) == 0 {
		return
	}
	for _, c := range s.dead {
		fd := int(c.fd)
		t.free(c)
		t.kernel.Close(fd)
	}
	clear(s.dead)
	s.dead = s.dead[:0]
}

// free gives back the slot of c and all that hangs off it.
func (t *Turn) free(c *Conn) {
	s := t.shard
	if c.ext != nil {
		t.recycle(c.ext)
	}
	s.slots.remove(s.local(c))
	s.conns.Add(-1)
	*c = Conn{fd: c.fd, gen: c.gen + 1}
	t.e.gone()
}

// closeCode returns the code of a Close frame's payload, closeNoStatus if it has
// none, or what is wrong with it: RFC 6455 sections 5.5.1 and 7.4.
func closeCode(payload []byte) (wire.CloseCode, wire.Fault) {
	switch len(payload) {
	case 0:
		return closeNoStatus, wire.Fault{}
	case 1:
		return 0, wire.Fault{Code: wire.CloseProtocolError, Reason: "close frame of one byte"}
	}
	code := wire.CloseCode(payload[0])<<8 | wire.CloseCode(payload[1])
	if !code.ValidReceived() {
		return 0, wire.Fault{Code: wire.CloseProtocolError, Reason: "invalid close code"}
	}
	if !utf8.Valid(payload[2:]) {
		return 0, wire.Fault{Code: wire.CloseInvalidData, Reason: "close reason is not UTF-8"}
	}
	return code, wire.Fault{}
}
