package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/pool"
)

// system is the real [Kernel].
type system struct{ start time.Time }

func (system) Open() (Set, error) { return netpoll.NewSet() }

func (system) TakeListener(ln net.Listener, userTimeout time.Duration) (int, error) {
	return netpoll.TakeListener(ln, userTimeout)
}

func (system) TakeConn(conn net.Conn, userTimeout time.Duration) (int, error) {
	return netpoll.TakeConn(conn, userTimeout)
}

func (system) Accept(listener int) (int, netpoll.Errno)   { return netpoll.Accept(listener) }
func (system) Peer(fd int) netip.AddrPort                 { return netpoll.Peer(fd) }
func (system) Recv(fd int, b []byte) (int, netpoll.Errno) { return netpoll.Recv(fd, b) }
func (system) Send(fd int, b []byte) (int, netpoll.Errno) { return netpoll.Send(fd, b) }
func (system) CloseWrite(fd int) netpoll.Errno            { return netpoll.CloseWrite(fd) }
func (system) Close(fd int) netpoll.Errno                 { return netpoll.Close(fd) }
func (k system) Now() time.Duration                       { return time.Since(k.start) }
func (system) Date() time.Time                            { return time.Now() }
func (system) Rand(b []byte)                              { rand.Read(b) }

func (system) Woken(context.Context) {}

func (system) Hash() func(string) uint64 {
	seed := maphash.MakeSeed()
	return func(s string) uint64 { return maphash.String(seed, s) }
}

func (system) After(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

func (system) Reserve() int {
	fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// reservedFDs is what a process needs beside its connections: epoll sets,
// listeners, logs, the API's connections.
const reservedFDs = 256

// Capacity raises the soft descriptor limit to the hard one first.
func (system) Capacity(want, shards int) (int, error) {
	limit, hard, err := netpoll.RaiseDescriptorLimit()
	if err != nil {
		return 0, err
	}
	reserved := uint64(max(reservedFDs, reservedFDs/2+shards))
	fits := int(min(max(limit, reserved)-reserved, 1<<30))
	switch {
	case fits == 0:
		return 0, fmt.Errorf("the limit of open files (RLIMIT_NOFILE) is %d, hard %d, and a server needs %d for itself and one for each connection: raise it with ulimit -Hn %d or LimitNOFILE=",
			limit, hard, reserved, uint64(max(want, 1000))+reserved)
	case want == 0:
		return fits, nil
	case want > fits:
		return 0, fmt.Errorf("max-connections is %d, which needs %d open files; the limit (RLIMIT_NOFILE) is %d, hard %d: raise it with ulimit -Hn %d or LimitNOFILE=, or set max-connections to %d or less",
			want, uint64(want)+reserved, limit, hard, uint64(want)+reserved, fits)
	}
	return want, nil
}

// Runner starts a poller's goroutine and two pools.
func (system) Runner(w Work) (Runner, error) {
	r := &goroutines{}
	var err error
	if r.turns, err = pool.New(w.Workers, w.Shards, w.Turn, w.TurnPanicked); err == nil {
		r.calls, err = pool.New(w.CallWorkers, 16*w.CallWorkers, func(_ int, c *Call) { w.Call(c) }, w.CallPanicked)
	}
	if err == nil {
		r.poller, err = netpoll.NewPoller(w.Failed)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// goroutines is the [Runner] of the real kernel.
type goroutines struct {
	poller *netpoll.Poller
	turns  *pool.Pool[int]
	calls  *pool.Pool[*Call]
}

func (r *goroutines) Watch(fd int, ready func()) error { return r.poller.Add(fd, ready) }
func (r *goroutines) Rearm(fd int) error               { return r.poller.Rearm(fd) }
func (r *goroutines) Unwatch(fd int) error             { return r.poller.Del(fd) }
func (r *goroutines) Turn(shard int)                   { r.turns.Submit(shard) } // refused only after Close
func (r *goroutines) Idle() bool                       { return r.turns.Idle() }
func (r *goroutines) Call(c *Call) bool                { return r.calls.Submit(c) }
func (r *goroutines) Calls() int                       { return r.calls.Queued() }

func (r *goroutines) ReleaseCalls(ctx context.Context) error { return r.calls.Release(ctx) }

func (r *goroutines) Close() (err error) {
	if r.poller != nil {
		err = r.poller.Close()
	}
	if r.turns != nil {
		err = errors.Join(err, r.turns.Release(context.Background()))
	}
	return err
}
