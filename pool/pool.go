// Package pool runs tasks on a bounded set of workers that stand on ants.
//
// A task is a value handed to one function, no closure. Waiting tasks stand
// in a queue of the pool's own, first in, first out; an ants worker is started
// only when one of the few is free, and takes tasks until the queue is empty.
// So submitting never waits, which a worker that submits could not afford,
// and the cost of starting a worker is paid once a burst. A worker that had
// nothing to do for idleTime ends.
package pool

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/panjf2000/ants/v2"
)

// idleTime is how long a worker without work stays; it ends up to one more
// idleTime later, because ants looks once in that time. That is one wake-up in
// ten seconds beside the twenty by which ants keeps its clock.
const idleTime = 10 * time.Second

// Pool runs tasks of type T.
type Pool[T any] struct {
	// Static after construction.
	run     func(worker int, task T)
	onPanic func(task T, value any, stack []byte)
	ants    *ants.PoolWithFuncGeneric[int]

	mu       sync.Mutex
	queue    []T // a ring of fixed size
	head, n  int
	free     []int // numbers of the workers that are not running
	released bool
	quiet    chan struct{} // closed once released and idle
}

// New makes a pool of so many workers, numbered from 0, with room for capacity
// waiting tasks. run is called by one worker with one task; the worker's number
// is its own for as long as run takes, so run may keep buffers by it. onPanic
// is told, in the worker, of a panic in run, which ends that task alone.
func New[T any](workers, capacity int, run func(worker int, task T), onPanic func(task T, value any, stack []byte)) (*Pool[T], error) {
	p := &Pool[T]{run: run, onPanic: onPanic, queue: make([]T, capacity), quiet: make(chan struct{})}
	p.free = make([]int, 0, workers)
	for i := range workers {
		p.free = append(p.free, workers-1-i)
	}
	// The numbers bound how many run. ants has no bound of its own (-1): it
	// counts a worker until it is back in ants' list or has ended, a moment
	// after its number is free here, and would refuse a free one.
	var err error
	p.ants, err = ants.NewPoolWithFuncGeneric(-1, p.work, ants.WithExpiryDuration(idleTime))
	if err != nil {
		return nil, fmt.Errorf("start worker pool: %w", err)
	}
	return p, nil
}

// Submit hands over a task and returns at once. False means that the queue is
// full or the pool released; the task will not run. Any goroutine may call
// it, workers too.
func (p *Pool[T]) Submit(task T) bool {
	p.mu.Lock()
	if p.n == len(p.queue) || p.released {
		p.mu.Unlock()
		return false
	}
	p.queue[(p.head+p.n)%len(p.queue)] = task
	p.n++
	worker := -1
	if last := len(p.free) - 1; last >= 0 {
		worker, p.free = p.free[last], p.free[:last]
	}
	p.mu.Unlock()
	if worker >= 0 {
		if err := p.ants.Invoke(worker); err != nil {
			panic(fmt.Sprintf("pool: ants refused a worker: %v", err))
		}
	}
	return true
}

// work runs tasks until there are none.
func (p *Pool[T]) work(worker int) {
	for {
		p.mu.Lock()
		if p.n == 0 {
			p.free = append(p.free, worker)
			p.quietLocked()
			p.mu.Unlock()
			return
		}
		var none T
		task := p.queue[p.head]
		p.queue[p.head] = none
		p.head = (p.head + 1) % len(p.queue)
		p.n--
		p.mu.Unlock()
		p.guard(worker, task)
	}
}

func (p *Pool[T]) guard(worker int, task T) {
	defer func() {
		if v := recover(); v != nil {
			p.onPanic(task, v, debug.Stack())
		}
	}()
	p.run(worker, task)
}

// Idle reports whether nothing runs and nothing waits.
func (p *Pool[T]) Idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n == 0 && len(p.free) == cap(p.free)
}

// Queued returns how many tasks wait for a worker.
func (p *Pool[T]) Queued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// Release refuses new tasks, waits until those that were accepted have run and
// ends the workers. It gives up waiting when ctx ends; tasks that were accepted
// then go on, and the workers end after them.
func (p *Pool[T]) Release(ctx context.Context) error {
	p.mu.Lock()
	if !p.released {
		p.released = true
		p.quietLocked()
	}
	p.mu.Unlock()
	select {
	case <-p.quiet:
	case <-ctx.Done():
		go func() { // not before: a task may be on its way to a worker, and ants would refuse it
			<-p.quiet
			p.ants.Release()
		}()
		return fmt.Errorf("release worker pool: %w", ctx.Err())
	}
	if err := p.ants.ReleaseContext(ctx); err != nil && !errors.Is(err, ants.ErrPoolClosed) {
		return fmt.Errorf("release worker pool: %w", err)
	}
	return nil
}

func (p *Pool[T]) quietLocked() {
	if p.released && p.n == 0 && len(p.free) == cap(p.free) {
		close(p.quiet)
	}
}
