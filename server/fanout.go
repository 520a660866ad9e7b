package server

import (
	"time"
)

// walk is one topic's messages on their way through its subscribers in one
// shard, in ascending order of descriptors (the kernel is a fifth dearer in
// random order). It goes in slices, so that reads, pings and other topics keep
// their place. Owned by the shard's turn.
type walk struct {
	set   *members
	owner **walk // set to nil at the end; nil for a walk of its own
	queue []walkEntry
	first int // of queue: those before it are done with

	// The batch under way: so many messages of the queue from first on.
	batch   int
	at      int // the next local index to look at
	joined  [formats][]byte
	gap     *gapNote // the batch is too old: subscribers are told of it instead
	visited int32    // subscribers that were looked at
	written int32    // those of them that took the whole batch at once
}

// walkEntry is a message for so many subscribers, or a subscriber who joins
// between two messages.
type walkEntry struct {
	m     *message
	join  *item
	count int32
}

const (
	batchMessages = 32
	batchBytes    = 16 << 10
)

// startWalk appends e to the walk at owner, which is begun if there is none.
func (w *worker) startWalk(owner **walk, set *members, e walkEntry) {
	wk := *owner
	if wk == nil {
		wk = w.shard.newWalk()
		wk.set, wk.owner = set, owner
		*owner = wk
		w.shard.walks = append(w.shard.walks, wk)
	}
	wk.queue = append(wk.queue, e)
}

// startBroadcast walks all open connections. One with a rate is a walk of its
// own, which others may overtake.
func (w *worker) startBroadcast(m *message) {
	s := w.shard
	e := walkEntry{m: m, count: int32(s.open.len())}
	m.subscribers.Add(e.count)
	if m.rate == 0 {
		w.startWalk(&s.everybody, &s.open, e)
		return
	}
	wk := s.newWalk()
	wk.set = &s.open
	wk.queue = append(wk.queue, e)
	s.walks = append(s.walks, wk)
	s.paced++
	s.hasten()
}

func (s *shard) newWalk() *walk {
	if n := len(s.idle); n > 0 {
		wk := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return wk
	}
	return &walk{}
}

func (w *worker) endWalk(wk *walk) {
	s := w.shard
	if wk.owner != nil {
		*wk.owner = nil
	} else {
		s.paced--
	}
	*wk = walk{queue: wk.queue[:0]}
	if len(s.idle) < 64 && cap(wk.queue) <= batchMessages {
		s.idle = append(s.idle, wk)
	}
}

// walkSome gives every walk its slice, until their common budget is used up.
// It reports whether one could go on now.
func (w *worker) walkSome() (more bool) {
	s := w.shard
	deadline := w.exact + sliceBudget
	unfinished := w.unfinished[:0]
	i := 0
	for ; i < len(s.walks) && w.exact < deadline; i++ {
		wk := s.walks[i]
		if wk == nil { // it has ended, and then the turn panicked
			continue
		}
		switch w.walk(wk, deadline) {
		case walkEnded:
			s.walks[i] = nil
			w.endWalk(wk)
		case walkMore:
			more = true
			unfinished = append(unfinished, wk)
		case walkPaced:
			unfinished = append(unfinished, wk)
		}
	}
	more = more || i < len(s.walks)
	n := copy(s.walks, s.walks[i:])
	clear(s.walks[n:])
	s.walks = append(s.walks[:n], unfinished...)
	w.unfinished = unfinished[:0]
	return more
}

type walkResult uint8

const (
	walkEnded walkResult = iota
	walkMore             // the time was up
	walkPaced            // the rate allows no more now
)

// walk goes on with wk until it ends, its rate is reached or the deadline.
func (w *worker) walk(wk *walk, deadline time.Duration) walkResult {
	for {
		if w.steps++; w.steps%16 == 0 { // of all walks, because there may be many small ones
			if w.exact = w.srv.kernel.Now(); w.exact >= deadline {
				return walkMore
			}
		}
		if wk.batch == 0 {
			if !w.nextBatch(wk) {
				return walkEnded
			}
			continue
		}
		local := wk.set.next(wk.at)
		if local < 0 {
			w.endBatch(wk)
			continue
		}
		if m := wk.queue[wk.first].m; m.rate > 0 {
			if m.expired(w.exact) {
				w.expireRest(wk)
				continue
			}
			if !m.mayGo(w.exact) {
				return walkPaced
			}
		}
		wk.at = local + 1
		wk.visited++
		c := w.shard.at(local)
		if wk.gap != nil {
			w.skip(c, *wk.gap)
		} else if w.give(c, wk.messages(), &wk.joined) == StatusWritten {
			wk.written++
		}
	}
}

