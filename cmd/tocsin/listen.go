package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/signal"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/client"
	"github.com/tocsin-push/tocsin/wire"
)

// listenTTL is the life of a token that listen signs; it must outlive every
// reconnect.
const listenTTL = 24 * time.Hour

// lastLine is for how long the end waits for a line that nobody reads.
const lastLine = time.Second

type listenCmd struct {
	Topics []string `arg:"" optional:"" name:"topic" help:"Topics to subscribe to. Pushes to the user and broadcasts come without."`

	User  string  `placeholder:"NAME" help:"Listen as this user: with a token signed with api-key, or by name where the server runs with --dev."`
	After *uint64 `and:"at" placeholder:"SEQ" help:"Begin after this seq of the one topic; with --epoch."`
	Epoch string  `and:"at" placeholder:"EPOCH" help:"The epoch that --after belongs to."`
	Count int     `type:"count" min:"1" max:"1000000000" word:"off" default:"off" help:"End after this many messages."`

	URL     string `group:"client" type:"url" of:"ws,wss" default:"ws://127.0.0.1:8080/ws" help:"Where it takes clients."`
	Token   string `group:"client" placeholder:"TOKEN" help:"A token to come in with, for example one of tocsin token."`
	keyring `group:"client" embed:""`
}

// Help is shown below the usage of listen.
func (listenCmd) Help() string {
	return "Prints each message as a line of JSON on standard output, and on standard error what else the server says: welcome, " +
		"the answer to each subscription, gap, cancel and goodbye. Messages that want it are acknowledged. It comes back when the " +
		"connection is lost. Exit status 0: Ctrl-C, SIGTERM or --count; 1: the server refused it or sent it away."
}

// listener prints what a client is given.
type listener struct {
	std      streams
	count    int           // messages to print; 0: all
	welcomed chan struct{} // closed when the first welcome is printed
	done     chan struct{} // closed when count messages are printed, or printing failed

	// Owned by the goroutine that calls OnEvent.
	inside  bool // the first welcome came
	printed int
	ended   bool
}

// Run prints messages until it has enough of them or is told to stop.
func (c *listenCmd) Run(std streams) error {
	opt, address, err := c.options()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process, whatever holds it up
	l := &listener{std: std, count: c.Count, welcomed: make(chan struct{}), done: make(chan struct{})}
	opt.OnEvent = func(conn *client.Client, e wire.Event) { l.event(ctx, conn, e) }
	conn, err := client.Dial(ctx, address, opt)
	if ctx.Err() != nil {
		return nil
	}
	if refused, ok := errors.AsType[*client.HandshakeError](err); ok {
		return fmt.Errorf("%s: %w%s", c.URL, refused, hint(refused.Status))
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if err != nil {
		return fmt.Errorf("cannot reach the server at %s, see --url: %w", c.URL, err)
	}
	defer func() {
		_ = conn.Close()
		select {
		case <-conn.Done(): // nothing is printed any more
		case <-time.After(lastLine):
		}
	}()
	select {
	case <-l.welcomed: // it is the first event, and on its way
	case <-ctx.Done():
		return nil
	}
	for _, topic := range c.Topics {
		if err := l.subscribe(ctx, conn, topic, c.position()); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
	case <-l.done:
	case <-conn.Done():
		return conn.Err()
	}
	return nil
}

// hint names the flags that a refused upgrade may be about.
func hint(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "; see --user and --token"
	case http.StatusNotFound:
		return "; see --url"
	}
	return ""
}

// options returns how to come in, and where.
func (c *listenCmd) options() (opt client.Options, address string, err error) {
	switch {
	case c.User != "" && c.Token != "":
		return opt, "", usagef("user and token are given: a token says for which user it is")
	case c.After != nil && len(c.Topics) != 1:
		return opt, "", usagef("after needs one topic, there are %d", len(c.Topics))
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return opt, "", usagef("url is %q: %w", c.URL, err)
	}
	if c.User != "" {
		q := u.Query()
		q.Set("user", c.User)
		u.RawQuery = q.Encode()
	}
	token := c.Token
	if c.User != "" && len(c.APIKey) > 0 {
		if err := c.check(false); err != nil {
			return opt, "", err
		}
		if token, err = c.sign(c.User, listenTTL); err != nil {
			return opt, "", err
		}
	}
	if token != "" {
		opt.Header = http.Header{"Authorization": {"Bearer " + token}}
	}
	return opt, u.String(), nil
}

func (c *listenCmd) position() *wire.Position {
	if c.After == nil {
		return nil
	}
	return &wire.Position{Seq: *c.After, Epoch: c.Epoch}
}

// subscribe asks for topic and says where in it this is.
func (l *listener) subscribe(ctx context.Context, conn *client.Client, topic string, after *wire.Position) error {
	ok, err := conn.Subscribe(ctx, topic, after)
	for errors.Is(err, client.ErrLost) && ctx.Err() == nil {
		ok, err = conn.Subscribe(ctx, topic, after) // waits for the next connection
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("cannot subscribe to %q: %w", topic, cause(err))
	}
	return printLine(l.std.err, map[string]wire.OK{"subscribed": ok})
}

// cause returns what the server said, if that is what err is about.
func cause(err error) error {
	if refused, ok := errors.AsType[*wire.Error](err); ok {
		return errors.New(refused.Message)
	}
	if closed, ok := errors.AsType[*client.CloseError](err); ok {
		return closed
	}
	return err
}

// event prints e, and acknowledges a message that wants it.
func (l *listener) event(ctx context.Context, conn *client.Client, e wire.Event) {
	m := e.Message
	switch {
	case l.ended:
	case m == nil:
		_ = printLine(l.std.err, e) // a notice that cannot be shown is no reason to stop
		if !l.inside {
			l.inside = true
			close(l.welcomed)
		}
	default:
		err := printLine(l.std.out, struct {
			wire.Message
			Data json.RawMessage `json:"data"`
		}{*m, m.Data})
		if m.Ack && err == nil {
			_ = conn.Ack(ctx, m.ID) // the publisher sees that it is missing
		}
		if l.printed++; err != nil || l.printed == l.count {
			l.ended = true
			close(l.done)
		}
	}
}

func printLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", line)
	}
	return err
}
