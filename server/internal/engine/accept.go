package engine

import (
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/netpoll"
)

const (
	acceptBatch = 64 // connections that are taken or refused before others have their turn
	minBackoff  = 5 * time.Millisecond
	maxBackoff  = time.Second
)

// listener is one that Serve accepts from.
type listener struct {
	e     *Engine // static
	ln    net.Listener
	fd    int // of our own
	ended chan struct{}

	mu      lockorder.Mutex[lockorder.Outer] // held to begin and to end accepting, not while shards have turns
	closed  bool
	busy    bool // the poller's goroutine is accepting
	reserve int  // a descriptor to give up when there are none
	backoff time.Duration
}

// Serve accepts connections on ln until [Engine.Shutdown] and then returns nil.
// It takes a descriptor of ln, which must be a TCP or Unix listener, and closes
// ln when it returns. Several listeners may be served at once.
func (e *Engine) Serve(ln net.Listener) error {
	defer ln.Close()
	fd, err := e.kernel.TakeListener(ln, e.cfg.userTimeout())
	if err != nil {
		return err
	}
	l := &listener{e: e, ln: ln, fd: fd, reserve: e.kernel.Reserve(), ended: make(chan struct{})}
	if watched, err := l.begin(); !watched {
		e.kernel.Close(fd)
		e.kernel.Close(l.reserve)
		return err
	}
	<-l.ended
	return nil
}

// begin has the listener watched, unless the engine is draining.
func (l *listener) begin() (watched bool, err error) {
	e := l.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.drain.on.Load() {
		return false, nil
	}
	if err := e.runner.Watch(l.fd, l.accept); err != nil {
		return false, err
	}
	e.listeners = append(e.listeners, l)
	return true, nil
}

// close stops accepting. The poller no longer watches the listener, and the
// kernel refuses new connections.
func (l *listener) close() {
	l.ln.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if !l.busy {
		l.endLocked()
	}
}

func (l *listener) endLocked() {
	_ = l.e.runner.Unwatch(l.fd) // it is watched until here
	l.e.kernel.Close(l.fd)
	l.e.kernel.Close(l.reserve)
	close(l.ended)
}

// accept takes the connections that wait. The poller's goroutine calls it.
func (l *listener) accept() {
	l.mu.Lock()
	l.busy = !l.closed
	busy := l.busy
	l.mu.Unlock()
	if !busy {
		return
	}
	some, errno := l.acceptSome()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = false
	if some || errno == 0 {
		l.backoff = 0
	}
	switch {
	case l.closed: // meanwhile
		l.endLocked()
	case errno != 0:
		l.refusedLocked(errno)
	default:
		l.rearmLocked()
	}
}

// acceptSome takes a batch of connections and hands it to their shards. It
// reports whether there were any, and the error of an accept that the kernel
// refused.
func (l *listener) acceptSome() (some bool, errno netpoll.Errno) {
	e := l.e
	var batch [acceptBatch]int
	n := 0
	for range batch { // refused ones count too
		var fd int
		fd, errno = e.kernel.Accept(l.fd)
		if errno == netpoll.EAGAIN {
			errno = 0
			break
		}
		if errno == netpoll.EINTR || errno == syscall.ECONNABORTED {
			errno = 0
			continue
		}
		if errno != 0 {
			break
		}
		some = true
		if e.conns.Add(1) > int64(e.capacity) {
			e.turnAway(fd)
			continue
		}
		batch[n] = fd
		n++
	}
	e.admit(batch[:n])
	return some, errno
}

// rearmLocked has the poller watch again. A server that cannot accept any more
// must not go on looking ready.
func (l *listener) rearmLocked() {
	if err := l.e.runner.Rearm(l.fd); err != nil && !l.e.closed.Load() {
		l.e.fatal("cannot watch the listener any more", err)
	}
}

// refusedLocked deals with an accept that the kernel refuses, mostly for want
// of descriptors: one connection is taken on the reserve, so that its peer
// knows, and then nothing for a while, which doubles.
func (l *listener) refusedLocked(errno netpoll.Errno) {
	e := l.e
	e.counts.accepts.Add(errno.Error())
	e.log.Error("cannot accept connections; is the descriptor limit (ulimit -n) too low?", "error", errno, "connections", e.conns.Load())
	if l.reserve >= 0 && (errno == syscall.EMFILE || errno == syscall.ENFILE) {
		e.kernel.Close(l.reserve)
		if fd, errno := e.kernel.Accept(l.fd); errno == 0 {
			e.conns.Add(1)
			e.turnAway(fd)
		}
		l.reserve = e.kernel.Reserve()
	}
	l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
	e.kernel.After(l.backoff, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.closed {
			l.rearmLocked()
		}
	})
}

// turnAway answers a connection over the limit, at the cost of the accept. The
// request, which came with the connection (TCP_DEFER_ACCEPT), is read first:
// close(2) with unread bytes is a reset, behind which the peer may lose the
// answer. The poller's goroutine calls it.
func (e *Engine) turnAway(fd int) {
	e.counts.rejects.add(RejectLimit, 1)
	e.kernel.Recv(fd, e.inline.in)
	var buf [512]byte
	e.kernel.Send(fd, e.appendRefusal(buf[:0], http.StatusServiceUnavailable, TextFull))
	e.kernel.Close(fd)
	e.gone()
}

// admit hands new connections to the shards of their descriptors.
func (e *Engine) admit(fds []int) {
	e.counts.accepted.Add(uint64(len(fds)))
	e.counts.handshaking.Add(int64(len(fds)))
	for len(fds) > 0 {
		// Descriptors mostly come in runs of one shard.
		s := e.shards[shardOf(fds[0], len(e.shards))]
		n := 1
		for n < len(fds) && e.shards[shardOf(fds[n], len(e.shards))] == s {
			n++
		}
		s.inbox.mu.Lock()
		for _, fd := range fds[:n] {
			s.inbox.accepted = append(s.inbox.accepted, int32(fd))
		}
		s.inbox.mu.Unlock()
		s.wakeHere(e.inline)
		fds = fds[n:]
	}
}
