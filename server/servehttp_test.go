package server_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// accessLog is a middleware as many have it: it puts something into the
// context, adds a header, and writes down the status and the size of the answer.
type accessLog struct {
	next http.Handler

	mu    sync.Mutex
	lines []accessLine
}

type accessLine struct {
	path   string
	status int
	bytes  int
}

type loggedWriter struct {
	http.ResponseWriter
	line accessLine
}

func (w *loggedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *loggedWriter) WriteHeader(status int) {
	w.line.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *loggedWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.line.bytes += n
	return n, err
}

type sessionKey struct{}

func (l *accessLog) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &loggedWriter{rw, accessLine{path: r.URL.Path, status: http.StatusOK}}
	w.Header().Set("X-Request-Id", "7")
	l.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), sessionKey{}, "session of ann")))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, w.line)
}

func (l *accessLog) seen() []accessLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// mounted serves srv at /push behind the middleware.
func mounted(t *testing.T, srv http.Handler) (addr string, log *accessLog) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/push", srv)
	log = &accessLog{next: mux}
	web := httptest.NewServer(log)
	t.Cleanup(web.Close)
	return web.Listener.Addr().String(), log
}

// A middleware in front of ServeHTTP sees the true status and size of every
// answer, and its headers reach the client.
func TestServeHTTPMiddlewareSeesStatus(t *testing.T) {
	t.Parallel()
	srv, _ := serve(t, server.Config{
		Auth: byQuery, MaxConnections: 1,
		Allow: func(_ server.Conn, _ server.Action, topic string) error {
			if topic == "secret" {
				return errors.New("not for you")
			}
			return nil
		},
	})
	addr, log := mounted(t, srv)
	var want []accessLine
	ask := func(request string, status int) *http.Response {
		t.Helper()
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(request))
		method, _, _ := strings.Cut(request, " ")
		res := c.Response(method)
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != status || len(body) == 0 || res.Header.Get("X-Request-Id") != "7" {
			t.Errorf("%.40q: %s, %v, %q, %v", request, res.Status, res.Header, body, err)
		}
		c.WantEOF()
		want = append(want, accessLine{"/push", status, len(body)})
		return res
	}
	ask(upgradeAt("/push?topics=%zz"), http.StatusBadRequest)
	ask(strings.Replace(upgradeAt("/push"), "Sec-WebSocket-Key", "X-Key", 1), http.StatusBadRequest)
	ask(upgradeAt("/push?auth=no"), http.StatusUnauthorized)
	ask(upgradeAt("/push?auth=pay"), http.StatusPaymentRequired)
	ask(upgradeAt("/push?topics=secret"), http.StatusForbidden)
	if res := ask(strings.Replace(upgradeAt("/push"), "GET", "POST", 1), http.StatusMethodNotAllowed); res.Header.Get("Allow") != "GET" {
		t.Errorf("405 allows %q", res.Header["Allow"])
	}
	if res := ask("GET /push HTTP/1.1\r\nHost: a\r\n\r\n", http.StatusUpgradeRequired); res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-WebSocket-Version") != "13" || !res.Close {
		t.Errorf("426 has %v", res.Header)
	}
	ask(upgradeAt("/push?auth=panic"), http.StatusInternalServerError)

	c := wstest.Open(t, addr)
	c.SendRaw([]byte(upgradeAt("/push?user=ann")))
	if res := c.WantUpgraded(sampleKey); res.Header.Get("X-Request-Id") != "7" {
		t.Errorf("the 101 has %v", res.Header)
	}
	if w := c.WantWelcome(); w.User != "ann" {
		t.Errorf("%+v", w)
	}
	want = append(want, accessLine{"/push", http.StatusSwitchingProtocols, 0})
	if res := ask(upgradeAt("/push"), http.StatusServiceUnavailable); res.Header.Get("Retry-After") == "" {
		t.Errorf("503 has %v", res.Header)
	}
	if got := log.seen(); !slices.Equal(got, want) {
		t.Errorf("the middleware saw %v, want %v", got, want)
	}
	st := srv.Stats()
	if st.Handshaking != 0 || st.Connections != 1 || st.HandshakeRejects["auth"] != 3 || st.HandshakeRejects["max_connections"] != 1 {
		t.Errorf("%d handshaking, %d connections, rejects %v", st.Handshaking, st.Connections, st.HandshakeRejects)
	}
	c.WantNothing()
}

