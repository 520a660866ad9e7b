//go:build linux

package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// keptBus is a bus with a history for a simulation: its deliveries come late, and
// so the history has messages that the server knows nothing of yet.
type keptBus struct {
	s      *sim
	sink   Sink
	topics map[string]*keptTopic
	owed   []func() // calls of the sink that are to come
	epochs int

	steady bool   // nothing is dropped or lost on its way
	asked  func() // called by After
	liar   bool   // what After returns is nonsense now and then
	broken bool   // After fails now and then
	calls  int    // of After
}

// keptTopic is what a keptBus has of a topic.
type keptTopic struct {
	at      Position
	kept    []Stored
	dropped map[Position]bool // what was never kept, or is not any more
	began   int               // which numbering it is
	told    int               // and the one that Ready has told
}

func newSimBus() *keptBus { return &keptBus{topics: map[string]*keptTopic{}} }

func (b *keptBus) Start(sink Sink) error { b.sink = sink; return nil }

func (b *keptBus) topic(name string) *keptTopic {
	if b.topics[name] == nil {
		b.topics[name] = &keptTopic{at: Position{Epoch: b.epoch()}, dropped: map[Position]bool{}}
	}
	return b.topics[name]
}

func (b *keptBus) epoch() string { b.epochs++; return "e" + strconv.Itoa(b.epochs) }

func (b *keptBus) Publish(_ context.Context, p Publication) (Position, error) {
	t := b.topic(p.Topic)
	t.at.Seq++
	at, began := t.at, t.began
	p.Message.Data = fmt.Appendf(nil, `"%s %d %s"`, at.Epoch, at.Seq, strings.Repeat("x", len(p.Message.Data)))
	if !b.steady && b.s.Rng.IntN(30) == 0 {
		t.dropped[at] = true
	} else {
		t.kept = append(t.kept, Stored{p.Message, at})
	}
	lost := !b.steady && b.s.Rng.IntN(40) == 0
	b.owed = append(b.owed, func() {
		switch {
		case began < t.told: // the numbering has ended, as Ready has said
		case lost:
			b.sink.Gap(p.Topic, at)
		default:
			b.sink.Deliver(p, at)
		}
	})
	return at, nil
}

func (b *keptBus) Subscribe(topic string) {
	b.owed = append(b.owed, func() {
		t := b.topic(topic)
		t.told = t.began
		b.sink.Ready(topic, t.at, nil)
	})
}

func (b *keptBus) Unsubscribe(string) {}
func (b *keptBus) Close() error       { return nil }

// pay makes up to n of the calls that are to come.
func (b *keptBus) pay(n int) {
	for ; n > 0 && len(b.owed) > 0; n-- {
		call := b.owed[0]
		b.owed = b.owed[1:]
		call()
	}
}

// trim has the history lose the n oldest messages of a topic.
func (b *keptBus) trim(topic string, n int) {
	t := b.topic(topic)
	n = min(n, len(t.kept))
	for _, m := range t.kept[:n] {
		t.dropped[m.At] = true
	}
	t.kept = t.kept[n:]
}

// renumber begins the numbering of a topic anew.
func (b *keptBus) renumber(topic string) {
	t := b.topic(topic)
	t.at, t.began = Position{Epoch: b.epoch()}, t.began+1
}

func (b *keptBus) After(ctx context.Context, topic string, behind Position, most int) ([]Stored, error) {
	if _, ok := ctx.Deadline(); !ok {
		b.s.t.Error("a read without an end")
	}
	b.calls++
	if b.asked != nil {
		defer b.asked()
	}
	if b.broken {
		switch b.s.Rng.IntN(30) {
		case 0:
			return nil, errors.New("the disk is slow")
		case 1:
			panic("a history that panics")
		}
	}
	var page []Stored
	size := 0
	for _, m := range b.topic(topic).kept {
		if m.At.Epoch != behind.Epoch || m.At.Seq <= behind.Seq {
			continue
		}
		if size += len(m.Message.Data); size > most && len(page) > 0 {
			break
		}
		page = append(page, m)
	}
	if b.liar {
		page = b.lie(topic, page)
	}
	return page, nil
}

