// Package enginetest is a kernel without sockets, goroutines or time: turns and
// calls run when the test says so, the clock stands still until then, and each
// peer is two buffers. What happens follows from the seed.
//
// A test has a choice. It can say itself what runs, with [Kernel.Turn] and
// [Kernel.RunCalls]. Or it sets [Kernel.Virtual], and [Kernel.Step] decides by
// chance which of all that could run does: that is how the simulation of package
// server works.
package enginetest

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// T is the part of a test that a Kernel needs; *testing.T is one. If its Fatalf
// returns, the Kernel goes on as a real one would.
type T interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Kernel implements engine.Kernel. One goroutine uses it, but for Date, Now and
// After; if Go is set, one at a time.
type Kernel struct {
	T     T
	Rng   *rand.Rand
	Time  time.Duration
	Look  time.Duration // that every look at the clock takes
	Ahead time.Duration // by which the clock of the day was set forward

	Sink       bool            // what is sent is counted and thrown away
	WaitErr    []netpoll.Errno // what the next waits return
	CallRoom   int             // calls that may wait; negative for any number
	WantPanics int             // turns that may panic, as a runner survives it; others fail the test

	Timer func(d time.Duration, f func()) (stop func() bool) // what After does; nil: nothing comes of it

	// Of a simulation.
	Virtual   bool         // After's timers are Step's, whatever Timer is
	Chance    Chance       // what goes wrong
	Show      bool         // system calls are printed
	Deaf      bool         // the poller is given no time
	MaxFDs    int          // descriptors at once; 0 for any number
	Interrupt func()       // what others may do in the middle of a turn's system call
	Timed     func()       // called before and after a timer runs
	Go        func(func()) // runs a call beside all else; nil runs it in the caller

	Sent   int // bytes, of a sink
	Recvs  int
	Closed int // descriptors
	Seen   Count
	Trace  uint64 // a hash of all that was seen, in its order

	Work    engine.Work // what the engine has run
	sets    []*set
	fds     []descriptor // by number
	open    int          // of them
	ready   []*Peer      // those with an edge
	stale   []netpoll.Event
	pending []int // shards that want a turn
	calls   []*engine.Call
	sched   scheduler
}

// Chance says how often something goes wrong: once in so many times, 0 for
// never.
type Chance struct {
	Cut       int // a read gets a part, the rest comes later
	Signal    int // a system call is interrupted: EINTR
	Narrow    int // a send finds less room than there is
	Reset     int // a system call finds the connection reset
	Late      int // a wait tells of an edge later than it could
	Double    int // a wait tells of an edge again
	Spurious  int // a set is reported although nothing is ready
	Accept    int // an accept fails
	Interrupt int // others go on in the middle of a system call
	Inline    int // the runner says that it is idle when it is
}

// Count is how often what happened.
type Count struct {
	Calls  int // system calls
	Faults map[string]int
}

// descriptor is what stands behind a number.
type descriptor struct {
	peer   *Peer // the newest
	listen *Listener
	used   bool // by something else: a reserve
}

// New returns a kernel without connections.
func New(t T, seed uint64) *Kernel {
	return &Kernel{
		T: t, Rng: rand.New(rand.NewPCG(seed, 0)), Time: time.Hour, CallRoom: -1,
		Seen: Count{Faults: map[string]int{}}, fds: make([]descriptor, firstFD),
	}
}

// firstFD is the first descriptor of a connection. Those below are others'.
const firstFD = 32

// callNames are the system calls, as saw has them.
var callNames = map[byte]string{'a': "accept4", 'c': "close", 'e': "epoll_wait", 'r': "recv", 's': "send", 'w': "shutdown"}

