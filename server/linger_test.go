//go:build linux

package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// subscribe has p subscribe to a topic after a position, and returns the
// answer and the gap behind it, if there is one.
func (p *peer) subscribe(topic string, after wire.Position) (ok wire.Position, recovered bool, gap *wire.Gap) {
	p.s.t.Helper()
	p.send(wstest.Text(fmt.Sprintf(`{"id":1,"subscribe":{"topic":%q,"after":%d,"epoch":%q}}`, topic, after.Seq, after.Epoch)))
	p.s.run()
	for i, f := range p.frames() {
		e, err := tocsin.ParseEvent(f.Payload)
		switch {
		case err == nil && i == 0 && e.OK != nil && e.OK.Recovered != nil:
			ok, recovered = wire.Position{Seq: e.OK.Seq, Epoch: e.OK.Epoch}, *e.OK.Recovered
		case err == nil && i == 1 && e.Gap != nil:
			gap = e.Gap
		default:
			p.s.t.Fatalf("answer %d: %v: %v", i, err, f)
		}
	}
	return ok, recovered, gap
}

func (s *sim) topic(name string) wire.Position {
	at, _, _ := s.srv.Topic(name)
	return wire.Position(at)
}

// docs/faults.md X18: the only subscriber of a topic comes back to it and is
// told what is true: nothing was missed, or how much.
func TestOnlySubscriberComesBack(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.dial("/ws?topics=mine")
	s.publish("mine", Message{Data: []byte("1")})
	before := s.topic("mine")
	if before.Seq != 1 || before.Epoch == "" {
		t.Fatalf("at %+v", before)
	}
	p.hangUp()
	s.run()
	if st := s.srv.Stats(); st.Topics != 0 || st.Lingering != 1 {
		t.Fatalf("%d topics, %d lingering", st.Topics, st.Lingering)
	}
	s.pass(2*time.Minute - time.Second)

	p = s.dial("/ws")
	if at, recovered, gap := p.subscribe("mine", before); at != before || !recovered || gap != nil {
		t.Errorf("back at %+v: recovered %v, gap %+v", at, recovered, gap)
	}
	p.hangUp()
	s.run()
	for i := range 3 {
		s.publish("mine", Message{Data: fmt.Append(nil, i)})
	}
	p = s.dial("/ws")
	want := wire.Gap{Topic: "mine", Epoch: before.Epoch, From: 2, To: 4, Reason: "retention"}
	if at, recovered, gap := p.subscribe("mine", before); at.Seq != 4 || recovered || gap == nil || *gap != want {
		t.Errorf("back at %+v: recovered %v, gap %+v, want %+v", at, recovered, gap, want)
	}
	s.publish("mine", Message{Data: []byte("5")})
	if got, _ := p.data(); !slices.Equal(got, []string{"5"}) {
		t.Errorf("got %v", got)
	}
	p.hangUp()
	s.run()
	s.pass(2*time.Minute + time.Second)
	p = s.dial("/ws")
	if at, recovered, gap := p.subscribe("mine", before); at.Epoch == before.Epoch || at.Seq != 0 || recovered || gap == nil || gap.Reason != "epoch" {
		t.Errorf("after the linger at %+v: recovered %v, gap %+v", at, recovered, gap)
	}
	if st := s.srv.Stats(); st.Lingering != 0 || st.LingerBytes != 0 || st.LingerEvictions != 0 {
		t.Errorf("left behind: %d lingering, %d bytes, %d evicted", st.Lingering, st.LingerBytes, st.LingerEvictions)
	}
}

// pass lets d pass, with the ticker's look at what lingers.
func (s *sim) pass(d time.Duration) {
	s.Time += d
	s.srv.hub.tick(s.Time)
}

