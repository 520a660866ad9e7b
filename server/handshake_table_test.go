package server_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// A sample of RFC 6455 section 1.3.
const sampleKey = "dGhlIHNhbXBsZSBub25jZQ=="

// upgrade returns a correct request with more header lines.
func upgrade(header ...string) string {
	return wstest.Request("tocsin.test", "/ws", sampleKey, header...)
}

// changed returns a correct request in which old, which has to be there, is
// replaced.
func changed(old, by string) string {
	r := upgrade()
	if !strings.Contains(r, old) {
		panic("no " + old + " in the request")
	}
	return strings.Replace(r, old, by, 1)
}

// wantRefused sends request twice, at once and byte by byte, and wants it
// refused in the same way.
func wantRefused(t *testing.T, addr, request string, statuses ...int) *http.Response {
	t.Helper()
	refused(t, addr, request, len(request), statuses...)
	return refused(t, addr, request, 1, statuses...)
}

// refused sends request in pieces of size bytes and wants an answer with one
// of the statuses, in correct HTTP, and the end of the stream.
func refused(t *testing.T, addr, request string, size int, statuses ...int) *http.Response {
	t.Helper()
	c := wstest.Open(t, addr)
	defer c.Drop()
	for piece := range slices.Chunk([]byte(request), size) {
		if _, err := c.Write(piece); err != nil {
			break // refused before the end of it
		}
	}
	method, _, _ := strings.Cut(request, " ")
	res := c.Response(method)
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		t.Errorf("%s: the body: %v", res.Status, err)
	case !slices.Contains(statuses, res.StatusCode):
		t.Errorf("in pieces of %d: %s %s, want %d", size, res.Status, body, statuses)
	case !res.Close:
		t.Errorf("%s without Connection: close", res.Status)
	case time.Since(dateOf(res)).Abs() > time.Hour:
		t.Errorf("%s with Date %q, RFC 9110 section 6.6.1", res.Status, res.Header["Date"])
	case res.StatusCode == http.StatusMethodNotAllowed && res.Header.Get("Allow") != http.MethodGet:
		t.Errorf("405 says Allow %q, RFC 9110 section 15.5.6", res.Header["Allow"])
	case method != http.MethodHead && (len(body) == 0 || res.ContentLength != int64(len(body))):
		t.Errorf("%s with Content-Length %d and body %q, want a sentence", res.Status, res.ContentLength, body)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		if rest := c.Rest(); len(rest) > 0 {
			t.Errorf("%s to %s is followed by %q", res.Status, method, rest)
		}
	}
	return res
}

// dateOf returns the Date of an answer, or a time long ago.
func dateOf(res *http.Response) time.Time {
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil || res.Header.Get("Date") != date.Format(http.TimeFormat) {
		return time.Time{}
	}
	return date
}

