package engine

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/wire"
)

// Call is a [Job] on its way. While a connection has a call nothing more of it
// is read, so its jobs run one at a time and in order.
type Call struct {
	shard *shard
	ref   Ref // 0: nobody is left for the job's Done
	job   Job

	panicked bool // set before the turn or the guest is told
	stale    bool // owned by the turn: nobody is left who wants it
	paused   bool // static: the job is a pause
	aside    bool // static: the connection goes on meanwhile

	// Of a guest, who is no connection yet; static.
	guest    context.Context // ends when nobody waits any more
	returned chan struct{}   // closed when the job has run

	mu   lockorder.Mutex[lockorder.Leaf]
	ran  bool
	last Job // to be run behind job
}

// Call begins a job for c. There is at most one at a time: it is for the end of
// an App's method or of Job.Done.
func (t *Turn) Call(c *Conn, job Job) {
	call := &Call{shard: t.shard, ref: c.Ref(), job: job}
	t.extraOf(c).call = call
	c.flags |= flagCall
	t.submit(call)
}

// Job returns the job of c's call, which may be running, or nil if c has no call.
// [App.Closed] may tell it that nobody waits for it any more.
func (t *Turn) Job(c *Conn) Job {
	if c.ext == nil || c.ext.call == nil {
		return nil
	}
	return c.ext.call.job
}

// Aside is Call of a job beside which c goes on: more of it is read, and it may
// have a call and other jobs aside. Done is called whatever the state of c.
func (t *Turn) Aside(c *Conn, job Job) *Call {
	call := &Call{shard: t.shard, ref: c.Ref(), job: job, aside: true}
	t.submit(call)
	return call
}

// Abandon says that nobody wants the job any more. If it waits for room in the
// runner it is not run. The turn of its connection calls it.
func (c *Call) Abandon() { c.stale = true }

// pause is the job of a connection that waits. It is not run.
type pause struct{ Wait }

// Run implements Job.
func (pause) Run() {}

// Pause is Call of a job that nobody runs: w goes on when the call is given to
// [Engine.Resume]. It takes no worker of the runner.
func (t *Turn) Pause(c *Conn, w Wait) *Call {
	call := &Call{shard: t.shard, ref: c.Ref(), job: pause{w}, paused: true, ran: true}
	t.extraOf(c).call = call
	c.flags |= flagCall
	return call
}

// Resume ends a pause. Any goroutine calls it, once.
func (e *Engine) Resume(call *Call) { e.Post(call.ref, call) }

// CallLast has the Run of a last job called, behind the call of c that is on its
// way, if there is one. It is for [App.Closed]: nobody is left for its Done.
func (t *Turn) CallLast(c *Conn, last Job) {
	if c.ext != nil && c.ext.call != nil && c.ext.call.runBehind(last) {
		return
	}
	t.submit(&Call{shard: t.shard, job: last})
}

// runBehind has last run behind c's job. It reports false if that has run.
func (c *Call) runBehind(last Job) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ran {
		c.last = last
	}
	return !c.ran
}

// submit hands call to the runner or, when that is full, keeps it until a job
// of this shard returns or the next tick.
func (t *Turn) submit(call *Call) {
	if !t.e.runner.Call(call) {
		t.shard.waiting = append(t.shard.waiting, call)
		t.counts.waitingCalls.Add(1)
		t.shard.wakeEveryTick()
	}
}

func (t *Turn) retryCalls() {
	s := t.shard
	n := 0
	for n < len(s.waiting) && t.e.runner.Call(s.waiting[n]) {
		n++
	}
	s.waiting = slices.Delete(s.waiting, 0, n)
	t.waitedFor(n)
}

// dropStaleCalls drops the calls that nobody wants any more. Else peers that
// come and go while authentication is slow would leave one each.
func (t *Turn) dropStaleCalls() {
	s := t.shard
	n := len(s.waiting)
	s.waiting = slices.DeleteFunc(s.waiting, func(call *Call) bool { return call.stale || call.guest != nil && call.guest.Err() != nil })
	t.waitedFor(n - len(s.waiting))
}

// waitedFor counts n calls that wait no longer.
func (t *Turn) waitedFor(n int) {
	if n > 0 && t.counts.waitingCalls.Add(-int64(n)) == 0 {
		t.e.drain.signal()
	}
}

// runCall is what the runner does with a call.
func (e *Engine) runCall(call *Call) {
	start := e.kernel.Now()
	call.panicked = !e.protect(call.job)
	call.mu.Lock()
	call.ran = true
	last := call.last
	call.mu.Unlock()
	if last != nil {
		e.protect(last)
	}
	e.counts.call.Observe(e.kernel.Now() - start)
	switch {
	case call.guest != nil:
		close(call.returned)
	case call.ref != 0:
		e.Post(call.ref, call)
	}
}

// protect runs other people's code and reports whether it has returned; a panic
// ends that call alone.
func (e *Engine) protect(job Job) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			e.counts.panics.Add(1)
			e.log.Error("hook panicked; its connection is closed with 1011", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	job.Run()
	return true
}

// Do goes on with a connection whose job has run.
func (c *Call) Do(t *Turn, conn *Conn) {
	switch {
	case !c.aside:
	case c.panicked:
		t.shut(conn, End{Code: wire.CloseInternal, By: ByServer, Reason: "a hook failed"})
		return
	default:
		c.job.Done(t, conn)
		return
	}
	if conn.ext == nil || conn.ext.call != c {
		return
	}
	conn.ext.call = nil
	conn.flags &^= flagCall
	switch {
	case c.panicked && conn.state == stateAuth:
		t.refuse(conn, authFailed())
	case c.panicked:
		t.shut(conn, End{Code: wire.CloseInternal, By: ByServer, Reason: "a hook failed"})
	default:
		c.job.Done(t, conn)
		t.resume(conn)
	}
}

// resume goes on reading after a call has returned: first what is in ext.rest,
// then what is in the socket.
func (t *Turn) resume(c *Conn) {
	if c.state == stateOpen && c.flags&flagCall == 0 && c.ext != nil && len(c.ext.rest) > 0 {
		rest := c.ext.rest
		c.ext.rest = nil
		rest = t.parse(c, rest)
		if len(rest) > 0 {
			c.ext.rest = rest // the same bytes, not a copy for each call
		}
	} else {
		t.flushReplies(c)
	}
	if c.state == stateDead || c.flags&flagCall != 0 {
		return
	}
	if c.flags&flagUnread != 0 {
		c.flags &^= flagUnread
		t.serve(c, true) // to the very end: an end of file may stand there
	}
	if c.state != stateDead {
		t.slim(c)
	}
}