// saw counts a system call and adds it to the hash.
func (k *Kernel) saw(name byte, fd, n int, errno netpoll.Errno, data []byte) {
	if k.Show {
		fmt.Printf("    %v %s(%d) = %d %v\n", k.Time, callNames[name], fd, n, errno)
	}
	k.Seen.Calls++
	k.Note(uint64(name)<<56^uint64(fd)<<40^uint64(uint32(n))<<8^uint64(errno), data)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Note adds something that happened to the hash.
func (k *Kernel) Note(what uint64, data []byte) {
	h := (k.Trace ^ what) * 0x9E3779B97F4A7C15
	h = (h ^ h>>29 ^ uint64(crc32.Checksum(data, castagnoli))) * 0xBF58476D1CE4E5B9
	k.Trace = h ^ h>>32
}

// Happens decides whether something with that chance, of once in n times, does;
// if so it is counted as a fault of that name.
func (k *Kernel) Happens(n int, fault string) bool {
	if n == 0 || k.Rng.IntN(n) != 0 {
		return false
	}
	k.Seen.Faults[fault]++
	return true
}

// Capacity implements engine.Kernel.
func (k *Kernel) Capacity(want, _ int) (int, error) {
	if want == 0 {
		want = 10_000
	}
	return want, nil
}

// Peer implements engine.Kernel.
func (k *Kernel) Peer(fd int) netip.AddrPort {
	if p := k.peer(fd); p == nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(fd))
}

// CloseWrite implements engine.Kernel.
func (k *Kernel) CloseWrite(fd int) netpoll.Errno {
	k.saw('w', fd, 0, 0, nil)
	p := k.peer(fd)
	if p == nil {
		return syscall.EBADF
	}
	p.Ends = true
	return 0
}

// Now implements engine.Kernel.
func (k *Kernel) Now() time.Duration { k.Time += k.Look; return k.Time }

// Date implements engine.Kernel.
func (k *Kernel) Date() time.Time { return time.Unix(0, 0).Add(k.Time + k.Ahead) }

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

// peer returns that of an open descriptor. A call on another is an error that a
// real kernel may not notice: it could be somebody else's by then.
func (k *Kernel) peer(fd int) *Peer {
	if fd < 0 || fd >= len(k.fds) || k.fds[fd].peer == nil || k.fds[fd].peer.Gone {
		k.T.Fatalf("a system call on descriptor %d, which is closed", fd)
		return nil
	}
	return k.fds[fd].peer
}

// take returns the lowest free descriptor, -1 if there is none.
func (k *Kernel) take() int {
	if k.MaxFDs > 0 && k.open >= k.MaxFDs {
		return -1
	}
	k.open++
	for fd := firstFD; fd < len(k.fds); fd++ {
		if k.fds[fd].free() {
			return fd
		}
	}
	k.fds = append(k.fds, descriptor{})
	return len(k.fds) - 1
}

func (d *descriptor) free() bool { return !d.used && d.listen == nil && (d.peer == nil || d.peer.Gone) }

// Reserve implements engine.Kernel.
func (k *Kernel) Reserve() int {
	if !k.Virtual {
		return -1
	}
	fd := k.take()
	if fd >= 0 {
		k.fds[fd] = descriptor{used: true}
	}
	return fd
}

// Close implements engine.Kernel.
func (k *Kernel) Close(fd int) netpoll.Errno {
	if fd < 0 {
		return syscall.EBADF
	}
	k.saw('c', fd, 0, 0, nil)
	if d := &k.fds[fd]; d.used || d.listen != nil {
		if d.listen != nil {
			d.listen.close()
		}
		*d = descriptor{}
		k.open--
		return 0
	}
	p := k.peer(fd)
	if p == nil {
		return syscall.EBADF
	}
	p.Gone = true
	k.open--
	k.Closed++
	return 0
}

// Recv implements engine.Kernel.
func (k *Kernel) Recv(fd int, b []byte) (int, netpoll.Errno) {
	k.interrupted()
	n, errno := k.recv(fd, b)
	k.saw('r', fd, n, errno, b[:n])
	return n, errno
}

