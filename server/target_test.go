package server_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// wantSubscribed wants the notice that the server subscribed c, and returns the
// position.
func wantSubscribed(t *testing.T, c *wstest.Conn, topic string) wire.OK {
	t.Helper()
	e := c.Event()
	if e.OK == nil || e.ID != 0 || e.OK.Topic != topic || e.OK.Epoch == "" || e.OK.Recovered != nil {
		t.Fatalf("got %+v (%+v), want to be told of %s", e, e.OK, topic)
	}
	return *e.OK
}

func wantCancel(t *testing.T, c *wstest.Conn, topic string) {
	t.Helper()
	if e := c.Event(); e.Cancel == nil || e.Cancel.Topic != topic || e.Cancel.Reason == "" {
		t.Fatalf("got %+v, want the cancel of %s", e, topic)
	}
}

// The server subscribes and unsubscribes connections, whatever Allow says, and
// they are told in the order of what else they get (docs/faults.md A6).
func TestServerSubscribes(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{MaxTopics: 2, Allow: func(server.Conn, server.Action, string) error { return errors.New("no") }})
	a, wa := joined(t, addr, "/ws?user=ann")
	b, _ := joined(t, addr, "/ws?user=ann")
	raw := wstest.Dial(t, addr, "/ws?user=ann&format=raw")
	server.Eventually(t, "all", func() bool { return len(srv.User("ann")) == 3 })
	ctx := t.Context()
	do := func(n int, want error) func(int, error) {
		t.Helper()
		return func(got int, err error) {
			t.Helper()
			if got != n || !errors.Is(err, want) {
				t.Errorf("%d, %v, want %d, %v", got, err, n, want)
			}
		}
	}
	ann, one := server.Target{User: "ann"}, server.Target{Conn: wa.Conn}
	do(3, nil)(srv.Subscribe(ctx, ann, "news"))
	at := wantSubscribed(t, a, "news")
	wantSubscribed(t, b, "news")
	if r := publish(t, srv, "news", "1"); r.Written != 3 || r.Seq != at.Seq+1 {
		t.Errorf("%+v behind %+v", r, at)
	}
	wantMessage(t, a, "news", "1")
	wantMessage(t, b, "news", "1")
	raw.WantText("1")
	do(3, nil)(srv.Subscribe(ctx, ann, "news")) // nothing to tell

	do(1, nil)(srv.Subscribe(ctx, one, "sport"))
	wantSubscribed(t, a, "sport")
	do(2, server.ErrTooManyTopics)(srv.Subscribe(ctx, ann, "third"))
	wantSubscribed(t, b, "third")

	do(3, nil)(srv.Unsubscribe(ctx, ann, "news"))
	wantCancel(t, a, "news")
	wantCancel(t, b, "news")
	do(0, nil)(srv.Unsubscribe(ctx, ann, "news"))
	wantError(t, command(t, a, `{"id":1,"subscribe":{"topic":"news"}}`), wire.Forbidden)
	if r := publish(t, srv, "news", "2"); r.Subscribers != 0 {
		t.Errorf("%+v", r)
	}

	do(0, server.ErrNobody)(srv.Subscribe(ctx, server.Target{User: "bob"}, "news"))
	do(0, server.ErrNobody)(srv.Unsubscribe(ctx, server.Target{Conn: "nonsense"}, "news"))
	do(0, server.ErrBadMessage)(srv.Subscribe(ctx, ann, "a b"))
	do(0, server.ErrBadMessage)(srv.Subscribe(ctx, server.Target{}, "news"))
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := srv.Topics(over, ann); err != nil && !errors.Is(err, context.Canceled) { // it may have been faster
		t.Error(err)
	}
	if st := srv.Stats(); st.Subscriptions != 3 {
		t.Errorf("%d subscriptions", st.Subscriptions)
	}
	a.Drop()
	server.Eventually(t, "ann's first to go", func() bool { return len(srv.User("ann")) == 2 })
	do(0, server.ErrNobody)(srv.Subscribe(ctx, one, "news"))
	for _, c := range []*wstest.Conn{b, raw} {
		c.WantNothing()
	}
}

