package server

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
)

// Parts of regular expressions: RFC 9110 section 5.6.
const (
	tchar = "[!#$%&'*+.^_`|~0-9A-Za-z-]"
	tokn  = tchar + "+"
	ows   = "[ \t]*"
	param = ows + ";" + ows + tokn + "(" + ows + "=" + ows + "(" + tokn + `|"(\\?` + tchar + `)+"))?`
)

var (
	requestLine = regexp.MustCompile(`^GET ((?i:https?)://([^/?]*))?([^?]*)(\?.*)? HTTP/1\.[1-9]$`)
	plainLine   = regexp.MustCompile(`^[!"$-~]+ [!"$-~]+ [!"$-~]+$`)
	fieldLine   = regexp.MustCompile("^(" + tokn + "):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*$")
	hostAndPort = regexp.MustCompile(`^([A-Za-z0-9._~%!$&'()*+,;=-]+|\[([0-9A-Fa-f:.]+)\])(:[0-9]*)?$`)
	element     = map[string]*regexp.Regexp{
		"connection":               regexp.MustCompile("^" + tokn + "$"),
		"upgrade":                  regexp.MustCompile("^" + tokn + "(/" + tokn + ")?$"),
		"sec-websocket-protocol":   regexp.MustCompile("^" + tokn + "$"),
		"sec-websocket-extensions": regexp.MustCompile("^" + tokn + "(" + param + ")*$"),
	}
)

// WhyNot says, in other words than the server, why request may not be upgraded
// at /ws, or "" if it has to be: RFC 9110, 9112, RFC 6455 section 4.2.1 and the
// limits. What stands behind the head is taken for frames.
func WhyNot(request string) string {
	text, _, ended := strings.Cut(request, "\r\n\r\n")
	lines := strings.Split(text, "\r\n")
	if !ended || len(text)+4 > 16<<10 || len(lines) > 65 {
		return "the head is too long or has no end"
	}
	m := requestLine.FindStringSubmatch(lines[0])
	if m == nil || !plainLine.MatchString(lines[0]) || len(lines[0])+2 > 8<<10 {
		return "of its request line"
	}
	absolute, authority, path := m[1] != "", m[2], m[3]
	if absolute && path == "" {
		path = "/"
	}
	if plain, err := url.PathUnescape(path); err != nil || plain != "/ws" || path[0] != '/' {
		return "of its path"
	}
	fields := map[string][]string{}
	for _, line := range lines[1:] {
		m := fieldLine.FindStringSubmatch(line)
		if m == nil || len(line)+2 > 8<<10 {
			return "of the line " + line
		}
		name := strings.ToLower(m[1])
		fields[name] = append(fields[name], m[2])
	}
	return whyNotFields(fields, absolute, authority)
}

// hasHost reports whether s is a host, with a port or not.
func hasHost(s string) bool {
	m := hostAndPort.FindStringSubmatch(s)
	return m != nil && (m[2] == "" || net.ParseIP(m[2]) != nil)
}

func whyNotFields(fields map[string][]string, absolute bool, authority string) string {
	one := func(name string) string {
		if len(fields[name]) != 1 {
			return ""
		}
		return fields[name][0]
	}
	list := map[string][]string{}
	for name, valid := range element {
		for e := range strings.SplitSeq(strings.Join(fields[name], ","), ",") {
			if e = strings.Trim(e, " \t"); e == "" {
				continue
			}
			if !valid.MatchString(e) {
				return "of an element of " + name
			}
			list[name] = append(list[name], e)
		}
	}
	has := func(name, word string) bool {
		return slices.ContainsFunc(list[name], func(e string) bool { return strings.ToLower(e) == word && len(e) == len(word) })
	}
	key, err := base64.StdEncoding.Strict().DecodeString(one("sec-websocket-key"))
	switch {
	case len(fields["host"]) != 1, !hasHost(one("host")) && (!absolute || one("host") != ""), absolute && !hasHost(authority):
		return "of its host"
	case !has("upgrade", "websocket"):
		return "of its Upgrade"
	case !has("connection", "upgrade"):
		return "of its Connection"
	case err != nil || len(key) != 16 || len(one("sec-websocket-key")) != 24:
		return "of its key"
	case one("sec-websocket-version") != "13":
		return "of its version"
	case fields["transfer-encoding"] != nil || fields["content-length"] != nil && (strings.Trim(one("content-length"), "0") != "" || one("content-length") == ""):
		return "it may have a body"
	case fields["sec-websocket-protocol"] != nil && list["sec-websocket-protocol"] == nil,
		fields["sec-websocket-extensions"] != nil && list["sec-websocket-extensions"] == nil:
		return "a list is empty"
	}
	return ""
}