// A request with a body, or that another parser could think has one, is never
// upgraded (docs/faults.md H6).
func TestHandshakeRefusesBodies(t *testing.T) {
	addr := echoServer(t)
	requests := map[string]string{
		"length and transfer":  upgrade("Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n",
		"transfer and length":  upgrade("Transfer-Encoding: chunked", "Content-Length: 5") + "0\r\n\r\n",
		"two lengths":          upgrade("Content-Length: 5", "Content-Length: 6") + "hello",
		"two lengths of 0":     upgrade("Content-Length: 0", "Content-Length: 0") + "hello",
		"two equal lengths":    upgrade("Content-Length: 5", "Content-Length: 5") + "hello",
		"two transfers":        upgrade("Transfer-Encoding: identity", "Transfer-Encoding: chunked"),
		"length with a tab":    upgrade("Content-Length:\t5") + "hello",
		"length before colon":  upgrade("Content-Length : 5") + "hello",
		"transfer before":      upgrade("Transfer-Encoding : chunked") + "0\r\n\r\n",
		"lower-case length":    upgrade("content-length: 5") + "hello",
		"upper-case transfer":  upgrade("TRANSFER-ENCODING: CHUNKED") + "0\r\n\r\n",
		"folded transfer":      upgrade("Transfer-Encoding:\r\n chunked") + "0\r\n\r\n",
		"length behind a fold": upgrade("X-A: b\r\n\tContent-Length: 5") + "hello",
		"expected body":        upgrade("Expect: 100-continue", "Content-Length: 5"),
	}
	for _, v := range []string{"0, 0", "5", "-1", "+0", "0x0", "+5", "0x5", "abc", "", "5, 5", "5 5", "18446744073709551616"} {
		requests["length "+v] = upgrade("Content-Length: "+v) + "hello"
	}
	for _, v := range []string{"chunked", "identity", "gzip, chunked", "chunked, identity", "Chunked", "xchunked", "\"chunked\"", ""} {
		requests["transfer "+v] = upgrade("Transfer-Encoding: "+v) + "0\r\n\r\n"
	}
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, addr, request, http.StatusBadRequest)
		})
	}
	behind := []string{
		"GET / HTTP/1.1\r\nHost: tocsin.test\r\n\r\n", upgrade(), "POST /api/publish HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\r\n", "0\r\n\r\n", `{"ping":{}}`, "  ", "hello",
	}
	for _, b := range behind {
		t.Run(fmt.Sprintf("pipelined %.12q", b), func(t *testing.T) {
			refused(t, addr, upgrade()+b, len(upgrade()+b), http.StatusBadRequest)
			// Too late to refuse: it is no frame, and nothing else reads it.
			c := wstest.Open(t, addr)
			c.SendRaw([]byte(upgrade()))
			c.WantUpgraded(sampleKey)
			c.WantWelcome()
			c.SendRaw([]byte(b))
			c.WantClosed(wire.CloseProtocolError)
		})
	}
	if n := len(requests) + len(behind); n != 43 {
		t.Fatalf("%d requests, want 43", n)
	}
}

// Frames that a client sends without waiting for the 101 arrive, once, in
// whatever pieces they come (docs/faults.md H6).
func TestHandshakeKeepsEarlyFrames(t *testing.T) {
	addr := echoServer(t)
	for i := range server.Size(1000) {
		text := fmt.Sprint("early ", i)
		stream := upgrade() + string(wstest.Encode(wstest.Text(text), wstest.Ping(text)))
		cut := len(stream) - i%80 // behind everything, or in the frames, or in the head
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(stream[:cut]))
		if cut < len(stream) {
			c.SendRaw([]byte(stream[cut:]))
		}
		c.WantUpgraded(sampleKey)
		c.WantWelcome()
		c.WantText(text)
		c.WantPong(text)
		c.WantNothing()
	}
}

// TestHandshakeEverySplit cuts a request and a first frame at every byte.
func TestHandshakeEverySplit(t *testing.T) {
	addr := echoServer(t)
	stream := upgrade("Origin: http://tocsin.test") + string(wstest.Encode(wstest.Text("early"), wstest.Close(1000, "")))
	for cut := range len(stream) {
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(stream[:cut]))
		c.SendRaw([]byte(stream[cut:]))
		c.WantUpgraded(sampleKey)
		c.WantWelcome()
		c.WantText("early")
		c.WantClosed(wire.CloseNormal)
		c.Drop()
	}
	c := wstest.Open(t, addr)
	c.SendPieces([]byte(stream), 1)
	c.WantUpgraded(sampleKey)
	c.WantWelcome()
	c.WantText("early")
	c.WantClosed(wire.CloseNormal)
}

const (
	sampleLine = "GET /ws HTTP/1.1\r\n"
	sampleHost = "Host: tocsin.test\r\n"
)

