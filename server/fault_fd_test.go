//go:build linux

package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// The faults of slow readers, descriptors and epoll.

// ledger is the real kernel and keeps an account of the descriptors that it
// gave out. Accepted sockets have small buffers.
type ledger struct {
	engine.Kernel
	mu   sync.Mutex
	open map[int]bool // connections
	kept map[int]bool // listeners
	bad  atomic.Int64 // calls on descriptors that are not open
}

func newLedger() *ledger {
	return &ledger{Kernel: engine.System(), open: map[int]bool{}, kept: map[int]bool{}}
}

func (l *ledger) sendBuffer() int { return 4096 }

func (l *ledger) must(fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open[fd] {
		l.bad.Add(1)
	}
}

func (l *ledger) Accept(listener int) (int, netpoll.Errno) {
	fd, errno := l.Kernel.Accept(listener)
	if errno == 0 {
		l.mu.Lock()
		l.open[fd] = true
		l.mu.Unlock()
	}
	return fd, errno
}

func (l *ledger) TakeListener(ln net.Listener, userTimeout time.Duration) (int, error) {
	fd, err := l.Kernel.TakeListener(ln, userTimeout)
	l.keep(fd)
	return fd, err
}

func (l *ledger) Reserve() int {
	fd := l.Kernel.Reserve()
	l.keep(fd)
	return fd
}

// keep notes a descriptor that stays open as long as the server serves.
func (l *ledger) keep(fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept[fd] = true
}

func (l *ledger) Close(fd int) netpoll.Errno {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open[fd] && !l.kept[fd] {
		l.bad.Add(1)
		return unix.EBADF
	}
	delete(l.open, fd)
	delete(l.kept, fd)
	return l.Kernel.Close(fd)
}

func (l *ledger) Recv(fd int, b []byte) (int, netpoll.Errno) { l.must(fd); return l.Kernel.Recv(fd, b) }
func (l *ledger) Send(fd int, b []byte) (int, netpoll.Errno) { l.must(fd); return l.Kernel.Send(fd, b) }
func (l *ledger) CloseWrite(fd int) netpoll.Errno            { l.must(fd); return l.Kernel.CloseWrite(fd) }

// unread counts the sockets that have something to read.
func (l *ledger) unread() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for fd := range l.open {
		if waiting, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && waiting > 0 {
			n++
		}
	}
	return n
}

// balanced wants every descriptor to be closed, once.
func (l *ledger) balanced(t *testing.T) {
	t.Helper()
	eventually(t, "all descriptors to be closed", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.open) == 0
	})
	if n := l.bad.Load(); n > 0 {
		t.Errorf("%d system calls on descriptors that were not open", n)
	}
}

// deaf connects a subscriber with a small receive buffer.
func deaf(t *testing.T, addr, path string) *client {
	c := connect(t, addr, 2048)
	c.upgrade(t, path)
	return c
}

// Readers that have stopped are closed with 3008 once their outbox is full; the
// others miss nothing (docs/faults.md B1).
func TestDeadReadersAreCut(t *testing.T) {
	parallel(t)
	dead, good, messages := size(1000), size(1000), 200
	srv, addr := started(t, Config{kernel: newLedger(), CloseTimeout: time.Second, MaxOutbox: 16 << 10})
	for range dead {
		deaf(t, addr, "/ws?topics=t")
	}
	var wg sync.WaitGroup
	next := make(chan struct{}, good)
	for range good {
		c := dial(t, addr, "/ws?topics=t")
		wg.Go(func() {
			for i := range messages {
				if m := c.message(); m == nil || m.Seq != uint64(i+1) {
					t.Errorf("message %d is %+v", i+1, m)
					return
				}
				next <- struct{}{}
			}
		})
	}
	eventually(t, "all", func() bool { return srv.Stats().Subscriptions == dead+good })
	data := []byte(`"` + strings.Repeat("x", 1000) + `"`)
	for range messages {
		if _, err := srv.Publish(t.Context(), "t", Message{Data: data}); err != nil {
			t.Fatal(err)
		}
		for range good { // they keep up
			<-next
		}
		if n := srv.Stats().OutboxBytes; n > int64(dead)*16<<10 {
			t.Fatalf("%d bytes wait", n)
		}
	}
	wg.Wait()
	eventually(t, "the dead to be cut", func() bool { return srv.Stats().Connections == good })
	st := srv.Stats()
	if st.Cuts["outbox"] != uint64(dead) || st.Closes[CloseKind{wire.CloseSlow, "server"}] != uint64(dead) || st.OutboxBytes < 0 {
		t.Errorf("%v %v", st.Cuts, st.Closes)
	}
}