// headSeeds are heads that are nearly right, and two that are.
func headSeeds() (seeds []string) {
	good := wstest.Request("tocsin.test", "/ws?topics=a,b", "dGhlIHNhbXBsZSBub25jZQ==", "Origin: http://tocsin.test", "Sec-WebSocket-Protocol: tocsin.v1")
	seeds = append(seeds, good, good+"early")
	for _, change := range [][2]string{
		{"GET", "get"},
		{"GET /ws", "GET  /ws"},
		{"/ws", "http://tocsin.test/ws"},
		{"/ws", "HTTPS://[::1]:443/%77s"},
		{"/ws", "http://tocsin.test"},
		{"HTTP/1.1", "HTTP/1.0"},
		{"HTTP/1.1", "HTTP/1.9"},
		{"Host:", "Host :"},
		{"Host:", "X: y\r\n Host:"},
		{"\r\n", "\n"},
		{"13", "13, 8"},
		{"Upgrade\r\n", "keep-alive, Upgrade\r\n"},
		{"==", "="},
		{"Origin", "Content-Length: 0\r\nOrigin"},
		{"Origin", "Content-Length: 00\r\nContent-Length: 0\r\nOrigin"},
		{"Origin", "Connection: ,close,\t,\r\nUpgrade: h2c/1\r\nOrigin"},
		{"Origin", "Sec-WebSocket-Protocol: ,\r\nOrigin"},
		{"Origin", "Sec-WebSocket-Extensions: a;b = \"c\\d\" ;e, f\r\nOrigin"},
		{"Origin", "Transfer-Encoding: chunked\r\nOrigin"},
		{"Origin", "Host: other\r\nOrigin"},
		{"Origin", "X: \x00\r\nOrigin"},
		{"Origin", strings.Repeat("A: b\r\n", 70) + "Origin"},
		{"Origin", "X: " + strings.Repeat("y", 5000) + "\r\nOrigin"},
		{"topics", "t\xc3\xb6pics"},
		{"tocsin.test", "[::1]:80"},
		{"tocsin.test", "a,b"},
		{"Host: tocsin.test", "Host:"},
	} {
		seeds = append(seeds, strings.Replace(good, change[0], change[1], 1))
	}
	return append(seeds, "", "\r\n\r\n", "GET /ws HTTP/1.1\r\n\r\n")
}

// FuzzHandshake: a strict parser of another make accepts and refuses the same,
// and net/http accepts whatever is accepted.
func FuzzHandshake(f *testing.F) {
	for _, s := range headSeeds() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var scan headScan
		end, bad := scan.find(b)
		if bad != nil || end < 0 {
			if end < 0 && len(b) > maxHead {
				t.Fatalf("%d bytes and still looking", len(b))
			}
			return
		}
		if end > maxHead || !bytes.HasSuffix(b[:end], []byte("\r\n\r\n")) {
			t.Fatalf("the head ends at %d: %q", end, b[:end])
		}
		mine, bad := parseHead(b[:end], "/ws")
		if why := WhyNot(string(b[:end])); (why == "") != (bad == nil) {
			t.Fatalf("refused with %+v, refused because %q: %q", bad, why, b[:end])
		}
		if bad != nil {
			if bad.status < 400 || bad.status > 505 || bad.text == "" {
				t.Fatalf("refused with %+v", bad)
			}
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b[:end])))
		if err != nil && bytes.IndexByte(mine.authority, '%') >= 0 {
			return // net/url takes no escaped ASCII in a host
		}
		if err != nil || r.Method != http.MethodGet || r.URL.Path != "/ws" || r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
			t.Fatalf("accepted, but net/http says %v, %+v: %q", err, r, b[:end])
		}
	})
}

