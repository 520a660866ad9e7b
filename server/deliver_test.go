package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// serve starts a server that ends with the test.
func serve(t *testing.T, cfg server.Config) (srv *server.Server, addr string) {
	t.Helper()
	cfg.Dev = cfg.Auth == nil
	if cfg.Drain == 0 {
		cfg.Drain = time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wstest.Timeout)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, server.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
		if st := srv.Stats(); st.Connections+st.Users+st.Topics+st.Subscriptions+st.ShardMax+st.Handshaking != 0 || st.OutboxBytes != 0 || st.PublishBytes != 0 {
			t.Errorf("left behind: %+v", st)
		}
	})
	return srv, ln.Addr().String()
}

// joined opens a connection and returns it with its welcome.
func joined(t *testing.T, addr, path string) (*wstest.Conn, wire.Welcome) {
	t.Helper()
	c := wstest.Dial(t, addr, path)
	return c, c.WantWelcome()
}

// command sends a command and returns its answer, which must come next.
func command(t *testing.T, c *wstest.Conn, text string) wire.Event {
	t.Helper()
	c.Send(wstest.Text(text))
	return c.Event()
}

func wantError(t *testing.T, e wire.Event, code wire.ErrorCode) {
	t.Helper()
	if e.Error == nil || e.Error.Code != code || e.Error.Message == "" {
		t.Fatalf("got %+v (%+v), want error %s", e, e.Error, code)
	}
}

func wantMessage(t *testing.T, c *wstest.Conn, topic, data string) wire.Message {
	t.Helper()
	e := c.Event()
	if e.Message == nil || e.Message.Topic != topic || string(e.Message.Data) != data {
		t.Fatalf("got %+v, want %s on %s", e, data, topic)
	}
	return *e.Message
}