// malformed are requests that RFC 9112 and RFC 6455 section 4.2.1 do not allow, or
// that two parsers could read differently.
var malformed = map[string]string{
	"two hosts":              upgrade("Host: tocsin.test"),
	"two keys":               upgrade("Sec-WebSocket-Key: " + sampleKey),
	"two versions":           upgrade("Sec-WebSocket-Version: 13"),
	"element of Upgrade":     upgrade("Upgrade: h2 c"),
	"element of Connection":  upgrade("Connection: a@b"),
	"two empty offers":       upgrade("Sec-WebSocket-Protocol:", "Sec-WebSocket-Protocol: ,"),
	"empty extensions":       upgrade("Sec-WebSocket-Extensions: ,"),
	"nameless extension":     upgrade("Sec-WebSocket-Extensions: ;a"),
	"half an extension":      upgrade("Sec-WebSocket-Extensions: a; b=\"c"),
	"parameter of two words": upgrade("Sec-WebSocket-Extensions: a; b c"),
	"parameter quotes space": upgrade("Sec-WebSocket-Extensions: a; b=\"c d\""),
	"empty host":             changed(sampleHost, "Host: \r\n"),
	"host with a path":       changed(sampleHost, "Host: tocsin.test/ws\r\n"),
	"port of letters":        changed(sampleHost, "Host: tocsin.test:ws\r\n"),
	"open bracket":           changed(sampleHost, "Host: [::1\r\n"),
	"name in brackets":       changed(sampleHost, "Host: [tocsin.test]\r\n"),
	"no host":                changed(sampleHost, ""),
	"host with a space":      changed(sampleHost, "Host: tocsin test\r\n"),
	"folded line":            upgrade("X-A: b\r\n c"),
	"folded by a tab":        upgrade("X-A: b\r\n\tc"),
	"fold before all":        changed(sampleLine, sampleLine+" X-A: b\r\n"),
	"bare LF":                strings.ReplaceAll(upgrade(), "\r\n", "\n"),
	"bare LF in one line":    upgrade("X-A: b\nX-B: c"),
	"bare LF at the end":     strings.TrimSuffix(upgrade(), "\r\n\r\n") + "\n\n",
	"bare CR":                upgrade("X-A: b\rc"),
	"NUL in a value":         upgrade("X-A: b\x00c"),
	"NUL in a name":          upgrade("X\x00A: b"),
	"control in a value":     upgrade("X-A: b\x01c"),
	"DEL in a value":         upgrade("X-A: b\x7fc"),
	"space before colon":     changed("Host:", "Host :"),
	"space in a name":        upgrade("X A: b"),
	"byte over 127 in name":  upgrade("X-\xe9: b"),
	"no name":                upgrade(": b"),
	"no colon":               upgrade("X-A"),
	"lower-case method":      changed("GET", "get"),
	"no method":              changed("GET ", ""),
	"absolute without host":  strings.Replace(changed(sampleHost, ""), "/ws", "http://tocsin.test/ws", 1),
	"absolute with nobody":   changed("/ws", "http:///ws"),
	"absolute with userinfo": changed("/ws", "http://ann@tocsin.test/ws"),
	"scheme ws":              changed("/ws", "ws://tocsin.test/ws"),
	"escaped NUL":            changed("/ws", "/ws%00"),
	"half an escape":         changed("/ws", "/ws%7"),
	"escape of letters":      changed("/ws", "/%xxs"),
	"authority form":         changed("/ws", "tocsin.test:80"),
	"no slash":               changed("/ws", "ws"),
	"fragment":               changed("/ws", "/ws#a"),
	"byte over 127 in path":  changed("/ws", "/ws?\xe9"),
	"control in the path":    changed("/ws", "/ws?\x01"),
	"two spaces":             changed("GET ", "GET  "),
	"tab for a space":        changed("GET ", "GET\t"),
	"space at the line end":  changed("HTTP/1.1\r\n", "HTTP/1.1 \r\n"),
	"four words":             changed("/ws", "/ws /ws"),
	"HTTP/1.999":             changed("HTTP/1.1", "HTTP/1.999"),
	"HTTP/2.0":               changed("HTTP/1.1", "HTTP/2.0"),
	"HTTP/01.1":              changed("HTTP/1.1", "HTTP/01.1"),
	"lower-case http":        changed("HTTP/1.1", "http/1.1"),
	"HTTP/0.9":               "GET /ws\r\n\r\n",
	"another protocol":       changed("HTTP/1.1", "RTSP/1.0"),
	"POST":                   changed("GET", "POST"),
	"connection not upgrade": changed("Connection: Upgrade", "Connection: close"),
}

