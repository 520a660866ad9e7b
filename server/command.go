package server

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// command acts on one text message of tocsin.v1 and answers it.
func (w *worker) command(c *conn, b []byte) {
	var cmd wire.Command
	if err := wire.ParseCommand(b, &cmd); err != nil {
		w.replyError(cmd.ID, err)
		return
	}
	switch cmd.Verb {
	case wire.Ping:
		w.scratch = wire.AppendOK(w.scratch[:0], cmd.ID)
		w.reply(ws.OpText, w.scratch)
	case wire.Subscribe:
		w.subscribe(c, &cmd)
	case wire.Unsubscribe:
		w.unsubscribe(c, &cmd)
	case wire.Publish:
		w.publish(c, &cmd)
	case wire.Ack:
		if !w.srv.acks.ack(c.ref(), peek(cmd.MessageID)) {
			w.replyError(cmd.ID, &wire.Error{Code: wire.NotFound, Message: "nobody waits for an ack of this message"})
			return
		}
		w.scratch = wire.AppendOK(w.scratch[:0], cmd.ID)
		w.reply(ws.OpText, w.scratch)
	}
}

func (w *worker) replyError(id []byte, err *wire.Error) {
	w.srv.stats.commandError(err.Code)
	w.scratch = wire.AppendError(w.scratch[:0], id, err)
	w.reply(ws.OpText, w.scratch)
}

// find returns c's subscription of topic, or nil.
func (c *conn) find(topic string) *subset {
	for _, sub := range c.subs {
		if sub != nil && sub.topic.name == topic {
			return sub
		}
	}
	if c.ext != nil {
		for _, sub := range c.ext.subs {
			if sub.topic.name == topic {
				return sub
			}
		}
	}
	return nil
}

func (c *conn) countSubs() (n int) {
	for _, sub := range c.subs {
		if sub != nil {
			n++
		}
	}
	if c.ext != nil {
		n += len(c.ext.subs)
	}
	return n
}

func (w *worker) addSub(c *conn, sub *subset) {
	for i := range c.subs {
		if c.subs[i] == nil {
			c.subs[i] = sub
			return
		}
	}
	e := w.extraOf(c)
	e.subs = append(e.subs, sub)
}

// subscribe joins c to a topic. It takes effect, and is answered, at its place
// in the shard's inbox: with the position behind which messages follow.
func (w *worker) subscribe(c *conn, cmd *wire.Command) {
	if c.find(peek(cmd.Topic)) == nil && c.countSubs() >= w.srv.cfg.MaxTopics {
		w.replyError(cmd.ID, &wire.Error{Code: wire.TooManyTopics, Message: fmt.Sprintf("too many topics on this connection, the limit is %d", w.srv.cfg.MaxTopics)})
		return
	}
	topic := string(cmd.Topic)
	j := &joining{id: bytes.Clone(cmd.ID)}
	after, hasAfter, epoch := cmd.After, cmd.HasAfter, string(cmd.Epoch)
	w.allowed(c, j.id, ActionSubscribe, topic, func(w *worker, c *conn) {
		begin := func(sub *subset, at wire.Position) item {
			j.at = at
			if hasAfter {
				j.resume(topic, after, epoch)
			}
			return item{kind: itemJoin, ref: c.ref(), sub: sub, x: j}
		}
		if sub := c.find(topic); sub != nil {
			w.srv.hub.again(sub, begin)
			return
		}
		sub, err := w.srv.hub.join(w.shard, topic, begin)
		if err != nil {
			w.srv.log.sometimes("cannot subscribe", "error", err)
			w.replyError(j.id, &wire.Error{Code: wire.Internal, Message: "the topic cannot be subscribed to now, try again"})
			return
		}
		w.addSub(c, sub)
	})
}

// resume decides what to tell a client that was at after. Live topics keep
// nothing, so it has everything or is told which range it missed.
func (j *joining) resume(topic string, after uint64, epoch string) {
	recovered := epoch == j.at.Epoch && after == j.at.Seq
	j.recovered = &recovered
	if recovered {
		return
	}
	j.gap = &wire.Gap{Topic: topic, Epoch: j.at.Epoch, From: after + 1, To: j.at.Seq, Reason: "retention"}
	if epoch != j.at.Epoch || after > j.at.Seq {
		j.gap.From, j.gap.Reason = 1, "epoch"
	}
}