func publish(t *testing.T, srv *server.Server, topic, data string) server.Receipt {
	t.Helper()
	r, err := srv.Publish(t.Context(), topic, server.Message{Data: []byte(data), Wait: server.WaitSent})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDelivery(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	a, wa := joined(t, addr, "/ws?user=ann&topics=news,sport")
	b, wb := joined(t, addr, "/ws?user=ann")
	c, wc := joined(t, addr, "/ws")
	if wa.User != "ann" || len(wa.Topics) != 2 || wa.Topics["news"].Epoch == "" || wc.User != "" || wa.Conn == wb.Conn || wa.Ping != 25 {
		t.Fatalf("welcomes %+v, %+v, %+v", wa, wb, wc)
	}
	server.Eventually(t, "the subscriptions", func() bool { return srv.Stats().Subscriptions == 2 })

	r := publish(t, srv, "news", `{"n":1}`)
	if r.Subscribers != 1 || r.Written != 1 || r.Seq != wa.Topics["news"].Seq+1 || r.Epoch != wa.Topics["news"].Epoch || r.ID == "" {
		t.Errorf("receipt %+v", r)
	}
	if m := wantMessage(t, a, "news", `{"n":1}`); m.Seq != r.Seq || m.ID != r.ID {
		t.Errorf("got %+v, the receipt says %+v", m, r)
	}

	r, err := srv.Push(t.Context(), server.Target{User: "ann"}, server.Message{Data: []byte("2"), ID: "two", Wait: server.WaitSent})
	if err != nil || r.ID != "two" || r.Subscribers != 2 || len(r.Devices) != 2 || r.Devices[0].Status != server.StatusWritten {
		t.Errorf("push: %+v, %v", r, err)
	}
	for _, conn := range []*wstest.Conn{a, b} {
		wantMessage(t, conn, "$user", "2")
	}
	if got := srv.User("ann"); len(got) != 2 || !slices.Contains(got, wa.Conn) || !slices.Contains(got, wb.Conn) {
		t.Errorf("ann's connections are %v", got)
	}

	if _, err := srv.Push(t.Context(), server.Target{Conn: wc.Conn}, server.Message{Data: []byte("3"), Wait: server.WaitSent}); err != nil {
		t.Error(err)
	}
	wantMessage(t, c, "$user", "3")

	r, err = srv.Broadcast(t.Context(), server.Message{Data: []byte("4"), Wait: server.WaitSent})
	if err != nil || r.Written != 3 {
		t.Errorf("broadcast: %+v, %v", r, err)
	}
	for _, conn := range []*wstest.Conn{a, b, c} {
		wantMessage(t, conn, "$all", "4")
		conn.WantNothing()
	}
	server.Eventually(t, "them to leave", func() bool { return srv.Stats().Connections == 0 })
	if st := srv.Stats(); st.Closes[server.CloseKind{Code: wire.CloseNormal, By: "client"}] != 3 || st.Deliveries != 7 || st.Published != 4 {
		t.Errorf("%+v", st)
	}
}

func TestRefusedPublishes(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{MaxPublish: 100})
	_, w := joined(t, addr, "/ws?user=ann&topics=t")
	ok := []byte("1")
	long := strings.Repeat("x", 200)
	topic := func(name string, m server.Message) error { _, err := srv.Publish(t.Context(), name, m); return err }
	push := func(to server.Target) error {
		_, err := srv.Push(t.Context(), to, server.Message{Data: ok})
		return err
	}
	for name, c := range map[string]struct{ got, want error }{
		"no data":        {topic("t", server.Message{}), server.ErrBadMessage},
		"not JSON":       {topic("t", server.Message{Data: []byte("{")}), server.ErrBadMessage},
		"not UTF-8":      {topic("t", server.Message{Data: []byte("\"\xff\"")}), server.ErrBadMessage},
		"too deep":       {topic("t", server.Message{Data: []byte(strings.Repeat("[", 40) + strings.Repeat("]", 40))}), server.ErrBadMessage},
		"too big":        {topic("t", server.Message{Data: []byte(`"` + long + `"`)}), server.ErrTooBig},
		"long id":        {topic("t", server.Message{Data: ok, ID: long}), server.ErrBadMessage},
		"long key":       {topic("t", server.Message{Data: ok, IdempotencyKey: long}), server.ErrBadMessage},
		"long collapse":  {topic("t", server.Message{Data: ok, CollapseKey: long}), server.ErrBadMessage},
		"urgency":        {topic("t", server.Message{Data: ok, Urgency: "now"}), server.ErrBadMessage},
		"rate":           {topic("t", server.Message{Data: ok, Rate: 1}), server.ErrBadMessage},
		"negative ttl":   {topic("t", server.Message{Data: ok, TTL: -1}), server.ErrBadMessage},
		"reserved topic": {topic("$all", server.Message{Data: ok}), server.ErrBadMessage},
		"empty topic":    {topic("", server.Message{Data: ok}), server.ErrBadMessage},
		"nobody":         {topic("other", server.Message{Data: ok}), nil},
		"no user":        {push(server.Target{User: "bob"}), server.ErrNobody},
		"no connection":  {push(server.Target{Conn: strings.Repeat("A", 22)}), server.ErrNobody},
		"no target":      {push(server.Target{}), server.ErrBadMessage},
		"two targets":    {push(server.Target{User: "ann", Conn: w.Conn}), server.ErrBadMessage},
		"fine":           {topic("t", server.Message{Data: ok, Urgency: "very-low"}), nil},
	} {
		if !errors.Is(c.got, c.want) || c.want == nil && c.got != nil {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	if st := srv.Stats(); st.PublishRejects["bad_message"] != 14 || st.PublishRejects["too_big"] != 1 || st.PublishRejects["nobody"] != 2 {
		t.Errorf("rejects %v", st.PublishRejects)
	}
}

// A topic that nobody listens to, or a server without clients, is no error.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	srv, _ := serve(t, server.Config{})
	for _, wait := range []server.Wait{server.WaitNone, server.WaitSent} {
		m := server.Message{Data: []byte("1"), Wait: wait}
		r1, err1 := srv.Publish(t.Context(), "t", m)
		r2, err2 := srv.Broadcast(t.Context(), m)
		for _, r := range []server.Receipt{r1, r2} {
			if r.ID == "" || r.Subscribers+r.Written+r.Queued+r.Dropped != 0 {
				t.Errorf("%+v", r)
			}
		}
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
		}
	}
	if st := srv.Stats(); st.Published != 4 || len(st.PublishRejects) != 0 {
		t.Errorf("%d published, rejects %v", st.Published, st.PublishRejects)
	}
}

