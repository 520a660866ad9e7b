package server

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// User returns the ids of the user's connections, none if there are none.
func (srv *Server) User(name string) []string {
	var conns []string
	for _, r := range srv.hub.devices(nil, name) {
		conns = append(conns, srv.ids.name(r))
	}
	return conns
}

// Topic returns where a topic stands and how many connections are subscribed
// to it; ok is false if none is, nor was for Config.TopicLinger.
func (srv *Server) Topic(name string) (at Position, subscribers int, ok bool) {
	st := srv.hub.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := srv.hub.findLocked(st, name)
	if t == nil || !t.ready() {
		return Position{}, 0, false
	}
	subscribers, _ = t.subscribers()
	return Position(srv.hub.position(t)), subscribers, true
}

// Topics returns the topics that the connections of a target are subscribed to,
// sorted. Errors wrap [ErrNobody], [ErrBadMessage], [ErrClosed] or ctx's.
func (srv *Server) Topics(ctx context.Context, of Target) ([]string, error) {
	if err := of.check(); err != nil {
		return nil, fmt.Errorf("topics: %w", err)
	}
	refs := srv.resolve(nil, of)
	lists := make([]topicList, len(refs))
	told := make(told, len(refs))
	for i, r := range refs {
		lists[i] = topicList{srv: srv, told: told}
		srv.engine.Ask(r, &lists[i])
	}
	if err := srv.waitAll(ctx, told, len(refs)); err != nil {
		return nil, fmt.Errorf("topics: %w", err)
	}
	topics, there := []string{}, false
	for _, l := range lists {
		topics, there = append(topics, l.topics...), there || l.there
	}
	if !there {
		return nil, fmt.Errorf("topics: %w: %s has no connection", ErrNobody, of)
	}
	slices.Sort(topics)
	return slices.Compact(topics), nil
}

// topicList is the topics of one connection.
type topicList struct {
	srv  *Server
	told told

	there  bool
	topics []string
}

// Do implements engine.Task.
func (l *topicList) Do(t *engine.Turn, c *engine.Conn) {
	defer l.told.tell()
	if c == nil || !c.Open() {
		return
	}
	l.there = true
	for sub := range l.srv.session(t, c).each {
		l.topics = append(l.topics, sub.topic.flow.Name)
	}
	if s := l.srv.session(t, c); s.more != nil {
		for _, k := range s.more.catching {
			l.topics = append(l.topics, k.topic.flow.Name)
		}
	}
}

// Subscriber is a connection that is subscribed to a topic.
type Subscriber struct {
	Conn string // its id
	User string // "" if there is none
}

// Subscribers yields the connections that are subscribed to a topic, in no
// particular order, and at last an error if it had to stop early: one that wraps
// [ErrClosed] or ctx's. They are asked for a few hundred at a time, so whoever
// needs only some ends the loop; those who come and go meanwhile may be there or
// not.
func (srv *Server) Subscribers(ctx context.Context, topic string) iter.Seq2[Subscriber, error] {
	return func(yield func(Subscriber, error) bool) {
		for _, sub := range srv.hub.subsets(topic) {
			q := &roll{srv: srv, sub: sub, told: make(told, 1)}
			for !q.end {
				q.members = q.members[:0]
				srv.engine.AskShard(int(sub.shard), q)
				if err := srv.wait(ctx, q.told); err != nil {
					yield(Subscriber{}, fmt.Errorf("subscribers of %q: %w", topic, err))
					return
				}
				for _, m := range q.members {
					if !yield(Subscriber{srv.ids.name(m.ref), m.user}, nil) {
						return
					}
				}
			}
		}
	}
}

// subsets returns those of a topic.
func (h *hub) subsets(name string) (subs []*subset) {
	st := h.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	if at := st.find(name); at != nil {
		for sub := (*at).subs; sub != nil; sub = sub.next {
			subs = append(subs, sub)
		}
	}
	return subs
}

// rollSlice is how many subscribers a turn tells of at once.
const rollSlice = 256

// roll asks for a part of a subset's members.
type roll struct {
	srv  *Server
	sub  *subset
	told told

	next    int // the place to go on at
	end     bool
	members []member
}

type member struct {
	ref  engine.Ref
	user string
}

// Do implements engine.Task.
func (q *roll) Do(t *engine.Turn, _ *engine.Conn) {
	defer q.told.tell()
	for range rollSlice {
		c := q.sub.group.Next(t, q.next)
		if c == nil {
			q.end = true
			return
		}
		q.members = append(q.members, member{c.Ref(), q.srv.session(t, c).user})
		q.next = t.Index(c) + 1
	}
}
