package netpoll

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// edge is how every socket is registered, once: both directions and the
// peer's end of file, edge-triggered, so that nothing is ever modified.
const edge = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// Set is an epoll instance with sockets in it. One goroutine at a time uses
// it; Add may be called from any.
type Set struct {
	fd  int
	buf [128]unix.EpollEvent
}

// NewSet makes an empty set.
func NewSet() (*Set, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll set: %w", err)
	}
	return &Set{fd: fd}, nil
}

// FD returns the set's own descriptor, for a [Poller].
func (s *Set) FD() int { return s.fd }

// Add registers the socket fd under key. What is ready already is reported.
func (s *Set) Add(fd int, key uint64) Errno {
	ev := unix.EpollEvent{Events: edge, Fd: int32(key), Pad: int32(key >> 32)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(s.fd), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

// Wait fills events with what is ready and returns how many there are, without
// blocking; EINTR is retried. events is best no longer than 128.
func (s *Set) Wait(events []Event) (int, Errno) {
	most := min(len(events), len(s.buf))
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.fd), uintptr(unsafe.Pointer(&s.buf[0])), uintptr(most), 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		for i := range int(n) {
			e := &s.buf[i]
			bad := e.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
			events[i] = Event{
				Key:      uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32,
				Readable: bad || e.Events&(unix.EPOLLIN|unix.EPOLLRDHUP) != 0,
				Writable: bad || e.Events&unix.EPOLLOUT != 0,
				HangUp:   bad || e.Events&unix.EPOLLRDHUP != 0,
			}
		}
		return int(n), 0
	}
}

// Close closes the set's descriptor; the sockets in it stay open.
func (s *Set) Close() error { return unix.Close(s.fd) }