// What is not allowed is refused (docs/faults.md H7).
func TestHandshakeRefusesMalformed(t *testing.T) {
	addr := echoServer(t)
	if len(malformed) < 30 {
		t.Fatalf("%d requests, want 30 or more", len(malformed))
	}
	for name, request := range malformed {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, addr, request, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusHTTPVersionNotSupported)
		})
	}
}

// A request that does not ask for a WebSocket is told to.
func TestHandshakeWantsUpgrade(t *testing.T) {
	addr := echoServer(t)
	for name, request := range map[string]string{
		"browser":          "GET /ws HTTP/1.1\r\nHost: tocsin.test\r\n\r\n",
		"no connection":    changed("Connection: Upgrade\r\n", ""),
		"no upgrade":       changed("Upgrade: websocket\r\n", ""),
		"another protocol": changed("Upgrade: websocket", "Upgrade: h2c"),
	} {
		t.Run(name, func(t *testing.T) {
			res := wantRefused(t, addr, request, http.StatusUpgradeRequired, http.StatusBadRequest)
			if res.StatusCode == http.StatusUpgradeRequired && !strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
				t.Errorf("426 says Upgrade %q, RFC 9110 section 15.5.22", res.Header["Upgrade"])
			}
		})
	}
	wantRefused(t, addr, "GET /ws HTTP/1.1\r\nHost: tocsin.test\r\n\r\n", http.StatusUpgradeRequired)
}

// A key that is not 16 bytes in base64 is refused (docs/faults.md H8).
func TestHandshakeRefusesKeys(t *testing.T) {
	addr := echoServer(t)
	const old = "Sec-WebSocket-Key: " + sampleKey
	for name, by := range map[string]string{
		"none":             "X-No-Key: x",
		"empty":            "Sec-WebSocket-Key: ",
		"23 characters":    "Sec-WebSocket-Key: " + sampleKey[1:],
		"25 characters":    "Sec-WebSocket-Key: A" + sampleKey,
		"24 not base64":    "Sec-WebSocket-Key: " + strings.Repeat("!", 22) + "==",
		"URL alphabet":     "Sec-WebSocket-Key: " + "-_" + sampleKey[2:],
		"15 bytes":         "Sec-WebSocket-Key: " + base64.StdEncoding.EncodeToString(make([]byte, 15)),
		"17 bytes":         "Sec-WebSocket-Key: " + base64.StdEncoding.EncodeToString(make([]byte, 17)),
		"18 bytes":         "Sec-WebSocket-Key: " + base64.StdEncoding.EncodeToString(make([]byte, 18)),
		"padding in front": "Sec-WebSocket-Key: ==" + sampleKey[:22],
		"space inside":     "Sec-WebSocket-Key: " + sampleKey[:11] + " " + sampleKey[12:],
		"two":              old + "\r\n" + old,
		"two in one line":  old + ", " + sampleKey,
	} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, addr, changed(old, by), http.StatusBadRequest)
		})
	}
}

// Versions other than 13 get 426 and are told which it is (docs/faults.md H9).
func TestHandshakeRefusesVersions(t *testing.T) {
	addr := echoServer(t)
	for _, version := range []string{"0", "7", "8", "12", "14", "255", "13, 8", "8, 13"} {
		t.Run(version, func(t *testing.T) {
			res := wantRefused(t, addr, changed("Version: 13", "Version: "+version), http.StatusUpgradeRequired)
			if got := res.Header["Sec-Websocket-Version"]; !slices.Equal(got, []string{"13"}) {
				t.Errorf("Sec-WebSocket-Version is %q, want 13", got)
			}
		})
	}
}

