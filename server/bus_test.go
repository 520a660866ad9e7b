package server_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/client"
	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// buses is every bus that there is. Each is held against every rule.
var buses = map[string]func(testing.TB) server.Bus{
	"local": func(testing.TB) server.Bus { return nil },
	"late":  func(t testing.TB) server.Bus { return newLateBus(t) },
	"refuses first": func(t testing.TB) server.Bus {
		b := newLateBus(t)
		b.refusals = 1
		return b
	},
	"lost and found": func(t testing.TB) server.Bus {
		b := newLateBus(t)
		b.wobbles = true
		return b
	},
	"history": func(t testing.TB) server.Bus { return newHistoryBus(t) },
}

// busRules are what clients and publishers see, whatever the bus.
var busRules = map[string]func(*testing.T, server.Bus){
	"receipts":              ruleReceipts,
	"concurrent publishers": ruleConcurrentPublishers,
	"join while publishing": ruleJoin,
	"come and go":           ruleComeAndGo,
	"come back":             ruleComeBack,
	"keys":                  ruleKeys,
	"batch":                 ruleBatch,
	"clients publish":       ruleClientsPublish,
}

// One table, one behaviour for every bus (docs/faults.md X14).
func TestBus(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(buses)) {
		for _, rule := range slices.Sorted(maps.Keys(busRules)) {
			t.Run(name+"/"+rule, func(t *testing.T) {
				t.Parallel()
				busRules[rule](t, buses[name](t))
			})
		}
	}
}

// arrive opens a connection as a client does that is told to come back.
func arrive(t *testing.T, addr, path string) (*wstest.Conn, wire.Welcome) {
	t.Helper()
	for range 10 {
		c := wstest.Open(t, addr)
		c.SendRaw([]byte(wstest.Request("tocsin.test", path, wstest.NewKey())))
		switch res := c.Response(http.MethodGet); {
		case res.StatusCode == http.StatusSwitchingProtocols:
			return c, c.WantWelcome()
		case res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "":
			t.Fatalf("%s: %v", path, res)
		}
		c.Drop()
	}
	t.Fatal("refused again and again")
	return nil, wire.Welcome{}
}

// subscribe subscribes a connection to which nothing else comes, and tries again
// when it is refused.
func subscribe(t *testing.T, c *wstest.Conn, topic, more string) wire.OK {
	t.Helper()
	for range 10 {
		e := command(t, c, fmt.Sprintf(`{"id":1,"subscribe":{"topic":%q%s}}`, topic, more))
		if e.OK != nil {
			return *e.OK
		}
		wantError(t, e, wire.Internal)
	}
	t.Fatal("refused again and again")
	return wire.OK{}
}

// wantNoneOnTheirWay waits until the publish budget is free.
func wantNoneOnTheirWay(t *testing.T, srv *server.Server) {
	t.Helper()
	server.Eventually(t, "no bytes on their way", func() bool { return srv.Stats().PublishBytes == 0 })
}

// A receipt is that of the very message, and says who got it here.
func ruleReceipts(t *testing.T, bus server.Bus) {
	srv, addr := serve(t, server.Config{Bus: bus, PublishBudget: 100_000, MaxOutbox: 1 << 20})
	c, w := arrive(t, addr, "/ws?topics=t")
	at := w.Topics["t"]
	const n = 500 // many more than the budget holds, one after the other
	for i := range n {
		m := server.Message{Data: fmt.Append(nil, i), Wait: server.Wait(i % 3)}
		r, err := srv.Publish(t.Context(), "t", m)
		at.Seq++
		if err != nil || r.Seq != at.Seq || r.Epoch != at.Epoch || r.Subscribers != 1 || i%3 > 0 && r.Written+r.Queued != 1 {
			t.Fatalf("%+v, %v, behind %+v", r, err, at)
		}
		if got := wantMessage(t, c, "t", fmt.Sprint(i)); got.Seq != r.Seq || got.ID != r.ID {
			t.Fatalf("%+v of %+v", got, r)
		}
	}
	wantNoneOnTheirWay(t, srv)
	d, _ := arrive(t, addr, "/ws")
	if ok := subscribe(t, d, "t", fmt.Sprintf(`,"after":%d,"epoch":%q`, at.Seq, at.Epoch)); ok.Seq != at.Seq || ok.Recovered == nil || !*ok.Recovered {
		t.Errorf("%+v", ok)
	}
	d.WantNothing()
	for i := range n { // a topic without a subscriber here
		r, err := srv.Publish(t.Context(), "elsewhere", server.Message{Data: []byte("1"), Wait: server.Wait(i % 3)})
		if err != nil || r.Subscribers+r.Written+r.Queued+r.Dropped != 0 {
			t.Fatal(r, err)
		}
	}
	wantNoneOnTheirWay(t, srv)
	c.WantNothing()
}

// No receipt is lost when many publish at once, nor any message.
func ruleConcurrentPublishers(t *testing.T, bus server.Bus) {
	srv, addr := serve(t, server.Config{Bus: bus, MaxOutbox: 8 << 20})
	topics := []string{"a", "b", "c"}
	c, w := arrive(t, addr, "/ws?topics=a,b,c")
	const publishers, each = 8, 150
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				r, err := srv.Publish(t.Context(), topics[(p+i)%3], server.Message{Data: fmt.Append(nil, i), Wait: server.WaitSent})
				if err != nil || r.Subscribers != 1 || r.Written+r.Queued != 1 {
					t.Errorf("%+v, %v", r, err)
				}
			}
		})
	}
	for range publishers * each {
		m := c.Event().Message
		at := w.Topics[m.Topic]
		if at.Seq++; m.Seq != at.Seq {
			t.Fatalf("%+v, want seq %d", m, at.Seq)
		}
		w.Topics[m.Topic] = at
	}
	wg.Wait()
	wantNoneOnTheirWay(t, srv)
	c.WantNothing()
}