// Topics that linger have a budget in bytes; over it those that linger longest
// are forgotten first, and counted.
func TestLingeringTopicsHaveABudget(t *testing.T) {
	const topics, share = 2000, 1000
	s := newSim(t, 1, Config{LingerBudget: 64 * share, MaxTopics: topics})
	p := s.dial("/ws")
	name := func(i int) string { return fmt.Sprint(i, strings.Repeat("x", 200)) }
	for i := range topics {
		p.send(wstest.Text(fmt.Sprintf(`{"id":1,"subscribe":{"topic":%q}}`, name(i))))
		p.send(wstest.Text(fmt.Sprintf(`{"id":2,"unsubscribe":{"topic":%q}}`, name(i))))
		s.run()
		p.frames()
		if n := s.srv.Stats().LingerBytes; n > 64*share {
			t.Fatalf("%d bytes linger, the budget is %d", n, 64*share)
		}
	}
	st := s.srv.Stats()
	if st.Lingering == 0 || st.LingerEvictions != topics-uint64(st.Lingering) {
		t.Errorf("%d of %d linger, %d were evicted", st.Lingering, topics, st.LingerEvictions)
	}
	oldest, newest := -1, -1
	for i := range topics {
		if s.topic(name(i)).Epoch != "" {
			if newest = i; oldest < 0 {
				oldest = i
			}
		}
	}
	if newest != topics-1 || oldest < topics/2 {
		t.Errorf("from %d to %d of %d linger", oldest, newest, topics)
	}
}

// A topic that is left and joined again and again is one that lingers, whatever
// the order, and its numbering is never lost.
func TestLingeringIsExact(t *testing.T) {
	s := newSim(t, 3, Config{})
	p := s.dial("/ws")
	type state struct {
		on    bool
		seq   uint64
		epoch string
		left  time.Duration
	}
	model := map[string]*state{}
	for range 5000 {
		name := fmt.Sprint("t", s.Rng.IntN(20))
		m := model[name]
		if m == nil {
			m = &state{}
			model[name] = m
		}
		if !m.on && m.epoch != "" && s.Time-m.left >= s.srv.cfg.TopicLinger {
			m.seq, m.epoch = 0, ""
		}
		switch s.Rng.IntN(4) {
		case 0:
			s.publish(name, Message{Data: []byte("1")})
			if m.epoch != "" {
				m.seq++
			}
		case 1:
			if s.isOpen(p) && !m.on && s.session(p).topics() < 100 {
				p.send(wstest.Text(fmt.Sprintf(`{"id":1,"subscribe":{"topic":%q}}`, name)))
				s.run()
				m.on = true
				if at := s.topic(name); m.epoch == "" {
					m.epoch = at.Epoch
				}
			}
		case 2:
			if m.on {
				p.send(wstest.Text(fmt.Sprintf(`{"id":1,"unsubscribe":{"topic":%q}}`, name)))
				s.run()
				m.on, m.left = false, s.Time
			}
		case 3:
			s.pass(time.Duration(s.Rng.Int64N(int64(10 * time.Second))))
			continue
		}
		p.Out = nil
		if at := s.topic(name); at.Seq != m.seq || at.Epoch != m.epoch {
			t.Fatalf("%s is at %+v, want %d of %q", name, at, m.seq, m.epoch)
		}
	}
	lingering := 0
	for _, m := range model {
		if !m.on && m.epoch != "" && s.Time-m.left < s.srv.cfg.TopicLinger {
			lingering++
		}
	}
	if st := s.srv.Stats(); st.Lingering != lingering {
		t.Errorf("%d topics linger, want %d", st.Lingering, lingering)
	}
}

// No epoch comes twice, also behind the number of topics that there is room for.
func TestEpochsNeverRepeat(t *testing.T) {
	s := newSim(t, 1, Config{TopicLinger: -1})
	seen := map[string]bool{}
	begin := func() {
		p := s.dial("/ws?topics=a")
		s.publish("a", Message{Data: []byte("1")})
		at := s.topic("a")
		if at.Seq != 1 || seen[at.Epoch] {
			t.Errorf("begun at %+v", at)
		}
		seen[at.Epoch] = true
		if got := len(p.frames()); got != 1 {
			t.Errorf("%d messages", got)
		}
		p.hangUp()
		s.run()
	}
	for _, begun := range []uint64{0, 1<<30 - 2, 1<<32 - 2} {
		s.srv.hub.epochs.Store(begun)
		for range 5 {
			begin()
		}
	}
	s.check()
}

// A topic that there is no number for keeps its epoch while it lingers.
func TestEpochIsKept(t *testing.T) {
	s := newSim(t, 1, Config{})
	s.srv.hub.epochs.Store(1 << 30)
	p := s.dial("/ws?topics=a")
	s.publish("a", Message{Data: []byte("1")})
	before := s.topic("a")
	p.hangUp()
	s.run()
	if at, recovered, gap := s.dial("/ws").subscribe("a", before); at != before || !recovered || gap != nil {
		t.Errorf("at %+v, was %+v; recovered %v, %+v", at, before, recovered, gap)
	}
	s.check()
}

