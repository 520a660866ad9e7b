package engine

import (
	"log/slog"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// Config says how an engine behaves. It has no defaults: every field must be
// set, but for those whose comment says what none means.
type Config struct {
	Path         string           // where upgrades are accepted
	Subprotocols []string         // that are spoken, in order of preference
	Codecs       []wire.Codec     // what [Turn.Upgrade] may choose from, by index
	NameOf       func(Ref) string // a connection's id, for log lines
	Logger       *slog.Logger     // any goroutine writes to it
	Kernel       Kernel           // nil for the real one
	OnFatal      func(error)      // nil to end the process

	Shards      int // groups of connections that are served together
	Workers     int // shards that are served at once
	CallWorkers int // jobs that run at once

	MaxConnections int // connections at once; 0: what the descriptor limit allows
	MaxMessage     int // bytes of an inbound message
	MaxFrames      int // frames of an inbound message
	MaxControl     int // control frames a second from a connection
	MaxOutbox      int // bytes waiting for one connection
	OutboxBudget   int64

	HandshakeTimeout, AuthTimeout, MessageTimeout, WriteTimeout time.Duration
	OutboxAge, PingInterval, PongTimeout, CloseTimeout          time.Duration
	Drain, ReturnWindow                                         time.Duration
}

// maxCodecs is how many codecs there can be: a parcel has room for a frame of
// each.
const maxCodecs = 2

// userTimeout is for how long a peer may leave what was sent to it
// unacknowledged before the kernel ends its connection: TCP_USER_TIMEOUT,
// tcp(7). WriteTimeout comes first for a peer that is there.
func (c *Config) userTimeout() time.Duration { return max(30*time.Second, 3*c.WriteTimeout) }
