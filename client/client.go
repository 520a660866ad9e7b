// Package client is a Tocsin client for Go services. [Dial] connects to a server.
// [Client.Subscribe] asks for the messages of a topic, and Options.OnEvent gets
// them, with everything else that the server sends. When the connection is lost,
// the client comes back by itself, subscribed to the same topics after the last
// message it was given: at once, or as soon as the server can. The protocol is that of docs/protocol.md, package
// wire/tocsin.
//
// A client has two goroutines: one reads the socket and reconnects, the other
// calls Options.OnEvent. Both end with the client.
package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// closeTimeout bounds how long we wait for the server to close the connection.
const closeTimeout = 2 * time.Second

var (
	// ErrClosed is what a client ends with after [Client.Close].
	ErrClosed = errors.New("client: closed")
	// ErrLost means that the connection ended between a command and its reply,
	// so the outcome is unknown. The client comes back; the command is not
	// repeated.
	ErrLost = errors.New("client: connection lost before the reply")
)

// Options say how a Client behaves. The zero value of every field means its
// default.
type Options struct {
	// OnEvent is given everything that is not a reply: messages, the welcome
	// of each connection, the notices gap, cancel and goodbye, and an OK with a
	// topic when the server subscribed the client, in the
	// order of the wire. One goroutine calls it, one event at a time; it may
	// block and may call every method of c. While it blocks, 256 events wait
	// here, then the socket is not read and the server's limits decide. While a
	// command waits for its reply 4,096 may wait; the connection that brings
	// more is ended and made again. The event may be kept. Default: events are
	// dropped.
	OnEvent func(c *Client, e wire.Event)

	Header http.Header // sent with every upgrade: Authorization, Cookie, Origin
	TLS    *tls.Config // for wss. Default: that of crypto/tls
	// NetDial opens the connection. Default: that of net.Dialer.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)

	MaxMessage       int           // bytes of an inbound message. Default 1 MiB
	HandshakeTimeout time.Duration // dialing to welcome, each attempt. Default 10 s
	MinBackoff       time.Duration // the first attempt waits up to this. Default 0.5 s
	MaxBackoff       time.Duration // doubling from there up to this. Default 30 s
	NoReconnect      bool          // the client ends with its first connection
}

func (o Options) withDefaults() Options {
	o.MaxMessage = cmp.Or(o.MaxMessage, 1<<20)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, 10*time.Second)
	o.MinBackoff = cmp.Or(o.MinBackoff, 500*time.Millisecond)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, max(30*time.Second, o.MinBackoff))
	if o.OnEvent == nil {
		o.OnEvent = func(*Client, wire.Event) {}
	}
	return o
}

func (o *Options) check() error {
	switch {
	case o.MaxMessage < 0:
		return fmt.Errorf("client: Options.MaxMessage is %d, it must be positive", o.MaxMessage)
	case o.HandshakeTimeout < 0:
		return fmt.Errorf("client: Options.HandshakeTimeout is %s, it must be positive", o.HandshakeTimeout)
	case o.MinBackoff < 0 || o.MaxBackoff < o.MinBackoff:
		return fmt.Errorf("client: Options.MinBackoff is %s and MaxBackoff %s, they must be positive and in order",
			o.MinBackoff, o.MaxBackoff)
	}
	return nil
}

// Client is a connection to a Tocsin server that is made again when it is
// lost. Its methods may be called by any goroutine.
type Client struct {
	// Static after Dial.
	opt     Options
	again   *url.URL        // the URL to come back to: its topics are resubscribed by command
	ctx     context.Context // ends with the client
	cancel  context.CancelFunc
	stopped chan struct{} // the socket is closed and will stay so
	done    chan struct{} // and OnEvent has returned for the last time

	mu sync.Mutex
	// Guarded by mu.
	sock    *socket       // nil while there is no connection
	up      chan struct{} // closed when sock or err is set
	closing bool          // Close was called
	err     error         // why the client ended
	welcome wire.Welcome
	lastID  uint64
	calls   map[uint64]*call
	topics  map[string]wire.Position // what to resubscribe, and after what
	queue   []wire.Event             // waiting for OnEvent
	changed *sync.Cond               // queue, calls, closing or err
}

// Dial connects to the WebSocket at rawURL and returns when the server has
// welcomed it. ctx bounds that alone. An upgrade that the server refuses is a
// [*HandshakeError].
func Dial(ctx context.Context, rawURL string, opt Options) (*Client, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("client: dial: %w", err)
	}
	q := u.Query()
	switch {
	case u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "":
		return nil, fmt.Errorf("client: dial: %q is not a ws:// or wss:// URL", rawURL)
	case q.Get("format") == "raw":
		return nil, errors.New("client: dial: format=raw in the URL: this client reads " + tocsin.Subprotocol)
	}
	opt = opt.withDefaults()
	if err := opt.check(); err != nil {
		return nil, err
	}
	q.Del("topics")
	c := &Client{
		opt:     opt,
		stopped: make(chan struct{}),
		done:    make(chan struct{}),
		up:      make(chan struct{}),
		calls:   make(map[uint64]*call),
		topics:  make(map[string]wire.Position),
	}
	c.changed = sync.NewCond(&c.mu)
	sock, err := c.connect(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("client: dial %s: %w", u.Host, err)
	}
	u.RawQuery = q.Encode()
	c.again = u
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.attach(sock)
	go c.run(sock)
	go c.dispatch()
	return c, nil
}

// Close says goodbye to the server and ends the client: it waits up to two
// seconds for the server to answer and to close the connection, not for
// OnEvent, which is not called again once a call under way has returned.
// Commands without a reply end with [ErrClosed]. It returns nil, also when
// called again.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closing = true
	c.changed.Broadcast()
	sock := c.sock
	c.cancel()
	c.mu.Unlock()
	if sock != nil {
		defer time.AfterFunc(closeTimeout, sock.abort).Stop() // also if another write is stuck
		sock.close(wire.CloseNormal, "")
	}
	<-c.stopped
	return nil
}

// Done is closed when the client has ended and OnEvent will not be called
// again.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err tells why the client ended: [ErrClosed], or a [*CloseError] or
// [*HandshakeError] that says to stay away. It is nil while the client lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Welcome returns what the server said first on the latest connection.
func (c *Client) Welcome() wire.Welcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.welcome
}