// A hook subscribes its connection, and takes that back.
func TestConnSubscribes(t *testing.T) {
	t.Parallel()
	failed := make(chan error, 10)
	conns := make(chan server.Conn, 1)
	srv, addr := serve(t, server.Config{
		MaxTopics: 2,
		OnOpen: func(c server.Conn) {
			failed <- c.Subscribe("user-" + c.User())
			failed <- c.Subscribe("news")
			failed <- c.Subscribe("third")
			conns <- c
		},
		OnClose: func(c server.Conn, _ int) {
			failed <- c.Subscribe("news")
			c.Unsubscribe("news")
		},
	})
	c, w := joined(t, addr, "/ws?user=ann")
	wantSubscribed(t, c, "user-ann")
	wantSubscribed(t, c, "news")
	for _, want := range []error{nil, nil, server.ErrTooManyTopics} {
		if err := <-failed; !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if got, err := srv.Topics(t.Context(), server.Target{Conn: w.Conn}); err != nil || !slices.Equal(got, []string{"news", "user-ann"}) {
		t.Errorf("%q, %v", got, err)
	}
	conn := <-conns
	conn.Unsubscribe("nothing")
	conn.Unsubscribe("news")
	wantCancel(t, c, "news")
	if e := command(t, c, `{"id":1,"subscribe":{"topic":"news"}}`); e.OK == nil {
		t.Errorf("%+v", e.Error)
	}
	publish(t, srv, "news", "1")
	wantMessage(t, c, "news", "1")
	c.Drop()
	if err := <-failed; !errors.Is(err, server.ErrNobody) {
		t.Errorf("of a connection that has ended: %v", err)
	}
}

// Whatever a client and the server do with one subscription at the same time,
// what the client was told last is how it is.
func TestSubscriptionsAreToldInOrder(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	c, w := joined(t, addr, "/ws")
	other, _ := joined(t, addr, "/ws?topics=t") // keeps the topic busy
	one := server.Target{Conn: w.Conn}
	done := make(chan error, 1)
	rounds := server.Size(2000)
	go func() {
		for i := range rounds {
			var err error
			if i%2 == 0 {
				_, err = srv.Subscribe(context.Background(), one, "t")
			} else {
				_, err = srv.Unsubscribe(context.Background(), one, "t")
			}
			if err == nil {
				_, err = srv.Publish(context.Background(), "t", server.Message{Data: []byte("1")})
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for i := range rounds {
		c.Send(wstest.Text(fmt.Sprintf(`{"id":%d,"subscribe":{"topic":"t"}}`, i+1)))
		other.Event()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	told := false
	read := func(until string) {
		c.Send(wstest.Text(fmt.Sprintf(`{"id":%q,"ping":{}}`, until)))
		for {
			text := string(c.NextFrame().Payload)
			switch {
			case strings.Contains(text, `"id":"`+until+`","ok"`):
				return
			case strings.Contains(text, `"ok":{"topic"`):
				told = true
			case strings.Contains(text, `"cancel"`):
				told = false
			case !told && strings.HasPrefix(text, `{"topic":"t"`):
				t.Fatalf("a message without a subscription: %s", text)
			}
		}
	}
	// A ping is answered at once, a subscribe at its place among the messages. So
	// the server has read all of them with the first, and two looks at the
	// connection, which come at their place too, let all answers out.
	read("all read")
	for range 2 {
		if _, err := srv.Topics(t.Context(), one); err != nil {
			t.Fatal(err)
		}
	}
	read("all answered")
	topics, err := srv.Topics(t.Context(), one)
	if err != nil || told != (len(topics) == 1) {
		t.Errorf("told %v, it has %q, %v", told, topics, err)
	}
}

// Lists of topics and subscribers are complete, and can be left early.
func TestSubscribersAndTopics(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	want := map[string]string{}
	for i := range 600 { // more than one slice of a shard
		c, w := joined(t, addr, fmt.Sprintf("/ws?user=u%d&topics=news,own%d,%%61", i%7, i))
		_ = c
		want[w.Conn] = w.User
	}
	joined(t, addr, "/ws?user=u0&topics=other")
	got := map[string]string{}
	for s, err := range srv.Subscribers(t.Context(), "news") {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[s.Conn]; twice {
			t.Errorf("%s comes twice", s.Conn)
		}
		got[s.Conn] = s.User
	}
	if len(got) != len(want) {
		t.Errorf("%d subscribers, want %d", len(got), len(want))
	}
	for conn, user := range got {
		if want[conn] != user {
			t.Errorf("%s is %s, want %s", conn, user, want[conn])
		}
	}
	n := 0
	for range srv.Subscribers(t.Context(), "news") {
		if n++; n == 300 {
			break
		}
	}
	for s := range srv.Subscribers(t.Context(), "nothing") {
		t.Errorf("%+v subscribes to nothing", s)
	}
	topics, err := srv.Topics(t.Context(), server.Target{User: "u0"})
	if err != nil || len(topics) != 600/7+1+3 || topics[0] != "a" || !slices.IsSorted(topics) || !slices.Contains(topics, "other") {
		t.Errorf("%d topics %.60q, %v", len(topics), topics, err)
	}
	if _, err := srv.Topics(t.Context(), server.Target{User: "nobody"}); !errors.Is(err, server.ErrNobody) {
		t.Error(err)
	}
	if _, err := srv.Topics(t.Context(), server.Target{}); !errors.Is(err, server.ErrBadMessage) {
		t.Error(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for s, err := range srv.Subscribers(over, "news") {
		if err != nil && (!errors.Is(err, context.Canceled) || s != server.Subscriber{}) {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

// A server that has ended answers at once.
func TestAskingAServerThatEnded(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{CloseTimeout: time.Millisecond})
	_, w := joined(t, addr, "/ws?user=ann")
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Subscribe(context.Background(), server.Target{Conn: w.Conn}, "news"); !errors.Is(err, server.ErrClosed) {
		t.Error(err)
	}
	if _, err := srv.Topics(context.Background(), server.Target{Conn: w.Conn}); !errors.Is(err, server.ErrClosed) {
		t.Error(err)
	}
}
