//go:build linux

package server

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// past is a simulated server whose bus has a history that loses nothing.
type past struct {
	*keptSim
}

func newPast(t *testing.T, cfg Config) *past {
	bus := newSimBus()
	bus.steady, cfg.Bus = true, bus
	p := &past{&keptSim{sim: newSim(t, 1, cfg), bus: bus}}
	bus.s = p.sim
	return p
}

// publish publishes n messages, of which each has about so many bytes, and has
// them delivered.
func (p *past) publish(topic string, n, size int) {
	p.t.Helper()
	for range n {
		if _, err := p.srv.Publish(p.t.Context(), topic, Message{Data: []byte(`"` + strings.Repeat("x", size) + `"`)}); err != nil {
			p.t.Fatal(err)
		}
		p.bus.pay(1 << 20)
	}
}

// come opens a connection.
func (p *past) come(path string) *resumer {
	return &resumer{peer: p.sim.dial(path), b: p.bus, asked: map[uint64]resumed{}, at: map[string]wire.Position{}, on: map[string]bool{}, strict: true}
}

// top is where a topic stands.
func (p *past) top(topic string) wire.Position { return wire.Position(p.bus.topic(topic).at) }

// subscribe asks for the messages behind seq, of the topic's epoch.
func (p *past) subscribe(c *resumer, topic string, seq uint64) {
	c.command(resumed{"subscribe", topic, &wire.Position{Seq: seq, Epoch: p.top(topic).Epoch}})
	p.calm()
}

// calm lets all happen that can.
func (p *past) calm() {
	for range 3 {
		p.run()
		p.bus.pay(1 << 20)
	}
	p.run()
}

// want wants c to have all of a topic, and to be live.
func (p *past) want(c *resumer, topic string) {
	p.t.Helper()
	p.calm()
	c.read()
	if c.at[topic] != p.top(topic) || len(c.asked) > 0 {
		p.t.Fatalf("at %+v of %+v, without an answer to %v", c.at[topic], p.top(topic), c.asked)
	}
	if p.session(c.peer).find(topic) == nil {
		p.t.Fatal("not live")
	}
}

// A client that comes back is given what it missed and then what comes, and is
// told that it has missed nothing. What of that is not kept is told as lost.
func TestCatchUp(t *testing.T) {
	p := newPast(t, Config{})
	p.publish("a", 100, 10)
	for _, after := range []uint64{0, 1, 40, 99, 100} {
		c := p.come("/ws")
		p.subscribe(c, "a", after)
		p.want(c, "a")
		if c.replays != 1 {
			t.Errorf("after %d: not recovered", after)
		}
		p.publish("a", 2, 10)
		p.want(c, "a")
	}
	p.bus.trim("a", 50)
	for _, after := range []uint64{0, 49, 50, 51} {
		c := p.come("/ws")
		p.subscribe(c, "a", after)
		p.want(c, "a")
		if recovered := after >= 50; recovered != (c.replays == 1) {
			t.Errorf("after %d: recovered %v", after, !recovered)
		}
	}
	p.bus.trim("a", 1000)
	c := p.come("/ws")
	p.subscribe(c, "a", 7)
	p.want(c, "a")
}

// A position of another numbering means nothing: all that is kept of this one is
// given. One that the topic has not reached is none either.
func TestCatchUpFromNowhere(t *testing.T) {
	p := newPast(t, Config{})
	p.publish("a", 5, 10)
	live := p.come("/ws")
	p.subscribe(live, "a", 0)
	p.bus.renumber("a")
	p.publish("a", 10, 10)
	p.want(live, "a")
	p.bus.trim("a", 5+3)
	c := p.come("/ws")
	c.command(resumed{"subscribe", "a", &wire.Position{Seq: 2, Epoch: "e1"}})
	p.calm()
	if f := c.frames(); len(f) != 2+7 || !strings.Contains(string(f[0].Payload), `"seq":3,"epoch":"e2","recovered":false`) ||
		!strings.Contains(string(f[1].Payload), `"from":1,"to":3,"reason":"epoch"`) || !strings.Contains(string(f[2].Payload), `"seq":4`) {
		t.Errorf("%v", f)
	}
	c = p.come("/ws")
	p.subscribe(c, "a", 1000)
	if f := c.frames(); len(f) != 2 || !strings.Contains(string(f[0].Payload), `"seq":10,"epoch":"e2","recovered":false`) ||
		!strings.Contains(string(f[1].Payload), `"from":1,"to":10,"reason":"epoch"`) {
		t.Errorf("%v", f)
	}
	// A numbering that begins anew while one catches up.
	c = p.come("/ws")
	p.bus.asked = func() {
		p.bus.asked = nil
		p.bus.renumber("a")
		p.publish("a", 3, 10)
	}
	p.subscribe(c, "a", 4)
	p.want(c, "a")
	if c.replays != 1 {
		t.Error("not recovered")
	}
}

