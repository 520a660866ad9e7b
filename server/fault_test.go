//go:build linux

package server

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// The faults of handshakes and frames (docs/faults.md). Tests that measure
// memory run alone; the others side by side.

// heap returns how many bytes are live.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// honest wants new connections to work, and be answered.
func honest(t *testing.T, addr string, n int) {
	t.Helper()
	for i := range n {
		c := dial(t, addr, "/ws")
		if !c.ping(fmt.Sprint(i)) {
			t.Fatalf("honest connection %d is not answered", i)
		}
		c.Close()
	}
}

// Heads that come byte by byte end with 408 (docs/faults.md H1).
func TestSlowHeadsTimeOut(t *testing.T) {
	n := pairs(10_000)
	srv, addr := started(t, Config{HandshakeTimeout: time.Second})
	fds := make([]int, n)
	head := wstest.Request("tocsin.test", "/ws", wstest.NewKey())
	before := heap()
	for i := range fds {
		fds[i] = rawSocket(t, addr)
	}
	for at := range 20 { // then they stop
		for _, fd := range fds {
			_, _ = unix.Write(fd, []byte{head[at]})
		}
		honest(t, addr, 1)
	}
	if grown := heap() - before; grown > int64(n)*4096 {
		t.Errorf("%d bytes for each slow head", grown/int64(n))
	}
	honest(t, addr, 20)
	eventually(t, "all to be cut", func() bool { return srv.Stats().HandshakeRejects["timeout"] == uint64(n) })
	for _, fd := range fds {
		if a := rawAnswer(fd); a != "" && !strings.HasPrefix(a, "HTTP/1.1 408 ") {
			t.Fatalf("answered %q", a)
		}
	}
}

// A connection that says nothing costs its slot, and not for long
// (docs/faults.md H2).
func TestSilentConnectionsTimeOut(t *testing.T) {
	n := size(15_000)
	srv, addr := started(t, Config{HandshakeTimeout: 3 * time.Second})
	honest(t, addr, 5)
	before := heap()
	defer child(t, "dial", addr, fmt.Sprint(n)).end()
	eventually(t, "all to be accepted", func() bool { return srv.Stats().Accepted == uint64(n+5) })
	if grown := heap() - before; grown > int64(n)*1024 {
		t.Errorf("%d bytes for each silent connection", grown/int64(n))
	}
	honest(t, addr, 20)
	eventually(t, "all to be cut", func() bool {
		st := srv.Stats()
		return st.HandshakeRejects["timeout"] == uint64(n) && st.ShardMax == 0
	})
}

// A header line without end is refused at the limit (docs/faults.md H3).
func TestEndlessHeaderLineIsRefused(t *testing.T) {
	endlessHead(t, "GET /ws HTTP/1.1\r\nX: ", strings.Repeat("y", 1<<14))
}

// Header fields without end are refused at the limit (docs/faults.md H4).
func TestEndlessHeaderFieldsAreRefused(t *testing.T) {
	endlessHead(t, "GET /ws HTTP/1.1\r\n", strings.Repeat("a: b\r\n", 1<<11))
}

// endlessHead sends head and then more, again and again, over many
// connections, and wants all refused at the limit for little memory.
func endlessHead(t *testing.T, head, more string) {
	n := size(1000)
	srv, addr := started(t, Config{CloseTimeout: time.Second, HandshakeTimeout: time.Minute})
	fds := make([]int, n)
	for i := range fds {
		fds[i] = rawSocket(t, addr)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for _, fd := range fds {
		wg.Go(func() {
			_, _ = unix.Write(fd, []byte(head))
			b := []byte(more)
			for sent := 0; sent < 256<<20; sent += len(b) {
				if _, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL); err != nil {
					return
				}
			}
			t.Error("all of it was taken")
		})
	}
	wg.Wait()
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / uint64(n); each > 64<<10 {
		t.Errorf("%d bytes allocated for each", each)
	}
	if st := srv.Stats(); st.HandshakeRejects["head"] != uint64(n) || st.BytesIn > uint64(n)*(engine.MaxHead+engine.ReadSize) {
		t.Errorf("%v, %d bytes taken in", st.HandshakeRejects, st.BytesIn)
	}
	honest(t, addr, 5)
}

