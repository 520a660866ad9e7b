package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/server/internal/engine/enginetest"
	"github.com/tocsin-push/tocsin/wire"
)

// simGuests has clients come by Server.ServeHTTP, as from an http.Server with a
// middleware that hangs, panics and hides things. Whoever is answered 101 is then
// a client like the others.
func simGuests(w *world) feature {
	if w.Rng.IntN(5) < 2 {
		return feature{}
	}
	s := &guests{w: w}
	often := func(n int) int { return some(w, []int{0, n, n, 4 * n}) }
	s.panics, s.hangs, s.fails = often(15), often(8), often(5)
	return feature{
		events: []happening{
			{"a guest comes", 60, s.come},
			{"a guest's request is given up", 15, s.giveUp},
			{"a response that hangs goes on", 20, w.letGo},
		},
		ease:  s.ease,
		still: s.still,
	}
}

// guests is the state of simGuests.
type guests struct {
	w                    *world
	panics, hangs, fails int // once in so many times
	calmed               bool
}

func (s *guests) happens(n int, what string) bool { return !s.calmed && s.w.Happens(n, what) }

// simGuest is the request of a client that an http.Server has read. It is the
// request's http.ResponseWriter.
type simGuest struct {
	s      *guests
	c      *simClient
	conn   *enginetest.Conn
	early  []byte          // that the http.Server has read behind the request
	ctx    context.Context // of the request
	cancel context.CancelFunc

	full, stopping bool // the server was, when the request came
	panicked       bool // a method of the ResponseWriter has
	hangs          bool // one of them does
	secure         bool // it came by TLS

	header   http.Header
	status   int // 0 before there is one
	text     bytes.Buffer
	hijacked int
	done     bool // ServeHTTP has returned

	// When the status was written.
	answered time.Duration
	verdict  int // of the hooks
	stopped  bool
	givenUp  bool // nobody waited for it
}

// addr is the address that the http.Server knows.
func (g *simGuest) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 3}), uint16(g.c.id))
}

// come has an http.Server serve the request of a new client.
func (s *guests) come() bool {
	w := s.w
	if w.people.living() >= w.people.most {
		return false
	}
	p, conn := w.Hand()
	c := w.people.newcomer(p)
	g := &simGuest{s: s, c: c, conn: conn, header: http.Header{"X-Middleware": {"here"}, "Content-Length": {"7"}}}
	c.guest = g
	r, rw := s.request(g)
	s.behind(g)
	g.stopping = w.stopping
	g.full = w.srv.engine.Descriptors() >= w.srv.Capacity()
	w.call("the request of client "+strconv.Itoa(c.id), func(ctx context.Context) func() {
		g.ctx, g.cancel = context.WithCancel(ctx)
		if w.Rng.IntN(20) == 0 {
			g.cancel()
		}
		g.serve(rw, r.WithContext(g.ctx))
		return g.served
	})
	return true
}

// request makes one, which may be a wrong one, and its ResponseWriter.
func (s *guests) request(g *simGuest) (*http.Request, http.ResponseWriter) {
	w, c := s.w, g.c
	target, key, method, version, more := w.people.target(c), "dGhlIHNhbXBsZSBub25jZQ==", "GET", "13", "X: y"
	var rw http.ResponseWriter = g
	switch w.Rng.IntN(24) {
	case 0:
		c.wants, method = http.StatusMethodNotAllowed, "PUT"
	case 1:
		c.wants, version = http.StatusUpgradeRequired, "12"
	case 2:
		c.wants, key = http.StatusBadRequest, "c2hvcnQ="
	case 3:
		c.wants, more = http.StatusRequestHeaderFieldsTooLarge, "X: "+pad(9<<10)
	case 4:
		c.wants, target = http.StatusBadRequest, target+"&format=nonsense"
	case 5:
		c.wants, rw = http.StatusHTTPVersionNotSupported, struct{ http.ResponseWriter }{g}
	case 6:
		c.wants, g.secure = http.StatusNotImplemented, true
	case 7, 8:
		rw = simMiddleware{g}
	}
	head := wstest.Request("tocsin.test", target, key, more)
	head = strings.Replace(head, "GET", method, 1)
	head = strings.Replace(head, "Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: "+version, 1)
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
	if err != nil {
		w.fail("%v", err)
	}
	r.RemoteAddr = g.addr().String()
	if g.secure {
		r.TLS = &tls.ConnectionState{}
	}
	return r, rw
}