// A reader that sleeps costs one outbox, whatever it has missed and whatever
// is published meanwhile; the history is not read for it. It is given all.
func TestSleeperCatchesUpWithinItsOutbox(t *testing.T) {
	const most = 4000
	p := newPast(t, Config{MaxOutbox: most, PingInterval: -1})
	p.publish("a", 10_000, 100)
	c := p.come("/ws")
	c.drain(0)
	p.subscribe(c, "a", 0)
	for range 3 {
		p.publish("a", 300, 100)
		p.within(c, most)
	}
	if p.bus.calls > 3 {
		t.Errorf("the history was read %d times for one that sleeps", p.bus.calls)
	}
	for i := 0; p.session(c.peer).first() != nil; i++ {
		c.drain(1500)
		p.run()
		c.read()
		p.within(c, most)
		if i%100 == 0 {
			p.publish("a", 1, 100)
		}
		if p.Time += 10 * time.Millisecond; i > 20_000 {
			t.Fatal("never")
		}
	}
	c.drain(-1)
	p.want(c, "a")
	if c.replays != 1 {
		t.Error("not recovered")
	}
}

func (p *past) within(c *resumer, most int64) {
	p.t.Helper()
	p.clients = []*resumer{c}
	p.look()
	if n := p.srv.Stats().OutboxBytes; n > most {
		p.t.Fatalf("%d bytes wait", n)
	}
}

// A subscriber that reads as fast as is published joins, although messages come
// with each read, also if there is nobody else. Those that come are encoded for
// every protocol (docs/faults.md L9).
func TestFastTopicIsJoined(t *testing.T) {
	for _, path := range []string{"/ws", "/ws?format=raw"} {
		for _, others := range []int{0, 1} {
			p := newPast(t, Config{})
			for range others {
				live := p.come("/ws")
				p.subscribe(live, "a", 0)
			}
			p.publish("a", 20, 10)
			p.bus.asked = func() { p.publish("a", 5, 10) }
			p.bus.calls = 0
			c := p.come(path)
			p.subscribe(c, "a", 3)
			if p.bus.calls != 1 || p.session(c.peer).find("a") == nil {
				t.Fatalf("read %d times", p.bus.calls)
			}
			p.bus.asked = nil
			p.publish("a", 2, 10)
			if path == "/ws" {
				p.want(c, "a")
			} else if p.calm(); len(c.frames()) != 1+17+5+2 {
				t.Error("not all of it")
			}
		}
	}
}

// What came meanwhile and is more than the tail has is read.
func TestCatchUpReadsOnBehindTheTail(t *testing.T) {
	p := newPast(t, Config{MaxOutbox: 2000})
	p.publish("a", 2, 10)
	n := 0
	p.bus.asked = func() {
		if n++; n < 5 {
			p.publish("a", 2, 800)
		}
	}
	c := p.come("/ws")
	p.subscribe(c, "a", 0)
	p.want(c, "a")
	if p.bus.calls < 5 {
		t.Errorf("read %d times", p.bus.calls)
	}
	// What is lost meanwhile on its way here is in the history.
	d := p.come("/ws")
	p.bus.asked = func() {
		p.bus.asked = nil
		p.bus.steady = false
		for p.bus.s.Rng.IntN(40) != 0 {
			p.publish("a", 1, 10)
		}
		p.bus.steady = true
	}
	p.subscribe(d, "a", 1)
	p.want(d, "a")
}

