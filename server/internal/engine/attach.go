package engine

import "slices"

// attach begins a connection: its slot, its place in the epoll set. It returns
// nil if there is none.
func (t *Turn) attach(fd int) *Conn {
	s := t.shard
	local := localIndex(fd, len(t.e.shards))
	for local/pageSize >= len(s.pages) {
		s.pages = append(s.pages, nil)
	}
	if s.pages[local/pageSize] == nil {
		s.pages[local/pageSize] = new(page)
	}
	c := s.at(local)
	if c.state != stateFree {
		// Somebody else closed a descriptor that was ours.
		t.e.log.Error("a connection's descriptor was closed by somebody else", "fd", fd)
		t.lose(c)
		// Not for the reaper: its descriptor is the new one's.
		s.dead = slices.DeleteFunc(s.dead, func(dead *Conn) bool { return dead == c })
		t.free(c)
	}
	*c = Conn{fd: int32(fd), gen: max(c.gen, 1), state: stateHead, stamp: t.now}
	s.slots.add(local)
	s.conns.Add(1)
	if errno := s.set.Add(fd, uint64(c.Ref())); errno != 0 {
		t.e.log.Error("cannot watch a connection; is fs.epoll.max_user_watches too low?", "error", errno)
		t.lose(c)
		return nil
	}
	return c
}
