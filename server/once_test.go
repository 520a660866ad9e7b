//go:build linux

package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// gone is the context of a requester who has left.
func gone(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// messages counts what a peer was sent, by its data.
func (p *peer) messages() map[string]int {
	p.s.t.Helper()
	got := map[string]int{}
	for _, f := range p.frames() {
		e, err := tocsin.ParseEvent(f.Payload)
		if f.Op != ws.OpText || err != nil || e.Message == nil {
			p.s.t.Fatalf("got %v", f)
		}
		got[string(e.Message.Data)]++
	}
	return got
}

// ways are the ways of sending a message.
var ways = map[string]func(*Server, context.Context, Message) (Receipt, error){
	"publish": func(srv *Server, ctx context.Context, m Message) (Receipt, error) { return srv.Publish(ctx, "t", m) },
	"push": func(srv *Server, ctx context.Context, m Message) (Receipt, error) {
		return srv.Push(ctx, Target{User: "ann"}, m)
	},
	"broadcast": func(srv *Server, ctx context.Context, m Message) (Receipt, error) { return srv.Broadcast(ctx, m) },
	"batch": func(srv *Server, ctx context.Context, m Message) (Receipt, error) {
		// A batch whose requester has left sends nothing; this one leaves later.
		b := &batch{srv: srv, items: []BatchItem{{Topic: "t", Message: m}}, mail: srv.engine.NewMail(), results: make([]BatchResult, 1)}
		if err := b.add(context.Background(), 0, &b.items[0]); err != nil {
			return Receipt{}, err
		}
		b.settle(ctx, false)
		return b.results[0].Receipt, b.results[0].Err
	},
}

// docs/faults.md X5: the message of a requester who left is sent once, and a
// retry at any time gets its receipt.
func TestRetryGetsTheReceiptOfARequesterWhoLeft(t *testing.T) {
	for name, send := range ways {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, 1, Config{Shards: 3})
			a, b := s.dial("/ws?user=ann&topics=t"), s.dial("/ws?user=ann&topics=t")
			m := Message{Data: []byte("1"), IdempotencyKey: "k", Wait: WaitSent}
			first, err := send(s.srv, gone(t), m)
			if !errors.Is(err, context.Canceled) || first.ID == "" || first.Duplicate {
				t.Fatalf("the requester who leaves: %+v, %v", first, err)
			}
			// At once, and leaving too.
			if r, err := send(s.srv, gone(t), m); !errors.Is(err, context.Canceled) || r.ID != first.ID || !r.Duplicate {
				t.Errorf("the first retry: %+v, %v", r, err)
			}
			s.run()
			for range 2 {
				r, err := send(s.srv, t.Context(), m)
				if err != nil || r.ID != first.ID || !r.Duplicate || r.Written != 2 || r.Subscribers != 2 || r.Seq != first.Seq || (name == "push") != (len(r.Devices) == 2) {
					t.Errorf("a retry: %+v, %v", r, err)
				}
			}
			s.run()
			for _, p := range []*peer{a, b} {
				if got := p.messages(); len(got) != 1 || got["1"] != 1 {
					t.Errorf("a client got %v", got)
				}
			}
			// Beyond the window it is another message.
			for _, forget := range []bool{false, true} {
				s.Time += onceWindow
				if forget {
					s.srv.once.forget(s.Time)
				}
				if r, err := send(s.srv, gone(t), m); !errors.Is(err, context.Canceled) || r.Duplicate || r.ID == first.ID {
					t.Errorf("after the window: %+v, %v", r, err)
				}
				s.run()
				if got := a.messages(); got["1"] != 1 {
					t.Errorf("after the window a client got %v", got)
				}
			}
			s.srv.once.forget(s.Time + onceWindow)
			if bytes, evicted := s.srv.once.usage(); bytes != 0 || evicted != 0 || len(s.srv.once.backends.seen) != 0 || s.srv.publishBytes.Load() != 0 {
				t.Errorf("%d bytes of keys left, %d evicted, %d bytes on their way", bytes, evicted, s.srv.publishBytes.Load())
			}
		})
	}
}

