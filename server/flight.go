package server

import (
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
)

// flight is the publishes whose message is with the bus. Whoever takes a message
// out has it: the delivery, or the publisher who will not wait for one.
type flight struct {
	node uint64 // static
	next atomic.Uint64
	// Each has its place by its number; if another has it, it goes to more.
	places [1024]atomic.Pointer[message]
	others atomic.Int64 // how many are in more

	mu       lockorder.Mutex[lockorder.Table]
	more     map[uint64]*message
	expected []expected // those whose delivery is waited for, and some that had it
}

// expected is a message that subscribers of this node should be given soon.
type expected struct {
	m     *message
	topic string
	at    Position
	since time.Duration
}

// expectTimeout is how long a delivery is waited for that does not come.
const expectTimeout = 10 * time.Second

// add puts m in, and returns the name that it has there.
func (f *flight) add(m *message) Origin {
	m.number = f.next.Add(1)
	if !f.place(m.number).CompareAndSwap(nil, m) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.more == nil {
			f.more = map[uint64]*message{}
		}
		f.more[m.number] = m
		f.others.Add(1)
	}
	return Origin{Node: f.node, Number: m.number}
}

func (f *flight) place(number uint64) *atomic.Pointer[message] {
	return &f.places[number%uint64(len(f.places))]
}

// take returns the message of that origin and forgets it. It returns nil if it
// was taken before, or was not published here.
func (f *flight) take(o Origin) *message {
	if o.Node != f.node {
		return nil
	}
	at := f.place(o.Number)
	if m := at.Load(); m != nil && m.number == o.Number {
		if at.CompareAndSwap(m, nil) {
			return m
		}
		return nil
	}
	if f.others.Load() == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.more[o.Number]
	if m == nil {
		return nil
	}
	f.others.Add(-1)
	if delete(f.more, o.Number); len(f.more) == 0 {
		f.more = nil // a map keeps the room of its largest size
	}
	return m
}

// has reports whether nobody has taken m.
func (f *flight) has(m *message) bool {
	if f.place(m.number).Load() == m {
		return true
	}
	if f.others.Load() == 0 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.more[m.number] != nil
}

// expect notes that m should be delivered here.
func (f *flight) expect(e expected) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expected = append(f.expected, e)
}

// giveUp ends the wait for deliveries that will not come. The ticker calls it.
func (f *flight) giveUp(now time.Duration, comes func(topic string, at Position) bool) {
	f.mu.Lock()
	all := f.expected
	f.expected = nil
	f.mu.Unlock()
	kept := all[:0]
	for _, e := range all {
		switch {
		case !f.has(e.m):
		case now-e.since < expectTimeout && comes(e.topic, e.at):
			kept = append(kept, e)
		default:
			if m := f.take(Origin{f.node, e.m.number}); m != nil {
				m.Delivered()
			}
		}
	}
	clear(all[len(kept):])
	if len(kept) == 0 {
		return
	}
	f.mu.Lock()
	f.expected = append(kept, f.expected...)
	f.mu.Unlock()
}
