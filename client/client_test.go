package client

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// commandTests has every command, what of it goes over the wire, and the answer.
var commandTests = []struct {
	name, verb, body, reply string
	call                    func(context.Context, *Client) (wire.OK, error)
	want                    wire.OK
}{
	{
		"subscribe", "subscribe", `{"topic":"news"}`, `"ok":{"topic":"news","seq":3,"epoch":"x"}`,
		func(ctx context.Context, c *Client) (wire.OK, error) { return c.Subscribe(ctx, "news", nil) },
		wire.OK{Topic: "news", Seq: 3, Epoch: "x"},
	},
	{
		"subscribe after", "subscribe", `{"topic":"news","after":16,"epoch":"x"}`, `"ok":{"topic":"news","seq":17,"epoch":"x"}`,
		func(ctx context.Context, c *Client) (wire.OK, error) {
			return c.Subscribe(ctx, "news", &wire.Position{Seq: 16, Epoch: "x"})
		},
		wire.OK{Topic: "news", Seq: 17, Epoch: "x"},
	},
	{
		"unsubscribe", "unsubscribe", `{"topic":"news"}`, `"ok":{}`,
		func(ctx context.Context, c *Client) (wire.OK, error) { return wire.OK{}, c.Unsubscribe(ctx, "news") },
		wire.OK{},
	},
	{
		"publish", "publish", `{"topic":"news","id":"m1","data":{"hi":1}}`, `"ok":{"id":"m1","seq":4,"epoch":"x"}`,
		func(ctx context.Context, c *Client) (wire.OK, error) {
			return c.Publish(ctx, wire.Message{Topic: "news", ID: "m1", Data: []byte(`{"hi":1}`)})
		},
		wire.OK{MessageID: "m1", Seq: 4, Epoch: "x"},
	},
	{
		"publish of data as it is", "publish", `{"topic":"news","data":{"a": "<b>"}}`, `"ok":{"id":"m2"}`,
		func(ctx context.Context, c *Client) (wire.OK, error) {
			return c.Publish(ctx, wire.Message{Topic: "news", Data: []byte(`{"a": "<b>"}`)})
		},
		wire.OK{MessageID: "m2"},
	},
	{
		"ack", "ack", `{"id":"m1"}`, `"ok":{}`,
		func(ctx context.Context, c *Client) (wire.OK, error) { return wire.OK{}, c.Ack(ctx, "m1") },
		wire.OK{},
	},
	{
		"ping", "ping", `{}`, `"ok":{}`,
		func(ctx context.Context, c *Client) (wire.OK, error) { return wire.OK{}, c.Ping(ctx) },
		wire.OK{},
	},
}

func TestCommands(t *testing.T) {
	for _, tt := range commandTests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, s *fake) {
				c, p := s.dial("", Options{})
				go func() { p.send(`{"id":%d,%s}`, p.wantCommand(tt.verb, tt.body), tt.reply) }()
				ok, err := tt.call(t.Context(), c)
				if err != nil || ok != tt.want {
					t.Errorf("got %+v, %v, want %+v", ok, err, tt.want)
				}
				go func() {
					p.send(`{"id":%d,"error":{"code":"forbidden","message":"no"}}`, p.wantCommand(tt.verb, tt.body))
				}()
				_, err = tt.call(t.Context(), c)
				if refused, ok := errors.AsType[*wire.Error](err); !ok || refused.Code != wire.Forbidden {
					t.Errorf("got %v, want a *wire.Error with forbidden", err)
				}
			})
		})
	}
}

func TestRepliesAreMatchedByID(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		c, p := s.dial("", Options{})
		seqs := make(chan uint64, 2)
		var ids []uint64
		for _, topic := range []string{"a", "b"} {
			go func() {
				ok, err := c.Subscribe(t.Context(), topic, nil)
				if err != nil || ok.Topic != topic {
					t.Errorf("subscribe %s: %+v, %v", topic, ok, err)
				}
				seqs <- ok.Seq
			}()
			ids = append(ids, p.wantCommand("subscribe", `{"topic":"`+topic+`"}`))
		}
		p.send(`{"id":999,"ok":{"topic":"a","seq":9}}`)
		p.send(`{"id":%d,"ok":{"topic":"b","seq":2}}`, ids[1])
		if got := <-seqs; got != 2 {
			t.Errorf("the second command got seq %d, want 2", got)
		}
		p.send(`{"id":%d,"ok":{"topic":"a","seq":1}}`, ids[0])
		if got := <-seqs; got != 1 {
			t.Errorf("the first command got seq %d, want 1", got)
		}
	})
}

