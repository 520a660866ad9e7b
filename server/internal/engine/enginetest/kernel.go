// Package enginetest is a kernel without sockets, goroutines or time: turns and
// calls run when the test says so, the clock stands still until then, and each
// peer is two buffers. What happens follows from the seed.
package enginetest

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// T is the part of a test that a Kernel needs; *testing.T is one.
type T interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Kernel implements engine.Kernel. One goroutine uses it, but for Date, Now and
// After.
type Kernel struct {
	T     T
	Rng   *rand.Rand
	Time  time.Duration
	Look  time.Duration // that every look at the clock takes
	Ahead time.Duration // by which the clock of the day was set forward

	CutReads   bool            // a read gets a part, the rest comes later
	Sink       bool            // what is sent is counted and thrown away
	WaitErr    []netpoll.Errno // what the next waits return
	CallRoom   int             // calls that may wait; negative for any number
	Timers     bool            // After is real time's; else nothing comes of it
	WantPanics int             // turns that may panic, as a runner survives it; others fail the test

	Sent   int // bytes, of a sink
	Recvs  int
	Closed int // descriptors

	Work    engine.Work // what the engine has run
	sets    []*set
	peers   map[int]*Peer // by descriptor, the newest
	ready   []*Peer       // those with an edge
	stale   []netpoll.Event
	pending []int // shards that want a turn
	calls   []*engine.Call
}

// New returns a kernel without connections.
func New(t T, seed uint64) *Kernel {
	return &Kernel{T: t, Rng: rand.New(rand.NewPCG(seed, 0)), Time: time.Hour, CallRoom: -1, peers: map[int]*Peer{}}
}

// firstFD is the first descriptor of a connection. Those below are others'.
const firstFD = 32

// set is an epoll set.
type set struct {
	k     *Kernel
	index int
	armed bool
	watch func()
}

// Capacity implements engine.Kernel.
func (k *Kernel) Capacity(want, _ int) (int, error) {
	if want == 0 {
		want = 10_000
	}
	return want, nil
}

// Open implements engine.Kernel.
func (k *Kernel) Open() (engine.Set, error) {
	s := &set{k: k, index: len(k.sets)}
	k.sets = append(k.sets, s)
	return s, nil
}

// TakeListener implements engine.Kernel: there are none.
func (k *Kernel) TakeListener(net.Listener, time.Duration) (int, error) { return -1, syscall.ENOTSUP }

// TakeConn implements engine.Kernel: there are none.
func (k *Kernel) TakeConn(net.Conn, time.Duration) (int, error) { return -1, syscall.ENOTSUP }

// Reserve implements engine.Kernel.
func (k *Kernel) Reserve() int { return -1 }

// Accept implements engine.Kernel.
func (k *Kernel) Accept(int) (int, netpoll.Errno) { return -1, syscall.EAGAIN }

// Peer implements engine.Kernel.
func (k *Kernel) Peer(fd int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(k.peer(fd).FD))
}

// CloseWrite implements engine.Kernel.
func (k *Kernel) CloseWrite(fd int) netpoll.Errno { k.peer(fd).Ends = true; return 0 }

// Now implements engine.Kernel.
func (k *Kernel) Now() time.Duration { k.Time += k.Look; return k.Time }

// Date implements engine.Kernel.
func (k *Kernel) Date() time.Time { return time.Unix(0, 0).Add(k.Time + k.Ahead) }

// After implements engine.Kernel.
func (k *Kernel) After(d time.Duration, f func()) func() bool {
	if !k.Timers {
		return func() bool { return false }
	}
	return time.AfterFunc(d, f).Stop
}

// Rand implements engine.Kernel.
func (k *Kernel) Rand(b []byte) {
	for i := range b {
		b[i] = byte(k.Rng.Uint32())
	}
}

// Hash implements engine.Kernel: FNV-1a, the same in every process.
func (k *Kernel) Hash() func(string) uint64 {
	return func(s string) uint64 {
		h := uint64(14695981039346656037)
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
		return h
	}
}

// Runner implements engine.Kernel.
func (k *Kernel) Runner(w engine.Work) (engine.Runner, error) {
	k.Work = w
	return runner{k}, nil
}

func (k *Kernel) peer(fd int) *Peer {
	p := k.peers[fd]
	if p == nil || p.Gone {
		k.T.Fatalf("a system call on descriptor %d, which is closed", fd)
	}
	return p
}

// Close implements engine.Kernel.
func (k *Kernel) Close(fd int) netpoll.Errno {
	k.peer(fd).Gone = true
	k.Closed++
	return 0
}

