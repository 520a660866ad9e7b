// Package floor is a push server with nothing in it: the system calls that any
// server must make for the same work, in a bare loop, and no check that a real
// one owes its clients. What it costs is this machine's price for a delivery,
// an echo or an accept, so that every benchmark can be told as a ratio to it.
//
// It speaks as much WebSocket as the load generator needs to drive it:
//
//	GET               epoll_wait + recv + send: the 101
//	a frame           epoll_wait + recv + send: a text frame of fixed size
//	POST with a body  one send for each open connection, in descriptor order,
//	                  of the body as a text frame; then 200 with the count
//
// It trusts its peer: frames are shorter than 126 bytes and arrive whole, and
// a connection that does otherwise is closed. It has one thread, no garbage
// collection, and must be alone in its process.
package floor

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// The life of a descriptor, as server.state has it.
const (
	unknown = iota
	asking  // accepted, no head yet
	open    // upgraded
)

type server struct {
	epfd     int
	listener int
	state    []uint8        // by descriptor
	half     map[int][]byte // what has come of requests that are not whole
	buf      []byte
	out      []byte
	reply    []byte // what answers a frame
}

// Serve runs the loop on a listener from [Listen] until the descriptor done
// becomes readable or is closed at its other end. Every frame is answered by
// a text frame with reply bytes of payload, at most 125.
func Serve(listener, done, reply int) error {
	if reply < 0 || reply > 125 {
		return fmt.Errorf("floor: a reply has 0 to 125 bytes, not %d", reply)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // nothing may stop the world while Poll holds it
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("floor: epoll_create1: %w", err)
	}
	s := &server{
		epfd: epfd, listener: listener, half: map[int][]byte{}, buf: make([]byte, 64<<10),
		reply: append([]byte{0x81, byte(reply)}, bytes.Repeat([]byte{'.'}, reply)...),
	}
	defer s.close()
	for _, fd := range []int{listener, done} {
		if e := Control(epfd, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN, int32(fd), 0); e != 0 {
			return fmt.Errorf("floor: epoll_ctl: %w", e)
		}
	}
	events := make([]unix.EpollEvent, 128)
	for {
		n, e := Poll(epfd, events, -1)
		if e != 0 && e != unix.EINTR {
			return fmt.Errorf("floor: epoll_wait: %w", e)
		}
		for _, ev := range events[:n] {
			switch fd := int(ev.Fd); fd {
			case done:
				return nil
			case listener:
				s.accept()
			default:
				s.serve(fd)
			}
		}
	}
}

func (s *server) close() {
	for fd, state := range s.state {
		if state != unknown {
			Close(fd)
		}
	}
	Close(s.listener)
	Close(s.epfd)
}

func (s *server) accept() {
	for {
		fd, e := Accept(s.listener)
		if e != 0 {
			return
		}
		for fd >= len(s.state) {
			s.state = append(s.state, unknown)
		}
		s.state[fd] = asking
		if Control(s.epfd, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLET&0xffffffff, int32(fd), 0) != 0 {
			s.drop(fd)
		}
	}
}

func (s *server) drop(fd int) {
	s.state[fd] = unknown
	Close(fd)
}

// serve answers what a descriptor has to read. A read that does not fill the
// buffer has emptied the socket.
func (s *server) serve(fd int) {
	for {
		n, e := Recv(fd, s.buf)
		switch {
		case e == unix.EAGAIN:
			return
		case e != 0 || n == 0:
			s.drop(fd)
			return
		case s.state[fd] == asking:
			s.request(fd, s.buf[:n])
		default:
			s.frames(fd, s.buf[:n])
		}
		if n < len(s.buf) {
			return
		}
	}
}

// frames answers each frame of b; a Close ends the connection.
func (s *server) frames(fd int, b []byte) {
	for len(b) > 0 {
		size := 6
		if len(b) > 1 {
			size += int(b[1] & 0x7f)
		}
		if size > len(b) || size >= 6+126 || b[0]&0x0f == 8 {
			s.drop(fd)
			return
		}
		b = b[size:]
		if n, _ := Send(fd, s.reply); n != len(s.reply) {
			s.drop(fd)
			return
		}
	}
}

// request upgrades a GET and fans the body of a POST out.
func (s *server) request(fd int, b []byte) {
	if half := s.half[fd]; half != nil {
		b = append(half, b...)
		delete(s.half, fd)
	}
	head, body, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	length, _ := strconv.Atoi(string(field(head, "content-length")))
	if !whole || len(body) < length {
		s.half[fd] = slices.Clone(b)
		return
	}
	s.out = s.out[:0]
	if bytes.HasPrefix(head, []byte("POST ")) {
		sent := strconv.Itoa(s.fanOut(body[:length]))
		s.out = fmt.Appendf(s.out, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(sent), sent)
	} else {
		s.state[fd] = open
		s.out = append(s.out, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
		s.out = append(AppendAccept(s.out, field(head, "sec-websocket-key")), "\r\n\r\n"...)
	}
	if n, _ := Send(fd, s.out); n != len(s.out) {
		s.drop(fd)
	}
}

// fanOut sends payload to every open connection and returns how many took it
// whole; another one is closed, so that it cannot be mistaken for served.
func (s *server) fanOut(payload []byte) (sent int) {
	frame := []byte{0x81}
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, byte(n))
	case n <= 0xffff:
		frame = append(frame, 126, byte(n>>8), byte(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 127), uint64(n))
	}
	frame = append(frame, payload...)
	for fd, state := range s.state {
		if state != open {
			continue
		}
		if n, _ := Send(fd, frame); n == len(frame) {
			sent++
		} else {
			s.drop(fd)
		}
	}
	return sent
}

// field returns the value of a header field; name is in lower case.
func field(head []byte, name string) []byte {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if len(line) > len(name) && line[len(name)] == ':' && string(bytes.ToLower(line[:len(name)])) == name {
			return bytes.TrimSpace(line[len(name)+1:])
		}
	}
	return nil
}

// AppendAccept appends the Sec-WebSocket-Accept that answers key, RFC 6455
// section 4.2.2.
func AppendAccept(dst, key []byte) []byte {
	var text [128]byte
	sum := sha1.Sum(append(append(text[:0], key...), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.AppendEncode(dst, sum[:])
}