func TestEvents(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		c, p := s.dial("?topics=news", Options{})
		if p.query != "/ws?topics=news" {
			t.Errorf("dialed %s", p.query)
		}
		if w := c.Welcome(); w.Conn != "c1" || w.User != "ann" || w.Ping != 25 {
			t.Errorf("welcome %+v", w)
		}
		synctest.Wait()
		if e := <-s.events; e.Welcome == nil || e.Welcome.Conn != "c1" {
			t.Errorf("first event %+v, want the welcome", e)
		}
		p.send(`{"topic":"$user","id":"m1","urgency":"low","ack":true,"data":{"hi": 1}}`)
		p.send(`{"gap":{"topic":"news","epoch":"x","from":3,"to":5,"reason":"overflow"}}`)
		p.send(`{"cancel":{"topic":"news","reason":"permission denied"}}`)
		p.send(`{"goodbye":{"code":3001,"reason":"shutdown","retry_after_ms":10}}`)
		if m := s.nextEvent().Message; m == nil || m.Topic != "$user" || m.ID != "m1" || m.Urgency != "low" || !m.Ack || string(m.Data) != `{"hi": 1}` {
			t.Errorf("message %+v", m)
		}
		if g := s.nextEvent().Gap; g == nil || *g != (wire.Gap{Topic: "news", Epoch: "x", From: 3, To: 5, Reason: "overflow"}) {
			t.Errorf("gap %+v", g)
		}
		if e := s.nextEvent().Cancel; e == nil || *e != (wire.Cancel{Topic: "news", Reason: "permission denied"}) {
			t.Errorf("cancel %+v", e)
		}
		if g := s.nextEvent().Goodbye; g == nil || *g != (wire.Goodbye{Code: 3001, Reason: "shutdown", RetryAfterMS: 10}) {
			t.Errorf("goodbye %+v", g)
		}
	})
}

// A topic that the server subscribed the client to is one of its topics: it is
// told, and asks for it when it comes back.
func TestServerSubscribesClient(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		_, p := s.dial("", Options{})
		p.send(`{"ok":{"topic":"news","seq":3,"epoch":"x"}}`)
		p.send(`{"ok":{"topic":"gone","seq":1,"epoch":"x"}}`)
		p.send(`{"cancel":{"topic":"gone","reason":"unsubscribed"}}`)
		p.send(`{"topic":"news","seq":4,"data":0}`)
		for _, topic := range []string{"news", "gone"} {
			if e := s.nextEvent(); e.OK == nil || e.OK.Topic != topic {
				t.Errorf("got %+v, want to be told of %s", e, topic)
			}
		}
		s.nextEvent()
		s.nextEvent()
		p.drop()
		p, _ = s.wantDial()
		p.wantCommand("subscribe", `{"topic":"news","after":4,"epoch":"x"}`)
	})
}

// OnEvent may wait for a reply that stands behind more events than may wait.
func TestOnEventMaySendCommands(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		acked := make(chan error, 1)
		_, p := s.dial("", Options{OnEvent: func(c *Client, e wire.Event) {
			if e.Message != nil && e.Message.Ack {
				acked <- c.Ack(context.Background(), e.Message.ID)
			}
		}})
		p.send(`{"topic":"$user","id":"m1","ack":true,"data":0}`)
		id := p.wantCommand("ack", `{"id":"m1"}`)
		for range 4 * maxQueue {
			p.send(`{"topic":"t","data":0}`)
		}
		p.send(`{"id":%d,"ok":{}}`, id)
		if err := <-acked; err != nil {
			t.Error(err)
		}
	})
}

// A callback that does not return stops the reading, it does not pile up events.
func TestBackpressure(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		enough := make(chan struct{})
		_, p := s.dial("", Options{OnEvent: func(*Client, wire.Event) { <-enough }})
		sent := 0
		go func() {
			for range 4 * maxQueue {
				p.send(`{"topic":"t","data":0}`)
				sent++
			}
		}()
		synctest.Wait()
		if sent > maxQueue+2 {
			t.Errorf("%d events were taken while OnEvent stood still, the bound is %d", sent, maxQueue)
		}
		close(enough)
		synctest.Wait()
		if sent != 4*maxQueue {
			t.Errorf("%d of %d events were taken in the end", sent, 4*maxQueue)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	t.Run("connected", func(t *testing.T) {
		run(t, func(t *testing.T, s *fake) {
			c, p := s.dial("", Options{})
			pending := make(chan error, 1)
			go func() { pending <- c.Ping(t.Context()) }()
			p.wantCommand("ping", "{}")
			go func() {
				if f := p.nextFrame(); f.Header.OpCode != ws.OpClose || binary.BigEndian.Uint16(f.Payload) != 1000 {
					t.Errorf("got opcode %d %q, want Close 1000", f.Header.OpCode, f.Payload)
				}
				p.raw(wire.AppendClose(nil, wire.CloseNormal, ""))
			}()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if err := <-pending; !errors.Is(err, ErrClosed) {
				t.Errorf("the pending command ended with %v", err)
			}
			if err := c.Ping(t.Context()); !errors.Is(err, ErrClosed) {
				t.Errorf("a command after Close ended with %v", err)
			}
			if <-c.Done(); !errors.Is(c.Err(), ErrClosed) {
				t.Errorf("Err is %v", c.Err())
			}
		})
	})
	t.Run("server that does not answer", func(t *testing.T) {
		run(t, func(t *testing.T, s *fake) {
			c, p := s.dial("", Options{})
			began := time.Now()
			_ = c.Close()
			if took := time.Since(began); took != closeTimeout {
				t.Errorf("Close took %s, want %s", took, closeTimeout)
			}
			p.wantClose(wire.CloseNormal)
		})
	})
	t.Run("while away", func(t *testing.T) {
		run(t, func(t *testing.T, s *fake) {
			c, p := s.dial("", Options{MinBackoff: time.Hour, MaxBackoff: time.Hour})
			p.drop()
			synctest.Wait()
			began := time.Now()
			_ = c.Close()
			if <-c.Done(); !errors.Is(c.Err(), ErrClosed) || time.Since(began) != 0 {
				t.Errorf("Err is %v after %s", c.Err(), time.Since(began))
			}
		})
	})
	t.Run("from OnEvent", func(t *testing.T) {
		run(t, func(t *testing.T, s *fake) {
			c, p := s.dial("", Options{OnEvent: func(c *Client, _ wire.Event) { _ = c.Close() }})
			p.wantClose(wire.CloseNormal)
			if <-c.Done(); !errors.Is(c.Err(), ErrClosed) {
				t.Errorf("Err is %v", c.Err())
			}
		})
	})
}

func TestCommandOutlivesItsContext(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		c, p := s.dial("", Options{MinBackoff: time.Hour, MaxBackoff: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a reply: %v", err)
		}
		pending := make(chan error, 1)
		go func() { pending <- c.Ping(t.Context()) }()
		p.wantCommand("ping", "{}")
		p.wantCommand("ping", "{}")
		p.drop()
		if err := <-pending; !errors.Is(err, ErrLost) {
			t.Errorf("connection lost: %v", err)
		}
		synctest.Wait()
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while away: %v", err)
		}
	})
}