// Auth is given the request as the mux and the middleware made it.
func TestServeHTTPAuthSeesMiddlewaresRequest(t *testing.T) {
	t.Parallel()
	type asked struct {
		r   *http.Request
		err error // of its context, during the call
	}
	requests := make(chan asked, 1)
	srv, _ := serve(t, server.Config{Auth: func(r *http.Request) (server.Identity, error) {
		_, bounded := r.Context().Deadline()
		if !bounded {
			return server.Identity{}, errors.New("nothing bounds it")
		}
		requests <- asked{r, r.Context().Err()}
		return server.Identity{User: r.Context().Value(sessionKey{}).(string)[len("session of "):]}, nil
	}})
	addr, _ := mounted(t, srv)
	c, w := joined(t, addr, "/push?device=phone")
	got := <-requests
	if w.User != "ann" || got.err != nil || got.r.URL.Path != "/push" || got.r.URL.Query().Get("device") != "phone" || got.r.RemoteAddr != c.LocalAddr().String() {
		t.Errorf("user %q, %v, request %s from %s", w.User, got.err, got.r.URL, got.r.RemoteAddr)
	}
	if v := got.r.Context().Value(sessionKey{}); v != "session of ann" {
		t.Errorf("behind ServeHTTP the context has %v", v)
	}
	c.WantNothing()
}

// A slow Auth is answered for in time, and a client that does not wait for it
// leaves nothing behind.
func TestServeHTTPSlowAuth(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	srv, _ := serve(t, server.Config{
		HookWorkers: 1, AuthTimeout: 300 * time.Millisecond,
		Auth: func(*http.Request) (server.Identity, error) {
			<-release
			return server.Identity{}, nil
		},
	})
	addr, log := mounted(t, srv)
	var clients []*wstest.Conn
	for range 40 { // more than the pool has room for
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(upgradeAt("/push")))
		clients = append(clients, c)
	}
	clients[0].Drop()
	for _, c := range clients[1:] {
		if res := c.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s", res.Status)
		}
	}
	server.Eventually(t, "all to be accounted for", func() bool {
		st := srv.Stats()
		return st.Handshaking == 0 && st.HandshakeRejects["gone"]+st.HandshakeRejects["timeout"] == 40
	})
	close(release)
	c, _ := joined(t, addr, "/push")
	c.WantNothing()
	server.Eventually(t, "the log", func() bool { return len(log.seen()) == 41 })
	for _, line := range log.seen()[:40] {
		if line.status != http.StatusServiceUnavailable {
			t.Errorf("%+v", line)
		}
	}
}

// A writer that cannot be taken over is told so, before Auth is asked.
func TestServeHTTPUnhijackable(t *testing.T) {
	t.Parallel()
	srv, _ := serve(t, server.Config{Auth: func(*http.Request) (server.Identity, error) {
		t.Error("Auth was asked")
		return server.Identity{}, nil
	}})
	w := httptest.NewRecorder()
	srv.ServeHTTP(w, wsRequest(t))
	if w.Code != http.StatusHTTPVersionNotSupported || !strings.Contains(w.Body.String(), "cannot be upgraded") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if st := srv.Stats(); st.Handshaking != 0 {
		t.Errorf("%d handshaking", st.Handshaking)
	}
}

// brokenHijack is a middleware's writer that spoils the hand-over.
type brokenHijack struct {
	http.ResponseWriter
	hijack func() (net.Conn, *bufio.ReadWriter, error)
}

func (w brokenHijack) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.hijack() }

// wsRequest is a request as net/http reads it.
func wsRequest(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(upgradeAt("/ws"))))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A connection that gets lost between the 101 and the hand-over is accounted for,
// and so is one whose writer panics: the server can end.
func TestServeHTTPHandOverFails(t *testing.T) {
	t.Parallel()
	srv, _ := serve(t, server.Config{})
	peer, conn := net.Pipe() // has no descriptor
	defer peer.Close()
	for _, hijack := range []func() (net.Conn, *bufio.ReadWriter, error){
		func() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errors.New("no") },
		func() (net.Conn, *bufio.ReadWriter, error) { panic("no") },
		func() (net.Conn, *bufio.ReadWriter, error) {
			return conn, bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn)), nil
		},
	} {
		func() {
			defer func() { _ = recover() }()
			srv.ServeHTTP(brokenHijack{httptest.NewRecorder(), hijack}, wsRequest(t))
		}()
	}
	if _, err := peer.Read(make([]byte, 1)); err == nil {
		t.Error("the connection without a descriptor is still open")
	}
	if st := srv.Stats(); st.Handshaking != 0 || st.HandshakeRejects["gone"] != 3 {
		t.Errorf("%d handshaking, rejects %v", st.Handshaking, st.HandshakeRejects)
	}
}

