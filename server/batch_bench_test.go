//go:build linux

package server

import (
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// benchUsers starts a server with n users, a connection each, whose other ends
// are read by nobody but the kernel until the buffers are full; empty reads them.
func benchUsers(b *testing.B, n int) (srv *Server, empty func()) {
	srv, addr := started(b, Config{})
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = dial(b, addr, fmt.Sprintf("/ws?user=u%d", i))
	}
	eventually(b, "the connections", func() bool { return srv.Stats().Connections == n })
	buf := make([]byte, 64<<10)
	return srv, func() {
		for _, c := range clients {
			raw, _ := c.Conn.(*net.TCPConn).SyscallConn()
			_ = raw.Control(func(fd uintptr) {
				for {
					if n, _ := unix.Read(int(fd), buf); n < len(buf) {
						return
					}
				}
			})
		}
	}
}

// cpu is the CPU time of this process.
func cpu() (ns int64) {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

const benchPushes = 1000

// BenchmarkPush is 1,000 pushes to as many users, one after the other.
func BenchmarkPush(b *testing.B) {
	benchPush(b, func(srv *Server, items []BatchItem) {
		for i := range items {
			if _, err := srv.Push(b.Context(), items[i].To, items[i].Message); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkBatch is the same in one batch.
func BenchmarkBatch(b *testing.B) {
	benchPush(b, func(srv *Server, items []BatchItem) {
		for _, r := range srv.Batch(b.Context(), items) {
			if r.Err != nil || r.Receipt.Written != 1 {
				b.Fatal(r)
			}
		}
	})
}

func benchPush(b *testing.B, push func(*Server, []BatchItem)) {
	srv, empty := benchUsers(b, benchPushes)
	data := []byte(`{"title":"Your parcel is here","body":"Door 7, code 1234","n":1234567890}`)
	items := make([]BatchItem, benchPushes)
	for i := range items {
		items[i] = BatchItem{To: Target{User: fmt.Sprintf("u%d", i)}, Message: Message{Data: data, Wait: WaitSent}}
	}
	var spent int64
	b.ReportAllocs()
	for b.Loop() {
		began := cpu()
		push(srv, items)
		spent += cpu() - began
		b.StopTimer()
		empty()
		b.StartTimer()
	}
	pushes := float64(b.N * benchPushes)
	b.ReportMetric(float64(spent)/pushes, "cpu-ns/push")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/pushes, "ns/push")
}
