//go:build linux

package server

import (
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// data returns the payloads of the messages that have come, gaps as
// reason:from-to, and the code of the Close frame.
func (p *peer) data() (got []string, code wire.CloseCode) {
	p.s.t.Helper()
	for _, f := range p.frames() {
		if f.Op == ws.OpClose {
			code = f.CloseCode()
			continue
		}
		e, err := tocsin.ParseEvent(f.Payload)
		if err == nil && e.Gap != nil {
			got = append(got, fmt.Sprintf("%s:%d-%d", e.Gap.Reason, e.Gap.From, e.Gap.To))
			continue
		}
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
		{"all", "[]", wire.CloseSlow, map[string]uint64{"overflow": 1, "gone": 4}}, // and not sent to any more
		{"old", "[overflow:1-16 16 17 18 19]", 0, map[string]uint64{"overflow": 16}},
		{"new", "[collapsed:1-18 18 19]", 0, map[string]uint64{"collapsed": 18}},
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
	s.Time += 2 * time.Second
	p.drain(-1)
	s.run()
	s.check()
	if got, _ := p.data(); fmt.Sprint(got) != "[0 ttl:2-3 3 4]" {
		t.Errorf("got %v", got)
	}
	if n := s.srv.Stats().Drops["ttl"]; n != 2 {
		t.Errorf("%d drops", n)
	}
	s.publish("t", Message{Data: []byte("5"), TTL: math.MaxInt64})
	if got, _ := p.data(); fmt.Sprint(got) != "[5]" {
		t.Errorf("got %v with the longest TTL there is", got)
	}
	// Too old before its turn comes.
	if _, err := s.srv.Publish(t.Context(), "t", Message{Data: []byte("6"), TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	s.Time += time.Second
	s.run()
	if got, _ := p.data(); fmt.Sprint(got) != "[ttl:7-7]" {
		t.Errorf("got %v, a second late", got)
	}
	s.check()
}

// However many messages of a queue are too old, what is left is in order, and
// each topic is told of each range once.
func TestQueueOfOldMessages(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.dial("/ws?topics=a,b")
	p.drain(0)
	for i := range 900 {
		m := Message{Data: fmt.Append(nil, i), TTL: time.Second}
		if i%300 == 299 {
			m.TTL = 0
		}
		s.publish([]string{"a", "b"}[i%2], m)
	}
	s.Time += 2 * time.Second
	p.drain(-1)
	s.run()
	s.check()
	want := "[ttl:1-450 ttl:1-149 299 ttl:151-299 599 ttl:301-449 899]"
	if got, _ := p.data(); fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// A gap lies in one numbering, also when messages of two are too old together.
func TestGapDoesNotSpanEpochs(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.dial("/ws?topics=t")
	for _, at := range []Position{{8, "x"}, {9, "x"}, {1, "y"}, {2, "y"}} {
		s.srv.hub.Deliver(Publication{Topic: "t", Message: Message{Data: []byte("1"), TTL: time.Second}}, at)
	}
	s.Time += time.Second
	s.run()
	if got, _ := p.data(); fmt.Sprint(got) != "[epoch:1-7 ttl:8-9 epoch:1-0 ttl:1-2]" {
		t.Errorf("got %v", got)
	}
	s.check()
}

// A turn that panics in the middle of its walks leaves the others as they are,
// each with what it has left to do.
func TestWalksOutliveAPanic(t *testing.T) {
	s := newSim(t, 1, Config{TopicLinger: -1})
	p, q := s.dial("/ws?topics=a,c"), s.dial("/ws?topics=b")
	for _, topic := range []string{"a", "b", "c"} {
		if _, err := s.srv.Publish(t.Context(), topic, Message{Data: []byte("1")}); err != nil {
			t.Fatal(err)
		}
	}
	q.Panics = true
	s.WantPanics = 1
	s.turn(0)
	if s.WantPanics != 0 {
		t.Fatal("nothing panicked")
	}
	for _, topic := range []string{"a", "c", "a", "c"} {
		if _, err := s.srv.Publish(t.Context(), topic, Message{Data: []byte("2")}); err != nil {
			t.Fatal(err)
		}
		s.run()
	}
	_, paced := s.probe.Walks(0)
	if got, _ := p.data(); len(got) != 6 || paced != 0 || s.srv.Stats().PublishBytes > 1000 {
		t.Errorf("got %v, %d paced walks, %d bytes on their way", got, paced, s.srv.Stats().PublishBytes)
	}
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

// The notice that a message is too old is encoded once; one more subscriber
// costs no allocation.
func TestGapIsEncodedOnce(t *testing.T) {
	cost := func(subscribers int) float64 {
		s := newSim(t, 1, Config{})
		for range subscribers {
			s.dial("/ws?topics=hot")
		}
		s.Sink = true
		return testing.AllocsPerRun(20, func() {
			if _, err := s.srv.Publish(t.Context(), "hot", Message{Data: []byte("1"), TTL: time.Second}); err != nil {
				t.Fatal(err)
			}
			s.Time += time.Second
			s.turn(0)
		})
	}
	few, many := cost(10), cost(size(1500))
	if many > few+1 {
		t.Errorf("%v allocations for 10 subscribers, %v for %d", few, many, size(1500))
	}
}

// What the budget takes from topics whose policy lets it is told by a gap, and
// costs nobody the connection.
func TestBudgetIsToldByAGap(t *testing.T) {
	s := newSim(t, 1, Config{OutboxBudget: 2850, MaxOutbox: 2500, Overflow: []OverflowRule{{"price", Latest}, {"tick", DropOldest}}})
	a, b := s.dial("/ws?topics=price"), s.dial("/ws?topics=tick")
	a.drain(0)
	b.drain(0)
	for i := range 2 {
		s.publish("tick", Message{Data: fmt.Appendf(nil, "%-900d", i)})
	}
	s.publish("price", Message{Data: fmt.Appendf(nil, "%-900d", 0)})
	s.publish("tick", Message{Data: []byte("2")}) // over the budget: the longest outbox first
	a.drain(-1)
	b.drain(-1)
	s.run()
	got1, code1 := a.data()
	got2, code2 := b.data()
	if fmt.Sprint(got1, code1) != "[0] 0" && fmt.Sprint(got1, code1) != "[budget:1-1] 0" {
		t.Errorf("price: %v, closed with %d", got1, code1)
	}
	if len(got2) == 0 || !strings.HasPrefix(got2[0], "budget:1-") || code2 != 0 {
		t.Errorf("tick: %v, closed with %d", got2, code2)
	}
	if st := s.srv.Stats(); st.Cuts["budget"] != 0 || st.Drops["budget"] == 0 || st.OutboxBytes != 0 {
		t.Errorf("cuts %v, drops %v", st.Cuts, st.Drops)
	}
	s.check()
}

// docs/faults.md X8: under every policy that drops, a reader gets the newest
// value or is told that it does not, also when the outbox is full of another
// topic or its only message has begun to leave.
func TestNewestValueArrivesOrIsTold(t *testing.T) {
	for _, policy := range []Overflow{DropOldest, Latest} {
		for _, filler := range []string{"another topic", "half a message"} {
			t.Run(fmt.Sprint(policy, " behind ", filler), func(t *testing.T) {
				s := newSim(t, 1, Config{MaxOutbox: 1000, Overflow: []OverflowRule{{"price", policy}}})
				p := s.dial("/ws?topics=price,bulk")
				p.drain(0)
				if filler == "another topic" {
					for range 6 {
						s.publish("bulk", Message{Data: fmt.Appendf(nil, "%-100d", 0)})
					}
				} else {
					p.drain(10)
					s.publish("price", Message{Data: fmt.Appendf(nil, "%-900d", 0)})
				}
				before := s.srv.Stats().Deliveries
				for i := range 5 {
					s.publish("price", Message{Data: fmt.Appendf(nil, "%-800d", i)})
				}
				if n := s.srv.Stats().Deliveries; n != before {
					t.Fatalf("%d messages had room", n-before)
				}
				p.drain(-1)
				s.run()
				got, code := p.data()
				want := "overflow:1-5"
				if filler == "half a message" {
					want = "overflow:2-6"
				}
				if code != 0 || got[len(got)-1] != want {
					t.Errorf("got %q and %d, want %s last", got, code, want)
				}
				s.publish("price", Message{Data: []byte(`"newest"`)})
				if got, _ := p.data(); fmt.Sprint(got) != `["newest"]` {
					t.Errorf("then got %v", got)
				}
			})
		}
	}
}

// A raw connection cannot be told of a gap: rather than keep a stale value it
// comes back for the newest.
func TestRawReaderOfAStaleValueIsCut(t *testing.T) {
	s := newSim(t, 1, Config{MaxOutbox: 1000, Overflow: []OverflowRule{{"", Latest}}})
	p := s.dial("/ws?topics=price&format=raw")
	p.drain(10)
	for i := range 3 {
		s.publish("price", Message{Data: fmt.Appendf(nil, "%-900d", i)})
	}
	p.drain(-1)
	s.run()
	frames := p.frames()
	if f := frames[len(frames)-1]; f.Op != ws.OpClose || f.CloseCode() != wire.CloseSlow {
		t.Errorf("got %v", frames)
	}
}

// The notices of gaps have a bound too: a reader with more of them than that
// is cut.
func TestTooManyGapsCut(t *testing.T) {
	topics := make([]string, 100)
	for i := range topics {
		topics[i] = fmt.Sprintf("price-%d-%s", i, strings.Repeat("x", 200))
	}
	s := newSim(t, 1, Config{MaxOutbox: 1000, Overflow: []OverflowRule{{"", Latest}}})
	p := s.open()
	p.write([]byte(wstest.Request("tocsin.test", "/ws", wstest.NewKey())))
	s.run()
	p.Out = nil
	for i, topic := range topics {
		p.send(wstest.Text(fmt.Sprintf(`{"id":%d,"subscribe":{"topic":%q}}`, i+1, topic)))
	}
	s.run()
	p.frames()
	p.drain(10)
	for _, topic := range topics {
		s.publish(topic, Message{Data: fmt.Appendf(nil, "%-900d", 0)})
	}
	if n := s.srv.Stats().Cuts["outbox"]; n != 1 || s.srv.Stats().OutboxBytes > 1000+engine.MaxGaps {
		t.Errorf("%d cuts, %d bytes wait", n, s.srv.Stats().OutboxBytes)
	}
}

// docs/faults.md X12: the receipt of every publish accounts for every
// subscriber, whatever becomes of them meanwhile: they reset, they stop
// reading, they leave the topic, they come.
func TestReceiptsAddUp(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{MaxOutbox: 8 << 10, Overflow: []OverflowRule{{"old", DropOldest}, {"new", Latest}}})
	topics := []string{"all", "old", "new"}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	defer clients.Wait()
	defer close(stop)
	for i := range 24 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprint(c, wstest.Request("tocsin.test", "/ws?topics="+topics[i%3], wstest.NewKey()))
				_ = c.SetReadDeadline(time.Now().Add(time.Duration(1+(i*7+n)%20) * time.Millisecond))
				switch n % 3 {
				case 0: // reads, then resets
					_, _ = io.Copy(io.Discard, c)
				case 1: // leaves the topic, does not read
					_, _ = c.Write(wstest.Text(`{"id":1,"unsubscribe":{"topic":"` + topics[i%3] + `"}}`).Append(nil))
					_, _ = c.Read(make([]byte, 200))
				case 2: // does not read
					_, _ = c.Read(make([]byte, 200))
				}
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		})
	}
	reached, dropped := 0, 0
	for i := 0; reached < size(10_000) || dropped == 0; i++ {
		m := Message{Data: fmt.Appendf(nil, "%-2000d", i), Wait: WaitSent}
		var r Receipt
		var err error
		if i%10 == 0 {
			r, err = srv.Broadcast(t.Context(), m)
		} else {
			r, err = srv.Publish(t.Context(), topics[i%3], m)
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.Subscribers != r.Written+r.Queued+r.Dropped {
			t.Fatalf("publish %d: %+v does not add up", i, r)
		}
		if r.Subscribers > 0 {
			reached++
		}
		dropped += r.Dropped
	}
}

// A broadcast keeps its rate also if that is less than one delivery a shard.
func TestRateBelowTheNumberOfShards(t *testing.T) {
	s := newSim(t, 1, Config{Shards: 8})
	var peers []*peer
	for range 32 {
		peers = append(peers, s.dial("/ws"))
	}
	const rate = 2
	if _, err := s.srv.Broadcast(t.Context(), Message{Data: []byte("1"), Rate: rate}); err != nil {
		t.Fatal(err)
	}
	for start, came := s.Time, 0; came < len(peers); s.Time += engine.TickEvery {
		s.run()
		came = 0
		for _, p := range peers {
			if len(p.Out) > 0 {
				came++
			}
		}
		if want := min(len(peers), int((s.Time-start)*rate/time.Second)+1); came != want {
			t.Fatalf("after %s of a broadcast at %d a second %d have it, want %d", s.Time-start, rate, came, want)
		}
	}
	s.check()
}
