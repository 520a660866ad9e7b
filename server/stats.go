package server

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// Stats is what a server has counted since it was made. Names with a reason or
// code are complete: every event has exactly one.
type Stats struct {
	Connections   int // open WebSocket connections
	Handshaking   int // accepted and not yet upgraded
	Users         int // distinct users with a connection
	Topics        int // topics with a subscriber
	Subscriptions int
	Capacity      int // connections that MaxConnections allows
	Draining      bool

	Accepted         uint64
	AcceptErrors     map[string]uint64    // by errno
	HandshakeRejects map[string]uint64    // by reason
	Closes           map[CloseKind]uint64 // of upgraded connections
	Published        uint64
	PublishRejects   map[string]uint64 // by reason
	Deliveries       uint64            // written or queued
	Drops            map[string]uint64 // deliveries not made, by reason
	CommandErrors    map[string]uint64 // by error code
	HookPanics       uint64
	FramesIn         uint64
	BytesIn          uint64
	BytesOut         uint64
	PingsSent        uint64
	StaleEvents      uint64 // readiness or inbox entries for a connection that was gone

	OutboxBytes   int64 // waiting for all connections
	PublishBytes  int64 // published and not yet walked
	HooksQueued   int   // hook calls waiting for a worker
	ShardMin      int   // connections of the emptiest shard
	ShardMax      int   // and of the fullest
	FanoutSeconds Histogram
	TurnSeconds   Histogram // length of a turn
	WaitSeconds   Histogram // from a shard being ready to its turn
	HookSeconds   Histogram
}

// CloseKind labels the end of an upgraded connection.
type CloseKind struct {
	Code wire.CloseCode
	By   string // "server", "client", or "lost" when there was no Close frame
}

// Histogram counts durations in buckets whose bounds double from one
// microsecond: Counts[i] has those up to 1 µs << i, the last one all others.
type Histogram struct {
	Counts [26]uint64
	Sum    time.Duration
}

// histogram is a [Histogram] that many goroutines add to.
type histogram struct {
	counts [26]atomic.Uint64
	sum    atomic.Int64
}

func (h *histogram) observe(d time.Duration) {
	i := bits.Len64(uint64(max(d-1, 0)) / 1000)
	h.counts[min(i, len(h.counts)-1)].Add(1)
	h.sum.Add(int64(d))
}

func (h *histogram) snapshot() (out Histogram) {
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
	}
	out.Sum = time.Duration(h.sum.Load())
	return out
}