// Whatever else is asked for on the port gets an answer, and only GET of the
// path an upgrade (docs/faults.md H10).
func TestHandshakePathsAndMethods(t *testing.T) {
	addr := echoServer(t)
	paths := []string{
		"/ws", "/ws?topics=a", "/%77s", "/", "/ws/", "/WS", "/wsx", "/ws/a", "//ws", "/./ws", "/a/../ws",
		"%2Fws", "/ws%20", "/ws%00", "/ws;a", "/mqtt", "/metrics", "/api/publish", "/admin/", "/favicon.ico", "*",
	}
	methods := []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"}
	upgraded := 0
	for _, path := range paths {
		for _, method := range methods {
			request := strings.Replace(wstest.Request("tocsin.test", path, sampleKey), "GET", method, 1)
			if method == "GET" && (strings.HasPrefix(path+"?", "/ws?") || path == "/%77s") {
				c := wstest.Open(t, addr)
				c.SendRaw([]byte(request))
				c.WantUpgraded(sampleKey)
				c.Drop()
				upgraded++
				continue
			}
			t.Run(method+" "+path, func(t *testing.T) {
				wantRefused(t, addr, request, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented)
			})
		}
	}
	if upgraded != 3 || len(paths)*len(methods) != 189 {
		t.Errorf("%d upgrades among %d requests", upgraded, len(paths)*len(methods))
	}
	wantRefused(t, addr, "POST /ws HTTP/1.1\r\nHost: tocsin.test\r\n\r\n", http.StatusMethodNotAllowed)
	wantRefused(t, addr, "GET /mqtt HTTP/1.1\r\nHost: tocsin.test\r\n\r\n", http.StatusNotFound)
}

// TestHandshakeOtherProtocols speaks HTTP/2 and TLS to the port.
func TestHandshakeOtherProtocols(t *testing.T) {
	addr := echoServer(t)
	for name, hello := range map[string]string{
		"HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"TLS":    "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\r\n\r\n",
		"frame":  string(wstest.Encode(wstest.Text("hello"))) + "\r\n\r\n",
		"empty":  "\r\n\r\n\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := wstest.Open(t, addr)
			c.SendRaw([]byte(hello))
			if answer := c.Rest(); len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) &&
				!bytes.HasPrefix(answer, []byte("HTTP/1.1 505 ")) {
				t.Errorf("answered %q", answer)
			}
		})
	}
}

// The head is bounded in its lines, their number and its size; nothing under
// the bounds is refused, and nothing over them waited for (docs/faults.md H3
// and H4). A request line of 8,000 bytes has to fit: RFC 9112 section 3.
func TestHandshakeHeadLimits(t *testing.T) {
	addr := echoServer(t)
	const line, head = 8 << 10, 16 << 10 // bytes, ends included
	lineOf := func(n int) string { return "X-A: " + strings.Repeat("a", n-len("X-A: \r\n")) }
	requestLineOf := func(n int) string {
		return changed("/ws", "/ws?"+strings.Repeat("a", n-len("GET /ws? HTTP/1.1\r\n")))
	}
	headers := func(n int) (lines []string) { // with the five of a correct request
		for i := range n - 5 {
			lines = append(lines, fmt.Sprintf("X-%d: a", i))
		}
		return lines
	}
	headOf := func(n int) string { // bytes in all, in lines well under the limit
		lines := slices.Repeat([]string{lineOf(6000)}, 2)
		missing := n - len(upgrade(lines...))
		r := upgrade(append(lines, lineOf(missing))...)
		if len(r) != n {
			t.Fatalf("a head of %d bytes, not %d", len(r), n)
		}
		return r
	}
	for name, request := range map[string]string{
		"line":         upgrade(lineOf(line)),
		"cookies":      upgrade("Cookie: a=" + strings.Repeat("b", line-len("Cookie: a=\r\n"))),
		"64 fields":    upgrade(headers(64)...),
		"head":         headOf(head),
		"request line": requestLineOf(line),
	} {
		t.Run(name, func(t *testing.T) {
			c := wstest.Open(t, addr)
			c.SendRaw([]byte(request))
			c.WantUpgraded(sampleKey)
		})
	}
	const start = "GET /ws HTTP/1.1\r\nHost: tocsin.test\r\n"
	for name, request := range map[string]string{
		"longer line":            upgrade(lineOf(line + 1)),
		"65 fields":              upgrade(headers(65)...),
		"longer head":            headOf(head + 1),
		"line without end":       start + lineOf(line+2),
		"name without end":       start + strings.Repeat("a", line),
		"65 fields without end":  start + strings.Repeat("X-A: b\r\n", 64),
		"head without blank end": strings.TrimSuffix(headOf(head), "\r\n\r\n") + "aaaaa",
	} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, addr, request, http.StatusRequestHeaderFieldsTooLarge)
		})
	}
	for name, request := range map[string]string{
		"longer request line":        requestLineOf(line + 1),
		"request line without end":   "GET /" + strings.Repeat("a", line),
		"request line of one letter": strings.Repeat("A", line),
	} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, addr, request, http.StatusRequestURITooLong)
		})
	}
}

