package server

import (
	"context"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// wait waits until done is closed or has a token, or returns why it never will or
// is not waited for any longer.
func (srv *Server) wait(ctx context.Context, done <-chan struct{}) (err error) {
	defer srv.engine.Woken(ctx)
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-srv.ended:
		err = ErrClosed // no shard has a turn any more
	}
	select {
	case <-done: // it was at the same moment
		return nil
	default:
		return err
	}
}

// allGone reports whether m is a push and none of its connections is there
// any more.
func (m *message) allGone() bool {
	for _, to := range m.To {
		if !to.Gone {
			return false
		}
	}
	return len(m.To) > 0
}

var statuses = [...]DeviceStatus{
	engine.Pending: StatusPending,
	engine.Written: StatusWritten,
	engine.Queued:  StatusQueued,
	engine.Dropped: StatusDropped,
}

// fill completes the receipt of a message that all shards have walked.
func (m *message) fill(srv *Server, r *Receipt) {
	r.Subscribers = m.Total()
	r.Written, r.Queued, r.Dropped = m.Outcome()
	if len(m.To) == 0 {
		return
	}
	r.Devices = make([]Device, len(m.To))
	ids := make([]byte, 0, (len(m.To)+1)*idLength) // append needs a little room behind the last one
	for i, to := range m.To {
		r.Devices[i].Status = statuses[to.Status]
		if m.acks != nil && srv.acks.has(m.acks, to.Ref) {
			r.Devices[i].Status = StatusAcked
		}
		ids = srv.ids.append(ids, to.Ref)
	}
	all := string(ids)
	for i := range r.Devices {
		r.Devices[i].Conn = all[i*idLength : (i+1)*idLength]
	}
}
