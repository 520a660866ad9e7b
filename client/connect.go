package client

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

const (
	pongSlack  = 10 * time.Second // silence beyond the server's ping interval that means it is gone
	maxRefusal = 512              // bytes of a refusal's body that are told
)

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

// HandshakeError is an HTTP answer other than 101 to the upgrade.
type HandshakeError struct {
	Status     int
	Reason     string        // the beginning of the answer's body
	RetryAfter time.Duration // the Retry-After header; 0 when there was none
}

// Error implements error.
func (e *HandshakeError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("upgrade refused: %d %s: %s", e.Status, http.StatusText(e.Status), e.Reason), ": ")
}

// readRefusal reads the answer to an upgrade that was not 101.
func readRefusal(status int, answer io.Reader) *HandshakeError {
	e := &HandshakeError{Status: status}
	resp, err := http.ReadResponse(bufio.NewReader(answer), nil)
	if err != nil {
		return e
	}
	defer resp.Body.Close()
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // what there is of it
	e.Reason = strings.TrimSpace(string(body))
	return e
}

// connect dials, upgrades and reads the welcome.
func (c *Client) connect(ctx context.Context, rawURL string) (*socket, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.HandshakeTimeout)
	defer cancel()
	var refused *HandshakeError
	d := ws.Dialer{
		Protocols: []string{wire.Subprotocol},
		Header:    ws.HandshakeHeaderHTTP(c.opt.Header),
		TLSConfig: c.opt.TLS,
		NetDial:   c.opt.NetDial,
		OnStatusError: func(status int, _ []byte, answer io.Reader) {
			refused = readRefusal(status, answer)
		},
	}
	conn, br, _, err := d.Dial(ctx, rawURL)
	if refused != nil {
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	s := newSocket(conn, br, c.opt.MaxMessage)
	stop := context.AfterFunc(ctx, s.abort)
	b, err := s.message()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		s.abort()
		return nil, cmp.Or(ctx.Err(), err)
	}
	e, err := wire.ParseEvent(b)
	if err != nil || e.Welcome == nil {
		return nil, s.fail(wire.CloseProtocolError, errors.New("the first frame is no welcome"))
	}
	s.welcome = *e.Welcome
	if e.Welcome.Ping > 0 {
		s.silence = time.Duration(e.Welcome.Ping)*time.Second + pongSlack
	}
	return s, nil
}

// run serves sock and its successors until the client is closed or told to
// stay away.
func (c *Client) run(sock *socket) {
	defer c.cancel()
	var err error
	for attempt := 0; ; attempt++ {
		if sock != nil {
			began := time.Now()
			err = c.serve(sock)
			if time.Since(began) > c.ceiling(attempt) {
				attempt = 0
			}
		}
		if c.opt.NoReconnect || !comeBack(err) || !c.sleep(c.delay(err, attempt)) {
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
