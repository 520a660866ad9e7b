package netpoll

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errno is a system call's error number; 0 is none. It is returned as it
// comes because wrapping it would allocate where nothing may.
type Errno = syscall.Errno

// The calls below never block, so they skip Go's scheduler (RawSyscall): a
// round trip through it costs a fifth of a send.

// Recv reads into b. n is 0 at the end of file.
func Recv(fd int, b []byte) (n int, errno Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// Send writes as much of b as the socket takes. It raises no SIGPIPE.
func Send(fd int, b []byte) (n int, errno Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// Accept takes one connection from a listener as a non-blocking descriptor.
func Accept(listener int) (fd int, errno Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(r), 0
}

// Close closes fd and so takes it out of its set.
func Close(fd int) Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return errno
}

// CloseWrite sends the end of file; what the peer sends can still be read.
func CloseWrite(fd int) Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// Peer returns the address of the other end, the zero value if there is none.
func Peer(fd int) netip.AddrPort {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	_, _, errno := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	// A socket that was reset still has its peer's name under SO_PEERNAME,
	// which wants to know how long that is.
	for _, size = range []uint32{unix.SizeofSockaddrInet6, unix.SizeofSockaddrInet4} {
		if errno != 0 {
			_, _, errno = unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERNAME, uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
		}
	}
	if errno != 0 {
		return netip.AddrPort{}
	}
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), port(&in.Port))
	}
	return netip.AddrPort{}
}

// port returns a port, which the kernel writes in network byte order.
func port(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }

// TakeListener returns a descriptor of its own for ln, non-blocking, with the
// options that accepted sockets inherit from it: TCP_NODELAY, and
// TCP_USER_TIMEOUT, so that the kernel ends a connection whose peer does not
// acknowledge what was sent for that long (tcp(7)). Keepalive stays off: under
// a user timeout one lost probe ends a connection, the probes of connections
// that were opened together go out together, and the server's own pings do the
// same at the rate it chooses. TCP_DEFER_ACCEPT of the listener itself lets the
// kernel report a connection with its first bytes, or without any after about
// a second: one wake-up instead of two. The caller closes both.
func TakeListener(ln net.Listener, userTimeout time.Duration) (int, error) {
	fd, err := take(ln)
	if err != nil {
		return -1, fmt.Errorf("take listener: %w", err)
	}
	if err := tune(fd, append(inherited(userTimeout), tcpOption{unix.TCP_DEFER_ACCEPT, 1})); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set options of listener: %w", err)
	}
	return fd, nil
}

// TakeConn returns a descriptor of its own for conn, non-blocking and with
// the options that one of a [TakeListener] has, and closes conn, whether it fails or not.
func TakeConn(conn net.Conn, userTimeout time.Duration) (int, error) {
	fd, err := take(conn)
	conn.Close()
	if err != nil {
		return -1, fmt.Errorf("take connection: %w", err)
	}
	if err := tune(fd, inherited(userTimeout)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set options of connection: %w", err)
	}
	return fd, nil
}

// take duplicates a descriptor without File, whose Fd would make it blocking.
func take(c any) (fd int, err error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("%T has no descriptor of its own: %w", c, syscall.EOPNOTSUPP)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctlErr := raw.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if ctlErr != nil {
		return -1, ctlErr
	}
	return fd, err
}

type tcpOption struct{ name, value int }

// inherited are the options of connections.
func inherited(userTimeout time.Duration) []tcpOption {
	return []tcpOption{{unix.TCP_NODELAY, 1}, {unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds())}}
}

// tune sets options of a TCP socket; a Unix socket has none of them.
func tune(fd int, options []tcpOption) error {
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_UNIX {
		return nil
	}
	for _, o := range options {
		// A Multipath TCP listener, which is what net.Listen makes, does not
		// know all of them; the server's own pings do the same more slowly.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, o.name, o.value); err != nil && err != unix.ENOPROTOOPT {
			return err
		}
	}
	return nil
}

// RaiseDescriptorLimit raises this process's soft limit of open descriptors to
// its hard one and returns both as they are then.
func RaiseDescriptorLimit() (soft, hard uint64, err error) {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return 0, 0, fmt.Errorf("read the descriptor limit: %w", err)
	}
	if lim.Cur < lim.Max {
		lim.Cur = lim.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
			return lim.Cur, lim.Max, fmt.Errorf("raise the descriptor limit: %w", err)
		}
	}
	return lim.Cur, lim.Max, nil
}

// PhysicalMemory returns the machine's memory in bytes, 0 if unknown.
func PhysicalMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}
