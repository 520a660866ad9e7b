package server

import (
	"slices"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// subscriber is who wants to join topics. One of its methods is called, in the
// connection's turn.
type subscriber interface {
	// enter is given the topics, which are ready and held.
	enter(t *engine.Turn, c *engine.Conn, topics []*topic)
	// fail is told that the bus does not give all of them.
	fail(t *engine.Turn, c *engine.Conn)
}

// subscribing is a connection that waits for topics of which the bus has not said
// yet where they stand. It is paused and holds them; nothing else is kept of it.
type subscribing struct {
	srv    *Server
	topics []*topic
	at     int // the one that is waited for
	call   *engine.Call
	then   subscriber
}

// waitFor has then go on when the bus has said where all of topics stand.
func (srv *Server) waitFor(t *engine.Turn, c *engine.Conn, topics []*topic, then subscriber) {
	w := &subscribing{srv: srv, topics: topics, then: then}
	w.wait(t, c)
}

func (w *subscribing) wait(t *engine.Turn, c *engine.Conn) {
	w.call = t.Pause(c, w)
	w.srv.hub.await(w.topics[w.at], w)
}

// wake implements waiter.
func (w *subscribing) wake() { w.srv.engine.Resume(w.call) }

// Done implements [engine.Wait].
func (w *subscribing) Done(t *engine.Turn, c *engine.Conn) {
	for ; w.at < len(w.topics); w.at++ {
		ready, decided := w.srv.hub.stands(w.topics[w.at])
		if !decided {
			w.wait(t, c)
			return
		}
		if !ready {
			w.srv.hub.release(w.topics)
			w.then.fail(t, c)
			return
		}
	}
	w.then.enter(t, c, w.topics)
}

// Gone implements [engine.Wait].
func (w *subscribing) Gone() {
	w.srv.hub.forsake(w.topics[w.at], w)
	w.srv.hub.release(w.topics)
}

// unsubscribe takes c out of a topic, and reports whether it was in it.
func (srv *Server) unsubscribe(t *engine.Turn, c *engine.Conn, topic string) bool {
	s := srv.session(t, c)
	if k := s.findCatching(topic); k != nil {
		srv.giveUp(t, c, s, k, tooLate)
		return true
	}
	sub := s.find(topic)
	if sub == nil {
		return false
	}
	s.remove(sub)
	if sub.group.Has(t, c) {
		sub.group.Remove(t, c)
	} else {
		m := s.moreOf()
		m.revoked = append(m.revoked, sub)
	}
	srv.hub.leave(sub)
	return true
}

// takeEffect adds c to the members of a topic, at the place of its subscription
// among the topic's messages, unless it has unsubscribed since.
func (srv *Server) takeEffect(t *engine.Turn, c *engine.Conn, sub *subset) (subscribed bool) {
	s := srv.session(t, c)
	if m := s.more; m != nil {
		// It may have subscribed again: that takes effect at its own place.
		if i := slices.Index(m.revoked, sub); i >= 0 {
			m.revoked = slices.Delete(m.revoked, i, i+1)
			s.slim()
			return false
		}
	}
	sub.group.Add(t, c)
	return true
}

// joining is a subscription that takes effect in its turn. The client has been
// told of it.
type joining struct {
	srv *Server
	sub *subset
}

// Do implements engine.Task.
func (j *joining) Do(t *engine.Turn, c *engine.Conn) {
	if c.Open() {
		j.srv.takeEffect(t, c, j.sub)
	}
}

// entering is a joining of which the client is told then.
type entering struct {
	joining
	reply wire.Reply
	gap   wire.Gap // if the client is told NotRecovered
	again bool     // it had subscribed before, and is only told
	ended bool     // and a backend has ended that, which it was told
}

// resume decides what to tell a client that was at after, where the bus has no
// [History]: it has everything, or is told which range it missed.
func (e *entering) resume(after uint64, epoch string) {
	var some bool
	e.reply.Recovered = wire.Recovered
	if e.gap, some = missed(e.reply.Topic, wire.Position{Seq: after, Epoch: epoch}, e.reply.At); some {
		e.reply.Recovered = wire.NotRecovered
	}
}

// Do implements engine.Task.
func (e *entering) Do(t *engine.Turn, c *engine.Conn) {
	if !c.Open() {
		return
	}
	s := e.srv.session(t, c)
	if m := s.more; e.again {
		if m.again[0] == e { // as is usual: a peer may have sent very many
			m.again = m.again[1:]
		} else {
			i := slices.Index(m.again, e)
			m.again = slices.Delete(m.again, i, i+1)
		}
		s.slim()
	} else {
		e.joining.Do(t, c)
	}
	name := e.sub.topic.flow.Name
	if e.ended || s.find(name) == nil && s.has(name) { // it has ended, or catches up: what this would tell does not hold any more
		e.srv.counts.commands.Add(string(tooLate.Code))
		e.reply.Err = tooLate
	}
	codec := codecs[c.Codec()]
	var missed []byte
	if e.reply.Recovered == wire.NotRecovered && e.reply.Err.Code == "" {
		missed = codec.AppendMissed(nil, e.gap)
	}
	t.Send(c, codec.AppendReply(nil, e.reply), missed)
}

// enterEarly joins c to a topic of its handshake, which is held; the welcome tells
// the position.
func (srv *Server) enterEarly(t *engine.Turn, c *engine.Conn, s *session, topic *topic) (at wire.Position) {
	s.add(srv.hub.enter(topic, t.Shard(), func(sub *subset, p wire.Position) {
		at = p
		srv.engine.Behind(&sub.group, c.Ref(), &joining{srv, sub})
	}))
	return at
}

// full reports whether a connection has as many topics as it may.
func (srv *Server) full(s *session) bool { return s.topics() >= srv.cfg.MaxTopics }
