package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	lookEvery = 2 * time.Second

	farLooks   = 30      // a collection that the runtime begins by itself within these is left to it
	minLooks   = 5       // from one collection of ours to the next, twice as many each time until
	maxLooks   = 50      // which are less than the two minutes after which the runtime collects anyway
	worthBytes = 1 << 20 // allocated since the last collection of ours
	costShare  = 100     // a collection takes at most one of these parts of a CPU

	largeHeap    = 32 << 20 // of live objects
	largePercent = 40       // how much garbage a large heap may have on top
)

// heapState is what the decision to collect is made of.
type heapState struct {
	allocated uint64  // bytes since the process began
	used      uint64  // bytes of objects, garbage included
	goal      uint64  // bytes of objects at which the runtime collects
	live      uint64  // bytes of objects that the last collection left
	cpu       float64 // seconds that collections and returning memory took
}

// giveBack collects garbage and returns memory to the system at the start and
// whenever a burst is over. The runtime collects when the heap has grown to its
// goal; after a burst that is so far away that a process which only answers a
// scrape each second would keep the burst's garbage for good. A large heap is
// connections, of which Go would keep as many bytes again in garbage while more
// come; it is collected earlier unless GOGC says something. It looks once in
// every and runs until ctx ends.
func giveBack(ctx context.Context, every time.Duration) {
	var c collector
	collect := func(heap heapState) {
		debug.FreeOSMemory()
		after := readHeap()
		c.collected(after, (after.cpu-heap.cpu)/every.Seconds())
	}
	collect(readHeap())
	_, fixed := os.LookupEnv("GOGC")
	percent := 100 // Go's own
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		heap := readHeap()
		if wanted := heap.percent(); wanted != percent && !fixed {
			percent = wanted
			debug.SetGCPercent(percent)
		}
		if c.due(heap) {
			collect(heap)
		}
	}
}

// percent returns how much garbage the heap may have on top of its live objects.
func (h heapState) percent() int {
	if h.live > largeHeap {
		return largePercent
	}
	return 100
}

func readHeap() heapState {
	m := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/goal:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/cpu/classes/gc/total:cpu-seconds"},
		{Name: "/cpu/classes/scavenge/total:cpu-seconds"},
	}
	metrics.Read(m)
	return heapState{
		allocated: m[0].Value.Uint64(),
		used:      m[1].Value.Uint64(),
		goal:      m[2].Value.Uint64(),
		live:      m[3].Value.Uint64(),
		cpu:       m[4].Value.Float64() + m[5].Value.Float64(),
	}
}

// collector decides when to collect. It is asked at each look.
type collector struct {
	last     uint64 // allocated at the last look
	since    uint64 // allocated at the last collection of ours
	quiet    bool   // the last look was
	looks    int    // since the last collection of ours
	interval int    // looks until the next one, for there is no need of more
	rest     int    // looks until the next one, for it may not cost more
}

// due reports whether the heap should be collected now: the runtime will not do
// it soon, which a burst resets, and two looks in a row say so.
func (c *collector) due(h heapState) bool {
	rate := h.allocated - c.last // bytes a look
	quiet := h.used+rate*farLooks < h.goal
	was := c.quiet
	c.last, c.quiet = h.allocated, quiet
	c.looks++
	if !quiet {
		c.interval = minLooks
	}
	return quiet && was && c.looks >= max(c.interval, c.rest) && h.allocated-c.since > worthBytes
}

// collected is told of each collection of ours and of the looks that would have
// passed in its CPU time.
func (c *collector) collected(h heapState, cpu float64) {
	c.last, c.since, c.looks = h.allocated, h.allocated, 0
	c.rest = int(cpu * costShare)
	c.interval = min(max(2*c.interval, minLooks), maxLooks)
}
