package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// hookCall is one call of user code. run runs in the hook pool, then runs in
// the shard's turn afterwards. While a connection has a call nothing more of it
// is read, so its hooks run one at a time and in order.
type hookCall struct {
	shard *shard
	ref   ref
	run   func()                   // in the pool
	then  func(w *worker, c *conn) // in the turn, if the connection still is; nil for none

	panicked bool // set by the pool before the turn is told
	stale    bool // owned by the turn: Auth of a handshake that has ended

	mu    sync.Mutex
	done  bool
	ended func() // the connection ended meanwhile: OnClose, to be run behind run
}

// call runs hook for c. There is at most one at a time.
func (w *worker) call(c *conn, run func(), then func(*worker, *conn)) {
	call := &hookCall{shard: w.shard, ref: c.ref(), run: run, then: then}
	w.extraOf(c).call = call
	c.flags |= flagHook
	w.submitHook(call)
}

// submitHook hands call to the pool or, when that is full, keeps it until a
// hook of this shard returns or the next tick.
func (w *worker) submitHook(call *hookCall) {
	if !w.srv.hooks.Submit(call) {
		w.shard.waiting = append(w.shard.waiting, call)
		w.srv.hooksWaiting.Add(1)
		w.shard.hasten()
	}
}

func (w *worker) retryHooks() {
	s := w.shard
	n := 0
	for n < len(s.waiting) && w.srv.hooks.Submit(s.waiting[n]) {
		n++
	}
	s.waiting = slices.Delete(s.waiting, 0, n)
	w.waitedFor(n)
}

// dropStaleHooks drops the calls that nobody wants any more. Else peers that
// come and go while Auth is slow would leave one each.
func (w *worker) dropStaleHooks() {
	s := w.shard
	n := len(s.waiting)
	s.waiting = slices.DeleteFunc(s.waiting, func(call *hookCall) bool { return call.stale })
	w.waitedFor(n - len(s.waiting))
}

// waitedFor counts n calls that wait no longer.
func (w *worker) waitedFor(n int) {
	if n > 0 && w.srv.hooksWaiting.Add(-int64(n)) == 0 {
		w.srv.signalEmpty()
	}
}

// runHook is what the hook pool does with a call.
func (srv *Server) runHook(call *hookCall) {
	start := srv.kernel.Now()
	srv.protect(call)
	srv.stats.hook.observe(srv.kernel.Now() - start)
	call.mu.Lock()
	call.done = true
	ended := call.ended
	call.mu.Unlock()
	if ended != nil {
		ended()
	}
	if call.then != nil || call.panicked {
		srv.post(call.ref, item{kind: itemHook, x: call})
	}
}