// messages are those of the batch under way.
func (wk *walk) messages() []walkEntry { return wk.queue[wk.first : wk.first+wk.batch] }

// nextBatch takes the next messages of the queue that can leave in one call and
// makes them the batch. Subscribers that join in front of them are entered
// first. It returns false if the queue is empty.
func (w *worker) nextBatch(wk *walk) bool {
	wk.compact()
	rest := wk.queue[wk.first:]
	if len(rest) == 0 {
		return false
	}
	if rest[0].join != nil {
		w.enter(rest[0].join)
		wk.first++
		return true
	}
	old := rest[0].m.expired(w.exact)
	n, size := 1, rest[0].m.size()
	for n < len(rest) && n < batchMessages {
		m := rest[n].m
		if m == nil || m.expired(w.exact) != old || size+m.size() > batchBytes || old && m.epoch != rest[0].m.epoch {
			break
		}
		size += m.size()
		n++
	}
	wk.batch, wk.at, wk.visited, wk.written = n, 0, 0, 0
	if old {
		w.expire(wk)
	} else {
		wk.join(size)
	}
	return true
}

// compact gives back the room of what is done with, once that is most of the
// queue: while messages keep coming a walk does not end.
func (wk *walk) compact() {
	if wk.first > batchMessages && 2*wk.first > len(wk.queue) {
		n := copy(wk.queue, wk.queue[wk.first:])
		clear(wk.queue[n:])
		wk.queue, wk.first = wk.queue[:n], 0
	}
}

// join puts the frames of the batch, of so many bytes, in a row.
func (wk *walk) join(size int) {
	batch := wk.messages()
	wk.joined = batch[0].m.frames
	if len(batch) == 1 {
		return
	}
	for f := range formats {
		if batch[0].m.frames[f] == nil {
			continue
		}
		b := make([]byte, 0, size)
		for _, e := range batch {
			b = append(b, e.m.frame(f)...)
		}
		wk.joined[f] = b
	}
}

// expire makes the batch, whose TTL is over, a gap of which the subscribers
// are told. Broadcasts have no seq, so there is nothing to tell.
func (w *worker) expire(wk *walk) {
	batch := wk.messages()
	if batch[0].m.topic == nil {
		w.expireRest(wk)
		return
	}
	g := gapOf(batch[0].m, dropTTL)
	g.to = batch[len(batch)-1].m.seq
	g.framed = g.frame() // once for all of them
	wk.gap = &g
}

// endBatch completes the counts of a batch, so that subscribers = written +
// queued + dropped. A subscriber that has ended since the publish is counted as
// dropped. A connection that opened since a broadcast was published, and got
// it, is counted as a subscriber.
func (w *worker) endBatch(wk *walk) {
	for _, e := range wk.messages() {
		if wk.gap != nil {
			w.drop(e.m, dropTTL, int(wk.visited))
		}
		if missing := e.count - wk.visited; missing > 0 {
			w.drop(e.m, dropGone, int(missing))
		} else {
			e.m.subscribers.Add(-missing)
		}
		e.m.outcome.written.Add(wk.written)
		w.walked(e.m)
	}
	w.shard.count.deliveries.Add(uint64(wk.written) * uint64(wk.batch))
	clear(wk.messages())
	wk.first += wk.batch
	wk.batch, wk.joined, wk.gap = 0, [formats][]byte{}, nil
}

// expireRest ends a broadcast for those who have not been given it.
func (w *worker) expireRest(wk *walk) {
	n := 0
	for i := wk.set.next(wk.at); i >= 0; i = wk.set.next(i + 1) {
		n++
	}
	for _, e := range wk.messages() {
		w.drop(e.m, dropTTL, n)
	}
	wk.visited += int32(n)
	w.endBatch(wk)
}