func (k *Kernel) recv(fd int, b []byte) (int, netpoll.Errno) {
	k.Recvs++
	p := k.peer(fd)
	switch {
	case p == nil:
		return 0, syscall.EBADF
	case p.Broken:
		return 0, syscall.ECONNRESET
	case k.Happens(k.Chance.Signal, "a read that a signal interrupts"):
		return 0, syscall.EINTR
	case len(p.In) > 0 && k.Happens(k.Chance.Reset, "a connection that is reset"):
		p.Reset()
		return 0, syscall.ECONNRESET
	case len(p.In) == 0 && p.EOF:
		p.Heard = true
		return 0, 0
	case len(p.In) == 0:
		return 0, syscall.EAGAIN
	}
	n := len(p.In)
	if n > 1 && k.Happens(k.Chance.Cut, "a read that gets a part") { // the rest has not arrived yet; its edge will follow
		n = 1 + k.Rng.IntN(n)
		p.Raise(netpoll.Event{Readable: true})
		if p.EOF {
			p.Raise(netpoll.Event{HangUp: true})
		}
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
	k.interrupted()
	n, errno := k.send(fd, b)
	k.saw('s', fd, n, errno, b[:n])
	return n, errno
}

func (k *Kernel) send(fd int, b []byte) (int, netpoll.Errno) {
	p := k.peer(fd)
	switch {
	case p == nil:
		return 0, syscall.EBADF
	case p.Panics:
		p.Panics = false
		panic("a send that panics")
	case p.Ends || p.Broken:
		return 0, syscall.EPIPE
	case k.Happens(k.Chance.Signal, "a send that a signal interrupts"):
		return 0, syscall.EINTR
	case k.Happens(k.Chance.Reset, "a connection that is reset"):
		p.Reset()
		return 0, syscall.ECONNRESET
	}
	n := len(b)
	if k.Happens(k.Chance.Narrow, "a send that finds too little room") {
		p.Room = k.Rng.IntN(n + 1)
	}
	if p.Room >= 0 {
		n = min(n, p.Room)
		p.Room -= n
		p.full = n < len(b)
	}
	if n == 0 {
		if p.Sent != nil {
			p.Sent(nil)
		}
		return 0, syscall.EAGAIN
	}
	p.Out = append(p.Out, b[:n]...)
	if p.Sent != nil {
		p.Sent(b[:n])
	}
	return n, 0
}

// TakeConn implements engine.Kernel for a [Peer]'s Conn. It closes conn, as
// netpoll.TakeConn does.
func (k *Kernel) TakeConn(conn net.Conn, _ time.Duration) (int, error) {
	defer conn.Close()
	c, ok := conn.(*Conn)
	if !ok {
		return -1, syscall.ENOTSUP
	}
	fd := k.take()
	if fd < 0 {
		k.Seen.Faults["no descriptor for a guest"]++
		return -1, syscall.EMFILE
	}
	k.Note(uint64('d')<<56^uint64(fd), nil)
	c.peer.FD = fd
	k.fds[fd] = descriptor{peer: c.peer}
	return fd, nil
}

// TakeListener implements engine.Kernel for a [Listener].
func (k *Kernel) TakeListener(ln net.Listener, _ time.Duration) (int, error) {
	l, ok := ln.(*Listener)
	if !ok {
		return -1, syscall.ENOTSUP
	}
	fd := k.take()
	if fd < 0 {
		return -1, syscall.EMFILE
	}
	l.fd = fd
	k.fds[fd] = descriptor{listen: l}
	return fd, nil
}

// acceptErrors are what accept4(2) may fail with.
var acceptErrors = []netpoll.Errno{syscall.EINTR, syscall.ECONNABORTED, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPROTO}

// Accept implements engine.Kernel.
func (k *Kernel) Accept(listener int) (int, netpoll.Errno) {
	fd, errno := k.accept(listener)
	if k.sched.accepted++; k.sched.accepted > engine.AcceptBatch+1 { // one on the reserve
		k.T.Fatalf("%d accepts before others have their turn", k.sched.accepted)
	}
	k.saw('a', listener, fd, errno, nil)
	return fd, errno
}

func (k *Kernel) accept(listener int) (int, netpoll.Errno) {
	l := k.fds[listener].listen
	switch {
	case l == nil:
		return -1, syscall.EBADF
	case len(l.queue) == 0:
		return -1, syscall.EAGAIN
	case k.Happens(k.Chance.Accept, "an accept that fails"):
		return -1, acceptErrors[k.Rng.IntN(len(acceptErrors))]
	}
	fd := k.take()
	if fd < 0 {
		k.Seen.Faults["no descriptor"]++
		return -1, syscall.EMFILE
	}
	p := l.queue[0]
	l.queue = l.queue[1:]
	p.FD = fd
	k.fds[fd] = descriptor{peer: p}
	return fd, 0
}

// Again makes p, whose connection has ended, one that the server has not
// accepted yet, under the same descriptor.
func (p *Peer) Again() { *p = Peer{k: p.k, FD: p.FD, Room: -1} }
