//go:build linux

package generator

import (
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
)

// pwait is epoll_pwait2, Linux 5.11; an older kernel waits whole milliseconds.
func pwait(epfd int, events []unix.EpollEvent, d int64) (int, unix.Errno) {
	ts := unix.NsecToTimespec(d)
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	switch errno {
	case 0:
		return int(n), 0
	case unix.ENOSYS:
		ms := (time.Duration(d) + time.Millisecond - 1).Milliseconds()
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(ms), 0, 0)
		if errno == 0 {
			return int(n), 0
		}
	}
	return 0, errno
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// openSocket returns a socket that is connecting to server, from source if
// there is one, with the port left to connect(2), so that one port serves
// several servers.
func openSocket(server, source unix.Sockaddr) (int, error) {
	family := unix.AF_INET
	if _, six := server.(*unix.SockaddrInet6); six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if source != nil {
		if err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err == nil {
			err = unix.Bind(fd, source)
		}
	}
	if err == nil {
		err = unix.Connect(fd, server)
	}
	if err != nil && err != unix.EINPROGRESS {
		floor.Close(fd)
		return -1, err
	}
	return fd, nil
}
