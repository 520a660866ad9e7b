package server

import (
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// worker has the buffers that a goroutine needs to serve a shard. Connections
// use them one after the other. Each worker of the pool has one, and so has the
// poller's goroutine.
type worker struct {
	srv   *Server
	shard *shard // whose turn it has

	exact time.Duration // kernel.Now, read once a round
	now   stamp         // the server's clock, which does not count pauses

	steps   uint          // of walks; the clock is read now and then
	yielded time.Duration // when the poller last gave way to other goroutines

	in     []byte // received
	out    []byte // replies of the connection being served
	join   []byte // outbox entries that leave together
	half   half   // for connections that have none of their own
	events [128]netpoll.Event

	scratch    []byte // payload of a reply
	id         []byte
	topics     []string // that a handshake asks for
	positions  []wire.Position
	unfinished []*walk
	one        [1]walkEntry
}

const (
	readSize = 64 << 10 // also what one connection may have of a turn
	joinSize = 64 << 10
)

func newWorker(srv *Server) *worker {
	return &worker{
		srv:  srv,
		in:   make([]byte, readSize),
		out:  make([]byte, 0, 4<<10),
		join: make([]byte, 0, joinSize),
	}
}

func (w *worker) clock() {
	w.exact = w.srv.kernel.Now()
	w.now = w.srv.stampAt(w.exact)
}
