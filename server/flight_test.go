package server

import (
	"sync"
	"testing"
	"time"
)

// Whoever takes a message out has it, and nobody else, also when there are more
// than places.
func TestFlight(t *testing.T) {
	f := flight{node: 7}
	n := 4 * len(f.places)
	messages := make([]*message, n)
	origins := make([]Origin, n)
	for i := range n {
		messages[i] = &message{}
		origins[i] = f.add(messages[i])
	}
	if f.take(Origin{}) != nil || f.take(Origin{8, origins[0].Number}) != nil || f.take(Origin{7, uint64(n) + 1}) != nil {
		t.Error("a message is taken that was not added")
	}
	var wg sync.WaitGroup
	taken := make([][]*message, 4)
	for g := range taken {
		taken[g] = make([]*message, n)
		wg.Go(func() {
			for i := range n {
				taken[g][(i+g)%n] = f.take(origins[(i+g)%n])
			}
		})
	}
	wg.Wait()
	for i := range n {
		count := 0
		for g := range taken {
			switch taken[g][i] {
			case nil:
			case messages[i]:
				count++
			default:
				t.Fatalf("another message is taken for %d", i)
			}
		}
		if count != 1 || f.has(messages[i]) {
			t.Fatalf("message %d is taken %d times", i, count)
		}
	}
	if f.more != nil || f.others.Load() != 0 {
		t.Error("something is left")
	}
}

// Deliveries that do not come are waited for as long as they may come, and not
// for ever; those that came are forgotten.
func TestFlightGivesUp(t *testing.T) {
	s, err := newServer(Config{Dev: true})
	if err != nil {
		t.Fatal(err)
	}
	f := &s.flight
	var all []*message
	for _, topic := range []string{"comes", "lost", "came"} {
		m := &message{srv: s, done: make(chan struct{})}
		f.add(m)
		f.expect(expected{m, topic, Position{1, "e"}, 0})
		all = append(all, m)
	}
	comes := func(topic string, _ Position) bool { return topic == "comes" }
	f.take(Origin{f.node, all[2].number})
	given := func(now time.Duration) (n int) {
		f.giveUp(now, comes)
		for _, m := range all {
			select {
			case <-m.done:
				n++
			default:
			}
		}
		return n
	}
	if n := given(expectTimeout - 1); n != 1 || len(f.expected) != 1 || !f.has(all[0]) || f.has(all[1]) {
		t.Errorf("%d are given up, %v are expected", n, f.expected)
	}
	if n := given(expectTimeout); n != 2 || f.has(all[0]) || len(f.expected) != 0 {
		t.Errorf("%d are given up, %v are expected", n, f.expected)
	}
}
