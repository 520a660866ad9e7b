package server

import (
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
)

// walk is one topic's messages on their way through its subscribers in one
// shard, in ascending order of descriptors (the kernel is a fifth dearer in
// random order). It goes in slices, so that reads, pings and other topics keep
// their place. Owned by the shard's turn.
type walk struct {
	set   *members
	owner **walk // set to nil at the end; nil for a walk of its own
	queue []walkEntry

	// The batch under way: the first so many messages of the queue.
	batch   int
	at      int // the next local index to look at
	joined  [formats][]byte
	written int32 // subscribers that took the whole batch at once

	// Pacing, for a message with a rate.
	began time.Duration
	given int
	share int // deliveries a second in this shard
}

// walkEntry is a message, or a subscriber who joins between two messages.
type walkEntry struct {
	m    *message
	join *item
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
	if m.rate == 0 {
		w.startWalk(&s.everybody, &s.open, walkEntry{m: m})
		return
	}
	wk := s.newWalk()
	wk.set = &s.open
	wk.queue = append(wk.queue, walkEntry{m: m})
	wk.began = w.exact
	wk.share = max(1, m.rate*s.open.len()/max(1, m.subscribers))
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
	}
	if wk.share > 0 {
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
		switch w.walk(wk, deadline) {
		case walkEnded:
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
	for n := 1; ; n++ {
		if wk.batch == 0 && !w.nextBatch(wk) {
			return walkEnded
		}
		if wk.share > 0 && wk.queue[0].m.expired(w.exact) {
			w.expireRest(wk)
			continue
		}
		if wk.share > 0 && wk.given >= int((w.exact-wk.began)*time.Duration(wk.share)/time.Second)+1 {
			return walkPaced
		}
		local := wk.set.next(wk.at)
		if local < 0 {
			w.endBatch(wk)
			continue
		}
		wk.at = local + 1
		wk.given++
		if w.give(w.shard.at(local), wk.queue[:wk.batch], &wk.joined) == StatusWritten {
			wk.written++
		}
		if n%16 == 0 {
			if w.exact = w.srv.kernel.Now(); w.exact >= deadline {
				return walkMore
			}
		}
	}
}

// nextBatch begins with the next messages of the queue, those that can leave
// in one call; joiners before them join. False means that the queue is empty.
func (w *worker) nextBatch(wk *walk) bool {
	for len(wk.queue) > 0 && (wk.queue[0].join != nil || wk.queue[0].m.expired(w.exact)) {
		if e := wk.queue[0]; e.join != nil {
			w.enter(e.join)
		} else {
			w.expire(e.m, wk.set.len())
		}
		wk.queue = wk.queue[:copy(wk.queue, wk.queue[1:])]
	}
	if len(wk.queue) == 0 {
		return false
	}
	n, size := 1, len(wk.queue[0].m.frames[formatV1])
	for n < len(wk.queue) && n < batchMessages {
		m := wk.queue[n].m
		if m == nil || m.expired(w.exact) || size+len(m.frames[formatV1]) > batchBytes {
			break
		}
		size += len(m.frames[formatV1])
		n++
	}
	wk.batch, wk.at, wk.written = n, 0, 0
	first := wk.queue[0].m
	wk.joined = first.frames
	if n == 1 {
		return true
	}
	for f := range formats {
		if first.frames[f] == nil {
			continue
		}
		b := make([]byte, 0, size)
		for _, e := range wk.queue[:n] {
			b = append(b, e.m.frame(f)...)
		}
		wk.joined[f] = b
	}
	return true
}

func (w *worker) endBatch(wk *walk) {
	for _, e := range wk.queue[:wk.batch] {
		e.m.written.Add(wk.written)
		w.walked(e.m)
	}
	w.shard.count.deliveries.Add(uint64(wk.written) * uint64(wk.batch))
	n := copy(wk.queue, wk.queue[wk.batch:])
	clear(wk.queue[n:])
	wk.queue = wk.queue[:n]
	wk.batch, wk.joined = 0, [formats][]byte{}
}

// expire drops m for n subscribers because its TTL is over.
func (w *worker) expire(m *message, n int) {
	m.dropped.Add(int32(n))
	w.srv.stats.drop(dropTTL, n)
	w.walked(m)
}

// expireRest ends a message with a rate for those who have not been given it.
func (w *worker) expireRest(wk *walk) {
	n := 0
	for i := wk.set.next(wk.at); i >= 0; i = wk.set.next(i + 1) {
		n++
	}
	wk.queue[0].m.dropped.Add(int32(n))
	w.srv.stats.drop(dropTTL, n)
	w.endBatch(wk)
}

// walked counts this shard's part of m as done.
func (w *worker) walked(m *message) {
	if m.pending.Add(-1) == 0 {
		w.srv.delivered(m)
	}
}

// give sends a batch of messages to one subscriber. It returns StatusWritten if
// all of it left at once, which the caller counts; what else happened is
// counted here, and the result is that of the last message.
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
	if errno != 0 && errno != netpoll.EAGAIN && errno != netpoll.EINTR {
		for _, e := range batch {
			w.dropped(e.m, dropGone)
		}
		w.lost(c)
		return StatusDropped
	}
	for _, e := range batch {
		if size := len(e.m.frame(c.format)); n >= size {
			n -= size
			e.m.written.Add(1)
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
		return w.dropped(m, dropGone)
	}
	b := m.frame(c.format)
	o := &w.extraOf(c).out
	if m.policy == policyLatest && off == 0 {
		if i := o.find(m.topic, m.key, true); i >= 0 {
			w.dropped(o.q[i].m, dropCollapsed)
			w.srv.outboxBytes.Add(-int64(o.drop(i)))
		}
	}
	for len(o.q) > 0 && o.bytes+len(b) > w.srv.cfg.MaxOutbox {
		i := -1
		if m.policy != policyDisconnect {
			i = o.find(m.topic, "", false)
		}
		switch {
		case i >= 0:
			w.dropped(o.q[i].m, dropOverflow)
			w.srv.outboxBytes.Add(-int64(o.drop(i)))
			continue
		case m.policy != policyDisconnect:
			return w.dropped(m, dropOverflow)
		}
		w.cut(c, cutOutbox)
		return w.dropped(m, dropOverflow)
	}
	o.push(pendingOut{b: b, m: m, queued: w.now}, off)
	m.queued.Add(1)
	w.shard.count.deliveries.Add(1)
	w.budget(len(b) - off)
	return StatusQueued
}

// dropped counts one copy of m that will not be sent.
func (w *worker) dropped(m *message, why dropReason) DeviceStatus {
	m.dropped.Add(1)
	w.srv.stats.drop(why, 1)
	return StatusDropped
}

// direct gives it.m to one connection: a push.
func (w *worker) direct(it *item) {
	note := &it.m.devices[it.device]
	c := w.shard.lookup(it.ref)
	switch {
	case c == nil || c.state != stateOpen:
		note.status, note.gone = w.dropped(it.m, dropGone), true
	case it.m.expired(w.exact):
		note.status = w.dropped(it.m, dropTTL)
	default:
		w.one[0] = walkEntry{m: it.m}
		note.status = w.give(c, w.one[:], &it.m.frames)
		if note.status == StatusWritten {
			it.m.written.Add(1)
			w.shard.count.deliveries.Add(1)
		}
		w.one[0] = walkEntry{}
	}
	w.walked(it.m)
}
