package server

import (
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// join subscribes a connection to a topic. begin makes, from the position behind
// which messages follow, what is done when the subscription takes effect: at its
// place in the shard's inbox, behind the messages that came before. begin is
// called under the topic's lock.
func (srv *Server) join(t *engine.Turn, c *engine.Conn, s *session, topic string, begin func(*subset, wire.Position) engine.Task) error {
	behind := func(sub *subset, at wire.Position) {
		srv.engine.Behind(&sub.group, c.Ref(), begin(sub, at))
	}
	if sub := s.find(topic); sub != nil {
		srv.hub.reannounce(sub, behind)
		return nil
	}
	sub, err := srv.hub.join(t.Shard(), topic, behind)
	if err != nil {
		srv.log.Error("cannot subscribe", "error", err)
		return err
	}
	s.add(sub)
	return nil
}

// subscribeEarly joins c to a topic of its handshake; the welcome tells the
// position.
func (srv *Server) subscribeEarly(t *engine.Turn, c *engine.Conn, s *session, topic string) (at wire.Position) {
	_ = srv.join(t, c, s, topic, func(sub *subset, p wire.Position) engine.Task {
		at = p
		return &entering{srv: srv, sub: sub}
	})
	return at
}

// unsubscribe takes c out of a topic.
func (srv *Server) unsubscribe(t *engine.Turn, c *engine.Conn, s *session, sub *subset) {
	s.remove(sub)
	sub.group.Remove(t, c)
	srv.hub.leave(sub)
}

// entering is a subscription that takes effect in its turn.
type entering struct {
	srv   *Server
	sub   *subset
	reply wire.Reply // None for one of the handshake: the welcome has told
	gap   wire.Gap   // if the client is told NotRecovered
}

// resume decides what to tell a client that was at after. Live topics keep
// nothing, so it has everything or is told which range it missed.
func (e *entering) resume(after uint64, epoch string) {
	at := e.reply.At
	if epoch == at.Epoch && after == at.Seq {
		e.reply.Recovered = wire.Recovered
		return
	}
	e.reply.Recovered = wire.NotRecovered
	e.gap = wire.Gap{Topic: e.reply.Topic, Epoch: at.Epoch, From: after + 1, To: at.Seq, Reason: "retention"}
	if epoch != at.Epoch || after > at.Seq {
		e.gap.From, e.gap.Reason = 1, "epoch"
	}
}

// Do implements engine.Task.
func (e *entering) Do(t *engine.Turn, c *engine.Conn) {
	if !c.Open() {
		return
	}
	if e.srv.session(t, c).find(e.sub.topic.flow.Name) == e.sub { // else it has unsubscribed already
		e.sub.group.Add(t, c)
	}
	if e.reply.Verb == wire.None {
		return
	}
	codec := codecs[c.Codec()]
	t.Send(c, codec.AppendReply(nil, e.reply))
	if e.reply.Recovered == wire.NotRecovered {
		t.Send(c, codec.AppendMissed(nil, e.gap))
	}
}
