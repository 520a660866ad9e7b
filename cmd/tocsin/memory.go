package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	quietFor   = 2 * time.Second
	quietBytes = 64 << 10 // allocated in quietFor by a process that has nothing to do
	burstBytes = 1 << 20  // garbage that is worth collecting

	largeHeap    = 32 << 20 // of live objects
	largePercent = 40       // how much garbage a large heap may have on top
)

// giveBack collects garbage and returns memory to the system at the start and
// whenever a burst is over: a hundred thousand handshakes leave garbage that an
// idle process would keep for minutes, as its heap does not grow. A large heap
// is connections, of which Go would keep as many bytes again in garbage while
// more come; it is collected earlier unless GOGC says something. It runs until
// ctx ends.
func giveBack(ctx context.Context) {
	debug.FreeOSMemory()
	heap := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(heap)
	last := heap[0].Value.Uint64()
	freed := last
	_, fixed := os.LookupEnv("GOGC")
	percent := 100 // Go's own
	t := time.NewTicker(quietFor)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(heap)
		now := heap[0].Value.Uint64()
		wanted := 100
		if heap[1].Value.Uint64() > largeHeap {
			wanted = largePercent
		}
		if wanted != percent && !fixed {
			percent = wanted
			debug.SetGCPercent(percent)
		}
		if now-last < quietBytes && now-freed > burstBytes {
			debug.FreeOSMemory()
			freed = now
		}
		last = now
	}
}
