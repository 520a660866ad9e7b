package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// Config says how a Server behaves. The zero value of every field means its
// default; a limit cannot be switched off unless its comment says so. The same
// names, in kebab case, are the keys of tocsin's flags, environment and file.
type Config struct {
	// Path is where WebSocket upgrades are accepted. Default "/ws".
	Path string

	// Who may come, and what may they do?

	// Auth says who asks for a connection. An error refuses it with 401 and
	// the error's text, an [HTTPError] with its own status. It runs in the hook
	// pool and may block for up to AuthTimeout, when r's context ends. Behind
	// [Server.ServeHTTP], r is the original request, with the path and the
	// context's values that your mux and middleware gave it. From [Server.Serve]
	// it is made from the bytes that came. It has no body, and may be kept.
	// Nil is an error unless Dev is set.
	Auth func(r *http.Request) (Identity, error)
	// Allow decides whether c may do action on topic; an error refuses it
	// with the error's text. It is asked when the connection's [Identity] has
	// nothing against it. Nil lets every connection subscribe to every topic
	// and publish to none, unless its Identity or Dev says so. It runs in the
	// hook pool and may block; its arguments may be kept.
	Allow func(c Conn, action Action, topic string) error
	// OnMessage is given every data message. If it returns false, a text
	// message is taken as a command of tocsin.v1 and a binary one closes the
	// connection with 1003. It runs in the hook pool, one call at a time for
	// each connection, and may block; payload may be kept.
	OnMessage func(c Conn, op ws.OpCode, payload []byte) (handled bool)
	// OnOpen and OnClose tell of a connection that was upgraded and of its
	// end, but for one that is closed at once because of MaxUserConns. They run
	// in the hook pool: OnOpen before any OnMessage of that connection, OnClose
	// after all of them.
	OnOpen  func(c Conn)
	OnClose func(c Conn, code int)
	// Dev lets everybody in under the name they give as ?user=, and lets
	// clients publish. Never set it on a machine that strangers reach.
	Dev bool

	// Topics.

	// Bus numbers and distributes the messages of topics. Default: this
	// process alone.
	Bus Bus
	// Overflow names the policy of topics for a reader that is too slow;
	// the longest matching prefix wins. Default: [Disconnect] for all.
	Overflow []OverflowRule

	// TopicLinger is for how long the numbering of a topic goes on after its last
	// subscriber has left, so that one who comes back is told the truth about
	// what was missed. Default two minutes; negative: not at all.
	TopicLinger time.Duration
	// LingerBudget bounds the bytes of topics that linger; over it those that
	// linger longest are forgotten. Default 32 MiB, about 180,000 topics.
	LingerBudget int64

	// How much runs at once.

	// Shards is how many groups connections are served in. Default 4 × GOMAXPROCS.
	Shards int
	// Workers is how many shards are served at once. Default GOMAXPROCS.
	Workers int
	// HookWorkers is how many hooks run at once. Default 64 × GOMAXPROCS.
	HookWorkers int

	// What is allowed of each, and of all together.

	MaxConnections int // connections at once; more get 503. Default: what the descriptor limit allows
	MaxUserConns   int // connections of one user; more are closed with 3504. Default 1,000
	MaxTopics      int // topics a connection. Default 128
	MaxMessage     int // bytes of an inbound message. Default 64 KiB
	MaxFrames      int // frames of an inbound message. Default 128
	MaxControl     int // control frames a second from a connection. Default 10
	MaxOutbox      int // bytes waiting for one connection. Default 64 KiB
	MaxPublish     int // bytes of a published payload. Default MaxMessage
	// OutboxBudget bounds the bytes waiting for all connections together; the
	// longest outboxes are cut first. Default 25 % of GOMEMLIMIT or, without
	// one, of the machine's memory.
	OutboxBudget int64
	// PublishBudget bounds the bytes of messages that are published and not
	// yet handed to every subscriber; a publish over it is refused with [ErrBusy]. Default 64 MiB.
	PublishBudget int64
	// IdempotencyBudget bounds the bytes that remembered idempotency keys and
	// ids take; over it the oldest are forgotten before their two minutes are
	// over. Clients' ids have a quarter of it. Default 32 MiB.
	IdempotencyBudget int64

	// How long it may take.

	HandshakeTimeout time.Duration // accept to the end of the request head. Default 5 s
	AuthTimeout      time.Duration // head to 101, Auth included. Default 8 s
	MessageTimeout   time.Duration // first to last byte of an inbound message. Default 10 s
	WriteTimeout     time.Duration // an outbox without any progress. Default 10 s
	OutboxAge        time.Duration // the oldest byte of an outbox. Default 30 s
	PingInterval     time.Duration // silence before a ping. Default 25 s; negative: no pings
	PongTimeout      time.Duration // ping to the first byte after it. Default 8 s
	CloseTimeout     time.Duration // Close frame to the end of the socket. Default 5 s
	Drain            time.Duration // Shutdown spreads the closes over this. Default 20 s
	ReturnWindow     time.Duration // Shutdown tells clients to come back spread over this. Default Drain

	// Logger is written to by every goroutine. Default [slog.Default].
	Logger *slog.Logger

	kernel  engine.Kernel // the system calls; tests replace it
	onFatal func(error)   // instead of ending the process; for tests
}