// TopicLinger can be switched off: a topic ends with its last subscriber.
func TestNoLinger(t *testing.T) {
	s := newSim(t, 1, Config{TopicLinger: -1})
	p := s.dial("/ws?topics=t")
	p.hangUp()
	s.run()
	if _, _, ok := s.srv.Topic("t"); ok || s.srv.Stats().Lingering != 0 {
		t.Error("the topic lingers")
	}
}

// pairBus fails the test unless Subscribe and Unsubscribe of a topic alternate.
// Every fifth Subscribe is refused.
type pairBus struct {
	localBus
	t     *testing.T
	on    map[string]bool
	calls int
}

func (b *pairBus) Subscribe(topic string) {
	if b.on[topic] {
		b.t.Errorf("%s is subscribed twice", topic)
	}
	b.on[topic] = true
	if b.calls++; b.calls%5 == 0 {
		b.hub.Ready(topic, Position{}, errors.New("no route"))
		return
	}
	b.localBus.Subscribe(topic)
}

func (b *pairBus) Unsubscribe(topic string) {
	if !b.on[topic] {
		b.t.Errorf("%s is unsubscribed and was not subscribed", topic)
	}
	delete(b.on, topic)
}

// A bus is told once that a topic begins and once that it ends, whether it
// lingers, for how long, and whether there is room for it.
func TestBusSubscriptionsPair(t *testing.T) {
	for _, cfg := range []Config{
		{}, {TopicLinger: -1}, {TopicLinger: time.Second}, {LingerBudget: 1}, {LingerBudget: 64 * 2 * lingerCost},
	} {
		s := newSim(t, 5, cfg)
		bus := &pairBus{localBus{s.srv.hub}, t, map[string]bool{}, 0}
		s.srv.hub.bus = bus
		peers := []*peer{s.dial("/ws"), s.dial("/ws")}
		for range 2000 {
			verb := []string{"subscribe", "unsubscribe"}[s.Rng.IntN(2)]
			i := s.Rng.IntN(len(peers))
			peers[i].send(wstest.Text(fmt.Sprintf(`{"id":1,%q:{"topic":"%d"}}`, verb, s.Rng.IntN(100))))
			s.run()
			switch s.Rng.IntN(20) {
			case 0:
				s.pass(time.Second)
			case 1:
				peers[i].hangUp()
				s.run()
				peers[i] = s.dial("/ws")
			}
		}
		if st := s.srv.Stats(); len(bus.on) != st.Topics+st.Lingering || len(bus.on) == 0 {
			t.Errorf("%+v: %d topics of the bus, %d with subscribers, %d linger", cfg, len(bus.on), st.Topics, st.Lingering)
		}
	}
}

// A subscription that was ended before it took effect does not, also if the
// connection has subscribed again by then: that has a place of its own.
func TestRenewedSubscriptionHasItsOwnPlace(t *testing.T) {
	s := newSim(t, 1, Config{})
	s.dial("/ws?topics=news")
	p := s.dial("/ws")
	turn, c, subs := s.probe.Begin(0), s.slot(p).Conn, s.session(p)
	subscribe := func() wire.Position {
		topic, _ := s.srv.hub.hold("news")
		return s.srv.enterEarly(turn, c, subs, topic)
	}
	publish := func() {
		if _, err := s.srv.Publish(t.Context(), "news", Message{Data: []byte("1")}); err != nil {
			t.Fatal(err)
		}
	}
	subscribe()
	publish() // the first of its messages
	s.srv.unsubscribe(turn, c, "news")
	publish() // nothing to it
	at := subscribe()
	publish()
	s.run()
	var got []uint64
	for _, f := range p.frames() {
		e, err := tocsin.ParseEvent(f.Payload)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Message.Seq)
	}
	if at.Seq != 2 || !slices.Equal(got, []uint64{3}) {
		t.Errorf("subscribed at %+v it gets %d", at, got)
	}
	if subs.more != nil {
		t.Errorf("its session keeps %+v", *subs.more)
	}
	s.check()
}