// Thousands of peers that declare 64 KiB and send nothing cost next to nothing
// (docs/faults.md W1).
func TestDeclaredLengthsCostNothing(t *testing.T) {
	n := size(5000)
	srv, addr := started(t, Config{})
	claim := wstest.Frame{Op: ws.OpText, Declared: 64 << 10}.Append(nil)
	fds := make([]int, n)
	for i := range fds {
		fds[i] = rawSocket(t, addr)
		_, _ = unix.Write(fds[i], []byte(wstest.Request("tocsin.test", "/ws", "dGhlIHNhbXBsZSBub25jZQ==")))
	}
	eventually(t, "all to be open", func() bool { return srv.Stats().Connections == n })
	before, bytes := heap(), srv.Stats().BytesIn
	for _, fd := range fds {
		_, _ = unix.Write(fd, claim)
	}
	eventually(t, "all claims to be read", func() bool { return srv.Stats().BytesIn == bytes+uint64(n*len(claim)) })
	if grown := heap() - before; grown > int64(n)*1024 {
		t.Errorf("%d bytes for each claim of 64 KiB", grown/int64(n))
	}
}

// A message in fragments without end is closed, and so is one that grows over
// the limit (docs/faults.md W2).
func TestEndlessFragmentsAreClosed(t *testing.T) {
	parallel(t)
	_, addr := started(t, Config{})
	empty := string(wstest.Encode(wstest.Frame{Op: ws.OpContinuation, More: true}))
	big := string(wstest.Encode(wstest.Frame{Op: ws.OpContinuation, Payload: make([]byte, 1<<10), More: true}))
	for _, flood := range []struct {
		frame string
		times int
		want  wire.CloseCode
	}{{empty, size(1_000_000), wire.ClosePolicy}, {big, size(200 << 10), wire.CloseTooBig}} {
		c := dial(t, addr, "/ws")
		c.send(wstest.Frame{Op: ws.OpText, More: true})
		go func() {
			for range flood.times / 100 {
				if !c.write(strings.Repeat(flood.frame, 100)) {
					return
				}
			}
		}()
		if code := c.code(); code != flood.want {
			t.Errorf("closed with %d, want %d", code, flood.want)
		}
	}
	honest(t, addr, 3)
}

// A peer that sends half a frame and then nothing is closed with 1008
// (docs/faults.md W3).
func TestStalledMessagesAreClosed(t *testing.T) {
	parallel(t)
	n := pairs(10_000)
	srv, addr := started(t, Config{MessageTimeout: 2 * time.Second})
	stalled := make([]*client, n)
	crowd(n, func(i int) {
		stalled[i] = dial(t, addr, "/ws")
		frame := wstest.Encode(wstest.Text("hello"))
		stalled[i].write(string(frame[:1+i%(len(frame)-1)]))
	})
	honest(t, addr, 100)
	crowd(n, func(i int) {
		if code := stalled[i].code(); code != wire.ClosePolicy {
			t.Errorf("closed with %d", code)
		}
	})
	if got := srv.Stats().Closes[CloseKind{wire.ClosePolicy, "server"}]; got != uint64(n) {
		t.Errorf("%d of %d closed", got, n)
	}
}

// A flood of pings is answered for a while, then closed (docs/faults.md W11).
func TestPingFloodIsClosed(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{})
	c := dial(t, addr, "/ws")
	go func() {
		for range size(100_000) / 100 {
			if !c.write(strings.Repeat(string(wstest.Encode(wstest.Ping("p"))), 100)) {
				return
			}
		}
	}()
	pongs := 0
	for {
		f, err := c.next()
		if err != nil {
			t.Fatalf("after %d pongs: %v", pongs, err)
		}
		if f.Header.OpCode == ws.OpPong {
			pongs++
		}
		if f.Header.OpCode == ws.OpClose {
			break
		}
	}
	if most := 2 * srv.cfg.MaxControl; pongs > most || srv.Stats().Closes[CloseKind{wire.ClosePolicy, "server"}] != 1 {
		t.Errorf("%d pongs, the most is %d; %v", pongs, most, srv.Stats().Closes)
	}
}

