package server

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"
)

// once remembers publishes by their idempotency key, so that a repeated one is
// delivered once: RFC draft-ietf-httpapi-idempotency-key-header. Entries live
// for onceWindow and are at most onceLimit; over that the oldest go early.
type once struct {
	kernel kernel

	mu    sync.Mutex
	seen  map[string]*onceEntry
	order []*onceEntry // by age, oldest first
}

const (
	onceWindow = 2 * time.Minute
	onceLimit  = 1 << 17
)

type onceEntry struct {
	key     string
	hash    [sha256.Size]byte // of address and message
	born    time.Duration
	done    chan struct{} // closed when receipt and err are set
	receipt Receipt
	err     error
}

// do runs publish for the first message with that key. A later one with the
// same content waits for the first's receipt; one with another is refused.
// A publish that sent nothing is forgotten, so that it can be tried again.
func (o *once) do(ctx context.Context, key, address string, m *Message, publish func() (Receipt, error)) (Receipt, error) {
	e := &onceEntry{key: key, hash: hashOf(address, m), born: o.kernel.Now(), done: make(chan struct{})}
	o.mu.Lock()
	if first, ok := o.seen[key]; ok && e.born-first.born < onceWindow {
		o.mu.Unlock()
		if first.hash != e.hash {
			return Receipt{}, fmt.Errorf("%w: %q came before with other content or another address", ErrReused, key)
		}
		select {
		case <-first.done:
		case <-ctx.Done():
			return Receipt{}, fmt.Errorf("wait for the first publish with key %q: %w", key, ctx.Err())
		}
		r := first.receipt
		r.Duplicate = first.err == nil
		return r, first.err
	}
	if len(o.order) >= onceLimit {
		o.dropOldestLocked()
	}
	o.seen[key] = e
	o.order = append(o.order, e)
	o.mu.Unlock()

	e.receipt, e.err = publish()
	close(e.done)
	if e.err != nil && e.receipt.ID == "" { // nothing was sent
		o.mu.Lock()
		if o.seen[key] == e {
			delete(o.seen, key)
		}
		o.mu.Unlock()
	}
	return e.receipt, e.err
}

// forget drops what is older than the window.
func (o *once) forget(now time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.order) > 0 && now-o.order[0].born >= onceWindow {
		o.dropOldestLocked()
	}
}

func (o *once) dropOldestLocked() {
	e := o.order[0]
	o.order[0] = nil
	if o.order = o.order[1:]; len(o.order) == 0 {
		o.order = nil
	}
	if o.seen[e.key] == e {
		delete(o.seen, e.key)
	}
}

// hashOf digests what must be the same for two publishes to be the same.
func hashOf(address string, m *Message) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %d %d ", address, m.CollapseKey, m.Urgency, m.TTL, m.Rate)
	h.Write(m.Data)
	return [sha256.Size]byte(h.Sum(nil))
}