// simMiddleware hides the http.Hijacker, as http.ResponseController allows.
type simMiddleware struct{ http.ResponseWriter }

func (m simMiddleware) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// behind has something come behind the request; the http.Server has read a part.
func (s *guests) behind(g *simGuest) {
	c := g.c
	var b []byte
	switch s.w.Rng.IntN(8) {
	case 0, 1:
		c.pings = append(c.pings, "early")
		b = wstest.Encode(wstest.Ping("early"))
	case 2: // see Server.ServeHTTP
		c.bad = wire.CloseProtocolError
		b = []byte("GET / HTTP/1.1\r\n\r\n")
	default:
		return
	}
	n := s.w.Rng.IntN(len(b) + 1)
	g.early = b[:n]
	if n < len(b) {
		c.say(b[n:])
	}
}

// serve is what an http.Server does with a request.
func (g *simGuest) serve(rw http.ResponseWriter, r *http.Request) {
	w := g.s.w
	if !g.secure { // for that one nothing is counted
		w.guests++
		defer func() { w.guests-- }()
	}
	defer func() {
		if v := recover(); v != nil && v != any(errSimWriter) {
			w.Fatalf("ServeHTTP has panicked: %v", v)
		}
	}()
	w.srv.ServeHTTP(rw, r)
}

var errSimWriter = errors.New("a ResponseWriter that panics")

// served judges what was answered, when ServeHTTP has returned.
func (g *simGuest) served() {
	c, w := g.c, g.s.w
	g.done = true
	g.cancel()
	w.Note(uint64(c.id)<<16|uint64(g.status), g.text.Bytes())
	if w.Show {
		fmt.Printf("    client %d was answered %d %q through its ResponseWriter\n", c.id, g.status, g.text.String())
	}
	switch {
	case c.Accepted() && (g.status != http.StatusSwitchingProtocols || g.hijacked != 1):
		w.fail("the connection of client %d was taken, after %d and %d calls of Hijack", c.id, g.status, g.hijacked)
	case c.Accepted():
	case g.hijacked == 0 || g.conn == nil: // the http.Server closes it
		c.Gone = true
	case !c.Gone:
		w.fail("the connection of client %d was neither taken nor closed", c.id)
	}
	if g.panicked { // it is not known how far it came
		return
	}
	if g.status == 0 {
		w.fail("client %d has no answer", c.id)
	}
	if !g.right() {
		w.fail("client %d was answered %d %q after %v; its head deserves %d, hooks say %d; when it came the server was full: %v, or in its shutdown: %v",
			c.id, g.status, g.text.String(), g.answered-c.came, c.wants, g.verdict, g.full, g.stopping)
	}
	g.fields()
}

// entered reports whether c's connection has come in. From then on the server
// has it in its lists, as it has the others once they are answered.
func (g *simGuest) entered() bool {
	if c := g.c; g.done && c.Ref != 0 {
		c.upgrade, c.opened = true, g.s.w.step
	}
	return g.c.upgrade
}

// right reports whether the answer is the right one.
func (g *simGuest) right() bool {
	c, w := g.c, g.s.w
	text := strings.TrimSuffix(g.text.String(), "\n")
	wants := c.wants
	if wants == 0 {
		wants = g.verdict
	}
	switch {
	case g.secure:
		return g.status == wants
	case g.stopping:
		return g.status == 503 && text == engine.TextDraining
	case g.full:
		return g.status == 503 && text == engine.TextFull
	case g.status == 101:
		return wants == 0 && text == "" && !g.stopped
	case g.status != 503 || c.wants != 0:
		return g.status == wants
	}
	switch text {
	case engine.TextDraining:
		return g.stopped
	case "authentication took too long":
		return g.answered-c.came >= w.cfg.AuthTimeout
	case "the request was given up":
		return g.givenUp
	case textNoTopic:
		return w.cfg.Bus != nil
	}
	return false
}