// A subscriber is given all that comes behind the position that it is told.
func ruleJoin(t *testing.T, bus server.Bus) {
	srv, addr := serve(t, server.Config{Bus: bus, MaxOutbox: 8 << 20})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() {
		stop()
		wg.Wait()
		wantNoneOnTheirWay(t, srv)
	}()
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := srv.Publish(ctx, "t", server.Message{Data: []byte("1"), Wait: server.WaitSent}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 30 {
		var c *wstest.Conn
		var at wire.Position
		if i%2 == 0 {
			var w wire.Welcome
			c, w = arrive(t, addr, "/ws?topics=t")
			at = w.Topics["t"]
		} else {
			c, _ = arrive(t, addr, "/ws")
			ok := subscribe(t, c, "t", "")
			at = wire.Position{Seq: ok.Seq, Epoch: ok.Epoch}
		}
		for range 20 {
			if m := c.Event().Message; m == nil || m.Seq != at.Seq+1 {
				t.Fatalf("%+v behind %+v", m, at)
			}
			at.Seq++
		}
		c.Drop()
	}
}

// Clients that come, subscribe, unsubscribe and go at any moment leave nothing
// behind: serve looks. What the bus is asked alternates: the buses look.
func ruleComeAndGo(t *testing.T, bus server.Bus) {
	srv, addr := serve(t, server.Config{Bus: bus, TopicLinger: -1})
	rng := rand.New(rand.NewPCG(1, 2))
	var conns []*wstest.Conn
	for i := range 300 {
		topic := fmt.Sprint("t", rng.IntN(4))
		if len(conns) < 5 {
			c := wstest.Open(t, addr)
			c.SendRaw([]byte(wstest.Request("tocsin.test", "/ws?topics="+topic, wstest.NewKey())))
			conns = append(conns, c)
		}
		at := rng.IntN(len(conns))
		switch rng.IntN(4) {
		case 0:
			conns[at].Drop()
			conns = slices.Delete(conns, at, at+1)
		case 1:
			_, _ = conns[at].Write(wstest.Encode(wstest.Text(fmt.Sprintf(`{"id":%d,"unsubscribe":{"topic":%q}}`, i, topic))))
		default:
			_, _ = conns[at].Write(wstest.Encode(wstest.Text(fmt.Sprintf(`{"id":%d,"subscribe":{"topic":%q}}`, i, topic))))
		}
		publish(t, srv, topic, "1")
	}
	for _, c := range conns {
		c.Drop()
	}
	last, _ := arrive(t, addr, "/ws") // those before it were accepted by now
	last.Drop()
	server.Eventually(t, "nothing is left", func() bool {
		st := srv.Stats()
		return st.Connections+st.Handshaking+st.Topics+st.Subscriptions == 0
	})
	for i := range 4 {
		topic := fmt.Sprint("t", i)
		c, w := arrive(t, addr, "/ws?topics="+topic)
		if r := publish(t, srv, topic, "2"); r.Subscribers != 1 || r.Epoch != w.Topics[topic].Epoch {
			t.Errorf("%+v behind %+v", r, w.Topics)
		}
		wantMessage(t, c, topic, "2")
	}
}

// A client that comes back is given what it missed, or told that, and then what
// comes: all of it once. A bus that keeps everything has nothing to tell.
func ruleComeBack(t *testing.T, bus server.Bus) {
	srv, addr := serve(t, server.Config{Bus: bus, MaxOutbox: 8 << 20})
	keep, w := arrive(t, addr, "/ws?topics=t")
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { // whoever does not read is cut
		for !ended.Load() {
			keep.Event()
		}
	})
	for range 2 {
		wg.Go(func() {
			for !ended.Load() {
				publish(t, srv, "t", "1")
			}
		})
	}
	defer wg.Wait()
	defer ended.Store(true)
	_, keeps := bus.(server.History)
	at := w.Topics["t"]
	for range 30 {
		c, _ := arrive(t, addr, "/ws")
		ok := subscribe(t, c, "t", fmt.Sprintf(`,"after":%d,"epoch":%q`, at.Seq, at.Epoch))
		if keeps && !*ok.Recovered || *ok.Recovered != (ok.Seq == at.Seq) {
			t.Fatalf("%+v behind %+v", ok, at)
		}
		for read := 0; read < 20; {
			switch e := c.Event(); {
			case e.Message != nil && e.Message.Seq == at.Seq+1:
				at.Seq++
				read++
			case e.Gap != nil && !keeps && e.Gap.From == at.Seq+1 && e.Gap.Epoch == at.Epoch && e.Gap.To >= e.Gap.From:
				at.Seq = e.Gap.To
			default:
				t.Fatalf("%+v behind %+v", e, at)
			}
		}
		c.Drop()
	}
}

// A key delivers once, and everybody has the receipt of that delivery.
func ruleKeys(t *testing.T, bus server.Bus) {
	srv, addr := serve(t, server.Config{Bus: bus})
	c, _ := arrive(t, addr, "/ws?topics=t")
	var first server.Receipt
	var mu sync.Mutex
	var wg sync.WaitGroup
	firsts := 0
	for range 8 {
		wg.Go(func() {
			r, err := srv.Publish(t.Context(), "t", server.Message{Data: []byte("1"), IdempotencyKey: "k", Wait: server.WaitSent})
			mu.Lock()
			defer mu.Unlock()
			if !r.Duplicate {
				firsts++
			}
			r.Duplicate = false
			if first.ID == "" {
				first = r
			}
			if err != nil || r.Subscribers != 1 || fmt.Sprint(r) != fmt.Sprint(first) {
				t.Errorf("%+v and %+v, %v", r, first, err)
			}
		})
	}
	wg.Wait()
	if firsts != 1 {
		t.Errorf("%d were the first", firsts)
	}
	wantMessage(t, c, "t", "1")
	c.WantNothing()
}

// A batch keeps its order and has a receipt for each.
func ruleBatch(t *testing.T, bus server.Bus) {
	srv, addr := serve(t, server.Config{Bus: bus, PublishBudget: 20_000, MaxOutbox: 1 << 20})
	c, w := arrive(t, addr, "/ws?topics=a,b")
	var items []server.BatchItem
	for i := range 200 {
		items = append(items, server.BatchItem{
			Topic:   []string{"a", "b", "nobody"}[i%3],
			Message: server.Message{Data: fmt.Append(nil, i), Wait: server.Wait(i % 2)},
		})
	}
	for i, r := range srv.Batch(t.Context(), items) {
		want, at := 1, w.Topics[items[i].Topic]
		if at.Seq++; i%3 == 2 {
			want = 0
		}
		if r.Err != nil || r.Receipt.Subscribers != want || want > 0 && r.Receipt.Seq != at.Seq {
			t.Fatalf("item %d: %+v", i, r)
		}
		w.Topics[items[i].Topic] = at
	}
	last := map[string]int{"a": -3, "b": -2}
	for range 134 {
		m := c.Event().Message
		last[m.Topic] += 3
		if string(m.Data) != fmt.Sprint(last[m.Topic]) {
			t.Fatalf("%+v, want %d", m, last[m.Topic])
		}
	}
	wantNoneOnTheirWay(t, srv)
	c.WantNothing()
}

