package engine

import "time"

// Group is the connections of one shard that get the same parcels. Its zero
// value is empty. Owned by the shard's turn.
type Group struct {
	set  members
	walk *walk // parcels on their way to set; nil if there are none
}

// Add puts c in.
func (g *Group) Add(t *Turn, c *Conn) { g.set.add(t.shard.local(c)) }

// Remove takes c out.
func (g *Group) Remove(t *Turn, c *Conn) { g.set.remove(t.shard.local(c)) }

// Has reports whether c is in.
func (g *Group) Has(t *Turn, c *Conn) bool { return g.set.has(t.shard.local(c)) }

// Next returns the first member at place i or behind it, see [Turn.Index], or
// nil.
func (g *Group) Next(t *Turn, i int) *Conn {
	if i = g.set.next(i); i < 0 {
		return nil
	}
	return t.shard.at(i)
}

// walk is a queue of parcels on their way through the members of a group, in
// ascending order of descriptors (the kernel is a fifth dearer in random
// order). It goes in slices, so that reads, pings and other groups keep their
// place. Owned by the shard's turn.
type walk struct {
	set   *members
	owner **walk // set to nil at the end; nil for a walk of its own
	queue []walkEntry
	first int // of queue: those before it are done with

	// The batch under way: so many parcels of the queue from first on.
	batch   int
	at      int // the next local index to look at
	frames  [maxCodecs][]byte
	gap     *gapNote // the batch is too old, or lost: members are told of it instead
	visited int32    // members that were looked at
	written int32    // those of them that took the whole batch at once
}

// walkEntry is a parcel for so many members, or a task between two parcels.
type walkEntry struct {
	p      *Parcel
	behind *behind
	count  int32
}

// behind is a task for a connection that waits for its place in a walk.
type behind struct {
	ref  Ref
	task Task
}

const (
	batchMessages = 32
	batchBytes    = 16 << 10
)

// startWalk appends e to the walk of g, which is begun if there is none.
func (t *Turn) startWalk(g *Group, e walkEntry) { t.addToWalk(&g.walk, &g.set, e) }

func (t *Turn) addToWalk(owner **walk, set *members, e walkEntry) {
	wk := *owner
	if wk == nil {
		wk = t.shard.newWalk()
		wk.set, wk.owner = set, owner
		*owner = wk
		t.shard.walks = append(t.shard.walks, wk)
	}
	wk.queue = append(wk.queue, e)
}

// doBehind does a task, or has it wait for the parcels that came before it.
func (t *Turn) doBehind(g *Group, b behind) {
	if g.walk != nil {
		waits := b // on the heap only if it does
		g.walk.queue = append(g.walk.queue, walkEntry{behind: &waits})
		return
	}
	t.doTask(b)
}

func (t *Turn) doTask(b behind) {
	if c := t.shard.lookup(b.ref); c != nil {
		b.task.Do(t, c)
	}
}

// startBroadcast walks all open connections. One with a rate is a walk of its
// own, which others may overtake.
func (t *Turn) startBroadcast(p *Parcel) {
	s := t.shard
	e := walkEntry{p: p, count: int32(s.open.len())}
	p.total.Add(e.count)
	if p.Rate == 0 {
		t.addToWalk(&s.everybody, &s.open, e)
		return
	}
	wk := s.newWalk()
	wk.set = &s.open
	wk.queue = append(wk.queue, e)
	s.walks = append(s.walks, wk)
	s.paced++
	s.wakeEveryTick()
}

func (s *shard) newWalk() *walk {
	if n := len(s.freeWalks); n > 0 {
		wk := s.freeWalks[n-1]
		s.freeWalks = s.freeWalks[:n-1]
		return wk
	}
	return &walk{}
}

func (t *Turn) endWalk(wk *walk) {
	s := t.shard
	if wk.owner != nil {
		*wk.owner = nil
	} else {
		s.paced--
	}
	*wk = walk{queue: wk.queue[:0]}
	if len(s.freeWalks) < 64 && cap(wk.queue) <= batchMessages {
		s.freeWalks = append(s.freeWalks, wk)
	}
}