// walked counts this shard's part of m as done.
func (w *worker) walked(m *message) {
	if m.pending.Add(-1) == 0 {
		w.srv.delivered(m)
	}
}

// give sends a batch of messages to one subscriber. If all of it left at once
// it returns StatusWritten and the caller counts the messages as written.
// Otherwise give has counted each message, and returns what became of the last:
// walk looks only for StatusWritten, and direct passes one message.
func (w *worker) give(c *conn, batch []walkEntry, joined *[formats][]byte) (status DeviceStatus) {
	if c.ext != nil && !c.ext.out.empty() {
		for _, e := range batch {
			status = w.enqueue(c, e.m, 0)
		}
		return status
	}
	b := joined[c.format]
	if b == nil { // the first connection of this format came after the batch was made
		for _, e := range batch {
			b = append(b, e.m.frame(c.format)...)
		}
	}
	n, errno := w.srv.kernel.Send(int(c.fd), b)
	if n == len(b) {
		return StatusWritten
	}
	if broken(errno) {
		for _, e := range batch {
			w.drop(e.m, dropGone, 1)
		}
		w.lost(c)
		return StatusDropped
	}
	for _, e := range batch {
		if size := len(e.m.frame(c.format)); n >= size {
			n -= size
			e.m.outcome.written.Add(1)
			w.shard.count.deliveries.Add(1)
			continue
		}
		status = w.enqueue(c, e.m, n)
		n = 0
	}
	return status
}

// enqueue puts m in the outbox of c; its first off bytes have left already.
// A full outbox is dealt with as the topic's policy says.
func (w *worker) enqueue(c *conn, m *message, off int) DeviceStatus {
	if c.state != stateOpen {
		return w.drop(m, dropGone, 1)
	}
	b := m.frame(c.format)
	o := &w.extraOf(c).out
	if m.policy == policyLatest && off == 0 {
		if i := o.find(m.topic, m.key, true); i >= 0 {
			w.lose(c, i, dropCollapsed)
		}
	}
	for len(o.q) > 0 && o.bytes+len(b) > w.srv.cfg.MaxOutbox {
		i := -1
		if m.policy != policyDisconnect {
			i = o.find(m.topic, "", false)
		}
		if i >= 0 {
			w.lose(c, i, dropOverflow)
			continue
		}
		// What fills the outbox is of other topics, or has begun to leave. A
		// reader that cannot be told that it misses the newest is cut.
		if m.policy == policyDisconnect || c.format == formatRaw {
			w.cut(c, cutOutbox)
		} else {
			w.skip(c, gapOf(m, dropOverflow))
		}
		return w.drop(m, dropOverflow, 1)
	}
	o.push(pendingOut{b: b, m: m, queued: w.now}, off)
	m.outcome.queue()
	w.shard.count.deliveries.Add(1)
	w.budget(len(b) - off)
	return StatusQueued
}

// drop counts n copies of m that will not be sent.
func (w *worker) drop(m *message, why dropReason, n int) DeviceStatus {
	m.outcome.drop(n)
	w.srv.stats.drop(why, n)
	return StatusDropped
}

// unqueued counts one copy of m that was queued and will not be sent.
func (w *worker) unqueued(m *message, why dropReason) {
	m.outcome.unqueue()
	w.srv.stats.drop(why, 1)
}

// direct gives it.m to one connection: a push.
func (w *worker) direct(it *item) {
	note := &it.m.devices[it.device]
	c := w.shard.lookup(it.ref)
	switch {
	case c == nil || c.state != stateOpen:
		note.status, note.gone = w.drop(it.m, dropGone, 1), true
	case it.m.expired(w.exact):
		note.status = w.drop(it.m, dropTTL, 1)
	default:
		w.one[0] = walkEntry{m: it.m}
		note.status = w.give(c, w.one[:], &it.m.frames)
		if note.status == StatusWritten {
			it.m.outcome.written.Add(1)
			w.shard.count.deliveries.Add(1)
		}
		w.one[0] = walkEntry{}
	}
	w.walked(it.m)
}