// A client's publish is answered with the place of its message.
func ruleClientsPublish(t *testing.T, bus server.Bus) {
	_, addr := serve(t, server.Config{Bus: bus})
	c, w := arrive(t, addr, "/ws?topics=t")
	p, _ := arrive(t, addr, "/ws")
	for i := range 20 {
		e := command(t, p, fmt.Sprintf(`{"id":1,"publish":{"topic":"t","data":%d}}`, i))
		if e.OK == nil || e.OK.Epoch != w.Topics["t"].Epoch {
			t.Fatalf("%+v", e)
		}
		if m := wantMessage(t, c, "t", fmt.Sprint(i)); m.Seq != e.OK.Seq || m.ID != e.OK.MessageID {
			t.Fatalf("%+v of %+v", m, e.OK)
		}
	}
	c.WantNothing()
	p.WantNothing()
}

// lateBus is a bus as one between nodes is: it numbers by itself, answers later
// and from other goroutines, hands back the very Publication, now and then
// twice, and may lose its connection. It holds the server against what it was
// promised.
type lateBus struct {
	t    testing.TB
	sink server.Sink
	wg   sync.WaitGroup

	mu       sync.Mutex
	rng      *rand.Rand
	at       map[string]server.Position // of all nodes' messages
	topics   map[string]*lateTopic      // all that were ever asked for
	refusals int                        // how often each topic is refused at first
	wobbles  bool                       // the connection is lost now and then, for a moment
	down     error                      // why there is no connection
	mute     bool                       // Origin is lost
	keep     func(server.Publication, server.Position)
	closed   bool
}

// lateTopic does its work in a goroutine, which lasts while there is some.
type lateTopic struct {
	asked, given bool
	refused      int
	work         []func()
	working      bool
}

func newLateBus(t testing.TB) *lateBus {
	return &lateBus{t: t, rng: rand.New(rand.NewPCG(14, 41)), at: map[string]server.Position{}, topics: map[string]*lateTopic{}}
}

func (b *lateBus) Start(sink server.Sink) error { b.sink = sink; return nil }

// pause lets others go first, now and then for long.
func (b *lateBus) pause() {
	b.mu.Lock()
	n := b.rng.IntN(8)
	if b.rng.IntN(64) == 0 {
		n = 500
	}
	b.mu.Unlock()
	for range n {
		runtime.Gosched()
	}
}

// laterLocked has do done behind what the topic has to do.
func (b *lateBus) laterLocked(lt *lateTopic, do func()) {
	lt.work = append(lt.work, do)
	if lt.working {
		return
	}
	lt.working = true
	b.wg.Go(func() {
		for {
			b.pause()
			b.mu.Lock()
			if len(lt.work) == 0 || b.closed {
				lt.working = false
				b.mu.Unlock()
				return
			}
			do := lt.work[0]
			lt.work = lt.work[1:]
			b.mu.Unlock()
			do()
		}
	})
}

func (b *lateBus) Publish(ctx context.Context, p server.Publication) (server.Position, error) {
	b.pause()
	defer b.pause()
	if b.wobbles {
		b.wobble()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := cmpErr(ctx.Err(), b.down); err != nil {
		return server.Position{}, err
	}
	if b.mute {
		p.Origin = server.Origin{}
	}
	return b.publishLocked(p), nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (b *lateBus) publishLocked(p server.Publication) server.Position {
	at := b.positionLocked(p.Topic)
	at.Seq++
	b.at[p.Topic] = at
	if b.keep != nil {
		b.keep(p, at)
	}
	lt := b.topics[p.Topic]
	if lt == nil || !lt.given || b.down != nil {
		return at
	}
	b.laterLocked(lt, func() { b.sink.Deliver(p, at) })
	if b.rng.IntN(10) == 0 {
		b.laterLocked(lt, func() { b.sink.Deliver(p, at) })
	}
	return at
}

func (b *lateBus) positionLocked(topic string) server.Position {
	at, ok := b.at[topic]
	if !ok {
		at = server.Position{Seq: uint64(b.rng.IntN(100)), Epoch: "late"}
		b.at[topic] = at
	}
	return at
}

// historyBus is a lateBus that keeps what is published.
type historyBus struct {
	*lateBus
	kept map[string][]server.Stored
	read chan struct{} // if it is not nil, reads say that they begin, and block
}

func newHistoryBus(t testing.TB) *historyBus {
	b := &historyBus{lateBus: newLateBus(t), kept: map[string][]server.Stored{}}
	b.keep = func(p server.Publication, at server.Position) {
		b.kept[p.Topic] = append(b.kept[p.Topic], server.Stored{Message: p.Message, At: at})
	}
	return b
}

func (b *historyBus) After(ctx context.Context, topic string, behind server.Position, most int) ([]server.Stored, error) {
	if b.read != nil {
		b.read <- struct{}{}
		<-ctx.Done()
		b.read <- struct{}{}
		return nil, ctx.Err()
	}
	b.pause()
	b.mu.Lock()
	defer b.mu.Unlock()
	var page []server.Stored
	for _, m := range b.kept[topic] {
		if m.At.Epoch != behind.Epoch || m.At.Seq <= behind.Seq {
			continue
		}
		if most -= len(m.Message.Data) + 100; most < 0 && len(page) > 0 {
			break
		}
		page = append(page, m)
	}
	return page, nil
}

// elsewhere is a publish of another node.
func (b *lateBus) elsewhere(topic, data string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.publishLocked(server.Publication{Topic: topic, Message: server.Message{Data: []byte(data), ID: data}, Origin: server.Origin{Node: 1, Number: 1}})
}

func (b *lateBus) Subscribe(topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lt := b.topics[topic]
	if lt == nil {
		lt = &lateTopic{}
		b.topics[topic] = lt
	}
	if lt.asked || b.closed {
		b.t.Errorf("Subscribe of %q twice, or after Close", topic)
	}
	lt.asked = true
	b.laterLocked(lt, func() { b.answer(topic, lt) })
}

// answer is what becomes of a Subscribe. That may have been ended meanwhile, and
// begun again; then there are two of these.
func (b *lateBus) answer(topic string, lt *lateTopic) {
	b.mu.Lock()
	if !lt.asked || lt.given || b.down != nil { // heal will answer
		b.mu.Unlock()
		return
	}
	err := error(nil)
	if lt.refused < b.refusals {
		lt.refused++
		err = errors.New("no route")
	}
	lt.given = err == nil
	at := b.positionLocked(topic)
	b.mu.Unlock()
	b.sink.Ready(topic, at, err)
}

func (b *lateBus) Unsubscribe(topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lt := b.topics[topic]
	if lt == nil || !lt.asked || b.closed {
		b.t.Errorf("Unsubscribe of %q without Subscribe, or after Close", topic)
		return
	}
	lt.asked, lt.given = false, false
}

// cut loses the connection.
func (b *lateBus) cut(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = why
}

// heal has the connection back. What was published meanwhile is lost.
func (b *lateBus) heal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = nil
	for topic, lt := range b.topics {
		switch at := b.positionLocked(topic); {
		case lt.given:
			b.laterLocked(lt, func() { b.sink.Gap(topic, at) })
		case lt.asked:
			b.laterLocked(lt, func() { b.answer(topic, lt) })
		}
	}
}

// wobble loses the connection for a moment in which nobody publishes.
func (b *lateBus) wobble() {
	b.mu.Lock()
	lost := b.down == nil && b.rng.IntN(20) == 0
	b.mu.Unlock()
	if lost {
		b.heal()
	}
}

// renumber begins the numbering of a topic anew.
func (b *lateBus) renumber(topic, epoch string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at[topic] = server.Position{Epoch: epoch}
}

func (b *lateBus) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
	return nil
}