// A peer that was sent a Close and stays, talks on, or only ends its own half,
// is gone after CloseTimeout (docs/faults.md W12).
func TestClosedPeersThatStayAreEnded(t *testing.T) {
	parallel(t)
	n := pairs(10_000)
	srv, addr := started(t, Config{CloseTimeout: time.Second})
	crowd(n, func(i int) {
		c := dial(t, addr, fmt.Sprint("/ws?user=u", i))
		switch i % 4 {
		case 0:
			_ = c.Conn.(*net.TCPConn).CloseWrite()
		case 1:
			c.send(wstest.Close(wire.CloseNormal, ""), wstest.Text("behind"))
		case 2:
			_, _ = srv.Disconnect(t.Context(), Target{User: fmt.Sprint("u", i)}, 0, "")
		case 3:
			_, _ = srv.Disconnect(t.Context(), Target{User: fmt.Sprint("u", i)}, 0, "")
			c.send(wstest.Text("not listening"), wstest.Text("at all"))
		}
	})
	eventually(t, "every descriptor to be closed", func() bool { return srv.Stats().ShardMax == 0 })
	total := uint64(0)
	for _, k := range srv.Stats().Closes {
		total += k
	}
	if total != uint64(n) {
		t.Errorf("%d closes of %d connections: %v", total, n, srv.Stats().Closes)
	}
}

// Many writers share one stream: what arrives is whole and is what was sent,
// though slow readers hold on to it (docs/faults.md W13 and W14).
func TestFramesOfManyWritersStayWhole(t *testing.T) {
	parallel(t)
	const writers, readers = 8, 10
	each := size(10_000)
	srv, addr := started(t, Config{MaxOutbox: 64 << 20, MaxControl: 100, WriteTimeout: time.Minute})
	var wg sync.WaitGroup
	for r := range readers {
		c := wstest.Dial(t, addr, fmt.Sprintf("/ws?topics=t&user=u%d", r))
		c.WantWelcome()
		wg.Go(func() {
			for messages := 0; messages < writers*each; {
				f := c.NextFrame() // strict
				if f.Op != ws.OpText {
					continue
				}
				e, err := tocsin.ParseEvent(f.Payload)
				if err != nil {
					t.Errorf("%v: %v", err, f)
					return
				}
				if e.Message == nil {
					continue
				}
				var sum uint32
				var text string
				if _, err := fmt.Sscanf(string(e.Message.Data), "[%d,%q]", &sum, &text); err != nil || crc32.ChecksumIEEE([]byte(text)) != sum {
					t.Errorf("%v: %.60s has another checksum than %d", err, text, sum)
					return
				}
				if messages++; messages%500 == r {
					c.Send(wstest.Ping("between"), wstest.Text(`{"id":1,"ping":{}}`))
				}
			}
		})
	}
	eventually(t, "the readers", func() bool { return srv.Stats().Subscriptions == readers })
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				text := strings.Repeat(string(rune('a'+w)), i%600) + fmt.Sprint(i)
				m := Message{Data: fmt.Appendf(nil, "[%d,%q]", crc32.ChecksumIEEE([]byte(text)), text)}
				if _, err := srv.Publish(t.Context(), "t", m); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Over the limit there is a 503 that says when to come back; room is taken
// again once there is some (docs/faults.md R2).
func TestFullServerTurnsAway(t *testing.T) {
	parallel(t)
	const limit = 50
	n := size(10_000)
	srv, addr := started(t, Config{MaxConnections: limit, CloseTimeout: time.Second})
	inside := make([]*client, limit)
	for i := range inside {
		inside[i] = dial(t, addr, "/ws")
	}
	var seconds sync.Map
	crowd(n, func(int) {
		c := connect(t, addr, 0)
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		r, err := http.ReadResponse(c.br, nil)
		if err != nil || r.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("over the limit: %v, %v", r, err)
			return
		}
		seconds.Store(r.Header.Get("Retry-After"), true)
	})
	for s := range seconds.Range {
		if at := 0; func() bool { _, err := fmt.Sscan(s.(string), &at); return err != nil || at < 1 || at > 30 }() {
			t.Errorf("Retry-After: %v", s)
		}
	}
	for i, c := range inside {
		if !c.ping(fmt.Sprint(i)) {
			t.Fatal("one inside was harmed")
		}
	}
	if st := srv.Stats(); st.HandshakeRejects["max_connections"] != uint64(n) || st.Capacity != limit || st.Accepted != limit {
		t.Errorf("%v of %d, %d accepted", st.HandshakeRejects, n, st.Accepted)
	}
	inside[0].Close()
	eventually(t, "room", func() bool { return srv.Stats().Connections == limit-1 })
	if !dial(t, addr, "/ws").ping("room") {
		t.Error("the room is not used")
	}
}

