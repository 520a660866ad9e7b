package server

import (
	"errors"
	"maps"
	"math/bits"
	"sync"
	"sync/atomic"
	"syscall"
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

// rejectReason is why a connection was not upgraded.
type rejectReason uint8

const (
	rejectHead rejectReason = iota
	rejectBody
	rejectMethod
	rejectPath
	rejectUpgrade
	rejectVersion
	rejectAuth
	rejectForbidden
	rejectTimeout
	rejectLimit
	rejectShutdown
	rejectGone
	rejectReasons
)

var rejectNames = [rejectReasons]string{"head", "body", "method", "path", "upgrade", "version", "auth", "forbidden", "timeout", "max_connections", "shutdown", "gone"}

// dropReason is why a message was not sent to a connection that it was for.
type dropReason uint8

const (
	dropGone      dropReason = iota // the connection ended
	dropTTL                         // the message was too old
	dropOverflow                    // the outbox was full
	dropCollapsed                   // a newer one with its collapse key came
	dropBudget                      // all outboxes together were full
	dropReasons
)

var dropNames = [dropReasons]string{"gone", "ttl", "overflow", "collapsed", "budget"}

// cutReason is why a connection was too slow.
type cutReason uint8

const (
	cutOutbox cutReason = iota
	cutStalled
	cutTrickle
	cutBudget
	cutReasons
)

var (
	cutNames = [cutReasons]string{"outbox", "stalled", "trickle", "budget"}
	cutTexts = [cutReasons]string{
		"too much waits for this connection",
		"this connection takes nothing",
		"this connection reads too slowly",
		"too much waits for all connections together",
	}
	cutKnobs = [cutReasons]string{"max-outbox", "write-timeout", "outbox-age", "outbox-budget"}
)

// String returns what the peer is told.
func (r cutReason) String() string { return cutTexts[r] }

// Who ended a connection.
const (
	byServer = "server"
	byClient = "client"
	byLost   = "lost"
)

// counters are a shard's own, so that workers do not share cache lines.
type counters struct {
	deliveries, framesIn, bytesIn, pings, stale atomic.Uint64
}

// stats are what is counted for the whole server.
type stats struct {
	accepted, published, hookPanics atomic.Uint64
	rejects                         [rejectReasons]atomic.Uint64
	drops                           [dropReasons]atomic.Uint64
	cuts                            [cutReasons]atomic.Uint64
	wait, turn, fanout, hook        histogram

	mu           sync.Mutex
	closes       map[CloseKind]uint64
	acceptErrors map[string]uint64
	publishes    map[string]uint64 // refused, by reason
	commands     map[string]uint64 // refused, by code
}

func (s *stats) reject(why rejectReason)       { s.rejects[why].Add(1) }
func (s *stats) drop(why dropReason, n int)    { s.drops[why].Add(uint64(n)) }
func (s *stats) cut(why cutReason)             { s.cuts[why].Add(1) }
func (s *stats) commandError(c wire.ErrorCode) { count(s, &s.commands, string(c)) }

func (s *stats) acceptError(errno syscall.Errno) {
	count(s, &s.acceptErrors, errno.Error())
}

// closed counts the end of an upgraded connection. Codes that peers make up
// are counted as 4999, so that their number is bounded.
func (s *stats) closed(code wire.CloseCode, by string) {
	if by == byClient && code >= 3000 {
		code = 4999
	}
	count(s, &s.closes, CloseKind{code, by})
}

func (s *stats) publishRejected(err error) {
	reason := "error"
	for _, r := range publishReasons {
		if errors.Is(err, r.err) {
			reason = r.name
		}
	}
	count(s, &s.publishes, reason)
}

var publishReasons = []struct {
	err  error
	name string
}{
	{ErrNobody, "nobody"},
	{ErrClosed, "closed"},
	{ErrBusy, "busy"},
	{ErrBadMessage, "bad_message"},
	{ErrTooBig, "too_big"},
	{ErrReused, "reused"},
	{ErrNoAck, "no_ack"},
}

func count[K comparable](s *stats, m *map[K]uint64, key K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *m == nil {
		*m = map[K]uint64{}
	}
	(*m)[key]++
}

func byName(values []atomic.Uint64, names []string) map[string]uint64 {
	m := make(map[string]uint64, len(names))
	for i := range values {
		m[names[i]] = values[i].Load()
	}
	return m
}

// Stats returns what has been counted so far. It costs a lock or two of each
// shard and index stripe, and allocates; once a second is no burden.
func (srv *Server) Stats() Stats {
	st := &srv.stats
	out := Stats{
		Connections:      int(srv.opened.Load()),
		Handshaking:      int(srv.handshaking.Load()),
		Users:            srv.hub.users.len(),
		Topics:           srv.hub.topics.len(),
		Lingering:        int(srv.hub.lingers.topics.Load()),
		LingerEvictions:  srv.hub.lingers.evicted.Load(),
		Subscriptions:    int(srv.hub.subscriptions.Load()),
		Capacity:         srv.capacity,
		Draining:         srv.draining.Load(),
		Accepted:         st.accepted.Load(),
		HandshakeRejects: byName(st.rejects[:], rejectNames[:]),
		Drops:            byName(st.drops[:], dropNames[:]),
		Cuts:             byName(st.cuts[:], cutNames[:]),
		Published:        st.published.Load(),
		HookPanics:       st.hookPanics.Load(),
		OutboxBytes:      srv.outboxBytes.Load(),
		PublishBytes:     srv.publishBytes.Load(),
		LingerBytes:      srv.hub.lingers.bytes.Load(),
		HooksQueued:      srv.hooks.Queued(),
		FanoutSeconds:    st.fanout.snapshot(),
		TurnSeconds:      st.turn.snapshot(),
		WaitSeconds:      st.wait.snapshot(),
		HookSeconds:      st.hook.snapshot(),
	}
	out.IdempotencyBytes, out.IdempotencyEvictions = srv.once.usage()
	for i, s := range srv.shards {
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
	st.mu.Lock()
	defer st.mu.Unlock()
	out.Closes = maps.Clone(st.closes)
	out.AcceptErrors = maps.Clone(st.acceptErrors)
	out.PublishRejects = maps.Clone(st.publishes)
	out.CommandErrors = maps.Clone(st.commands)
	return out
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