// What is published while the connection of a bus is lost is an error for the
// publisher here, and told as lost to the subscribers here of what others
// published. Then all goes on.
func TestBusLosesItsConnection(t *testing.T) {
	t.Parallel()
	bus := newLateBus(t)
	srv, addr := serve(t, server.Config{Bus: bus})
	c, w := arrive(t, addr, "/ws?topics=quiet,t")
	raw := wstest.Dial(t, addr, "/ws?topics=t&format=raw")
	at := w.Topics["t"]
	publish(t, srv, "t", "1")
	wantMessage(t, c, "t", "1")
	raw.WantText("1")

	why := errors.New("no route")
	bus.cut(why)
	for _, m := range []server.Message{{Wait: server.WaitNone}, {Wait: server.WaitSent}, {Wait: server.WaitSent, IdempotencyKey: "k"}} {
		m.Data = []byte("2")
		if _, err := srv.Publish(t.Context(), "t", m); !errors.Is(err, why) {
			t.Errorf("%v, want %v", err, why)
		}
	}
	d, _ := arrive(t, addr, "/ws")
	d.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"other"}}`)) // answered when the connection is back
	bus.elsewhere("t", "3")
	bus.elsewhere("t", "4")
	bus.heal()
	wantGap(t, c, wire.Gap{Topic: "t", Epoch: at.Epoch, From: at.Seq + 2, To: at.Seq + 3, Reason: "bus"})
	if e := d.Event(); e.OK == nil || e.OK.Topic != "other" {
		t.Errorf("%+v", e)
	}
	if r := publish(t, srv, "t", "5"); r.Seq != at.Seq+4 || r.Subscribers != 2 {
		t.Errorf("%+v behind %+v", r, at)
	}
	wantMessage(t, c, "t", "5")
	raw.WantText("5")
	// The one whose protocol cannot tell is counted, as the one who was told.
	if st := srv.Stats(); st.Drops["bus"] != 4 || st.PublishRejects["error"] != 3 {
		t.Errorf("%+v", st)
	}
	c.WantNothing()
	raw.WantNothing()
	d.WantNothing()
}

func wantGap(t *testing.T, c *wstest.Conn, want wire.Gap) {
	t.Helper()
	if e := c.Event(); e.Gap == nil || *e.Gap != want {
		t.Fatalf("got %+v, %+v, want %+v", e, e.Gap, want)
	}
}

// A bus whose numbering begins anew is told of, whether it says so by a message
// or when its connection is back.
func TestBusBeginsAnew(t *testing.T) {
	t.Parallel()
	bus := newLateBus(t)
	srv, addr := serve(t, server.Config{Bus: bus})
	c, _ := arrive(t, addr, "/ws?topics=t")
	bus.renumber("t", "second")
	if r := publish(t, srv, "t", "1"); r.Seq != 1 || r.Epoch != "second" || r.Subscribers != 1 {
		t.Errorf("%+v", r)
	}
	wantGap(t, c, wire.Gap{Topic: "t", Epoch: "second", From: 1, To: 0, Reason: "epoch"})
	wantMessage(t, c, "t", "1")
	bus.cut(errors.New("no route"))
	bus.renumber("t", "third")
	bus.elsewhere("t", "lost")
	bus.heal()
	wantGap(t, c, wire.Gap{Topic: "t", Epoch: "third", From: 1, To: 1, Reason: "epoch"})
	publish(t, srv, "t", "2")
	wantMessage(t, c, "t", "2")
	d, w := arrive(t, addr, "/ws?topics=t")
	if w.Topics["t"] != (wire.Position{Seq: 2, Epoch: "third"}) {
		t.Errorf("%+v", w)
	}
	c.WantNothing()
	d.WantNothing()
}

// handBus does what the test says.
type handBus struct {
	sink  server.Sink
	calls chan string // of Subscribe and Unsubscribe
	at    server.Position
}

func newHandBus() *handBus {
	return &handBus{calls: make(chan string, 100), at: server.Position{Seq: 7, Epoch: "hand"}}
}

func (b *handBus) Start(sink server.Sink) error { b.sink = sink; return nil }

func (b *handBus) Publish(_ context.Context, _ server.Publication) (server.Position, error) {
	b.at.Seq++
	return b.at, nil
}

func (b *handBus) Subscribe(topic string)   { b.calls <- "+" + topic }
func (b *handBus) Unsubscribe(topic string) { b.calls <- "-" + topic }
func (b *handBus) Close() error             { return nil }

// want wants the bus to be called, next, like that.
func (b *handBus) want(t *testing.T, call string) {
	t.Helper()
	select {
	case got := <-b.calls:
		if got != call {
			t.Fatalf("the bus is asked for %s, want %s", got, call)
		}
	case <-time.After(wstest.Timeout):
		t.Fatalf("the bus is not asked for %s", call)
	}
}

// Nobody is told a position that the bus has not given: a handshake and a
// subscribe wait for it. Meanwhile the connection gets what else it is sent.
func TestJoinWaitsForTheBus(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, addr := serve(t, server.Config{Bus: bus, TopicLinger: -1})
	c, _ := joined(t, addr, "/ws?user=ann")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`), wstest.Text(`{"id":2,"ping":{}}`))
	bus.want(t, "+a")
	early := wstest.Open(t, addr)
	key := wstest.NewKey()
	early.SendRaw([]byte(wstest.Request("tocsin.test", "/ws?topics=a,b", key)))
	bus.want(t, "+b")
	if _, err := srv.Push(t.Context(), server.Target{User: "ann"}, server.Message{Data: []byte("1")}); err != nil {
		t.Error(err)
	}
	wantMessage(t, c, wire.UserTopic, "1")
	if _, _, ok := srv.Topic("a"); ok {
		t.Error("a topic is known before the bus has said where it stands")
	}
	// A message that comes before is for nobody.
	bus.sink.Deliver(server.Publication{Topic: "a", Message: server.Message{Data: []byte("0")}}, server.Position{Seq: 7, Epoch: "hand"})
	bus.sink.Ready("a", server.Position{Seq: 7, Epoch: "hand"}, nil)
	answers := map[uint64]wire.Event{}
	for range 2 {
		e := c.Event()
		answers[e.ID] = e
	}
	if ok := answers[1].OK; ok == nil || ok.Seq != 7 || ok.Epoch != "hand" || answers[2].OK == nil {
		t.Errorf("%+v", answers)
	}
	bus.sink.Deliver(server.Publication{Topic: "a", Message: server.Message{Data: []byte("8")}}, server.Position{Seq: 8, Epoch: "hand"})
	wantMessage(t, c, "a", "8")
	bus.sink.Ready("b", server.Position{Seq: 3, Epoch: "other"}, nil)
	early.WantUpgraded(key)
	if w := early.WantWelcome(); w.Topics["a"] != (wire.Position{Seq: 8, Epoch: "hand"}) || w.Topics["b"] != (wire.Position{Seq: 3, Epoch: "other"}) {
		t.Errorf("%+v", w)
	}
	early.WantNothing()
	bus.want(t, "-b")
	c.WantNothing()
	bus.want(t, "-a")
}

