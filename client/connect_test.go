package client

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

func TestRefusedUpgrade(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		s.refuse.set("HTTP/1.1 401 Unauthorized\r\nContent-Length: 11\r\n\r\nwho are you")
		_, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{NetDial: s.accept})
		refused, ok := errors.AsType[*HandshakeError](err)
		if !ok || refused.Status != 401 || refused.Reason != "who are you" {
			t.Errorf("got %v", err)
		}
	})
}

// Dial returns in time, whatever the server goes on with.
func TestHandshakeTimeout(t *testing.T) {
	for name, tt := range map[string]struct{ begin, drip string }{
		"nothing":             {"", ""},
		"half a head":         {"HTTP/1.1 101 ", ""},
		"header without end":  {"HTTP/1.1 101 \r\nA: ", "x"},
		"fields without end":  {"HTTP/1.1 101 \r\n", "A:\r\n"},
		"interim answers":     {"", "HTTP/1.1 100 \r\n\r\n"},
		"refusal without end": {"HTTP/1.1 503 \r\n\r\n", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, s *fake) {
				var server sync.WaitGroup
				defer server.Wait()
				began := time.Now()
				_, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{
					HandshakeTimeout: 3 * time.Second,
					NetDial: func(context.Context, string, string) (net.Conn, error) {
						near, far := net.Pipe()
						server.Go(func() { _, _ = io.Copy(io.Discard, far) })
						server.Go(func() {
							_, err := io.WriteString(far, tt.begin)
							for tt.drip != "" && err == nil {
								time.Sleep(700 * time.Millisecond) // the bubble's time
								_, err = io.WriteString(far, tt.drip)
							}
						})
						return near, nil
					},
				})
				if refused, ok := errors.AsType[*HandshakeError](err); ok && name == "refusal without end" {
					if refused.Reason != "xxxx" {
						t.Errorf("told %q", refused.Reason)
					}
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				if took := time.Since(began); took != 3*time.Second {
					t.Errorf("returned after %s", took)
				}
			})
		})
	}
}

// So it is when the server stays after it was told what is wrong with its first frame.
func TestHandshakeTimeoutBoundsTheEnd(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		s.welcome.set("hello")
		for timeout, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Minute: closeTimeout} {
			began := time.Now()
			_, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{NetDial: s.accept, HandshakeTimeout: timeout})
			if took := time.Since(began); err == nil || took != want {
				t.Errorf("%v after %s, want %s", err, took, want)
			}
			(<-s.dialed).wantClose(wire.CloseProtocolError)
		}
	})
}

func TestFirstFrameMustBeTheWelcome(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		s.welcome.set(`{"hello":"I am something else"}`)
		_, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{NetDial: s.accept})
		if err == nil || !strings.Contains(err.Error(), "no welcome") {
			t.Errorf("got %v", err)
		}
	})
}

