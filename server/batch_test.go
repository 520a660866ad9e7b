package server_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
)

func push(user, data string, wait server.Wait) server.BatchItem {
	return server.BatchItem{To: server.Target{User: user}, Message: server.Message{Data: []byte(data), Wait: wait}}
}

// An item that fails does not stop the others, and its result stands in its place.
func TestBatchTellsEachItem(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{MaxPublish: 100})
	a, wa := joined(t, addr, "/ws?user=ann&topics=news")
	b, _ := joined(t, addr, "/ws?user=ann")
	server.Eventually(t, "the subscription", func() bool { return srv.Stats().Subscriptions == 1 })
	results := srv.Batch(t.Context(), []server.BatchItem{
		0: push("ann", "1", server.WaitSent),
		1: push("bob", "2", server.WaitSent),
		2: {Topic: "news", Message: server.Message{Data: []byte("3"), Wait: server.WaitSent, ID: "three"}},
		3: push("ann", "{", server.WaitSent),
		4: {Message: server.Message{Data: []byte("4")}},
		5: {Topic: "news", To: server.Target{User: "ann"}, Message: server.Message{Data: []byte("5")}},
		6: {Topic: "$all", Message: server.Message{Data: []byte("6")}},
		7: push("ann", `"`+strings.Repeat("x", 100)+`"`, server.WaitSent),
		8: {Topic: "empty", Message: server.Message{Data: []byte("8"), Wait: server.WaitSent}},
		9: {To: server.Target{Conn: wa.Conn}, Message: server.Message{Data: []byte("9")}},
	})
	for i, want := range []error{nil, server.ErrNobody, nil, server.ErrBadMessage, server.ErrBadMessage, server.ErrBadMessage, server.ErrBadMessage, server.ErrTooBig, nil, nil} {
		if got := results[i].Err; !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("item %d: %v, want %v", i, got, want)
		}
	}
	if r := results[0].Receipt; r.Subscribers != 2 || r.Written != 2 || len(r.Devices) != 2 || r.ID == "" {
		t.Errorf("push: %+v", r)
	}
	if r := results[2].Receipt; r.Seq != wa.Topics["news"].Seq+1 || r.Epoch != wa.Topics["news"].Epoch || r.Written != 1 || r.ID != "three" {
		t.Errorf("publish: %+v", r)
	}
	if r := results[8].Receipt; r.Subscribers != 0 || r.ID == "" {
		t.Errorf("to nobody: %+v", r)
	}
	wantMessage(t, b, "$user", "1")
	got := map[string]string{}
	for range 3 {
		m := a.Event().Message
		got[m.Topic] += string(m.Data)
	}
	if got["$user"] != "19" || got["news"] != "3" {
		t.Errorf("ann got %v", got)
	}
	a.WantNothing()
	b.WantNothing()
	if st := srv.Stats(); st.Published != 4 || st.PublishRejects["bad_message"] != 4 || st.PublishRejects["nobody"] != 1 || st.PublishRejects["too_big"] != 1 {
		t.Errorf("%d published, rejects %v", st.Published, st.PublishRejects)
	}
	if got := srv.Batch(t.Context(), nil); len(got) != 0 {
		t.Error(got)
	}
}