// A connection that ends while it waits leaves nothing behind, and an answer that
// comes then does no harm.
func TestJoinIsGivenUp(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, addr := serve(t, server.Config{Bus: bus, PingInterval: -1})
	c, w := joined(t, addr, "/ws")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`))
	bus.want(t, "+a")
	if _, err := srv.Disconnect(t.Context(), server.Target{Conn: w.Conn}, 0, ""); err != nil {
		t.Error(err)
	}
	bus.want(t, "-a")
	c.WantClosed(wire.CloseForceDisconnect)
	bus.sink.Ready("a", server.Position{Seq: 1, Epoch: "old"}, nil)
	bus.sink.Deliver(server.Publication{Topic: "a", Message: server.Message{Data: []byte("1")}}, server.Position{Seq: 2, Epoch: "old"})
	d, _ := joined(t, addr, "/ws")
	d.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`))
	bus.want(t, "+a")
	bus.sink.Ready("a", server.Position{}, errors.New("no route"))
	wantError(t, d.Event(), wire.Internal)
	server.Eventually(t, "the bus is asked no more", func() bool { return len(bus.calls) > 0 })
	bus.want(t, "-a")
	d.WantNothing()
}

// A bus that never answers costs those who wait for it AuthTimeout.
func TestBusIsSilent(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, addr := serve(t, server.Config{Bus: bus, AuthTimeout: 10 * time.Millisecond})
	early := wstest.Open(t, addr)
	early.SendRaw([]byte(wstest.Request("tocsin.test", "/ws?topics=a", wstest.NewKey())))
	bus.want(t, "+a")
	if res := early.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("%+v", res)
	}
	bus.want(t, "-a")
	c, _ := joined(t, addr, "/ws")
	wantError(t, command(t, c, `{"id":1,"subscribe":{"topic":"b"}}`), wire.Internal)
	bus.want(t, "+b")
	bus.want(t, "-b")
	c.WantNothing()
	if st := srv.Stats(); st.HandshakeRejects["bus"]+st.HandshakeRejects["timeout"] != 1 {
		t.Errorf("%+v", st.HandshakeRejects)
	}
}

// Subscribers whose topic the bus has no more stay: it is asked again, and what
// was missed is told.
func TestBusLosesATopic(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	_, addr := serve(t, server.Config{Bus: bus})
	c, _ := joined(t, addr, "/ws")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`))
	bus.want(t, "+a")
	bus.sink.Ready("a", server.Position{Seq: 7, Epoch: "hand"}, nil)
	if e := c.Event(); e.OK == nil || e.OK.Seq != 7 {
		t.Errorf("%+v", e)
	}
	for range 2 {
		bus.sink.Ready("a", server.Position{}, errors.New("no route"))
		bus.want(t, "-a")
		bus.want(t, "+a")
	}
	bus.sink.Ready("a", server.Position{Seq: 9, Epoch: "hand"}, nil)
	wantGap(t, c, wire.Gap{Topic: "a", Epoch: "hand", From: 8, To: 9, Reason: "bus"})
	// A hole between two messages is told too; what comes twice is not.
	for _, seq := range []uint64{11, 11, 10, 12} {
		bus.sink.Deliver(server.Publication{Topic: "a", Message: server.Message{Data: fmt.Append(nil, seq)}}, server.Position{Seq: seq, Epoch: "hand"})
	}
	wantGap(t, c, wire.Gap{Topic: "a", Epoch: "hand", From: 10, To: 10, Reason: "bus"})
	wantMessage(t, c, "a", "11")
	wantMessage(t, c, "a", "12")
	c.WantNothing()
}

// A bus that never answers for a topic that it had lost is asked again: else its
// subscribers would get nothing any more, and not know it.
func TestBusLosesATopicAndIsSilent(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	_, addr := serve(t, server.Config{Bus: bus, AuthTimeout: time.Second})
	c, _ := joined(t, addr, "/ws")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`))
	bus.want(t, "+a")
	bus.sink.Ready("a", server.Position{Seq: 7, Epoch: "hand"}, nil)
	if e := c.Event(); e.OK == nil || e.OK.Seq != 7 {
		t.Fatalf("%+v", e)
	}
	bus.sink.Ready("a", server.Position{}, errors.New("no route"))
	for range 2 { // the second time for want of an answer
		bus.want(t, "-a")
		bus.want(t, "+a")
	}
	bus.sink.Ready("a", server.Position{Seq: 9, Epoch: "hand"}, nil)
	wantGap(t, c, wire.Gap{Topic: "a", Epoch: "hand", From: 8, To: 9, Reason: "bus"})
	c.WantNothing()
}

