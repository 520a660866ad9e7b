package engine

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"net/http"

	"github.com/gobwas/ws"
)

// headBuf is what has come of a request head that is not whole.
type headBuf struct {
	buf  []byte
	scan headScan
}

// Handshake is what the answer to an upgrade request depends on. It may be kept.
type Handshake struct {
	Subprotocol string // the one that was chosen; "" if the client offered none that is spoken
	key         [24]byte
}

// takeHead collects the request head of c until it is whole, then answers it.
// Nothing in it is believed before all of it was checked.
func (t *Turn) takeHead(c *Conn, b []byte) {
	var own headBuf
	h := &own
	if c.ext != nil && len(c.ext.head.buf) > 0 {
		h = &c.ext.head
		h.buf = append(h.buf, b...)
		b = h.buf
	}
	end, bad := h.scan.find(b)
	switch {
	case bad != nil:
		t.refuse(c, bad)
	case end >= 0:
		if h != &own {
			c.ext.head = headBuf{} // b stays ours
		}
		t.answer(c, b[:end], b[end:])
	case h == &own:
		x := t.extraOf(c)
		x.head = headBuf{append(x.head.buf[:0], b...), own.scan}
	}
}

// answer decides on a whole head. early is what came behind it: the first
// frames of a client that did not wait, which must at least look like frames.
func (t *Turn) answer(c *Conn, head, early []byte) {
	r, bad := parseHead(head, t.cfg.Path, t.cfg.Subprotocols)
	switch {
	case bad != nil:
	case !looksLikeFrame(early):
		bad = &refusal{http.StatusBadRequest, RejectBody, "bytes behind the head that are not a WebSocket frame"}
	case t.e.drain.on.Load():
		bad = shuttingDown()
	}
	if bad != nil {
		if bytes.HasPrefix(head, []byte(http.MethodHead+" ")) {
			bad.text = ""
		}
		t.refuse(c, bad)
		return
	}
	t.become(c, stateAuth)
	t.app.Request(t, c, r.Request)
	t.start(c, early)
}

// start goes on with a connection whose upgrade was decided on, or will be by a
// call: early is what came behind the request.
func (t *Turn) start(c *Conn, early []byte) {
	t.flushReplies(c)
	switch {
	case len(early) == 0 || c.flags&flagDeaf != 0:
	case c.flags&flagCall != 0:
		c.ext.rest = bytes.Clone(early)
	case c.state == stateOpen:
		t.read(c, early)
	case c.state == stateClosing: // opened and closed at once; its answer may stand behind half a frame
		t.readClosing(c, early)
	}
}

// looksLikeFrame reports whether b can begin a client's frame: RFC 6455
// section 5.2, as far as b goes.
func looksLikeFrame(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	h := ws.Header{Fin: b[0]&0x80 != 0, Rsv: b[0] >> 4 & 7, OpCode: ws.OpCode(b[0] & 0x0f), Masked: true}
	if len(b) > 1 {
		h.Masked, h.Length = b[1]&0x80 != 0, int64(b[1]&0x7f)
	}
	return ws.CheckHeader(h, ws.StateServerSide) == nil
}

// Upgrade makes c an open connection that speaks a codec of Config.Codecs. The
// answer 101 is sent together with what is replied next, unless h is nil: that
// of a [Guest] was sent before.
func (t *Turn) Upgrade(c *Conn, h *Handshake, codec int) {
	t.out = t.out[:0]
	if h != nil {
		t.out = appendUpgrade(t.out, h)
	}
	t.counts.handshaking.Add(-1)
	t.counts.opened.Add(1)
	t.become(c, stateOpen)
	c.codec = uint8(codec)
	t.e.formats[codec].Add(1)
	t.shard.open.add(t.shard.local(c))
}

// appendUpgrade appends the answer to a request that was checked: RFC 6455
// section 4.2.2.
func appendUpgrade(dst []byte, h *Handshake) []byte {
	dst = append(dst, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	dst = h.appendAccept(dst)
	if h.Subprotocol != "" {
		dst = append(append(dst, "\r\nSec-WebSocket-Protocol: "...), h.Subprotocol...)
	}
	return append(dst, "\r\n\r\n"...)
}

// appendAccept appends the value of Sec-WebSocket-Accept.
func (h *Handshake) appendAccept(dst []byte) []byte {
	const guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	var proof [len(h.key) + len(guid)]byte
	copy(proof[copy(proof[:], h.key[:]):], guid)
	sum := sha1.Sum(proof[:])
	return base64.StdEncoding.AppendEncode(dst, sum[:])
}
