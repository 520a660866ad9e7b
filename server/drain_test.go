//go:build linux

package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// farewell reads a connection to its end: what it was sent, when to come back,
// and the code of the Close frame.
func (c *client) farewell() (messages int, retry int, code wire.CloseCode) {
	for {
		f, err := c.next()
		if err != nil {
			return messages, retry, code
		}
		switch f.Header.OpCode {
		case ws.OpText:
			e, err := tocsin.ParseEvent(f.Payload)
			switch {
			case err != nil:
				return messages, -1, 0
			case e.Message != nil:
				messages++
			case e.Goodbye != nil && e.Goodbye.Code == wire.CloseShutdown:
				retry = e.Goodbye.RetryAfterMS
			}
		case ws.OpClose:
			n, _ := ws.ParseCloseFrameData(f.Payload)
			code = wire.CloseCode(n)
			c.send(wstest.Close(code, ""))
		}
	}
}

// Each connection of a server that drains gets what was published, a time of
// its own to come back, and a Close; a client that connects meanwhile is turned
// away (docs/faults.md D1).
func TestDrainTellsEachClientWhenToComeBack(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{Drain: time.Second, ReturnWindow: 10 * time.Second, CloseTimeout: time.Second})
	n := size(3000)
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = dial(t, addr, "/ws?topics=t")
	}
	late := connect(t, addr, 0) // accepted, and silent
	eventually(t, "everybody", func() bool { return srv.Stats().Subscriptions == n && srv.Stats().Handshaking == 1 })
	for range 10 {
		if _, err := srv.Publish(t.Context(), "t", Message{Data: []byte(`"last words"`)}); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	retries := map[int]bool{}
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			messages, retry, code := c.farewell()
			mu.Lock()
			defer mu.Unlock()
			if messages != 10 || retry <= 0 || retries[retry] || code != wire.CloseShutdown {
				t.Errorf("%d messages, come back after %d ms (known: %v), close %d", messages, retry, retries[retry], code)
			}
			retries[retry] = true
		})
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if status := late.status(); status != http.StatusServiceUnavailable {
		t.Errorf("the silent one got %d", status)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("somebody still listens")
	}
	if _, err := srv.Broadcast(t.Context(), Message{Data: []byte("1")}); !errors.Is(err, ErrClosed) {
		t.Errorf("a publish: %v", err)
	}
	if st := srv.Stats(); st.Closes[CloseKind{wire.CloseShutdown, "server"}] != uint64(n) || !st.Draining {
		t.Errorf("%v", st.Closes)
	}
}

// On the clock: the closes are spread evenly over the drain (docs/faults.md D1).
func TestDrainIsSpread(t *testing.T) {
	const drain = 30 * time.Second
	s := newSim(t, 1, Config{Shards: 8, Drain: drain, PingInterval: -1, CloseTimeout: time.Hour})
	n := size(15_000)
	for range n {
		s.dial("/ws")
	}
	s.probe.BeginDrain(false)
	closed := func() int { return int(s.srv.Stats().Closes[CloseKind{wire.CloseShutdown, "server"}]) }
	window, before := 0, 0
	for tick := 1; s.Time < time.Hour+drain+engine.TickEvery; tick++ {
		s.Time += engine.TickEvery
		for i := range s.srv.shards {
			s.turn(i)
		}
		if window++; window == 10 { // a second
			if now, mean := closed(), n/int(drain/time.Second); now-before > 2*mean {
				t.Errorf("%d of %d closed in second %d, the mean is %d", now-before, n, tick/10, mean)
			}
			window, before = 0, closed()
		}
	}
	if closed() != n {
		t.Errorf("%d of %d closed", closed(), n)
	}
}

// When the context of Shutdown ends, so does everything, whoever still reads,
// talks or holds a hook (docs/faults.md D2).
func TestShutdownEndsWithItsContext(t *testing.T) {
	parallel(t)
	release := make(chan struct{})
	var held atomic.Int32
	srv, addr := started(t, Config{
		Drain: time.Hour, OutboxAge: time.Hour,
		OnMessage: func(Conn, ws.OpCode, []byte) bool {
			held.Add(1)
			<-release
			return true
		},
	})
	for i := range size(1000) {
		c := dial(t, addr, "/ws")
		switch i % 4 {
		case 0:
			c.send(wstest.Text("hold"))
		case 1:
			c.send(wstest.Frame{Op: ws.OpText, More: true})
		case 2:
			c.Close()
		}
	}
	connect(t, addr, 0)
	eventually(t, "a hook", func() bool { return held.Load() > 0 })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- srv.Shutdown(ctx) }()
	}
	eventually(t, "the drain", func() bool { return srv.Stats().Draining })
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Shutdown: %v", err)
		}
	}
	if st := srv.Stats(); st.Connections+st.Handshaking+st.ShardMax != 0 {
		t.Errorf("left behind: %+v", st)
	}
	close(release)
}

// A server that cannot start starts nothing and names the setting; without Auth
// and Dev it does not start (docs/faults.md R1 and A10).
func TestStartFailsWholeAndNamesTheSetting(t *testing.T) {
	fds := openFDs()
	for want, cfg := range map[string]Config{
		"Config.Auth":          {},
		"Config.Path":          {Dev: true, Path: "ws"},
		"Config.MaxMessage":    {Dev: true, MaxMessage: -1},
		"Config.Shards":        {Dev: true, Shards: 5000},
		"Config.MaxControl":    {Dev: true, MaxControl: 101},
		"Config.PongTimeout":   {Dev: true, PongTimeout: -time.Second},
		"Config.ReturnWindow":  {Dev: true, ReturnWindow: -time.Second},
		"MaxConnections is -5": {Dev: true, MaxConnections: -5},
		"Config.PingInterval":  {Dev: true, PingInterval: 25 * time.Hour},
		"Config.Overflow":      {Dev: true, Overflow: []OverflowRule{{"a", "drop"}}},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something about %s", err, want)
		}
	}
	// docs/faults.md R1: limit, need and fix.
	limit, _, _ := netpoll.RaiseDescriptorLimit()
	_, err := New(Config{Dev: true, MaxConnections: 1_000_000_000})
	for _, want := range []string{"max-connections is 1000000000", "RLIMIT_NOFILE", fmt.Sprint(limit), "ulimit -Hn", fmt.Sprintf("set max-connections to %d", limit-256)} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something about %s", err, want)
		}
	}
	if now := openFDs(); now != fds {
		t.Errorf("%d descriptors, before there were %d", now, fds)
	}
}