// Every way of sending tells the urgency, but for the default.
func TestUrgencyReachesClients(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	c, _ := joined(t, addr, "/ws?user=ann&topics=t")
	raw := wstest.Dial(t, addr, "/ws?user=ann&topics=t&format=raw")
	server.Eventually(t, "the subscriptions", func() bool { return srv.Stats().Subscriptions == 2 })
	for given, want := range map[string]string{"": "", "very-low": "very-low", "low": "low", "normal": "", "high": "high"} {
		m := server.Message{Data: []byte("1"), Urgency: given}
		_, err1 := srv.Publish(t.Context(), "t", m)
		_, err2 := srv.Push(t.Context(), server.Target{User: "ann"}, m)
		_, err3 := srv.Broadcast(t.Context(), m)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		topics := map[string]bool{}
		for range 3 {
			got := c.Event().Message
			if got.Urgency != want {
				t.Errorf("urgency %q arrives on %s as %q, want %q", given, got.Topic, got.Urgency, want)
			}
			topics[got.Topic] = true
			raw.WantText("1")
		}
		if len(topics) != 3 {
			t.Errorf("came on %v", topics)
		}
	}
}

// Eight publishers of one topic: every subscriber gets everything, in one order.
func TestOrder(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{MaxOutbox: 8 << 20})
	const publishers, each = 8, 250
	var conns []*wstest.Conn
	for range 12 {
		c, _ := joined(t, addr, "/ws?topics=a,b")
		conns = append(conns, c)
	}
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				if _, err := srv.Publish(t.Context(), []string{"a", "b"}[i%2], server.Message{Data: fmt.Appendf(nil, "[%d,%d]", p, i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	orders := make([][]string, len(conns))
	for n, c := range conns {
		seq := map[string]uint64{}
		last := map[int]int{}
		for range publishers * each {
			m := c.Event().Message
			var p, i int
			if _, err := fmt.Sscanf(string(m.Data), "[%d,%d]", &p, &i); err != nil {
				t.Fatal(err)
			}
			if m.Seq != seq[m.Topic]+1 || last[p*2+i%2] > i {
				t.Fatalf("%+v behind seq %d", m, seq[m.Topic])
			}
			seq[m.Topic], last[p*2+i%2] = m.Seq, i
			if m.Topic == "a" {
				orders[n] = append(orders[n], string(m.Data))
			}
		}
		if !slices.Equal(orders[n], orders[0]) {
			t.Fatal("two subscribers got the messages of one topic in different orders")
		}
	}
	wg.Wait()
}

// A subscription takes effect exactly at the position it is answered with.
func TestSubscribePosition(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{MaxOutbox: 8 << 20})
	joined(t, addr, "/ws?topics=t") // keeps the topic
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := srv.Publish(t.Context(), "t", server.Message{Data: []byte("1"), Wait: server.WaitSent}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer close(stop)
	var subscribers sync.WaitGroup
	for n := range 6 {
		c := wstest.Dial(t, addr, []string{"/ws", "/ws?topics=t"}[n%2])
		w := c.WantWelcome()
		subscribers.Go(func() {
			at, on := w.Topics["t"].Seq, n%2 == 1
			for round := 1; round < 30; round++ {
				verb := "subscribe"
				if on {
					verb = "unsubscribe"
				}
				c.Send(wstest.Text(fmt.Sprintf(`{"id":%d,%q:{"topic":"t"}}`, round, verb)))
				for answered, more := false, 5; !answered || on && more > 0; {
					e := c.Event()
					switch {
					case e.Error != nil:
						t.Errorf("%+v", e.Error)
						return
					case e.OK != nil:
						answered, on = true, !on
						if on {
							at = e.OK.Seq
						}
					case e.Message == nil || !on || e.Message.Seq != at+1:
						t.Errorf("got %+v at %d, subscribed: %v", e.Message, at, on)
						return
					default:
						at++
						if answered {
							more--
						}
					}
				}
			}
		})
	}
	subscribers.Wait()
}

// Every command is answered, whatever comes behind it.
func TestCommandsAnswered(t *testing.T) {
	t.Parallel()
	_, addr := serve(t, server.Config{})
	c, _ := joined(t, addr, "/ws")
	for range 20 {
		c.Send(
			wstest.Text(`{"id":1,"subscribe":{"topic":"t"}}`), wstest.Text(`{"id":2,"unsubscribe":{"topic":"t"}}`),
			wstest.Text(`{"id":3,"subscribe":{"topic":"t"}}`), wstest.Text(`{"id":4,"subscribe":{"topic":"t"}}`),
			wstest.Text(`{"id":5,"ping":{}}`), wstest.Text(`{"id":6,"unsubscribe":{"topic":"t"}}`), wstest.Text(`{"id":7,"unsubscribe":{"topic":"t"}}`),
		)
		var got []uint64
		for range 7 {
			e := c.Event()
			if got = append(got, e.ID); e.ID == 7 {
				wantError(t, e, wire.NotSubscribed)
			} else if e.OK == nil {
				t.Fatalf("%+v", e)
			}
		}
		if slices.Sort(got); !slices.Equal(got, []uint64{1, 2, 3, 4, 5, 6, 7}) {
			t.Fatalf("answers to %v", got)
		}
	}
	wantError(t, command(t, c, `{"id":1,"ack":{"id":"x"}}`), wire.NotFound)
	wantError(t, command(t, c, `{"id":1,"subscribe":{"topic":"$user"}}`), wire.BadTopic)
	wantError(t, command(t, c, `{"id":1,"dance":{}}`), wire.UnknownCommand)
	wantError(t, command(t, c, `hello`), wire.BadRequest)
}

func TestRawFormat(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	enveloped, _ := joined(t, addr, "/ws?topics=t")
	raw := wstest.Dial(t, addr, "/ws?topics=t&format=raw")
	server.Eventually(t, "both", func() bool { return srv.Stats().Subscriptions == 2 })
	publish(t, srv, "t", `{"a":1}`)
	raw.WantText(`{"a":1}`)
	wantMessage(t, enveloped, "t", `{"a":1}`)
	for range 50 { // joined in batches too
		if _, err := srv.Publish(t.Context(), "t", server.Message{Data: []byte(`"b"`)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 {
		raw.WantText(`"b"`)
		wantMessage(t, enveloped, "t", `"b"`)
	}
	if _, err := srv.Broadcast(t.Context(), server.Message{Data: []byte("7")}); err != nil {
		t.Fatal(err)
	}
	raw.WantText("7")
	raw.WantNothing()
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	c, _ := joined(t, addr, "/ws?topics=t,u&user=ann")
	server.Eventually(t, "the subscriptions", func() bool { return srv.Stats().Subscriptions == 2 })
	m := server.Message{Data: []byte("1"), IdempotencyKey: "k", Wait: server.WaitSent}
	first, err := srv.Publish(t.Context(), "t", m)
	if err != nil || first.Duplicate {
		t.Fatal(first, err)
	}
	crowd := make(chan server.Receipt)
	for range 10 {
		go func() {
			r, err := srv.Publish(t.Context(), "t", m)
			if err != nil {
				t.Error(err)
			}
			crowd <- r
		}()
	}
	for range 10 {
		if r := <-crowd; !r.Duplicate || r.ID != first.ID || r.Seq != first.Seq {
			t.Errorf("the repetition's receipt is %+v, the first was %+v", r, first)
		}
	}
	other := m
	other.Data = []byte("2")
	_, err1 := srv.Publish(t.Context(), "t", other)
	_, err2 := srv.Publish(t.Context(), "u", m)
	_, err3 := srv.Push(t.Context(), server.Target{User: "ann"}, m)
	for _, err := range []error{err1, err2, err3} {
		if !errors.Is(err, server.ErrReused) {
			t.Errorf("another message under the key: %v", err)
		}
	}
	// An id is a key too; what reached nobody may be tried again.
	if _, err := srv.Push(t.Context(), server.Target{User: "nobody"}, server.Message{Data: []byte("1"), ID: "id"}); !errors.Is(err, server.ErrNobody) {
		t.Error(err)
	}
	if r, err := srv.Publish(t.Context(), "t", server.Message{Data: []byte("3"), ID: "id"}); err != nil || r.Duplicate {
		t.Error(r, err)
	}
	wantMessage(t, c, "t", "1")
	wantMessage(t, c, "t", "3")
	c.WantNothing()
}

func TestWaitAck(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	a, wa := joined(t, addr, "/ws?user=ann")
	b, _ := joined(t, addr, "/ws?user=ann")
	type answer struct {
		server.Receipt
		error
	}
	push := func(timeout time.Duration) chan answer {
		out := make(chan answer, 1)
		go func() {
			r, err := srv.Push(t.Context(), server.Target{User: "ann"}, server.Message{Data: []byte("1"), Wait: server.WaitAck, AckTimeout: timeout})
			out <- answer{r, err}
		}()
		return out
	}
	got := push(wstest.Timeout)
	for _, c := range []*wstest.Conn{a, b} {
		m := wantMessage(t, c, "$user", "1")
		if !m.Ack {
			t.Error("the message does not ask for an ack")
		}
		if e := command(t, c, fmt.Sprintf(`{"id":1,"ack":{"id":%q}}`, m.ID)); e.OK == nil {
			t.Errorf("%+v", e)
		}
	}
	if r := <-got; r.error != nil || r.Devices[0].Status != server.StatusAcked || r.Devices[1].Status != server.StatusAcked {
		t.Errorf("both acked: %+v, %v", r.Receipt, r.error)
	}
	got = push(2 * time.Second)
	m := wantMessage(t, a, "$user", "1")
	wantMessage(t, b, "$user", "1")
	command(t, a, fmt.Sprintf(`{"id":1,"ack":{"id":%q}}`, m.ID))
	if r := <-got; r.error != nil {
		t.Error(r.error)
	} else {
		for _, d := range r.Devices {
			if want := map[bool]server.DeviceStatus{true: server.StatusAcked, false: server.StatusWritten}[d.Conn == wa.Conn]; d.Status != want {
				t.Errorf("device %s is %s, want %s", d.Conn, d.Status, want)
			}
		}
	}
	if r := <-push(time.Millisecond); !errors.Is(r.error, server.ErrNoAck) || r.ID == "" || len(r.Devices) != 2 {
		t.Errorf("no ack: %+v, %v", r.Receipt, r.error)
	}
	wantMessage(t, a, "$user", "1")
	wantError(t, command(t, a, `{"id":1,"ack":{"id":"unknown"}}`), wire.NotFound)
}

// A broadcast with a rate ends when its TTL does: nothing is sent late.
func TestRate(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	const n = 40
	for range n {
		joined(t, addr, "/ws")
	}
	r, err := srv.Broadcast(t.Context(), server.Message{Data: []byte("1"), Rate: 1000, Wait: server.WaitSent})
	if err != nil || r.Written != n {
		t.Errorf("with a rate: %+v, %v", r, err)
	}
	// At 10 a second it would take four seconds.
	r, err = srv.Broadcast(t.Context(), server.Message{Data: []byte("2"), Rate: 10, TTL: 300 * time.Millisecond, Wait: server.WaitSent})
	if err != nil || r.Written == 0 || r.Written+r.Dropped != n || r.Dropped < n/4 {
		t.Errorf("with a rate and a TTL: %+v, %v", r, err)
	}
	if drops := srv.Stats().Drops["ttl"]; int(drops) != r.Dropped {
		t.Errorf("%d drops", drops)
	}
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	a, _ := joined(t, addr, "/ws?user=ann")
	b, _ := joined(t, addr, "/ws?user=ann")
	c, w := joined(t, addr, "/ws")
	if n, err := srv.Disconnect(t.Context(), server.Target{User: "ann"}, 0, ""); n != 2 || err != nil {
		t.Error(n, err)
	}
	for _, conn := range []*wstest.Conn{a, b} {
		if f := conn.WantClosed(wire.CloseForceDisconnect); string(f.Payload[2:]) != "force disconnect" {
			t.Errorf("%v", f)
		}
	}
	if n, err := srv.Disconnect(t.Context(), server.Target{Conn: w.Conn}, 4242, "bye"); n != 1 || err != nil {
		t.Error(n, err)
	}
	if f := c.WantClosed(4242); string(f.Payload[2:]) != "bye" {
		t.Errorf("%v", f)
	}
	_, err1 := srv.Disconnect(t.Context(), server.Target{User: "ann"}, 0, "")
	if !errors.Is(err1, server.ErrNobody) {
		t.Error(err1)
	}
	for _, code := range []wire.CloseCode{1, 1001, 1005, 1012, 1014, 2999, 5000} {
		if _, err := srv.Disconnect(t.Context(), server.Target{User: "ann"}, code, ""); !errors.Is(err, server.ErrBadMessage) {
			t.Errorf("code %d: %v", code, err)
		}
	}
}

// One client has as many topics as it may and no more (docs/faults.md R9).
func TestTopicsOfAConnectionAreLimited(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	c, _ := joined(t, addr, "/ws?topics=t0,t1")
	const batch = 100
	for i := 0; i < server.Size(100_000); i += batch {
		var frames []wstest.Frame
		for j := range batch {
			frames = append(frames, wstest.Text(fmt.Sprintf(`{"id":%d,"subscribe":{"topic":"t%d"}}`, i+j+1, i+j)))
		}
		c.Send(frames...)
		refused := 0
		for range batch {
			if e := c.Event(); e.Error != nil {
				wantError(t, e, wire.TooManyTopics)
				refused++
			}
		}
		if want := min(batch, max(0, i+batch-128)); refused != want {
			t.Fatalf("%d of %d refused behind %d, want %d", refused, batch, i, want)
		}
	}
	if n := srv.Stats().Subscriptions; n != 128 {
		t.Errorf("%d subscriptions", n)
	}
	command(t, c, `{"id":1,"unsubscribe":{"topic":"t5"}}`)
	if e := command(t, c, `{"id":2,"subscribe":{"topic":"other"}}`); e.OK == nil {
		t.Errorf("with room again: %+v", e.Error)
	}
	if res := refused(t, addr, upgradeAt("/ws?topics="+topicNames(129)), 1<<20, 400); res == nil {
		t.Error("129 topics in the handshake")
	}
}

func upgradeAt(path string) string { return wstest.Request("tocsin.test", path, sampleKey) }

// A position that is garbage, foreign or of the future is answered with where
// the topic is, and costs no more than another (docs/faults.md L7).
func TestUnknownPositionsAreAnswered(t *testing.T) {
	t.Parallel()
	srv, addr := serve(t, server.Config{})
	_, w := joined(t, addr, "/ws?topics=t")
	server.Eventually(t, "the subscription", func() bool { return srv.Stats().Subscriptions == 1 })
	for range 5 {
		publish(t, srv, "t", "1")
	}
	epoch := w.Topics["t"].Epoch
	for body, want := range map[string]struct {
		recovered bool
		from      uint64
		reason    string
	}{
		fmt.Sprintf(`"after":5,"epoch":%q`, epoch):                      {true, 0, ""},
		fmt.Sprintf(`"after":2,"epoch":%q`, epoch):                      {false, 3, "retention"},
		fmt.Sprintf(`"after":6,"epoch":%q`, epoch):                      {false, 1, "epoch"},
		fmt.Sprintf(`"after":9999999999999999999,"epoch":%q`, epoch):    {false, 1, "epoch"},
		`"after":5,"epoch":"foreign"`:                                   {false, 1, "epoch"},
		`"after":5,"epoch":""`:                                          {false, 1, "epoch"},
		`"after":5`:                                                     {false, 1, "epoch"},
		`"after":0,"epoch":"` + strings.Repeat("x", 1000) + `"`:         {false, 1, "epoch"},
		fmt.Sprintf(`"after":0,"epoch":%q`, strings.ToLower(epoch)+"z"): {false, 1, "epoch"},
	} {
		c, _ := joined(t, addr, "/ws")
		e := command(t, c, `{"id":1,"subscribe":{"topic":"t",`+body+`}}`)
		if e.OK == nil || e.OK.Recovered == nil || *e.OK.Recovered != want.recovered || e.OK.Seq != 5 || e.OK.Epoch != epoch {
			t.Errorf("%s: %+v %+v", body, e.OK, e.Error)
			continue
		}
		if !want.recovered {
			if g := c.Event().Gap; g == nil || *g != (wire.Gap{Topic: "t", Epoch: epoch, From: want.from, To: 5, Reason: want.reason}) {
				t.Errorf("%s: gap %+v", body, g)
			}
		}
		c.WantNothing()
	}
	c, _ := joined(t, addr, "/ws")
	for _, body := range []string{`"after":-1`, `"after":"5"`, `"after":1e3`, `"after":18446744073709551616`, `"after":99999999999999999999`, `"after":5,"epoch":5`, `"after":[]`} {
		wantError(t, command(t, c, `{"id":1,"subscribe":{"topic":"t",`+body+`}}`), wire.BadRequest)
	}
	c.WantNothing()
}

// A user has as many connections as allowed, counted exactly even when they all
// come at once (docs/faults.md L6).
func TestConnectionsOfAUserAreLimited(t *testing.T) {
	t.Parallel()
	const limit = 10
	srv, addr := serve(t, server.Config{MaxUserConns: limit})
	n := server.Size(1000)
	codes := make(chan wire.CloseCode, n)
	conns := make([]*wstest.Conn, n)
	for i := range conns {
		conns[i] = wstest.Open(t, addr)
	}
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			c.SendRaw([]byte(upgradeAt("/ws?user=ann")))
			c.Response("GET")
			c.WantWelcome()
			c.Send(wstest.Ping("")) // nothing else may come to those who stay
			f := c.NextFrame()
			if f.Op == ws.OpClose {
				codes <- f.CloseCode()
			}
		})
	}
	wg.Wait()
	close(codes)
	refused := 0
	for code := range codes {
		if refused++; code != wire.CloseConnectionLimit {
			t.Errorf("closed with %d", code)
		}
	}
	if refused != n-limit || len(srv.User("ann")) != limit {
		t.Errorf("%d of %d refused, %d stay", refused, n, len(srv.User("ann")))
	}
	if _, w := joined(t, addr, "/ws?user=bob"); w.User != "bob" {
		t.Error("another user cannot connect")
	}
}
