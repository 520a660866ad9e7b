package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Guest is an upgrade request that an http.Server has read. It counts as a
// connection that is handshaking until it is refused or has come in. Whatever
// is answered goes through the http.ResponseWriter, where a middleware sees it.
// It is used by the goroutine of the request.
type Guest struct {
	e    *Engine
	rw   http.ResponseWriter
	r    *http.Request
	late time.Duration // when Config.AuthTimeout has passed, by the kernel's clock
	gone bool          // refused, or come in

	Handshake Handshake
	Query     []byte
}

// Admit checks r as strictly as any other request, but for its path, and whether
// there is room for it. If not it answers and returns nil. Within
// Config.AuthTimeout the caller ends the guest: by [Guest.Refuse], [Guest.Run] or
// [Guest.Wait] that returns false, [Guest.Enter] or [Guest.Leave].
func (e *Engine) Admit(rw http.ResponseWriter, r *http.Request) *Guest {
	g := &Guest{e: e, rw: rw, r: r, late: e.kernel.Now() + e.cfg.AuthTimeout}
	over := e.conns.Add(1) > int64(e.capacity) // from here on Shutdown waits for it
	e.counts.handshaking.Add(1)
	var request parsedHead
	var scan headScan
	head := RebuildHead(r, e.cfg.Path)
	_, bad := scan.find(head)
	if bad == nil {
		request, bad = parseHead(head, e.cfg.Path, e.cfg.Subprotocols)
	}
	switch {
	case e.drain.on.Load():
		bad = shuttingDown()
	case over:
		bad = &refusal{http.StatusServiceUnavailable, RejectLimit, TextFull}
	case bad == nil && !canHijack(rw):
		bad = &refusal{http.StatusHTTPVersionNotSupported, RejectHead, "this connection cannot be upgraded: it is not HTTP/1.1, or something in front hides it"}
	}
	if bad != nil {
		g.refuse(bad)
		return nil
	}
	e.counts.accepted.Add(1)
	g.Handshake, g.Query = request.Handshake, request.Query
	return g
}

// canHijack reports whether [http.ResponseController] finds an http.Hijacker.
func canHijack(rw http.ResponseWriter) bool {
	for {
		switch w := rw.(type) {
		case http.Hijacker:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			rw = w.Unwrap()
		default:
			return false
		}
	}
}

// Refuse answers with something else than 101: status, and text as the body.
// reason is what it counts as.
func (g *Guest) Refuse(status int, reason Reject, text string) {
	g.refuse(&refusal{status, reason, text})
}

func (g *Guest) refuse(no *refusal) {
	defer g.leave(no.reject) // also if rw panics
	h := g.rw.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Connection", "close")
	switch no.status {
	case http.StatusUpgradeRequired: // who sends Upgrade names it in Connection, RFC 9110 section 7.8
		h.Add("Connection", "Upgrade")
		h.Set("Upgrade", "websocket")
		h.Set("Sec-WebSocket-Version", "13")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", http.MethodGet)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", strconv.FormatUint(g.e.retryAfter(), 10))
	}
	g.rw.WriteHeader(no.status)
	_, _ = fmt.Fprintln(g.rw, no.text) // an error means that nobody is there to be told
	if g.e.debugs() {
		g.e.cfg.Logger.Debug("refused", "peer", g.r.RemoteAddr, "status", no.status, "reason", string(no.reject), "text", no.text)
	}
}

// Leave ends a guest that was not refused and has not come in, without an answer.
func (g *Guest) Leave() {
	if !g.gone {
		g.leave(RejectGone)
	}
}

// leave does the accounts of a guest that does not come in.
func (g *Guest) leave(reason Reject) {
	g.gone = true
	g.e.counts.rejects.add(reason, 1)
	g.e.counts.handshaking.Add(-1)
	g.e.gone()
}

// Run has the runner call job, one of Config.CallWorkers at once, and waits for
// it. It reports false if the guest was refused instead: job has panicked, or
// Config.AuthTimeout has passed, or nobody waits for it any more. Then it may
// still run.
func (g *Guest) Run(job func()) bool {
	e := g.e
	ctx, end := g.waiting()
	defer end()
	call := &Call{job: guestJob(job), guest: ctx, returned: make(chan struct{})}
	// A turn submits it: that waits if there is no room.
	e.AskShard(int(e.counts.accepted.Load()%uint64(len(e.shards))), submission{call})
	returned := g.wait(ctx, call.returned)
	if returned && call.panicked {
		g.refuse(authFailed())
	}
	return returned && !call.panicked
}