// A message that is larger than an outbox is given, one that is too old when a
// subscriber joins is told as lost.
func TestCatchUpWithMessagesOfEverySize(t *testing.T) {
	p := newPast(t, Config{MaxOutbox: 1000, MaxMessage: 10_000})
	for _, size := range []int{10, 3000, 400, 600, 5000, 5000, 1} {
		p.publish("a", 1, size)
	}
	c := p.come("/ws")
	c.drain(0)
	p.subscribe(c, "a", 0)
	for range 100 {
		c.drain(200)
		p.run()
	}
	p.bus.asked = func() {
		p.bus.asked = nil
		if _, err := p.srv.Publish(t.Context(), "a", Message{Data: []byte("1"), TTL: time.Second}); err != nil {
			t.Error(err)
		}
		p.bus.pay(1)
		p.Time += 2 * time.Second
	}
	c.drain(-1)
	p.want(c, "a")
}

// While a topic is read the connection is served: its commands, its other topics.
func TestOthersGoOnWhileOneCatchesUp(t *testing.T) {
	p := newPast(t, Config{})
	p.publish("a", 10, 10)
	p.publish("b", 10, 10)
	c := p.come("/ws")
	p.hold = true
	p.subscribe(c, "a", 3)
	p.subscribe(c, "b", 3)
	c.command(resumed{verb: "ping"})
	c.command(resumed{verb: "subscribe", topic: "d"})
	p.calm()
	c.read()
	if len(c.asked) != 2 {
		t.Fatalf("no answer to %v", c.asked)
	}
	p.publish("d", 3, 10)
	p.wantAll(c, "d")
	topics, err := p.topicsOf(c)
	if err != nil || fmt.Sprint(topics) != "[d a b]" && fmt.Sprint(topics) != "[d b a]" {
		t.Errorf("%v, %v", topics, err)
	}
	// The first is not wanted any more: the second is read.
	c.command(resumed{verb: "unsubscribe", topic: "a"})
	p.calm()
	c.read()
	if c.on["a"] || len(c.asked) != 1 {
		t.Errorf("%v, no answer to %v", c.on, c.asked)
	}
	p.hold = false
	p.want(c, "b")
	p.publish("a", 1, 10)
	p.calm()
	c.read()
}

// topicsOf returns the topics of a connection.
func (p *past) topicsOf(c *resumer) ([]string, error) {
	l := &topicList{srv: p.srv, told: make(told, 1)}
	p.srv.engine.Ask(c.Ref, l)
	p.run()
	return l.topics, p.srv.waitAll(p.t.Context(), l.told, 1)
}

// wantAll wants c to have all of a topic, whatever else it waits for.
func (p *past) wantAll(c *resumer, topic string) {
	p.t.Helper()
	p.calm()
	c.read()
	if c.at[topic] != p.top(topic) {
		p.t.Fatalf("at %+v of %+v", c.at[topic], p.top(topic))
	}
}

// A topic that is caught up with counts, and may be subscribed to again.
func TestMaxTopicsWhileCatchingUp(t *testing.T) {
	p := newPast(t, Config{MaxTopics: 1})
	p.publish("a", 10, 10)
	c := p.come("/ws")
	p.hold = true
	p.subscribe(c, "a", 3)
	p.subscribe(c, "b", 3)
	if f := c.frames(); len(f) != 1 || !strings.Contains(string(f[0].Payload), string(wire.TooManyTopics)) {
		t.Fatalf("%v", f)
	}
	delete(c.asked, 2)
	p.subscribe(c, "a", 5)
	p.hold = false
	p.want(c, "a")
	if c.at["a"].Seq != 10 || p.srv.Stats().CommandErrors["internal"] != 1 {
		t.Errorf("%+v, %v", c.at, p.srv.Stats().CommandErrors)
	}
}

// A subscribe that waits behind a walk, and is overtaken by one that says where
// the client is, is refused: its answer would come too late to be true.
func TestOvertakenSubscribeIsRefused(t *testing.T) {
	p := newPast(t, Config{})
	p.publish("a", 10, 10)
	for range 200 {
		live := p.come("/ws")
		p.subscribe(live, "a", 10)
	}
	c := p.come("/ws")
	p.hold = true
	p.publish("a", 1, 10)
	p.Look = 600 * time.Microsecond
	p.probe.Round(0) // the walk has begun
	c.command(resumed{verb: "subscribe", topic: "a"})
	p.probe.Round(0)
	p.subscribeRound(c, "a", 3)
	p.Look = 0
	p.hold = false
	p.want(c, "a")
	if p.srv.Stats().CommandErrors["internal"] != 1 || c.replays != 1 {
		t.Errorf("%v, %d", p.srv.Stats().CommandErrors, c.replays)
	}
}

