package server_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// byQuery is an Auth for tests: ?user=x&auth=y, where y says what to do.
func byQuery(r *http.Request) (server.Identity, error) {
	q := r.URL.Query()
	switch q.Get("auth") {
	case "no":
		return server.Identity{}, errors.New("not you")
	case "pay":
		return server.Identity{}, fmt.Errorf("wrapped: %w", &server.HTTPError{Status: 402, Reason: "pay first"})
	case "panic":
		panic("auth")
	case "bad":
		return server.Identity{User: "a\nb"}, nil
	case "hang":
		<-r.Context().Done()
		return server.Identity{}, r.Context().Err()
	}
	return server.Identity{User: q.Get("user")}, nil
}

func TestAuth(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{
		Auth: byQuery,
		Allow: func(c server.Conn, action server.Action, topic string) error {
			if topic == "secret" || action == server.ActionPublish && c.User() != "ann" {
				return fmt.Errorf("%s may not %s %s", c.User(), action, topic)
			}
			return nil
		},
	})
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		"/ws?auth=no":                       {401, "not you"},
		"/ws?auth=pay":                      {402, "pay first"},
		"/ws?auth=bad":                      {403, "user"},
		"/ws?user=ann&topics=news,secret":   {403, "ann may not subscribe secret"},
		"/ws?user=ann&auth=no&topics=other": {401, "not you"},
		"/ws?user=ann&topics=%zz":           {400, "topics"},
	} {
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(upgradeAt(path)))
		res := c.Response(http.MethodGet)
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != want.status || !strings.Contains(string(body), want.text) {
			t.Errorf("%s: %s %q, want %d %q", path, res.Status, body, want.status, want.text)
		}
		c.WantEOF()
	}
	c, w := joined(t, addr, "/ws?user=ann&topics=news")
	if w.User != "ann" || len(w.Topics) != 1 {
		t.Errorf("%+v", w)
	}
	wantError(t, command(t, c, `{"id":1,"subscribe":{"topic":"secret"}}`), wire.Forbidden)
	if e := command(t, c, `{"id":2,"publish":{"topic":"news","data":1}}`); e.Message == nil && e.OK == nil {
		t.Errorf("%+v", e)
	}
	c.Event() // the message and the answer, whichever comes first
	b, _ := joined(t, addr, "/ws?user=bob&topics=news")
	wantError(t, command(t, b, `{"id":1,"publish":{"topic":"news","data":1}}`), wire.Forbidden)
	st := srv.Stats()
	if st.HandshakeRejects["auth"] != 4 || st.HandshakeRejects["forbidden"] != 1 || st.CommandErrors["forbidden"] != 2 {
		t.Errorf("%v %v", st.HandshakeRejects, st.CommandErrors)
	}
}

// hookLog notes what hooks were called, by connection.
type hookLog struct {
	mu      sync.Mutex
	calls   map[string][]string
	running map[string]bool
	broken  []string
}

func (l *hookLog) note(c server.Conn, what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running[c.ID()] {
		l.broken = append(l.broken, "two hooks of one connection at once")
	}
	l.calls[c.ID()] = append(l.calls[c.ID()], what)
}

func (l *hookLog) of(id string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls[id])
}

// Hooks of one connection run one at a time and in order: OnOpen, one call a
// message, OnClose. A panic ends that connection alone (docs/faults.md W15).
func TestHooksRunInOrderAndAPanicEndsOne(t *testing.T) {
	t.Parallel()
	log := hookLog{calls: map[string][]string{}, running: map[string]bool{}}
	srv, addr := serve(t, server.Config{
		HookWorkers: 4,
		OnOpen:      func(c server.Conn) { log.note(c, "open") },
		OnClose:     func(c server.Conn, code int) { log.note(c, fmt.Sprint("close ", code)) },
		OnMessage: func(c server.Conn, op ws.OpCode, payload []byte) bool {
			log.note(c, string(payload))
			log.mu.Lock()
			log.running[c.ID()] = true
			log.mu.Unlock()
			defer func() {
				log.mu.Lock()
				delete(log.running, c.ID())
				log.mu.Unlock()
			}()
			if string(payload) == "panic" {
				panic("a bug in user code")
			}
			c.Send(op, payload)
			return op == ws.OpBinary || payload[0] != '{'
		},
	})
	const conns, messages = 20, 50
	var wg sync.WaitGroup
	for n := range conns {
		c, w := joined(t, addr, "/ws")
		wg.Go(func() {
			want := []string{"open"}
			for i := range messages {
				want = append(want, fmt.Sprint(i))
				c.Send(wstest.Text(fmt.Sprint(i)))
			}
			for i := range messages {
				c.WantText(fmt.Sprint(i))
			}
			if n%4 == 0 {
				c.Send(wstest.Text("panic"), wstest.Text("never"))
				want = append(want, "panic", "close 1011")
				c.WantClosed(wire.CloseInternal)
			} else {
				c.Send(wstest.Text("last"), wstest.Close(wire.CloseNormal, ""))
				c.WantText("last")
				c.WantClosed(wire.CloseNormal)
				want = append(want, "last", "close 1000")
			}
			server.Eventually(t, "OnClose", func() bool { return len(log.of(w.Conn)) >= len(want) })
			if got := log.of(w.Conn); !slices.Equal(got, want) {
				t.Errorf("hooks %v, want %v", got, want)
			}
		})
	}
	wg.Wait()
	if len(log.broken) > 0 {
		t.Error(log.broken[0])
	}
	if st := srv.Stats(); st.HookPanics != conns/4 || st.Closes[server.CloseKind{Code: wire.CloseInternal, By: "server"}] != conns/4 {
		t.Errorf("%d panics, closes %v", st.HookPanics, st.Closes)
	}
}

