package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
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
	done.Go(func() { giveBack(ctx) })
	defer done.Wait()
	defer stop()

	connections := make([]byte, 2*largeHeap)
	waitForGOGC(t, largePercent)
	runtime.KeepAlive(connections) // garbage from here on
	waitForGOGC(t, 100)
}

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
		case <-time.After(quietFor / 4):
		}
	}
}
