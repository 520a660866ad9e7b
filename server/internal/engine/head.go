package engine

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"unsafe"
)

// The limits of a request head, RFC 9112 section 3 and RFC 6585 section 5. A
// line holds the request target of 8,000 octets that the RFC recommends to
// take, or the cookies of a browser.
const (
	maxHead   = 16 << 10 // bytes, with the blank line
	maxLine   = 8 << 10  // bytes, with its end
	maxFields = 64
)

// headScan remembers how far a head that comes in pieces was looked at.
type headScan struct {
	at     int // the next byte to look at
	line   int // where its line began
	fields int // lines before it
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
		case last-s.line >= maxLine && s.fields == 0: // RFC 9112 section 3
			return 0, &refusal{414, RejectHead, "a request line of more than 8 KiB"}
		case last-s.line >= maxLine:
			return 0, &refusal{431, RejectHead, "a header field of more than 8 KiB"}
		case n < 0 && len(b) > maxHead:
			return 0, &refusal{431, RejectHead, "a head of more than 16 KiB"}
		case n < 0:
			return -1, nil
		case last == s.line || b[last-1] != '\r':
			return 0, badRequest("a line ends without carriage return")
		case last-s.line == 1 && s.fields > 0:
			return last + 1, nil
		}
		if s.fields++; s.fields > maxFields+1 {
			return 0, &refusal{431, RejectHead, "more than 64 header fields"}
		}
		s.at, s.line = last+1, last+1
	}
}

func authLate() *refusal {
	return &refusal{503, RejectTimeout, "authentication took too long"}
}

func authFailed() *refusal { return &refusal{500, RejectAuth, "authentication failed"} }

// Request is a checked upgrade request. Its slices live until [App.Request]
// returns.
type Request struct {
	Head      []byte // all of it, with the blank line
	Query     []byte
	Handshake Handshake
}

// parsedHead is a Request and what it is checked by. That is large, and does not
// leave the stack.
type parsedHead struct {
	Request

	path      []byte   // as it came, with its escapes
	authority []byte   // of a target in absolute-form; nil in origin-form
	old       bool     // HTTP/1.0
	spoken    []string // subprotocols

	// Fields that come once; nil if they did not.
	host, key, version, length, encoding []byte

	connection, upgrade, protocol, extensions fieldList
}

// fieldList is what came of a field whose value is a list, on one line or on
// several: RFC 9110 section 5.3.
type fieldList struct {
	came bool
	any  bool // it has an element
	has  bool // it has the element that matters here
}

// add takes one line of the list. It passes over empty elements, RFC 9110
// section 5.6.1.2, and reports whether all others are valid.
func (l *fieldList) add(line []byte, valid, wanted func(element []byte) bool) bool {
	l.came = true
	for more := true; more; {
		var e []byte
		e, line, more = bytes.Cut(line, comma)
		if e = trimSpace(e); len(e) == 0 {
			continue
		}
		if !valid(e) {
			return false
		}
		l.any = true
		l.has = l.has || wanted(e)
	}
	return true
}

// choose takes the first subprotocol that the client offers and that is spoken
// here. It reports whether it is spoken.
func (r *parsedHead) choose(offered []byte) bool {
	i := slices.Index(r.spoken, peek(offered))
	if i >= 0 && r.Handshake.Subprotocol == "" {
		r.Handshake.Subprotocol = r.spoken[i]
	}
	return i >= 0
}

// parseHead checks every line of a head as find found it, RFC 9112 sections 3
// to 5, and what RFC 6455 section 4.2.1 wants of it, strictly: what a proxy in
// front might understand differently is refused. path is where upgrades are
// accepted, and subprotocols those that are spoken.
func parseHead(head []byte, path string, subprotocols []string) (r parsedHead, bad *refusal) {
	r.Head, r.spoken = head, subprotocols
	line, rest := cutLine(head)
	if bad := r.parseRequestLine(line, path); bad != nil {
		return r, bad
	}
	for line, rest = cutLine(rest); len(line) > 0; line, rest = cutLine(rest) {
		if bad := r.parseField(line); bad != nil {
			return r, bad
		}
	}
	return r, r.check()
}

// cutLine returns the first line without its end, and what is behind it.
func cutLine(head []byte) (line, rest []byte) {
	n := bytes.IndexByte(head, '\n')
	return head[:n-1], head[n+1:]
}

var (
	space = []byte(" ")
	comma = []byte(",")
	slash = []byte("/")
)

