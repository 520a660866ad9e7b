package server_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// otherBus is a bus as one between nodes is: it numbers by itself, and what was
// published comes back from a goroutine of its own, without the publisher's
// side of it.
type otherBus struct {
	mu      sync.Mutex
	seq     map[string]uint64
	deliver map[string]func(server.Publication, server.Position)
	queue   chan func()
	ended   chan struct{}
	broken  error
}

func newOtherBus() *otherBus {
	b := &otherBus{
		seq: map[string]uint64{}, deliver: map[string]func(server.Publication, server.Position){},
		queue: make(chan func(), 1000), ended: make(chan struct{}),
	}
	go func() {
		defer close(b.ended)
		for do := range b.queue {
			do()
		}
	}()
	return b
}

func (b *otherBus) Publish(_ context.Context, p server.Publication) (server.Position, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return server.Position{}, b.broken
	}
	b.seq[p.Topic]++
	at := server.Position{Seq: b.seq[p.Topic], Epoch: "other"}
	b.queue <- func() {
		b.mu.Lock()
		deliver := b.deliver[p.Topic]
		b.mu.Unlock()
		if deliver != nil {
			deliver(server.Publication{Topic: p.Topic, Message: p.Message}, at)
		}
	}
	return at, nil
}

func (b *otherBus) Subscribe(topic string, deliver func(server.Publication, server.Position)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return b.broken
	}
	b.deliver[topic] = deliver
	return nil
}

func (b *otherBus) Unsubscribe(topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.deliver, topic)
}

func (b *otherBus) Close() error {
	close(b.queue)
	<-b.ended
	return nil
}

// One table, every bus: what subscribers and publishers see is the same.
func TestBus(t *testing.T) {
	for name, bus := range map[string]server.Bus{"local": nil, "other": newOtherBus()} {
		t.Run(name, func(t *testing.T) {
			srv, addr := serve(t, server.Config{Bus: bus, PublishBudget: 100_000, MaxOutbox: 1 << 20})
			c, _ := joined(t, addr, "/ws?topics=t")
			epoch := ""
			// Many more than the budget holds, one after the other.
			const n = 500
			for i := range n {
				r, err := srv.Publish(t.Context(), "t", server.Message{Data: fmt.Append(nil, i), Wait: server.WaitSent})
				if err != nil || r.Seq != uint64(i+1) || bus != nil && r.Epoch != "other" || bus == nil && r.Subscribers != 1 {
					t.Fatalf("%+v, %v", r, err)
				}
				epoch = r.Epoch
				if m := wantMessage(t, c, "t", fmt.Sprint(i)); m.Seq != r.Seq || m.ID != r.ID {
					t.Fatalf("%+v of %+v", m, r)
				}
			}
			d, _ := joined(t, addr, "/ws")
			if e := command(t, d, fmt.Sprintf(`{"id":1,"subscribe":{"topic":"t","after":%d,"epoch":%q}}`, n, epoch)); e.OK == nil || e.OK.Seq != n || e.OK.Recovered == nil || !*e.OK.Recovered {
				t.Errorf("%+v %+v", e.OK, e.Error)
			}
			d.WantNothing()
			// A topic without a subscriber here.
			for range n {
				r, err := srv.Publish(t.Context(), "elsewhere", server.Message{Data: []byte("1"), Wait: server.WaitSent})
				if err != nil || r.Subscribers != 0 {
					t.Fatal(r, err)
				}
			}
			if st := srv.Stats(); st.PublishBytes != 0 {
				t.Errorf("%d bytes are still on their way", st.PublishBytes)
			}
			c.WantNothing()
		})
	}
}

// slowBus publishes when it is told to.
type slowBus struct {
	*otherBus
	began, proceed chan struct{}
}

func (b *slowBus) Publish(ctx context.Context, p server.Publication) (server.Position, error) {
	b.began <- struct{}{}
	<-b.proceed
	return b.otherBus.Publish(ctx, p)
}

// What a bus was given does not change when the publisher, who waits no longer,
// uses its buffer again.
func TestPublishersBufferIsItsOwn(t *testing.T) {
	bus := &slowBus{newOtherBus(), make(chan struct{}), make(chan struct{})}
	srv, addr := serve(t, server.Config{Bus: bus})
	c, _ := joined(t, addr, "/ws?topics=t")
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
	bus := newOtherBus()
	bus.broken = errors.New("no route")
	srv, addr := serve(t, server.Config{Bus: bus})
	c, w := joined(t, addr, "/ws?topics=t")
	if len(w.Topics) != 0 && w.Topics["t"].Epoch != "" {
		t.Errorf("%+v", w.Topics)
	}
	wantError(t, command(t, c, `{"id":1,"subscribe":{"topic":"t"}}`), wire.Internal)
	wantError(t, command(t, c, `{"id":2,"publish":{"topic":"t","data":1}}`), wire.Internal)
	if _, err := srv.Publish(t.Context(), "t", server.Message{Data: []byte("1")}); !errors.Is(err, bus.broken) {
		t.Error(err)
	}
	c.Send(wstest.Ping("alive"))
	c.WantPong("alive")
	if st := srv.Stats(); st.PublishBytes != 0 || st.Subscriptions != 0 || st.PublishRejects["error"] != 2 {
		t.Errorf("%+v", st)
	}
}