// floodKernel is the real one, in front of a crowd that connects without end.
type floodKernel struct {
	engine.Kernel
	on    atomic.Bool
	crowd atomic.Int64
}

const phantom = 1 << 30 // the descriptor of everybody in the crowd

func (k *floodKernel) Accept(listener int) (int, netpoll.Errno) {
	if k.on.Load() {
		k.crowd.Add(1)
		return phantom, 0
	}
	return k.Kernel.Accept(listener)
}

func (k *floodKernel) Recv(fd int, b []byte) (int, netpoll.Errno) {
	if fd == phantom {
		return 0, syscall.EAGAIN
	}
	return k.Kernel.Recv(fd, b)
}

func (k *floodKernel) Send(fd int, b []byte) (int, netpoll.Errno) {
	if fd == phantom {
		return len(b), 0
	}
	return k.Kernel.Send(fd, b)
}

func (k *floodKernel) Close(fd int) netpoll.Errno {
	if fd == phantom {
		return 0
	}
	return k.Kernel.Close(fd)
}

// Those that are connected are served while others connect to a full server
// without end (docs/faults.md X4).
func TestConnectFloodAtTheLimitStarvesNobody(t *testing.T) {
	parallel(t)
	k := &floodKernel{Kernel: engine.System()}
	_, addr := started(t, Config{kernel: k, MaxConnections: 1})
	honest := dial(t, addr, "/ws")
	k.on.Store(true)
	defer k.on.Store(false)
	next := connect(t, addr, 0) // what is in the kernel's queue keeps the listener readable
	next.write("GET ")
	eventually(t, "the flood", func() bool { return k.crowd.Load() > 0 })
	for i := range 10 {
		if !honest.ping(fmt.Sprint(i)) {
			t.Fatal("not served during the flood")
		}
	}
}

// The answer to one over the limit ends with an end of file, not with a reset
// that could take it away (docs/faults.md X4, R2).
func TestRefusalAtTheLimitEndsWithoutReset(t *testing.T) {
	parallel(t)
	_, addr := started(t, Config{MaxConnections: 1})
	dial(t, addr, "/ws")
	for range 200 {
		c := connect(t, addr, 0)
		c.write(wstest.Request("tocsin.test", "/ws", wstest.NewKey()))
		_ = c.SetReadDeadline(time.Now().Add(patience))
		answer, err := io.ReadAll(c.br)
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 503 ")) {
			t.Fatalf("%q, %v", answer, err)
		}
		c.Close()
	}
}

