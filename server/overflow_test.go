//go:build linux

package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// data returns the payloads of the messages that have come, and the code of
// the Close frame.
func (p *peer) data() (got []string, code wire.CloseCode) {
	p.s.t.Helper()
	for _, f := range p.frames() {
		if f.Op == ws.OpClose {
			code = f.CloseCode()
			continue
		}
		e, err := wire.ParseEvent(f.Payload)
		if err != nil || e.Message == nil {
			p.s.t.Fatalf("%v: %v", f, err)
		}
		got = append(got, strings.TrimRight(string(e.Message.Data), " "))
	}
	return got, code
}

func (s *sim) publish(topic string, m Message) {
	s.t.Helper()
	if _, err := s.srv.Publish(s.t.Context(), topic, m); err != nil {
		s.t.Fatal(err)
	}
	s.run()
	s.check()
}

func TestOverflow(t *testing.T) {
	// Twenty messages of two keys, about 200 bytes each, for an outbox of 1,000.
	twenty := func(s *sim, topic string) {
		for i := range 20 {
			s.publish(topic, Message{Data: fmt.Appendf(nil, "%-150d", i), CollapseKey: fmt.Sprint(i % 2)})
		}
	}
	for _, c := range []struct {
		topic string
		want  string
		code  wire.CloseCode
		drops map[string]uint64
	}{
		{"all", "[]", wire.CloseSlow, map[string]uint64{"overflow": 1, "gone": 5}}, // and not sent to any more
		{"old", "[15 16 17 18 19]", 0, map[string]uint64{"overflow": 15}},
		{"new", "[18 19]", 0, map[string]uint64{"collapsed": 18}},
	} {
		t.Run(c.topic, func(t *testing.T) {
			s := newSim(t, 1, Config{MaxOutbox: 1000, Overflow: []OverflowRule{{"o", Disconnect}, {"old", DropOldest}, {"new", Latest}}})
			slow, fast := s.dial("/ws?topics="+c.topic), s.dial("/ws?topics="+c.topic)
			slow.drain(0)
			twenty(s, c.topic)
			slow.drain(-1)
			s.run()
			got, code := slow.data()
			if fmt.Sprint(got) != c.want || code != c.code {
				t.Errorf("the slow one got %v and %d, want %s and %d", got, code, c.want, c.code)
			}
			if got, code := fast.data(); len(got) != 20 || code != 0 {
				t.Errorf("the fast one got %v and %d", got, code)
			}
			st := s.srv.Stats()
			for why, n := range st.Drops {
				if n != c.drops[why] {
					t.Errorf("drops %v, want %v", st.Drops, c.drops)
				}
			}
			if cuts := st.Cuts["outbox"]; (cuts == 1) != (c.code == wire.CloseSlow) {
				t.Errorf("cuts %v", st.Cuts)
			}
		})
	}
}

// A message that waits longer than its TTL is not sent, unless a part of it has
// left.
func TestTTL(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.dial("/ws?topics=t")
	p.drain(10) // the first begins
	for i := range 3 {
		s.publish("t", Message{Data: fmt.Append(nil, i), TTL: time.Second})
	}
	s.publish("t", Message{Data: []byte("3")})
	s.publish("t", Message{Data: []byte("4"), TTL: time.Minute})
	s.time += 2 * time.Second
	p.drain(-1)
	s.run()
	s.check()
	if got, _ := p.data(); fmt.Sprint(got) != "[0 3 4]" {
		t.Errorf("got %v", got)
	}
	if n := s.srv.Stats().Drops["ttl"]; n != 2 {
		t.Errorf("%d drops", n)
	}
	// Too old before its turn comes.
	if _, err := s.srv.Publish(t.Context(), "t", Message{Data: []byte("5"), TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	s.time += time.Second
	s.run()
	if got, _ := p.data(); len(got) != 0 {
		t.Errorf("got %v, a second late", got)
	}
	s.check()
}

// The budget takes from those who have something waiting, the longest first;
// having many topics is no offence.
func TestShedding(t *testing.T) {
	s := newSim(t, 1, Config{OutboxBudget: 3000, MaxOutbox: 2000})
	var topics []string
	for i := range 20 {
		topics = append(topics, fmt.Sprint("t", i))
	}
	honest := s.dial("/ws?topics=" + strings.Join(topics, ","))
	long, short := s.dial("/ws?topics=long,t0"), s.dial("/ws?topics=short,t0")
	long.drain(0)
	short.drain(0)
	message := Message{Data: fmt.Appendf(nil, "%-900d", 0)}
	s.publish("short", message)
	s.publish("long", message)
	s.publish("t0", message) // 1,950 bytes for each: over the budget
	long.drain(-1)
	short.drain(-1)
	s.run()
	_, c1 := long.data()
	_, c2 := short.data()
	if n := s.srv.Stats().Cuts["budget"]; n != 1 || (c1 == wire.CloseSlow) == (c2 == wire.CloseSlow) {
		t.Errorf("%d cuts; closed with %d and %d", n, c1, c2)
	}
	if got, code := honest.data(); len(got) != 1 || code != 0 {
		t.Errorf("the honest one got %v and %d", got, code)
	}
	s.check()
}