// lie makes a page wrong in one of many ways.
func (b *keptBus) lie(topic string, page []Stored) []Stored {
	rng, kept := b.s.Rng, b.topic(topic).kept
	page = slices.Clone(page)
	switch rng.IntN(6) {
	case 0:
		return nil
	case 1:
		rng.Shuffle(len(page), func(i, j int) { page[i], page[j] = page[j], page[i] })
	case 2:
		page = append(page, page...)
		rng.Shuffle(len(page), func(i, j int) { page[i], page[j] = page[j], page[i] })
	case 3:
		return slices.Clone(kept) // far too much, and what was not asked for
	case 4:
		for i := range page {
			if rng.IntN(3) == 0 {
				page[i].At.Seq = []uint64{0, math.MaxUint64, page[i].At.Seq + 1000}[rng.IntN(3)]
			}
		}
	}
	return page
}

// resumer is a client that knows where it is.
type resumer struct {
	*peer
	b       *keptBus
	asked   map[uint64]resumed // commands without an answer
	nextID  uint64
	at      map[string]wire.Position // what it has of each topic, also when it comes back
	on      map[string]bool
	gap     *wire.Gap // that must come next
	over    bool
	strict  bool // what is told as lost is looked at
	fails   bool // the history may
	replays int
}

// resumed is a command that was sent.
type resumed struct {
	verb, topic string
	after       *wire.Position
}

func (c *resumer) talks() bool { return !c.Gone && !c.EOF && !c.over }

func (c *resumer) command(cmd resumed) {
	c.nextID++
	c.asked[c.nextID] = cmd
	more := ""
	if cmd.after != nil {
		more = fmt.Sprintf(`,"after":%d,"epoch":%q`, cmd.after.Seq, cmd.after.Epoch)
	}
	c.send(wstest.Text(fmt.Sprintf(`{"id":%d,%q:{"topic":%q%s}}`, c.nextID, cmd.verb, cmd.topic, more)))
}

// read takes what has come and fails the test if it should not have.
func (c *resumer) read() {
	c.s.t.Helper()
	for _, f := range c.frames() {
		switch f.Op {
		case ws.OpPing:
			if c.talks() {
				c.send(wstest.Pong(string(f.Payload)))
			}
		case ws.OpClose:
			if code := f.CloseCode(); code != wire.CloseSlow && !c.fails {
				c.s.t.Fatalf("closed: %v", f)
			}
			c.over = true
			if !c.Gone && !c.EOF {
				c.send(f)
			}
		case ws.OpText:
			e, err := tocsin.ParseEvent(f.Payload)
			if err != nil {
				c.s.t.Fatalf("%v in %v", err, f)
			}
			c.event(e, f)
		}
	}
}

func (c *resumer) event(e wire.Event, f wstest.Frame) {
	t := c.s.t
	if want := c.gap; want != nil {
		if c.gap = nil; e.Gap == nil || e.Gap.Topic != want.Topic || e.Gap.Epoch != want.Epoch || e.Gap.To != want.To || e.Gap.From != want.From {
			t.Fatalf("%v, want %+v", f, *want)
		}
		c.lost(*e.Gap)
		return
	}
	switch {
	case e.ID != 0:
		c.answer(e, f)
	case e.OK != nil:
		c.at[e.OK.Topic], c.on[e.OK.Topic] = wire.Position{Seq: e.OK.Seq, Epoch: e.OK.Epoch}, true
	case e.Cancel != nil:
		c.on[e.Cancel.Topic] = false
	case e.Message != nil && e.Message.Topic == wire.AllTopic:
	case e.Message != nil:
		m, at := e.Message, c.at[e.Message.Topic]
		var epoch string
		var seq uint64
		if _, err := fmt.Sscanf(string(m.Data), `"%s %d`, &epoch, &seq); err != nil || c.strict && seq != m.Seq || epoch != at.Epoch || m.Seq != at.Seq+1 || !c.on[m.Topic] {
			t.Fatalf("%v behind %+v (subscribed: %v)", f, at, c.on[m.Topic])
		}
		c.at[m.Topic] = wire.Position{Seq: m.Seq, Epoch: epoch}
	case e.Gap != nil:
		g, at := *e.Gap, c.at[e.Gap.Topic]
		renumbered := g.Reason == "epoch" && g.Epoch != at.Epoch && g.From == 1
		if !c.on[g.Topic] || !renumbered && (g.Epoch != at.Epoch || g.From != at.Seq+1 || g.To < g.From) {
			t.Fatalf("%+v behind %+v (subscribed: %v)", g, at, c.on[g.Topic])
		}
		c.at[g.Topic] = wire.Position{Seq: g.To, Epoch: g.Epoch}
		c.lost(g)
	default:
		t.Fatalf("got %v", f)
	}
}

