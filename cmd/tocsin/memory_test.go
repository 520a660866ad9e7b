package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestLargeHeapKeepsLessGarbage grows the heap and lets it shrink again.
func TestLargeHeapKeepsLessGarbage(t *testing.T) {
	t.Setenv("GOGC", "") // for its clean-up
	if err := os.Unsetenv("GOGC"); err != nil {
		t.Fatal(err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { giveBack(ctx, lookEvery) })
	defer done.Wait()
	defer stop()

	connections := make([]byte, 2*largeHeap)
	waitForGOGC(t, largePercent)
	runtime.KeepAlive(connections) // garbage from here on
	waitForGOGC(t, 100)
}

// collections returns the looks at which a process collects that allocates
// rate(look) bytes before each, has size bytes of objects and a goal of goal,
// when a collection costs cost looks of CPU time.
func collections(looks int, size, goal uint64, cost float64, rate func(look int) uint64) (at []int) {
	h := heapState{used: size, goal: goal}
	var c collector
	c.collected(h, cost) // at the start
	for look := range looks {
		h.allocated += rate(look)
		if c.due(h) {
			at = append(at, look)
			c.collected(h, cost)
		}
	}
	return at
}

func TestMemoryIsGivenBackWhenABurstIsOver(t *testing.T) {
	const mib = 1 << 20
	burst := func(rest uint64) func(int) uint64 {
		return func(look int) uint64 {
			if look < 100 {
				return 20 * mib
			}
			return rest
		}
	}
	for _, c := range []struct {
		name       string
		size, goal uint64
		cost       float64
		rate       func(int) uint64
		want       []int
	}{
		{"alone after a burst", 100 * mib, 200 * mib, 0.01, burst(1 << 10), []int{101}},
		{"scraped after a burst", 100 * mib, 200 * mib, 0.01, burst(200 << 10), []int{101, 111, 131, 171, 221, 271}},
		{"published to after a burst", 100 * mib, 200 * mib, 0.01, burst(1 * mib), []int{101, 111, 131, 171, 221, 271}},
		{"a dear collection", 100 * mib, 200 * mib, 1, burst(1 * mib), []int{101, 201}},
		{"busy", 100 * mib, 200 * mib, 0.01, func(int) uint64 { return 20 * mib }, nil},
		{"the runtime collects soon", 3 * mib, 4 * mib, 0.01, func(int) uint64 { return 200 << 10 }, nil},
		{"idle", 100 * mib, 200 * mib, 0.01, func(int) uint64 { return 0 }, nil},
		{"scraped and nothing else", 20 * mib, 40 * mib, 0.01, func(int) uint64 { return 300 << 10 }, []int{4, 14, 34, 74, 124, 174, 224, 274}},
		{"a pause of one look in a burst", 100 * mib, 200 * mib, 0.01, func(look int) uint64 {
			if look%20 == 19 {
				return 0
			}
			return 20 * mib
		}, nil},
	} {
		if got := collections(300, c.size, c.goal, c.cost, c.rate); !slices.Equal(got, c.want) {
			t.Errorf("%s: collected at looks %v, want %v", c.name, got, c.want)
		}
	}
}

// TestMemoryIsGivenBackUnderScrapes makes garbage of a burst while somebody
// goes on allocating a little, as a scrape does.
func TestMemoryIsGivenBackUnderScrapes(t *testing.T) {
	const every, burst = 20 * time.Millisecond, 96 << 20
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	defer done.Wait()
	defer stop()
	resident := func() (bytes uint64) {
		kinds := []metrics.Sample{
			{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		}
		metrics.Read(kinds)
		for _, k := range kinds {
			bytes += k.Value.Uint64()
		}
		return bytes
	}
	done.Go(func() { giveBack(ctx, every) })
	done.Go(func() {
		for tick := time.NewTicker(every / 2); ; <-tick.C {
			if ctx.Err() != nil {
				tick.Stop()
				return
			}
			scrape = make([]byte, 50<<10)
		}
	})
	garbage := make([][]byte, burst>>10)
	for i := range garbage {
		garbage[i] = make([]byte, 1<<10)
	}
	runtime.GC() // the goal is far away now
	runtime.KeepAlive(garbage)
	poll := time.NewTicker(every)
	defer poll.Stop()
	for deadline := time.Now().Add(time.Minute); resident() > burst/4; <-poll.C {
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB are still resident", resident()>>20)
		}
	}
}

var scrape []byte // on the heap

// waitForGOGC waits until garbage may be percent of the live heap.
func waitForGOGC(t *testing.T, percent uint64) {
	t.Helper()
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	for deadline := time.Now().Add(time.Minute); ; {
		runtime.GC()
		metrics.Read(sample)
		got := sample[0].Value.Uint64()
		if got == percent {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("garbage may be %d %% of the heap, want %d", got, percent)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(lookEvery / 4):
		}
	}
}