// Numbers near the end of what there is are numbers as others.
func TestBusCountsToTheEnd(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, addr := serve(t, server.Config{Bus: bus})
	c, _ := joined(t, addr, "/ws")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`))
	bus.want(t, "+a")
	const last = math.MaxUint64
	bus.sink.Ready("a", server.Position{Seq: last - 1, Epoch: "hand"}, nil)
	if e := c.Event(); e.OK == nil || e.OK.Seq != last-1 {
		t.Errorf("%+v", e)
	}
	for _, seq := range []uint64{last, 0, 5, last} { // what was delivered before, or has no number, is not told
		bus.sink.Deliver(server.Publication{Topic: "a", Message: server.Message{Data: []byte("1")}}, server.Position{Seq: seq, Epoch: "hand"})
		bus.sink.Gap("a", server.Position{Seq: seq, Epoch: "hand"})
	}
	if m := wantMessage(t, c, "a", "1"); m.Seq != last {
		t.Errorf("%+v", m)
	}
	bus.sink.Gap("a", server.Position{Seq: 5, Epoch: "next"})
	wantGap(t, c, wire.Gap{Topic: "a", Epoch: "next", From: 1, To: 5, Reason: "epoch"})
	bus.sink.Gap("a", server.Position{Seq: last, Epoch: "next"})
	wantGap(t, c, wire.Gap{Topic: "a", Epoch: "next", From: 6, To: last, Reason: "bus"})
	c.WantNothing()
	if n := srv.Stats().Drops["bus"]; n != math.MaxInt32 {
		t.Errorf("%d are counted as lost", n)
	}
}

// A publisher whose message comes without its origin, or not at all, waits no
// longer than until that is known, and nothing of it stays.
func TestBusForgetsTheOrigin(t *testing.T) {
	t.Parallel()
	bus := newLateBus(t)
	bus.mute = true
	srv, addr := serve(t, server.Config{Bus: bus})
	c, _ := arrive(t, addr, "/ws?topics=t")
	for i := range 2 {
		r := publish(t, srv, "t", fmt.Sprint(i))
		if r.Seq == 0 || r.Subscribers+r.Written+r.Queued+r.Dropped != 0 {
			t.Errorf("%+v", r)
		}
		wantMessage(t, c, "t", fmt.Sprint(i))
	}
	wantNoneOnTheirWay(t, srv)
	c.WantNothing()
}

// gateBus begins a publish when it is told to.
type gateBus struct {
	*lateBus
	began, proceed chan struct{}
}

func (b *gateBus) Publish(ctx context.Context, p server.Publication) (server.Position, error) {
	b.began <- struct{}{}
	<-b.proceed
	return b.lateBus.Publish(ctx, p)
}

// What a bus was given does not change when the publisher, who waits no longer,
// uses its buffer again.
func TestPublishersBufferIsItsOwn(t *testing.T) {
	t.Parallel()
	bus := &gateBus{newLateBus(t), make(chan struct{}), make(chan struct{})}
	srv, addr := serve(t, server.Config{Bus: bus})
	c, _ := arrive(t, addr, "/ws?topics=t")
	ctx, cancel := context.WithCancel(t.Context())
	data := []byte(`"mine"`)
	ended := make(chan error)
	go func() {
		_, err := srv.Publish(ctx, "t", server.Message{Data: data, IdempotencyKey: "k"})
		ended <- err
	}()
	<-bus.began
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	copy(data, `"next"`)
	close(bus.proceed)
	wantMessage(t, c, "t", `"mine"`)
}

// A bus that fails is the publisher's and the subscriber's error; connections live.
func TestBusFails(t *testing.T) {
	t.Parallel()
	bus := newLateBus(t)
	bus.refusals = 1000
	srv, addr := serve(t, server.Config{Bus: bus})
	c := wstest.Open(t, addr)
	c.SendRaw([]byte(wstest.Request("tocsin.test", "/ws?topics=t", wstest.NewKey())))
	if res := c.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("%+v", res)
	}
	c, w := joined(t, addr, "/ws")
	wantError(t, command(t, c, `{"id":1,"subscribe":{"topic":"t"}}`), wire.Internal)
	if _, err := srv.Subscribe(t.Context(), server.Target{Conn: w.Conn}, "t"); !errors.Is(err, server.ErrTopicUnavailable) {
		t.Error(err)
	}
	bus.cut(errors.New("no route"))
	wantError(t, command(t, c, `{"id":2,"publish":{"topic":"t","data":1}}`), wire.Internal)
	if _, err := srv.Publish(t.Context(), "t", server.Message{Data: []byte("1")}); !errors.Is(err, bus.down) {
		t.Error(err)
	}
	c.Send(wstest.Ping("alive"))
	c.WantPong("alive")
	if st := srv.Stats(); st.PublishBytes != 0 || st.Subscriptions != 0 || st.PublishRejects["error"] != 2 || st.HandshakeRejects["bus"] != 1 {
		t.Errorf("%+v", st)
	}
}

// brokenBus panics when it is asked for anything.
type brokenBus struct {
	*handBus
	broken atomic.Bool
}

func (b *brokenBus) mayPanic() {
	if b.broken.Load() {
		panic("the bus is broken")
	}
}

func (b *brokenBus) Publish(ctx context.Context, p server.Publication) (server.Position, error) {
	b.mayPanic()
	return b.handBus.Publish(ctx, p)
}

func (b *brokenBus) Subscribe(topic string)   { b.handBus.Subscribe(topic); b.mayPanic() }
func (b *brokenBus) Unsubscribe(topic string) { b.handBus.Unsubscribe(topic); b.mayPanic() }

// A bus that panics fails, and nothing stays of what it was asked for.
func TestBusPanics(t *testing.T) {
	t.Parallel()
	bus := &brokenBus{handBus: newHandBus()}
	srv, addr := serve(t, server.Config{Bus: bus, TopicLinger: time.Millisecond})
	c, _ := joined(t, addr, "/ws")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`))
	bus.want(t, "+a")
	bus.sink.Ready("a", server.Position{Seq: 7, Epoch: "hand"}, nil)
	if e := c.Event(); e.OK == nil {
		t.Errorf("%+v", e)
	}
	bus.broken.Store(true)
	wantError(t, command(t, c, `{"id":2,"subscribe":{"topic":"b"}}`), wire.Internal)
	bus.want(t, "+b")
	bus.want(t, "-b")
	early := wstest.Open(t, addr)
	early.SendRaw([]byte(wstest.Request("tocsin.test", "/ws?topics=b", wstest.NewKey())))
	if res := early.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%+v", res)
	}
	bus.want(t, "+b")
	bus.want(t, "-b")
	wantError(t, command(t, c, `{"id":3,"publish":{"topic":"t","data":1}}`), wire.Internal)
	wantError(t, command(t, c, `{"id":4,"publish":{"topic":"t","id":"m","data":1}}`), wire.Internal)
	for _, key := range []string{"", "k"} {
		if _, err := srv.Publish(t.Context(), "t", server.Message{Data: []byte("1"), IdempotencyKey: key, Wait: server.WaitSent}); err == nil {
			t.Error("a bus that panics publishes")
		}
	}
	if e := command(t, c, `{"id":5,"unsubscribe":{"topic":"a"}}`); e.OK == nil {
		t.Errorf("%+v", e)
	}
	bus.want(t, "-a") // by the ticker
	if st := srv.Stats(); st.PublishBytes != 0 || st.Topics != 0 {
		t.Errorf("%+v", st)
	}
	bus.broken.Store(false)
	c.Send(wstest.Text(`{"id":6,"subscribe":{"topic":"b"}}`))
	bus.want(t, "+b")
	bus.sink.Ready("b", server.Position{Seq: 7, Epoch: "hand"}, nil)
	if e := c.Event(); e.OK == nil {
		t.Errorf("%+v", e)
	}
	c.WantNothing()
}

