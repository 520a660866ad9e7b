package server

import (
	"fmt"
	"slices"
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// acks knows who waits for the acknowledgement of which message. mu guards
// the rest, the fields of every ackWait included.
type acks struct {
	after func(time.Duration, func()) (stop func() bool) // static

	mu      lockorder.Mutex[lockorder.Table]
	waiting map[string][]*ackWait // by message id
}

// ackWait is one push that waits for its devices. It ends, and is no longer
// known to acks, when every device has acknowledged or was given up, or after
// its timeout; whether its publisher still waits does not matter.
type ackWait struct {
	id      string
	timeout time.Duration
	stop    func() bool   // of its timer
	end     chan struct{} // closed at its end
	refs    []engine.Ref  // that have not acknowledged
	got     []engine.Ref
}

// expect begins to wait for engine.Refs to acknowledge message id.
func (a *acks) expect(id string, refs []engine.Ref, timeout time.Duration) *ackWait {
	w := &ackWait{id: id, timeout: timeout, refs: slices.Clone(refs), end: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	w.stop = a.after(timeout, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.endLocked(w)
	})
	a.waiting[id] = append(a.waiting[id], w)
	return w
}

// endLocked ends w, unless it has ended.
func (a *acks) endLocked(w *ackWait) {
	i := slices.Index(a.waiting[w.id], w)
	if i < 0 {
		return
	}
	if left := slices.Delete(a.waiting[w.id], i, i+1); len(left) > 0 {
		a.waiting[w.id] = left
	} else {
		delete(a.waiting, w.id)
	}
	w.stop()
	close(w.end)
}

// ack notes that connection r acknowledged a message, and reports whether
// somebody waited for that. A second time counts like the first.
func (a *acks) ack(r engine.Ref, id string) (waited bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range slices.Clone(a.waiting[id]) {
		if a.removeLocked(w, r) {
			w.got = append(w.got, r)
		}
		waited = waited || slices.Contains(w.got, r)
	}
	return waited
}

// giveUp no longer waits for connection r.
func (a *acks) giveUp(w *ackWait, r engine.Ref) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removeLocked(w, r)
}

// removeLocked takes r off those that w waits for, if it was one.
func (a *acks) removeLocked(w *ackWait, r engine.Ref) bool {
	i := slices.Index(w.refs, r)
	if i < 0 {
		return false
	}
	if w.refs = slices.Delete(w.refs, i, i+1); len(w.refs) == 0 {
		a.endLocked(w)
	}
	return true
}

func (a *acks) has(w *ackWait, r engine.Ref) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(w.got, r)
}

// result returns nil if any device has acknowledged.
func (a *acks) result(w *ackWait) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(w.got) == 0 {
		return fmt.Errorf("%w: by none of its devices within %s", ErrNoAck, w.timeout)
	}
	return nil
}