// What was lost is asked for again, after the last message that was given out.
func TestResume(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		s.welcome.set(`{"welcome":{"conn":"c1","ping":0,"topics":{"h":{"seq":5,"epoch":"x"}}}}`)
		c, p := s.dial("?user=ann&topics=h", Options{})
		for topic, ok := range map[string]string{"a": `"seq":3,"epoch":"x"`, "gone": `"seq":0,"epoch":"x"`} {
			go func() { p.send(`{"id":%d,"ok":{%s}}`, p.wantCommand("subscribe", `{"topic":"`+topic+`"}`), ok) }()
			if _, err := c.Subscribe(t.Context(), topic, nil); err != nil {
				t.Fatal(err)
			}
		}
		go func() { p.send(`{"id":%d,"ok":{}}`, p.wantCommand("unsubscribe", `{"topic":"gone"}`)) }()
		if err := c.Unsubscribe(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		p.send(`{"topic":"a","seq":4,"data":0}`)
		p.send(`{"gap":{"topic":"h","epoch":"y","from":6,"to":7,"reason":"epoch"}}`)
		s.nextEvent()
		s.nextEvent()

		s.welcome.set(welcome)
		p.drop()
		p, took := s.wantDial()
		if took > 500*time.Millisecond {
			t.Errorf("came back after %s, the first ceiling is 0.5 s", took)
		}
		if p.query != "/ws?user=ann" {
			t.Errorf("came back to %s, want topics by command", p.query)
		}
		a := p.wantCommand("subscribe", `{"topic":"a","after":4,"epoch":"x"}`)
		h := p.wantCommand("subscribe", `{"topic":"h","after":7,"epoch":"y"}`)
		p.send(`{"id":%d,"ok":{"topic":"a","seq":6,"epoch":"x","recovered":true}}`, a)
		p.send(`{"id":%d,"error":{"code":"forbidden","message":"no more"}}`, h)
		for _, seq := range []int{4, 5, 6, 6, 7} {
			p.send(`{"topic":"a","seq":%d,"data":0}`, seq)
		}
		if e := s.nextEvent(); e.Cancel == nil || e.Cancel.Topic != "h" || e.Cancel.Reason != "forbidden: no more" {
			t.Errorf("got %+v, want a cancel of h", e)
		}
		for _, want := range []uint64{5, 6, 7} {
			if e := s.nextEvent(); e.Message == nil || e.Message.Seq != want {
				t.Fatalf("got %+v, want seq %d", e.Message, want)
			}
		}
		s.wantNoEvent()

		p.drop()
		p, _ = s.wantDial()
		p.wantCommand("subscribe", `{"topic":"a","after":7,"epoch":"x"}`)
	})
}

// A topic that the server cannot give now is asked for again, later and later, and
// not for longer than somebody wants it.
func TestResumeIsTriedAgain(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		s.welcome.set(`{"welcome":{"conn":"c1","ping":0}}`)
		c, p := s.dial("", Options{})
		for _, topic := range []string{"a", "left", "taken"} {
			go func() {
				p.send(`{"id":%d,"ok":{"seq":3,"epoch":"x"}}`, p.wantCommand("subscribe", `{"topic":"`+topic+`"}`))
			}()
			if _, err := c.Subscribe(t.Context(), topic, nil); err != nil {
				t.Fatal(err)
			}
		}
		fail := func(p *peer, topic string) {
			t.Helper()
			id := p.wantCommand("subscribe", `{"topic":"`+topic+`","after":3,"epoch":"x"}`)
			p.send(`{"id":%d,"error":{"code":"internal","message":"try again"}}`, id)
		}
		p.drop()
		p, _ = s.wantDial()
		for _, topic := range []string{"a", "left", "taken"} {
			fail(p, topic)
		}
		go func() { p.send(`{"id":%d,"ok":{}}`, p.wantCommand("unsubscribe", `{"topic":"left"}`)) }()
		if err := c.Unsubscribe(t.Context(), "left"); err != nil {
			t.Fatal(err)
		}
		p.send(`{"ok":{"topic":"taken","seq":4,"epoch":"x"}}`)
		if e := s.nextEvent(); e.OK == nil {
			t.Errorf("got %+v", e)
		}
		for attempt := range 10 {
			began := time.Now()
			fail(p, "a")
			if took := time.Since(began); took > c.ceiling(attempt) {
				t.Errorf("attempt %d came after %s", attempt, took)
			}
		}
		// What was to come on a connection that is lost comes on no other.
		p.drop()
		p, _ = s.wantDial()
		id := p.wantCommand("subscribe", `{"topic":"a","after":3,"epoch":"x"}`)
		p.send(`{"id":%d,"ok":{"topic":"a","seq":3,"epoch":"x","recovered":true}}`, id)
		id = p.wantCommand("subscribe", `{"topic":"taken","after":4,"epoch":"x"}`)
		p.send(`{"id":%d,"ok":{"topic":"taken","seq":4,"epoch":"x","recovered":true}}`, id)
		time.Sleep(time.Hour)
		s.wantNoEvent()
		if len(p.in) > 0 {
			t.Errorf("the client sent %q", (<-p.in).Payload)
		}
	})
}