// A connection that waits for a topic may be given others meanwhile, and has not
// more than it may.
func TestMaxTopicsWhileWaiting(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, addr := serve(t, server.Config{Bus: bus, MaxTopics: 1, TopicLinger: -1})
	c, w := joined(t, addr, "/ws")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`))
	bus.want(t, "+a")
	done := make(chan error)
	go func() {
		_, err := srv.Subscribe(t.Context(), server.Target{Conn: w.Conn}, "b")
		done <- err
	}()
	bus.want(t, "+b")
	bus.sink.Ready("b", server.Position{Seq: 7, Epoch: "hand"}, nil)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if e := c.Event(); e.OK == nil || e.OK.Topic != "b" {
		t.Errorf("%+v", e)
	}
	bus.sink.Ready("a", server.Position{Seq: 7, Epoch: "hand"}, nil)
	wantError(t, c.Event(), wire.TooManyTopics)
	bus.want(t, "-a")
	c.WantNothing()
}

// Nobody asks the bus for anything once Shutdown has returned; what it still calls
// does no harm.
func TestBusAfterShutdown(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, addr := serve(t, server.Config{Bus: bus})
	c, w := joined(t, addr, "/ws")
	c.Drop()
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	target := server.Target{Conn: w.Conn}
	if _, err := srv.Subscribe(t.Context(), target, "t"); !errors.Is(err, server.ErrClosed) {
		t.Error(err)
	}
	if _, err := srv.Unsubscribe(t.Context(), target, "t"); !errors.Is(err, server.ErrClosed) {
		t.Error(err)
	}
	if len(bus.calls) > 0 {
		t.Errorf("the bus is asked for %s", <-bus.calls)
	}
	bus.sink.Ready("t", bus.at, nil)
	bus.sink.Deliver(server.Publication{Topic: "t", Message: server.Message{Data: []byte("1")}}, server.Position{Seq: 8, Epoch: "hand"})
	bus.sink.Gap("t", server.Position{Seq: 9, Epoch: "hand"})
}

// All topics of a request that comes by ServeHTTP have one AuthTimeout.
func TestServeHTTPTopicsHaveOneTimeout(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, _ := serve(t, server.Config{Bus: bus, AuthTimeout: 200 * time.Millisecond})
	web := httptest.NewServer(srv)
	t.Cleanup(web.Close)
	c := wstest.Open(t, web.Listener.Addr().String())
	c.SendRaw([]byte(wstest.Request("tocsin.test", "/ws?topics=a,b,c,d,e,f", wstest.NewKey())))
	ended := make(chan struct{})
	var slow sync.WaitGroup
	slow.Go(func() { // each is in time by itself, all together are not
		for _, topic := range []string{"a", "b", "c", "d", "e", "f"} {
			select {
			case <-time.After(150 * time.Millisecond):
				bus.sink.Ready(topic, server.Position{Seq: 7, Epoch: "hand"}, nil)
			case <-ended:
			}
		}
	})
	if res := c.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("%+v", res)
	}
	close(ended)
	slow.Wait()
}

// boundBus wants an end to the time it has for a publish.
type boundBus struct{ *handBus }

func (b boundBus) Publish(ctx context.Context, p server.Publication) (server.Position, error) {
	if _, ok := ctx.Deadline(); !ok {
		return server.Position{}, errors.New("this could block for ever")
	}
	return b.handBus.Publish(ctx, p)
}

// A bus that blocks keeps the goroutines in which hooks run only for a while.
func TestClientsPublishEnds(t *testing.T) {
	t.Parallel()
	_, addr := serve(t, server.Config{Bus: boundBus{newHandBus()}})
	c, _ := joined(t, addr, "/ws")
	for _, id := range []string{"", `"id":"m",`} {
		if e := command(t, c, `{"id":1,"publish":{"topic":"t",`+id+`"data":1}}`); e.OK == nil {
			t.Errorf("%+v", e.Error)
		}
	}
	c.WantNothing()
}

// startless is a bus that cannot be started.
type startless struct{ *lateBus }

var errStart = errors.New("no cluster")

func (startless) Start(server.Sink) error { return errStart }

func TestBusDoesNotStart(t *testing.T) {
	if _, err := server.New(server.Config{Dev: true, Bus: startless{newLateBus(t)}}); !errors.Is(err, errStart) {
		t.Error(err)
	}
}

// A backend that subscribes a connection waits for the bus as clients do.
func TestBackendWaitsForTheBus(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, addr := serve(t, server.Config{Bus: bus})
	at := server.Position{Seq: 7, Epoch: "hand"}
	c, w := joined(t, addr, "/ws")
	c.Send(wstest.Text(`{"id":1,"subscribe":{"topic":"a"}}`)) // waits, and finds the other there
	bus.want(t, "+a")
	type result struct {
		n   int
		err error
	}
	done := make(chan result)
	enroll := func(ctx context.Context, topic string) {
		n, err := srv.Subscribe(ctx, server.Target{Conn: w.Conn}, topic)
		done <- result{n, err}
	}
	go enroll(t.Context(), "b")
	bus.want(t, "+b")
	bus.sink.Ready("b", at, nil)
	if r := <-done; r.n != 1 || r.err != nil {
		t.Errorf("%+v", r)
	}
	if e := c.Event(); e.OK == nil || e.ID != 0 || e.OK.Topic != "b" || e.OK.Seq != 7 {
		t.Errorf("%+v", e)
	}
	go enroll(t.Context(), "a")
	bus.sink.Ready("a", at, nil)
	if r := <-done; r.n != 1 || r.err != nil {
		t.Errorf("%+v", r)
	}
	for { // by both, or by the client alone if that was sooner
		if e := c.Event(); e.OK == nil || e.OK.Topic != "a" || e.OK.Seq != 7 {
			t.Fatalf("%+v", e)
		} else if e.ID == 1 {
			break
		}
	}
	go enroll(t.Context(), "c")
	bus.want(t, "+c")
	bus.sink.Ready("c", server.Position{}, errors.New("no route"))
	if r := <-done; r.n != 0 || r.err == nil {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go enroll(ctx, "d")
	bus.want(t, "-c")
	bus.want(t, "+d")
	cancel()
	if r := <-done; !errors.Is(r.err, context.Canceled) {
		t.Errorf("%+v", r)
	}
	bus.want(t, "-d")
	for range 2 { // each subscribed once
		bus.sink.Deliver(server.Publication{Topic: "a", Message: server.Message{Data: []byte("8")}}, server.Position{Seq: 8, Epoch: "hand"})
	}
	for {
		if e := c.Event(); e.Message != nil {
			break
		}
	}
	c.WantNothing()
}

// A request that comes by ServeHTTP waits for the bus as others do.
func TestServeHTTPWaitsForTheBus(t *testing.T) {
	t.Parallel()
	bus := newHandBus()
	srv, _ := serve(t, server.Config{Bus: bus})
	web := httptest.NewServer(srv)
	t.Cleanup(web.Close)
	at := server.Position{Seq: 7, Epoch: "hand"}
	by := func(topic string) (*wstest.Conn, string) {
		d, key := wstest.Open(t, web.Listener.Addr().String()), wstest.NewKey()
		d.SendRaw([]byte(wstest.Request("tocsin.test", "/ws?topics="+topic, key)))
		bus.want(t, "+"+topic)
		return d, key
	}
	d, key := by("e")
	bus.sink.Ready("e", at, nil)
	d.WantUpgraded(key)
	if w := d.WantWelcome(); w.Topics["e"] != wire.Position(at) {
		t.Errorf("%+v", w)
	}
	d.WantNothing()
	d, _ = by("f")
	bus.sink.Ready("f", server.Position{}, errors.New("no route"))
	if res := d.Response(http.MethodGet); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("%+v", res)
	}
	bus.want(t, "-f")
}

// A client of package client that loses its connection is given what was
// published meanwhile.
func TestClientIsGivenWhatItMissed(t *testing.T) {
	t.Parallel()
	bus := newHistoryBus(t)
	srv, addr := serve(t, server.Config{Bus: bus})
	events := make(chan wire.Event, 1000)
	c, err := client.Dial(t.Context(), "ws://"+addr+"/ws", client.Options{
		MinBackoff: 50 * time.Millisecond,
		OnEvent:    func(_ *client.Client, e wire.Event) { events <- e },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ok, err := c.Subscribe(t.Context(), "t", nil)
	if err != nil {
		t.Fatal(err)
	}
	seq, welcomes := ok.Seq, 0
	for round := range 3 {
		for i := range 50 {
			publish(t, srv, "t", fmt.Sprint(i))
			if i == 10*round {
				if _, err := srv.Disconnect(t.Context(), server.Target{Conn: c.Welcome().Conn}, wire.CloseForceReconnect, ""); err != nil {
					t.Error(err)
				}
			}
		}
		for seq < ok.Seq+uint64(50*(round+1)) {
			switch e := <-events; {
			case e.Welcome != nil:
				welcomes++
			case e.Message != nil && e.Message.Seq == seq+1:
				seq++
			default:
				t.Fatalf("%+v, %+v, behind %d", e, e.Gap, seq)
			}
		}
	}
	if welcomes != 4 {
		t.Errorf("%d welcomes", welcomes)
	}
}

// A history that does not answer costs its client AuthTimeout. It is told when
// the client does not want to know any more, or has gone.
func TestHistoryBlocks(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]func(*testing.T, *wstest.Conn){
		"late":        func(t *testing.T, c *wstest.Conn) { wantError(t, c.Event(), wire.Internal) },
		"gone":        func(_ *testing.T, c *wstest.Conn) { c.Drop() },
		"unsubscribe": func(_ *testing.T, c *wstest.Conn) { c.Send(wstest.Text(`{"id":2,"unsubscribe":{"topic":"t"}}`)) },
		"again":       func(_ *testing.T, c *wstest.Conn) { c.Send(wstest.Text(`{"id":2,"subscribe":{"topic":"t"}}`)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bus := newHistoryBus(t)
			bus.read = make(chan struct{}, 1)
			cfg := server.Config{Bus: bus, AuthTimeout: wstest.Timeout}
			if name == "late" {
				cfg.AuthTimeout = 50 * time.Millisecond
			}
			srv, addr := serve(t, cfg)
			_, w := arrive(t, addr, "/ws?topics=t")
			publish(t, srv, "t", "1")
			c, _ := arrive(t, addr, "/ws")
			at := w.Topics["t"]
			c.Send(wstest.Text(fmt.Sprintf(`{"id":1,"subscribe":{"topic":"t","after":%d,"epoch":%q}}`, at.Seq, at.Epoch)))
			<-bus.read
			act(t, c)
			<-bus.read
			server.Eventually(t, "the topic has one subscriber, or two", func() bool {
				_, n, _ := srv.Topic("t")
				return n == 1 && name != "again" || n == 2
			})
		})
	}
}