// docs/faults.md X5: an ack is noted though nobody waits for it at that moment.
func TestRetryGetsTheAckOfARequesterWhoLeft(t *testing.T) {
	s := newSim(t, 1, Config{})
	p := s.dial("/ws?user=ann")
	m := Message{Data: []byte("1"), ID: "one", Wait: WaitAck, AckTimeout: time.Hour}
	push := ways["push"]
	if r, err := push(s.srv, gone(t), m); !errors.Is(err, context.Canceled) || r.ID != "one" {
		t.Fatal(r, err)
	}
	s.run()
	if r, err := push(s.srv, gone(t), m); !errors.Is(err, context.Canceled) {
		t.Fatal(r, err)
	}
	if got := p.messages(); got["1"] != 1 {
		t.Fatal(got)
	}
	p.send(wstest.Text(`{"id":7,"ack":{"id":"one"}}`))
	s.run()
	if f := p.frames(); len(f) != 1 || string(f[0].Payload) != `{"id":7,"ok":{}}` {
		t.Fatalf("the ack is answered with %v", f)
	}
	for range 2 {
		if r, err := push(s.srv, t.Context(), m); err != nil || !r.Duplicate || len(r.Devices) != 1 || r.Devices[0].Status != StatusAcked {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if len(s.srv.acks.waiting) != 0 {
		t.Error("somebody still waits")
	}
	// Without an ack the retry waits as the first would have.
	m.ID, m.AckTimeout = "two", time.Millisecond
	if _, err := push(s.srv, gone(t), m); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.run()
	for range 2 {
		if r, err := push(s.srv, t.Context(), m); !errors.Is(err, ErrNoAck) || !r.Duplicate || len(r.Devices) != 1 || r.Devices[0].Status != StatusWritten {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

// What was not sent is forgotten, so that a retry can succeed.
func TestRefusedPublishCanBeTriedAgain(t *testing.T) {
	s := newSim(t, 1, Config{PublishBudget: 10_000})
	m := Message{Data: []byte("1"), IdempotencyKey: "k", Wait: WaitSent}
	for name, send := range ways {
		m.IdempotencyKey = name
		if name != "batch" { // which waits
			s.srv.publishBytes.Add(10_000)
			if _, err := send(s.srv, t.Context(), m); !errors.Is(err, ErrBusy) {
				t.Errorf("%s over the budget: %v", name, err)
			}
			s.srv.publishBytes.Add(-10_000)
		}
		bad := m
		bad.Data = []byte("{")
		if _, err := send(s.srv, t.Context(), bad); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s of no JSON: %v", name, err)
		}
		s.probe.SetClosed(true)
		if _, err := send(s.srv, t.Context(), m); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after the end: %v", name, err)
		}
		s.probe.SetClosed(false)
	}
	if _, err := ways["push"](s.srv, t.Context(), m); !errors.Is(err, ErrNobody) {
		t.Errorf("to nobody: %v", err)
	}
	if bytes, _ := s.srv.once.usage(); bytes != 0 {
		t.Errorf("%d bytes of what was not sent", bytes)
	}
	// A connection that has ended when the message comes.
	p := s.dial("/ws?user=ann")
	m.IdempotencyKey = "late"
	p.hangUp()
	s.srv.engine.Close(p.Ref, wire.CloseNormal, "")
	if _, err := ways["push"](s.srv, gone(t), m); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.run()
	if r, err := ways["push"](s.srv, t.Context(), m); !errors.Is(err, ErrNobody) {
		t.Errorf("to one who has left: %+v, %v", r, err)
	}
	p = s.dial("/ws?user=ann&topics=t")
	for name, send := range ways {
		m.IdempotencyKey = name
		if r, err := send(s.srv, gone(t), m); !errors.Is(err, context.Canceled) || r.Duplicate {
			t.Errorf("%s at last: %+v, %v", name, r, err)
		}
	}
	m.IdempotencyKey = "late"
	if r, err := ways["push"](s.srv, gone(t), m); !errors.Is(err, context.Canceled) || r.Duplicate {
		t.Errorf("to one who is back: %+v, %v", r, err)
	}
	s.run()
	if got := p.messages(); got["1"] != len(ways)+1 {
		t.Errorf("got %v", got)
	}
}

// Keys take no more bytes than they may; the oldest go early and are counted.
func TestKeysAreBoundedInBytes(t *testing.T) {
	const budget, devices = 3 << 20 / 4, 100 // what backends have of a MiB
	s := newSim(t, 1, Config{IdempotencyBudget: 1 << 20})
	for range devices {
		s.dial("/ws?user=ann&format=raw")
	}
	s.Sink = true
	push := ways["push"]
	n := size(10_000)
	key := func(i int) Message {
		return Message{Data: []byte(`"` + strings.Repeat("x", 1000) + `"`), IdempotencyKey: fmt.Sprintf("key %d", i), Wait: WaitSent}
	}
	const receipt = onceOverhead + devices*deviceSize // and a little
	for i := range n {
		// Every other requester leaves, so that its message is kept.
		if _, err := push(s.srv, gone(t), key(i)); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		s.run()
		if i%2 == 0 {
			if r, err := push(s.srv, t.Context(), key(i)); err != nil || len(r.Devices) != devices {
				t.Fatal(len(r.Devices), err)
			}
		}
		if bytes, _ := s.srv.once.usage(); bytes > budget {
			t.Fatalf("%d bytes after %d keys", bytes, i+1)
		}
	}
	bytes, evicted := s.srv.once.usage()
	left := s.srv.once.backends.order.Len()
	if evicted != uint64(n-left) || bytes < budget-3*receipt || left > budget/receipt || len(s.srv.once.backends.seen) != left {
		t.Errorf("%d bytes, %d of %d evicted, %d left", bytes, evicted, n, left)
	}
	if r, _ := push(s.srv, gone(t), key(0)); r.Duplicate {
		t.Error("the oldest is remembered")
	}
	if r, _ := push(s.srv, gone(t), key(n-1)); !r.Duplicate {
		t.Error("the newest is forgotten")
	}
	s.run()
	s.srv.once.forget(s.Time + onceWindow)
	if bytes, _ := s.srv.once.usage(); bytes != 0 || len(s.srv.once.backends.seen) != 0 {
		t.Errorf("%d bytes of %d keys after the window", bytes, len(s.srv.once.backends.seen))
	}
}

// Who waits for a message whose key is evicted meanwhile gets its receipt.
func TestKeyEvictedOnItsWay(t *testing.T) {
	s := newSim(t, 1, Config{IdempotencyBudget: 5000})
	s.dial("/ws?user=ann&topics=t")
	m := Message{Data: []byte("1"), IdempotencyKey: "first", Wait: WaitSent}
	first, err := s.srv.begin(t.Context(), &address{verb: verbPublish, topic: "t"}, &m, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := s.srv.Publish(t.Context(), "t", Message{Data: []byte("1"), IdempotencyKey: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	s.run()
	if r, err := s.srv.await(t.Context(), &first); err != nil || r.Written != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if bytes, evicted := s.srv.once.usage(); evicted == 0 || bytes > 5000 || bytes <= 0 {
		t.Errorf("%d bytes, %d evicted", bytes, evicted)
	}
	s.srv.once.forget(s.Time + onceWindow)
	if bytes, _ := s.srv.once.usage(); bytes != 0 {
		t.Errorf("%d bytes at the end", bytes)
	}
}

// Many requesters with few keys, who leave at any moment, beside evictions.
func TestConcurrentRetriesSendOnce(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{})
	const keys, callers = 40, 12
	c := dial(t, addr, "/ws?user=ann&topics=t")
	var mu sync.Mutex
	receipts := map[string]Receipt{}
	duplicates := map[string]int{}
	crowd(keys*callers, func(i int) {
		n := i / callers
		m := Message{Data: fmt.Append(nil, n), IdempotencyKey: fmt.Sprint("k", n), Wait: WaitSent}
		send := []string{"publish", "push", "broadcast", "batch"}[n%4]
		for try := 0; ; try++ {
			ctx, cancel := context.WithCancel(t.Context())
			if try < 3 {
				time.AfterFunc(time.Duration(rand.IntN(300))*time.Microsecond, cancel)
			}
			r, err := ways[send](srv, ctx, m)
			stayed := err == nil || ctx.Err() == nil
			cancel()
			if !stayed {
				continue
			}
			if err != nil || r.Written != 1 {
				t.Errorf("%s: %+v, %v", m.IdempotencyKey, r, err)
				return
			}
			mu.Lock()
			if first, ok := receipts[m.IdempotencyKey]; ok && (r.ID != first.ID || r.Seq != first.Seq) {
				t.Errorf("two receipts: %+v and %+v", first, r)
			}
			receipts[m.IdempotencyKey] = r
			if r.Duplicate {
				duplicates[m.IdempotencyKey]++
			}
			mu.Unlock()
			return
		}
	})
	got := map[string]int{}
	for range keys {
		m := c.message()
		if m == nil {
			t.Fatal("the connection ended")
		}
		if got[string(m.Data)]++; got[string(m.Data)] > 1 {
			t.Errorf("%s came twice", m.Data)
		}
	}
	if !c.ping("nothing else") {
		t.Error("something came twice")
	}
	for key, n := range duplicates {
		if n < callers-1 {
			t.Errorf("%s: %d of %d were told of the first", key, n, callers)
		}
	}
}

// A broadcast with a rate goes on without its requester, and a retry waits for
// its end.
func TestPacedBroadcastWithoutItsRequester(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{})
	const n = 40
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = dial(t, addr, "/ws")
	}
	eventually(t, "the connections", func() bool { return srv.Stats().Connections == n })
	m := Message{Data: []byte("1"), IdempotencyKey: "k", Rate: 100, Wait: WaitSent}
	if r, err := srv.Broadcast(gone(t), m); !errors.Is(err, context.Canceled) || r.Subscribers != n {
		t.Fatalf("%+v, %v", r, err)
	}
	crowd(5, func(int) {
		if r, err := srv.Broadcast(t.Context(), m); err != nil || r.Written != n || !r.Duplicate {
			t.Errorf("%+v, %v", r, err)
		}
	})
	for _, c := range clients {
		if m := c.message(); m == nil || string(m.Data) != "1" || !c.ping("nothing else") {
			t.Fatalf("got %+v", m)
		}
	}
}

// slowBus is a bus that takes its time.
type slowBus struct {
	asked   chan struct{}
	release chan struct{}
	sink    Sink
}

func (b *slowBus) Start(sink Sink) error { b.sink = sink; return nil }

func (b *slowBus) Publish(ctx context.Context, p Publication) (Position, error) {
	b.asked <- struct{}{}
	select {
	case <-b.release:
		at := Position{Seq: 1, Epoch: "slow"}
		b.sink.Deliver(p, at)
		return at, nil
	case <-ctx.Done():
		return Position{}, ctx.Err()
	}
}

func (b *slowBus) Subscribe(topic string) { b.sink.Ready(topic, Position{Epoch: "slow"}, nil) }
func (*slowBus) Unsubscribe(string)       {}
func (*slowBus) Close() error             { return nil }

// A requester may leave while the bus still thinks; the message goes on.
func TestSlowBusOutlivesTheRequester(t *testing.T) {
	parallel(t)
	bus := &slowBus{asked: make(chan struct{}, 10), release: make(chan struct{})}
	srv, addr := started(t, Config{Bus: bus})
	c := dial(t, addr, "/ws?topics=t")
	m := Message{Data: []byte("1"), IdempotencyKey: "k", Wait: WaitSent}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := srv.Publish(ctx, "t", m)
		left <- err
	}()
	<-bus.asked
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := srv.Publish(gone(t), "t", m); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(bus.release)
	if r, err := srv.Publish(t.Context(), "t", m); err != nil || !r.Duplicate || r.Written != 1 || r.Seq == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if m := c.message(); m == nil || !c.ping("nothing else") || len(bus.asked) != 0 {
		t.Errorf("got %+v, the bus was asked %d times more", m, len(bus.asked))
	}
}

// Clients' ids are keys of their own: of a user, or of a connection without
// one. They do not block a backend's, nor each other's (docs/faults.md X9).
func TestKeysBelongToTheirCaller(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{})
	reader := dial(t, addr, "/ws?topics=t")
	publish := func(c *client, id, data string) string {
		t.Helper()
		c.send(wstest.Text(fmt.Sprintf(`{"id":1,"publish":{"topic":"t","id":%q,"data":%s}}`, id, data)))
		for {
			f, err := c.next()
			if err != nil {
				t.Fatal(err)
			}
			if e, err := tocsin.ParseEvent(f.Payload); err == nil && e.ID == 1 {
				if e.Error != nil {
					return string(e.Error.Code)
				}
				return "ok"
			}
		}
	}
	ann, annToo, bob := dial(t, addr, "/ws?user=ann"), dial(t, addr, "/ws?user=ann"), dial(t, addr, "/ws?user=bob")
	nobody, nobodyToo := dial(t, addr, "/ws"), dial(t, addr, "/ws")
	for i, step := range []struct {
		c          *client
		data, want string
	}{
		{ann, `"ann"`, "ok"},
		{annToo, `"ann"`, "ok"},
		{ann, `"other"`, "bad_request"},
		{annToo, `"other"`, "bad_request"},
		{bob, `"bob"`, "ok"},
		{nobody, `"nobody"`, "ok"},
		{nobody, `"other"`, "bad_request"},
		{nobodyToo, `"nobody too"`, "ok"},
	} {
		if got := publish(step.c, "order-1001", step.data); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	if r, err := srv.Publish(t.Context(), "t", Message{Data: []byte(`"backend"`), ID: "order-1001"}); err != nil || r.Duplicate {
		t.Errorf("the backend: %+v, %v", r, err)
	}
	for _, want := range []string{"ann", "bob", "nobody", "nobody too", "backend"} {
		if m := reader.message(); m == nil || string(m.Data) != `"`+want+`"` || m.ID != "order-1001" {
			t.Fatalf("got %+v, want %s", m, want)
		}
	}
	if !reader.ping("nothing else") {
		t.Error("something came twice")
	}
}

// However many ids clients use, the backends' keys stay.
func TestClientsDoNotPushOutBackendsKeys(t *testing.T) {
	s := newSim(t, 1, Config{IdempotencyBudget: 100_000})
	m := Message{Data: []byte("1"), ID: "order-1001"}
	if _, err := s.srv.Publish(t.Context(), "t", m); err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		client := Conn{srv: s.srv, ref: engine.Ref(i % 7), user: []string{"", "ann"}[i%2]}
		if _, err := s.srv.publishFrom(client, "junk", Message{Data: []byte("1"), ID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := s.srv.Publish(t.Context(), "t", m); err != nil || !r.Duplicate {
		t.Errorf("%+v, %v", r, err)
	}
	if bytes, evicted := s.srv.once.usage(); bytes > 100_000 || evicted < 9000 {
		t.Errorf("%d bytes, %d evicted", bytes, evicted)
	}
}

// A shutdown ends the wait of everybody, for an ack that cannot come too.
func TestWaitsEndWithTheServer(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{CloseTimeout: 100 * time.Millisecond})
	c := dial(t, addr, "/ws?user=ann")
	var wg sync.WaitGroup
	for i := range 6 {
		m := Message{Data: []byte("1"), Wait: WaitAck, AckTimeout: time.Hour}
		if i%2 == 0 {
			m.IdempotencyKey = "k"
		}
		wg.Go(func() {
			if r, err := srv.Push(context.Background(), Target{User: "ann"}, m); !errors.Is(err, ErrClosed) || r.ID == "" {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	for range 4 {
		if c.message() == nil {
			t.Fatal("the connection ended")
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if n := srv.Stats().PublishBytes; n != 0 {
		t.Errorf("%d bytes are on their way", n)
	}
}

// A batch waits while others have the publish budget, and no longer than its
// context.
func TestBatchWaitsForTheBudgetOfOthers(t *testing.T) {
	s := newSim(t, 1, Config{PublishBudget: 10_000})
	s.srv.budgetFree = make(chan struct{}, 1)
	p := s.dial("/ws?user=ann")
	items := []BatchItem{{To: Target{User: "ann"}, Message: Message{Data: []byte("1")}}}
	s.srv.publishBytes.Add(10_000)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if r := s.srv.Batch(ctx, items)[0]; !errors.Is(r.Err, context.DeadlineExceeded) || r.Receipt.ID != "" {
		t.Errorf("%+v", r)
	}
	done := make(chan BatchResult)
	go func() { done <- s.srv.Batch(t.Context(), items)[0] }()
	eventually(t, "the batch to wait", func() bool { return s.srv.batchesWaiting.Load() == 1 })
	s.srv.release(10_000)
	if r := <-done; r.Err != nil {
		t.Error(r.Err)
	}
	s.run()
	if got := p.messages(); got["1"] != 1 || s.srv.publishBytes.Load() != 0 {
		t.Errorf("got %v, %d bytes are on their way", got, s.srv.publishBytes.Load())
	}
}

// keepsTurn is a task that keeps a shard's turn.
type keepsTurn chan struct{}

// Do implements engine.Task.
func (b keepsTurn) Do(*engine.Turn, *engine.Conn) { b <- struct{}{}; <-b }

// When the budget is given back in one piece, all batches that it has room for go
// on: the first does not wait for its own delivery to let the second.
func TestAllWaitingBatchesGoOn(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{PublishBudget: 10_000, Shards: 1})
	c := dial(t, addr, "/ws?user=ann")
	turn := make(keepsTurn)
	srv.engine.AskShard(0, turn)
	<-turn
	letGo := sync.OnceFunc(func() { close(turn) })
	defer letGo()
	srv.publishBytes.Add(10_000)
	done := make(chan error)
	for range 3 {
		go func() {
			r := srv.Batch(t.Context(), []BatchItem{{To: Target{User: "ann"}, Message: Message{Data: []byte("1")}}})
			done <- r[0].Err
		}()
	}
	eventually(t, "the batches to wait", func() bool { return srv.batchesWaiting.Load() == 3 })
	srv.release(10_000)
	eventually(t, "the batches to go on", func() bool { return srv.batchesWaiting.Load() == 0 })
	letGo()
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
		if c.message() == nil {
			t.Fatal("the connection ended")
		}
	}
}
