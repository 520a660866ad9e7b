package httpapi

import (
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Every wait for a peer has a deadline. net/http's own cover a whole request
// or a whole answer, and so would cut a push that waits for an acknowledgement
// or a profile; its handlers set them by hand (http.ResponseController), and
// it takes away a write deadline with each answer.

const (
	// linger is for how long the rest of a body is read that nobody wants,
	// so that the answer is not lost to a reset, RFC 9112 section 9.6.
	linger = 500 * time.Millisecond
	// lastWords is for how long an answer may take once the server shuts down.
	lastWords = time.Second
)

// setWriteDeadline gives an answer that is ready then its deadline. An error
// means that the writer is not a connection, a recorder for example.
func (x *exchange) setWriteDeadline(ready time.Time) {
	timeout := x.api.cfg.WriteTimeout
	if x.api.leaving.Load() {
		timeout = min(timeout, lastWords)
	}
	_ = x.control.SetWriteDeadline(ready.Add(timeout))
}

// leaveBody makes the answer the last one of its connection if the request has
// a body, because nobody will read it: net/http would wait for all of it, some
// before it answers, and without a deadline.
func (x *exchange) leaveBody() {
	if x.r.ContentLength != 0 && !x.bodyRead {
		x.w.Header().Set("Connection", "close")
		_ = x.control.SetReadDeadline(time.Now().Add(linger))
	}
}

// NewServer returns an HTTP server for the API, with a deadline for everything
// that a peer can be slow with. Shutdown ends answers that nobody reads within
// a second. It does not listen: call its Serve.
func NewServer(backend Backend, cfg Config) *http.Server {
	a := newAPI(backend, cfg)
	open := &connections{
		max: a.cfg.MaxConnections, log: a.cfg.Logger, tell: rate.Sometimes{Interval: time.Minute},
		open: make(map[net.Conn]http.ConnState),
	}
	srv := &http.Server{
		Handler:        a,
		ReadTimeout:    a.cfg.BodyTimeout,  // of a head, and of what net/http answers by itself
		WriteTimeout:   a.cfg.WriteTimeout, // of those answers
		IdleTimeout:    a.cfg.IdleTimeout,
		MaxHeaderBytes: 16 << 10,
		ConnState:      open.changed,
		// A request for * is one like others, with no path that there is.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(a.cfg.Logger.Handler(), slog.LevelWarn),
	}
	srv.RegisterOnShutdown(func() {
		a.leaving.Store(true)
		open.setWriteDeadline(time.Now().Add(lastWords))
	})
	return srv
}

// connections are the open ones of an [http.Server], which share the process's
// descriptors with those of the clients.
type connections struct {
	// Static after NewServer.
	max  int
	log  *slog.Logger
	tell rate.Sometimes // that there are too many

	mu   sync.Mutex
	open map[net.Conn]http.ConnState
}

// changed is a server's ConnState. When there are too many it closes an idle
// connection or, if all are busy, the new one.
func (o *connections) changed(c net.Conn, state http.ConnState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(o.open) >= o.max && !o.makeRoomLocked() {
			_ = c.Close()
			return
		}
	case http.StateClosed, http.StateHijacked:
		delete(o.open, c)
		return
	}
	if _, known := o.open[c]; known || state == http.StateNew {
		o.open[c] = state
	}
}

// makeRoomLocked closes an idle connection, and reports whether there is one.
func (o *connections) makeRoomLocked() bool {
	o.tell.Do(func() {
		o.log.Warn("the API has too many connections: idle ones are closed, or else new ones", "api-max-connections", o.max)
	})
	for c, state := range o.open {
		if state == http.StateIdle {
			_ = c.Close()
			delete(o.open, c)
			return true
		}
	}
	return false
}

func (o *connections) setWriteDeadline(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.open {
		_ = c.SetWriteDeadline(at)
	}
}
