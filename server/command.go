package server

import (
	"bytes"
	"sync/atomic"
	"unsafe"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// peek is b as a string for a look-up; it must not be kept.
func peek(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// commands acts on the commands of a message and answers each. Those behind one
// that needs a call wait until it returns.
func (srv *Server) commands(t *engine.Turn, c *engine.Conn, b []byte) {
	for {
		cmd, rest, err := codecs[c.Codec()].Parse(b)
		if err != nil {
			srv.refuse(t, c, reply(&cmd), err)
		} else {
			srv.command(t, c, &cmd)
		}
		switch b = rest; {
		case len(b) == 0 || !c.Open():
			return
		case c.Calling():
			srv.session(t, c).moreOf().commands = bytes.Clone(b)
			return
		}
	}
}

// goOn acts on the commands behind one that has returned from a call.
func (srv *Server) goOn(t *engine.Turn, c *engine.Conn) {
	if !c.Open() || c.Calling() {
		return
	}
	s := srv.session(t, c)
	if s.more == nil || len(s.more.commands) == 0 {
		return
	}
	b := s.more.commands
	s.more.commands = nil
	s.slim()
	srv.commands(t, c, b)
}

// reply begins the answer to a command. It points into that.
func reply(cmd *wire.Command) wire.Reply {
	return wire.Reply{ID: cmd.ID, Verb: cmd.Verb, Topic: peek(cmd.Topic)}
}

// command acts on one command.
func (srv *Server) command(t *engine.Turn, c *engine.Conn, cmd *wire.Command) {
	r := reply(cmd)
	switch cmd.Verb {
	case wire.Ping:
		srv.answer(t, c, r)
	case wire.Subscribe:
		srv.subscribe(t, c, cmd)
	case wire.Unsubscribe:
		if !srv.unsubscribe(t, c, r.Topic) {
			srv.refuse(t, c, r, &wire.Error{Code: wire.NotSubscribed, Message: "not subscribed to this topic"})
			return
		}
		srv.answer(t, c, r)
	case wire.Publish:
		srv.publish(t, c, cmd)
	case wire.Ack:
		if !srv.acks.ack(c.Ref(), peek(cmd.MessageID)) {
			srv.refuse(t, c, r, &wire.Error{Code: wire.NotFound, Message: "nobody waits for an ack of this message"})
			return
		}
		srv.answer(t, c, r)
	}
}

// answer sends a reply with the others of this turn.
func (srv *Server) answer(t *engine.Turn, c *engine.Conn, r wire.Reply) {
	d := srv.data(t)
	d.reply = codecs[c.Codec()].AppendReply(d.reply[:0], r)
	t.Reply(c, d.reply)
}

// refuse answers a command with an error.
func (srv *Server) refuse(t *engine.Turn, c *engine.Conn, r wire.Reply, err *wire.Error) {
	srv.counts.commands.Add(string(err.Code))
	r.Err = *err
	srv.answer(t, c, r)
}

// commandJob is a command that needs a call: it is allowed first, and then
// done, by the same goroutine of the pool if it may block.
type commandJob struct {
	conn  Conn
	reply wire.Reply // of its own bytes
	err   *wire.Error
}

func (srv *Server) newCommandJob(t *engine.Turn, c *engine.Conn, cmd *wire.Command) commandJob {
	return commandJob{
		conn:  srv.handle(t, c, srv.session(t, c)),
		reply: wire.Reply{ID: bytes.Clone(cmd.ID), Verb: cmd.Verb, Topic: string(cmd.Topic)},
	}
}

// allow decides whether the connection may do action on the topic of the
// command: its identity must agree and, if there is one, Allow, which is asked
// in the pool. Without either, subscribing is allowed to everybody, and
// publishing only in Dev.
func (j *commandJob) allow(action Action) bool {
	srv := j.conn.srv
	j.err = srv.mayNot(j.conn.own, action, j.reply.Topic)
	if j.err == nil && srv.cfg.Allow != nil {
		if err := srv.cfg.Allow(j.conn, action, j.reply.Topic); err != nil {
			j.err = &wire.Error{Code: wire.Forbidden, Message: err.Error()}
		}
	}
	return j.err == nil
}

// subscribeJob is a subscribe.
type subscribeJob struct {
	commandJob
	after    uint64
	hasAfter bool
	epoch    string
}

// subscribe joins c to a topic. It takes effect, and is answered, at its place
// in the shard's inbox: with the position behind which messages follow.
func (srv *Server) subscribe(t *engine.Turn, c *engine.Conn, cmd *wire.Command) {
	if s := srv.session(t, c); !s.has(peek(cmd.Topic)) && srv.full(s) {
		srv.refuse(t, c, reply(cmd), srv.tooManyTopics())
		return
	}
	j := &subscribeJob{commandJob: srv.newCommandJob(t, c, cmd), after: cmd.After, hasAfter: cmd.HasAfter, epoch: string(cmd.Epoch)}
	switch {
	case srv.cfg.Allow != nil:
		t.Call(c, j)
	case j.allow(ActionSubscribe):
		j.join(t, c)
	default:
		srv.refuse(t, c, j.reply, j.err)
	}
}

func (srv *Server) tooManyTopics() *wire.Error {
	return wire.Errorf(wire.TooManyTopics, "too many topics on this connection, the limit is %d", srv.cfg.MaxTopics)
}

// Run implements engine.Job.
func (j *subscribeJob) Run() { j.allow(ActionSubscribe) }

// Done implements engine.Job.
func (j *subscribeJob) Done(t *engine.Turn, c *engine.Conn) {
	if j.err != nil {
		j.conn.srv.refuse(t, c, j.reply, j.err)
	} else {
		j.join(t, c)
	}
	j.conn.srv.goOn(t, c)
}

// resumes reports whether c is given what it missed.
func (j *subscribeJob) resumes() bool { return j.hasAfter && j.conn.srv.hub.history != nil }

func (j *subscribeJob) join(t *engine.Turn, c *engine.Conn) {
	srv := j.conn.srv
	s := srv.session(t, c)
	if sub := s.find(j.reply.Topic); sub != nil && !j.resumes() { // it is told again
		srv.hub.reannounce(sub, func(sub *subset, at wire.Position) { j.behind(c, s, sub, at, true) })
		return
	}
	held, ready := srv.hub.hold(j.reply.Topic)
	if !ready {
		srv.waitFor(t, c, []*topic{held}, j)
		return
	}
	j.enterOne(t, c, held)
}

// behind has the connection told where the topic stands, at its place among the
// topic's messages.
func (j *subscribeJob) behind(c *engine.Conn, s *session, sub *subset, at wire.Position, again bool) {
	e := &entering{joining: joining{j.conn.srv, sub}, reply: j.reply, again: again}
	e.reply.At = at
	if j.hasAfter {
		e.resume(j.after, j.epoch)
	}
	if again {
		s.moreOf().again = append(s.moreOf().again, e)
	}
	e.srv.engine.Behind(&sub.group, c.Ref(), e)
}

// enter implements subscriber.
func (j *subscribeJob) enter(t *engine.Turn, c *engine.Conn, topics []*topic) {
	j.enterOne(t, c, topics[0])
	j.conn.srv.goOn(t, c)
}

// fail implements subscriber.
func (j *subscribeJob) fail(t *engine.Turn, c *engine.Conn) {
	j.conn.srv.refuse(t, c, j.reply, &wire.Error{Code: wire.Internal, Message: "the topic cannot be subscribed to now, try again"})
	j.conn.srv.goOn(t, c)
}

func (j *subscribeJob) enterOne(t *engine.Turn, c *engine.Conn, held *topic) {
	srv, s := j.conn.srv, j.conn.srv.session(t, c)
	if s.find(j.reply.Topic) != nil && !j.resumes() { // a backend was sooner, while c waited
		srv.hub.release([]*topic{held})
		j.join(t, c)
		return
	}
	srv.unsubscribe(t, c, j.reply.Topic) // if it is subscribed, or catches up, it begins anew
	switch {
	case srv.full(s): // a backend has added to them
		srv.hub.release([]*topic{held})
		srv.refuse(t, c, j.reply, srv.tooManyTopics())
	case j.resumes():
		srv.resume(t, c, s, held, j)
	default:
		s.add(srv.hub.enter(held, t.Shard(), func(sub *subset, at wire.Position) { j.behind(c, s, sub, at, false) }))
	}
}

// publishJob is a publish. The bus may block, so it is a job even without Allow.
type publishJob struct {
	commandJob
	message Message
	receipt Receipt
	gone    atomic.Bool // the connection has ended
}

func (srv *Server) publish(t *engine.Turn, c *engine.Conn, cmd *wire.Command) {
	j := &publishJob{commandJob: srv.newCommandJob(t, c, cmd), message: Message{ID: string(cmd.MessageID)}}
	if srv.cfg.Allow == nil && !j.allow(ActionPublish) {
		srv.refuse(t, c, j.reply, j.err)
		return
	}
	j.message.Data = bytes.Clone(cmd.Data)
	t.Call(c, j)
}

// Run implements engine.Job. A connection that has ended, perhaps while Allow was
// asked, does not publish any more.
func (j *publishJob) Run() {
	if !j.allow(ActionPublish) || j.gone.Load() {
		return
	}
	var err error
	if j.receipt, err = j.conn.srv.publishFrom(j.conn, j.reply.Topic, j.message); err != nil {
		j.err = publishError(err)
	}
}

// Done implements engine.Job.
func (j *publishJob) Done(t *engine.Turn, c *engine.Conn) {
	srv := j.conn.srv
	if j.err != nil {
		srv.refuse(t, c, j.reply, j.err)
	} else {
		j.reply.MessageID = j.receipt.ID
		j.reply.At = wire.Position{Seq: j.receipt.Seq, Epoch: j.receipt.Epoch}
		srv.answer(t, c, j.reply)
	}
	srv.goOn(t, c)
}
