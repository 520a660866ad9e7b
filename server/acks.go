package server

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// acks knows who waits for the acknowledgement of which message.
type acks struct {
	mu      sync.Mutex
	waiting map[string][]*ackWait // by message id
}

// ackWait is one push that waits for its devices.
type ackWait struct {
	mu   sync.Mutex
	refs []ref // that have not acknowledged
	got  []ref
	all  chan struct{} // closed when none is left
}

func (a *acks) expect(id string, refs []ref) *ackWait {
	wait := &ackWait{refs: slices.Clone(refs), all: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[id] = append(a.waiting[id], wait)
	return wait
}

func (a *acks) forget(id string, wait *ackWait) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if left := slices.DeleteFunc(a.waiting[id], func(w *ackWait) bool { return w == wait }); len(left) > 0 {
		a.waiting[id] = left
	} else {
		delete(a.waiting, id)
	}
}

// ack notes that connection r acknowledged a message, and reports whether
// somebody waited for that.
func (a *acks) ack(r ref, id string) (waited bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, wait := range a.waiting[id] {
		waited = wait.ack(r) || waited
	}
	return waited
}

func (w *ackWait) ack(r ref) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.refs, r)
	if i < 0 {
		return slices.Contains(w.got, r)
	}
	w.refs = slices.Delete(w.refs, i, i+1)
	w.got = append(w.got, r)
	if len(w.refs) == 0 {
		close(w.all)
	}
	return true
}

// giveUp no longer waits for connection r.
func (w *ackWait) giveUp(r ref) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.refs, r); i >= 0 {
		if w.refs = slices.Delete(w.refs, i, i+1); len(w.refs) == 0 {
			close(w.all)
		}
	}
}

func (w *ackWait) has(r ref) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.got, r)
}

// wait returns nil once every device has acknowledged or, after timeout, if
// any has.
func (w *ackWait) wait(ctx context.Context, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-w.all:
	case <-timer.C:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.got) == 0 {
		return fmt.Errorf("%w: by none of its devices within %s", ErrNoAck, timeout)
	}
	return nil
}
