package pool

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const patience = 30 * time.Second

func newPool[T any](t *testing.T, workers, capacity int, run func(int, T), onPanic func(T, any, []byte)) *Pool[T] {
	t.Helper()
	if onPanic == nil {
		onPanic = func(task T, v any, stack []byte) { t.Errorf("%v panicked: %v\n%s", task, v, stack) }
	}
	p, err := New(workers, capacity, run, onPanic)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func release[T any](t *testing.T, p *Pool[T]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.Release(ctx); err != nil {
		t.Error(err)
	}
}

func TestFirstInFirstOut(t *testing.T) {
	var got []int
	p := newPool(t, 1, 100, func(_, task int) { got = append(got, task) }, nil)
	for i := range 100 {
		for !p.Submit(i) {
			runtime.Gosched()
		}
	}
	release(t, p)
	if !slices.IsSorted(got) || len(got) != 100 {
		t.Errorf("ran %v", got)
	}
}

func TestFullAndReleased(t *testing.T) {
	hold := make(chan struct{})
	began := make(chan int, 10)
	p := newPool(t, 2, 3, func(_, task int) { began <- task; <-hold }, nil)
	if !p.Idle() {
		t.Error("a new pool is not idle")
	}
	for i := range 2 {
		p.Submit(i)
		<-began
	}
	accepted := 0
	for i := range 10 {
		if p.Submit(i) {
			accepted++
		}
	}
	if accepted != 3 || p.Queued() != 3 || p.Idle() {
		t.Errorf("%d accepted into a queue of 3, %d queued", accepted, p.Queued())
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Release(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("Release of a busy pool: %v", err)
	}
	if p.Submit(1) {
		t.Error("a released pool takes tasks")
	}
	close(hold)
	release(t, p) // what was accepted runs, and a second Release waits for it
	if len(began) != 3 || p.Queued() != 0 || !p.Idle() {
		t.Errorf("%d of 3 accepted tasks ran", len(began))
	}
	release(t, p)
}

// A worker's number is its own while it runs, and numbers stay below the count.
func TestWorkerNumbers(t *testing.T) {
	const workers = 4
	var busy [workers]atomic.Bool
	var ran atomic.Int64
	p := newPool(t, workers, 64, func(worker, _ int) {
		if !busy[worker].CompareAndSwap(false, true) {
			t.Errorf("two tasks on worker %d", worker)
		}
		runtime.Gosched()
		busy[worker].Store(false)
		ran.Add(1)
	}, nil)
	var wg sync.WaitGroup
	const each = 5000
	for range 8 {
		wg.Go(func() {
			for i := range each {
				for !p.Submit(i) {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	release(t, p)
	if ran.Load() != 8*each {
		t.Errorf("%d of %d tasks ran", ran.Load(), 8*each)
	}
}

// A panic ends its task alone, and is told with its stack.
func TestPanic(t *testing.T) {
	var panics, ran atomic.Int32
	p := newPool(t, 2, 100, func(_, task int) {
		if task%3 == 0 {
			panic(task)
		}
		ran.Add(1)
	}, func(task int, v any, stack []byte) {
		if v != task || !slices.Contains([]int{0, 3, 6, 9}, task) || len(stack) == 0 {
			t.Errorf("task %d: %v", task, v)
		}
		panics.Add(1)
	})
	for i := range 12 {
		p.Submit(i)
	}
	release(t, p)
	if panics.Load() != 4 || ran.Load() != 8 {
		t.Errorf("%d panics, %d ran", panics.Load(), ran.Load())
	}
}

// A task may submit, even into its own full pool, and does not wait for it.
func TestSubmitFromInside(t *testing.T) {
	done := make(chan struct{})
	var p *Pool[int]
	p = newPool(t, 1, 2, func(_, task int) {
		for task == 0 && p.Submit(1) { // until it is full
		}
		if task == 2 {
			close(done)
		}
	}, nil)
	p.Submit(0)
	for !p.Submit(2) {
		runtime.Gosched()
	}
	<-done
	release(t, p)
}

// Once released, a pool has no goroutine left.
func TestGoroutinesEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 10 {
		p := newPool(t, 8, 100, func(int, int) {}, nil)
		for i := range 100 {
			p.Submit(i)
		}
		release(t, p)
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, before there were %d", runtime.NumGoroutine(), before)
		}
	}
}

// Workers that a burst has started end when they have had nothing to do for a
// while, and the pool works on.
func TestIdleWorkersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers = 100
		hold := make(chan struct{})
		p := newPool(t, workers, workers, func(int, int) { <-hold }, nil)
		for range 3 {
			for i := range workers {
				p.Submit(i)
			}
			synctest.Wait()
			if n := p.ants.Running(); n != workers {
				t.Fatalf("%d goroutines run %d tasks", n, workers)
			}
			for range workers {
				hold <- struct{}{}
			}
			time.Sleep(2*idleTime + time.Second) // the bubble's time
			synctest.Wait()
			if n := p.ants.Running(); n != 0 {
				t.Fatalf("%d goroutines are left of the burst", n)
			}
		}
		release(t, p)
	})
}

func TestSubmitAllocatesNothing(t *testing.T) {
	ran := make(chan int, 1)
	p := newPool(t, 1, 4, func(_, task int) { ran <- task }, nil)
	if n := testing.AllocsPerRun(1000, func() {
		p.Submit(1)
		<-ran
	}); n > 0 {
		t.Errorf("%v allocations for a task", n)
	}
	release(t, p)
}

func BenchmarkSubmit(b *testing.B) {
	p, err := New(2, 64, func(int, int) {}, func(int, any, []byte) {})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		for !p.Submit(1) {
			runtime.Gosched()
		}
	}
	if err := p.Release(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// TestReleaseThatGivesUpRefusesNoAcceptedTask: a task may be on its way to a
// worker when the wait for it ends.
func TestReleaseThatGivesUpRefusesNoAcceptedTask(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for range 200 {
		const submitters = 16
		var accepted, ran atomic.Int64
		p, err := New(submitters, submitters, func(int, int) { ran.Add(1) }, func(int, any, []byte) {})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range submitters {
			all.Go(func() {
				if p.Submit(i) {
					accepted.Add(1)
				}
			})
		}
		_ = p.Release(canceled)
		all.Wait()
		select {
		case <-p.quiet:
		case <-time.After(patience):
			t.Fatal("a task does not end")
		}
		if ran.Load() != accepted.Load() {
			t.Fatalf("%d of %d accepted tasks ran", ran.Load(), accepted.Load())
		}
	}
}
