package server

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
)

// onces remember publishes by their idempotency key, so that a repeated one is
// delivered once: RFC draft-ietf-httpapi-idempotency-key-header. Clients' ids
// are apart, because so many may come that they would push backends' keys out.
type onces struct{ backends, clients once }

// once is one of them. Entries live for onceWindow; over the budget the oldest
// go early.
type once struct {
	now    func() time.Duration // static
	budget int64                // static, bytes

	mu      lockorder.Mutex[lockorder.Table]
	seen    map[onceKey]*onceEntry
	order   list.List // the same entries by age, oldest first
	bytes   int64     // of all of them
	evicted uint64    // that went early
}

const (
	onceWindow = 2 * time.Minute
	// onceOverhead is what an entry takes beside its strings and its message:
	// itself, its channel, its places in the map and in order.
	onceOverhead = 512
	deviceSize   = 64 // of a device in a receipt, and in a message on its way
	// placeTimeout bounds the bus for a publish with a key, which goes on
	// without its requester, and for one of a client, who keeps a HookWorker busy.
	placeTimeout = 10 * time.Second
)

// onceKey is a key and whose it is: callers do not share keys.
type onceKey struct{ caller, key string }

// onceEntry is one publish with a key. While it is on its way everybody who
// asks for it waits for the same message; whoever sees its end first stores
// the receipt, and the message is let go.
type onceEntry struct {
	in     *once
	key    onceKey
	hash   [sha256.Size]byte // of address and message
	born   time.Duration
	placed chan struct{} // closed when sent, or err, is set

	// Guarded by once.mu.
	at      *list.Element // in once.order; nil when it was forgotten
	size    int64         // as counted in once.bytes
	sent    *sending
	receipt Receipt // when sent is nil
	err     error
}

func newOnces(now func() time.Duration, budget int64) onces {
	clients := budget / 4
	return onces{
		backends: once{now: now, budget: budget - clients, seen: map[onceKey]*onceEntry{}},
		clients:  once{now: now, budget: clients, seen: map[onceKey]*onceEntry{}},
	}
}

// of returns where the keys of caller are.
func (o *onces) of(caller string) *once {
	if caller == "" {
		return &o.backends
	}
	return &o.clients
}

// forget drops what is older than the window.
func (o *onces) forget(now time.Duration) {
	o.backends.forget(now)
	o.clients.forget(now)
}

// usage returns the bytes of all entries, and how many went before their time.
func (o *onces) usage() (bytes int64, evicted uint64) {
	b1, e1 := o.backends.usage()
	b2, e2 := o.clients.usage()
	return b1 + b2, e1 + e2
}

// placeOnce is place for a message with a key. The first with that key is
// placed, and goes on if its requester leaves. A later one with the same
// content joins it; one with another is refused.
func (srv *Server) placeOnce(ctx context.Context, key onceKey, a *address, m *Message, b *batch) (sending, error) {
	e, again, err := srv.once.of(key.caller).enter(key, hashOf(a, m))
	if err != nil {
		return sending{}, err
	}
	if !again {
		srv.placeFirst(ctx, e, a, m, b)
	}
	if err := srv.wait(ctx, e.placed); err != nil {
		return sending{}, fmt.Errorf("wait for its place: %w", err)
	}
	if s, r, err := e.in.result(e); s == nil && r.ID == "" {
		return sending{}, err
	}
	return sending{entry: e, again: again}, nil
}

// placeFirst places the message of a new entry. A bus may block unless it is
// [Immediate]; it then does so in a goroutine of its own, which outlives ctx.
func (srv *Server) placeFirst(ctx context.Context, e *onceEntry, a *address, m *Message, b *batch) {
	if a.verb != verbPublish || srv.hub.immediate {
		s, err := srv.place(ctx, a, m, b)
		e.in.placed(e, s, err)
		return
	}
	to, own := *a, *m
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), placeTimeout)
		defer cancel()
		s, err := srv.place(ctx, &to, &own, nil)
		e.in.placed(e, s, err)
	}()
}

