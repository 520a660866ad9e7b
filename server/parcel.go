package server

import (
	"encoding/base32"
	"math"
	"strconv"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// costOf is what m takes of the publish budget.
func costOf(m *Message) int64 { return int64(len(m.Data)) + 512 }

// message is a [Message] on its way.
type message struct {
	engine.Parcel
	srv    *Server
	cost   int64         // what it takes of the publish budget
	number uint64        // of the flight
	done   chan struct{} // closed when it was delivered; nil if nobody waits
	acks   *ackWait      // of a push that waits for them
}

// newMessage makes what shards pass on; encode gives it its bytes.
func (srv *Server) newMessage(m *Message) *message {
	out := &message{srv: srv, cost: costOf(m)}
	out.Owner, out.Key, out.Rate, out.Began = out, m.CollapseKey, m.Rate, srv.engine.Now()
	if m.TTL > 0 {
		out.Expires = out.Began + min(m.TTL, math.MaxInt64-out.Began)
	}
	return out
}

// Delivered implements engine.Owner: no shard has m any more.
func (m *message) Delivered() {
	m.srv.release(m.cost)
	if m.done != nil {
		m.srv.counts.fanout.Observe(m.srv.engine.Now() - m.Began)
		close(m.done)
	}
}

// reserve takes n bytes of the publish budget, if it has them.
func (srv *Server) reserve(n int64) bool {
	for {
		used := srv.publishBytes.Load()
		if used+n > srv.cfg.PublishBudget {
			return false
		}
		if srv.publishBytes.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// release gives n bytes back to the publish budget.
func (srv *Server) release(n int64) {
	srv.publishBytes.Add(-n)
	srv.wakeBatch()
}

// wakeBatch has one of the batches that wait for the publish budget try again.
func (srv *Server) wakeBatch() {
	if srv.batchesWaiting.Load() > 0 {
		select {
		case srv.budgetFree <- struct{}{}:
		default: // one is about to
		}
	}
}

// newID returns a message id that no other message has.
func (srv *Server) newID() string {
	var b [32]byte
	return string(strconv.AppendUint(append(b[:0], srv.idPrefix...), srv.idNext.Add(1), 36))
}

// randomName returns a name that no other process has.
func (srv *Server) randomName() string {
	var b [5]byte
	srv.engine.Rand(b[:])
	return base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])
}