// fields wants the answer to have those that it needs, and those of the middleware.
func (g *simGuest) fields() {
	want := map[string]string{"X-Middleware": "here"}
	switch g.status {
	case http.StatusSwitchingProtocols:
		want["Upgrade"], want["Connection"], want["Sec-WebSocket-Accept"] = "websocket", "Upgrade", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
	case http.StatusNotImplemented:
	default:
		want["Connection"], want["Content-Length"], want["Content-Type"] = "close", "", "text/plain; charset=utf-8"
	}
	if g.status == http.StatusMethodNotAllowed {
		want["Allow"] = http.MethodGet
	}
	for _, name := range sorted(want) {
		if got := g.header.Get(name); got != want[name] {
			g.s.w.fail("client %d was answered %d with %s: %q, want %q", g.c.id, g.status, name, got, want[name])
		}
	}
	if after, _ := strconv.Atoi(g.header.Get("Retry-After")); g.status == http.StatusServiceUnavailable && (after < 1 || after > 30) {
		g.s.w.fail("client %d was answered 503 with Retry-After: %q", g.c.id, g.header.Get("Retry-After"))
	}
}

// Header implements http.ResponseWriter.
func (g *simGuest) Header() http.Header {
	g.panics()
	return g.header
}

// WriteHeader implements http.ResponseWriter.
func (g *simGuest) WriteHeader(status int) {
	g.panics()
	w := g.s.w
	if g.status != 0 || g.done {
		w.Fatalf("client %d is answered %d, and was answered %d", g.c.id, status, g.status)
	}
	g.status, g.answered, g.stopped, g.givenUp = status, w.Time, w.stopping, g.ctx.Err() != nil
	if g.c.hooked != nil {
		g.verdict = g.c.hooked.verdict
	}
	if status != http.StatusSwitchingProtocols {
		g.c.status = status
	}
	g.hang("WriteHeader")
}

// Write implements http.ResponseWriter.
func (g *simGuest) Write(b []byte) (int, error) {
	g.panics()
	if g.status == 0 || g.done {
		g.s.w.Fatalf("client %d is sent %q, and was answered %d", g.c.id, b, g.status)
	}
	return g.text.Write(b)
}

// Hijack implements http.Hijacker.
func (g *simGuest) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	s := g.s
	if g.status != http.StatusSwitchingProtocols || g.done || g.hijacked > 0 {
		s.w.Fatalf("the connection of client %d is taken over, it was answered %d", g.c.id, g.status)
	}
	g.panics()
	g.hang("Hijack")
	switch {
	case s.happens(s.fails, "a Hijack that fails"):
		return nil, nil, http.ErrNotSupported
	case s.happens(s.fails, "a Hijack without a connection"):
		g.conn = nil
		return nil, nil, nil
	}
	g.hijacked++
	if s.happens(s.fails, "a Hijack without a reader") {
		return g.conn, some(s.w, []*bufio.ReadWriter{nil, {}}), nil
	}
	in := bufio.NewReader(bytes.NewReader(g.early))
	_, _ = in.Peek(len(g.early))
	return g.conn, bufio.NewReadWriter(in, nil), nil
}

func (g *simGuest) panics() {
	if g.s.happens(g.s.panics, "a ResponseWriter panics") {
		g.panicked = true
		panic(errSimWriter)
	}
}

func (g *simGuest) hang(method string) {
	if g.s.happens(g.s.hangs, "a ResponseWriter hangs") && !g.secure {
		g.hangs = true
		g.s.w.hang(method+" of client "+strconv.Itoa(g.c.id), nil)
		g.hangs = false
	}
}

// giveUp has nobody wait for the answer to a request.
func (s *guests) giveUp() bool {
	c := s.w.people.one(func(c *simClient) bool { return c.guest != nil && !c.guest.done && c.guest.ctx.Err() == nil })
	if c == nil {
		return false
	}
	c.guest.cancel()
	return true
}

// still wants every request to be answered in time.
func (s *guests) still() {
	w := s.w
	for _, c := range w.clients {
		if g := c.guest; g != nil && !g.done && !g.hangs && (g.ctx.Err() != nil || w.Time-c.came > w.cfg.AuthTimeout+time.Millisecond) {
			w.fail("client %d has no answer after %v: %v", c.id, w.Time-c.came, g.ctx.Err())
		}
	}
}

// ease has no ResponseWriter do anything odd any more.
func (s *guests) ease() {
	s.calmed = true
	s.w.letAllGo()
}