// A topic that begins a new numbering is followed from its new position.
func TestResumeNotRecovered(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		c, p := s.dial("", Options{})
		go func() { p.send(`{"id":%d,"ok":{"seq":30,"epoch":"x"}}`, p.wantCommand("subscribe", `{"topic":"a"}`)) }()
		if _, err := c.Subscribe(t.Context(), "a", nil); err != nil {
			t.Fatal(err)
		}
		p.drop()
		p, _ = s.wantDial()
		id := p.wantCommand("subscribe", `{"topic":"a","after":30,"epoch":"x"}`)
		p.send(`{"id":%d,"ok":{"topic":"a","seq":2,"epoch":"y","recovered":false}}`, id)
		p.send(`{"gap":{"topic":"a","epoch":"y","from":1,"to":2,"reason":"epoch"}}`)
		p.send(`{"topic":"a","seq":3,"data":0}`)
		if e := s.nextEvent(); e.Gap == nil {
			t.Errorf("got %+v, want a gap", e)
		}
		if e := s.nextEvent(); e.Message == nil || e.Message.Seq != 3 {
			t.Errorf("got %+v, want seq 3", e)
		}
	})
}

func TestGoodbyeIsHonoured(t *testing.T) {
	for name, end := range map[string]func(*peer){
		"with a Close frame": func(p *peer) { p.raw(wire.AppendClose(nil, wire.CloseShutdown, "shutdown")) },
		"without":            func(p *peer) { p.drop() },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, s *fake) {
				_, p := s.dial("", Options{})
				p.send(`{"goodbye":{"code":3001,"reason":"shutdown","retry_after_ms":8125}}`)
				end(p)
				if _, took := s.wantDial(); took != 8125*time.Millisecond {
					t.Errorf("came back after %s, told 8.125 s", took)
				}
			})
		})
	}
}

func TestCloseCodesSayWhetherToComeBack(t *testing.T) {
	for _, code := range []wire.CloseCode{1000, 1001, 1002, 1008, 1011, 1012, 1013, 3000, 3001, 3012, 3499, 3500, 3503, 3999, 4000} {
		t.Run(code.String(), func(t *testing.T) {
			run(t, func(t *testing.T, s *fake) {
				c, p := s.dial("", Options{})
				p.raw(wire.AppendClose(nil, code, "because"))
				p.wantClose(code)
				if code.ComeBack() {
					s.wantDial()
					return
				}
				<-c.Done()
				if err, ok := errors.AsType[*CloseError](c.Err()); !ok || err.Code != code || err.Reason != "because" {
					t.Errorf("ended with %v", c.Err())
				}
				if s.dials.Load() != 1 {
					t.Errorf("dialed %d times", s.dials.Load())
				}
			})
		})
	}
}

// RFC 6455 section 7.1.1: the server closes TCP first.
func TestServerClosesFirst(t *testing.T) {
	for name, end := range map[string]func(*peer){
		"closed by the server": func(p *peer) {
			p.raw(wire.AppendClose(nil, wire.CloseShutdown, ""))
		},
		"refused by the client": func(p *peer) {
			p.raw(wire.AppendFrame(nil, ws.OpBinary, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, s *fake) {
				c, p := s.dial("", Options{NoReconnect: true})
				end(p)
				if f := p.nextFrame(); f.Header.OpCode != ws.OpClose {
					t.Fatalf("got opcode %d, want a Close frame", f.Header.OpCode)
				}
				p.raw(make([]byte, 1<<20)) // is read, whatever it says
				time.Sleep(closeTimeout - 1)
				synctest.Wait()
				select {
				case <-p.in:
					t.Fatal("the client closed first")
				case <-c.Done():
					t.Fatal("the client ended before the connection")
				default:
				}
				closed := time.Now()
				p.drop()
				if <-c.Done(); time.Since(closed) != 0 {
					t.Errorf("the client ended %s later", time.Since(closed))
				}
			})
		})
	}
	t.Run("never", func(t *testing.T) {
		run(t, func(t *testing.T, s *fake) {
			_, p := s.dial("", Options{NoReconnect: true})
			began := time.Now()
			p.raw(wire.AppendClose(nil, wire.CloseShutdown, ""))
			p.wantClose(wire.CloseShutdown)
			if took := time.Since(began); took != closeTimeout {
				t.Errorf("the client closed after %s, want %s", took, closeTimeout)
			}
		})
	})
}