// When all readers are slow, the sum of their outboxes is bounded and the
// longest are cut first (docs/faults.md B2).
func TestSumOfOutboxesIsBounded(t *testing.T) {
	parallel(t)
	const budget = 1 << 20
	n := size(5000)
	srv, addr := started(t, Config{kernel: newLedger(), CloseTimeout: time.Second, OutboxBudget: budget, MaxOutbox: 1 << 20})
	for range n {
		deaf(t, addr, "/ws?topics=t")
	}
	good := dial(t, addr, "/ws?topics=good")
	eventually(t, "all", func() bool { return srv.Stats().Subscriptions == n+1 })
	data := []byte(`"` + strings.Repeat("x", 4000) + `"`)
	for srv.Stats().Subscriptions > n/2 {
		if _, err := srv.Publish(t.Context(), "t", Message{Data: data, Wait: WaitSent}); err != nil {
			t.Fatal(err)
		}
		if got := srv.Stats().OutboxBytes; got > budget+int64(srv.cfg.Workers+2)*5000 {
			t.Fatalf("%d bytes wait, the budget is %d", got, budget)
		}
		if _, err := srv.Publish(t.Context(), "good", Message{Data: data}); err != nil || good.message() == nil {
			t.Fatalf("one who reads is harmed: %v", err)
		}
	}
	if cuts := srv.Stats().Cuts; cuts["budget"] == 0 || cuts["outbox"] > 0 {
		t.Errorf("%v", cuts)
	}
}