// walkSome gives every walk its slice, until their common budget is used up.
// It reports whether one could go on now.
func (t *Turn) walkSome() (more bool) {
	s := t.shard
	deadline := t.exact + sliceBudget
	unfinished := t.unfinished[:0]
	i := 0
	for ; i < len(s.walks) && t.exact < deadline; i++ {
		wk := s.walks[i]
		if wk == nil { // it has ended, and then the turn panicked
			continue
		}
		switch t.walk(wk, deadline) {
		case walkEnded:
			s.walks[i] = nil
			t.endWalk(wk)
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
	t.unfinished = unfinished[:0]
	return more
}

type walkResult uint8

const (
	walkEnded walkResult = iota
	walkMore             // the time was up
	walkPaced            // the rate allows no more now
)

// walk goes on with wk until it ends, its rate is reached or the deadline.
func (t *Turn) walk(wk *walk, deadline time.Duration) walkResult {
	for {
		if t.steps++; t.steps%16 == 0 { // of all walks, because there may be many small ones
			if t.exact = t.kernel.Now(); t.exact >= deadline {
				return walkMore
			}
		}
		if wk.batch == 0 {
			if !t.nextBatch(wk) {
				return walkEnded
			}
			continue
		}
		local := wk.set.next(wk.at)
		if local < 0 {
			t.endBatch(wk)
			continue
		}
		if p := wk.queue[wk.first].p; p.Rate > 0 {
			if p.expired(t.exact) {
				t.expireRest(wk)
				continue
			}
			if !p.mayGo(t.exact) {
				return walkPaced
			}
		}
		wk.at = local + 1
		wk.visited++
		c := t.shard.at(local)
		if wk.gap != nil {
			t.skip(c, wk.gap)
		} else if t.deliver(c, wk.parcels(), &wk.frames) == Written {
			wk.written++
		}
	}
}

// parcels are those of the batch under way.
func (wk *walk) parcels() []walkEntry { return wk.queue[wk.first : wk.first+wk.batch] }

// nextBatch takes the next parcels of the queue that can leave in one call and
// makes them the batch. Tasks in front of them are done first. It returns false
// if the queue is empty.
func (t *Turn) nextBatch(wk *walk) bool {
	wk.compact()
	rest := wk.queue[wk.first:]
	if len(rest) == 0 {
		return false
	}
	if b := rest[0].behind; b != nil {
		wk.first++
		t.doTask(*b)
		return true
	}
	if rest[0].p.Lost != nil {
		wk.batch, wk.at, wk.visited, wk.written = 1, 0, 0, 0
		wk.gap = lostBefore(rest[0].p)
		return true
	}
	old := rest[0].p.expired(t.exact)
	n, size := 1, rest[0].p.Size()
	for n < len(rest) && n < batchMessages {
		p := rest[n].p
		if p == nil || p.Lost != nil || p.expired(t.exact) != old || size+p.Size() > batchBytes || old && p.Epoch != rest[0].p.Epoch {
			break
		}
		size += p.Size()
		n++
	}
	wk.batch, wk.at, wk.visited, wk.written = n, 0, 0, 0
	if old {
		t.expireBatch(wk)
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
	batch := wk.parcels()
	wk.frames = batch[0].p.frames
	if len(batch) == 1 {
		return
	}
	for codec, frame := range wk.frames {
		if frame == nil {
			continue
		}
		b := make([]byte, 0, size)
		for _, e := range batch {
			b = append(b, e.p.frames[codec]...)
		}
		wk.frames[codec] = b
	}
}

// expireBatch makes the batch, whose TTL is over, a gap of which the members are
// told. Parcels without a flow have no seq, so there is nothing to tell.
func (t *Turn) expireBatch(wk *walk) {
	batch := wk.parcels()
	if batch[0].p.Flow == nil {
		t.expireRest(wk)
		return
	}
	g := gapOf(batch[0].p, DropTTL)
	g.to = batch[len(batch)-1].p.Seq
	wk.gap = &g
}

// endBatch completes the counts of a batch, so that total = written + queued +
// dropped. A member that has ended since the parcel was sent is counted as
// dropped. A connection that opened since a broadcast was sent, and got it, is
// counted in the total.
func (t *Turn) endBatch(wk *walk) {
	for _, e := range wk.parcels() {
		switch {
		case e.p.Lost != nil:
			t.countLost(e.p, int(wk.visited))
			e.p.walked()
			continue
		case wk.gap != nil:
			t.drop(e.p, DropTTL, int(wk.visited))
		}
		if missing := e.count - wk.visited; missing > 0 {
			t.drop(e.p, DropGone, int(missing))
		} else {
			e.p.total.Add(-missing)
		}
		e.p.written.Add(wk.written)
		e.p.walked()
	}
	t.shard.count.deliveries.Add(uint64(wk.written) * uint64(wk.batch))
	clear(wk.parcels())
	wk.first += wk.batch
	wk.batch, wk.frames, wk.gap = 0, [maxCodecs][]byte{}, nil
}

// expireRest ends a broadcast for those who have not been given it.
func (t *Turn) expireRest(wk *walk) {
	n := 0
	for i := wk.set.next(wk.at); i >= 0; i = wk.set.next(i + 1) {
		n++
	}
	for _, e := range wk.parcels() {
		t.drop(e.p, DropTTL, n)
	}
	wk.visited += int32(n)
	t.endBatch(wk)
}

// deliver sends a batch of parcels to one connection. If all of it left at once
// it returns Written and the caller counts the parcels as written. Otherwise it
// has counted each parcel, and returns what became of the last: walk looks only
// for Written, and sendOne passes one parcel.
func (t *Turn) deliver(c *Conn, batch []walkEntry, frames *[maxCodecs][]byte) (status Status) {
	if c.ext != nil && !c.ext.out.empty() {
		for _, e := range batch {
			status = t.enqueue(c, e.p, 0)
		}
		return status
	}
	b := frames[c.codec]
	if b == nil { // nobody had this codec when it was sent: c is younger
		for _, e := range batch {
			t.drop(e.p, DropGone, 1)
		}
		return Dropped
	}
	n, errno := t.transmit(c, b)
	if n == len(b) {
		return Written
	}
	if broken(errno) {
		for _, e := range batch {
			t.drop(e.p, DropGone, 1)
		}
		t.lose(c)
		return Dropped
	}
	for _, e := range batch {
		if size := len(e.p.frames[c.codec]); n >= size {
			n -= size
			e.p.written.Add(1)
			t.shard.count.deliveries.Add(1)
			continue
		}
		status = t.enqueue(c, e.p, n)
		n = 0
	}
	return status
}

// enqueue puts p in the outbox of c; its first off bytes have left already.
// A full outbox is dealt with as the parcel's policy says.
func (t *Turn) enqueue(c *Conn, p *Parcel, off int) Status {
	b := p.frames[c.codec]
	if c.state != stateOpen || b == nil { // see deliver
		return t.drop(p, DropGone, 1)
	}
	o := &t.extraOf(c).out
	if p.Policy == Latest && off == 0 {
		if i := o.find(p.Flow, p.Key, true); i >= 0 {
			t.loseOne(c, i, DropCollapsed)
		}
	}
	for len(o.q) > 0 && o.bytes+len(b) > t.cfg.MaxOutbox {
		i := -1
		if p.Policy != Disconnect {
			i = o.find(p.Flow, "", false)
		}
		if i >= 0 {
			t.loseOne(c, i, DropOverflow)
			continue
		}
		// What fills the outbox is of other flows, or has begun to leave. A
		// reader that cannot be told that it misses the newest is cut.
		if p.Policy == Disconnect || !t.tellsGaps(c) {
			t.cut(c, CutOutbox)
		} else {
			g := gapOf(p, DropOverflow)
			t.skip(c, &g)
		}
		return t.drop(p, DropOverflow, 1)
	}
	o.push(entry{b: b, parcel: p, queued: t.now}, off)
	p.countQueued()
	t.shard.count.deliveries.Add(1)
	t.budget(len(b) - off)
	return Queued
}

// Repeat sends c a parcel that was sent to a group before c was in it. It is not
// counted in what became of p.
func (t *Turn) Repeat(c *Conn, p *Parcel) {
	again := &Parcel{Flow: p.Flow, Seq: p.Seq, Epoch: p.Epoch, Key: p.Key, Expires: p.Expires, Policy: p.Policy, frames: p.frames}
	if again.expired(t.exact) {
		g := gapOf(again, DropTTL)
		t.drop(again, DropTTL, 1)
		t.skip(c, &g)
		return
	}
	t.one[0] = walkEntry{p: again}
	if t.deliver(c, t.one[:], &again.frames) == Written {
		t.shard.count.deliveries.Add(1)
	}
	t.one[0] = walkEntry{}
}

// sendOne sends p to the i-th of those that it is for.
func (t *Turn) sendOne(p *Parcel, i int32) {
	to := &p.To[i]
	c := t.shard.lookup(to.Ref)
	switch {
	case c == nil || c.state != stateOpen:
		to.Status, to.Gone = t.drop(p, DropGone, 1), true
	case p.expired(t.exact):
		to.Status = t.drop(p, DropTTL, 1)
	default:
		t.one[0] = walkEntry{p: p}
		to.Status = t.deliver(c, t.one[:], &p.frames)
		if to.Status == Written {
			p.written.Add(1)
			t.shard.count.deliveries.Add(1)
		}
		t.one[0] = walkEntry{}
	}
	p.walked()
}