// subscribeEarly joins c to a topic of its handshake; the welcome tells the
// position.
func (w *worker) subscribeEarly(c *conn, topic string) (at wire.Position) {
	begin := func(sub *subset, p wire.Position) item {
		at = p
		return item{kind: itemJoin, ref: c.ref(), sub: sub}
	}
	if sub := c.find(topic); sub != nil { // it stands twice in the query
		w.srv.hub.again(sub, begin)
		return at
	}
	sub, err := w.srv.hub.join(w.shard, topic, begin)
	if err != nil {
		w.srv.log.sometimes("cannot subscribe", "error", err)
		return at
	}
	w.addSub(c, sub)
	return at
}

// joined is a subscription whose turn in the inbox has come. It waits for the
// messages of its topic that came before it.
func (w *worker) joined(it *item) {
	if it.sub.walk != nil {
		e := *it
		it.sub.walk.queue = append(it.sub.walk.queue, walkEntry{join: &e})
		return
	}
	w.enter(it)
}

// enter makes a subscription effective and answers it.
func (w *worker) enter(it *item) {
	c := w.shard.lookup(it.ref)
	if c == nil || c.state != stateOpen {
		return
	}
	if c.find(it.sub.topic.name) == it.sub { // else it has unsubscribed already
		it.sub.set.add(w.shard.local(c))
	}
	j, ok := it.x.(*joining)
	if !ok {
		return // of the handshake: the welcome has told
	}
	b := wire.AppendSubscribed(nil, j.id, it.sub.topic.name, j.at, j.recovered)
	frame := wire.AppendFrame(nil, ws.OpText, b)
	if j.gap != nil {
		frame = wire.AppendFrame(frame, ws.OpText, wire.AppendGap(nil, *j.gap))
	}
	w.send(c, frame)
}

func (w *worker) unsubscribe(c *conn, cmd *wire.Command) {
	sub := c.find(peek(cmd.Topic))
	if sub == nil {
		w.replyError(cmd.ID, &wire.Error{Code: wire.NotSubscribed, Message: "not subscribed to this topic"})
		return
	}
	for i := range c.subs {
		if c.subs[i] == sub {
			c.subs[i] = nil
		}
	}
	if c.ext != nil {
		for i, other := range c.ext.subs {
			if other == sub {
				c.ext.subs = append(c.ext.subs[:i], c.ext.subs[i+1:]...)
				break
			}
		}
	}
	w.leave(w.shard.local(c), sub)
	w.scratch = wire.AppendOK(w.scratch[:0], cmd.ID)
	w.reply(ws.OpText, w.scratch)
}

// publish publishes for a client. The bus may block, so it runs as a hook.
func (w *worker) publish(c *conn, cmd *wire.Command) {
	id, topic := bytes.Clone(cmd.ID), string(cmd.Topic)
	m := Message{Data: bytes.Clone(cmd.Data), ID: string(cmd.MessageID)}
	w.allowed(c, id, ActionPublish, topic, func(w *worker, c *conn) {
		srv, handle := w.srv, w.handle(c)
		var receipt Receipt
		var err error
		w.call(c, func() {
			receipt, err = srv.publishFrom(handle, topic, m)
		}, func(w *worker, c *conn) {
			if err != nil {
				w.replyError(id, publishError(err))
				return
			}
			at := wire.Position{Seq: receipt.Seq, Epoch: receipt.Epoch}
			w.scratch = wire.AppendPublished(w.scratch[:0], id, receipt.ID, at)
			w.reply(ws.OpText, w.scratch)
		})
	})
}

// publishError is what a client is told of a publish that failed. Errors of
// package server name the fields of an operator's Config.
func publishError(err error) *wire.Error {
	switch {
	case errors.Is(err, ErrTooBig):
		return &wire.Error{Code: wire.TooBig, Message: "the message is too big"}
	case errors.Is(err, ErrBusy):
		return &wire.Error{Code: wire.Busy, Message: "too much is being published, try again later"}
	case errors.Is(err, ErrClosed):
		return &wire.Error{Code: wire.Busy, Message: "the server is shutting down"}
	case errors.Is(err, ErrReused):
		return &wire.Error{Code: wire.BadRequest, Message: "publish: this id came before with another message"}
	case errors.Is(err, ErrBadMessage):
		_, why, _ := strings.Cut(err.Error(), ErrBadMessage.Error()+": ")
		return &wire.Error{Code: wire.BadRequest, Message: "publish: " + why}
	}
	return &wire.Error{Code: wire.Internal, Message: "the message could not be published"}
}