// Wait waits until done is closed. It reports false if the guest was refused
// instead.
func (g *Guest) Wait(done <-chan struct{}) bool {
	ctx, end := g.waiting()
	defer end()
	return g.wait(ctx, done)
}

func (g *Guest) wait(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
	case <-g.e.drain.cut:
	case <-ctx.Done():
	}
	g.e.kernel.Woken(ctx)
	select {
	case <-done:
		return true
	default:
	}
	switch {
	case g.r.Context().Err() != nil:
		g.Refuse(http.StatusServiceUnavailable, RejectGone, "the request was given up")
	case ctx.Err() != nil:
		g.refuse(authLate())
	default:
		g.refuse(shuttingDown())
	}
	return false
}

// waiting returns a context that ends with the request or when it is late, and
// what ends it before.
func (g *Guest) waiting() (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancel(g.r.Context())
	stop := g.e.kernel.After(g.late-g.e.kernel.Now(), cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// guestJob is a [Job] without a connection.
type guestJob func()

// Run implements Job.
func (j guestJob) Run() { j() }

// Done implements Job. It is never called.
func (guestJob) Done(*Turn, *Conn) {}

// submission is a guest's call on its way to the runner.
type submission struct{ call *Call }

// Do implements Task.
func (s submission) Do(t *Turn, _ *Conn) {
	s.call.shard = t.shard
	t.submit(s.call)
}

// Enter answers 101, takes the connection from its http.Server, and has begin
// done in the turn of its shard, which calls [Turn.Upgrade] without a Handshake.
// If that fails it is logged, as the peer cannot be told any more, and begin is
// gone.
func (g *Guest) Enter(begin Wait) {
	e := g.e
	came := false
	defer func() { // also if rw panics
		if !came {
			begin.Gone()
		}
	}()
	if e.drain.on.Load() {
		g.refuse(shuttingDown())
		return
	}
	h := g.rw.Header()
	h.Set("Upgrade", "websocket")
	h.Set("Connection", "Upgrade")
	h.Set("Sec-WebSocket-Accept", string(g.Handshake.appendAccept(nil)))
	if g.Handshake.Subprotocol != "" {
		h.Set("Sec-WebSocket-Protocol", g.Handshake.Subprotocol)
	}
	g.rw.WriteHeader(http.StatusSwitchingProtocols) // it leaves with Hijack
	fd, early, err := g.takeConn()
	if err != nil {
		e.log.Error("cannot take over a connection from net/http", "error", err)
		return
	}
	g.gone, came = true, true
	e.AskShard(shardOf(fd, len(e.shards)), &arrival{fd, early, begin})
}

// takeConn returns the descriptor of g's connection, and what came behind the
// request.
func (g *Guest) takeConn() (fd int, early []byte, err error) {
	conn, buf, err := http.NewResponseController(g.rw).Hijack()
	switch {
	case err != nil:
		return -1, nil, err
	case conn == nil:
		return -1, nil, errors.New("its http.Hijacker returned no connection")
	case buf == nil || buf.Reader == nil:
		conn.Close()
		return -1, nil, errors.New("its http.Hijacker returned no bufio.Reader")
	}
	early, _ = buf.Peek(buf.Reader.Buffered())
	early = slices.Clone(early)
	fd, err = g.e.kernel.TakeConn(conn, g.e.cfg.userTimeout())
	return fd, early, err
}

// arrival is a guest that comes in.
type arrival struct {
	fd    int
	early []byte // what came behind the request
	begin Wait
}

// Do implements Task.
func (a *arrival) Do(t *Turn, _ *Conn) {
	c := t.attach(a.fd)
	if c == nil {
		a.begin.Gone()
		return
	}
	t.become(c, stateAuth)
	a.begin.Done(t, c)
	t.start(c, a.early)
	if t.e.drain.atOnce.Load() && c.state != stateDead { // the drain has passed
		if c.state == stateOpen {
			t.goodbye(c)
		}
		t.die(c)
	}
}