// lost wants what is told as not kept to be that.
func (c *resumer) lost(g wire.Gap) {
	if g.Reason != "retention" || !c.strict {
		return
	}
	for seq := g.From; seq <= g.To; seq++ {
		if !c.b.topic(g.Topic).dropped[Position{seq, g.Epoch}] {
			c.s.t.Fatalf("%+v, but %d is kept", g, seq)
		}
	}
}

func (c *resumer) answer(e wire.Event, f wstest.Frame) {
	t := c.s.t
	cmd, ok := c.asked[e.ID]
	if delete(c.asked, e.ID); !ok {
		t.Fatalf("an answer to nothing: %v", f)
	}
	switch {
	case e.Error != nil:
		if cmd.verb == "ping" || e.Error.Code == wire.Internal && *e.Error != tooLate && !c.fails {
			t.Fatalf("%v", f)
		}
	case cmd.verb == "unsubscribe":
		c.on[cmd.topic] = false
	case cmd.verb == "subscribe":
		at := wire.Position{Seq: e.OK.Seq, Epoch: e.OK.Epoch}
		c.at[cmd.topic], c.on[cmd.topic] = at, true
		switch recovered := e.OK.Recovered; {
		case (recovered == nil) != (cmd.after == nil) || cmd.after != nil && *recovered != (at == *cmd.after):
			t.Fatalf("%v to %+v", f, cmd)
		case cmd.after != nil && at != *cmd.after:
			c.gap = &wire.Gap{Topic: cmd.topic, Epoch: at.Epoch, From: cmd.after.Seq + 1, To: at.Seq}
			if at.Epoch != cmd.after.Epoch || cmd.after.Seq > at.Seq {
				c.gap.From = 1
			}
		case cmd.after != nil:
			c.replays++
		}
	}
}

// keptSim is a simulation of clients that come back to a bus with a history.
type keptSim struct {
	*sim
	bus     *keptBus
	clients []*resumer
	replays int
	sent    []*message // that must be delivered in the end
}

