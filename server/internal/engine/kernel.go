package engine

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
)

// Kernel is everything that an engine asks of the operating system: sockets,
// readiness, time, chance, and that something runs. Nothing of it blocks. A
// test can be the kernel: split reads, refuse writes, stop the clock.
type Kernel interface {
	// Capacity returns how many connections fit in the process beside so many
	// shards, at most want; want 0 is for as many as fit.
	Capacity(want, shards int) (int, error)

	Open() (Set, error) // epoll_create1(2)

	TakeListener(ln net.Listener, userTimeout time.Duration) (fd int, err error)
	TakeConn(conn net.Conn, userTimeout time.Duration) (fd int, err error)
	Reserve() (fd int) // a descriptor to give up when there are none; -1 if there are none
	Accept(listener int) (int, netpoll.Errno)
	Peer(fd int) netip.AddrPort
	Recv(fd int, b []byte) (int, netpoll.Errno)
	Send(fd int, b []byte) (int, netpoll.Errno)
	CloseWrite(fd int) netpoll.Errno
	Close(fd int) netpoll.Errno

	Now() time.Duration // monotonic, from an arbitrary start
	Date() time.Time    // of the day, for people
	After(d time.Duration, f func()) (stop func() bool)
	Rand(b []byte)             // fills b with bytes that cannot be guessed
	Hash() func(string) uint64 // a hash whose results cannot be guessed

	// Woken is called by a goroutine that is not the runner's, when it has waited
	// for a turn or for whoever ctx belongs to, and before it does anything else.
	// A simulation decides when it goes on.
	Woken(ctx context.Context)

	// Runner starts what runs the work, until its Close.
	Runner(w Work) (Runner, error)
}

// Set is an epoll set with connections in it; see [netpoll.Set], which is one.
// One goroutine at a time waits on it.
type Set interface {
	FD() int
	Add(fd int, key uint64) netpoll.Errno
	Wait(events []netpoll.Event) (int, netpoll.Errno)
	Close() error
}

// Work is what a [Runner] runs, on whatever goroutine it likes.
type Work struct {
	Shards, Workers, CallWorkers int

	// Turn takes the turn of a shard with the buffers of a worker, which is a
	// number under Workers that nobody else has at the moment.
	Turn         func(worker, shard int)
	TurnPanicked func(shard int, value any, stack []byte)
	Call         func(*Call)
	CallPanicked func(c *Call, value any, stack []byte)
	// Failed is told that readiness cannot be waited for any more.
	Failed func(error)
}

// Runner decides which goroutine runs what. Any goroutine may call it.
type Runner interface {
	// Watch has ready called once when fd is readable; after that, and until
	// Rearm, not again.
	Watch(fd int, ready func()) error
	Rearm(fd int) error
	Unwatch(fd int) error
	// Turn has Work.Turn called soon. There is room for one of each shard.
	Turn(shard int)
	// Idle reports whether no turn runs or waits.
	Idle() bool
	// Call has Work.Call called soon; false means that there is no room.
	Call(c *Call) bool
	// Calls returns how many calls wait.
	Calls() int
	// ReleaseCalls waits until no call runs or waits, and takes no more. It
	// gives up when ctx ends.
	ReleaseCalls(ctx context.Context) error
	// Close ends everything else, turns that were begun included.
	Close() error
}
