package engine

import (
	"maps"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/wire"
)

// Reject is why a connection was not upgraded.
type Reject string

// The reasons of [Turn.Refuse] and of the engine itself.
const (
	RejectHead      Reject = "head"
	RejectBody      Reject = "body"
	RejectMethod    Reject = "method"
	RejectPath      Reject = "path"
	RejectUpgrade   Reject = "upgrade"
	RejectVersion   Reject = "version"
	RejectAuth      Reject = "auth"
	RejectForbidden Reject = "forbidden"
	RejectTimeout   Reject = "timeout"
	RejectLimit     Reject = "max_connections"
	RejectShutdown  Reject = "shutdown"
	RejectGone      Reject = "gone"
	RejectBus       Reject = "bus"
)

// Drop is why a parcel was not sent to a connection that it was for.
type Drop string

// The reasons of a drop.
const (
	DropGone      Drop = "gone"      // the connection ended
	DropTTL       Drop = "ttl"       // the parcel was too old
	DropOverflow  Drop = "overflow"  // the outbox was full
	DropCollapsed Drop = "collapsed" // a newer one with its collapse key came
	DropBudget    Drop = "budget"    // all outboxes together were full
	DropBus       Drop = "bus"       // it did not come to this node

	lostEpoch Drop = "epoch" // of a notice that a numbering is new: nothing is counted
)

// Cut is why a connection was too slow, and was closed with 3008.
type Cut string

// The reasons of a cut.
const (
	CutOutbox  Cut = "outbox"
	CutStalled Cut = "stalled"
	CutTrickle Cut = "trickle"
	CutBudget  Cut = "budget"
)

// cuts says what the peer of a connection that is cut is told, and which
// setting of the operator's decides.
var cuts = map[Cut]struct{ text, knob string }{
	CutOutbox:  {"too much waits for this connection", "max-outbox"},
	CutStalled: {"this connection takes nothing", "write-timeout"},
	CutTrickle: {"this connection reads too slowly", "outbox-age"},
	CutBudget:  {"too much waits for all connections together", "outbox-budget"},
}

// Cuts returns all reasons.
func Cuts() []Cut { return slices.Collect(maps.Keys(cuts)) }

// Text returns what the peer is told.
func (c Cut) Text() string { return cuts[c].text }

// Knob returns the name of the setting that decides when a connection is cut.
func (c Cut) Knob() string { return cuts[c].knob }

// By is who ended a connection.
type By string

// Who ends connections.
const (
	ByServer By = "server"
	ByClient By = "client"
	ByLost   By = "lost" // there was no Close frame
)

// CloseKind labels the end of an upgraded connection.
type CloseKind struct {
	Code wire.CloseCode
	By   By
}

// counts are what is counted for the whole engine. Shards count more, see
// [counters].
type counts struct {
	opened, handshaking, outboxBytes atomic.Int64 // at the moment
	waitingCalls                     atomic.Int64 // that shards keep because the runner has no room
	accepted, panics                 atomic.Uint64

	rejects tally[Reject]
	drops   tally[Drop]
	cuts    tally[Cut]
	closes  Tallies[CloseKind]
	accepts Tallies[string] // refused by the kernel, by errno

	wait, turn, call Times
}

func (c *counts) init() {
	c.rejects.init(RejectHead, RejectBody, RejectMethod, RejectPath, RejectUpgrade, RejectVersion,
		RejectAuth, RejectForbidden, RejectTimeout, RejectLimit, RejectShutdown, RejectGone, RejectBus)
	c.drops.init(DropGone, DropTTL, DropOverflow, DropCollapsed, DropBudget, DropBus)
	c.cuts.init(CutOutbox, CutStalled, CutTrickle, CutBudget)
}

// closed counts the end of an upgraded connection. Codes that peers make up
// are counted as 4999, so that their number is bounded.
func (c *counts) closed(code wire.CloseCode, by By) {
	if by == ByClient && code >= 3000 {
		code = 4999
	}
	c.closes.Add(CloseKind{code, by})
}

