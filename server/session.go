package server

import (
	"slices"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// session is what the server knows of an open connection: 56 bytes beside the
// engine's slot, which a fan-out does not touch. Owned by the shard's turn, but
// for what others may read under a lock.
type session struct {
	user string     // guarded for others by its stripe of the user index
	ref  engine.Ref // guarded likewise; 0 unless it is in the user index
	next *session   // next device of the same user; guarded likewise
	subs [2]*subset
	more *sessionMore // what few have
}

// sessionMore is what few sessions have.
type sessionMore struct {
	subs     []*subset   // beyond session.subs
	commands []byte      // of a message whose command is in a call: those behind it
	own      *personal   // what its Identity has beside a user
	catching []*catching // subscriptions that catch up; the first of them reads
	again    []*entering // answers, on their way, to subscribes to what it was subscribed to
	revoked  []*subset   // subscriptions that ended before they took effect: see Server.takeEffect
}

// sessionsPage is so many that a page, of 56 bytes each, just fits a size class
// of Go's allocator.
const sessionsPage = 73

// shardData is what the server keeps beside a shard of the engine. Owned by the
// shard's turn.
type shardData struct {
	pages    []*[sessionsPage]session
	expiries expiries

	// Scratch.
	reply     []byte
	id        []byte
	topics    []string // that a handshake asks for
	positions []wire.Position
	held      []*topic
}

func (srv *Server) data(t *engine.Turn) *shardData { return &srv.shards[t.Shard()] }

// session returns that of an open connection.
func (srv *Server) session(t *engine.Turn, c *engine.Conn) *session {
	i := t.Index(c)
	return &srv.shards[t.Shard()].pages[i/sessionsPage][i%sessionsPage]
}

// newSession returns the session of a connection that opens.
func (d *shardData) newSession(i int) *session {
	page := i / sessionsPage
	for page >= len(d.pages) {
		d.pages = append(d.pages, nil)
	}
	if d.pages[page] == nil {
		d.pages[page] = new([sessionsPage]session)
	}
	return &d.pages[page][i%sessionsPage]
}

// find returns the subscription of a topic, or nil.
func (s *session) find(topic string) *subset {
	for sub := range s.each {
		if sub.topic.flow.Name == topic {
			return sub
		}
	}
	return nil
}

// each yields every subscription.
func (s *session) each(yield func(*subset) bool) {
	for _, sub := range s.subs {
		if sub != nil && !yield(sub) {
			return
		}
	}
	if s.more == nil {
		return
	}
	for _, sub := range s.more.subs {
		if !yield(sub) {
			return
		}
	}
}

// topics returns how many subscriptions there are, with those that catch up.
func (s *session) topics() (n int) {
	for range s.each {
		n++
	}
	if s.more != nil {
		n += len(s.more.catching)
	}
	return n
}

// first returns the first of the subscriptions that catch up, or nil.
func (s *session) first() *catching {
	if s.more == nil || len(s.more.catching) == 0 {
		return nil
	}
	return s.more.catching[0]
}

// findCatching returns the subscription of a topic if it catches up, or nil.
func (s *session) findCatching(topic string) *catching {
	if s.more != nil {
		for _, k := range s.more.catching {
			if k.topic.flow.Name == topic {
				return k
			}
		}
	}
	return nil
}

// has reports whether there is a subscription of a topic, live or catching up.
func (s *session) has(topic string) bool { return s.find(topic) != nil || s.findCatching(topic) != nil }

func (s *session) removeCatching(k *catching) {
	i := slices.Index(s.more.catching, k)
	s.more.catching = slices.Delete(s.more.catching, i, i+1)
	s.slim()
}

func (s *session) add(sub *subset) {
	for i := range s.subs {
		if s.subs[i] == nil {
			s.subs[i] = sub
			return
		}
	}
	m := s.moreOf()
	m.subs = append(m.subs, sub)
}

func (s *session) remove(sub *subset) {
	for i := range s.subs {
		if s.subs[i] == sub {
			s.subs[i] = nil
			return
		}
	}
	if m := s.more; m != nil {
		if i := slices.Index(m.subs, sub); i >= 0 {
			m.subs = slices.Delete(m.subs, i, i+1)
		}
		s.slim()
	}
}

func (s *session) moreOf() *sessionMore {
	if s.more == nil {
		s.more = &sessionMore{}
	}
	return s.more
}

// slim lets go of what is not needed any more.
func (s *session) slim() {
	if m := s.more; m != nil && len(m.subs) == 0 && len(m.commands) == 0 && len(m.catching)+len(m.again)+len(m.revoked) == 0 && m.own == nil {
		s.more = nil
	}
}
