package engine

import (
	"bufio"
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
)

// spoken is the subprotocol of these tests.
var spoken = []string{"tocsin.v1"}

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
		mine, bad := parseHead(b[:end], "/ws", spoken)
		if why := wstest.WhyNot(string(b[:end])); (why == "") != (bad == nil) {
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
				_, bad = parseHead(head, "/ws", spoken)
			}); n > 2 { // a refusal and its text
				t.Errorf("%s: %.20q: %v allocations", name, value, n)
			}
			if why := wstest.WhyNot(string(head)); (why == "") != (bad == nil) {
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
				if _, bad := parseHead(head[:end], "/ws", spoken); bad != nil {
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
func parseWhole(t testing.TB, head []byte) Request {
	t.Helper()
	var scan headScan
	end, bad := scan.find(head)
	if bad == nil {
		var r parsedHead
		if r, bad = parseHead(head[:end], "/ws", spoken); bad == nil {
			return r.Request
		}
	}
	t.Fatalf("refused: %s: %q", bad.text, head)
	return Request{}
}

func TestHandshakeAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() {
		r := parseWhole(t, browserRequest)
		dst = appendUpgrade(dst[:0], &r.Handshake)
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
			dst = appendUpgrade(dst[:0], &r.Handshake)
		}
	})
}