// tally counts by reasons that are known beforehand, all of which are shown.
type tally[K comparable] struct{ of map[K]*atomic.Uint64 }

func (t *tally[K]) init(reasons ...K) {
	t.of = make(map[K]*atomic.Uint64, len(reasons))
	for _, r := range reasons {
		t.of[r] = new(atomic.Uint64)
	}
}

func (t *tally[K]) add(reason K, n int) { t.of[reason].Add(uint64(n)) }

// Tallies counts by keys that come up.
type Tallies[K comparable] struct {
	mu lockorder.Mutex[lockorder.Leaf]
	of map[K]uint64
}

// Add counts one.
func (t *Tallies[K]) Add(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[K]uint64{}
	}
	t.of[key]++
}

// Snapshot returns what was counted so far.
func (t *Tallies[K]) Snapshot() map[K]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.of)
}

// byName is for a map whose keys are plain strings.
func byName[K ~string](t *tally[K]) map[string]uint64 {
	m := make(map[string]uint64, len(t.of))
	for reason, n := range t.of {
		m[string(reason)] = n.Load()
	}
	return m
}

// counters are a shard's own, so that workers do not share cache lines.
type counters struct {
	deliveries, framesIn, bytesIn, pings, stale atomic.Uint64
}

// Stats is what an engine has counted since it was made.
type Stats struct {
	Connections, Handshaking              int
	Accepted, CallPanics                  uint64
	AcceptErrors                          map[string]uint64 // by errno
	HandshakeRejects                      map[string]uint64 // by [Reject]
	Closes                                map[CloseKind]uint64
	Drops                                 map[string]uint64 // by [Drop]
	Cuts                                  map[string]uint64 // by [Cut]
	Deliveries, FramesIn, BytesIn         uint64
	PingsSent, StaleEvents                uint64
	OutboxBytes                           int64
	CallsQueued, ShardMin, ShardMax       int
	TurnSeconds, WaitSeconds, CallSeconds Histogram
}

// Stats returns what was counted so far. It costs a few locks, and allocates.
func (e *Engine) Stats() Stats {
	c := &e.counts
	out := Stats{
		Connections:      int(c.opened.Load()),
		Handshaking:      int(c.handshaking.Load()),
		Accepted:         c.accepted.Load(),
		CallPanics:       c.panics.Load(),
		AcceptErrors:     c.accepts.Snapshot(),
		HandshakeRejects: byName(&c.rejects),
		Closes:           c.closes.Snapshot(),
		Drops:            byName(&c.drops),
		Cuts:             byName(&c.cuts),
		OutboxBytes:      c.outboxBytes.Load(),
		CallsQueued:      e.runner.Calls(),
		TurnSeconds:      c.turn.Snapshot(),
		WaitSeconds:      c.wait.Snapshot(),
		CallSeconds:      c.call.Snapshot(),
	}
	for i, s := range e.shards {
		out.Deliveries += s.count.deliveries.Load()
		out.FramesIn += s.count.framesIn.Load()
		out.BytesIn += s.count.bytesIn.Load()
		out.PingsSent += s.count.pings.Load()
		out.StaleEvents += s.count.stale.Load()
		n := int(s.conns.Load())
		if out.ShardMax = max(out.ShardMax, n); i == 0 || n < out.ShardMin {
			out.ShardMin = n
		}
	}
	return out
}

// Histogram counts durations in buckets whose bounds double from one
// microsecond: Counts[i] has those up to 1 µs << i, the last one all others.
type Histogram struct {
	Counts [26]uint64
	Sum    time.Duration
}

// Times is a [Histogram] that many goroutines add to.
type Times struct {
	counts [26]atomic.Uint64
	sum    atomic.Int64
}

// Observe counts d.
func (h *Times) Observe(d time.Duration) {
	i := bits.Len64(uint64(max(d-1, 0)) / 1000)
	h.counts[min(i, len(h.counts)-1)].Add(1)
	h.sum.Add(int64(d))
}

// Snapshot returns what was counted so far.
func (h *Times) Snapshot() (out Histogram) {
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
	}
	out.Sum = time.Duration(h.sum.Load())
	return out
}
