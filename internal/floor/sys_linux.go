package floor

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below never block, so they skip Go's scheduler. A buffer must not
// be empty.

// Recv reads what the socket has; n is 0 at the end of the stream.
func Recv(fd int, b []byte) (n int, errno unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(r), 0
}

// Send writes what the socket takes of b.
func Send(fd int, b []byte) (n int, errno unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(r), 0
}

// Accept takes one connection from a non-blocking listener.
func Accept(listener int) (fd int, errno unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(r), 0
}

// Close closes a descriptor.
func Close(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) } // whatever it says, it is closed

// Poll is epoll_wait. With a timeout other than 0 it holds its thread, and
// with it a garbage collection; only a process that does nothing else may.
func Poll(epfd int, events []unix.EpollEvent, timeoutMS int) (n int, errno unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(timeoutMS), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(r), 0
}

// Control is epoll_ctl; the event will carry data, and mark beside it.
func Control(epfd, op, fd int, mask uint32, data, mark int32) unix.Errno {
	ev := unix.EpollEvent{Events: mask, Fd: data, Pad: mark}
	_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return e
}

// Listen opens a listener on addr, whose port may be 0, and returns where it
// listens.
func Listen(addr netip.AddrPort) (fd int, at netip.AddrPort, err error) {
	if !addr.Addr().Is4() {
		return -1, at, fmt.Errorf("floor: listen on %s: only IPv4", addr)
	}
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, at, fmt.Errorf("floor: socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}),
		unix.Listen(fd, 4096))
	if err != nil {
		Close(fd)
		return -1, at, fmt.Errorf("floor: listen on %s: %w", addr, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		Close(fd)
		return -1, at, fmt.Errorf("floor: getsockname: %w", err)
	}
	return fd, netip.AddrPortFrom(addr.Addr(), uint16(name.(*unix.SockaddrInet4).Port)), nil
}