// Recv implements engine.Kernel.
func (k *Kernel) Recv(fd int, b []byte) (int, netpoll.Errno) {
	k.Recvs++
	p := k.peer(fd)
	if p.Broken {
		return 0, syscall.ECONNRESET
	}
	if len(p.In) == 0 {
		if p.EOF {
			return 0, 0
		}
		return 0, syscall.EAGAIN
	}
	n := len(p.In)
	if k.CutReads { // the rest has not arrived yet; its edge will follow
		n = 1 + k.Rng.IntN(n)
		p.Raise(netpoll.Event{Readable: true})
	}
	n = copy(b, p.In[:n])
	p.In = p.In[n:]
	return n, 0
}

// Send implements engine.Kernel.
func (k *Kernel) Send(fd int, b []byte) (int, netpoll.Errno) {
	if k.Sink {
		k.Sent += len(b)
		return len(b), 0
	}
	p := k.peer(fd)
	if p.Panics {
		p.Panics = false
		panic("a send that panics")
	}
	if p.Ends || p.Broken {
		return 0, syscall.EPIPE
	}
	n := len(b)
	if p.Room >= 0 {
		n = min(n, p.Room)
		p.Room -= n
		p.full = n < len(b)
	}
	if n == 0 {
		return 0, syscall.EAGAIN
	}
	p.Out = append(p.Out, b[:n]...)
	return n, 0
}

// FD implements engine.Set.
func (s *set) FD() int { return s.index }

// Add implements engine.Set.
func (s *set) Add(fd int, key uint64) netpoll.Errno {
	s.k.peer(fd).Ref = engine.Ref(key)
	return 0
}

// Close implements engine.Set.
func (s *set) Close() error { return nil }

// Wait implements engine.Set. It reports the edges of a set in any order, now
// and then one for a connection that has ended.
func (s *set) Wait(events []netpoll.Event) (int, netpoll.Errno) {
	k := s.k
	if len(k.WaitErr) > 0 {
		errno := k.WaitErr[0]
		k.WaitErr = k.WaitErr[1:]
		if errno != 0 {
			return 0, errno
		}
	}
	n := 0
	for _, e := range k.stale {
		if n < len(events) && engine.Ref(e.Key).Shard(len(k.sets)) == s.index {
			events[n] = e
			n++
		}
	}
	k.stale = nil
	var later []*Peer
	k.Rng.Shuffle(len(k.ready), func(i, j int) { k.ready[i], k.ready[j] = k.ready[j], k.ready[i] })
	for _, p := range k.ready {
		switch {
		case p.Gone || p.Edge == netpoll.Event{}:
			continue
		case p.Ref.Shard(len(k.sets)) != s.index || n == len(events):
			later = append(later, p)
			continue
		}
		events[n] = p.Edge
		events[n].Key = uint64(p.Ref)
		p.Edge = netpoll.Event{}
		n++
	}
	k.ready = later
	return n, 0
}

// Stale has the next wait report an edge of a connection that has ended.
func (k *Kernel) Stale(e netpoll.Event) { k.stale = append(k.stale, e) }

// runner implements engine.Runner.
type runner struct{ k *Kernel }

func (r runner) Watch(fd int, ready func()) error {
	r.k.sets[fd].watch = ready
	return r.Rearm(fd)
}

func (r runner) Rearm(fd int) error {
	r.k.sets[fd].armed = true
	return nil
}

func (r runner) Unwatch(int) error { return nil }
func (r runner) Turn(shard int)    { r.k.pending = append(r.k.pending, shard) }
func (r runner) Idle() bool        { return false }
func (r runner) Calls() int        { return len(r.k.calls) }
func (r runner) Close() error      { return nil }

func (r runner) ReleaseCalls(context.Context) error { return nil }

func (r runner) Call(c *engine.Call) bool {
	if r.k.CallRoom >= 0 && len(r.k.calls) >= r.k.CallRoom {
		return false
	}
	r.k.calls = append(r.k.calls, c)
	return true
}

// Turn has a shard served until it has nothing left: its set is reported, and
// it has every turn that it wants.
func (k *Kernel) Turn(shard int) {
	if s := k.sets[shard]; s.armed {
		s.armed = false
		s.watch()
	}
	for i := 0; ; i++ {
		at := slices.Index(k.pending, shard)
		if at < 0 {
			return
		}
		if i == 10_000 {
			k.T.Fatal("turns without end")
		}
		k.pending = slices.Delete(k.pending, at, at+1)
		k.turn(shard)
	}
}

