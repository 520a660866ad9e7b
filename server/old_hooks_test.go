//go:build linux

package server

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// hookClient is a oldClient of a server with hooks: it sends its head in parts
// and may be refused.
type hookClient struct {
	oldClient
	head     []byte // that it has not sent
	upgraded bool
	refused  bool
	raw      bool
}

// talks reports whether it can be expected to send something more.
func (c *hookClient) talks() bool { return !c.Gone && !c.EOF && !c.Broken && !c.closed && !c.refused }

// read takes what has come.
func (c *hookClient) read() {
	t := c.s.t
	t.Helper()
	if !c.upgraded {
		head, rest, whole := bytes.Cut(c.Out, []byte("\r\n\r\n"))
		switch {
		case !whole:
			return
		case !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")):
			if c.refused = true; bytes.Contains(rest, []byte("HTTP/")) {
				t.Fatalf("two answers: %q", c.Out)
			}
			return
		}
		c.upgraded, c.Out = true, rest
	}
	for _, f := range c.frames() {
		switch {
		case c.over:
			t.Fatalf("%v behind the Close frame", f)
		case f.Op == ws.OpPing:
			if c.talks() {
				c.send(wstest.Pong(string(f.Payload)))
			}
		case f.Op == ws.OpClose:
			if code := f.CloseCode(); code == wire.CloseProtocolError || code == wire.CloseInvalidData {
				t.Fatalf("%v for a client that keeps to the protocol", f)
			}
			c.over = true
			if c.talks() {
				c.closed = true
				c.send(f)
			}
		case f.Op == ws.OpBinary:
			if want := c.name(); string(f.Payload) != want {
				t.Fatalf("%s was sent what is for %s", want, f.Payload)
			}
		case f.Op == ws.OpText && !c.raw:
			c.told(f)
		}
	}
}

func (c *hookClient) name() string { return c.s.srv.ids.name(c.Ref) }

func (c *hookClient) told(f wstest.Frame) {
	e, err := tocsin.ParseEvent(f.Payload)
	switch {
	case err == nil && e.Welcome != nil:
		if e.Welcome.Conn != c.name() {
			c.s.t.Fatalf("%s was welcomed as %s", c.name(), e.Welcome.Conn)
		}
		for topic, at := range e.Welcome.Topics {
			c.at[topic] = at.Seq
		}
	case err == nil && (e.Cancel != nil || e.Goodbye != nil):
	default:
		c.event(f)
	}
}

// oldHooks are hooks that do what comes to their mind, and keep account.
type oldHooks struct {
	s    *sim
	said map[string][]string // by connection
}

func (h *oldHooks) note(c Conn, what string) { h.said[c.ID()] = append(h.said[c.ID()], what) }

// whim is what a hook may do beside its work.
func (h *oldHooks) whim(c Conn) {
	switch h.s.Rng.IntN(30) {
	case 0:
		panic("a hook that panics")
	case 1:
		c.Close(wire.CloseForceDisconnect, "a whim")
	case 2, 3, 4:
		c.Send(ws.OpBinary, []byte(c.ID()))
	case 5:
		c.Unsubscribe(oldTopics[h.s.Rng.IntN(len(oldTopics))])
	}
}

func (h *oldHooks) config() Config {
	cfg := oldConfig()
	cfg.AuthTimeout, cfg.HandshakeTimeout = 3*time.Second, 3*time.Second
	cfg.Auth = func(r *http.Request) (Identity, error) {
		switch h.s.Rng.IntN(10) {
		case 0:
			return Identity{}, errors.New("not you")
		case 1:
			panic("auth that panics")
		case 2:
			return Identity{User: "who leaves", Expires: h.s.Date().Add(time.Duration(h.s.Rng.IntN(int(5 * time.Second))))}, nil
		}
		return Identity{User: r.URL.Query().Get("user")}, nil
	}
	cfg.Allow = func(c Conn, _ Action, _ string) error {
		if h.s.Rng.IntN(8) == 0 {
			return errors.New("not this")
		}
		h.whim(c)
		return nil
	}
	cfg.OnOpen = func(c Conn) { h.note(c, "open"); h.whim(c) }
	cfg.OnMessage = func(c Conn, op ws.OpCode, _ []byte) bool {
		h.note(c, "message")
		h.whim(c)
		return op == ws.OpBinary && h.s.Rng.IntN(20) > 0
	}
	cfg.OnClose = func(c Conn, _ int) { h.note(c, "close"); h.whim(c) }
	return cfg
}

// check wants every connection that was opened to be told of in order: its
// opening, its messages and its end, if that has come.
func (h *oldHooks) check(ended bool) {
	for id, said := range h.said {
		closes := slices.Index(said, "close")
		if said[0] != "open" || slices.Contains(said[1:], "open") || closes >= 0 && closes != len(said)-1 || ended && closes < 0 {
			h.s.t.Fatalf("the hooks of %s were called for %v", id, said)
		}
	}
}