// A head that does not end is refused and not read to its end (docs/faults.md
// H3 and H4).
func TestHandshakeEndlessHead(t *testing.T) {
	addr := startServer(t, server.Config{Dev: true, CloseTimeout: 200 * time.Millisecond})
	const start, most = "GET /ws HTTP/1.1\r\nHost: tocsin.test\r\nX-A:", 256 << 20
	for name, unit := range map[string]string{"line": "a", "headers": "X-A: b\r\n", "spaces": " "} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := wstest.Open(t, addr)
			c.SendRaw([]byte(start))
			piece := []byte(strings.Repeat(unit, 64<<10/len(unit)))
			sent := 0
			for err := error(nil); err == nil && sent < most; {
				var n int
				n, err = c.Write(piece)
				sent += n
			}
			if sent >= most {
				t.Errorf("%d bytes of head were taken", sent)
			}
			if res := c.Response(http.MethodGet); res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s, want 431", res.Status)
			}
		})
	}
}

// Offers of subprotocols and extensions are read in one pass, and nothing is
// answered that was not offered (docs/faults.md H5 and H14).
func TestHandshakeProtocolOffers(t *testing.T) {
	addr := echoServer(t)
	for offer, want := range map[string]string{
		"tocsin.v1":                           "tocsin.v1",
		"chat, tocsin.v1":                     "tocsin.v1",
		"tocsin.v1,tocsin.v2":                 "tocsin.v1",
		"chat":                                "",
		"TOCSIN.V1":                           "",
		"tocsin.v11":                          "",
		"b" + strings.Repeat(" ", 4000) + "x": "",
		strings.Repeat("a,", 1900) + "a":      "",
		strings.Repeat(" ,", 1900) + " tocsin.v1": "tocsin.v1",
		`tocsin.v1"`: "",
		"constructor, __proto__, toString, tocsin.v": "",
	} {
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(upgrade("Sec-WebSocket-Protocol: " + offer)))
		res := c.Response(http.MethodGet)
		got := res.Header.Get("Sec-WebSocket-Protocol")
		switch res.StatusCode {
		case http.StatusBadRequest: // a malformed list may be refused
			if want != "" && !strings.Contains(offer, " ,") {
				t.Errorf("offer %.40q: refused", offer)
			}
		case http.StatusSwitchingProtocols:
			if got != want {
				t.Errorf("offer %.40q: got %q, want %q", offer, got, want)
			}
		default:
			t.Errorf("offer %.40q: %s", offer, res.Status)
		}
		c.Drop()
	}
	for _, offer := range []string{"permessage-deflate; client_max_window_bits", "x", "permessage-deflate, permessage-deflate"} {
		wstest.Dial(t, addr, "/ws", "Sec-WebSocket-Extensions: "+offer) // fails if one is accepted
	}
}

// TestHandshakeMutations changes good requests at random. Whatever the server
// upgrades has to be correct for a strict parser that knows nothing of it.
func TestHandshakeMutations(t *testing.T) {
	addr := echoServer(t)
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 2))
			accepted, refused := 0, 0
			for range 250 {
				request := mutate(rnd)
				status := statusOf(t, addr, request)
				switch invalid := wstest.WhyNot(request); {
				case status == http.StatusSwitchingProtocols && invalid != "":
					t.Errorf("upgraded although %s:\n%q", invalid, request)
				case status == http.StatusSwitchingProtocols:
					accepted++
				default:
					refused++
				}
			}
			if accepted < 10 || refused < 50 {
				t.Errorf("%d upgraded and %d refused tell nothing", accepted, refused)
			}
		})
	}
}