func TestBadInput(t *testing.T) {
	for _, tt := range []struct {
		url  string
		opt  Options
		want string
	}{
		{"http://x/ws", Options{}, "is not a ws:// or wss:// URL"},
		{"ws:///ws", Options{}, "is not a ws:// or wss:// URL"},
		{"ws://x/ws?format=raw", Options{}, "format=raw"},
		{"ws://x/%zz", Options{}, "invalid URL escape"},
		{"ws://x/ws", Options{MaxMessage: -1}, "Options.MaxMessage"},
		{"ws://x/ws", Options{HandshakeTimeout: -1}, "Options.HandshakeTimeout"},
		{"ws://x/ws", Options{MinBackoff: 2, MaxBackoff: 1}, "Options.MinBackoff"},
	} {
		if _, err := Dial(t.Context(), tt.url, tt.opt); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Dial(%q): %v, want %q in it", tt.url, err, tt.want)
		}
	}
	run(t, func(t *testing.T, s *fake) {
		c, _ := s.dial("", Options{})
		if _, err := c.Subscribe(t.Context(), "a b", nil); !strings.Contains(err.Error(), "bad_topic") {
			t.Errorf("Subscribe: %v", err)
		}
		if _, err := c.Publish(t.Context(), wire.Message{Topic: "a", Data: []byte("{")}); !strings.Contains(err.Error(), "JSON") {
			t.Errorf("Publish: %v", err)
		}
	})
}

// deaf dials a client whose server reads nothing after the upgrade, and leaves
// a command stuck in its write.
func deaf(t *testing.T) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{NetDial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			_, _ = ws.Upgrader{Protocol: func([]byte) bool { return true }}.Upgrade(far)
			_, _ = far.Write(wire.AppendFrame(nil, ws.OpText, []byte(welcome)))
		}()
		return near, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.Ping(context.Background()) }()
	for stuck := false; !stuck; time.Sleep(time.Millisecond) {
		if stuck = !c.sock.outMu.TryLock(); !stuck {
			c.sock.outMu.Unlock()
		}
	}
	return c
}

// TestCommandEndsWithItsContext also while the server reads nothing.
func TestCommandEndsWithItsContext(t *testing.T) {
	c := deaf(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.Ping(ctx) }()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(writeTimeout / 2):
		t.Error("the command waits for the write")
	}
	c.Close()
}

// TestCloseIsNotHeldByAStuckWrite: its two seconds hold, whatever the server
// does not read.
func TestCloseIsNotHeldByAStuckWrite(t *testing.T) {
	c := deaf(t)
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case <-closed:
	case <-time.After(closeTimeout + writeTimeout/2):
		t.Error("Close waits for the write")
	}
}

// TestEventsBeforeAReplyAreBounded: a server that sends events and no reply ends
// its connection, not this process by memory.
func TestEventsBeforeAReplyAreBounded(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		hold := make(chan struct{})
		c, p := s.dial("", Options{NoReconnect: true, OnEvent: func(*Client, wire.Event) { <-hold }})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Ping(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		frame := wire.AppendFrame(nil, ws.OpText, []byte(`{"message":{"topic":"a","id":"x","data":1}}`))
		sent := 0
		for ; sent <= mostQueue+1; sent++ {
			if _, err := p.conn.Write(frame); err != nil {
				break
			}
		}
		if sent > mostQueue {
			t.Errorf("%d events are taken", sent)
		}
		close(hold)
	})
}
