package server

import (
	"context"
	"testing"
	"time"
)

// askedBus tells of what it is asked.
type askedBus struct {
	Bus
	sink Sink
	asks chan string
	now  chan struct{} // closed when Unsubscribe may return
}

func (b *askedBus) Start(sink Sink) error { b.sink = sink; return nil }

func (b *askedBus) Subscribe(topic string) { b.sink.Ready(topic, Position{}, nil) }

func (b *askedBus) Unsubscribe(topic string) {
	b.asks <- topic
	<-b.now
}

func (b *askedBus) Close() error {
	b.asks <- "close"
	return nil
}

// Whoever forgets topics has no lock of ours while the bus is asked, and the bus
// is closed when that is over.
func TestForgettingHoldsNoLock(t *testing.T) {
	bus := &askedBus{asks: make(chan string), now: make(chan struct{})}
	srv, err := New(Config{Dev: true, Bus: bus, TopicLinger: time.Millisecond, Logger: silent})
	if err != nil {
		t.Fatal(err)
	}
	held, _ := srv.hub.hold("t")
	srv.hub.release([]*topic{held})
	want := func(ask string) {
		t.Helper()
		select {
		case got := <-bus.asks:
			if got != ask {
				t.Errorf("the bus is asked for %q, want %q", got, ask)
			}
		case <-time.After(patience):
			t.Fatalf("the bus is not asked for %q", ask)
		}
	}
	want("t")
	free := make(chan struct{})
	go func() {
		srv.forgetting.mu.Lock()
		defer srv.forgetting.mu.Unlock()
		close(free)
	}()
	select {
	case <-free:
	case <-time.After(patience):
		t.Error("a lock is held while the bus is called")
	}
	ended := make(chan error)
	go func() { ended <- srv.Shutdown(context.Background()) }()
	close(bus.now)
	want("close")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