// begin is a publish of which only the last check wants to know.
func (h *keptSim) begin(a *address, m *Message) {
	sent, err := h.srv.begin(h.t.Context(), a, m, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.sent = append(h.sent, sent.out)
}

var historyTopics = []string{"all/0", "all/1", "old/0"}

// dial connects, as one who knows where an earlier connection was.
func (h *keptSim) dial(i int) {
	c := &resumer{peer: h.sim.dial("/ws?user=" + strconv.Itoa(i%3)), b: h.bus, asked: map[uint64]resumed{}, at: map[string]wire.Position{}, on: map[string]bool{}, strict: !h.bus.liar, fails: h.bus.broken}
	old := h.clients[i]
	h.clients[i] = c
	if old == nil {
		return
	}
	h.replays += old.replays
	for _, topic := range historyTopics {
		if at, ok := old.at[topic]; ok {
			c.command(resumed{"subscribe", topic, &at})
		}
	}
}

// position is one that a client may say it is at.
func (h *keptSim) position(c *resumer, topic string) *wire.Position {
	at := c.at[topic]
	top := wire.Position(h.bus.topic(topic).at)
	switch h.Rng.IntN(8) {
	case 0:
		return nil
	case 1:
		at = wire.Position{Epoch: top.Epoch}
	case 2:
		at = wire.Position{Seq: top.Seq + uint64(h.Rng.IntN(3)), Epoch: top.Epoch}
	case 3:
		at = wire.Position{Seq: at.Seq, Epoch: "e" + strconv.Itoa(1+h.Rng.IntN(h.bus.epochs+1))}
	case 4, 5:
		at.Seq -= min(at.Seq, uint64(h.Rng.IntN(30)))
	}
	return &at
}

func (h *keptSim) step() {
	s, rng := h.sim, h.Rng
	topic := historyTopics[rng.IntN(len(historyTopics))]
	i := rng.IntN(len(h.clients))
	c := h.clients[i]
	switch k := rng.IntN(100); {
	case k < 30:
		for range 1 + rng.IntN(4) {
			m := &Message{Data: []byte(`"` + strings.Repeat("x", rng.IntN(400)) + `"`)}
			if rng.IntN(4) == 0 {
				m.TTL = time.Duration(1 + rng.IntN(int(time.Second)))
			}
			h.begin(&address{verb: verbPublish, topic: topic}, m)
		}
	case k < 45:
		h.bus.pay(rng.IntN(10))
	case k < 55 && c.talks():
		c.command(resumed{"subscribe", topic, h.position(c, topic)})
	case k < 58 && c.talks():
		c.command(resumed{verb: "unsubscribe", topic: topic})
	case k < 60 && c.talks():
		c.command(resumed{verb: "ping"})
	case k < 63:
		s.srv.engine.Ask(c.Ref, &enrollment{srv: s.srv, topic: topic, off: rng.IntN(3) > 0, told: make(told, 1)})
	case k < 64:
		h.bus.trim(topic, rng.IntN(20))
	case k < 65 && rng.IntN(5) == 0:
		h.bus.renumber(topic)
	case k < 66:
		h.begin(&address{verb: verbBroadcast}, &Message{Data: []byte("1")})
	case k < 72 && !c.Gone:
		c.drain(rng.IntN(1500))
	case k < 80 && !c.Gone:
		c.drain(-1)
	case k < 81 && !c.Gone && !c.EOF:
		c.hangUp()
	case k < 82 && !c.Gone:
		c.Reset()
	case k < 84:
		s.CallRoom = rng.IntN(3)
	case k < 92:
		s.RunCall()
	case k < 93:
		s.sweep(time.Duration(rng.IntN(int(time.Second))))
		s.srv.hub.tick(s.Time)
	default:
		s.turn(rng.IntN(len(s.srv.shards)))
	}
}

// look wants what those who catch up take to be bounded.
func (h *keptSim) look() {
	h.check()
	most := h.srv.hub.page()
	for i := range h.srv.hub.busSides {
		for topic, tl := range h.srv.hub.busSides[i].tails {
			size := 0
			for _, p := range tl.parcels {
				size += p.Size()
			}
			if tl.readers < 1 || size != tl.size || size > most {
				h.t.Fatalf("the tail of %s has %d readers, %d bytes that are %d, the limit is %d", topic.flow.Name, tl.readers, tl.size, size, most)
			}
		}
	}
	for _, c := range h.clients {
		if c.Gone || !h.isOpen(c.peer) {
			continue
		}
		s := h.session(c.peer)
		if s.topics() > h.srv.cfg.MaxTopics {
			h.t.Fatalf("%d topics", s.topics())
		}
		for i := 0; s.more != nil && i < len(s.more.catching); i++ {
			if k := s.more.catching[i]; i > 0 && (k.reading != nil || k.sub != nil || k.tailed) {
				h.t.Fatalf("%s is read before its turn", k.topic.flow.Name)
			} else if r := k.reading; r != nil && r.done && r.size > most+700 {
				h.t.Fatalf("a page has %d bytes, the limit is %d", r.size, most)
			}
		}
	}
}

// TestHistorySim is TestSim for clients that come back to a bus with a history:
// what they are given and what they are told as lost is, without a hole and
// nothing twice, all that was published behind where they said they were.
func TestHistorySim(t *testing.T) {
	replays, calls := 0, 0
	for seed := range uint64(size(3000)) {
		if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			h := simulateHistory(t, seed)
			replays, calls = replays+h.replays, calls+h.bus.calls
		}) {
			return
		}
	}
	if replays < 100 || calls < 1000 {
		t.Errorf("%d recovered, %d reads: this simulates nothing", replays, calls)
	}
}