// dial begins a connection.
func (h *oldHooks) dial(i int) *hookClient {
	query := "?user=" + strconv.Itoa(i%3)
	raw := h.s.Rng.IntN(6) == 0
	if raw {
		query += "&format=raw"
	}
	if h.s.Rng.IntN(3) == 0 {
		query += "&topics=" + strings.Join(oldTopics[:1+h.s.Rng.IntN(3)], ",")
	}
	c := &hookClient{oldClient: oldClient{peer: h.s.open(), asked: map[uint64]string{}, at: map[string]uint64{}}, raw: raw}
	c.head = []byte(wstest.Request("tocsin.test", "/ws"+query, "dGhlIHNhbXBsZSBub25jZQ=="))
	switch h.s.Rng.IntN(12) {
	case 0:
		c.head = bytes.Replace(c.head, []byte("GET"), []byte("PUT"), 1)
	case 1: // frames that do not wait for the answer
		c.head = append(c.head, wstest.Encode(wstest.Ping("early"), wstest.Binary([]byte("early")))...)
	}
	return c
}

// step does one random thing that has to do with c or with all.
func (h *oldHooks) step(c *hookClient) {
	s := h.s
	topic := oldTopics[s.Rng.IntN(len(oldTopics))]
	talks := c.talks() && len(c.head) == 0
	switch k := s.Rng.IntN(100); {
	case k < 20 && c.talks() && len(c.head) > 0:
		n := 1 + s.Rng.IntN(len(c.head))
		c.write(c.head[:n])
		c.head = c.head[n:]
	case k < 37 && s.srv.engine.Ended():
	case k < 35:
		m := Message{Data: []byte(`"` + strings.Repeat("x", s.Rng.IntN(400)) + `"`), CollapseKey: strconv.Itoa(s.Rng.IntN(2))}
		s.begin(&address{verb: verbPublish, topic: topic}, &m)
	case k < 37:
		s.begin(&address{verb: verbBroadcast}, &Message{Data: []byte("1")})
	case k < 45 && talks && c.upgraded:
		c.command([]string{"subscribe", "unsubscribe", "ping"}[s.Rng.IntN(3)], topic)
	case k < 48 && talks && c.upgraded:
		c.nextID++
		c.asked[c.nextID] = "publish"
		c.send(wstest.Text(fmt.Sprintf(`{"id":%d,"publish":{"topic":%q,"data":1}}`, c.nextID, topic)))
	case k < 52 && talks:
		for _, f := range wstest.Fragments(ws.OpBinary, make([]byte, 50), 1+s.Rng.IntN(50)) {
			c.send(f)
		}
	case k < 55 && talks:
		c.send(wstest.Ping("p"))
	case k < 56 && talks:
		c.closed = true
		c.send(wstest.Close(wire.CloseNormal, ""))
	case k < 57 && c.talks():
		c.hangUp()
	case k < 58 && !c.Gone:
		if c.Reset(); s.Rng.IntN(2) == 0 {
			c.Edge = netpoll.Event{} // which is late
		}
	case k < 63 && !c.Gone:
		c.drain(s.Rng.IntN(1000))
	case k < 70 && !c.Gone:
		c.drain(-1)
	case k < 71:
		_, _ = s.srv.Disconnect(s.t.Context(), Target{User: strconv.Itoa(s.Rng.IntN(3))}, 0, "") // if there is one
	case k < 75:
		s.CallRoom = s.Rng.IntN(4)
	case k < 85:
		s.RunCall()
	case k < 88:
		s.sweep(time.Duration(s.Rng.IntN(int(2 * time.Second))))
		s.srv.hub.tick(s.Time)
	default:
		s.turn(s.Rng.IntN(len(s.srv.shards)))
	}
}

// TestOldSimHooks is TestOldSim for a server whose hooks come late, have little room,
// and do and refuse what they like. OnClose is called once for each OnOpen.
func TestOldSimHooks(t *testing.T) {
	for seed := range uint64(size(2000)) {
		if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { simulateHooks(t, seed) }) {
			return
		}
	}
}

func simulateHooks(t *testing.T, seed uint64) {
	h := &oldHooks{said: map[string][]string{}}
	cfg := h.config()
	s := newSim(t, seed, cfg)
	h.s = s
	s.hold, s.CutReads = true, seed%2 == 0
	clients := make([]*hookClient, 6)
	for i := range clients {
		clients[i] = h.dial(i)
	}
	drained := false
	for step := range 600 {
		h.step(clients[s.Rng.IntN(len(clients))])
		for i, c := range clients {
			if c.read(); c.Gone && s.Rng.IntN(20) == 0 && !drained {
				clients[i] = h.dial(i)
			}
		}
		if step%5 == 0 {
			s.check()
			h.check(false)
		}
		if step == 500 && seed%3 == 0 {
			drained = true
			s.probe.BeginDrain(seed%2 == 0)
		}
	}
	s.CallRoom = -1
	for range 40 {
		for _, c := range clients {
			if c.read(); !c.Gone && !c.EOF {
				c.drain(-1)
				c.hangUp()
			}
		}
		s.RunCalls()
		s.sweep(time.Second)
	}
	s.check()
	h.check(true)
	for _, m := range s.sent {
		if !m.Done() {
			t.Errorf("message %d of %v is still on its way", m.Seq, m.Flow)
		}
	}
	if st := s.srv.Stats(); st.Connections+st.Users+st.Topics+st.Subscriptions+st.Handshaking+st.ShardMax != 0 || st.PublishBytes != 0 || st.OutboxBytes != 0 {
		t.Errorf("left behind: %+v", st)
	}
}
