package server_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// bothDoors starts one server behind Serve and behind ServeHTTP, and returns
// the two addresses.
func bothDoors(t *testing.T, cfg server.Config) map[string]string {
	t.Helper()
	srv, addr := serve(t, cfg)
	mux := http.NewServeMux()
	mux.Handle("/ws", srv)
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	return map[string]string{"Serve": addr, "ServeHTTP": web.Listener.Addr().String()}
}

// TestHandshakeValidForms has every form of a request that RFC 9110, RFC 9112
// and RFC 6455 allow, and wants it upgraded, with Auth and without.
func TestHandshakeValidForms(t *testing.T) {
	const offer = "Sec-WebSocket-Protocol: "
	tests := []struct {
		name, request string
		chosen        string // subprotocol
	}{
		{"two lines of offers, RFC 6455 section 11.3.4", upgrade(offer+"chat", offer+"tocsin.v1"), "tocsin.v1"},
		{"two lines of offers without ours", upgrade(offer+"chat", offer+"news"), ""},
		{"tab between offers, RFC 9110 section 5.6.3", upgrade(offer + "a,\ttocsin.v1\t,b"), "tocsin.v1"},
		{"empty offers, RFC 9110 section 5.6.1.2", upgrade(offer + ",a,,tocsin.v1,"), "tocsin.v1"},
		{"an empty line of offers", upgrade(offer, offer+"tocsin.v1"), "tocsin.v1"},
		{"two lines of Connection, RFC 9110 section 5.3", upgrade("Connection: keep-alive"), ""},
		{"Upgrade on the second line of Connection", changed("Connection: Upgrade", "Connection: keep-alive\r\nConnection: Upgrade"), ""},
		{"tab in Connection", changed("Connection: Upgrade", "Connection: keep-alive,\tUpgrade"), ""},
		{"empty elements of Connection", changed("Connection: Upgrade", "Connection: , ,Upgrade,"), ""},
		{"two protocols to upgrade to, RFC 9110 section 7.8", changed("Upgrade: websocket", "Upgrade: websocket, h2c"), ""},
		{"a version of the other protocol", changed("Upgrade: websocket", "Upgrade: h2c/2, WebSocket"), ""},
		{"two lines of Upgrade", changed("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket"), ""},
		{"absolute-form, RFC 9112 section 3.2.2", changed("/ws", "http://tocsin.test/ws"), ""},
		{"absolute-form behind a proxy that ends TLS", changed("/ws", "https://tocsin.test:443/ws"), ""},
		{"absolute-form with another Host, which is ignored", changed("/ws", "HTTP://[::1]:80/ws"), ""},
		{"absolute-form with an empty Host", strings.Replace(changed("/ws", "http://tocsin.test/ws"), "Host: tocsin.test", "Host:", 1), ""},
		{"no body, RFC 9110 section 8.6", upgrade("Content-Length: 0"), ""},
		{"no body in two digits", upgrade("Content-Length: 00"), ""},
		{"HTTP/1.2, RFC 9110 section 2.5", changed("HTTP/1.1", "HTTP/1.2"), ""},
		{"HTTP/1.9", changed("HTTP/1.1", "HTTP/1.9"), ""},
		{"escapes in the path, RFC 9110 section 4.2.3", changed("/ws", "/%77%73"), ""},
		{"a comma in Host, RFC 3986 section 3.2.2", changed("Host: tocsin.test", "Host: a,b"), ""},
		{"an address and a port in Host", changed("Host: tocsin.test", "Host: [2001:db8::1]:8080"), ""},
		{"extensions on two lines, RFC 6455 section 9.1", upgrade("Sec-WebSocket-Extensions: a; b=c; d=\"e\", f", "Sec-WebSocket-Extensions: g ; h = i"), ""},
		{"a line of 8 KiB of cookies", upgrade("Cookie: " + strings.Repeat("a", 8<<10-len("Cookie: \r\n"))), ""},
		{"64 fields and Pragma among them", upgrade(append(manyFields(58), "Pragma: no-cache")...), ""},
	}
	doors := bothDoors(t, server.Config{})
	for door, addr := range bothDoors(t, server.Config{Auth: func(r *http.Request) (server.Identity, error) {
		if r.Method != http.MethodGet || r.URL.Path != "/ws" || r.Host == "" {
			return server.Identity{}, fmt.Errorf("asked for %s at %q", r.URL, r.Host)
		}
		return server.Identity{User: "ann"}, nil
	}}) {
		doors[door+" with Auth"] = addr
	}
	for door, addr := range doors {
		for _, tt := range tests {
			t.Run(door+"/"+tt.name, func(t *testing.T) {
				c := wstest.Open(t, addr)
				c.SendRaw([]byte(tt.request))
				if got := c.WantUpgraded(sampleKey).Header.Get("Sec-WebSocket-Protocol"); got != tt.chosen {
					t.Errorf("the answer chooses %q, want %q", got, tt.chosen)
				}
				c.WantWelcome()
				c.WantNothing()
			})
		}
	}
}

