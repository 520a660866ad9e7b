package server

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// The limits of a request head, RFC 9112 section 3 and RFC 6585 section 5.
const (
	maxHead   = 8 << 10
	maxLine   = 4 << 10
	maxFields = 64
)

// headScan remembers how far a head that comes in pieces was looked at.
type headScan struct {
	at     int // the next byte to look at
	line   int // where its line began
	fields int // lines before it
}

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
		w.refuse(c, bad.status, bad.reject, bad.text)
	case end < 0:
		if h == &w.half {
			e := w.extraOf(c)
			e.in.buf = append(e.in.buf[:0], b...)
			e.in.scan = w.half.scan
			w.half.scan = headScan{}
		}
	default:
		w.half.scan = headScan{}
		if h == &w.half {
			w.answer(c, b[:end], b[end:])
			return
		}
		c.ext.in = half{} // b stays ours
		w.answer(c, b[:end], b[end:])
	}
}

// find looks for the blank line and returns the index behind it, or -1. What
// stands in the lines is judged later.
func (s *headScan) find(b []byte) (end int, bad *refusal) {
	for {
		last := min(len(b), maxHead)
		n := bytes.IndexByte(b[s.at:last], '\n')
		if n >= 0 {
			last = s.at + n
		}
		s.at = last
		switch {
		case last-s.line >= maxLine:
			return 0, &refusal{431, rejectHead, "a line of more than 4 KiB"}
		case n < 0 && len(b) > maxHead:
			return 0, &refusal{431, rejectHead, "a head of more than 8 KiB"}
		case n < 0:
			return -1, nil
		case last == s.line || b[last-1] != '\r':
			return 0, badRequest("a line ends without carriage return")
		case last-s.line == 1 && s.fields > 0:
			return last + 1, nil
		}
		if s.fields++; s.fields > maxFields+1 {
			return 0, &refusal{431, rejectHead, "more than 64 header fields"}
		}
		s.at, s.line = last+1, last+1
	}
}

// refusal is an HTTP answer other than 101.
type refusal struct {
	status int
	reject rejectReason
	text   string
}

func badRequest(text string) *refusal { return &refusal{400, rejectHead, text} }

// request is a checked request head; its slices point into it.
type request struct {
	head                      []byte
	path, query               []byte
	host, upgrade, connection []byte
	key, version, protocol    []byte
	length, encoding          []byte
}

// parseHead checks every line of a whole head, RFC 9112 sections 3 to 5, and
// what RFC 6455 section 4.2.1 wants of it, strictly: what a proxy in front
// might understand differently is refused.
func parseHead(head []byte, path string) (r request, bad *refusal) {
	r.head = head
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	if bad := r.parseRequestLine(line, path); bad != nil {
		return r, bad
	}
	for {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if len(line) == 0 {
			break
		}
		if bad := r.parseField(line); bad != nil {
			return r, bad
		}
	}
	return r, r.check()
}

func (r *request) parseRequestLine(line []byte, path string) *refusal {
	method, rest, ok1 := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(rest, []byte(" "))
	switch {
	case !ok1 || !ok2 || !isToken(method) || len(target) == 0:
		return badRequest("malformed request line")
	case string(version) != "HTTP/1.1":
		if len(version) == 8 && string(version[:5]) == "HTTP/" && isDigit(version[5]) && version[6] == '.' && isDigit(version[7]) {
			return &refusal{505, rejectHead, "HTTP/1.1 is spoken here"}
		}
		return badRequest("malformed HTTP version")
	case target[0] != '/' && string(target) != "*":
		return badRequest("the request target is not a path")
	}
	if !all(target, inTarget) {
		return badRequest("a control character, raw byte or fragment in the request target")
	}
	if string(method) == http.MethodHead {
		return &refusal{405, rejectMethod, ""}
	}
	if string(method) != http.MethodGet {
		return &refusal{405, rejectMethod, "only GET upgrades to WebSocket"}
	}
	r.path, r.query, _ = bytes.Cut(target, []byte("?"))
	if string(r.path) != path {
		return &refusal{404, rejectPath, "WebSocket is spoken at " + path}
	}
	return nil
}

// parseField takes one field line. Those that decide the upgrade may come once.
func (r *request) parseField(line []byte) *refusal {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) {
		return badRequest("malformed header field")
	}
	if value = bytes.Trim(value, " \t"); value == nil {
		value = line[len(line):] // empty, but there
	}
	if !all(value, inValue) {
		return badRequest("a control character in a header field")
	}
	for _, known := range [...]struct {
		name string
		to   *[]byte
	}{
		{"host", &r.host},
		{"upgrade", &r.upgrade},
		{"connection", &r.connection},
		{"sec-websocket-key", &r.key},
		{"sec-websocket-version", &r.version},
		{"sec-websocket-protocol", &r.protocol},
		{"content-length", &r.length},
		{"transfer-encoding", &r.encoding},
	} {
		if !equalFold(name, known.name) {
			continue
		}
		if *known.to != nil {
			return badRequest("header field " + string(name) + " comes twice")
		}
		*known.to = value
	}
	return nil
}

