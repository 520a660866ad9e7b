package server

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// A topic lingers when its last subscriber has left: for Config.TopicLinger its
// numbering goes on, so that whoever comes back within it is told the truth
// about what was missed. A topic that lingers is not in the topic index, which
// is made small for those with subscribers, but in the lingering set beside
// its stripe. All of a set is guarded by that stripe's lock.

// lingering is the topics of one stripe that linger.
type lingering struct {
	byName      map[string]*lingerer
	first, last *lingerer // in the order in which they began to
	bytes       int64
}

// lingerer is a topic that lingers.
type lingerer struct {
	topic          topic // without subscribers
	since          time.Duration
	earlier, later *lingerer
}

// lingerCost is about what a lingering topic takes beside its name, in bytes:
// lingerer, and its place in the map.
const lingerCost = 160

func (l *lingerer) cost() int64 { return lingerCost + int64(len(l.topic.flow.Name)) }

// lingerTotals are those of all stripes.
type lingerTotals struct {
	topics, bytes atomic.Int64
	evicted       atomic.Uint64 // before their time, for the budget
}

func (s *lingering) find(name string) *lingerer { return s.byName[name] }

func (s *lingering) add(l *lingerer) {
	if s.byName == nil {
		s.byName = map[string]*lingerer{}
	}
	s.byName[l.topic.flow.Name] = l
	if l.earlier = s.last; l.earlier == nil {
		s.first = l
	} else {
		l.earlier.later = l
	}
	s.last = l
	s.bytes += l.cost()
}

func (s *lingering) remove(l *lingerer) {
	delete(s.byName, l.topic.flow.Name)
	if len(s.byName) == 0 {
		s.byName = nil // a map keeps the room of its largest size
	}
	if l.earlier == nil {
		s.first = l.later
	} else {
		l.earlier.later = l.later
	}
	if l.later == nil {
		s.last = l.earlier
	} else {
		l.later.earlier = l.earlier
	}
	s.bytes -= l.cost()
}

// lingerLocked has t, whose last subscriber has left, linger. Over the budget,
// of which each stripe has its share, those that linger longest are forgotten
// before their time. The caller holds the stripe, and calls callBus when it has
// let go of it.
func (h *hub) lingerLocked(t *topic) {
	cfg := &h.srv.cfg
	if cfg.TopicLinger < 0 {
		h.busSide(t.flow.Name).later(busCall{t.flow.Name, false})
		return
	}
	s := h.lingeringOf(t.flow.Name)
	l := &lingerer{topic: *t, since: h.srv.engine.Now()}
	s.add(l)
	h.lingers.topics.Add(1)
	h.lingers.bytes.Add(l.cost())
	for share := cfg.LingerBudget / int64(len(h.lingering)); s.first != nil && s.bytes > share; {
		h.lingers.evicted.Add(1)
		h.forgetLocked(s, s.first)
	}
}

// reviveLocked returns the topic of that name if it lingers, and no longer has
// it linger. The caller holds the stripe.
func (h *hub) reviveLocked(name string) *topic {
	s := h.lingeringOf(name)
	l := s.find(name)
	if l == nil {
		return nil
	}
	h.unlingerLocked(s, l)
	t := l.topic
	return &t
}

func (h *hub) unlingerLocked(s *lingering, l *lingerer) {
	s.remove(l)
	h.lingers.topics.Add(-1)
	h.lingers.bytes.Add(-l.cost())
}

func (h *hub) forgetLocked(s *lingering, l *lingerer) {
	h.unlingerLocked(s, l)
	h.busSide(l.topic.flow.Name).later(busCall{l.topic.flow.Name, false})
}

// forgetLingeringLocked forgets the topics of s that have lingered for long enough.
func (h *hub) forgetLingeringLocked(s *lingering, now time.Duration) {
	for s.first != nil && now-s.first.since >= h.srv.cfg.TopicLinger {
		h.forgetLocked(s, s.first)
	}
}

func (h *hub) lingeringOf(name string) *lingering { return &h.lingering[h.topics.number(name)] }

// newTopic begins a topic that the bus has to be asked for.
func (h *hub) newTopic(name string) *topic {
	policy := policyOf(h.srv.cfg.overflow(name))
	return &topic{flow: engine.Flow{Name: strings.Clone(name)}, epoch: unready, born: h.nextEpoch()<<2 | uint32(policy)}
}