// The items of a batch arrive in their order, at every topic and user.
func TestBatchKeepsOrder(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{MaxOutbox: 8 << 20})
	const users, rounds, batches = 20, 50, 3
	conns := make([]*wstest.Conn, users)
	for i := range conns {
		conns[i], _ = joined(t, addr, fmt.Sprintf("/ws?user=u%d&topics=t", i))
	}
	server.Eventually(t, "the subscriptions", func() bool { return srv.Stats().Subscriptions == users })
	var wg sync.WaitGroup
	for n := range batches {
		var items []server.BatchItem
		for i := range rounds {
			data := fmt.Sprintf("[%d,%d]", n, i)
			for u := range users {
				items = append(items, push(fmt.Sprintf("u%d", u), data, server.Wait(i%2)))
			}
			if i%5 == 0 {
				items = append(items, server.BatchItem{Topic: "t", Message: server.Message{Data: []byte(data)}})
			}
		}
		wg.Go(func() {
			for i, r := range srv.Batch(t.Context(), items) {
				if r.Err != nil || r.Receipt.ID == "" {
					t.Errorf("item %d: %+v", i, r)
				}
			}
		})
	}
	for _, c := range conns {
		last := map[string]int{}
		for range batches * (rounds + rounds/5) {
			m := c.Event().Message
			var n, i int
			if _, err := fmt.Sscanf(string(m.Data), "[%d,%d]", &n, &i); err != nil {
				t.Fatal(err)
			}
			from := fmt.Sprint(m.Topic, n)
			if at, ok := last[from]; ok && i <= at {
				t.Fatalf("%s of batch %d: %d behind %d", m.Topic, n, i, at)
			}
			last[from] = i
		}
	}
	wg.Wait()
}

// A batch that is larger than the budget waits for itself, whatever its items
// wait for, and leaves room for others.
func TestBatchLargerThanTheBudget(t *testing.T) {
	t.Parallel()
	const budget = 100_000
	srv, addr := serve(t, server.Config{MaxOutbox: 64 << 20, PublishBudget: budget})
	const users = 10
	var readers sync.WaitGroup
	n := server.Size(4000)
	for i := range users {
		c, _ := joined(t, addr, fmt.Sprintf("/ws?user=u%d", i))
		readers.Go(func() {
			for range 2 * n / users {
				c.Event()
			}
		})
	}
	data := `"` + strings.Repeat("x", 20_000) + `"`
	for _, wait := range []server.Wait{server.WaitSent, server.WaitNone} {
		shared := push("", data, wait)
		items := make([]server.BatchItem, n/2)
		for i := range items {
			items[i] = shared
			items[i].To.User = fmt.Sprintf("u%d", i%users)
			if i%7 == 0 {
				items[i].Message.IdempotencyKey = fmt.Sprint(wait, i)
			}
		}
		for i, r := range srv.Batch(t.Context(), items) {
			if r.Err != nil {
				t.Fatalf("item %d: %v", i, r.Err)
			}
		}
	}
	// So do many at the same time, which together are far over it.
	var wg sync.WaitGroup
	for batch := range 10 {
		wg.Go(func() {
			items := make([]server.BatchItem, n/10)
			for i := range items {
				items[i] = push(fmt.Sprintf("u%d", i%users), data, server.WaitNone)
				if i%7 == 0 {
					items[i].Message.IdempotencyKey = fmt.Sprintf("batch %d item %d", batch, i)
				}
			}
			for i, r := range srv.Batch(t.Context(), items) {
				if r.Err != nil {
					t.Errorf("item %d: %v", i, r.Err)
					return
				}
			}
		})
	}
	wg.Wait()
	readers.Wait()
	server.Eventually(t, "the budget to be free", func() bool { return srv.Stats().PublishBytes == 0 })
	// One item that does not fit at all is refused, as alone.
	small, addr := serve(t, server.Config{PublishBudget: 1000})
	joined(t, addr, "/ws?user=u")
	results := small.Batch(t.Context(), []server.BatchItem{push("u", "1", server.WaitSent), push("u", data, server.WaitSent), push("u", "2", server.WaitSent)})
	if results[0].Err != nil || !errors.Is(results[1].Err, server.ErrBusy) || results[2].Err != nil {
		t.Errorf("%+v", results)
	}
}

