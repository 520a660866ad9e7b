//go:build linux

package generator

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/tocsin-push/tocsin/internal/floor"
)

// request is an upgrade request cut where the connection's number and its key
// go: {n} and {key}.
type request []string

func parseRequest(s string) request {
	var r request
	for s != "" {
		at := strings.IndexByte(s, '{')
		if at < 0 {
			return append(r, s)
		}
		word := ""
		for _, w := range []string{"{n}", "{key}"} {
			if strings.HasPrefix(s[at:], w) {
				word = w
			}
		}
		if word == "" {
			at, word = at+1, "" // a brace that means itself
		}
		if at > 0 {
			r = append(r, s[:at])
		}
		if word != "" {
			r = append(r, word)
		}
		s = s[at+len(word):]
	}
	return r
}

func (r request) append(dst []byte, n int, key []byte) []byte {
	for _, part := range r {
		switch part {
		case "{n}":
			dst = strconv.AppendInt(dst, int64(n), 10)
		case "{key}":
			dst = append(dst, key...)
		default:
			dst = append(dst, part...)
		}
	}
	return dst
}

// seed makes the keys of a worker's handshakes.
type seed uint64

// appendKey appends the Sec-WebSocket-Key of connection n; it is made of the
// number, so that nobody has to remember it.
func (s seed) appendKey(dst []byte, n int) []byte {
	var raw [16]byte
	binary.LittleEndian.PutUint64(raw[:], uint64(s))
	binary.LittleEndian.PutUint64(raw[8:], uint64(n))
	return base64.StdEncoding.AppendEncode(dst, raw[:])
}

// readHead reads the response head at the start of b and returns how long it
// is, 0 if it is not whole, and why it is not the upgrade that key asked for.
func readHead(b, key []byte) (size int, reason string) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	line, _, _ := bytes.Cut(b, []byte("\r\n"))
	proto, status, ok := bytes.Cut(line, []byte(" "))
	if !ok || !bytes.HasPrefix(proto, []byte("HTTP/1.")) {
		if end < 0 && len(b) < 16 {
			return 0, ""
		}
		return 0, "not HTTP"
	}
	if end < 0 {
		if len(b) > 16<<10 {
			return 0, "response head over 16 KiB"
		}
		return 0, ""
	}
	if code := string(status[:min(3, len(status))]); code != "101" {
		return 0, "HTTP " + code
	}
	var accept [28]byte
	floor.AppendAccept(accept[:0], key)
	if !bytes.Contains(b[:end], accept[:]) {
		return 0, "wrong Sec-WebSocket-Accept"
	}
	return end + 4, ""
}
