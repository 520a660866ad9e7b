package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tocsin-push/tocsin/wire"
)

// simTargets has backends subscribe and unsubscribe connections, disconnect them,
// and ask who is where.
func simTargets(w *world) feature {
	s := &targets{w: w, p: &publishers{w: w, l: &w.ledger}}
	return feature{
		events: []happening{
			{"a backend subscribes somebody", 30, s.subscribe},
			{"a backend unsubscribes somebody", 15, s.unsubscribe},
			{"a client and a backend are of two minds", 10, s.quarrel},
			{"a backend disconnects somebody", 5, s.disconnect},
			{"a backend asks for somebody's topics", 10, s.topics},
			{"a backend asks for a topic's subscribers", 10, s.subscribers},
			{"a backend looks at a list", 20, s.look},
		},
		relax: s.relax,
		calm:  s.calm,
	}
}

type targets struct {
	w     *world
	p     *publishers
	codes wire.CloseCode // how many were used
}

// simAims is what backends have done to a client, or may have.
type simAims struct {
	on, off map[string]bool     // topics that it was subscribed to, or unsubscribed from
	must    map[string]bool     // topics that it is on, or will be told that it is
	most    map[string]Position // at the latest there it joins
	offs    map[string]int      // unsubscribes that have begun or ended
	leaving map[string]int      // backends that are about to unsubscribe it
	ends    wire.CloseCode      // it is being disconnected
	omitted string              // a list that it must have been on if it is there all the time
	absent  []simAbsence        // the same of topics
}

// simAbsence is a list without a client or without its topic.
type simAbsence struct {
	what, topic string
	offs        int
	place       *simPlace // it may have left that, and not have read so
}

func newAims() simAims {
	return simAims{
		on: map[string]bool{}, off: map[string]bool{}, must: map[string]bool{}, most: map[string]Position{},
		offs: map[string]int{}, leaving: map[string]int{},
	}
}

// enrolled takes an ok without an id.
func (c *simClient) enrolled(ok *wire.OK) {
	if !c.aims.on[ok.Topic] {
		c.w.fail("client %d is told %+v, and nobody has subscribed it", c.id, *ok)
	}
	if most, late := c.aims.most[ok.Topic]; late && most.Epoch == ok.Epoch && ok.Seq > most.Seq {
		c.w.fail("client %d joins %s at %d; when it had been subscribed that was at %+v", c.id, ok.Topic, ok.Seq, most)
	}
	delete(c.aims.most, ok.Topic)
}

// leaves notes that it may be taken off a topic from now on.
func (c *simClient) leaves(topic string) {
	c.aims.offs[topic]++
	delete(c.aims.must, topic)
	delete(c.aims.most, topic)
}

// steady reports whether nobody takes it off a topic now.
func (c *simClient) steady(topic string) bool {
	for _, a := range c.asked {
		if a.verb == "unsubscribe" && a.topic == topic {
			return false
		}
	}
	return c.aims.leaving[topic] == 0
}

// is reports whether a client is one of a target's.
func (to Target) is(c *simClient) bool {
	return to.User != "" && c.user == to.User || to.Conn != "" && c.Ref != 0 && c.name() == to.Conn
}

// target is one that there is or was. Nobody can know the id of a connection that
// is still to come.
func (s *targets) target() (to Target, ok bool) {
	to, ok = s.p.target()
	return to, ok && slices.ContainsFunc(s.w.clients, to.is)
}

// there returns the clients of a target that the server must know of if they stay
// there.
func (s *targets) there(to Target) (all []*simClient) {
	for _, c := range s.w.clients {
		if to.is(c) && c.open() {
			all = append(all, c)
		}
	}
	return all
}

// concerned returns all that may be its.
func (s *targets) concerned(to Target) (all []*simClient) {
	for _, c := range s.w.clients {
		if to.is(c) && !c.Gone {
			all = append(all, c)
		}
	}
	return all
}

// judgeError judges the error of a call about a target; there are those who were
// its connections when it began.
func (s *targets) judgeError(ctx context.Context, what string, there []*simClient, err error) {
	switch {
	case err == nil, errors.Is(err, ErrClosed) && s.w.stopping, ctx.Err() != nil && errors.Is(err, ctx.Err()):
	case errors.Is(err, ErrTopicUnavailable) && s.w.bus != nil:
	case errors.Is(err, ErrTooManyTopics) && strings.HasPrefix(what, "subscribe"):
	case errors.Is(err, ErrNobody):
		for _, c := range there {
			c.aims.omitted = what + ", which found nobody"
		}
	default:
		s.w.fail("%s: %v", what, err)
	}
}

func (s *targets) subscribe() bool {
	to, ok := s.target()
	if ok {
		s.putOn(to, some(s.w, simTopics))
	}
	return ok
}