// A reader that takes a few bytes now and then makes progress, but too little:
// it is cut (docs/faults.md B3).
func TestTricklingReadersAreCut(t *testing.T) {
	parallel(t)
	n := size(1000)
	srv, addr := started(t, Config{kernel: newLedger(), CloseTimeout: time.Second, OutboxAge: 2 * time.Second})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range n {
		c := deaf(t, addr, "/ws?topics=t")
		wg.Go(func() {
			b := make([]byte, 50)
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					if _, err := c.Read(b); err != nil {
						return
					}
				case <-stop:
					return
				}
			}
		})
	}
	eventually(t, "all", func() bool { return srv.Stats().Subscriptions == n })
	for range 4 {
		if _, err := srv.Publish(t.Context(), "t", Message{Data: []byte(`"` + strings.Repeat("x", 15_000) + `"`)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all to be cut", func() bool { return srv.Stats().Cuts["trickle"] == uint64(n) })
	close(stop)
	wg.Wait()
	if cuts := srv.Stats().Cuts; cuts["stalled"]+cuts["outbox"] > 0 {
		t.Errorf("%v", cuts)
	}
}

// Descriptors are used again all the time and many ends are resets; nobody gets
// what is for another (docs/faults.md E1).
func TestReusedDescriptorsMixNothingUp(t *testing.T) {
	parallel(t)
	k := newLedger()
	srv, addr := started(t, Config{kernel: k, CloseTimeout: time.Second})
	cycles := size(20_000)
	var wg sync.WaitGroup
	var ids [64]atomic.Pointer[string] // of connections that are, or were
	for g := range 8 {
		rng := rand.New(rand.NewPCG(uint64(g), 1))
		wg.Go(func() {
			for i := range cycles / 8 {
				cookie := fmt.Sprintf("%d-%d", g, i)
				c := dial(t, addr, "/ws?user="+cookie)
				f, err := c.next()
				if err != nil {
					t.Errorf("welcome: %v", err)
					return
				}
				e, _ := tocsin.ParseEvent(f.Payload)
				name := e.Welcome.Conn + " " + cookie
				ids[rng.IntN(len(ids))].Store(&name)
				if other := ids[rng.IntN(len(ids))].Load(); other != nil {
					id, secret, _ := strings.Cut(*other, " ")
					_, _ = srv.Push(t.Context(), Target{Conn: id}, Message{Data: fmt.Appendf(nil, "%q", secret)})
					_, _ = srv.Push(t.Context(), Target{User: secret}, Message{Data: fmt.Appendf(nil, "%q", secret)})
				}
				_, _ = srv.Push(t.Context(), Target{User: cookie}, Message{Data: fmt.Appendf(nil, "%q", cookie)})
				if m := c.message(); m == nil || string(m.Data) != fmt.Sprintf("%q", cookie) {
					t.Errorf("%s was sent %+v", cookie, m)
				}
				if rng.IntN(2) == 0 {
					_ = c.Conn.(*net.TCPConn).SetLinger(0) // a reset
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	k.balanced(t)
	if st := srv.Stats(); st.ShardMax != 0 || st.Users != 0 {
		t.Errorf("left behind: %+v", st)
	}
}

// Whatever sizes peers write in, nothing stays unread in the kernel
// (docs/faults.md E2).
func TestNothingStaysUnread(t *testing.T) {
	parallel(t)
	k := newLedger()
	n := size(1000)
	var got atomic.Int64
	_, addr := started(t, Config{kernel: k, OnMessage: func(_ Conn, _ ws.OpCode, payload []byte) bool {
		got.Add(int64(len(payload)))
		return true
	}})
	var want atomic.Int64
	crowd(n, func(i int) {
		rng := rand.New(rand.NewPCG(uint64(i), 2))
		c := dial(t, addr, "/ws")
		var b []byte
		for range 20 {
			payload := make([]byte, rng.IntN(20_000))
			want.Add(int64(len(payload)))
			b = wstest.Binary(payload).Append(b)
		}
		for len(b) > 0 {
			piece := min(1+rng.IntN(100_000), len(b))
			if !c.write(string(b[:piece])) {
				t.Error("cannot write")
				return
			}
			b = b[piece:]
		}
	})
	eventually(t, "all to be read", func() bool { return k.unread() == 0 && got.Load() == want.Load() })
}

// Connections are spread evenly over the shards (docs/faults.md E5).
func TestConnectionsAreSpreadOverShards(t *testing.T) {
	srv, addr := started(t, Config{})
	n := size(18_000)
	dialer := child(t, "dial", addr, fmt.Sprint(n)) // in a process of its own, as descriptors are what counts
	eventually(t, "all to be accepted", func() bool { return srv.Stats().Accepted == uint64(n) })
	if st := srv.Stats(); float64(st.ShardMax) > 1.1*float64(st.ShardMin) {
		t.Errorf("the fullest shard has %d of %d connections, the emptiest %d", st.ShardMax, n, st.ShardMin)
	}
	dialer.end()
	eventually(t, "all to go", func() bool { return srv.Stats().ShardMax == 0 })
}

// process is this binary in another role; it ends when its input does.
type process struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
	end func()
}

func child(t *testing.T, role string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "TOCSIN_TEST_CHILD="+role)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &process{t, stdin, bufio.NewReader(stdout), sync.OnceFunc(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})}
}

// line reads a line of what the process prints.
func (p *process) line() string {
	p.t.Helper()
	text, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(text)
}

// dialer opens connections and holds them.
func dialer() {
	n, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", os.Args[1]); err != nil {
			panic(err)
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// A socket with a buffer of 4 KiB takes sends in part. What its reader gets is
// whole, and an idle server is not woken by sockets that could be written
// (docs/faults.md E6).
func TestPartialSendsAreFinished(t *testing.T) {
	parallel(t)
	srv, addr := started(t, Config{kernel: newLedger(), Shards: 4, MaxOutbox: 64 << 20, PingInterval: -1})
	messages := size(20_000)
	const readers = 10
	var wg sync.WaitGroup
	for range readers {
		c := wstest.Dial(t, addr, "/ws?topics=t")
		c.WantWelcome()
		wg.Go(func() {
			for i := range messages {
				if m := c.Event().Message; m == nil || m.Seq != uint64(i+1) {
					t.Errorf("message %d is %+v", i+1, m)
					return
				}
			}
		})
	}
	eventually(t, "all", func() bool { return srv.Stats().Subscriptions == readers })
	for i := range messages {
		if _, err := srv.Publish(t.Context(), "t", Message{Data: []byte(`"` + strings.Repeat("x", i%3000) + `"`)}); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	turns := func() (n uint64) {
		for _, c := range srv.Stats().TurnSeconds.Counts {
			n += c
		}
		return n
	}
	eventually(t, "the outboxes", func() bool { return srv.Stats().OutboxBytes == 0 })
	before, began := turns(), time.Now()
	sweeps := srv.engine.Ticked()
	eventually(t, "a second to pass", func() bool { return srv.engine.Ticked()-sweeps > time.Second })
	seconds := time.Since(began).Seconds()
	if n := turns() - before; float64(n) > (10+2*4)*(seconds+1) { // sweeps are turns too
		t.Errorf("%d turns in %.1f s of nothing", n, seconds)
	}
}

// errorsLogged counts records at error level.
type errorsLogged struct {
	slog.Handler
	n *atomic.Int64
}

func (h errorsLogged) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		h.n.Add(1)
	}
	return nil
}
func (errorsLogged) Enabled(context.Context, slog.Level) bool { return true }

// A connection that the peer, a timeout, Disconnect and the drain end at the
// same moment is closed once, and nothing of it is an error (docs/faults.md
// E8).
func TestManyEndsCloseOnce(t *testing.T) {
	parallel(t)
	k := newLedger()
	var errs atomic.Int64
	srv, addr := started(t, Config{kernel: k, PingInterval: time.Second, PongTimeout: time.Second, CloseTimeout: time.Second, MaxOutbox: 4096, Logger: slog.New(errorsLogged{slog.DiscardHandler, &errs})})
	n := size(5000)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, do := range []func(i int){
		func(int) {
			_, _ = srv.Broadcast(t.Context(), Message{Data: []byte(`"` + strings.Repeat("x", 3000) + `"`)})
		},
		func(i int) { _, _ = srv.Disconnect(t.Context(), Target{User: fmt.Sprint("u", i%n)}, 0, "") },
	} {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					do(i)
				}
			}
		})
	}
	crowd(n, func(i int) {
		c := connect(t, addr, 2048)
		c.write(wstest.Request("tocsin.test", fmt.Sprint("/ws?user=u", i), wstest.NewKey()))
		switch i % 4 {
		case 0:
			c.status()
			_ = c.Conn.(*net.TCPConn).SetLinger(0)
			c.Close()
		case 1:
			c.status()
			c.send(wstest.Close(wire.CloseNormal, ""))
		case 2:
			c.code()
			c.Close()
		}
	})
	close(stop)
	wg.Wait()
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	k.balanced(t)
	total := uint64(0)
	for _, c := range srv.Stats().Closes {
		total += c
	}
	if st := srv.Stats(); total+sum(st.HandshakeRejects) != uint64(n) || errs.Load() > 0 || st.OutboxBytes != 0 || st.PublishBytes != 0 {
		t.Errorf("%d ends of %d: %v %v; %d errors logged; %d bytes wait", total, n, st.Closes, st.HandshakeRejects, errs.Load(), st.OutboxBytes)
	}
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// The number of threads does not grow with connections, stalled ones neither
// (docs/faults.md E11).
func TestThreadsDoNotFollowConnections(t *testing.T) {
	threads := func() (n int) {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(b), "Threads:")
		if _, err := fmt.Sscan(after, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	_, addr := started(t, Config{})
	before, goroutines := threads(), runtime.NumGoroutine()
	for i := range size(9000) {
		fd := rawSocket(t, addr)
		request := wstest.Request("tocsin.test", "/ws", "dGhlIHNhbXBsZSBub25jZQ==")
		if i%2 == 0 {
			request = request[:20]
		}
		_, _ = unix.Write(fd, []byte(request))
	}
	honest(t, addr, 10)
	if now := threads(); now > max(before, runtime.GOMAXPROCS(0)+20)+10 {
		t.Errorf("%d threads, before there were %d", now, before)
	}
	if now := runtime.NumGoroutine(); now > goroutines+runtime.GOMAXPROCS(0)+8 {
		t.Errorf("%d goroutines, before there were %d", now, goroutines)
	}
}

// Without free descriptors, new connections are refused or wait, and nothing
// spins; once there are some, they are served (docs/faults.md E4).
func TestOutOfDescriptors(t *testing.T) {
	parallel(t)
	few := child(t, "fewfds")
	defer few.end()
	// ask returns the connections, accept errors and answers of 503.
	ask := func() (open, errors, full int) {
		fmt.Fprintln(few.in, "stats")
		if _, err := fmt.Sscan(few.line(), &open, &errors, &full); err != nil {
			t.Fatal(err)
		}
		return open, errors, full
	}
	addr := few.line()
	var clients []*client
	request := wstest.Request("tocsin.test", "/ws", wstest.NewKey())
	began := time.Now()
	for range min(size(5000), 3000) { // those who wait stand in the kernel's queue
		c := connect(t, addr, 0)
		c.write(request[:4]) // TCP_DEFER_ACCEPT would mix up the silent ones
		clients = append(clients, c)
	}
	eventually(t, "the descriptors to run out", func() bool { _, errors, _ := ask(); return errors >= 5 })
	for _, c := range clients[:20] {
		c.write(request[4:])
		if c.status() != http.StatusSwitchingProtocols || !c.ping("served") {
			t.Fatal("one with a descriptor is not served")
		}
	}
	open, errors, full := ask()
	// One error a try; tries are 5 ms apart, then twice as long, to a second.
	if most := 10 + int(time.Since(began)/time.Second); errors > most || full == 0 || full > errors {
		t.Errorf("%d errors in %s, %d told", errors, time.Since(began), full)
	}
	for _, c := range clients[:100] {
		c.Close()
	}
	last := connect(t, addr, 0)
	for _, c := range clients[open:] { // those who waited
		c.Close()
	}
	last.upgrade(t, "/ws")
	if !last.ping("at last") {
		t.Error("not served with descriptors again")
	}
}

func init() { children["fewfds"], children["dial"] = fewFDs, dialer }

// fewFDs is the server of TestOutOfDescriptors: it can hold more connections than it has
// descriptors for.
func fewFDs() {
	lim := syscall.Rlimit{Cur: 700, Max: 700}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		panic(err)
	}
	srv, err := New(Config{Dev: true, Logger: silent, Drain: time.Millisecond, CloseTimeout: time.Second, HandshakeTimeout: time.Minute})
	if err != nil {
		panic(err)
	}
	for range 350 { // what the rest of the process has open
		if engine.System().Reserve() < 0 {
			panic("no descriptor")
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() { _ = srv.Serve(ln) }()
	fmt.Println(ln.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		st := srv.Stats()
		fmt.Println(st.ShardMax*len(srv.shards), sum(st.AcceptErrors), st.HandshakeRejects["max_connections"])
	}
}

// scarce is the real kernel, but there is never more than one descriptor left. It
// notes for how long accepting stops.
type scarce struct {
	engine.Kernel
	mu     sync.Mutex
	none   bool
	pauses []time.Duration
}

func (k *scarce) Accept(listener int) (int, netpoll.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.none {
		k.none = false
		return -1, syscall.EMFILE
	}
	fd, errno := k.Kernel.Accept(listener)
	k.none = errno == 0
	return fd, errno
}

// Reserve implements engine.Kernel: there is none.
func (k *scarce) Reserve() int { return -1 }

func (k *scarce) After(d time.Duration, f func()) func() bool {
	if d < 100*time.Millisecond && d > 0 {
		k.mu.Lock()
		k.pauses = append(k.pauses, d)
		k.mu.Unlock()
	}
	return k.Kernel.After(d, f)
}

// Accepting stops for longer and longer only while nobody can be accepted.
func TestAcceptPausesLessWhenOneWasAccepted(t *testing.T) {
	k := &scarce{Kernel: engine.System()}
	_, addr := started(t, Config{kernel: k})
	for range 4 {
		dial(t, addr, "/ws")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.pauses) < 3 || slices.ContainsFunc(k.pauses, func(d time.Duration) bool { return d != k.pauses[0] }) {
		t.Errorf("accepting stopped for %v", k.pauses)
	}
}
