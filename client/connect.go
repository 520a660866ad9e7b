package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// pongSlack is the silence beyond the server's ping interval that means it is
// gone.
const pongSlack = 10 * time.Second

// CloseError is how a connection ended. Code is 1006 when there was no Close
// frame and 1005 when it named no code, RFC 6455 section 7.1.5.
type CloseError struct {
	Code       wire.CloseCode
	Reason     string
	RetryAfter time.Duration // the server's goodbye; 0 when it said none
	cause      error
}

// Error implements error.
func (e *CloseError) Error() string {
	s := fmt.Sprintf("client: connection closed: %d %s", uint16(e.Code), cmp.Or(e.Reason, e.Code.String()))
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap returns what went wrong on this side, or nil.
func (e *CloseError) Unwrap() error { return e.cause }

// connect dials, upgrades and reads the welcome.
func (c *Client) connect(ctx context.Context, u *url.URL) (*socket, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.HandshakeTimeout)
	defer cancel()
	conn, err := c.open(ctx, u)
	if err != nil {
		return nil, err
	}
	s := &socket{conn: conn, max: c.opt.MaxMessage}
	stop := context.AfterFunc(ctx, s.abort)
	err = s.greet(u, c.opt.Header)
	stop()
	if _, refused := errors.AsType[*HandshakeError](err); !refused {
		err = cmp.Or(ctx.Err(), err)
	}
	if err != nil {
		s.abort()
		return nil, err
	}
	return s, nil
}

// greet upgrades the connection and reads the welcome.
func (s *socket) greet(u *url.URL, header http.Header) error {
	var err error
	if s.br, err = upgrade(s.conn, u, header); err != nil {
		return err
	}
	if err := s.readWelcome(); err != nil {
		s.end()
		return err
	}
	return nil
}

func (s *socket) readWelcome() error {
	b, err := s.message()
	if err != nil {
		return err
	}
	e, err := tocsin.ParseEvent(b)
	if err != nil || e.Welcome == nil {
		return s.fail(wire.CloseProtocolError, errors.New("the first frame is no welcome"))
	}
	s.welcome = *e.Welcome
	if e.Welcome.Ping > 0 {
		s.silence = time.Duration(e.Welcome.Ping)*time.Second + pongSlack
	}
	return nil
}

// run serves sock and its successors until the client is closed or told to
// stay away. The time that a server takes to close a connection counts towards
// the delay before the next attempt.
func (c *Client) run(sock *socket) {
	defer c.cancel()
	var err error
	for attempt := 0; ; attempt++ {
		began := time.Now()
		lost := began
		if sock != nil {
			err = c.serve(sock)
			lost = time.Now()
			if lost.Sub(began) > c.ceiling(attempt) {
				attempt = 0
			}
			sock.end()
		}
		if c.opt.NoReconnect || !comeBack(err) || !c.sleep(time.Until(lost.Add(c.delay(err, attempt)))) {
			c.end(err)
			return
		}
		if sock, err = c.connect(c.ctx, c.again); err == nil {
			c.attach(sock)
		}
	}
}

// comeBack reports whether to connect again after err: the ranges of
// [wire.CloseCode.ComeBack], and every refusal but the client's own fault.
func comeBack(err error) bool {
	if closed, ok := errors.AsType[*CloseError](err); ok {
		return closed.Code.ComeBack()
	}
	if refused, ok := errors.AsType[*HandshakeError](err); ok {
		return refused.Status >= 500 || refused.Status == http.StatusTooManyRequests ||
			refused.Status == http.StatusRequestTimeout
	}
	return true
}

// delay is how long to wait before the next attempt: what the server said, or
// full jitter under a doubling ceiling.
func (c *Client) delay(err error, attempt int) time.Duration {
	if closed, ok := errors.AsType[*CloseError](err); ok && closed.RetryAfter > 0 {
		return closed.RetryAfter
	}
	if refused, ok := errors.AsType[*HandshakeError](err); ok && refused.RetryAfter > 0 {
		return refused.RetryAfter
	}
	return rand.N(c.ceiling(attempt))
}

func (c *Client) ceiling(attempt int) time.Duration {
	d := c.opt.MinBackoff
	for range attempt {
		if d >= c.opt.MaxBackoff/2 {
			return c.opt.MaxBackoff
		}
		d *= 2
	}
	return d
}

// sleep reports false if the client was closed meanwhile.
func (c *Client) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// end tells everybody who waits why the client ended.
func (c *Client) end(err error) {
	c.mu.Lock()
	if c.err = err; c.closing {
		c.err = ErrClosed
	}
	close(c.up)
	c.changed.Broadcast()
	c.mu.Unlock()
	close(c.stopped)
}