// statusOf sends request and returns the status of the answer, 0 for none. The
// stream is ended behind a head that has no end.
func statusOf(t *testing.T, addr, request string) int {
	t.Helper()
	c := wstest.Open(t, addr)
	defer c.Drop()
	if _, err := c.Write([]byte(request)); err != nil {
		return 0
	}
	if !strings.Contains(request, "\r\n\r\n") {
		c.HalfClose()
		answer := string(c.Rest())
		if answer == "" {
			return 0
		}
		var status int
		if _, err := fmt.Sscanf(answer, "HTTP/1.1 %3d ", &status); err != nil {
			t.Errorf("answered %q", answer)
		}
		return status
	}
	method, _, _ := strings.Cut(request, " ")
	return c.Response(method).StatusCode
}

// mutate returns a good request with up to three changes, a few of which leave
// it good.
func mutate(rnd *rand.Rand) string {
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	request := upgrade(pick("Origin: http://tocsin.test", "X-A: b", "Cookie: a=b; c=d", "Sec-WebSocket-Protocol: tocsin.v1"))
	for range 1 + rnd.IntN(3) {
		lines := strings.Split(strings.TrimSuffix(request, "\r\n\r\n"), "\r\n")
		at, line := rnd.IntN(len(request)), rnd.IntN(len(lines))
		switch rnd.IntN(9) {
		case 0:
			request = request[:at] + string(rune(rnd.IntN(128))) + request[at+1:]
			continue
		case 1:
			request = request[:at] + pick("\r", "\n", "\r\n", "\x00", ":", " ", "\t", ",", "\x80", "#", "\r\n ", "?") + request[at:]
			continue
		case 2:
			request = request[:at] + request[at+1:]
			continue
		case 3:
			lines = slices.Insert(lines, line, lines[rnd.IntN(len(lines))])
		case 4:
			if len(lines) > 1 {
				lines = slices.Delete(lines, line, line+1)
			}
		case 5:
			other := rnd.IntN(len(lines))
			lines[line], lines[other] = lines[other], lines[line]
		case 6:
			lines[line] = pick(strings.ToUpper(lines[line]), strings.ToLower(lines[line]), lines[line]+" ", strings.Replace(lines[line], ": ", ":", 1))
		case 7:
			lines = append(lines, pick("Content-Length: 0", "Transfer-Encoding: chunked", "Connection: keep-alive", "X: y",
				"Upgrade: h2c", "Sec-WebSocket-Version: 8", "X: \xff", "X:", ":", "Host: b"))
		case 8:
			lines[line] = strings.Replace(lines[line], pick("websocket", "Upgrade", "13", "/ws", "=="),
				pick("", "WebSocket", "h2c, websocket", "keep-alive, Upgrade", "13 ", "/ws?a=b", "/ws/", "="), 1)
		}
		request = strings.Join(lines, "\r\n") + "\r\n\r\n"
	}
	return request
}

// TestHandshakeModel keeps the strict parser honest.
func TestHandshakeModel(t *testing.T) {
	for _, request := range []string{
		upgrade(), upgrade("X-A:"), upgrade("X-A: \xff\t"), changed("/ws", "/ws?a=b"), changed("Upgrade\r\n", "keep-alive , upgrade\r\n"),
		changed("websocket", "WebSocket"), upgrade("Connection: keep-alive"), upgrade() + string(ws.CompiledPing),
		upgrade("Content-Length: 0"), upgrade("Upgrade: h2c"), changed("/ws", "http://a/%77s"), changed("1.1", "1.2"),
	} {
		if why := wstest.WhyNot(request); why != "" {
			t.Errorf("refused because %s:\n%q", why, request)
		}
	}
	for _, request := range []string{
		"", upgrade()[:20], upgrade("Host: a"), upgrade("X A: b"), upgrade("X-A: b\r\n c"), upgrade("Content-Length: 1"),
		changed("13", "8"), changed("GET", "POST"), changed("/ws", "/"), changed("Upgrade\r\n", "close\r\n"), changed("websocket", "h2c"),
		changed("==", "="), changed("1.1", "1.0"), upgrade("X: \x00"), changed("/ws", "/ws?a#b"), upgrade("Upgrade: h 2"),
	} {
		if wstest.WhyNot(request) == "" {
			t.Errorf("accepted: %q", request)
		}
	}
}