// putOn has a backend subscribe a target.
func (s *targets) putOn(to Target, topic string) {
	there, offs := s.there(to), map[*simClient]int{}
	most := len(s.concerned(to))
	for _, c := range s.concerned(to) {
		c.aims.on[topic] = true
		if offs[c] = c.aims.offs[topic]; !c.steady(topic) {
			offs[c] = -1 // it may end right behind
		}
	}
	what := fmt.Sprintf("subscribe %s to %s", to, topic)
	s.w.call(what, func(ctx context.Context) func() {
		n, err := s.w.srv.Subscribe(ctx, to, topic)
		at, _, _ := s.w.srv.Topic(topic)
		return func() {
			s.judgeError(ctx, what, there, err)
			if n > most {
				s.w.fail("%s: %d are subscribed, the target has %d connections", what, n, most)
			}
			if err != nil {
				return
			}
			for _, c := range there {
				if c.raw || c.aims.offs[topic] != offs[c] || !c.steady(topic) {
					continue
				}
				c.aims.must[topic] = true
				if c.at[topic] == nil {
					c.aims.most[topic] = at
				}
			}
		}
	})
}

func (s *targets) unsubscribe() bool {
	to, ok := s.target()
	if ok {
		s.takeOff(to, some(s.w, simTopics))
	}
	return ok
}

// takeOff has a backend unsubscribe a target.
func (s *targets) takeOff(to Target, topic string) {
	there, all := s.there(to), s.concerned(to)
	for _, c := range all {
		c.aims.off[topic] = true
		c.aims.leaving[topic]++
		c.leaves(topic)
	}
	what := fmt.Sprintf("unsubscribe %s from %s", to, topic)
	s.w.call(what, func(ctx context.Context) func() {
		n, err := s.w.srv.Unsubscribe(ctx, to, topic)
		return func() {
			s.judgeError(ctx, what, there, err)
			if n > len(all) {
				s.w.fail("%s: %d were subscribed, the target has %d connections", what, n, len(all))
			}
			for _, c := range all {
				c.leaves(topic)
				if err == nil || errors.Is(err, ErrNobody) { // else it may happen later
					c.aims.leaving[topic]--
				}
			}
		}
	})
}

// quarrel has a client and a backend put it on a topic and take it off, before
// the server has done anything.
func (s *targets) quarrel() bool {
	c := (&clientele{w: s.w}).one(commands)
	if c == nil || c.Ref == 0 {
		return false
	}
	to, topic := Target{Conn: c.name()}, some(s.w, simTopics)
	for range 2 + s.w.Rng.IntN(4) {
		switch s.w.Rng.IntN(5) {
		case 0, 1:
			c.command(&simAsk{verb: "subscribe", topic: topic}, `"subscribe":{"topic":%q}`, topic)
		case 2:
			c.leaves(topic)
			c.command(&simAsk{verb: "unsubscribe", topic: topic}, `"unsubscribe":{"topic":%q}`, topic)
		case 3:
			s.putOn(to, topic)
		case 4:
			s.takeOff(to, topic)
		}
	}
	return true
}

func (s *targets) disconnect() bool {
	to, ok := s.target()
	if !ok || s.w.stopping {
		return false
	}
	s.codes++
	code := 4000 + s.codes%900
	there := s.there(to)
	for _, c := range s.concerned(to) {
		c.may = append(c.may, code)
	}
	_, err := s.w.srv.Disconnect(context.Background(), to, code, "")
	s.judgeError(context.Background(), "disconnect "+to.String(), there, err)
	if err == nil {
		for _, c := range there {
			c.aims.ends = code
		}
	}
	return true
}

// named returns the client of an id in a list, which must not have ended.
func (s *targets) named(what, id string, gone []string) *simClient {
	for _, c := range s.w.clients {
		if c.Ref != 0 && c.name() == id {
			if slices.Contains(gone, id) {
				s.w.fail("%s tells of %s, client %d, which had ended", what, id, c.id)
			}
			return c
		}
	}
	return nil
}

// gone returns the ids of clients that have ended for sure.
func (s *targets) gone() (ids []string) {
	for _, c := range s.w.clients {
		if c.Ref != 0 && (c.Gone || c.over != 0) {
			ids = append(ids, c.name())
		}
	}
	return ids
}

func (s *targets) topics() bool {
	to, ok := s.target()
	if !ok {
		return false
	}
	type on struct {
		c     *simClient
		topic string
		offs  int
		place *simPlace
	}
	var before []on
	there := s.there(to)
	for _, c := range there {
		for _, topic := range sorted(c.at) {
			if c.steady(topic) {
				before = append(before, on{c, topic, c.aims.offs[topic], c.at[topic]})
			}
		}
	}
	what := "topics of " + to.String()
	s.w.call(what, func(ctx context.Context) func() {
		list, err := s.w.srv.Topics(ctx, to)
		return func() {
			s.judgeError(ctx, what, there, err)
			if err != nil {
				return
			}
			for _, b := range before {
				if !slices.Contains(list, b.topic) {
					b.c.aims.absent = append(b.c.aims.absent, simAbsence{what, b.topic, b.offs, b.place})
				}
			}
		}
	})
	return true
}

