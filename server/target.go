package server

import (
	"cmp"
	"context"
	"fmt"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// String describes the target for an error message.
func (t Target) String() string {
	if t.User != "" {
		return fmt.Sprintf("user %q", t.User)
	}
	return fmt.Sprintf("conn %q", t.Conn)
}

func (t Target) check() error {
	if (t.User == "") == (t.Conn == "") {
		return fmt.Errorf("%w: give either user or conn", ErrBadMessage)
	}
	if t.User != "" {
		if err := wire.CheckUser(t.User); err != nil {
			return fmt.Errorf("%w: %s", ErrBadMessage, err.Message)
		}
	}
	return nil
}

// resolve appends the connections that t names to dst. Some of them may have
// ended meanwhile.
func (srv *Server) resolve(dst []engine.Ref, t Target) []engine.Ref {
	if t.User != "" {
		return srv.hub.devices(dst, t.User)
	}
	if r, ok := srv.ids.parse(t.Conn); ok {
		dst = append(dst, r)
	}
	return dst
}

// Disconnect closes the connections of a target and returns how many it asked
// to close. Code must be 1000 or 3000 to 4999; 0 means 3503, which tells clients
// to stay away. An empty reason means the code's own words. Errors wrap
// [ErrNobody] or [ErrBadMessage].
func (srv *Server) Disconnect(_ context.Context, to Target, code wire.CloseCode, reason string) (int, error) {
	setDefault(&code, wire.CloseForceDisconnect)
	if !code.ForApps() {
		return 0, fmt.Errorf("disconnect: %w: code is %d, it must be 1000 or 3000 to 4999", ErrBadMessage, code)
	}
	if reason == "" {
		reason = code.String()
	}
	if err := to.check(); err != nil {
		return 0, fmt.Errorf("disconnect: %w", err)
	}
	refs := srv.resolve(nil, to)
	if len(refs) == 0 {
		return 0, fmt.Errorf("disconnect: %w: %s has no connection", ErrNobody, to)
	}
	for _, r := range refs {
		srv.engine.Close(r, code, reason)
	}
	return len(refs), nil
}

// Subscribe subscribes the connections of a target to a topic, as if each had
// asked for it, but without asking anybody whether it may. Those who were not
// subscribed are told by an ok with the topic and without an id. It returns how
// many are subscribed now. The connections receive every message that is
// published after Subscribe has returned. Errors wrap [ErrNobody],
// [ErrBadMessage], [ErrClosed], [ErrTopicUnavailable], [ErrTooManyTopics] for at
// least one of the connections, or ctx's: it is then not known who is subscribed.
func (srv *Server) Subscribe(ctx context.Context, to Target, topic string) (int, error) {
	n, err := srv.enroll(ctx, to, topic, false)
	if err != nil {
		err = fmt.Errorf("subscribe: %w", err)
	}
	return n, err
}

// Unsubscribe ends the subscriptions of a target's connections to a topic and
// returns how many there were; their clients are told by a cancel. They may
// subscribe again if they are allowed to. Errors are those of Subscribe.
func (srv *Server) Unsubscribe(ctx context.Context, to Target, topic string) (int, error) {
	n, err := srv.enroll(ctx, to, topic, true)
	if err != nil {
		err = fmt.Errorf("unsubscribe: %w", err)
	}
	return n, err
}

// enroll subscribes the connections of a target to a topic, or unsubscribes
// them, each in its turn.
func (srv *Server) enroll(ctx context.Context, to Target, topic string, off bool) (int, error) {
	if err := wire.CheckTopic(topic); err != nil {
		return 0, fmt.Errorf("%w: %s", ErrBadMessage, err.Message)
	}
	if err := to.check(); err != nil {
		return 0, err
	}
	if srv.engine.Ended() {
		return 0, ErrClosed
	}
	refs := srv.resolve(nil, to)
	if !off && len(refs) > 0 {
		held, ready := srv.hub.hold(topic)
		all := holds(held)
		defer srv.hub.release(all)
		if !ready {
			if err := srv.ready(ctx, all); err != nil {
				return 0, err
			}
		}
	}
	tasks := make([]enrollment, len(refs))
	told := make(told, len(refs))
	for i, r := range refs {
		tasks[i] = enrollment{srv: srv, topic: topic, off: off, told: told}
		srv.engine.Ask(r, &tasks[i])
	}
	if err := srv.waitAll(ctx, told, len(refs)); err != nil {
		return 0, err
	}
	n, there := 0, 0
	var err error
	for i := range tasks {
		switch e := &tasks[i]; {
		case e.err != nil:
			there++
			err = e.err
		case e.there:
			there++
			if e.done {
				n++
			}
		}
	}
	if there == 0 {
		err = fmt.Errorf("%w: %s has no connection", ErrNobody, to)
	}
	return n, err
}

// holds is a list of topics, where their type's name means something else.
func holds(topics ...*topic) []*topic { return topics }

// ready waits until topics, which are held, are ready.
func (srv *Server) ready(ctx context.Context, topics []*topic) error {
	var err error
	_, refused := srv.hub.awaitAll(topics, func(woken <-chan struct{}) bool {
		err = srv.wait(ctx, woken)
		return err == nil
	})
	return cmp.Or(err, refused)
}

// told is how a goroutine waits for what it asked turns to do: there is a token
// for each. What it asked is the turn's until it is told.
type told chan struct{}

func (w told) tell() { w <- struct{}{} }

// waitAll waits for n to be done. After an error some are not.
func (srv *Server) waitAll(ctx context.Context, w told, n int) error {
	for range n {
		if err := srv.wait(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// enrollment subscribes one connection for a backend, or unsubscribes it.
type enrollment struct {
	srv   *Server
	topic string
	off   bool
	told  told

	there, done bool
	err         error
}

// Do implements engine.Task.
func (e *enrollment) Do(t *engine.Turn, c *engine.Conn) {
	defer e.told.tell()
	if c == nil || !c.Open() {
		return
	}
	e.there = true
	s := e.srv.session(t, c)
	switch {
	case e.off:
		e.done = e.leave(t, c, s)
	case s.has(e.topic):
		e.done = true
	case e.srv.full(s):
		e.err = fmt.Errorf("%w: the limit is %d", ErrTooManyTopics, e.srv.cfg.MaxTopics)
	default:
		e.done = e.enter(t, c, s)
	}
}

// leave takes c out of the topic. It is told at once, or behind the answer to its
// subscribe if that is on its way.
func (e *enrollment) leave(t *engine.Turn, c *engine.Conn, s *session) bool {
	sub := s.find(e.topic)
	waits := sub != nil && !sub.group.Has(t, c)
	done := e.srv.unsubscribe(t, c, e.topic)
	switch told := (cancelled{e.srv, e.topic}); {
	case waits:
		e.srv.engine.Behind(&sub.group, c.Ref(), told)
	case done:
		told.Do(t, c)
		if s.more != nil {
			for _, e := range s.more.again {
				e.ended = e.ended || e.sub == sub
			}
		}
	}
	return done
}

// enter joins c to the topic, which enroll holds: that it is not ready any more is
// for a caller who has gone.
func (e *enrollment) enter(t *engine.Turn, c *engine.Conn, s *session) bool {
	held, ready := e.srv.hub.hold(e.topic)
	if !ready {
		e.srv.hub.release([]*topic{held})
		e.err = ErrTopicUnavailable
		return false
	}
	s.add(e.srv.hub.enter(held, t.Shard(), func(sub *subset, at wire.Position) {
		e.srv.engine.Behind(&sub.group, c.Ref(), &enrolled{e.srv, sub, at})
	}))
	return true
}

// enrolled is a subscription by the server that takes effect in its turn.
type enrolled struct {
	srv *Server
	sub *subset
	at  wire.Position
}

// Do implements engine.Task.
func (e *enrolled) Do(t *engine.Turn, c *engine.Conn) {
	if c.Open() && e.srv.takeEffect(t, c, e.sub) {
		t.Send(c, codecs[c.Codec()].AppendSubscribed(nil, e.sub.topic.flow.Name, e.at))
	}
}

// cancelled tells that the server has ended a subscription.
type cancelled struct {
	srv   *Server
	topic string
}

// Do implements engine.Task.
func (e cancelled) Do(t *engine.Turn, c *engine.Conn) {
	if !c.Open() {
		return
	}
	s := e.srv.session(t, c)
	if sub := s.find(e.topic); sub == nil && !s.has(e.topic) || sub != nil && !sub.group.Has(t, c) { // else it was renewed, and that was told
		t.Send(c, codecs[c.Codec()].AppendCancel(nil, wire.Cancel{Topic: e.topic, Reason: "unsubscribed"}))
	}
}
