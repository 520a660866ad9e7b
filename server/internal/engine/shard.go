package engine

import (
	"sync/atomic"
	"time"
)

// shard is some thousands of connections that are served together. At most one
// goroutine at a time has its turn. That goroutine owns all fields whose
// comment does not say otherwise, and the shard's connections, which therefore
// need no lock.
type shard struct {
	e     *Engine // static
	index int     // static
	set   Set     // static once the engine has started

	inbox     inbox        // any goroutine appends, the turn takes
	state     atomic.Int32 // shardIdle, shardBusy, shardUnseen
	ready     atomic.Bool  // set by the poller: the set reported and is not armed
	tick      atomic.Bool  // set by the ticker: a sweep is due
	everyTick atomic.Bool  // set by the turn: it wants to be woken at every tick
	woken     atomic.Int64 // kernel.Now of the wake-up that the turn answers

	pages         []*page
	slots         members // slots in use
	open          members // connections in stateOpen
	dead          []*Conn // connections that have ended, for the reaper
	walks         []*walk // fan-outs in progress, round robin
	everybody     *walk   // the broadcasts among them, without a rate
	paced         int     // walks with a rate
	unread        []Ref   // connections that have more to read than their share
	waiting       []*Call // calls that the runner had no room for
	items         []item  // taken from the inbox
	done          int     // of items
	spareAccepted []int32 // the inbox's other half
	freeExtras    []*extra
	freeWalks     []*walk
	drain         drainPlan
	swept         time.Duration // kernel.Now of the last sweep
	leaked        int64         // see Turn.leak
	amnesty       time.Duration // kernel.Now until which control frames are not counted

	conns atomic.Int64 // slots in use, as others read it
	count counters
}

// The states of a shard.
const (
	shardIdle   int32 = iota // no turn is queued or running
	shardBusy                // a turn is queued or running
	shardUnseen              // as busy; and something came that the turn may not have seen
)

// at returns the slot at a local index, whose page must be there.
func (s *shard) at(local int) *Conn {
	return &s.pages[local/pageSize][local%pageSize]
}

func (s *shard) local(c *Conn) int { return localIndex(int(c.fd), len(s.e.shards)) }

// lookup returns the connection that r names, or nil if it has ended.
func (s *shard) lookup(r Ref) *Conn {
	local := localIndex(r.fd(), len(s.e.shards))
	if local/pageSize < len(s.pages) {
		if page := s.pages[local/pageSize]; page != nil {
			if c := &page[local%pageSize]; c.gen == r.gen() && c.state != stateFree && c.state != stateDead {
				return c
			}
		}
	}
	s.count.stale.Add(1)
	return nil
}

// Has reports whether r, a connection of this shard, has not ended.
func (t *Turn) Has(r Ref) bool {
	local := localIndex(r.fd(), len(t.e.shards))
	c := t.shard.at(local)
	return c.gen == r.gen() && c.state != stateFree && c.state != stateDead
}

// wake makes sure that the shard gets a turn after this call. Any goroutine
// may call it.
func (s *shard) wake() {
	for {
		switch s.state.Load() {
		case shardIdle:
			if s.state.CompareAndSwap(shardIdle, shardBusy) {
				s.submit()
				return
			}
		case shardBusy:
			if s.state.CompareAndSwap(shardBusy, shardUnseen) {
				return
			}
		default:
			return
		}
	}
}

func (s *shard) submit() {
	s.woken.Store(int64(s.e.kernel.Now()))
	s.e.runner.Turn(s.index)
}

func (e *Engine) closeSets() {
	for _, s := range e.shards {
		if s.set != nil {
			s.set.Close()
		}
	}
}
