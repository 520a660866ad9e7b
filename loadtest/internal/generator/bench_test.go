//go:build linux

package generator

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/wire"
)

// BenchmarkReceive is what a delivery costs the generator, beside a bare loop
// of epoll_wait and recv over the same sockets: compare ns/delivery.
func BenchmarkReceive(b *testing.B) {
	const conns = 64
	fds, peers := sockets(b, conns)
	stamp := appendStamp([]byte(`{"topic":"t","seq":1,"data":{"loadtest":"`), "run", 5, machine.Now())
	frame := wire.AppendFrame(nil, ws.OpText, append(stamp, `","pad":"`+strings.Repeat(".", 90)+`"}}`...))
	loop := func(b *testing.B, receive func() int) {
		b.ReportAllocs()
		var spent int64
		deliveries := 0
		for b.Loop() {
			for _, p := range peers {
				if _, err := p.Write(frame); err != nil {
					b.Fatal(err)
				}
			}
			began := machine.Now()
			for got := 0; got < conns; {
				got += receive()
			}
			spent += machine.Now() - began
			deliveries += conns
		}
		b.ReportMetric(float64(spent)/float64(deliveries), "ns/delivery")
	}
	events := make([]unix.EpollEvent, 256)
	b.Run("bare", func(b *testing.B) {
		epfd := watch(b, fds)
		buf := make([]byte, 64<<10)
		loop(b, func() int {
			n, _ := floor.Poll(epfd, events, 0)
			for i := range events[:n] {
				_, _ = floor.Recv(int(events[i].Pad), buf) // what is not there comes again
			}
			return n
		})
	})
	b.Run("loadtest", func(b *testing.B) {
		e := testEngine(conns)
		e.epfd = watch(b, fds)
		for i, fd := range fds {
			e.conns[i].fd = int32(fd)
		}
		e.deliver.arm(e.conns, &order{Run: "run", Rounds: 10, Late: time.Hour})
		loop(b, func() int {
			n, _ := pwait(e.epfd, events, 0)
			e.now = machine.Now()
			for i := range events[:n] {
				if err := e.serve(&events[i]); err != nil {
					b.Fatal(err)
				}
			}
			return n
		})
	})
}

// sockets returns descriptors of connections and their other ends.
func sockets(b *testing.B, n int) (fds []int, peers []net.Conn) {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: ln.Addr().(*net.TCPAddr).Port}
	for range n {
		fd, err := openSocket(to, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { floor.Close(fd) })
		peer, err := ln.Accept()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { peer.Close() })
		fds, peers = append(fds, fd), append(peers, peer)
	}
	return fds, peers
}

// watch returns an epoll set of the descriptors.
func watch(b *testing.B, fds []int) int {
	b.Helper()
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { floor.Close(epfd) })
	for i, fd := range fds {
		if errno := floor.Control(epfd, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLET&0xffffffff, int32(i), int32(fd)); errno != 0 {
			b.Fatal(errno)
		}
	}
	return epfd
}
