package main

// bugs are all that are planted. The rows are those of docs/faults.md.
var bugs = []bug{
	// Frames.
	{
		name: "a declared length is added to what is buffered, and wraps",
		row:  "X1",
		file: "wire/reader.go",
		old:  `if r.frame.Length > int64(limits.MaxMessage-len(r.message)) {`,
		new:  `if r.frame.Length+int64(len(r.message)) > int64(limits.MaxMessage) {`,
	},
	{
		name: "a length with its highest bit set is only too big",
		row:  "W1",
		file: "wire/reader.go",
		old:  `Fault{CloseProtocolError, "frame length has its highest bit set"}`,
		new:  `Fault{CloseTooBig, "message too big"}`,
	},
	{
		name: "the mask begins anew in each part of a frame",
		row:  "W4",
		file: "wire/reader.go",
		old:  `int((r.frame.Length-r.left)&3)`,
		new:  `0`,
	},
	{
		name: "a header in three parts forgets the first",
		row:  "W4",
		file: "wire/reader.go",
		old:  `r.have += uint8(copied)`,
		new:  `r.have = uint8(copied)`,
	},
	{
		name: "a control frame between the fragments of a message is lost",
		row:  "W5",
		file: "wire/reader.go",
		old:  `if whole && len(r.control) == 0 {`,
		new: `if r.op != 0 {
			return Frame{}, false, Fault{}
		}
		if whole && len(r.control) == 0 {`,
	},
	{
		name: "fragments are not counted",
		row:  "W2",
		file: "wire/reader.go",
		old:  `if r.frames++; r.frames > limits.MaxFrames {`,
		new:  `if r.frames > limits.MaxFrames {`,
	},
	{
		name: "text may end within a character",
		row:  "W6",
		file: "wire/reader.go",
		old:  `return r.text.write(part) && (!last || r.text.n == 0)`,
		new:  `return r.text.write(part)`,
	},
	{
		name: "the beginning of a frame is not kept if it is all there is",
		row:  "W3",
		file: "server/internal/engine/read.go",
		old:  `if in = t.keep(c, in); began && !in.Empty() {`,
		new:  `if began && !in.Empty() && c.ext != nil {`,
	},
	{
		name: "what came behind a call's frame loses its beginning",
		file: "server/internal/engine/call.go",
		old:  `c.ext.rest = rest // the same bytes, not a copy for each call`,
		new:  `c.ext.rest = rest[1:]`,
	},
	{
		name: "a frame that comes with the head is lost",
		row:  "H6",
		file: "server/internal/engine/handshake.go",
		old:  `t.read(c, early)`,
		new:  `t.slim(c)`,
	},

	// Readiness and turns.
	{
		name: "an end of file behind a backlog is never read",
		row:  "X10",
		file: "server/internal/engine/turn.go",
		old:  `t.serve(c, true)`,
		new:  `t.serve(c, false)`,
	},
	{
		name: "an end of file behind a short read is never read",
		row:  "E2",
		file: "server/internal/engine/turn.go",
		old:  `t.serve(c, e.HangUp)`,
		new:  `t.serve(c, false)`,
	},
	{
		name: "what arrives during a call is not read when it returns",
		row:  "E2",
		file: "server/internal/engine/read.go",
		old:  `c.flags |= flagUnread // read on when the call returns`,
		new:  `c.flags &^= flagUnread`,
	},
	{
		name: "an edge that is readable and writable is not written on",
		row:  "E2",
		file: "server/internal/engine/turn.go",
		old:  `if e.Writable && c.ext != nil`,
		new:  `if e.Writable && !e.Readable && c.ext != nil`,
	},
	{
		name: "a set is not armed again while a paced broadcast is on its way",
		row:  "E2",
		file: "server/internal/engine/turn.go",
		old:  `if s.ready.Swap(false) {`,
		new:  `if s.paced == 0 && s.ready.Swap(false) {`,
	},
	{
		name: "a wake-up during the end of a turn is lost",
		file: "server/internal/engine/turn.go",
		old:  `if s.state.CompareAndSwap(shardBusy, shardIdle) {`,
		new:  `if s.state.Swap(shardIdle) != shardIdle {`,
	},
	{
		name: "a shard that always has work never sweeps",
		row:  "X2",
		file: "server/internal/engine/turn.go",
		old:  `if s.tick.Swap(false) {`,
		new:  `if !more && len(s.unread) == 0 && s.tick.Swap(false) {`,
	},
	{
		name: "the generation of a connection is not compared",
		row:  "E1",
		file: "server/internal/engine/shard.go",
		old:  `if c := &page[local%pageSize]; c.gen == r.gen() && c.state`,
		new:  `if c := &page[local%pageSize]; c.state`,
	},
	{
		name: "the generation of a slot does not change",
		row:  "E1",
		file: "server/internal/engine/close.go",
		old:  `gen: c.gen + 1}`,
		new:  `gen: c.gen}`,
	},
	{
		name: "of what is sent to a shard the newest goes first",
		file: "server/internal/engine/inbox.go",
		old:  `b.items = append(b.items, items...)`,
		new:  `b.items = append(append([]item(nil), items...), b.items...)`,
	},
	{
		name: "a call waits for ever when the pool was full",
		row:  "A11",
		file: "server/internal/engine/turn.go",
		old:  `if len(s.waiting) > 0 {`,
		new:  `if len(s.waiting) > 1 {`,
	},

	// The end of a connection.
	{
		name: "a connection that has died dies again",
		row:  "E8",
		file: "server/internal/engine/close.go",
		old: `if c.state == stateDead {
		return
	}
	if x := c.ext`,
		new: `if x := c.ext`,
	},
	{
		name: "the descriptor of a connection over the limit is not closed",
		row:  "E4",
		file: "server/internal/engine/accept.go",
		old: `TextFull))
	e.kernel.Close(fd)`,
		new: `TextFull))`,
	},
	{
		name: "the end of a connection is told twice if its closing handshake is not finished",
		row:  "E8",
		file: "server/internal/engine/close.go",
		old: `case stateOpen:
		t.count(c, End{Code: closeAbnormal`,
		new: `case stateOpen, stateClosing:
		t.count(c, End{Code: closeAbnormal`,
	},
	{
		name: "the end of a lost connection is not told",
		row:  "E8",
		file: "server/internal/engine/close.go",
		old:  `t.app.Closed(t, c, end)`,
		new: `if end.By != ByLost {
		t.app.Closed(t, c, end)
	}`,
	},
	{
		name: "a lost handshake still counts as one",
		file: "server/internal/engine/close.go",
		old: `t.counts.rejects.add(RejectGone, 1)
		t.counts.handshaking.Add(-1)`,
		new: `t.counts.rejects.add(RejectGone, 1)`,
	},
	{
		name: "a connection over the limit still counts",
		row:  "R2",
		file: "server/internal/engine/accept.go",
		old: `e.kernel.Close(fd)
	e.gone()`,
		new: `e.kernel.Close(fd)`,
	},
	{
		name: "a refusal has no end of file behind it",
		file: "server/internal/engine/close.go",
		old: `t.flushReplies(c)
	t.finishIfSent(c)`,
		new: `t.flushReplies(c)`,
	},
	{
		name: "whoever has answered our Close is kept until the timeout",
		file: "server/internal/engine/close.go",
		old: `case c.flags&flagPeerDone != 0 && c.flags&flagFinished != 0:
		t.die(c)`,
		new: `case c.flags&flagPeerDone != 0 && c.flags&flagFinished != 0:`,
	},

	// Accepting.
	{
		name: "after an accept without descriptors nobody is accepted any more",
		row:  "E4",
		file: "server/internal/engine/accept.go",
		old: `if !l.closed {
			l.rearmLocked()`,
		new: `if l.closed {
			l.rearmLocked()`,
	},
	{
		name: "the reserve is given up and not taken again",
		row:  "E4",
		file: "server/internal/engine/accept.go",
		old: `l.reserve = e.kernel.Reserve()
	}`,
		new: `}`,
	},
	{
		name: "a connection that ended before its accept ends accepting",
		file: "server/internal/engine/accept.go",
		old:  `if errno == netpoll.EINTR || errno == syscall.ECONNABORTED {`,
		new: `if errno == syscall.ECONNABORTED {
			l.mu.Lock()
			l.closed = true
			l.mu.Unlock()
			break
		}
		if errno == netpoll.EINTR {`,
	},
	{
		name: "refused connections do not count towards an accept batch",
		row:  "X4",
		file: "server/internal/engine/accept.go",
		old:  `for range batch {`,
		new:  `for n < len(batch) {`,
	},

	// Outboxes.
	{
		name: "the last byte of a part that has left is sent again",
		row:  "E6",
		file: "server/internal/engine/write.go",
		old:  `left = n`,
		new:  `left = max(n-1, 0)`,
	},
	{
		name: "bytes that leave an outbox in parts are not given back to the budget",
		file: "server/internal/engine/write.go",
		old:  `t.counts.outboxBytes.Add(-int64(n))`,
		new: `if n == len(b) {
			t.counts.outboxBytes.Add(-int64(n))
		}`,
	},
	{
		name: "bytes that wait for a connection that ends are not given back to the budget",
		file: "server/internal/engine/write.go",
		old:  `t.counts.outboxBytes.Add(-int64(x.out.bytes))`,
		new:  ``,
	},
	{
		name: "a pong goes into the middle of a frame",
		row:  "B7",
		file: "server/internal/engine/outbox.go",
		old:  `at := o.begun()`,
		new:  `at := 0`,
	},
	{
		name: "a message that has begun to leave is dropped",
		row:  "W13",
		file: "server/internal/engine/outbox.go",
		old:  `for i := o.begun(); i < len(o.q); i++ {`,
		new:  `for i := 0; i < len(o.q); i++ {`,
	},
	{
		name: "a batch that leaves in part counts its rest twice",
		row:  "E6",
		file: "server/internal/engine/fanout.go",
		old: `status = t.enqueue(c, e.p, n)
		n = 0`,
		new: `status = t.enqueue(c, e.p, n)`,
	},
	{
		name: "a collapse key is taken for that of another topic",
		file: "server/internal/engine/outbox.go",
		old:  `p != nil && p.Flow == f && (`,
		new:  `p != nil && (p.Flow == f || collapse) && (`,
	},
	{
		name: "of the same collapse key the oldest message is kept",
		row:  "X8",
		file: "server/internal/engine/fanout.go",
		old:  `t.loseOne(c, i, DropCollapsed)`,
		new: `g := gapOf(p, DropCollapsed)
			t.skip(c, &g)
			return t.drop(p, DropCollapsed, 1)`,
	},
	{
		name: "drop_oldest tells nobody",
		row:  "X8",
		file: "server/internal/engine/gap.go",
		old:  `if p.Flow != nil && t.tellsGaps(c) {`,
		new:  `if p.Flow != nil && t.tellsGaps(c) && why != DropOverflow {`,
	},
	{
		name: "the newest message is dropped, and nobody is told",
		row:  "X8",
		file: "server/internal/engine/fanout.go",
		old: `g := gapOf(p, DropOverflow)
			t.skip(c, &g)`,
		new: ``,
	},
	{
		name: "a gap that grows at its beginning loses its end",
		file: "server/internal/engine/gap.go",
		old:  `max(e.gap.to, g.to)`,
		new:  `g.to`,
	},
	{
		name: "a message has expired until its TTL is over",
		file: "server/internal/engine/parcel.go",
		old:  `now >= p.Expires`,
		new:  `now < p.Expires`,
	},
	{
		name: "what waits in an outbox does not expire",
		file: "server/internal/engine/write.go",
		old:  `return p.expired(t.exact)`,
		new:  `return false`,
	},
	{
		name: "the budget of all outboxes is not kept",
		row:  "B2",
		file: "server/internal/engine/write.go",
		old:  `> t.cfg.OutboxBudget {`,
		new:  `> t.cfg.OutboxBudget*100 {`,
	},
	{
		name: "an idle connection keeps what it needed for a fragmented message",
		row:  "X6",
		file: "server/internal/engine/conn.go",
		old:  `case x.idle():`,
		new:  `case x.idle() && x.in.Capacity() == 0:`,
	},

	// Fan-out.
	{
		name: "a walk leaves out the neighbour of whom it has served",
		file: "server/internal/engine/fanout.go",
		old:  `wk.at = local + 1`,
		new:  `wk.at = local + 2`,
	},
	{
		name: "whoever joins does so before the messages on their way",
		file: "server/internal/engine/fanout.go",
		old:  `if g.walk != nil {`,
		new:  `if g.walk != nil && len(g.walk.queue) > 1<<30 {`,
	},
	{
		name: "a subscriber that ends before its delivery is counted nowhere",
		row:  "X12",
		file: "server/internal/engine/fanout.go",
		old:  `t.drop(e.p, DropGone, int(missing))`,
		new:  `t.counts.drops.add(DropGone, int(missing))`,
	},
	{
		name: "a paced broadcast ends when its rate is reached",
		file: "server/internal/engine/fanout.go",
		old:  `return walkPaced`,
		new: `t.expireRest(wk)
				continue`,
	},
	{
		name: "a broadcast goes faster than its rate",
		file: "server/internal/engine/parcel.go",
		old:  `*float64(p.Rate)) + 1`,
		new:  `*float64(2*p.Rate)) + 1`,
	},
	{
		name: "pushes of a batch go backwards",
		row:  "P5",
		file: "server/internal/engine/inbox.go",
		old:  `m.byShard[s] = append(m.byShard[s], item{kind: itemOne, parcel: p, n: int32(i)})`,
		new:  `m.byShard[s] = append([]item{{kind: itemOne, parcel: p, n: int32(i)}}, m.byShard[s]...)`,
	},

	// Deadlines.
	{
		name: "a slow head has no deadline",
		row:  "H1",
		file: "server/internal/engine/sweep.go",
		old:  `silent >= cfg.HandshakeTimeout)`,
		new:  `silent >= 1000*cfg.HandshakeTimeout)`,
	},
	{
		name: "half a message has no deadline",
		row:  "W3",
		file: "server/internal/engine/sweep.go",
		old:  `t.now.since(e.began) >= cfg.MessageTimeout:`,
		new:  `t.now.since(e.began) >= 1000*cfg.MessageTimeout:`,
	},
	{
		name: "a stalled reader has no deadline",
		row:  "B1",
		file: "server/internal/engine/sweep.go",
		old:  `>= cfg.WriteTimeout:`,
		new:  `>= 1000*cfg.WriteTimeout:`,
	},
	{
		name: "a trickling reader has no deadline",
		row:  "B3",
		file: "server/internal/engine/sweep.go",
		old:  `>= cfg.OutboxAge:`,
		new:  `>= 1000*cfg.OutboxAge:`,
	},
	{
		name: "whoever is closed and stays has no deadline",
		row:  "W12",
		file: "server/internal/engine/sweep.go",
		old:  `silent >= cfg.CloseTimeout)`,
		new:  `silent >= 1000*cfg.CloseTimeout)`,
	},
	{
		name: "a silent connection is not pinged again",
		row:  "E9",
		file: "server/internal/engine/read.go",
		old:  `c.flags &^= flagPinged`,
		new:  ``,
	},
	{
		name: "the time for a pong begins before its ping",
		row:  "E9",
		file: "server/internal/engine/sweep.go",
		old:  `c.stamp = t.now - stamp(cfg.PingInterval/stampUnit)`,
		new:  ``,
	},
	{
		name: "a peer is cut whose pong has arrived and was not read",
		row:  "L5",
		file: "server/internal/engine/sweep.go",
		old: `t.serve(c, false)
	late`,
		new: `late`,
	},
	{
		name: "a stop of the process counts as time",
		row:  "X7",
		file: "server/internal/engine/clock.go",
		old:  `last.own + min(gap, stallAfter)}`,
		new:  `last.own + gap}`,
	},
	{
		name: "what arrives at once after a stop is held against the peer",
		row:  "X7",
		file: "server/internal/engine/clock.go",
		old:  `t.exact+min(stall, maxAmnesty))`,
		new:  `t.exact)`,
	},

	// Topics, users and subscriptions.
	{
		name: "a device that is not the user's first takes others with it",
		row:  "L6",
		file: "server/users.go",
		old:  `d.next = s.next`,
		new:  `d.next = nil`,
	},
	{
		name: "the user index keeps a device that has ended",
		file: "server/closed.go",
		old:  `if s.ref != 0 {`,
		new:  `if s.ref != 0 && s.next == nil {`,
	},
	{
		name: "a user may have one connection too many",
		row:  "L6",
		file: "server/users.go",
		old:  `if n >= h.srv.cfg.MaxUserConns {`,
		new:  `if n > h.srv.cfg.MaxUserConns {`,
	},
	{
		name: "whoever has unsubscribed still gets messages",
		row:  "A6",
		file: "server/subs.go",
		old: `if sub.group.Has(t, c) {
		sub.group.Remove(t, c)
	} else {`,
		new: `if !sub.group.Has(t, c) {`,
	},
	{
		name: "the next connection of a slot gets the messages of the one before it",
		file: "server/closed.go",
		old:  `sub.group.Remove(t, c)`,
		new:  `_ = sub`,
	},
	{
		name: "who subscribes again is a subscriber twice",
		file: "server/topics.go",
		old:  `behind(sub, h.position(sub.topic))`,
		new: `sub.n++
	sub.topic.n++
	behind(sub, h.position(sub.topic))`,
	},
	{
		name: "a name that comes twice in a handshake is subscribed to twice",
		file: "server/upgrade.go",
		old:  `d.topics = slices.Compact(d.topics)`,
		new:  `_ = slices.Compact[[]string]`,
	},
	{
		name: "a connection may have one topic too many",
		row:  "R9",
		file: "server/subs.go",
		old:  `return s.topics() >= srv.cfg.MaxTopics`,
		new:  `return s.topics() > srv.cfg.MaxTopics`,
	},
	{
		name: "the epoch is not compared when a client comes back",
		row:  "L7",
		file: "server/history.go",
		old:  `return gap, after != at`,
		new:  `return gap, after.Seq != at.Seq`,
	},
	{
		name: "the position that a subscriber is told is that of a later moment",
		file: "server/subs.go",
		old:  `codec := codecs[c.Codec()]`,
		new: `at, _, _ := e.srv.Topic(e.sub.topic.flow.Name)
	e.reply.At = wire.Position(at)
	codec := codecs[c.Codec()]`,
	},
	{
		name: "of the shards of a topic the last gets no messages",
		file: "server/topics.go",
		old: `p.Share(n, shards)
	for sub := t.subs; sub != nil; sub = sub.next {`,
		new: `p.Share(n, shards)
	for sub := t.subs; sub != nil && (sub.next != nil || sub == t.subs); sub = sub.next {`,
	},
	{
		name: "a topic forgets its place with its last subscriber",
		row:  "X18",
		file: "server/linger.go",
		old:  `now-s.first.since >= h.srv.cfg.TopicLinger`,
		new:  `now >= s.first.since`,
	},
	{
		name: "a topic that lingered counts from 0 again",
		row:  "X18",
		file: "server/linger.go",
		old:  `t := l.topic`,
		new: `t := l.topic
	t.seq = 0`,
	},

	// Publishing.
	{
		name: "the error of a requester who went away is stored for his retry",
		row:  "X5",
		file: "server/once.go",
		old:  `if err == nil || ctx.Err() == nil {`,
		new:  `if err == nil || ctx != nil {`,
	},
	{
		name: "a key is forgotten when its message was delivered",
		row:  "P6",
		file: "server/once.go",
		old:  `if errors.Is(err, ErrNobody) {`,
		new:  `if err == nil || errors.Is(err, ErrNobody) {`,
	},
	{
		name: "ids of clients and keys of backends are one space",
		row:  "X9",
		file: "server/publish.go",
		old:  `onceKey{a.caller, key}`,
		new:  `onceKey{"", key}`,
	},
	{
		name: "idempotency keys have no budget",
		file: "server/once.go",
		old:  `for o.bytes > o.budget &&`,
		new:  `for o.bytes > o.budget*100 &&`,
	},
	{
		name: "the publish budget is not kept",
		row:  "P4",
		file: "server/parcel.go",
		old:  `if used+n > srv.cfg.PublishBudget {`,
		new:  `if used > 100*srv.cfg.PublishBudget {`,
	},
	{
		name: "a push to nobody takes of the publish budget for ever",
		row:  "P4",
		file: "server/publish.go",
		old: `if err = srv.push(out, a.to, m, b); err != nil {
			srv.release(out.cost)
		}`,
		new: `err = srv.push(out, a.to, m, b)`,
	},
	{
		name: "a batch is not woken when the publish budget is free",
		file: "server/parcel.go",
		old: `srv.publishBytes.Add(-n)
	srv.wakeBatch()`,
		new: `srv.publishBytes.Add(-n)`,
	},
	{
		name: "an acknowledgement counts for the other devices too",
		file: "server/acks.go",
		old:  `w.got = append(w.got, r)`,
		new:  `w.got = append(append(w.got, r), w.refs...)`,
	},
	{
		name: "a device whose copy waits is given up",
		file: "server/publish.go",
		old:  `if to.Status == engine.Dropped {`,
		new:  `if to.Status != engine.Written {`,
	},
	{
		name: "a message that the bus delivers twice is sent twice",
		row:  "X14",
		file: "server/sink.go",
		old: `if at.Seq <= t.seq {
		return // it was delivered, or told as lost
	}`,
		new: ``,
	},
	{
		name: "a hook asks for the peer of a descriptor that may be another's by then",
		row:  "X13",
		file: "server/upgrade.go",
		old:  `r.RemoteAddr = j.conn.peer.String()`,
		new:  `r.RemoteAddr = j.srv.cfg.kernel.Peer(int(int32(j.conn.ref))).String()`,
	},

	// The end of the server.
	{
		name: "a drain forgets a shard",
		row:  "D1",
		file: "server/internal/engine/shutdown.go",
		old: `for _, s := range e.shards {
		s.leave`,
		new: `for _, s := range e.shards[len(e.shards)/2:] {
		s.leave`,
	},
	{
		name: "nobody is told when to come back",
		row:  "D1",
		file: "server/internal/engine/drain.go",
		old:  `if t.tellsGaps(c) {`,
		new:  `if t.tellsGaps(c) && t.e.drain.atOnce.Load() {`,
	},
	{
		name: "clients are sent away for longer than the return window",
		row:  "X17",
		file: "server/internal/engine/drain.go",
		old:  `% d.retryWindow`,
		new:  `% (30 * d.retryWindow)`,
	},

	// What the simulation has found itself.
	{
		name: "a send that a signal interrupts is taken for a full socket",
		file: "server/internal/engine/transport.go",
		old:  `if n, errno = t.kernel.Send(int(c.fd), b); errno != netpoll.EINTR {`,
		new: `if n, errno = t.kernel.Send(int(c.fd), b); errno == netpoll.EINTR {
			return 0, netpoll.EAGAIN
		} else {`,
	},
	{
		name: "a pong goes before the answer to the handshake",
		file: "server/internal/engine/outbox.go",
		old:  `if o.off > 0 || len(o.q) > 0 && o.q[0].b[0]&0x80 == 0 {`,
		new:  `if o.off > 0 {`,
	},
	{
		name: "what stands behind a frame that ends a connection is thrown away",
		file: "server/internal/engine/read.go",
		old:  "t.readClosing(c, b)\n\t\treturn nil",
		new:  `return nil`,
	},
	{
		name: "a subscription that was ended takes effect when it is renewed",
		file: "server/subs.go",
		old:  `m.revoked = append(m.revoked, sub)`,
		new:  `_ = m`,
	},
	{
		name: "a subscription that is renewed at once is not told to have ended",
		file: "server/target.go",
		old:  `|| sub != nil && !sub.group.Has(t, c) { // else`,
		new:  `{ // else`,
	},
	{
		name: "an ok comes behind the end of its subscription",
		file: "server/subs.go",
		old:  `e.ended || s.find(name) == nil`,
		new:  `s.find(name) == nil`,
	},
	{
		name: "a bus that has lost a topic and does not answer is not asked again",
		file: "server/sink.go",
		old:  `b.lost[name] = now + h.srv.cfg.AuthTimeout`,
		new:  `b.lost[name] = now + 1000*h.srv.cfg.AuthTimeout`,
	},
}
