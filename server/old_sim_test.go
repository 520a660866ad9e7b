//go:build linux

package server

import (
	"fmt"
	"os"
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

// oldClient is what a peer of a simulation knows, and so can insist on.
type oldClient struct {
	*peer
	asked  map[uint64]string // commands without an answer, by id
	nextID uint64
	at     map[string]uint64 // the last seq of each topic it is on
	closed bool              // it has sent Close
	over   bool              // it was sent Close
}

// oldTopics, with their policies by prefix.
var oldTopics = []string{"all/0", "all/1", "old/0", "new/0"}

func oldConfig() Config {
	return Config{
		Shards: 3, MaxOutbox: 3000, MaxControl: 100, MaxTopics: 3, Overflow: []OverflowRule{{"old/", DropOldest}, {"new/", Latest}},
		TopicLinger:  5 * time.Second,
		PingInterval: 5 * time.Second, PongTimeout: 2 * time.Second, WriteTimeout: 6 * time.Second, CloseTimeout: 2 * time.Second,
	}
}

func (c *oldClient) command(verb, topic string) {
	c.nextID++
	c.asked[c.nextID] = verb
	c.send(wstest.Text(fmt.Sprintf(`{"id":%d,%q:{"topic":%q}}`, c.nextID, verb, topic)))
}

// read takes what has come and fails the test if it should not have.
func (c *oldClient) read() {
	t := c.s.t
	t.Helper()
	for _, f := range c.frames() {
		switch {
		case c.over:
			t.Fatalf("%v behind the Close frame", f)
		case f.Op == ws.OpPing:
			if !c.closed {
				c.send(wstest.Pong(string(f.Payload)))
			}
		case f.Op == ws.OpClose:
			c.over = true
			if !c.closed {
				c.closed = true
				c.send(f)
			}
		case f.Op == ws.OpText:
			c.event(f)
		}
	}
}

func (c *oldClient) event(f wstest.Frame) {
	t := c.s.t
	e, err := tocsin.ParseEvent(f.Payload)
	switch {
	case err != nil:
		t.Fatalf("%v in %v", err, f)
	case e.ID != 0:
		verb := c.asked[e.ID]
		if verb == "" {
			t.Fatalf("an answer to nothing: %v", f)
		}
		delete(c.asked, e.ID)
		if e.OK != nil && verb == "subscribe" {
			c.at[e.OK.Topic] = e.OK.Seq
		}
	case e.Message != nil && e.Message.Topic == wire.AllTopic:
	case e.Message != nil && e.Message.Topic == wire.UserTopic:
		if want := fmt.Sprint(uint64(c.Ref)); string(e.Message.Data) != want {
			t.Fatalf("connection %s was sent what is for %s", want, e.Message.Data)
		}
	case e.Message != nil:
		m := e.Message
		at, on := c.at[m.Topic]
		if !on || m.Seq != at+1 { // holes are told

			t.Fatalf("message %d of %s behind %d (subscribed: %v)", m.Seq, m.Topic, at, on)
		}
		c.at[m.Topic] = m.Seq
	case e.Gap != nil:
		g := e.Gap
		at, on := c.at[g.Topic]
		if !on || g.From != at+1 || g.To < g.From || strings.HasPrefix(g.Topic, "all/") {
			t.Fatalf("%+v behind %d (subscribed: %v)", *g, at, on)
		}
		c.at[g.Topic] = g.To
	default:
		t.Fatalf("got %v", f)
	}
}

// begin is a publish of which only the test's last check wants to know.
func (s *sim) begin(a *address, m *Message) {
	sent, err := s.srv.begin(s.t.Context(), a, m, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.sent = append(s.sent, sent.out)
}

// batch sends some pushes, to the living and the dead, and some publishes.
func (s *sim) batch(clients []*oldClient) {
	items := make([]BatchItem, 1+s.Rng.IntN(20))
	for i := range items {
		if s.Rng.IntN(2) == 0 {
			items[i] = BatchItem{Topic: oldTopics[s.Rng.IntN(len(oldTopics))], Message: Message{Data: []byte("1")}}
			continue
		}
		r := clients[s.Rng.IntN(len(clients))].Ref
		items[i] = BatchItem{To: Target{Conn: s.srv.ids.name(r)}, Message: Message{Data: fmt.Append(nil, uint64(r))}}
	}
	for _, r := range s.srv.Batch(s.t.Context(), items) {
		if r.Err != nil {
			s.t.Fatal(r.Err)
		}
	}
}

// step does one random thing.
func (s *sim) step(clients []*oldClient) {
	topic := oldTopics[s.Rng.IntN(len(oldTopics))]
	c := clients[s.Rng.IntN(len(clients))]
	talks := !c.Gone && !c.EOF && !c.closed
	switch k := s.Rng.IntN(100); {
	case k < 40:
		m := Message{Data: []byte(`"` + strings.Repeat("x", s.Rng.IntN(400)) + `"`), CollapseKey: strconv.Itoa(s.Rng.IntN(2))}
		if s.Rng.IntN(10) == 0 {
			m.TTL = time.Duration(1 + s.Rng.IntN(int(time.Second)))
		}
		if strings.HasPrefix(topic, "all/") {
			m.TTL = 0
		}
		s.begin(&address{verb: verbPublish, topic: topic}, &m)
	case k < 42:
		m := Message{Data: []byte("1")}
		if s.Rng.IntN(4) == 0 {
			m.Rate, m.TTL = 1+s.Rng.IntN(50), time.Duration(s.Rng.IntN(int(2*time.Second)))
		}
		s.begin(&address{verb: verbBroadcast}, &m)
	case k < 43:
		s.batch(clients)
	case k < 50 && talks:
		c.command("subscribe", topic)
	case k < 54 && talks:
		c.command("unsubscribe", topic)
	case k < 56 && talks:
		c.command("ping", "")
	case k < 60 && talks:
		c.send(wstest.Ping("p"))
	case k < 70 && !c.Gone:
		c.drain(s.Rng.IntN(1000))
	case k < 80 && !c.Gone:
		c.drain(-1)
	case k < 81 && talks:
		c.closed = true
		c.send(wstest.Close(wire.CloseNormal, ""))
	case k < 82 && !c.Gone && !c.EOF:
		c.hangUp()
	case k < 85: // to the living and the dead
		to := Target{Conn: s.srv.ids.name(c.Ref)}
		s.begin(&address{verb: verbPush, to: to}, &Message{Data: fmt.Append(nil, uint64(c.Ref))})
		if n := len(s.order); s.Rng.IntN(8) == 0 && n > 0 {
			dead := s.order[s.Rng.IntN(n)].Ref - 1<<32
			s.srv.engine.Close(dead, wire.CloseForceDisconnect, "not you")
		}
	case k < 86:
		s.Stale(netpoll.Event{Key: uint64(c.Ref), Readable: true, Writable: true})
	case k < 90:
		s.sweep(time.Duration(s.Rng.IntN(int(2 * time.Second))))
		s.srv.hub.tick(s.Time)
	default:
		s.turn(s.Rng.IntN(len(s.srv.shards)))
	}
}

// TestOldSim runs a server and its clients under a kernel that cuts reads,
// refuses writes, reorders readiness and reports the dead. A seed is run again
// with TOCSIN_SEED.
func TestOldSim(t *testing.T) {
	seeds := make([]uint64, size(2000))
	for i := range seeds {
		seeds[i] = uint64(i)
	}
	if only, err := strconv.ParseUint(os.Getenv("TOCSIN_SEED"), 10, 64); err == nil {
		seeds = []uint64{only}
	}
	for _, seed := range seeds {
		if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { oldSimulate(t, seed) }) {
			return
		}
	}
}

func oldSimulate(t *testing.T, seed uint64) {
	s := newSim(t, seed, oldConfig())
	s.CutReads = seed%2 == 0
	clients := make([]*oldClient, 6)
	dial := func(i int) {
		clients[i] = &oldClient{peer: s.dial("/ws?user=" + strconv.Itoa(i%3)), asked: map[uint64]string{}, at: map[string]uint64{}}
	}
	for i := range clients {
		dial(i)
	}
	for step := range 600 {
		s.step(clients)
		for i, c := range clients {
			c.read()
			if c.Gone && s.Rng.IntN(20) == 0 {
				dial(i)
			}
		}
		if step%5 == 0 {
			s.check()
		}
	}
	// Everybody reads again: what is still open has everything.
	for _, c := range clients {
		if !c.Gone {
			c.drain(-1)
		}
	}
	for range 100 {
		s.run()
	}
	for i, c := range clients {
		c.read()
		if c.Gone || c.over || c.closed || c.EOF {
			continue
		}
		if len(c.asked) > 0 {
			t.Errorf("client %d has no answer to %v", i, c.asked)
		}
		for sub := range s.session(c.peer).each {
			if name := sub.topic.flow.Name; c.at[name] != sub.topic.seq {
				t.Errorf("client %d is at %d of %s, which is at %d", i, c.at[name], name, sub.topic.seq)
			}
		}
	}
	for _, c := range clients {
		if !c.Gone && !c.EOF {
			c.hangUp()
		}
	}
	for range 100 {
		s.run()
	}
	s.check()
	for _, m := range s.sent {
		if !m.Done() {
			t.Errorf("message %d of %v is still on its way", m.Seq, m.Flow)
		}
	}
	if st := s.srv.Stats(); st.Connections+st.Users+st.Topics+st.Subscriptions != 0 || st.PublishBytes != 0 {
		t.Errorf("left behind: %+v", st)
	}
}