// Peers that are silent without a FIN are pinged, then closed with 3012; those
// that answer stay (docs/faults.md E9).
func TestVanishedPeersAreClosed(t *testing.T) {
	parallel(t)
	n := size(5000)
	srv, addr := started(t, Config{PingInterval: time.Second, PongTimeout: time.Second})
	var alive atomic.Int32
	for range 20 {
		c := dial(t, addr, "/ws")
		alive.Add(1)
		go func() {
			c.pongs()
			alive.Add(-1)
		}()
	}
	silent := make([]*client, n)
	crowd(n, func(i int) { silent[i] = dial(t, addr, "/ws") })
	crowd(n, func(i int) {
		if code := silent[i].code(); code != wire.CloseNoPong {
			t.Errorf("a silent peer is closed with %d", code)
		}
	})
	if st := srv.Stats(); st.Connections != 20 || alive.Load() != 20 || st.Closes[CloseKind{wire.CloseNoPong, "server"}] != uint64(n) || st.PingsSent < uint64(n) {
		t.Errorf("%d connections, %d alive, %v, %d pings", st.Connections, alive.Load(), st.Closes, st.PingsSent)
	}
}

// A message that many connections share, and that slow readers keep for long,
// arrives as it was published (docs/faults.md W14).
func TestSharedMessagesArriveUnchanged(t *testing.T) {
	s := newSim(t, 14, Config{Shards: 2, MaxOutbox: 20_000, Overflow: []OverflowRule{{"", DropOldest}}, MaxControl: 100})
	var peers []*peer
	for range 8 {
		peers = append(peers, s.dial("/ws?topics=t"))
	}
	sums := map[string]uint32{}
	came := 0
	read := func(p *peer) {
		for _, f := range p.frames() {
			e, err := tocsin.ParseEvent(f.Payload)
			if err == nil && e.Gap != nil {
				continue
			}
			if err != nil || e.Message == nil || crc32.ChecksumIEEE(e.Message.Data) != sums[e.Message.ID] {
				t.Fatalf("%v: %v", err, f)
			}
			came++
		}
	}
	messages := size(20_000)
	for i := range messages {
		data := fmt.Appendf(nil, "%q", strings.Repeat(string(rune('a'+i%26)), s.Rng.IntN(1500)))
		id := fmt.Sprint(i)
		sums[id] = crc32.ChecksumIEEE(data)
		if _, err := s.srv.Publish(t.Context(), "t", Message{Data: data, ID: id}); err != nil {
			t.Fatal(err)
		}
		clear(data) // it is the publisher's again
		p := peers[s.Rng.IntN(len(peers))]
		p.drain(s.Rng.IntN(15_000))
		s.turn(s.Rng.IntN(2))
		read(p)
	}
	for _, p := range peers {
		p.drain(-1)
	}
	s.run()
	for _, p := range peers {
		read(p)
	}
	if drops := int(sum(s.srv.Stats().Drops)); came+drops != messages*len(peers) || drops > came {
		t.Errorf("%d came and %d were dropped, of %d", came, drops, messages*len(peers))
	}
}

// Resets in the middle of a broadcast harm nobody and are no errors
// (docs/faults.md E7).
func TestResetsDuringABroadcast(t *testing.T) {
	parallel(t)
	var errs atomic.Int64
	srv, addr := started(t, Config{Logger: slog.New(errorsLogged{slog.DiscardHandler, &errs})})
	n := size(10_000)
	stay := dial(t, addr, "/ws")
	stop := make(chan struct{})
	sent := make(chan uint64)
	go func() {
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				sent <- i
				return
			default:
			}
			if r, err := srv.Broadcast(t.Context(), Message{Data: []byte("1"), Wait: WaitSent}); err != nil || r.Written+r.Queued == 0 {
				t.Errorf("%+v, %v", r, err)
			}
			if stay.message() == nil {
				t.Error("one who stays missed it")
			}
		}
	}()
	crowd(n, func(int) {
		c := dial(t, addr, "/ws")
		_ = c.Conn.(*net.TCPConn).SetLinger(0)
		c.Close()
	})
	close(stop)
	if i := <-sent; i == 0 || errs.Load() > 0 {
		t.Errorf("%d broadcasts, %d errors logged", i, errs.Load())
	}
	eventually(t, "the others to be gone", func() bool { return srv.Stats().Connections == 1 })
}