// A connection that was accepted just before the drain is part of it.
func TestDrainTakesTheLastAccepted(t *testing.T) {
	for _, hurry := range []bool{false, true} {
		s := newSim(t, 1, Config{CloseTimeout: time.Second})
		p := s.socket()
		s.probe.Admit(p.FD)
		s.probe.BeginDrain(hurry)
		s.run()
		if !p.Ends && !p.Gone {
			t.Errorf("in a hurry %v: the connection is left open", hurry)
		}
	}
}

// Every connection that had OnOpen has OnClose before Shutdown returns, even
// when the pool is small and all leave at once.
func TestOnCloseBeforeShutdown(t *testing.T) {
	parallel(t)
	var opened, closed atomic.Int32
	srv, addr := started(t, Config{
		HookWorkers: 1,
		OnOpen:      func(Conn) { opened.Add(1) },
		OnClose:     func(Conn, int) { closed.Add(1) },
	})
	const n = 200
	for range n {
		go dial(t, addr, "/ws").farewell()
	}
	eventually(t, "OnOpen", func() bool { return opened.Load() == n })
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if closed.Load() != n {
		t.Errorf("OnClose was called for %d of %d", closed.Load(), n)
	}
}

// What was published before the drain goes out before the first goodbye, even
// if that takes many slices.
func TestDrainLetsMessagesOut(t *testing.T) {
	s := newSim(t, 1, Config{PingInterval: -1, Drain: 10 * time.Second})
	var peers []*peer
	for range 200 {
		peers = append(peers, s.dial("/ws?topics=t"))
	}
	s.Look = engine.SliceBudget / 4
	for range 40 {
		if _, err := s.srv.Publish(t.Context(), "t", Message{Data: []byte(`"` + strings.Repeat("x", 1000) + `"`)}); err != nil {
			t.Fatal(err)
		}
	}
	s.probe.BeginDrain(false)
	for range 110 {
		s.Time += engine.TickEvery
		s.turn(0)
	}
	for i, p := range peers {
		messages, bye := 0, false
		for _, f := range p.frames() {
			if e, err := tocsin.ParseEvent(f.Payload); err == nil && e.Message != nil && !bye {
				messages++
			} else if err == nil && e.Goodbye != nil {
				bye = true
			}
		}
		if messages != 40 || !bye {
			t.Fatalf("client %d got %d of 40 messages; told to go: %v", i, messages, bye)
		}
	}
}

// Clients come back spread over ReturnWindow, however long the drain is
// (docs/faults.md D1 and X17).
func TestReturnWindowSpreadsTheReturns(t *testing.T) {
	s := newSim(t, 1, Config{Drain: time.Second, ReturnWindow: 10 * time.Second, PingInterval: -1})
	const n, bins = 1000, 10
	var peers []*peer
	for range n {
		peers = append(peers, s.dial("/ws"))
	}
	s.probe.BeginDrain(false)
	for range 2 * int(time.Second/engine.TickEvery) {
		s.Time += engine.TickEvery
		s.turn(0)
	}
	var in [bins]int
	for _, p := range peers {
		for _, f := range p.frames() {
			if e, err := tocsin.ParseEvent(f.Payload); err == nil && e.Goodbye != nil {
				in[(e.Goodbye.RetryAfterMS-500)*bins/10_000]++
			}
		}
	}
	for i, got := range in { // all n: each bin has its tenth
		if got < n/bins*8/10 || got > n/bins*12/10 {
			t.Errorf("%d of %d clients come back in second %d", got, n, i)
		}
	}
}

// lateHijack gives its connection away when a shutdown is under way.
type lateHijack struct {
	http.ResponseWriter
	conn     net.Conn
	shutdown func()
}

func (h *lateHijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h.shutdown()
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// A connection that net/http hands over while the server ends is sent away, also
// when the others were closed at once before, and the server waits for it.
func TestHandOverDuringShutdown(t *testing.T) {
	for _, atOnce := range []bool{false, true} {
		srv, addr := started(t, Config{CloseTimeout: time.Second})
		other := dial(t, addr, "/ws")
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		peer := connect(t, ln.Addr().String(), 0)
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(wstest.Request("tocsin.test", "/ws", wstest.NewKey()))))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if atOnce {
			cancel()
		}
		ended := make(chan error, 1)
		srv.ServeHTTP(&lateHijack{httptest.NewRecorder(), conn, func() {
			go func() { ended <- srv.Shutdown(ctx) }()
			if code := other.code(); code != wire.CloseShutdown {
				t.Errorf("the other is closed with %d", code)
			}
		}}, r)
		if code := peer.code(); code != wire.CloseShutdown {
			t.Errorf("at once %v: closed with %d, want 3001", atOnce, code)
		}
		if err := <-ended; errors.Is(err, context.Canceled) != atOnce || srv.engine.Descriptors() != 0 {
			t.Errorf("at once %v: %v, %d connections", atOnce, err, srv.engine.Descriptors())
		}
	}
}
