package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	quietFor   = 2 * time.Second
	quietBytes = 64 << 10 // allocated in quietFor by a process that has nothing to do
	burstBytes = 1 << 20  // garbage that is worth collecting
)

// giveBack collects garbage and returns memory to the system at the start and
// whenever a burst is over: a hundred thousand handshakes leave garbage that an
// idle process would keep for minutes, as its heap does not grow. It runs
// until ctx ends.
func giveBack(ctx context.Context) {
	debug.FreeOSMemory()
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(allocated)
	last := allocated[0].Value.Uint64()
	freed := last
	t := time.NewTicker(quietFor)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(allocated)
		now := allocated[0].Value.Uint64()
		if now-last < quietBytes && now-freed > burstBytes {
			debug.FreeOSMemory()
			freed = now
		}
		last = now
	}
}