// FuzzHandshakeChunks: the answer does not depend on how the head was cut.
func FuzzHandshakeChunks(f *testing.F) {
	for _, s := range headSeeds() {
		f.Add([]byte(s), []byte{0, 1, 2, 3, 50, 200})
		f.Add([]byte(s), bytes.Repeat([]byte{0}, len(s)))
	}
	f.Fuzz(func(t *testing.T, b, pieces []byte) {
		var whole, cut headScan
		end, bad := whole.find(b)
		for at, i := 0, 0; ; i++ {
			if i < len(pieces) {
				at = min(len(b), at+1+int(pieces[i]))
			} else {
				at = len(b)
			}
			cutEnd, cutBad := cut.find(b[:at])
			if cutBad != nil || cutEnd >= 0 || at == len(b) {
				if cutEnd != end || (cutBad == nil) != (bad == nil) || bad != nil && *bad != *cutBad {
					t.Fatalf("cut at %d: %d, %v; at once %d, %v", at, cutEnd, cutBad, end, bad)
				}
				return
			}
		}
	})
}

// Headers that made other parsers quadratic are read in one pass, whatever they
// hold (docs/faults.md H5).
func TestHeadIsReadInOnePass(t *testing.T) {
	for _, value := range []string{
		"b" + strings.Repeat(" ", 4000) + "x", strings.Repeat(",", 4000), strings.Repeat(" ,\t", 1300), strings.Repeat("a,", 2000),
		`"` + strings.Repeat(`\"`, 1900), strings.Repeat("(", 4000), strings.Repeat(";=", 2000), strings.Repeat("é", 2000),
	} {
		for _, name := range []string{"Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Connection", "Upgrade", "Origin", "Cookie"} {
			head := []byte(wstest.Request("tocsin.test", "/ws", "dGhlIHNhbXBsZSBub25jZQ==", name+": "+value))
			var bad *refusal
			if n := testing.AllocsPerRun(1, func() {
				var scan headScan
				if end, bad := scan.find(head); end != len(head) || bad != nil || scan.at != len(head)-1 {
					t.Fatalf("%s: %.20q: head ends at %d, %v", name, value, end, bad)
				}
				_, bad = parseHead(head, "/ws")
			}); n > 2 { // a refusal and its text
				t.Errorf("%s: %.20q: %v allocations", name, value, n)
			}
			if why := WhyNot(string(head)); (why == "") != (bad == nil) {
				t.Errorf("%s: %.20q: refused because %q, and with %+v", name, value, why, bad)
			}
		}
	}
}

// BenchmarkHead shows the time for a byte of such a head, which should not
// grow with its length.
func BenchmarkHead(b *testing.B) {
	for _, n := range []int{1000, 2000, 4000} {
		head := []byte(wstest.Request("tocsin.test", "/ws", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: b"+strings.Repeat(" ,b", n/3)))
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.SetBytes(int64(len(head)))
			b.ReportAllocs()
			for b.Loop() {
				var scan headScan
				end, _ := scan.find(head)
				if _, bad := parseHead(head[:end], "/ws"); bad != nil {
					b.Fatal(bad.text)
				}
			}
		})
	}
}

// browserRequest is what a browser sends, extensions and cookies included.
var browserRequest = []byte(wstest.Request("push.example", "/ws?topics=news,prices", "dGhlIHNhbXBsZSBub25jZQ==",
	"Pragma: no-cache", "Cache-Control: no-cache",
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
	"Origin: https://shop.example", "Accept-Encoding: gzip, deflate, br, zstd", "Accept-Language: en-GB,en;q=0.9,de;q=0.8",
	"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=all",
	"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", "Sec-WebSocket-Protocol: tocsin.v1"))

// parseWhole finds the end of a head and parses it.
func parseWhole(t testing.TB, head []byte) request {
	t.Helper()
	var scan headScan
	end, bad := scan.find(head)
	if bad == nil {
		var r request
		if r, bad = parseHead(head[:end], "/ws"); bad == nil {
			return r
		}
	}
	t.Fatalf("refused: %s: %q", bad.text, head)
	return request{}
}

func TestHandshakeAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() {
		r := parseWhole(t, browserRequest)
		dst = appendUpgrade(dst[:0], &r)
	}); n != 0 {
		t.Errorf("%v allocations to read a browser's request and answer it", n)
	}
}

func BenchmarkUpgrade(b *testing.B) {
	b.Run("parse", func(b *testing.B) {
		b.SetBytes(int64(len(browserRequest)))
		b.ReportAllocs()
		for b.Loop() {
			parseWhole(b, browserRequest)
		}
	})
	b.Run("answer", func(b *testing.B) {
		r := parseWhole(b, browserRequest)
		dst := make([]byte, 0, 512)
		b.ReportAllocs()
		for b.Loop() {
			dst = appendUpgrade(dst[:0], &r)
		}
	})
}
