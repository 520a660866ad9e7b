package server

import (
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
	Lingering     int // topics whose last subscriber left less than Config.TopicLinger ago
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
	Cuts             map[string]uint64 // connections closed with 3008, by reason
	CommandErrors    map[string]uint64 // by error code
	HookPanics       uint64
	FramesIn         uint64
	BytesIn          uint64
	PingsSent        uint64
	LingerEvictions  uint64 // topics forgotten before their time, for Config.LingerBudget
	StaleEvents      uint64 // readiness or inbox entries for a connection that was gone

	OutboxBytes   int64 // waiting for all connections
	PublishBytes  int64 // published and not yet handed to every subscriber
	LingerBytes   int64 // of topics that linger
	HooksQueued   int   // hook calls waiting for a worker
	ShardMin      int   // connections of the emptiest shard
	ShardMax      int   // and of the fullest
	FanoutSeconds Histogram
	TurnSeconds   Histogram // length of a turn
	WaitSeconds   Histogram // from a shard being ready to its turn
	HookSeconds   Histogram

	IdempotencyBytes     int64  // remembered keys and their receipts
	IdempotencyEvictions uint64 // keys forgotten before their two minutes
}

// CloseKind labels the end of an upgraded connection.
type CloseKind struct {
	Code wire.CloseCode
	By   string // "server", "client", or "lost" when there was no Close frame
}

// Stats returns what has been counted so far. It costs a lock or two of each
// shard and index stripe, and allocates; once a second is no burden.
func (srv *Server) Stats() Stats {
	e := srv.engine.Stats()
	out := Stats{
		Connections:   e.Connections,
		Handshaking:   e.Handshaking,
		Users:         srv.hub.users.len(),
		Topics:        srv.hub.topics.len(),
		Lingering:     int(srv.hub.lingers.topics.Load()),
		Subscriptions: int(srv.hub.subscriptions.Load()),
		Capacity:      srv.engine.Capacity(),
		Draining:      srv.engine.Draining(),

		Accepted:         e.Accepted,
		AcceptErrors:     e.AcceptErrors,
		HandshakeRejects: e.HandshakeRejects,
		Closes:           make(map[CloseKind]uint64, len(e.Closes)),
		Published:        srv.counts.published.Load(),
		PublishRejects:   srv.counts.publishes.Snapshot(),
		Deliveries:       e.Deliveries,
		Drops:            e.Drops,
		Cuts:             e.Cuts,
		CommandErrors:    srv.counts.commands.Snapshot(),
		HookPanics:       e.CallPanics,
		FramesIn:         e.FramesIn,
		BytesIn:          e.BytesIn,
		PingsSent:        e.PingsSent,
		LingerEvictions:  srv.hub.lingers.evicted.Load(),
		StaleEvents:      e.StaleEvents,

		OutboxBytes:   e.OutboxBytes,
		PublishBytes:  srv.publishBytes.Load(),
		LingerBytes:   srv.hub.lingers.bytes.Load(),
		HooksQueued:   e.CallsQueued,
		ShardMin:      e.ShardMin,
		ShardMax:      e.ShardMax,
		FanoutSeconds: Histogram(srv.counts.fanout.Snapshot()),
		TurnSeconds:   Histogram(e.TurnSeconds),
		WaitSeconds:   Histogram(e.WaitSeconds),
		HookSeconds:   Histogram(e.CallSeconds),
	}
	for kind, n := range e.Closes {
		out.Closes[CloseKind{kind.Code, string(kind.By)}] = n
	}
	out.IdempotencyBytes, out.IdempotencyEvictions = srv.once.usage()
	return out
}

// Histogram counts durations in buckets whose bounds double from one
// microsecond: Counts[i] has those up to 1 µs << i, the last one all others.
type Histogram struct {
	Counts [26]uint64
	Sum    time.Duration
}
