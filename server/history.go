package server

import (
	"context"
	"slices"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// A subscriber of a topic whose bus is a [History] is either live, which means
// that it is in the topic's group, or it catches up: it has a position, and is
// in no group. It reads the history in pages, in the hook pool. A page is no
// larger than half an outbox, and is sent when it fits. A subscriber that has
// read all that the topic has had joins the group. While somebody reads, the
// topic keeps a tail of the parcels that were sent last, so that a subscriber
// can join that lacks only those: else one of a topic on which much is published
// would read for ever.

// catching is a subscription that catches up. Owned by the turn of its
// connection. Those of one connection come one after the other, so that no
// connection has more than one page on its way.
type catching struct {
	srv   *Server
	topic *topic // held, until it joins
	progress
	reading *reading // on its way, or read and waiting for room
	tailed  bool     // counted in the topic's tail; guarded by the topic's stripe

	// Set when it joins.
	sub  *subset
	to   wire.Position // what it goes on from
	tail []*engine.Parcel
}

// progress is what a client has of a topic, and is to be sent next.
type progress struct {
	codec    wire.Codec
	topic    string
	at       wire.Position // what it was given, or was told as lost
	reply    wire.Reply    // the answer to its subscribe; Verb is None when it has that
	payloads [][]byte
	size     int // of payloads and their headers
}

func (p *progress) add(payload []byte) {
	if len(payload) > 0 {
		p.payloads = append(p.payloads, payload)
		p.size += len(payload) + 10
	}
}

// skip has the client go on from a position. It is told what it misses, behind
// the answer if it has none yet.
func (p *progress) skip(to wire.Position) {
	gap, some := missed(p.topic, p.at, to)
	p.at = to
	switch {
	case p.reply.Verb != wire.None:
		p.reply.At, p.reply.Recovered = to, wire.Recovered
		if some {
			p.reply.Recovered = wire.NotRecovered
		}
		p.add(p.codec.AppendReply(nil, p.reply))
		p.reply.Verb = wire.None
		if some {
			p.add(p.codec.AppendMissed(nil, gap))
		}
	case some:
		p.add(p.codec.AppendGap(nil, gap))
	}
}

// missed is what a client that was at after is told if it goes on from at.
func missed(topic string, after, at wire.Position) (gap wire.Gap, some bool) {
	gap = wire.Gap{Topic: topic, Epoch: at.Epoch, From: after.Seq + 1, To: at.Seq, Reason: "retention"}
	if after.Epoch != at.Epoch || after.Seq > at.Seq {
		gap.From, gap.Reason = 1, "epoch"
	}
	return gap, after != at
}

// reading is the job that reads a page of a history.
type reading struct {
	progress
	hub    *hub
	ctx    context.Context
	cancel context.CancelFunc
	call   *engine.Call
	top    wire.Position // where the topic stood: nothing is read beyond
	most   int
	err    error
	done   bool // owned by the turn
}

// Run implements [engine.Job].
func (r *reading) Run() {
	defer r.cancel()
	after := Position(r.at)
	if after.Epoch != r.top.Epoch {
		after = Position{Epoch: r.top.Epoch}
	}
	var page []Stored
	if page, r.err = r.hub.after(r.ctx, r.topic, after, r.most); r.err != nil {
		return
	}
	for i := range page {
		if !r.take(&page[i]) {
			break
		}
	}
	if r.size == 0 { // it has nothing more
		r.skip(r.top)
	}
}

// take adds m to what is sent. It reports false if there is no room for it.
func (r *reading) take(m *Stored) bool {
	at := wire.Position(m.At)
	if at.Epoch != r.top.Epoch || at.Seq == 0 || at.Seq > r.top.Seq || at.Epoch == r.at.Epoch && at.Seq <= r.at.Seq {
		return true // it was not asked for: others are told as lost, or come later
	}
	payload := r.codec.AppendMessage(nil, wire.Message{Topic: r.topic, Seq: at.Seq, ID: m.Message.ID, Urgency: m.Message.Urgency, Data: m.Message.Data})
	if r.size > 0 && len(payload) > r.most-r.size {
		return false
	}
	r.skip(wire.Position{Seq: at.Seq - 1, Epoch: at.Epoch})
	r.add(payload)
	r.at = at
	return true
}

// after has the history read.
func (h *hub) after(ctx context.Context, topic string, at Position, most int) (page []Stored, err error) {
	defer h.caught(&err)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return h.history.After(ctx, topic, at, most)
}

// Done implements [engine.Job].
func (r *reading) Done(t *engine.Turn, c *engine.Conn) {
	srv := r.hub.srv
	if !c.Open() {
		return
	}
	s := srv.session(t, c)
	if k := s.first(); k == nil || k.reading != r { // it was given up
		return
	}
	r.done = true
	if r.err != nil {
		srv.notRead(t, c, s, r)
		return
	}
	srv.catchUp(t, c)
}

// notRead gives up a subscription whose history cannot be read. Its client comes
// back: it subscribes again, or connects again if it was told already that all
// would follow.
func (srv *Server) notRead(t *engine.Turn, c *engine.Conn, s *session, r *reading) {
	srv.log.Error("the history of a topic cannot be read", "topic", r.topic, "error", r.err)
	k := s.first()
	if k.reply.Verb == wire.None {
		t.Close(c, wire.CloseInsufficientState, "the history cannot be read")
		return
	}
	srv.giveUp(t, c, s, k, wire.Error{Code: wire.Internal, Message: "the topic's history cannot be read now, try again"})
}

// tooLate refuses a subscribe that another command, or a backend, has overtaken.
var tooLate = wire.Error{Code: wire.Internal, Message: "the subscription was ended, or begun anew, before this was answered"}

// resume has c catch up with a topic, which is held and ready.
func (srv *Server) resume(t *engine.Turn, c *engine.Conn, s *session, held *topic, j *subscribeJob) {
	m := s.moreOf()
	m.catching = append(m.catching, &catching{srv: srv, topic: held, progress: progress{
		codec: codecs[c.Codec()], topic: held.flow.Name, reply: j.reply, at: wire.Position{Seq: j.after, Epoch: j.epoch},
	}})
	if len(m.catching) == 1 {
		srv.catchUp(t, c)
	}
}

// catchUp goes on with the first subscription of c that catches up, as far as
// it can now.
func (srv *Server) catchUp(t *engine.Turn, c *engine.Conn) {
	k := srv.session(t, c).first()
	if k == nil || k.sub != nil {
		return
	}
	if r := k.reading; r != nil {
		if !r.done || !t.Fits(c, r.size) {
			return
		}
		payloads := r.payloads
		r.payloads, r.size = nil, 0
		k.progress, k.reading = r.progress, nil
		t.Send(c, payloads...)
	}
	if !c.Open() || !t.Fits(c, srv.hub.page()) {
		return
	}
	if top, joins := srv.hub.meet(k, t.Shard(), c.Ref()); !joins {
		r := &reading{progress: k.progress, hub: srv.hub, top: top, most: srv.hub.page()}
		r.ctx, r.cancel = context.WithTimeout(context.Background(), srv.cfg.AuthTimeout)
		k.reading = r
		r.call = t.Aside(c, r)
	}
}

// Room implements [engine.App].
func (a app) Room(t *engine.Turn, c *engine.Conn) { a.srv.catchUp(t, c) }

// Do implements [engine.Task]: k is live from here on.
func (k *catching) Do(t *engine.Turn, c *engine.Conn) {
	srv := k.srv
	if !c.Open() {
		return
	}
	s := srv.session(t, c)
	if s.first() != k { // it was given up
		return
	}
	s.removeCatching(k)
	s.add(k.sub)
	k.sub.group.Add(t, c)
	k.skip(k.to)
	t.Send(c, k.payloads...)
	for _, p := range k.tail {
		if c.Open() {
			t.Repeat(c, p)
		}
	}
	if c.Open() {
		srv.catchUp(t, c)
	}
}

// giveUp ends a subscription that catches up: its client or a backend wants that,
// or it cannot go on. If its subscribe has no answer yet, that is refused. c stays
// open, as nothing is sent before giveUp returns.
func (srv *Server) giveUp(t *engine.Turn, c *engine.Conn, s *session, k *catching, why wire.Error) {
	first := s.first() == k
	srv.letGo(s, k)
	if r := k.reply; r.Verb != wire.None {
		srv.counts.commands.Add(string(why.Code))
		r.Err = why
		srv.engine.SendFrame(c.Ref(), k.codec.Op(), k.codec.AppendReply(nil, r))
	}
	if first {
		srv.catchUp(t, c)
	}
}

// letGo takes a subscription that catches up from its session, and gives back all
// that it has.
func (srv *Server) letGo(s *session, k *catching) {
	s.removeCatching(k)
	if r := k.reading; r != nil {
		r.cancel()
		r.call.Abandon()
	}
	if k.sub != nil {
		srv.hub.leave(k.sub)
		return
	}
	srv.hub.dropTail(k)
	srv.hub.release([]*topic{k.topic})
}

// meet makes the hold of k a subscription in a shard, if k has all that the topic
// has had, or the topic's tail has the rest. Otherwise it returns where the topic
// stands, up to where k has to read.
func (h *hub) meet(k *catching, shard int, r engine.Ref) (top wire.Position, joins bool) {
	st, b := h.topics.stripe(k.topic.flow.Name), h.busSide(k.topic.flow.Name)
	st.mu.Lock()
	defer st.mu.Unlock()
	top = h.position(k.topic)
	tl := b.tails[k.topic]
	switch lacks := top.Seq - k.at.Seq; {
	case k.at.Epoch == top.Epoch && k.at.Seq >= top.Seq: // above: the client's position is none
		k.to = top
	case k.at.Epoch == top.Epoch && tl != nil && lacks <= uint64(len(tl.parcels)):
		k.to, k.tail = k.at, slices.Clone(tl.parcels[len(tl.parcels)-int(lacks):])
	default:
		b.needTail(k)
		return top, false
	}
	b.dropTail(k)
	k.sub = h.enterLocked(k.topic, shard)
	h.srv.engine.Behind(&k.sub.group, r, k)
	return top, true
}

// dropTail has k need no tail any more.
func (h *hub) dropTail(k *catching) {
	st, b := h.topics.stripe(k.topic.flow.Name), h.busSide(k.topic.flow.Name)
	st.mu.Lock()
	defer st.mu.Unlock()
	b.dropTail(k)
}