func (k *Kernel) turn(shard int) {
	defer func() {
		if k.WantPanics == 0 {
			return
		}
		if v := recover(); v != nil {
			k.WantPanics--
			k.Work.TurnPanicked(shard, v, debug.Stack())
		}
	}()
	k.Work.Turn(0, shard)
}

// RunCalls runs the calls that wait.
func (k *Kernel) RunCalls() {
	for len(k.calls) > 0 {
		c := k.calls[0]
		k.calls = k.calls[1:]
		k.Work.Call(c)
	}
}

// RunCall runs one of the calls that wait, whichever: several workers take them.
func (k *Kernel) RunCall() {
	if len(k.calls) > 0 {
		i := k.Rng.IntN(len(k.calls))
		c := k.calls[i]
		k.calls = slices.Delete(k.calls, i, i+1)
		k.Work.Call(c)
	}
}

// HasCalls reports whether calls wait.
func (k *Kernel) HasCalls() bool { return len(k.calls) > 0 }

// Wanting reports whether a shard wants a turn.
func (k *Kernel) Wanting() bool { return len(k.pending) > 0 }

// TakeCalls returns the calls that wait, which then do not any more.
func (k *Kernel) TakeCalls() []*engine.Call {
	calls := k.calls
	k.calls = nil
	return calls
}

// Peer is the other end of one connection.
type Peer struct {
	k      *Kernel
	FD     int
	Ref    engine.Ref    // once it was accepted
	In     []byte        // on its way to the server
	EOF    bool          // behind In
	Out    []byte        // from the server, not yet read
	Ends   bool          // behind Out
	Room   int           // bytes that the socket takes until it refuses; negative: all
	Gone   bool          // the server has closed the descriptor
	Panics bool          // the next send to it does
	Edge   netpoll.Event // that the next wait will report
	full   bool          // a send was refused; room makes an edge

	Broken bool // it was reset: no call on the socket succeeds any more
}

// Socket makes a connection that the server has not accepted yet, under the
// lowest free descriptor.
func (k *Kernel) Socket() *Peer {
	fd := firstFD
	for k.peers[fd] != nil && !k.peers[fd].Gone {
		fd++
	}
	p := &Peer{k: k, FD: fd, Room: -1}
	k.peers[fd] = p
	return p
}

// Alive returns how many connections the server has not closed.
func (k *Kernel) Alive() (n int) {
	for _, p := range k.peers {
		if !p.Gone {
			n++
		}
	}
	return n
}

// Raise makes an edge, which the next wait may tell.
func (p *Peer) Raise(e netpoll.Event) {
	p.Edge.Readable = p.Edge.Readable || e.Readable
	p.Edge.Writable = p.Edge.Writable || e.Writable
	p.Edge.HangUp = p.Edge.HangUp || e.HangUp
	if !slices.Contains(p.k.ready, p) {
		p.k.ready = append(p.k.ready, p)
	}
}

// Readable reports whether the next wait will report p.
func (p *Peer) Readable() bool { return p.Edge != netpoll.Event{} }

// Write sends bytes to the server.
func (p *Peer) Write(b []byte) {
	p.In = append(p.In, b...)
	p.Raise(netpoll.Event{Readable: true})
}

// Send sends frames to the server.
func (p *Peer) Send(frames ...wstest.Frame) { p.Write(wstest.Encode(frames...)) }

// HangUp ends the peer's side.
func (p *Peer) HangUp() {
	p.EOF = true
	p.Raise(netpoll.Event{Readable: true, HangUp: true})
}

// Reset ends the connection as a peer does that is not there any more.
func (p *Peer) Reset() {
	p.Broken = true
	p.Raise(netpoll.Event{Readable: true, Writable: true, HangUp: true})
}

// Drain makes room for n more bytes; negative for any number.
func (p *Peer) Drain(n int) {
	p.Room = n
	if p.full {
		p.full = false
		p.Raise(netpoll.Event{Writable: true})
	}
}

// Frames reads what has come as whole frames and leaves the rest.
func (p *Peer) Frames() (out []wstest.Frame) {
	p.k.T.Helper()
	for {
		h, size := wire.ParseHeader(p.Out)
		if size == 0 || int64(len(p.Out)-size) < h.Length {
			return out
		}
		if h.Masked || h.Rsv != 0 || !h.Fin || h.OpCode == ws.OpContinuation || h.OpCode.IsReserved() {
			p.k.T.Fatalf("a bad frame from the server: %+v", h)
		}
		out = append(out, wstest.Frame{Op: h.OpCode, Payload: p.Out[size : size+int(h.Length)]})
		p.Out = p.Out[size+int(h.Length):]
	}
}