// parseRequestLine takes the first line. Every HTTP/1.x is read as HTTP/1.1,
// RFC 9110 section 2.5, but for 1.0, which cannot upgrade; see check.
func (r *parsedHead) parseRequestLine(line []byte, path string) *refusal {
	method, rest, ok1 := bytes.Cut(line, space)
	target, version, ok2 := bytes.Cut(rest, space)
	switch {
	case !ok1 || !ok2 || !isToken(method) || len(target) == 0:
		return badRequest("malformed request line")
	case len(version) != 8 || string(version[:5]) != "HTTP/" || !isDigit(version[5]) || version[6] != '.' || !isDigit(version[7]):
		return badRequest("malformed HTTP version")
	case version[5] != '1': // 505 is about the major version, RFC 9110 section 15.6.6
		return &refusal{505, RejectHead, "HTTP/1.1 is spoken here"}
	case !all(target, inTarget):
		return badRequest("a control character, raw byte or fragment in the request target")
	}
	r.old = version[7] == '0'
	if bad := r.parseTarget(target); bad != nil {
		return bad
	}
	same, ok := samePath(r.path, path)
	switch {
	case string(method) != http.MethodGet:
		return &refusal{405, RejectMethod, "only GET upgrades to WebSocket"}
	case !ok:
		return badRequest("malformed escape in the request target")
	case !same:
		return &refusal{404, RejectPath, "WebSocket is spoken at " + path}
	}
	return nil
}

// parseTarget takes a target in origin-form or in absolute-form, RFC 9112
// section 3.2. An absolute one is an http or https URI, RFC 6455 section
// 4.2.1; https too, because the proxy in front ends TLS.
func (r *parsedHead) parseTarget(target []byte) *refusal {
	origin, rest := cutOrigin(target)
	r.path, r.Query, _ = bytes.Cut(rest, []byte("?"))
	if origin == nil {
		return nil
	}
	if string(target) == "*" {
		r.path = target // of OPTIONS, and nothing here
		return nil
	}
	scheme, authority, ok := bytes.Cut(origin, []byte("://"))
	switch {
	case !ok:
		return badRequest("the request target is not a path")
	case !equalFold(scheme, "http") && !equalFold(scheme, "https"):
		return badRequest("the request target is not an http or https URL")
	case !isHost(authority):
		return badRequest("malformed host in the request target")
	}
	r.authority = authority
	if len(r.path) == 0 {
		r.path = slash // RFC 9110 section 4.2.3
	}
	return nil
}

// cutOrigin cuts what stands in front of the path off a target: scheme and
// authority of one in absolute-form, nothing of one in origin-form.
func cutOrigin(target []byte) (origin, rest []byte) {
	if len(target) == 0 || target[0] == '/' {
		return nil, target
	}
	host := 0
	if i := bytes.Index(target, []byte("://")); i >= 0 {
		host = i + len("://")
	}
	if n := bytes.IndexAny(target[host:], "/?"); n >= 0 {
		return target[:host+n], target[host+n:]
	}
	return target, nil
}

// samePath reports whether the path of a target, once its escapes are decoded,
// is path: RFC 9110 section 4.2.3. An escaped slash does not separate segments
// and so never equals one. It is not ok with a malformed escape or with that of
// a control character.
func samePath(escaped []byte, path string) (same, ok bool) {
	if string(escaped) == path {
		return true, true
	}
	at, same := 0, true
	for i := 0; i < len(escaped); i++ {
		c, plain := escaped[i], true
		if c == '%' {
			var decoded [1]byte
			if _, err := hex.Decode(decoded[:], escaped[i+1:min(i+3, len(escaped))]); err != nil || i+3 > len(escaped) {
				return false, false
			}
			c, plain = decoded[0], decoded[0] != '/'
			i += 2
		}
		if c < ' ' || c == 0x7f {
			return false, false
		}
		same = same && plain && at < len(path) && path[at] == c
		at++
	}
	return same && at == len(path), true
}

// parseField takes one field line. Lists may come on several, the other fields
// that decide the upgrade once.
func (r *parsedHead) parseField(line []byte) *refusal {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) {
		return badRequest("malformed header field")
	}
	if !all(value, inValue) {
		return badRequest("a control character in a header field")
	}
	value = trimSpace(value)
	var single *[]byte
	switch {
	case equalFold(name, "host"):
		single = &r.host
	case equalFold(name, "sec-websocket-key"):
		single = &r.key
	case equalFold(name, "sec-websocket-version"):
		single = &r.version
	case equalFold(name, "content-length"):
		single = &r.length
	case equalFold(name, "transfer-encoding"):
		single = &r.encoding
	case equalFold(name, "connection"):
		ok = r.connection.add(value, isToken, func(e []byte) bool { return equalFold(e, "upgrade") })
	case equalFold(name, "upgrade"):
		ok = r.upgrade.add(value, isProtocol, func(e []byte) bool { return equalFold(e, "websocket") })
	case equalFold(name, "sec-websocket-protocol"):
		ok = r.protocol.add(value, isToken, r.choose)
	case equalFold(name, "sec-websocket-extensions"):
		ok = r.extensions.add(value, isExtension, func([]byte) bool { return false })
	}
	switch {
	case !ok:
		return badRequest("malformed header field " + string(name))
	case single == nil:
	case *single != nil:
		return badRequest("header field " + string(name) + " comes twice")
	default:
		*single = value
	}
	return nil
}