// manyFields returns n field lines.
func manyFields(n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("X-%d: a", i))
	}
	return lines
}

// TestHandshakeAbsoluteForm subscribes by the query of a target in absolute-form.
func TestHandshakeAbsoluteForm(t *testing.T) {
	for door, addr := range bothDoors(t, server.Config{}) {
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(changed("/ws", "http://tocsin.test/ws?topics=news&user=ann")))
		c.WantUpgraded(sampleKey)
		if w := c.WantWelcome(); w.User != "ann" || len(w.Topics) != 1 {
			t.Errorf("%s: the welcome is %+v", door, w)
		}
		c.WantNothing()
	}
}

// A path that no request can hold as it is, is asked for with escapes; behind
// ServeHTTP the mux has the say.
func TestHandshakePathWithEscapes(t *testing.T) {
	doors := bothDoors(t, server.Config{Path: "/a b/ü"})
	for door, paths := range map[string][]string{"Serve": {"/a%20b/%C3%BC", "/%61%20%62/%c3%bc"}, "ServeHTTP": {"/ws"}} {
		for _, path := range paths {
			wstest.Dial(t, doors[door], path).WantWelcome()
		}
	}
	for _, path := range []string{"/ws", "/a%20b", "/a%20b/%C3", "/a%20b/%C3%BC/", "/a+b/%C3%BC", "/a%20b%2F%C3%BC"} {
		wantRefused(t, doors["Serve"], upgradeAt(path), http.StatusNotFound)
	}
}

// A name that comes twice in ?topics= is one subscription and one key of the
// welcome, and counts once for the limit.
func TestHandshakeTopicsTwice(t *testing.T) {
	srv, addr := serve(t, server.Config{MaxTopics: 2})
	c := wstest.Open(t, addr)
	c.SendRaw([]byte(upgradeAt("/ws?topics=b,a,b&topics=a,%61")))
	c.WantUpgraded(sampleKey)
	welcome := string(c.NextFrame().Payload)
	if strings.Count(welcome, `"a":`) != 1 || strings.Count(welcome, `"b":`) != 1 || srv.Stats().Subscriptions != 2 {
		t.Errorf("%d subscriptions, welcome %s", srv.Stats().Subscriptions, welcome)
	}
	c.WantNothing()
	wantRefused(t, addr, upgradeAt("/ws?topics=a,b,c"), http.StatusBadRequest)
}

// TestHandshakeStatuses wants the status that says what is wrong, through both
// doors.
func TestHandshakeStatuses(t *testing.T) {
	plain := func(version string) string { return "GET /ws HTTP/" + version + "\r\nHost: tocsin.test\r\n\r\n" }
	tests := []struct {
		name, request string
		status        int
	}{
		{"a visitor", plain("1.1"), http.StatusUpgradeRequired},
		{"a visitor with HTTP/1.0", plain("1.0"), http.StatusUpgradeRequired},
		{"HTTP/1.0, whose Upgrade is ignored: RFC 9110 section 7.8", changed("HTTP/1.1", "HTTP/1.0"), http.StatusUpgradeRequired},
		{"an upgrade to something else", changed("Upgrade: websocket", "Upgrade: h2c"), http.StatusUpgradeRequired},
		{"version 8", changed("Version: 13", "Version: 8"), http.StatusUpgradeRequired},
		{"a list of versions", changed("Version: 13", "Version: 13, 8"), http.StatusUpgradeRequired},
		{"POST", changed("GET", "POST"), http.StatusMethodNotAllowed},
		{"a target of 8 KiB: RFC 9112 section 3", changed("/ws", "/ws?"+strings.Repeat("a", 8<<10)), http.StatusRequestURITooLong},
		{"a target of 20 KiB", changed("/ws", "/ws?"+strings.Repeat("a", 20<<10)), http.StatusRequestURITooLong},
		{"a field of 8 KiB", upgrade("X-A: " + strings.Repeat("a", 8<<10)), http.StatusRequestHeaderFieldsTooLarge},
		{"a head of 20 KiB", upgrade(manyLong(5)...), http.StatusRequestHeaderFieldsTooLarge},
		{"65 fields and Pragma among them", upgrade(append(manyFields(59), "Pragma: no-cache")...), http.StatusRequestHeaderFieldsTooLarge},
		{"two keys", upgrade("Sec-WebSocket-Key: " + sampleKey), http.StatusBadRequest},
		{"a body", upgrade("Content-Length: 5") + "hello", http.StatusBadRequest},
		{"a scheme of no HTTP", changed("/ws", "ws://tocsin.test/ws"), http.StatusBadRequest},
		{"bad extensions", upgrade("Sec-WebSocket-Extensions: a b"), http.StatusBadRequest},
		{"bad offers", upgrade("Sec-WebSocket-Protocol: a/b"), http.StatusBadRequest},
	}
	for door, addr := range bothDoors(t, server.Config{}) {
		for _, tt := range tests {
			t.Run(door+"/"+tt.name, func(t *testing.T) {
				res := refused(t, addr, tt.request, len(tt.request), tt.status)
				if res.StatusCode == http.StatusUpgradeRequired && (res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-WebSocket-Version") != "13") {
					t.Errorf("426 says Upgrade %q and version %q", res.Header["Upgrade"], res.Header["Sec-Websocket-Version"])
				}
			})
		}
	}
	// net/http answers another major version itself.
	for _, version := range []string{"HTTP/0.9", "HTTP/2.0", "HTTP/3.0"} { // RFC 9110 section 15.6.6
		wantRefused(t, echoServer(t), changed("HTTP/1.1", version), http.StatusHTTPVersionNotSupported)
	}
}

