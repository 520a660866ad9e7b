package server_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// as returns a Config whose Auth lets everybody be who.
func as(who server.Identity) server.Config {
	return server.Config{Auth: func(*http.Request) (server.Identity, error) { return who, nil }}
}

// A connection ends with 3005 when its identity expires, and not before; one
// that is expired already does not begin (docs/faults.md A12).
func TestIdentityExpires(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{Auth: func(r *http.Request) (server.Identity, error) {
		id := server.Identity{User: r.URL.Query().Get("user")}
		if life := r.URL.Query().Get("life"); life != "" {
			d, err := time.ParseDuration(life)
			id.Expires = time.Now().Add(d)
			return id, err
		}
		return id, nil
	}})
	wantRefused(t, addr, upgradeAt("/ws?life=-1ms"), http.StatusUnauthorized)
	stays, _ := joined(t, addr, "/ws?user=ann&topics=news")
	later, _ := joined(t, addr, "/ws?user=ann&life=24h")
	begun := time.Now()
	ends, _ := joined(t, addr, "/ws?user=ann&topics=news&life=400ms")
	ends.WantClosed(wire.CloseExpired)
	if lived := time.Since(begun); lived < 400*time.Millisecond {
		t.Errorf("it was closed after %s", lived)
	}
	server.Eventually(t, "it to leave", func() bool { return len(srv.User("ann")) == 2 })
	if n := srv.Stats().Closes[server.CloseKind{Code: wire.CloseExpired, By: "server"}]; n != 1 {
		t.Errorf("%d are counted as expired", n)
	}
	publish(t, srv, "news", "1")
	wantMessage(t, stays, "news", "1")
	later.WantNothing()
}

// All that expire at once are closed, and nobody else is.
func TestManyExpireAtOnce(t *testing.T) {
	t.Parallel()
	expires := time.Now().Add(6 * time.Second)
	srv, addr := serve(t, server.Config{Auth: func(r *http.Request) (server.Identity, error) {
		if r.URL.Query().Has("ends") {
			return server.Identity{Expires: expires}, nil
		}
		return server.Identity{}, nil
	}})
	stays, _ := joined(t, addr, "/ws")
	var ending []*wstest.Conn
	for range server.Size(1000) {
		c, _ := joined(t, addr, "/ws?ends")
		ending = append(ending, c)
	}
	for _, c := range ending {
		c.WantClosed(wire.CloseExpired)
	}
	server.Eventually(t, "all but one to end", func() bool { return srv.Stats().Connections == 1 })
	stays.WantNothing()
}

// What an identity may subscribe and publish to is what its patterns and Allow
// agree on, in the handshake as later.
func TestIdentityTopics(t *testing.T) {
	t.Parallel()
	const sub, pub = server.ActionSubscribe, server.ActionPublish
	all, none := []string{"*"}, []string{}
	onlyNews := func(_ server.Conn, action server.Action, topic string) error {
		if topic != "news" {
			return fmt.Errorf("%s only news", action)
		}
		return nil
	}
	for name, tt := range map[string]struct {
		subscribe, publish []string
		allow              func(server.Conn, server.Action, string) error
		may                map[server.Action][]string // of the topics below
	}{
		"nobody says anything": {nil, nil, nil, map[server.Action][]string{sub: {"news", "new", "a*", "a*b", "ab"}}},
		"all":                  {all, all, nil, map[server.Action][]string{sub: {"news", "new", "a*", "a*b", "ab"}, pub: {"news", "new", "a*", "a*b", "ab"}}},
		"none":                 {none, none, nil, nil},
		"a name":               {[]string{"new"}, nil, nil, map[server.Action][]string{sub: {"new"}}},
		"the beginning":        {nil, []string{"x", "new*"}, nil, map[server.Action][]string{sub: {"news", "new", "a*", "a*b", "ab"}, pub: {"news", "new"}}},
		"a star inside":        {[]string{"a*b"}, []string{"a*"}, nil, map[server.Action][]string{sub: {"a*b"}, pub: {"a*", "a*b", "ab"}}},
		"Allow alone":          {nil, nil, onlyNews, map[server.Action][]string{sub: {"news"}, pub: {"news"}}},
		"Allow and patterns":   {[]string{"new*"}, []string{"ab"}, onlyNews, map[server.Action][]string{sub: {"news"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := as(server.Identity{User: "ann", Subscribe: tt.subscribe, Publish: tt.publish})
			cfg.Allow = tt.allow
			_, addr := serve(t, cfg)
			c, _ := joined(t, addr, "/ws")
			for _, topic := range []string{"news", "new", "a*", "a*b", "ab"} {
				if slices.Contains(tt.may[sub], topic) {
					early, w := joined(t, addr, "/ws?topics="+topic)
					if e := command(t, c, `{"id":1,"subscribe":{"topic":"`+topic+`"}}`); e.OK == nil || len(w.Topics) != 1 {
						t.Errorf("subscribe to %s: %+v", topic, e.Error)
					}
					if e := command(t, c, `{"id":1,"unsubscribe":{"topic":"`+topic+`"}}`); e.OK == nil {
						t.Errorf("unsubscribe from %s: %+v", topic, e.Error)
					}
					early.Drop()
				} else {
					wantError(t, command(t, c, `{"id":1,"subscribe":{"topic":"`+topic+`"}}`), wire.Forbidden)
					wantRefused(t, addr, upgradeAt("/ws?topics="+topic), http.StatusForbidden)
				}
				e := command(t, c, `{"id":2,"publish":{"topic":"`+topic+`","data":1}}`)
				if slices.Contains(tt.may[pub], topic) {
					if e.OK == nil {
						t.Errorf("publish to %s: %+v", topic, e.Error)
					}
				} else {
					wantError(t, e, wire.Forbidden)
				}
			}
		})
	}
}

// What Auth attached, and the address of the peer, are there in every hook; also
// when the peer has reset the connection.
func TestConnDataAndRemoteAddr(t *testing.T) {
	t.Parallel()
	type device struct{ locale string }
	mine := &device{"de"}
	var mu sync.Mutex
	conns := map[string]server.Conn{}
	note := func(hook string, c server.Conn) {
		mu.Lock()
		defer mu.Unlock()
		conns[hook] = c
	}
	cfg := as(server.Identity{User: "ann", Data: mine})
	cfg.Allow = func(c server.Conn, action server.Action, _ string) error {
		note(string(action), c)
		return nil
	}
	cfg.OnOpen = func(c server.Conn) { note("open", c) }
	cfg.OnMessage = func(c server.Conn, _ ws.OpCode, _ []byte) bool {
		note("message", c)
		return false
	}
	cfg.OnClose = func(c server.Conn, _ int) { note("close", c) }
	_, addr := serve(t, cfg)
	c, _ := joined(t, addr, "/ws?topics=news")
	if e := command(t, c, `{"id":1,"publish":{"topic":"other","data":1}}`); e.OK == nil {
		t.Fatalf("%+v", e.Error)
	}
	local := netip.MustParseAddrPort(c.LocalAddr().String())
	c.Reset()
	server.Eventually(t, "OnClose", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(conns) == 5
	})
	for hook, got := range conns {
		if got.Data() != mine || got.RemoteAddr() != local || got.User() != "ann" {
			t.Errorf("%s: %v from %s, want %v from %s", hook, got.Data(), got.RemoteAddr(), mine, local)
		}
		if got != conns["open"] {
			t.Errorf("%s is given another Conn: %+v, not %+v", hook, got, conns["open"])
		}
	}
	if (server.Conn{}).Data() != nil {
		t.Error("the Data of nobody")
	}
}
