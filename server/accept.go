package server

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
)

const (
	acceptBatch = 64 // connections that are taken or refused before others have their turn
	minBackoff  = 5 * time.Millisecond
	maxBackoff  = time.Second
)

// What a client is told that is not taken: over Config.MaxConnections, and
// during Shutdown.
const (
	textFull     = "the server is full, try again later"
	textDraining = "the server is shutting down"
)

// listener is one that Serve accepts from.
type listener struct {
	srv   *Server // static
	ln    net.Listener
	fd    int // of our own
	ended chan struct{}

	mu      sync.Mutex // held while accepting
	closed  bool
	reserve int // a descriptor to give up when there are none
	backoff time.Duration
}

// Serve accepts connections on ln until [Server.Shutdown] and then returns an
// error that wraps [ErrClosed]. It takes a descriptor of ln, which must be a
// TCP or Unix listener, and closes ln when it returns. Several listeners may be
// served at once.
func (srv *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	fd, err := netpoll.TakeListener(ln, srv.cfg.userTimeout())
	if err != nil {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	l := &listener{srv: srv, ln: ln, fd: fd, reserve: openReserve(), ended: make(chan struct{})}
	srv.mu.Lock()
	if srv.draining.Load() {
		srv.mu.Unlock()
		netpoll.Close(fd)
		netpoll.Close(l.reserve)
		return fmt.Errorf("serve %s: %w", ln.Addr(), ErrClosed)
	}
	err = srv.poller.Add(fd, l.accept)
	if err == nil {
		srv.listeners = append(srv.listeners, l)
	}
	srv.mu.Unlock()
	if err != nil {
		netpoll.Close(fd)
		netpoll.Close(l.reserve)
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	<-l.ended
	return fmt.Errorf("serve %s: %w", ln.Addr(), ErrClosed)
}

// openReserve opens a descriptor to give up when there are none; -1 if that
// fails, and the listener does without.
func openReserve() int {
	fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// close stops accepting. The poller no longer watches the listener, and the
// kernel refuses new connections.
func (l *listener) close() {
	l.ln.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	_ = l.srv.poller.Del(l.fd) // it is watched until here
	netpoll.Close(l.fd)
	netpoll.Close(l.reserve)
	close(l.ended)
}

// accept takes the connections that wait. The poller's goroutine calls it.
func (l *listener) accept() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	srv := l.srv
	var batch [acceptBatch]int
	n := 0
	for range batch { // refused ones count too
		fd, errno := srv.kernel.Accept(l.fd)
		if errno == netpoll.EAGAIN {
			break
		}
		if errno == netpoll.EINTR || errno == syscall.ECONNABORTED {
			continue
		}
		if errno != 0 {
			srv.admit(batch[:n])
			l.refused(errno)
			return
		}
		l.backoff = 0
		if srv.conns.Add(1) > int64(srv.capacity) {
			srv.turnAway(fd)
			continue
		}
		batch[n] = fd
		n++
	}
	srv.admit(batch[:n])
	l.rearm()
}

// rearm has the poller watch again. A server that cannot accept any more must
// not go on looking ready.
func (l *listener) rearm() {
	if err := l.srv.poller.Rearm(l.fd); err != nil && !l.srv.closed.Load() {
		l.srv.fatal("cannot watch the listener any more", err)
	}
}

// refused deals with an accept that the kernel refuses, mostly for want of
// descriptors: one connection is taken on the reserve, so that its peer knows,
// and then nothing for a while, which doubles.
func (l *listener) refused(errno syscall.Errno) {
	l.srv.stats.acceptError(errno)
	l.srv.log.sometimes("cannot accept connections; is the descriptor limit (ulimit -n) too low?", "error", errno, "connections", l.srv.conns.Load())
	if l.reserve >= 0 && (errno == syscall.EMFILE || errno == syscall.ENFILE) {
		netpoll.Close(l.reserve)
		if fd, errno := l.srv.kernel.Accept(l.fd); errno == 0 {
			l.srv.conns.Add(1)
			l.srv.turnAway(fd)
		}
		l.reserve = openReserve()
	}
	l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
	time.AfterFunc(l.backoff, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.closed {
			l.rearm()
		}
	})
}

// turnAway answers a connection over the limit, at the cost of the accept. The
// request, which came with the connection (TCP_DEFER_ACCEPT), is read first:
// close(2) with unread bytes is a reset, behind which the peer may lose the
// answer. The poller's goroutine calls it.
func (srv *Server) turnAway(fd int) {
	srv.stats.reject(rejectLimit)
	srv.kernel.Recv(fd, srv.inline.in)
	var buf [512]byte
	srv.kernel.Send(fd, appendRefusal(buf[:0], http.StatusServiceUnavailable, textFull))
	srv.kernel.Close(fd)
	srv.gone()
}

// admit hands new connections to the shards of their descriptors.
func (srv *Server) admit(fds []int) {
	srv.stats.accepted.Add(uint64(len(fds)))
	srv.handshaking.Add(int64(len(fds)))
	for len(fds) > 0 {
		// Descriptors mostly come in runs of one shard.
		s := srv.shards[shardOf(fds[0], len(srv.shards))]
		n := 1
		for n < len(fds) && srv.shards[shardOf(fds[n], len(srv.shards))] == s {
			n++
		}
		s.inbox.mu.Lock()
		for _, fd := range fds[:n] {
			s.inbox.accepted = append(s.inbox.accepted, int32(fd))
		}
		s.inbox.mu.Unlock()
		s.wakeHere(srv.inline)
		fds = fds[n:]
	}
}

// attach begins a connection: its slot, its place in the epoll set. head is
// what was already read of its request.
func (w *worker) attach(fd int, head []byte) {
	s := w.shard
	local := localIndex(fd, len(w.srv.shards))
	for local/pageSize >= len(s.pages) {
		s.pages = append(s.pages, nil)
	}
	if s.pages[local/pageSize] == nil {
		s.pages[local/pageSize] = new(page)
	}
	c := s.at(local)
	if c.state != stateFree {
		// Somebody else closed a descriptor that was ours.
		w.srv.log.sometimes("a connection's descriptor was closed by somebody else", "fd", fd)
		w.abandon(c)
		w.free(c)
		w.srv.gone()
	}
	c.fd, c.state, c.stamp = int32(fd), stateHead, w.now
	s.slots.add(local)
	s.conns.Add(1)
	if errno := s.set.Add(fd, uint64(c.ref())); errno != 0 {
		w.srv.log.sometimes("cannot watch a connection; is fs.epoll.max_user_watches too low?", "error", errno)
		w.lost(c)
		return
	}
	if head != nil {
		w.takeHead(c, head)
	}
}

// ServeHTTP takes over the connection of an upgrade request from net/http,
// before anything has been answered; from then on it is like one that Serve
// accepted. It needs HTTP/1.1 over plain TCP.
func (srv *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if srv.draining.Load() {
		http.Error(rw, textDraining, http.StatusServiceUnavailable)
		return
	}
	if r.TLS != nil {
		http.Error(rw, "TLS connections cannot be taken over; let a proxy end TLS", http.StatusNotImplemented)
		return
	}
	conn, buf, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		http.Error(rw, "this connection cannot be upgraded: "+err.Error(), http.StatusHTTPVersionNotSupported)
		return
	}
	early, _ := buf.Peek(buf.Reader.Buffered())
	head := append(rebuildHead(r, srv.cfg.Path), early...)
	over := srv.conns.Add(1) > int64(srv.capacity)
	if over || srv.draining.Load() { // asked again: from here on Shutdown waits for this connection
		why, text := rejectLimit, textFull
		if !over {
			why, text = rejectShutdown, textDraining
		}
		_, _ = conn.Write(appendRefusal(nil, http.StatusServiceUnavailable, text))
		conn.Close()
		srv.stats.reject(why)
		srv.gone()
		return
	}
	fd, err := netpoll.TakeConn(conn, srv.cfg.userTimeout())
	if err != nil {
		srv.gone()
		srv.log.sometimes("cannot take over a connection from net/http", "error", err)
		return
	}
	srv.stats.accepted.Add(1)
	srv.handshaking.Add(1)
	s := srv.shards[shardOf(fd, len(srv.shards))]
	s.inbox.append(item{kind: itemAdopt, ref: ref(uint32(fd)), x: head})
	s.wake()
}

// rebuildHead writes r's head again, for the same strict look as every other.
// The mux has chosen the path already, so it counts as Config.Path.
func rebuildHead(r *http.Request, path string) []byte {
	b := append([]byte(r.Method), ' ')
	origin, _ := cutOrigin([]byte(r.RequestURI))
	b = append(b, origin...)
	b = append(b, (&url.URL{Path: path}).EscapedPath()...)
	if r.URL.RawQuery != "" {
		b = append(append(b, '?'), r.URL.RawQuery...)
	}
	b = fmt.Appendf(b, " %s\r\nHost: %s\r\n", r.Proto, r.Host)
	if r.ContentLength != 0 {
		b = fmt.Appendf(b, "Content-Length: %d\r\n", r.ContentLength)
	}
	if len(r.TransferEncoding) > 0 {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	for name, values := range r.Header {
		switch {
		case name == "Content-Length":
			continue
		case name == "Cache-Control" && r.Header.Get("Pragma") == "no-cache" && slices.Equal(values, []string{"no-cache"}):
			continue // net/http adds it to Pragma: the client may have sent 64 fields without it
		}
		for _, v := range values {
			b = fmt.Appendf(b, "%s: %s\r\n", name, v)
		}
	}
	return append(b, "\r\n"...)
}