func manyLong(n int) (lines []string) {
	for range n {
		lines = append(lines, "X-A: "+strings.Repeat("a", 4000))
	}
	return lines
}

// topicNames returns n names for ?topics=.
func topicNames(n int) string {
	return strings.ReplaceAll(strings.Join(manyFields(n), ","), ": ", "")
}

// Who sends Upgrade lists it in Connection: RFC 9110 section 7.8. net/http's
// client understands that the connection also ends.
func TestUpgradeRequiredNamesUpgrade(t *testing.T) {
	// net/http understands only a close on the first line of its own.
	connection := map[string]string{"Serve": "\r\nConnection: Upgrade, close\r\n", "ServeHTTP": "\r\nConnection: close\r\nConnection: Upgrade\r\n"}
	for door, addr := range bothDoors(t, server.Config{}) {
		c := wstest.Open(t, addr)
		c.SendRaw([]byte("GET /ws HTTP/1.1\r\nHost: tocsin.test\r\n\r\n"))
		answer := string(c.Rest())
		for _, line := range []string{"HTTP/1.1 426 Upgrade Required\r\n", connection[door], "\r\nupgrade: websocket\r\n", "\r\nsec-websocket-version: 13\r\n"} {
			if strings.Count(answer, line)+strings.Count(strings.ToLower(answer), line) != 1 {
				t.Errorf("%s: no %q in %q", door, line, answer)
			}
		}
		res, err := http.Get("http://" + addr + "/ws")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusUpgradeRequired || !res.Close {
			t.Errorf("%s: net/http read %s, the connection ends: %v", door, res.Status, res.Close)
		}
	}
}

// Refusals are read by people who cannot change the server's settings.
func TestRefusalsNameNoSetting(t *testing.T) {
	check := func(what, text string) {
		if strings.Contains(text, "Config.") || strings.Contains(text, "max-") || strings.Contains(text, "max_") {
			t.Errorf("%.60q is answered %q", what, text)
		}
	}
	_, addr := serve(t, server.Config{MaxUserConns: 1})
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", upgrade("X-A: " + strings.Repeat("a", 9000)), upgrade(manyFields(70)...), changed("1.1", "1.0"),
		upgradeAt("/ws?topics=" + topicNames(200)), upgradeAt("/ws?user=%00"), upgradeAt("/ws?format=x"), upgradeAt("/ws?topics=%"),
	} {
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(request))
		check(request, string(c.Rest()))
	}
	wstest.Dial(t, addr, "/ws?user=ann").WantWelcome()
	again := wstest.Dial(t, addr, "/ws?user=ann")
	again.WantWelcome()
	check("the second connection of ann", string(again.WantClosed(wire.CloseConnectionLimit).Payload))

	doors := bothDoors(t, server.Config{MaxConnections: 1})
	wstest.Dial(t, doors["Serve"], "/ws").WantWelcome()
	full := wstest.Open(t, doors["ServeHTTP"])
	full.SendRaw([]byte(upgrade()))
	res := full.Response(http.MethodGet)
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("with the server full: %s, %v", res.Status, err)
	}
	check("one connection too many", string(text))
}