func (p *past) subscribeRound(c *resumer, topic string, seq uint64) {
	p.t.Helper()
	c.command(resumed{"subscribe", topic, &wire.Position{Seq: seq, Epoch: p.top(topic).Epoch}})
	p.probe.Round(0)
	if walks, _ := p.probe.Walks(0); walks == 0 {
		p.t.Fatal("the walk has ended: this tests nothing")
	}
	p.RunCalls()
	p.probe.Round(0)
}

// A history that fails has the client try again: by the error of its subscribe,
// and once that was answered by 3010.
func TestHistoryFails(t *testing.T) {
	for _, broken := range []func(){func() { panic("no disk") }} {
		p := newPast(t, Config{MaxOutbox: 1000})
		p.publish("a", 100, 100)
		p.bus.asked = broken
		c := p.come("/ws")
		p.subscribe(c, "a", 0)
		f := c.frames()
		if len(f) != 1 || !strings.Contains(string(f[0].Payload), `"internal"`) {
			t.Fatalf("%v", f)
		}
		p.subscribe(c, "b", 0)
		n := 0
		p.bus.asked = func() {
			if n++; n > 3 {
				broken()
			}
		}
		c.frames()
		p.subscribe(c, "a", 0)
		f = c.frames()
		if last := f[len(f)-1]; last.Op != ws.OpClose || last.CloseCode() != wire.CloseInsufficientState || len(f) < 10 {
			t.Errorf("%v", f)
		}
		p.run()
	}
}

// Reads of connections that have ended do not wait for room.
func TestReadsOfTheGoneAreDropped(t *testing.T) {
	p := newPast(t, Config{})
	p.publish("a", 10, 10)
	p.hold, p.CallRoom = true, 0
	for i := range 100 {
		c := p.come("/ws?user=" + strconv.Itoa(i))
		p.subscribe(c, "a", 3)
		c.hangUp()
		p.run()
	}
	p.sweep(time.Second)
	if kept, counted := p.probe.WaitingCalls(0); kept+counted > 0 {
		t.Errorf("%d and %d calls wait", kept, counted)
	}
	if st := p.srv.Stats(); st.Topics != 0 {
		t.Errorf("%d topics are held", st.Topics)
	}
}

// Room in an outbox that does not become empty is room.
func TestCatchUpBesideABusyTopic(t *testing.T) {
	p := newPast(t, Config{MaxOutbox: 4000})
	p.publish("a", 10, 100)
	c := p.come("/ws")
	p.subscribe(c, "busy", 0)
	c.drain(0)
	p.publish("busy", 20, 100)
	p.subscribe(c, "a", 0)
	if waits := p.srv.Stats().OutboxBytes; p.bus.calls != 0 || waits < 3000 {
		t.Fatalf("%d reads, %d bytes wait", p.bus.calls, waits)
	}
	c.drain(1500)
	p.calm()
	if waits := p.srv.Stats().OutboxBytes; p.bus.calls != 1 || waits < 2000 {
		t.Errorf("%d reads, %d bytes wait", p.bus.calls, waits)
	}
	c.drain(-1)
	p.want(c, "a")
}

// Whoever joins with what the topic has kept meanwhile is given it in its own
// protocol, even if nobody spoke that at the time.
func TestTailIsInEveryProtocol(t *testing.T) {
	p := newPast(t, Config{MaxOutbox: 4000, PingInterval: -1})
	p.publish("a", 100, 100)
	sleeper := p.come("/ws")
	sleeper.drain(0)
	p.subscribe(sleeper, "a", 0)
	p.publish("a", 3, 10)
	calls := p.bus.calls
	raw := p.come("/ws?format=raw")
	p.subscribe(raw, "a", 101)
	if f := raw.frames(); len(f) != 1+2 || p.bus.calls != calls {
		t.Errorf("%d reads, %v", p.bus.calls-calls, f)
	}
}
