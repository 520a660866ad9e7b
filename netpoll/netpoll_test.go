//go:build linux

package netpoll

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 30 * time.Second

// pair returns two connected non-blocking sockets.
func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		Close(fds[0])
		Close(fds[1])
	})
	return fds[0], fds[1]
}

func newSet(t *testing.T) *Set {
	t.Helper()
	s, err := NewSet()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newPoller(t *testing.T) *Poller {
	t.Helper()
	p, err := NewPoller(func(err error) { t.Errorf("waiting failed: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func send(t *testing.T, fd int, s string) {
	t.Helper()
	if n, errno := Send(fd, []byte(s)); n != len(s) || errno != 0 {
		t.Fatalf("sent %d: %v", n, errno)
	}
}

// wantEvents waits on s once and wants exactly these.
func wantEvents(t *testing.T, s *Set, want ...Event) {
	t.Helper()
	var events [8]Event
	n, errno := s.Wait(events[:])
	got := events[:n]
	slices.SortFunc(got, func(a, b Event) int { return int(a.Key) - int(b.Key) })
	if errno != 0 || !slices.Equal(got, want) {
		t.Fatalf("events %+v (%v), want %+v", got, errno, want)
	}
}

func TestSetIsEdgeTriggered(t *testing.T) {
	s := newSet(t)
	a, b := pair(t)
	const key = 1<<63 | 7
	if errno := s.Add(a, key); errno != 0 {
		t.Fatal(errno)
	}
	if errno := s.Add(a, key); errno != unix.EEXIST {
		t.Errorf("added twice: %v", errno)
	}
	wantEvents(t, s, Event{Key: key, Writable: true})
	wantEvents(t, s) // told once
	send(t, b, "x")
	wantEvents(t, s, Event{Key: key, Readable: true, Writable: true})
	wantEvents(t, s)
	send(t, b, "y") // more is a new edge
	wantEvents(t, s, Event{Key: key, Readable: true, Writable: true})
	buf := make([]byte, 8)
	if n, errno := Recv(a, buf); n != 2 || errno != 0 {
		t.Fatal(n, errno)
	}
	if _, errno := Recv(a, buf); errno != EAGAIN {
		t.Fatal(errno)
	}
	CloseWrite(b)
	wantEvents(t, s, Event{Key: key, Readable: true, Writable: true, HangUp: true})
	if n, errno := Recv(a, buf); n != 0 || errno != 0 {
		t.Fatalf("at the end of file: %d, %v", n, errno)
	}
}

func TestSetForgetsTheClosed(t *testing.T) {
	s := newSet(t)
	a, b := pair(t)
	s.Add(a, 1)
	send(t, b, "x")
	Close(a)
	wantEvents(t, s)
	// The number is free, and its next socket is another.
	c, _ := pair(t)
	if c != a {
		t.Skipf("descriptor %d was not used again, %d was", a, c)
	}
	s.Add(c, 2)
	wantEvents(t, s, Event{Key: 2, Writable: true})
}

func TestSetWaitsInBatches(t *testing.T) {
	s := newSet(t)
	for i := range 10 {
		a, _ := pair(t)
		s.Add(a, uint64(i))
	}
	seen := map[uint64]bool{}
	for _, want := range []int{4, 4, 2, 0} {
		var events [4]Event
		n, errno := s.Wait(events[:])
		if n != want || errno != 0 {
			t.Fatalf("%d events, want %d: %v", n, want, errno)
		}
		for _, e := range events[:n] {
			seen[e.Key] = true
		}
	}
	if len(seen) != 10 {
		t.Errorf("saw %v", seen)
	}
}

func TestSetOfBadDescriptors(t *testing.T) {
	s := newSet(t)
	if errno := s.Add(-1, 1); errno != unix.EBADF {
		t.Error(errno)
	}
	closed, err := NewSet()
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if _, errno := closed.Wait(make([]Event, 1)); errno != unix.EBADF {
		t.Errorf("waiting on a closed set: %v", errno)
	}
}

func TestSetAllocatesNothing(t *testing.T) {
	s := newSet(t)
	a, b := pair(t)
	s.Add(a, 1)
	events, buf := make([]Event, 8), make([]byte, 8)
	if n := testing.AllocsPerRun(100, func() {
		Send(b, buf)
		s.Wait(events)
		Recv(a, buf)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The heart of the matter: a set in a poller is told of once, then silent
// until it is armed again, and what came meanwhile is told then.
func TestPollerOfSets(t *testing.T) {
	p, s := newPoller(t), newSet(t)
	called := make(chan struct{}, 100)
	if err := p.Add(s.FD(), func() { called <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	a, b := pair(t)
	s.Add(a, 1) // is writable
	<-called
	send(t, b, "x")
	wantEvents(t, s, Event{Key: 1, Readable: true, Writable: true})
	send(t, b, "y")
	if len(called) != 0 {
		t.Error("called without being armed")
	}
	if err := p.Rearm(s.FD()); err != nil {
		t.Fatal(err)
	}
	<-called // of y, which came before
	wantEvents(t, s, Event{Key: 1, Readable: true, Writable: true})
	if err := p.Rearm(s.FD()); err != nil {
		t.Fatal(err)
	}
	if len(called) != 0 {
		t.Error("called with nothing to tell")
	}
	send(t, b, "z")
	<-called
	if err := p.Del(s.FD()); err != nil {
		t.Fatal(err)
	}
	if err := p.Rearm(s.FD()); err == nil {
		t.Error("armed what is not watched")
	}
	if len(called) != 0 {
		t.Error("called after Del")
	}
}

// Nothing is lost between the owner's last wait and arming, however they race.
func TestNoWakeUpIsLost(t *testing.T) {
	p, s := newPoller(t), newSet(t)
	a, b := pair(t)
	var received atomic.Int64
	var over atomic.Bool // what the last callback arms may be closed by then
	defer over.Store(true)
	buf := make([]byte, 100) // the poller's goroutine owns these
	events := make([]Event, 4)
	if err := p.Add(s.FD(), func() {
		s.Wait(events)
		for {
			n, errno := Recv(a, buf)
			if errno != 0 {
				break
			}
			received.Add(int64(n))
		}
		if err := p.Rearm(s.FD()); err != nil && !over.Load() {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	s.Add(a, 1)
	for i := int64(1); i <= 5000; i++ {
		send(t, b, "x")
		if i%7 == 0 {
			for deadline := time.Now().Add(patience); received.Load() != i; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("%d of %d bytes were told", received.Load(), i)
				}
			}
		}
	}
}

// easygo keeps the callback of a failed Add; the number must work afterwards.
func TestAddAfterFailedAdd(t *testing.T) {
	p := newPoller(t)
	file, err := os.Open("/proc/self/status") // epoll takes no regular files
	if err != nil {
		t.Fatal(err)
	}
	fd := int(file.Fd())
	for range 3 {
		if err := p.Add(fd, func() {}); !errors.Is(err, unix.EPERM) {
			t.Fatalf("a regular file: %v", err)
		}
	}
	file.Close()
	a, b := pair(t)
	if a != fd && b != fd {
		t.Skipf("descriptor %d was not used again", fd)
	}
	other := a + b - fd
	called := make(chan struct{}, 1)
	if err := p.Add(fd, func() { called <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	send(t, other, "x")
	<-called
	if err := p.Del(fd); err != nil {
		t.Error(err)
	}
}

// Closing is no event, ends the goroutine and gives the descriptors back.
func TestPollerClose(t *testing.T) {
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	for range 20 {
		p, err := NewPoller(func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSet()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Add(s.FD(), func() { t.Error("called at Close") }); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Add(s.FD(), func() {}); err == nil {
			t.Error("a closed poller watches")
		}
		s.Close()
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > goroutines || descriptors(t) > fds; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d descriptors; there were %d, %d", runtime.NumGoroutine(), descriptors(t), goroutines, fds)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func option(t *testing.T, fd, level, name int) int {
	t.Helper()
	v, err := unix.GetsockoptInt(fd, level, name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// taken returns a listener and the descriptor that was taken of it.
func taken(t *testing.T, network, address string) (net.Listener, int) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	fd, err := TakeListener(ln, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Close(fd) })
	return ln, fd
}

func TestTakeListener(t *testing.T) {
	for _, network := range []string{"tcp", "tcp4", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = t.TempDir() + "/s"
			}
			ln, fd := taken(t, network, address)
			if _, errno := Accept(fd); errno != EAGAIN {
				t.Errorf("accept without a connection: %v", errno)
			}
			client, err := net.Dial(network, ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if network != "unix" {
				if _, errno := Accept(fd); errno != EAGAIN {
					t.Errorf("accept of a client that has sent nothing: %v", errno)
				}
			}
			if _, err := client.Write([]byte("GET")); err != nil {
				t.Fatal(err)
			}
			conn, errno := Accept(fd)
			if errno != 0 {
				t.Fatal(errno)
			}
			defer Close(conn)
			wantTaken(t, conn, client, network != "unix")
		})
	}
}

// TestSilentClientIsAccepted wants the kernel to report it in the end.
func TestSilentClientIsAccepted(t *testing.T) {
	ln, fd := taken(t, "tcp4", "127.0.0.1:0")
	client, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000); n != 1 {
		t.Fatalf("nothing to accept: %v", err)
	}
	conn, errno := Accept(fd)
	if errno != 0 {
		t.Fatal(errno)
	}
	Close(conn)
}

// wantTaken wants a non-blocking descriptor with our options that talks to client.
func wantTaken(t *testing.T, fd int, client net.Conn, tcp bool) {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %x, %v", flags, err)
	}
	if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
		t.Error("children inherit it")
	}
	if tcp {
		if option(t, fd, unix.IPPROTO_TCP, unix.TCP_NODELAY) == 0 {
			t.Error("without TCP_NODELAY")
		}
		if got, want := Peer(fd).String(), client.LocalAddr().String(); got != want {
			t.Errorf("the peer is %s, want %s", got, want)
		}
	}
	send(t, fd, "hello")
	buf := make([]byte, 5)
	if _, err := client.Read(buf); err != nil || !bytes.Equal(buf, []byte("hello")) {
		t.Errorf("the client reads %q, %v", buf, err)
	}
}

// The peer's address outlives the peer, in IPv4 and IPv6.
func TestPeerAfterReset(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		ln, fd := taken(t, network, address)
		client, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("x")); err != nil { // else it is not accepted for a while
			t.Fatal(err)
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
		conn, errno := Accept(fd)
		if errno != 0 {
			t.Fatal(errno)
		}
		defer Close(conn)
		want := client.LocalAddr().String()
		_ = client.(*net.TCPConn).SetLinger(0)
		client.Close()
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(conn), Events: unix.POLLRDHUP}}, 60_000)
		if _, err := unix.Getpeername(conn); err == nil {
			t.Errorf("%s: the peer has not reset it", network)
		}
		if got := Peer(conn).String(); got != want {
			t.Errorf("%s: the peer is %s, want %s", network, got, want)
		}
	}
}

// A taken connection is ours, and has the options that bound how long its peer
// may acknowledge nothing (docs/faults.md B4).
func TestTakeConn(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	fd, err := TakeConn(conn, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, before there were %d", n, before)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the net.Conn still works: %v", err)
	}
	wantTaken(t, fd, client, true)
	if got := option(t, fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != 30_000 {
		t.Errorf("TCP_USER_TIMEOUT is %d ms", got)
	}
	Close(fd)
	if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("after Close the client reads %d, %v", n, err)
	}
	a, b := net.Pipe()
	defer b.Close()
	if _, err := TakeConn(a, 0); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("a pipe: %v", err)
	}
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("a connection that could not be taken is left open")
	}
}

func TestSendToTheGone(t *testing.T) {
	a, b := pair(t)
	Close(b)
	if _, errno := Send(a, []byte("x")); errno != unix.EPIPE { // and no signal
		t.Errorf("%v", errno)
	}
	if _, errno := Send(-1, []byte("x")); errno != unix.EBADF {
		t.Errorf("%v", errno)
	}
}

func TestLimits(t *testing.T) {
	soft, hard, err := RaiseDescriptorLimit()
	if err != nil || soft != hard {
		t.Errorf("soft %d, hard %d: %v", soft, hard, err)
	}
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	if _, err := fmt.Sscanf(strings.TrimPrefix(string(memory), "MemTotal:"), "%d", &kib); err != nil {
		t.Fatal(err)
	}
	if got := PhysicalMemory(); got/1024 != kib {
		t.Errorf("%d bytes, the kernel says %d KiB", got, kib)
	}
}