func simulateHistory(t *testing.T, seed uint64) *keptSim {
	bus := newSimBus()
	bus.liar, bus.broken = seed%4 == 3, seed%2 == 0
	cfg := Config{
		Shards: 3, MaxOutbox: 3000, MaxControl: 100, Overflow: []OverflowRule{{"old/", DropOldest}, {"new/", Latest}},
		Bus: bus, MaxTopics: 2 + int(seed%5)/4, TopicLinger: time.Duration(seed%3)*time.Second - 1,
		PingInterval: 5 * time.Second, PongTimeout: 2 * time.Second, WriteTimeout: 6 * time.Second, CloseTimeout: 2 * time.Second,
	}
	h := &keptSim{sim: newSim(t, seed, cfg), bus: bus, clients: make([]*resumer, 5)}
	bus.s = h.sim
	h.hold = true
	if seed%2 == 0 {
		h.Chance.Cut = 1
	}
	for i := range h.clients {
		h.dial(i)
	}
	for step := range 500 {
		h.step()
		for i, c := range h.clients {
			if c.read(); c.Gone && h.Rng.IntN(10) == 0 {
				h.dial(i)
			}
		}
		if step%5 == 0 {
			h.look()
		}
	}
	h.settle()
	for _, c := range h.clients {
		if !c.Gone && !c.EOF {
			c.hangUp()
		}
		h.replays += c.replays
	}
	for range 20 {
		h.RunCalls()
		h.run()
	}
	h.look()
	for _, m := range h.sent {
		if !m.Done() {
			t.Errorf("message %d of %v is still on its way", m.Seq, m.Flow)
		}
	}
	st := h.srv.Stats()
	if st.Connections+st.Users+st.Topics+st.Subscriptions != 0 || st.PublishBytes != 0 {
		t.Errorf("left behind: %+v", st)
	}
	for i := range h.srv.hub.busSides {
		if n := len(h.srv.hub.busSides[i].tails); n > 0 {
			t.Errorf("%d tails are left", n)
		}
	}
	return h
}

// settle has everybody read again and all of the bus work: who is open then has
// everything.
func (h *keptSim) settle() {
	h.CallRoom, h.bus.broken, h.bus.liar = -1, false, false
	for range 200 {
		h.bus.pay(100)
		for _, c := range h.clients {
			if !c.Gone {
				c.drain(-1)
			}
			c.read()
		}
		h.RunCalls()
		h.run()
	}
	for i, c := range h.clients {
		if c.Gone || c.over || c.EOF {
			continue
		}
		if len(c.asked) > 0 {
			h.t.Errorf("client %d has no answer to %v", i, c.asked)
		}
		s := h.session(c.peer)
		if k := s.first(); k != nil {
			h.t.Errorf("client %d still catches up with %s: %+v", i, k.topic.flow.Name, k)
		}
		for sub := range s.each {
			if name := sub.topic.flow.Name; Position(c.at[name]) != h.bus.topic(name).at && h.bus.topic(name).at.Seq > 0 {
				h.t.Errorf("client %d is at %+v of %s, which is at %+v", i, c.at[name], name, h.bus.topic(name).at)
			}
		}
	}
}