// Commands do not wait for the end of the old connection, and coming back waits
// for it only beyond the delay that was due anyway.
func TestSlowEndDelaysOnlyItself(t *testing.T) {
	for _, tt := range []struct{ told, want time.Duration }{
		{time.Minute, time.Minute},
		{time.Millisecond, closeTimeout},
	} {
		t.Run(tt.told.String(), func(t *testing.T) {
			run(t, func(t *testing.T, s *fake) {
				c, p := s.dial("", Options{})
				pending := make(chan error, 1)
				go func() { pending <- c.Ping(t.Context()) }()
				p.wantCommand("ping", "{}")
				began := time.Now()
				p.send(`{"goodbye":{"code":3001,"reason":"shutdown","retry_after_ms":%d}}`, tt.told.Milliseconds())
				p.raw(wire.AppendClose(nil, wire.CloseShutdown, ""))
				if err := <-pending; !errors.Is(err, ErrLost) || time.Since(began) != 0 {
					t.Errorf("the pending command ended with %v after %s", err, time.Since(began))
				}
				if _, took := s.wantDial(); took != tt.want {
					t.Errorf("came back after %s, want %s", took, tt.want)
				}
			})
		})
	}
}

func TestNoReconnect(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		c, p := s.dial("", Options{NoReconnect: true})
		p.raw(wire.AppendClose(nil, wire.CloseShutdown, ""))
		<-c.Done()
		if err, ok := errors.AsType[*CloseError](c.Err()); !ok || err.Code != wire.CloseShutdown {
			t.Errorf("ended with %v", c.Err())
		}
	})
}

// Waits are random below a ceiling that doubles (docs/faults.md L2).
func TestBackoff(t *testing.T) {
	c := &Client{opt: Options{}.withDefaults()}
	for attempt, want := range []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 30000, 30000} {
		if got := c.ceiling(attempt); got != want*time.Millisecond {
			t.Errorf("ceiling of attempt %d is %s, want %d ms", attempt, got, want)
		}
	}
	if c.ceiling(1e6) != 30*time.Second {
		t.Error("the ceiling does not hold")
	}
	for _, attempt := range []int{0, 3, 9} {
		low, high := time.Hour, time.Duration(0)
		for range 1000 {
			d := c.delay(nil, attempt)
			low, high = min(low, d), max(high, d)
		}
		if top := c.ceiling(attempt); low > top/10 || high < top*9/10 || high >= top {
			t.Errorf("attempt %d waits %s to %s, want all of 0 to %s", attempt, low, high, top)
		}
	}
}

// Attempts that fail are spread ever wider; a refusal is judged by its status.
func TestAttempts(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		c, p := s.dial("", Options{})
		s.refuse.set("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")
		p.drop()
		time.Sleep(7*30*time.Second + time.Second) // the bubble's time
		synctest.Wait()
		// The first attempt comes within half a second, the others 7 s apart.
		if n := s.dials.Load(); n != 1+31 {
			t.Errorf("%d dials in 211 s with Retry-After: 7, want 32", n)
		}
		s.refuse.set("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
		<-c.Done()
		if refused, ok := errors.AsType[*HandshakeError](c.Err()); !ok || refused.Status != 401 {
			t.Errorf("ended with %v", c.Err())
		}
	})
}

// A server that vanished without a word is missed by its pings.
func TestSilence(t *testing.T) {
	run(t, func(t *testing.T, s *fake) {
		_, p := s.dial("", Options{})
		began := time.Now()
		<-p.in // closed
		if got, want := time.Since(began), 25*time.Second+pongSlack; got != want {
			t.Errorf("gave up after %s, want %s", got, want)
		}
		s.wantDial()
	})
}
