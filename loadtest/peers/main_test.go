package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func TestPeers(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		t.Run(name, func(t *testing.T) {
			p := start(t, name)
			t.Run("path", p.testPath)
			t.Run("echo", p.testEcho)
			t.Run("ping", p.testPing)
			t.Run("broadcast", p.testBroadcast)
		})
	}
}

// underTest is a peer that runs in this process.
type underTest struct {
	addr    string
	trigger *httptest.Server
}

func start(t *testing.T, name string) *underTest {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	send, err := peers[name](addr)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(trigger(send))
	t.Cleanup(server.Close)
	return &underTest{addr: addr, trigger: server}
}

func (p *underTest) dial(t *testing.T) *websocket.Conn {
	t.Helper()
	dialer := websocket.Dialer{HandshakeTimeout: 10 * time.Second, WriteBufferSize: 1024}
	c, _, err := dialer.Dial("ws://"+p.addr+path+"?user=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (p *underTest) testPath(t *testing.T) {
	_, answer, err := websocket.DefaultDialer.Dial("ws://"+p.addr+"/elsewhere", nil)
	if err == nil || answer == nil || answer.StatusCode != http.StatusNotFound {
		t.Errorf("/elsewhere is answered with %v, %v, want status 404", answer, err)
	}
}

// testEcho sends messages that come in several frames and in several reads.
func (p *underTest) testEcho(t *testing.T) {
	c := p.dial(t)
	for _, size := range []int{1, 125, 126, 1000, 5000, 70_000, 300_000} {
		payload := make([]byte, size)
		for i := range payload {
			payload[i] = byte('a' + rand.IntN(26))
		}
		for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
			if err := c.WriteMessage(kind, payload); err != nil {
				t.Fatal(err)
			}
			want(t, c, kind, payload)
		}
	}
	for i := range 100 { // several at once
		if err := c.WriteMessage(websocket.TextMessage, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		want(t, c, websocket.TextMessage, fmt.Append(nil, i))
	}
}

func (p *underTest) testPing(t *testing.T) {
	c := p.dial(t)
	var pong string
	c.SetPongHandler(func(payload string) error {
		pong = payload
		return nil
	})
	if err := c.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteMessage(websocket.TextMessage, []byte("after")); err != nil {
		t.Fatal(err)
	}
	want(t, c, websocket.TextMessage, []byte("after"))
	if pong != "are you there" {
		t.Errorf("pong %q", pong)
	}
}

func (p *underTest) testBroadcast(t *testing.T) {
	const n = 50
	var conns [n]*websocket.Conn
	for i := range conns {
		conns[i] = p.dial(t)
		// Only when it is answered is it certainly among the connections.
		if err := conns[i].WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		want(t, conns[i], websocket.TextMessage, []byte("hello"))
	}
	p.wantCount(t, "gone", n) // those of the other tests leave
	for i := range 3 {
		message := fmt.Sprintf(`{"seq":%d}`, i)
		if got := p.post(t, message); got != n {
			t.Errorf("sent to %d, want %d", got, n)
		}
		for _, c := range conns {
			for { // what was sent while the others left
				kind, got, err := c.ReadMessage()
				if err != nil {
					t.Fatal(err)
				}
				if string(got) == "gone" {
					continue
				}
				if kind != websocket.TextMessage || string(got) != message {
					t.Fatalf("got %d %q, want %q", kind, got, message)
				}
				break
			}
		}
	}
	for i, c := range conns {
		if i%2 == 0 {
			if err := c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("the close is answered with %v", err)
			}
		}
		_ = c.Close()
	}
	p.wantCount(t, "gone", 0)
}

// wantCount broadcasts until n connections are there.
func (p *underTest) wantCount(t *testing.T, message string, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		got := p.post(t, message)
		if got == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections, want %d", got, n)
		}
	}
}

func (p *underTest) post(t *testing.T, message string) (count int) {
	t.Helper()
	answer, err := http.Post(p.trigger.URL, "text/plain", strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if _, err := fmt.Fscan(answer.Body, &count); err != nil {
		t.Fatal(err)
	}
	return count
}

func want(t *testing.T, c *websocket.Conn, kind int, payload []byte) {
	t.Helper()
	gotKind, got, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	if gotKind != kind || !bytes.Equal(got, payload) {
		t.Fatalf("got kind %d with %d bytes, want %d with %d", gotKind, len(got), kind, len(payload))
	}
}

func TestTriggerRefuses(t *testing.T) {
	handler := trigger(func([]byte) int { t.Error("broadcast"); return 0 })
	for _, c := range []struct {
		method string
		body   io.Reader
		status int
	}{
		{http.MethodGet, nil, http.StatusMethodNotAllowed},
		{http.MethodPost, strings.NewReader(strings.Repeat("x", maxMessage+1)), http.StatusBadRequest},
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(c.method, "/", c.body))
		if w.Code != c.status {
			t.Errorf("%s: status %d, want %d", c.method, w.Code, c.status)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"centrifugo"}, {"gws", "--nope"}, {"gws", "extra"}} {
		if err := run(args); !errors.As(err, new(usageError)) {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
	for name := range peers {
		err := run([]string{name, "--listen", "127.0.0.1:99999"})
		if err == nil || errors.As(err, new(usageError)) {
			t.Errorf("%s on a port that cannot be: %v", name, err)
		}
	}
}

func TestSet(t *testing.T) {
	var s set[int]
	for i := range 5 {
		s.add(i)
	}
	s.remove(1)
	s.remove(4)
	s.remove(4)
	s.remove(9)
	got := s.all()
	slices.Sort(got)
	if !slices.Equal(got, []int{0, 2, 3}) {
		t.Errorf("left: %v", got)
	}
	for _, i := range got {
		s.remove(i)
	}
	if len(s.all()) != 0 || len(s.place) != 0 {
		t.Errorf("left: %v %v", s.all(), s.place)
	}
}