// A middleware's Hijack that returns less than it should is an error in the log,
// and closes what it did return.
func TestServeHTTPHijackReturnsHalf(t *testing.T) {
	t.Parallel()
	peer, conn := net.Pipe()
	defer peer.Close()
	buf := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	for name, c := range map[string]struct {
		conn net.Conn
		buf  *bufio.ReadWriter
	}{"no bufio.Reader": {conn, nil}, "no bufio.Reader in it": {conn, &bufio.ReadWriter{}}, "no connection": {nil, buf}} {
		var log strings.Builder
		srv, err := server.New(server.Config{Dev: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		hijack := func() (net.Conn, *bufio.ReadWriter, error) { return c.conn, c.buf, nil }
		srv.ServeHTTP(brokenHijack{httptest.NewRecorder(), hijack}, wsRequest(t))
		if st := srv.Stats(); st.Handshaking != 0 || st.HandshakeRejects["gone"] != 1 {
			t.Errorf("%s: %d handshaking, rejects %v", name, st.Handshaking, st.HandshakeRejects)
		}
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if want := strings.TrimSuffix(name, " in it"); !strings.Contains(log.String(), "its http.Hijacker returned "+want) {
			t.Errorf("%s: logged %s", name, &log)
		}
	}
	if _, err := peer.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
}

// What a client sends without waiting for the 101 is read, also behind OnOpen.
func TestServeHTTPReadsOn(t *testing.T) {
	t.Parallel()
	opened := make(chan struct{})
	srv, _ := serve(t, server.Config{OnOpen: func(server.Conn) { <-opened }})
	addr, _ := mounted(t, srv)
	c := wstest.Open(t, addr)
	c.SendRaw(append([]byte(upgradeAt("/push")), wstest.Encode(wstest.Text(`{"id":7,"ping":{}}`))...))
	c.WantUpgraded(sampleKey)
	c.WantWelcome()
	close(opened)
	if e := c.Event(); e.ID != 7 {
		t.Errorf("%+v", e)
	}
	c.WantNothing()
}

// What stands behind a request is taken for frames and nothing else.
func TestServeHTTPGarbageBehindRequest(t *testing.T) {
	t.Parallel()
	srv, _ := serve(t, server.Config{})
	addr, _ := mounted(t, srv)
	c := wstest.Open(t, addr)
	c.SendRaw([]byte(upgradeAt("/push") + "GET /secret HTTP/1.1\r\nHost: a\r\n\r\n"))
	c.WantUpgraded(sampleKey)
	c.WantWelcome()
	c.WantClosed(wire.CloseProtocolError)
}

// Requests that meet a shutdown are refused, or welcomed and sent away again.
func TestServeHTTPMeetsShutdown(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	srv, _ := serve(t, server.Config{Auth: func(*http.Request) (server.Identity, error) {
		close(asked)
		<-release
		return server.Identity{}, nil
	}})
	addr, _ := mounted(t, srv)
	during := wstest.Open(t, addr)
	during.SendRaw([]byte(upgradeAt("/push")))
	<-asked
	ended := make(chan error, 1)
	go func() { ended <- srv.Shutdown(context.Background()) }()
	server.Eventually(t, "the drain", func() bool { return srv.Stats().Draining })
	wantRefused(t, addr, upgradeAt("/push"), http.StatusServiceUnavailable)
	close(release)
	if res := during.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s", res.Status)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A Shutdown that gives up does not wait for Auth.
func TestServeHTTPShutdownAtOnce(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	srv, err := server.New(server.Config{Logger: slog.New(slog.DiscardHandler), Auth: func(*http.Request) (server.Identity, error) {
		close(asked)
		<-release
		return server.Identity{}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := mounted(t, srv)
	c := wstest.Open(t, addr)
	c.SendRaw([]byte(upgradeAt("/push")))
	<-asked
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ended := make(chan error, 1)
	go func() { ended <- srv.Shutdown(ctx) }()
	if res := c.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s", res.Status)
	}
	close(release)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
