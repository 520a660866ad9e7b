package server

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// takeHead collects the request head of c until it is whole, then answers it.
// Nothing in it is believed before all of it was checked.
func (w *worker) takeHead(c *conn, b []byte) {
	h := &w.half
	if c.ext != nil && len(c.ext.in.buf) > 0 {
		h = &c.ext.in
		h.buf = append(h.buf, b...)
		b = h.buf
	}
	end, bad := h.scan.find(b)
	switch {
	case bad != nil:
		w.half.scan = headScan{}
		w.refuse(c, bad)
	case end < 0:
		if h == &w.half {
			e := w.extraOf(c)
			e.in.buf = append(e.in.buf[:0], b...)
			e.in.scan = w.half.scan
			w.half.scan = headScan{}
		}
	default:
		w.half.scan = headScan{}
		if h != &w.half {
			c.ext.in = half{} // b stays ours
		}
		w.answer(c, b[:end], b[end:])
	}
}

// wish is what the query of an upgrade request asks for. It points into the
// worker's buffers, which the next handshake overwrites: clone it before it is
// handed to a hook.
type wish struct {
	user   string
	topics []string
	format format
}

func (v wish) clone() wish {
	v.user = strings.Clone(v.user)
	topics := make([]string, len(v.topics))
	for i, topic := range v.topics {
		topics[i] = strings.Clone(topic)
	}
	v.topics = topics
	return v
}

// parseWish reads ?user=, ?topics= and ?format=. Other words are left to Auth.
func (w *worker) parseWish(query []byte) (out wish, bad *refusal) {
	w.topics = w.topics[:0]
	for pair := range strings.SplitSeq(peek(query), "&") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "user", "topics", "format":
		default:
			continue
		}
		value, err := url.QueryUnescape(value)
		if err != nil {
			return out, badRequest("query parameter " + name + " is not URL-encoded")
		}
		switch name {
		case "user":
			out.user = value
		case "topics":
			for topic := range strings.SplitSeq(value, ",") {
				if topic == "" {
					continue
				}
				if err := wire.CheckTopic(topic); err != nil {
					return out, badRequest("query parameter topics: " + err.Message)
				}
				w.topics = append(w.topics, topic)
			}
		case "format":
			switch value {
			case "raw":
				out.format = formatRaw
			case "", "json", wire.Subprotocol:
			default:
				return out, badRequest("query parameter format must be raw or " + wire.Subprotocol)
			}
		}
	}
	slices.Sort(w.topics)
	w.topics = slices.Compact(w.topics) // a name that comes twice is meant once
	if n, most := len(w.topics), w.srv.cfg.MaxTopics; n > most {
		return out, badRequest(fmt.Sprintf("query parameter topics has %d names, the limit is %d", n, most))
	}
	out.topics = w.topics
	return out, nil
}