// check looks at the fields together, once all of them have come.
func (r *parsedHead) check() *refusal {
	switch {
	case r.old: // its Upgrade is ignored, RFC 9110 section 7.8
		return &refusal{426, RejectUpgrade, "this request came as HTTP/1.0, and a WebSocket needs HTTP/1.1: if a proxy sent it, let the proxy speak HTTP/1.1"}
	case r.host == nil:
		return badRequest("header field Host is missing")
	case !isHost(r.host) && (r.authority == nil || len(r.host) > 0): // RFC 9112 section 3.2.2: the authority counts
		return badRequest("malformed header field Host")
	case r.protocol.came && !r.protocol.any: // RFC 6455 sections 4.3 and 9.1: at least one
		return badRequest("header field Sec-WebSocket-Protocol is empty")
	case r.extensions.came && !r.extensions.any:
		return badRequest("header field Sec-WebSocket-Extensions is empty")
	case r.encoding != nil || r.length != nil && !isZero(r.length):
		return &refusal{400, RejectBody, "an upgrade has no body"}
	case !r.upgrade.has: // one to something else is ignored, RFC 9110 section 7.8
		return &refusal{426, RejectUpgrade, "this is a WebSocket endpoint: connect to it with a WebSocket client, for example new WebSocket(\"ws://\" + location.host + location.pathname) in a browser"}
	case !r.connection.has:
		return badRequest("header field Connection does not say Upgrade")
	case r.version == nil:
		return badRequest("header field Sec-WebSocket-Version is missing")
	case string(r.version) != "13":
		return &refusal{426, RejectVersion, "WebSocket version 13 is spoken here"}
	}
	var key [18]byte
	if n, err := base64.StdEncoding.Strict().Decode(key[:], r.key[:min(len(r.key), 24)]); len(r.key) != 24 || err != nil || n != 16 {
		return badRequest("header field Sec-WebSocket-Key is not 16 bytes in base64")
	}
	copy(r.Handshake.key[:], r.key)
	return nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// The bytes that may stand in a part of a head.
const (
	inToken  = 1 << iota // RFC 9110 section 5.6.2
	inValue              // field values, RFC 9110 section 5.5
	inTarget             // request targets, here without a fragment
	inHost               // the name of a host, RFC 3986 section 3.2.2
)

var byteClass = func() (class [256]uint8) {
	for i := range class {
		c := byte(i)
		alnum := isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'z'
		if alnum || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			class[i] |= inToken
		}
		if alnum || strings.IndexByte("-._~%!$&'()*+,;=", c) >= 0 {
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

// isProtocol reports whether b is an element of Upgrade, a name that a version
// may follow: RFC 9110 section 7.8.
func isProtocol(b []byte) bool {
	name, version, ok := bytes.Cut(b, slash)
	return isToken(name) && (!ok || isToken(version))
}

// isExtension reports whether b is an element of Sec-WebSocket-Extensions:
// RFC 6455 section 9.1. What its parameters quote is a token too, so no comma
// or semicolon can be inside.
func isExtension(b []byte) bool {
	name, params, more := bytes.Cut(b, []byte(";"))
	ok := isToken(trimSpace(name))
	for ok && more {
		var param []byte
		param, params, more = bytes.Cut(params, []byte(";"))
		name, value, assigned := bytes.Cut(param, []byte("="))
		value = trimSpace(value)
		ok = isToken(trimSpace(name)) && (!assigned || isToken(value) || isQuotedToken(value))
	}
	return ok
}

// isQuotedToken reports whether b is a quoted-string, RFC 9110 section 5.6.4,
// of the bytes of a token, each of which a backslash may precede.
func isQuotedToken(b []byte) bool {
	if len(b) < 3 || b[0] != '"' || b[len(b)-1] != '"' {
		return false
	}
	b = b[1 : len(b)-1]
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' {
			i++
		}
		if i == len(b) || byteClass[b[i]]&inToken == 0 {
			return false
		}
	}
	return true
}

// isHost reports whether b is a host that is not empty, and a port if there is
// a colon: RFC 3986 section 3.2.
func isHost(b []byte) bool {
	host, port := b, []byte(nil)
	if i := bytes.LastIndexByte(b, ':'); i >= 0 && bytes.IndexByte(b[i:], ']') < 0 {
		host, port = b[:i], b[i+1:]
	}
	for _, c := range port {
		if !isDigit(c) {
			return false
		}
	}
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
		ip, err := netip.ParseAddr(peek(host[1 : len(host)-1]))
		return err == nil && ip.Is6() && ip.Zone() == ""
	}
	return len(host) > 0 && all(host, inHost)
}

// isZero reports whether b is a Content-Length of 0: RFC 9110 section 8.6.
func isZero(b []byte) bool { return len(b) > 0 && len(bytes.Trim(b, "0")) == 0 }

// trimSpace cuts spaces and tabs off both ends of b: RFC 9110 section 5.6.3.
func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// equalFold reports whether b is the lower-case ASCII word, in any case.
func equalFold(b []byte, word string) bool {
	return len(b) == len(word) && strings.EqualFold(peek(b), word)
}

// peek is b as a string for a look-up; it must not be kept.
func peek(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
