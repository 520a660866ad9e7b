package server

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
)

var (
	requestLine = regexp.MustCompile(`^GET (/ws)(\?[!-~]*)? HTTP/1\.1$`)
	fieldLine   = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*$")
	listed      = regexp.MustCompile(`(?i)(^|,)[ \t]*upgrade[ \t]*(,|$)`)
)

// strictHead says, in other words than the server, whether a head is an
// upgrade that nobody could misunderstand.
func strictHead(head []byte) bool {
	text, ok := strings.CutSuffix(string(head), "\r\n\r\n")
	if !ok || len(head) > 8<<10 {
		return false
	}
	lines := strings.Split(text, "\r\n")
	if !requestLine.MatchString(lines[0]) || len(lines) > 65 {
		return false
	}
	fields := map[string][]string{}
	for _, line := range lines[1:] {
		m := fieldLine.FindStringSubmatch(line)
		if m == nil || len(line) >= 4<<10 {
			return false
		}
		name := strings.ToLower(m[1])
		fields[name] = append(fields[name], m[2])
	}
	one := func(name string) string {
		if len(fields[name]) != 1 {
			return ""
		}
		return fields[name][0]
	}
	key, err := base64.StdEncoding.DecodeString(one("sec-websocket-key"))
	return err == nil && len(key) == 16 && len(one("sec-websocket-key")) == 24 &&
		one("sec-websocket-version") == "13" && strings.EqualFold(one("upgrade"), "websocket") &&
		listed.MatchString(one("connection")) && one("host") != "" && !strings.ContainsAny(one("host"), " \t,/@\\") &&
		fields["content-length"] == nil && fields["transfer-encoding"] == nil
}

// headSeeds are heads that are nearly right, and two that are.
func headSeeds() (seeds []string) {
	good := wstest.Request("tocsin.test", "/ws?topics=a,b", "dGhlIHNhbXBsZSBub25jZQ==", "Origin: http://tocsin.test", "Sec-WebSocket-Protocol: tocsin.v1")
	seeds = append(seeds, good, good+"early")
	for _, change := range [][2]string{
		{"GET", "get"},
		{"GET /ws", "GET  /ws"},
		{"/ws", "http://tocsin.test/ws"},
		{"HTTP/1.1", "HTTP/1.0"},
		{"Host:", "Host :"},
		{"Host:", "X: y\r\n Host:"},
		{"\r\n", "\n"},
		{"13", "13, 8"},
		{"Upgrade\r\n", "keep-alive, Upgrade\r\n"},
		{"==", "="},
		{"Origin", "Content-Length: 0\r\nOrigin"},
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

// FuzzHandshake: whatever is accepted, a strict parser of another make and
// net/http accept too.
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
		if _, bad := parseHead(b[:end], "/ws"); bad != nil {
			if bad.status < 400 || bad.status > 505 || bad.text == "" && bad.status != http.StatusMethodNotAllowed {
				t.Fatalf("refused with %+v", bad)
			}
			return
		}
		if !strictHead(b[:end]) {
			t.Fatalf("accepted: %q", b[:end])
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b[:end])))
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
			if n := testing.AllocsPerRun(1, func() {
				var scan headScan
				if end, bad := scan.find(head); end != len(head) || bad != nil || scan.at != len(head)-1 {
					t.Fatalf("%s: %.20q: head ends at %d, %v", name, value, end, bad)
				}
				if _, bad := parseHead(head, "/ws"); bad == nil && !strictHead(head) {
					t.Fatalf("%s: %.20q is accepted", name, value)
				}
			}); n > 600 { // nearly all of them strictHead's
				t.Errorf("%s: %.20q: %v allocations", name, value, n)
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