// Once ctx has ended nothing more is sent, and what was sent says so.
func TestBatchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	c, _ := joined(t, addr, "/ws?user=ann")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, r := range srv.Batch(ctx, []server.BatchItem{push("ann", "1", server.WaitSent), push("ann", "2", server.WaitNone)}) {
		if !errors.Is(r.Err, context.Canceled) || r.Receipt.ID != "" {
			t.Errorf("%+v", r)
		}
	}
	// In the middle: the first waits for an ack that does not come.
	ctx, cancel = context.WithCancel(t.Context())
	done := make(chan []server.BatchResult)
	go func() { done <- srv.Batch(ctx, []server.BatchItem{push("ann", "3", server.WaitAck)}) }()
	wantMessage(t, c, "$user", "3")
	cancel()
	if r := (<-done)[0]; !errors.Is(r.Err, context.Canceled) || r.Receipt.ID == "" || len(r.Receipt.Devices) != 0 && r.Receipt.Devices[0].Status != server.StatusWritten {
		t.Errorf("%+v", r)
	}
	c.WantNothing()
}

// Pushes of a batch may wait for acknowledgements, all at the same time.
func TestBatchWaitsForAcks(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	a, _ := joined(t, addr, "/ws?user=ann")
	b, _ := joined(t, addr, "/ws?user=bob")
	mute := push("bob", "3", server.WaitAck)
	mute.Message.AckTimeout = 100 * time.Millisecond
	done := make(chan []server.BatchResult)
	go func() {
		done <- srv.Batch(t.Context(), []server.BatchItem{push("ann", "1", server.WaitAck), push("ann", "2", server.WaitAck), mute})
	}()
	var ids []string
	for _, data := range []string{"1", "2"} {
		m := wantMessage(t, a, "$user", data)
		if !m.Ack {
			t.Error("it does not ask for an ack")
		}
		ids = append(ids, m.ID)
	}
	wantMessage(t, b, "$user", "3")
	for _, id := range ids {
		if e := command(t, a, fmt.Sprintf(`{"id":1,"ack":{"id":%q}}`, id)); e.OK == nil {
			t.Errorf("%+v", e)
		}
	}
	results := <-done
	for _, r := range results[:2] {
		if r.Err != nil || r.Receipt.Devices[0].Status != server.StatusAcked {
			t.Errorf("%+v", r)
		}
	}
	if r := results[2]; !errors.Is(r.Err, server.ErrNoAck) || len(r.Receipt.Devices) != 1 || r.Receipt.Devices[0].Status != server.StatusWritten {
		t.Errorf("%+v", r)
	}
}

// A key is a key within a batch and between batches.
func TestBatchKnowsKeys(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	c, _ := joined(t, addr, "/ws?user=ann")
	keyed := push("ann", "1", server.WaitSent)
	keyed.Message.IdempotencyKey = "k"
	other := keyed
	other.Message.Data = []byte("2")
	var id string
	for round := range 2 {
		results := srv.Batch(t.Context(), []server.BatchItem{keyed, keyed, other})
		for i, r := range results[:2] {
			if r.Err != nil || r.Receipt.Written != 1 || r.Receipt.Duplicate != (round+i > 0) || round+i > 0 && r.Receipt.ID != id {
				t.Errorf("round %d, item %d: %+v", round, i, r)
			}
			id = r.Receipt.ID
		}
		if !errors.Is(results[2].Err, server.ErrReused) {
			t.Error(results[2].Err)
		}
	}
	wantMessage(t, c, "$user", "1")
	c.WantNothing()
}

// A shutdown ends every batch, whatever it waits for.
func TestBatchEndsWithTheServer(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{PublishBudget: 50_000, CloseTimeout: 100 * time.Millisecond})
	for i := range 10 {
		joined(t, addr, fmt.Sprintf("/ws?user=u%d&topics=t", i))
	}
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for {
				var items []server.BatchItem
				for i := range 100 {
					items = append(items, push(fmt.Sprintf("u%d", i%10), "1", server.Wait(n%3)))
				}
				items = append(items, server.BatchItem{Topic: "t", Message: server.Message{Data: []byte("1"), Wait: server.WaitSent}})
				for _, r := range srv.Batch(context.Background(), items) {
					if errors.Is(r.Err, server.ErrClosed) {
						return
					}
				}
			}
		})
	}
	server.Eventually(t, "some to be sent", func() bool { return srv.Stats().Published > 1000 })
	ctx, cancel := context.WithTimeout(context.Background(), wstest.Timeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