// Action is what [Config.Allow] is asked about.
type Action string

// The actions of [Config.Allow].
const (
	ActionSubscribe Action = "subscribe"
	ActionPublish   Action = "publish"
)

// Overflow is what happens to a message for a connection whose outbox is full.
type Overflow string

// The overflow policies.
const (
	// Disconnect closes the connection with 3008; the client comes back and
	// subscribes after the last seq it has.
	Disconnect Overflow = "disconnect"
	// DropOldest drops the oldest waiting messages of the topic.
	DropOldest Overflow = "drop_oldest"
	// Latest keeps one waiting message per collapse key, the newest.
	Latest Overflow = "latest"
)

// OverflowRule gives the topics that start with Prefix a policy.
type OverflowRule struct {
	Prefix string
	Policy Overflow
}

// HTTPError is an error of [Config.Auth] with the status to answer with, 200 to
// 999.
type HTTPError struct {
	Status int
	Reason string
}

// Error implements error.
func (e *HTTPError) Error() string { return e.Reason }

// withDefaults returns c with every zero field filled, or why it cannot be.
func (c Config) withDefaults() (Config, error) {
	procs := runtime.GOMAXPROCS(0)
	setDefault(&c.Path, "/ws")
	setDefault(&c.Shards, 4*procs)
	setDefault(&c.Workers, procs)
	setDefault(&c.HookWorkers, 64*procs)
	setDefault(&c.MaxUserConns, 1000)
	setDefault(&c.MaxTopics, 128)
	setDefault(&c.MaxMessage, 64<<10)
	setDefault(&c.MaxFrames, 128)
	setDefault(&c.MaxControl, 10)
	setDefault(&c.MaxOutbox, 64<<10)
	setDefault(&c.MaxPublish, c.MaxMessage)
	setDefault(&c.OutboxBudget, memoryLimit()/4)
	setDefault(&c.PublishBudget, 64<<20)
	setDefault(&c.TopicLinger, 2*time.Minute)
	setDefault(&c.LingerBudget, 32<<20)
	setDefault(&c.IdempotencyBudget, 32<<20)
	setDefault(&c.HandshakeTimeout, 5*time.Second)
	setDefault(&c.AuthTimeout, 8*time.Second)
	setDefault(&c.MessageTimeout, 10*time.Second)
	setDefault(&c.WriteTimeout, 10*time.Second)
	setDefault(&c.OutboxAge, 30*time.Second)
	setDefault(&c.PingInterval, 25*time.Second)
	setDefault(&c.PongTimeout, 8*time.Second)
	setDefault(&c.CloseTimeout, 5*time.Second)
	setDefault(&c.Drain, 20*time.Second)
	setDefault(&c.ReturnWindow, c.Drain)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, c.check()
}