// Who is over the limit of a user's connections has neither OnOpen nor OnClose.
func TestHooksOfWhoIsNotAdmitted(t *testing.T) {
	t.Parallel()
	log := hookLog{calls: map[string][]string{}}
	srv, addr := serve(t, server.Config{
		MaxUserConns: 1,
		OnOpen:       func(c server.Conn) { log.note(c, "open") },
		OnClose:      func(c server.Conn, code int) { log.note(c, fmt.Sprint("close ", code)) },
	})
	first, admitted := joined(t, addr, "/ws?user=ann")
	second, refused := joined(t, addr, "/ws?user=ann")
	second.WantClosed(wire.CloseConnectionLimit)
	first.Send(wstest.Close(wire.CloseNormal, ""))
	first.WantClosed(wire.CloseNormal)
	if err := srv.Shutdown(t.Context()); err != nil { // all hooks have returned then
		t.Fatal(err)
	}
	if got := log.of(admitted.Conn); !slices.Equal(got, []string{"open", "close 1000"}) {
		t.Errorf("the first has %q", got)
	}
	if got := log.of(refused.Conn); len(got) != 0 {
		t.Errorf("the second has %q", got)
	}
}

// A panic in Auth is the server's fault, and says so.
func TestAuthPanics(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{Auth: byQuery})
	c := wstest.Open(t, addr)
	c.SendRaw([]byte(upgradeAt("/ws?auth=panic")))
	if res := c.Response(http.MethodGet); res.StatusCode != http.StatusInternalServerError {
		t.Errorf("%s", res.Status)
	}
	if st := srv.Stats(); st.HandshakeRejects["auth"] != 1 || st.HookPanics != 1 {
		t.Errorf("%v", st.HandshakeRejects)
	}
}

// Hooks that do not return hold up their own connections, not others; with the
// pool full, reading pauses and nothing is lost (docs/faults.md B5).
func TestSlowHooksHoldUpNobodyElse(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var blocked atomic.Int32
	srv, addr := serve(t, server.Config{
		HookWorkers: 4,
		OnMessage: func(c server.Conn, op ws.OpCode, payload []byte) bool {
			if string(payload) == "block" {
				blocked.Add(1)
				<-release
			}
			c.Send(op, payload)
			return true
		},
	})
	var slow []*wstest.Conn
	for range 3 {
		c, _ := joined(t, addr, "/ws?topics=t")
		c.Send(wstest.Text("block"), wstest.Text("behind"))
		slow = append(slow, c)
	}
	server.Eventually(t, "three of four workers to be held", func() bool { return blocked.Load() == 3 })
	for range server.Size(200) {
		c, _ := joined(t, addr, "/ws")
		for _, s := range []string{"a", "b", "c"} {
			c.Send(wstest.Text(s))
			c.WantText(s)
		}
	}
	// Now all of them, and more than the queue holds.
	for range 100 {
		c, _ := joined(t, addr, "/ws?topics=t")
		c.Send(wstest.Text("block"))
		slow = append(slow, c)
	}
	server.Eventually(t, "the last worker to be held", func() bool { return blocked.Load() == 4 })
	if r := publish(t, srv, "t", "1"); r.Written != len(slow) {
		t.Errorf("with all hooks held, a message was %+v", r)
	}
	close(release)
	for i, c := range slow {
		wantMessage(t, c, "t", "1")
		c.WantText("block")
		if i < 3 {
			c.WantText("behind")
		}
		c.WantNothing()
	}
}

// ServeHTTP and Serve lead to the same place.
func TestServeHTTP(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{Path: "/ws"})
	mux := http.NewServeMux()
	mux.Handle("/push/", srv)
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	web := httptest.NewServer(mux)
	defer web.Close()
	webAddr := web.Listener.Addr().String()

	a, wa := joined(t, addr, "/ws?topics=t&user=ann")
	b, wb := joined(t, webAddr, "/push/any?topics=t&user=ann")
	server.Eventually(t, "both", func() bool { return srv.Stats().Subscriptions == 2 })
	if got := srv.User("ann"); len(got) != 2 || !slices.Contains(got, wa.Conn) || !slices.Contains(got, wb.Conn) {
		t.Errorf("ann's connections are %v", got)
	}
	publish(t, srv, "t", "1")
	wantMessage(t, a, "t", "1")
	wantMessage(t, b, "t", "1")
	b.Send(wstest.Ping("x"))
	b.WantPong("x")
	for path, status := range map[string]int{"/hello": 200, "/push/x": 426} {
		res, err := web.Client().Get(web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
	// Frames that came with the request are not lost.
	c := wstest.Open(t, webAddr)
	c.SendRaw(append([]byte(wstest.Request("tocsin.test", "/push/x", sampleKey)), wstest.Encode(wstest.Text(`{"id":7,"ping":{}}`))...))
	c.WantUpgraded(sampleKey)
	c.WantWelcome()
	if e := c.Event(); e.ID != 7 {
		t.Errorf("%+v", e)
	}
	for _, conn := range []*wstest.Conn{a, b, c} {
		conn.WantNothing()
	}
}