func (r *request) check() *refusal {
	switch {
	case len(r.host) == 0:
		return badRequest("header field Host is missing")
	case !all(r.host, inHost):
		return badRequest("malformed header field Host")
	case r.protocol != nil && !isTokenList(r.protocol):
		return badRequest("malformed header field Sec-WebSocket-Protocol")
	case r.encoding != nil || r.length != nil:
		return &refusal{400, rejectBody, "an upgrade has no body"}
	case r.upgrade == nil:
		return &refusal{426, rejectUpgrade, "this is a WebSocket endpoint: connect to it with a WebSocket client, for example new WebSocket(\"ws://\" + location.host + location.pathname) in a browser"}
	case !equalFold(r.upgrade, "websocket"):
		return badRequest("header field Upgrade is not websocket")
	case !hasToken(r.connection, "upgrade"):
		return badRequest("header field Connection does not say Upgrade")
	case r.version == nil:
		return badRequest("header field Sec-WebSocket-Version is missing")
	case string(r.version) != "13":
		return &refusal{426, rejectVersion, "WebSocket version 13 is spoken here"}
	}
	var key [18]byte
	if n, err := base64.StdEncoding.Strict().Decode(key[:], r.key[:min(len(r.key), 24)]); len(r.key) != 24 || err != nil || n != 16 {
		return badRequest("header field Sec-WebSocket-Key is not 16 bytes in base64")
	}
	return nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// The bytes that may stand in a part of a head.
const (
	inToken  = 1 << iota // RFC 9110 section 5.6.2
	inValue              // field values, RFC 9110 section 5.5
	inTarget             // request targets, here without a fragment
	inHost               // host and port, RFC 3986 section 3.2
)

var byteClass = func() (class [256]uint8) {
	for i := range class {
		c := byte(i)
		alnum := isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'z'
		if alnum || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			class[i] |= inToken
		}
		if alnum || strings.IndexByte("-._~%!$&'()*+;=:[]", c) >= 0 {
			class[i] |= inHost
		}
		if c >= ' ' && c != 0x7f || c == '\t' {
			class[i] |= inValue
		}
		if c > ' ' && c < 0x7f && c != '#' {
			class[i] |= inTarget
		}
	}
	return class
}()

// all reports whether every byte of b may stand there.
func all(b []byte, where uint8) bool {
	class := uint8(0xff)
	for _, c := range b {
		class &= byteClass[c]
	}
	return class&where != 0
}

func isToken(b []byte) bool { return len(b) > 0 && all(b, inToken) }

// isTokenList reports whether b is tokens between commas, with white space
// around them: RFC 9110 section 5.6.1.
func isTokenList(b []byte) bool {
	for part := range bytes.SplitSeq(b, []byte(",")) {
		if !isToken(bytes.Trim(part, " \t")) {
			return false
		}
	}
	return true
}

// equalFold reports whether b is the lower-case ASCII word, in any case.
func equalFold(b []byte, word string) bool {
	return len(b) == len(word) && strings.EqualFold(peek(b), word)
}

// hasToken reports whether a comma-separated list has the word.
func hasToken(list []byte, word string) bool {
	for part := range bytes.SplitSeq(list, []byte(",")) {
		if equalFold(bytes.Trim(part, " \t"), word) {
			return true
		}
	}
	return false
}

// wish is what the query of an upgrade asks for. Its strings live as long as
// the head, and topics until the worker's next handshake; clone copies both.
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
		bad = &refusal{503, rejectShutdown, "the server is shutting down"}
	}
	if bad != nil {
		w.refuse(c, bad.status, bad.reject, bad.text)
		return
	}
	if w.srv.cfg.Auth != nil || w.srv.cfg.Allow != nil && len(want.topics) > 0 {
		w.hookAuth(c, r, want, early)
		return
	}
	if want.user != "" {
		if err := wire.CheckUser(want.user); err != nil {
			w.refuse(c, 400, rejectHead, "query parameter user: "+err.Message)
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
	w.upgraded = memory{in: r.head, out: w.out[:0]}
	_, err := w.srv.upgrader.Upgrade(&w.upgraded)
	w.out = w.upgraded.out
	if err != nil { // it has written its own refusal
		w.srv.stats.reject(rejectHead)
		w.deafen(c)
		return
	}
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

// memory is the socket that gobwas's Upgrader is shown: a head that is known
// to be whole, and a buffer.
type memory struct{ in, out []byte }

func (m *memory) Read(p []byte) (int, error) {
	if len(m.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, m.in)
	m.in = m.in[n:]
	return n, nil
}

func (m *memory) Write(p []byte) (int, error) {
	m.out = append(m.out, p...)
	return len(p), nil
}

// refuse answers an upgrade with something else than 101.
func (w *worker) refuse(c *conn, status int, why rejectReason, text string) {
	w.srv.stats.reject(why)
	w.logRefusal(c, status, why, text)
	w.out = appendRefusal(w.out[:0], status, text)
	w.deafen(c)
}

// appendRefusal appends a whole HTTP response that ends the connection. An
// answer to HEAD has no text.
func appendRefusal(dst []byte, status int, text string) []byte {
	if text != "" {
		text += "\n"
	}
	dst = fmt.Appendf(dst, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n", status, http.StatusText(status), len(text))
	switch status {
	case http.StatusUpgradeRequired:
		dst = append(dst, "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"...)
	case http.StatusMethodNotAllowed:
		dst = append(dst, "Allow: GET\r\n"...)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		dst = append(strconv.AppendInt(append(dst, "Retry-After: "...), 1+rand.Int64N(30), 10), "\r\n"...)
	}
	return append(append(dst, "\r\n"...), text...)
}

// deafen sends the refusal in w.out and the end of file, and reads no more.
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