func setDefault[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// memoryLimit returns GOMEMLIMIT, or the machine's memory without one.
func memoryLimit() int64 {
	if limit := debug.SetMemoryLimit(-1); limit < 1<<60 {
		return limit
	}
	if memory := netpoll.PhysicalMemory(); memory > 0 {
		return memory
	}
	return 4 << 30
}

func (c *Config) check() error {
	for _, n := range []struct {
		name            string
		value, min, max int64
	}{
		{"MaxConnections", int64(c.MaxConnections), 0, 1<<30 - 1},
		{"Shards", int64(c.Shards), 1, 4096},
		{"Workers", int64(c.Workers), 1, 4096},
		{"HookWorkers", int64(c.HookWorkers), 1, 1 << 20},
		{"MaxUserConns", int64(c.MaxUserConns), 1, 1 << 30},
		{"MaxTopics", int64(c.MaxTopics), 1, 1 << 15},
		{"MaxMessage", int64(c.MaxMessage), 1, 1 << 30},
		{"MaxFrames", int64(c.MaxFrames), 1, 1 << 30},
		{"MaxControl", int64(c.MaxControl), 1, 100},
		{"MaxOutbox", int64(c.MaxOutbox), 1, 1 << 30},
		{"MaxPublish", int64(c.MaxPublish), 1, 1 << 30},
		{"OutboxBudget", c.OutboxBudget, 1, 1 << 50},
		{"PublishBudget", c.PublishBudget, 1, 1 << 50},
		{"LingerBudget", c.LingerBudget, 1, 1 << 50},
		{"IdempotencyBudget", c.IdempotencyBudget, 1, 1 << 50},
		{"HandshakeTimeout", int64(c.HandshakeTimeout), 1, int64(engine.MaxTimeout)},
		{"AuthTimeout", int64(c.AuthTimeout), 1, int64(engine.MaxTimeout)},
		{"MessageTimeout", int64(c.MessageTimeout), 1, int64(engine.MaxTimeout)},
		{"WriteTimeout", int64(c.WriteTimeout), 1, int64(engine.MaxTimeout)},
		{"OutboxAge", int64(c.OutboxAge), 1, int64(engine.MaxTimeout)},
		{"PongTimeout", int64(c.PongTimeout), 1, int64(engine.MaxTimeout)},
		{"CloseTimeout", int64(c.CloseTimeout), 1, int64(engine.MaxTimeout)},
		{"Drain", int64(c.Drain), 1, int64(engine.MaxTimeout)},
		{"ReturnWindow", int64(c.ReturnWindow), 1, int64(engine.MaxTimeout)},
	} {
		if n.value < n.min || n.value > n.max {
			return fmt.Errorf("server: Config.%s is %d, it must be %d to %d", n.name, n.value, n.min, n.max)
		}
	}
	return c.checkRest()
}

// checkRest looks at what is not a number with bounds.
func (c *Config) checkRest() error {
	if c.PingInterval > engine.MaxTimeout {
		return fmt.Errorf("server: Config.PingInterval is %s, the most is %s", c.PingInterval, engine.MaxTimeout)
	}
	if c.TopicLinger > engine.MaxTimeout {
		return fmt.Errorf("server: Config.TopicLinger is %s, the most is %s", c.TopicLinger, engine.MaxTimeout)
	}
	if !strings.HasPrefix(c.Path, "/") {
		return fmt.Errorf("server: Config.Path is %q, it must start with /", c.Path)
	}
	if c.Auth == nil && !c.Dev {
		return errors.New("server: Config.Auth is nil: set it, or Config.Dev on a machine of your own")
	}
	for _, r := range c.Overflow {
		switch r.Policy {
		case Disconnect, DropOldest, Latest:
		default:
			return fmt.Errorf("server: Config.Overflow of %q is %q, it must be disconnect, drop_oldest or latest", r.Prefix, r.Policy)
		}
	}
	return nil
}

// hooked reports whether there is a hook that is given a Conn.
func (c *Config) hooked() bool {
	return c.Allow != nil || c.OnMessage != nil || c.OnOpen != nil || c.OnClose != nil
}

// overflow returns the policy of topic.
func (c *Config) overflow(topic string) Overflow {
	policy, longest := Disconnect, -1
	for _, r := range c.Overflow {
		if len(r.Prefix) > longest && strings.HasPrefix(topic, r.Prefix) {
			policy, longest = r.Policy, len(r.Prefix)
		}
	}
	return policy
}