// awaitOnce is await for a message with a key.
func (srv *Server) awaitOnce(ctx context.Context, e *onceEntry, again bool) (Receipt, error) {
	s, r, err := e.in.result(e)
	if s != nil {
		r, err = srv.await(ctx, s)
		// What ended with ctx is this caller's end, not the message's.
		if err == nil || ctx.Err() == nil {
			e.in.finish(e, r, err)
		}
	}
	r.Duplicate = again && r.ID != ""
	return r, err
}

// enter returns the entry of key, and whether it was there already.
func (o *once) enter(key onceKey, hash [sha256.Size]byte) (e *onceEntry, again bool, err error) {
	now := o.now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if e = o.seen[key]; e != nil && now-e.born < onceWindow {
		if e.hash != hash {
			return nil, false, fmt.Errorf("%w: %q came before with other content or another address", ErrReused, key.key)
		}
		return e, true, nil
	}
	if e != nil {
		o.forgetLocked(e)
	}
	e = &onceEntry{in: o, key: key, hash: hash, born: now, placed: make(chan struct{})}
	o.seen[key] = e
	e.at = o.order.PushBack(e)
	o.resizeLocked(e, 0, 0)
	return e, false, nil
}

// placed notes what became of an entry's message. One that was not sent is
// forgotten, so that it can be tried again.
func (o *once) placed(e *onceEntry, s sending, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e.err = err; err != nil {
		o.forgetLocked(e)
	} else {
		e.sent = &s
		o.resizeLocked(e, s.out.cost, len(s.out.To))
	}
	close(e.placed)
}

// result returns the message on its way, or what became of it.
func (o *once) result(e *onceEntry) (*sending, Receipt, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return e.sent, e.receipt, e.err
}

// finish stores what became of an entry's message, unless that is done. One
// that nobody was there for any more is forgotten.
func (o *once) finish(e *onceEntry, r Receipt, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e.sent == nil {
		return
	}
	e.sent, e.receipt, e.err = nil, r, err
	if errors.Is(err, ErrNobody) {
		o.forgetLocked(e)
	}
	o.resizeLocked(e, int64(len(r.ID)+len(r.Epoch)), len(r.Devices))
}

// resizeLocked counts e anew, unless it was forgotten: n bytes beside its own,
// and so many devices.
func (o *once) resizeLocked(e *onceEntry, n int64, devices int) {
	if e.at == nil {
		return
	}
	o.bytes -= e.size
	e.size = onceOverhead + int64(len(e.key.caller)+len(e.key.key)) + n + int64(devices)*deviceSize
	o.bytes += e.size
	o.evictLocked()
}

// evictLocked drops the oldest entries until the rest is within the budget.
// The newest always stays.
func (o *once) evictLocked() {
	for o.bytes > o.budget && o.order.Len() > 1 {
		o.forgetLocked(o.order.Front().Value.(*onceEntry))
		o.evicted++
	}
}

func (o *once) forget(now time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.order.Len() > 0 {
		e := o.order.Front().Value.(*onceEntry)
		if now-e.born < onceWindow {
			return
		}
		if o.forgetLocked(e); o.order.Len() == 0 {
			o.seen = map[onceKey]*onceEntry{} // the old one keeps its size
		}
	}
}

// forgetLocked lets the next publish with the key of e be a first one.
func (o *once) forgetLocked(e *onceEntry) {
	if e.at == nil {
		return
	}
	o.order.Remove(e.at)
	e.at = nil
	delete(o.seen, e.key)
	o.bytes -= e.size
}

func (o *once) usage() (bytes int64, evicted uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes, o.evicted
}

// hashOf digests what must be the same for two publishes to be the same.
func hashOf(a *address, m *Message) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %q %q %d %d ", a.verb, a.topic, a.to.User, a.to.Conn, m.CollapseKey, m.Urgency, m.TTL, m.Rate)
	h.Write(m.Data)
	return [sha256.Size]byte(h.Sum(nil))
}