func (s *targets) subscribers() bool {
	topic := some(s.w, simTopics)
	most := some(s.w, []int{1, 1000})
	gone, before, places := s.gone(), map[*simClient]int{}, map[*simClient]*simPlace{}
	for _, c := range s.w.clients {
		if c.open() && c.at[topic] != nil && c.steady(topic) {
			before[c], places[c] = c.aims.offs[topic], c.at[topic]
		}
	}
	what := "subscribers of " + topic
	s.w.call(what, func(ctx context.Context) func() {
		var list []Subscriber
		var err error
		for sub, e := range s.w.srv.Subscribers(ctx, topic) {
			if err = e; e != nil {
				break
			}
			if list = append(list, sub); len(list) == most {
				break
			}
		}
		return func() { s.listed(ctx, what, topic, list, err, gone, before, places, len(list) < most) }
	})
	return true
}

// listed judges a list of subscribers; whole says that nobody has ended it.
func (s *targets) listed(ctx context.Context, what, topic string, list []Subscriber, err error, gone []string, before map[*simClient]int, places map[*simClient]*simPlace, whole bool) {
	s.judgeError(ctx, what, nil, err)
	var ids []string
	for _, sub := range list {
		if slices.Contains(ids, sub.Conn) {
			s.w.fail("%s tells of %s twice", what, sub.Conn)
		}
		ids = append(ids, sub.Conn)
		if c := s.named(what, sub.Conn, gone); c != nil && c.user != sub.User {
			s.w.fail("%s has client %d as %+v, its user is %q", what, c.id, sub, c.user)
		}
	}
	if err != nil || !whole {
		return
	}
	for _, c := range s.w.clients {
		if offs, ok := before[c]; ok && !slices.Contains(ids, c.name()) {
			c.aims.absent = append(c.aims.absent, simAbsence{what, topic, offs, places[c]})
		}
	}
}

// look looks at what is told at once.
func (s *targets) look() bool {
	w := s.w
	c := some(w, w.clients)
	if c == nil || c.user == "" {
		st := w.srv.Stats()
		_, n, _ := w.srv.Topic(some(w, simTopics))
		if st.Connections < 0 || st.Subscriptions < n || st.PublishBytes < 0 || st.Connections+st.Handshaking > w.Alive()+w.guests {
			w.fail("%+v of %d connections, %d of them on one topic", st, w.Alive()+w.guests, n)
		}
		return true
	}
	what := "user " + c.user
	ids, gone := w.srv.User(c.user), s.gone()
	for _, id := range ids {
		if d := s.named(what, id, gone); d != nil && d.user != c.user {
			w.fail("%s has client %d of %q", what, d.id, d.user)
		}
	}
	for _, d := range s.there(Target{User: c.user}) {
		if !slices.Contains(ids, d.name()) {
			d.aims.omitted = what
		}
	}
	return true
}

// relax has backends go on while the server is shut down.
func (s *targets) relax() {
	if !s.w.stopping || s.w.called > 5000 || s.w.Rng.IntN(3) > 0 {
		return
	}
	some(s.w, []func() bool{s.subscribe, s.unsubscribe, s.topics, s.subscribers, s.look})()
}

// calm wants clients to know what was done to them, and the lists to be true.
func (s *targets) calm() {
	w := s.w
	on := map[string][]string{}
	for _, c := range w.clients {
		if !c.open() || c.Broken || c.raw {
			continue
		}
		a := &c.aims
		if a.ends != 0 || a.omitted != "" {
			w.fail("client %d is there, was disconnected with %d, and is missing from %q", c.id, a.ends, a.omitted)
		}
		for _, topic := range sorted(a.must) {
			if c.at[topic] == nil {
				w.fail("client %d was subscribed to %s, and is not told so", c.id, topic)
			}
		}
		for _, m := range a.absent {
			if c.at[m.topic] == m.place && a.offs[m.topic] == m.offs {
				w.fail("client %d is on %s, %s has not told so", c.id, m.topic, m.what)
			}
		}
		if len(c.at) > w.cfg.MaxTopics {
			w.fail("client %d is on %d topics", c.id, len(c.at))
		}
		for topic := range c.at {
			on[topic] = append(on[topic], c.name())
		}
		s.exactly("topics of client "+c.name(), sorted(c.at), func(ctx context.Context) ([]string, error) {
			return w.srv.Topics(ctx, Target{Conn: c.name()})
		})
	}
	unsure := slices.ContainsFunc(w.clients, func(c *simClient) bool { return !c.Gone && (!c.open() || c.Broken || c.raw) })
	for _, topic := range sorted(on) {
		if unsure {
			continue
		}
		slices.Sort(on[topic])
		s.exactly("subscribers of "+topic, on[topic], func(ctx context.Context) (list []string, err error) {
			for sub, e := range w.srv.Subscribers(ctx, topic) {
				list, err = append(list, sub.Conn), e
			}
			slices.Sort(list)
			return list, err
		})
	}
	w.rest()
}

// exactly wants a call to return that list.
func (s *targets) exactly(what string, want []string, list func(context.Context) ([]string, error)) {
	s.w.call(what, func(ctx context.Context) func() {
		got, err := list(ctx)
		return func() {
			if err != nil || !slices.Equal(got, want) {
				s.w.fail("%s: %q, %v, want %q", what, got, err, want)
			}
		}
	})
}