// answer decides on a whole head. early is what came behind it: the first
// frames of a client that did not wait, which must at least look like frames.
func (w *worker) answer(c *conn, head, early []byte) {
	r, bad := parseHead(head, w.srv.cfg.Path)
	if bad == nil && !looksLikeFrame(early) {
		bad = &refusal{400, rejectBody, "bytes behind the head that are not a WebSocket frame"}
	}
	var want wish
	if bad == nil {
		want, bad = w.parseWish(r.query)
	}
	if bad == nil && w.srv.draining.Load() {
		bad = shuttingDown()
	}
	if bad != nil {
		if bytes.HasPrefix(head, []byte(http.MethodHead+" ")) {
			bad.text = ""
		}
		w.refuse(c, bad)
		return
	}
	if w.srv.cfg.Auth != nil || w.srv.cfg.Allow != nil && len(want.topics) > 0 {
		w.hookAuth(c, r, want, early)
		return
	}
	if want.user != "" {
		if err := wire.CheckUser(want.user); err != nil {
			w.refuse(c, badRequest("query parameter user: "+err.Message))
			return
		}
	}
	w.upgrade(c, r, want)
	w.early(c, early)
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

// early feeds the frames that came with the head.
func (w *worker) early(c *conn, b []byte) {
	if len(b) == 0 || c.state != stateOpen {
		return
	}
	if c.flags&flagHook != 0 { // OnOpen first
		c.ext.rest = append([]byte(nil), b...)
		return
	}
	w.feed(c, b)
}

// upgrade answers 101 and, in the same write, the welcome frame; then c is open.
func (w *worker) upgrade(c *conn, r request, want wish) {
	s := w.shard
	w.out = appendUpgrade(w.out[:0], &r)
	w.srv.handshaking.Add(-1)
	w.srv.opened.Add(1)
	c.state, c.stamp, c.format = stateOpen, w.now, want.format
	if want.format == formatRaw {
		w.srv.hub.raw.Add(1)
	}
	s.open.add(s.local(c))
	admitted := true
	if want.user != "" {
		if admitted = w.srv.hub.login(c, strings.Clone(want.user)); admitted {
			c.flags |= flagListed
		}
	}
	positions := w.positions[:0]
	if admitted {
		for _, topic := range want.topics {
			positions = append(positions, w.subscribeEarly(c, topic))
		}
	}
	w.positions = positions[:0]
	w.logOpen(c)
	if want.format == formatV1 {
		w.welcome(c, want, positions)
	}
	w.flushReplies(c)
	if c.state != stateOpen {
		return
	}
	if !admitted {
		w.shut(c, wire.CloseConnectionLimit, "too many connections of this user")
		return
	}
	if w.srv.cfg.OnOpen != nil {
		w.hookOpen(c)
	}
}

func (w *worker) welcome(c *conn, want wish, positions []wire.Position) {
	ping := 0
	if w.srv.cfg.PingInterval > 0 {
		ping = int(w.srv.cfg.PingInterval.Seconds())
	}
	w.id = w.srv.ids.append(w.id[:0], c.ref())
	w.scratch = wire.AppendWelcome(w.scratch[:0], w.id, want.user, ping, want.topics[:len(positions)], positions)
	w.reply(ws.OpText, w.scratch)
}

// appendUpgrade appends the answer to a request that was checked: RFC 6455
// section 4.2.2.
func appendUpgrade(dst []byte, r *request) []byte {
	const guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	var proof [24 + len(guid)]byte
	copy(proof[copy(proof[:], r.key):], guid)
	sum := sha1.Sum(proof[:])
	dst = append(dst, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	dst = base64.StdEncoding.AppendEncode(dst, sum[:])
	if r.protocol.has {
		dst = append(dst, "\r\nSec-WebSocket-Protocol: "+wire.Subprotocol...)
	}
	return append(dst, "\r\n\r\n"...)
}

// refuse answers an upgrade with something else than 101.
func (w *worker) refuse(c *conn, no *refusal) {
	w.srv.stats.reject(no.reject)
	w.logRefusal(c, no)
	w.out = appendRefusal(w.out[:0], no.status, no.text)
	w.deafen(c)
}

// appendRefusal appends a whole HTTP response that ends the connection. An
// answer to HEAD has no text.
func appendRefusal(dst []byte, status int, text string) []byte {
	if text != "" {
		text += "\n"
	}
	dst = fmt.Appendf(dst, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nDate: ", status, http.StatusText(status), len(text))
	dst = append(time.Now().UTC().AppendFormat(dst, http.TimeFormat), "\r\nConnection: "...)
	if status == http.StatusUpgradeRequired { // who sends Upgrade names it in Connection, RFC 9110 section 7.8
		dst = append(dst, "Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"...)
	} else {
		dst = append(dst, "close\r\n"...)
	}
	switch status {
	case http.StatusMethodNotAllowed:
		dst = append(dst, "Allow: GET\r\n"...)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		dst = append(strconv.AppendInt(append(dst, "Retry-After: "...), 1+rand.Int64N(30), 10), "\r\n"...)
	}
	return append(append(dst, "\r\n"...), text...)
}

// deafen sends the refusal in w.out and then the end of file. Nothing more is
// read of c; it is closed when the peer closes, or after CloseTimeout.
func (w *worker) deafen(c *conn) {
	w.srv.handshaking.Add(-1)
	c.state, c.stamp = stateClosing, w.now
	c.flags = c.flags&^flagHook | flagDeaf
	if c.ext != nil {
		c.ext.in, c.ext.rest, c.ext.call = half{}, nil, nil
	}
	r := c.ref()
	w.flushReplies(c)
	if c.ref() == r && (c.ext == nil || c.ext.out.empty()) {
		w.finish(c)
	}
}