// protect runs user code; a panic ends that call alone.
func (srv *Server) protect(call *hookCall) {
	defer func() {
		if v := recover(); v != nil {
			call.panicked = true
			srv.stats.hookPanics.Add(1)
			srv.log.sometimes("hook panicked; its connection is closed with 1011", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	call.run()
}

// hookReturned goes on with a connection whose hook has returned.
func (w *worker) hookReturned(c *conn, call *hookCall) {
	if c.ext == nil || c.ext.call != call {
		return
	}
	c.ext.call = nil
	c.flags &^= flagHook
	r := c.ref()
	if call.panicked && c.state == stateAuth {
		w.refuse(c, &refusal{500, rejectAuth, "authentication failed"})
		return
	}
	if call.panicked {
		w.shut(c, wire.CloseInternal, "a hook failed")
		return
	}
	call.then(w, c)
	w.resume(c, r)
}

// resume goes on reading after a hook has returned: first what is in ext.rest,
// then what is in the socket.
func (w *worker) resume(c *conn, r ref) {
	if c.ref() != r || c.flags&flagHook != 0 {
		return
	}
	if c.ext != nil && len(c.ext.rest) > 0 && c.state == stateOpen {
		rest := c.ext.rest
		c.ext.rest = nil
		rest = w.parse(c, rest)
		if c.ref() != r {
			return
		}
		if c.flags&flagHook != 0 {
			c.ext.rest = rest // the same bytes, not a copy for each hook
			return
		}
	}
	w.flushReplies(c)
	if c.ref() != r {
		return
	}
	if c.flags&flagUnread != 0 {
		c.flags &^= flagUnread
		w.serve(c, true) // to the very end: an end of file may stand there
		if c.ref() != r {
			return
		}
	}
	w.slim(c)
}

func (w *worker) handle(c *conn) Conn { return Conn{srv: w.srv, ref: c.ref(), user: c.user} }

// hookAuth asks Auth who the peer is and Allow about the topics of its query,
// then upgrades or refuses.
func (w *worker) hookAuth(c *conn, r request, want wish, early []byte) {
	c.state, c.stamp = stateAuth, w.now
	want = want.clone()
	head := bytes.Clone(r.head)
	rest := bytes.Clone(early)
	srv, handle := w.srv, w.handle(c)
	peer := netpoll.Peer(int(c.fd)).String() // in the turn: the hook may outlive the descriptor (law 13)
	var no *refusal
	w.call(c, func() {
		want.user, no = srv.authorize(head, peer, handle, want)
	}, func(w *worker, c *conn) {
		if c.state != stateAuth {
			return
		}
		if no != nil {
			w.refuse(c, no)
			return
		}
		r, _ := parseHead(head, w.srv.cfg.Path)
		w.upgrade(c, r, want)
		w.early(c, rest)
	})
}

// authorize runs Auth and Allow in the hook pool.
func (srv *Server) authorize(head []byte, peer string, c Conn, want wish) (user string, no *refusal) {
	user = want.user
	if srv.cfg.Auth != nil {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
		if err != nil {
			return "", badRequest("malformed request head")
		}
		ctx, cancel := context.WithTimeout(context.Background(), srv.cfg.AuthTimeout)
		defer cancel()
		req.RemoteAddr = peer
		if user, err = srv.cfg.Auth(req.WithContext(ctx)); err != nil {
			srv.log.sometimesInfo("a client was refused by Auth", "error", err)
			no := &refusal{http.StatusUnauthorized, rejectAuth, err.Error()}
			var status *HTTPError
			if errors.As(err, &status) {
				no.status = status.Status
			}
			return "", no
		}
	}
	if user != "" {
		if err := wire.CheckUser(user); err != nil {
			return "", &refusal{http.StatusForbidden, rejectAuth, err.Message}
		}
	}
	c.user = user
	if srv.cfg.Allow != nil {
		for _, topic := range want.topics {
			if err := srv.cfg.Allow(c, ActionSubscribe, topic); err != nil {
				return "", &refusal{http.StatusForbidden, rejectForbidden, fmt.Sprintf("topic %q: %v", topic, err)}
			}
		}
	}
	return user, nil
}

// hookMessage gives a message to OnMessage.
func (w *worker) hookMessage(c *conn, f frame) {
	payload := append([]byte{}, f.payload...)
	hook, handle, handled := w.srv.cfg.OnMessage, w.handle(c), false
	w.call(c, func() {
		handled = hook(handle, f.op, payload)
	}, func(w *worker, c *conn) {
		if !handled && c.state == stateOpen {
			w.unhandled(c, frame{f.op, payload})
		}
	})
}

func (w *worker) hookOpen(c *conn) {
	hook, handle := w.srv.cfg.OnOpen, w.handle(c)
	w.call(c, func() { hook(handle) }, func(*worker, *conn) {})
}

// ended calls OnClose in the hook pool, after the hook of c that still runs, if
// there is one.
func (w *worker) ended(c *conn, code wire.CloseCode) {
	hook := w.srv.cfg.OnClose
	if hook == nil {
		return
	}
	handle := w.handle(c)
	run := func() { hook(handle, int(code)) }
	if c.ext != nil && c.ext.call != nil {
		call := c.ext.call
		call.mu.Lock()
		defer call.mu.Unlock()
		if !call.done {
			call.ended = run
			return
		}
	}
	w.submitHook(&hookCall{shard: w.shard, ref: c.ref(), run: run})
}

// allowed asks Allow whether c may do action on topic. It calls yes if so, and
// answers the command id with an error if not. Without Allow, subscribing is
// allowed to everybody, and publishing only in Dev.
func (w *worker) allowed(c *conn, id []byte, action Action, topic string, yes func(*worker, *conn)) {
	allow := w.srv.cfg.Allow
	if allow == nil {
		if action == ActionPublish && !w.srv.cfg.Dev {
			w.replyError(id, &wire.Error{Code: wire.Forbidden, Message: "clients may not publish here"})
			return
		}
		yes(w, c)
		return
	}
	handle := w.handle(c)
	var err error
	w.call(c, func() {
		err = allow(handle, action, topic)
	}, func(w *worker, c *conn) {
		if err != nil {
			w.replyError(id, &wire.Error{Code: wire.Forbidden, Message: err.Error()})
			return
		}
		yes(w, c)
	})
}
