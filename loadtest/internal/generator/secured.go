//go:build linux

package generator

import (
	"crypto/tls"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
)

// tlsPlan is how the servers of a plan are spoken to in TLS.
type tlsPlan struct {
	Names    []string `json:"names"` // of the servers, for SNI and their certificates
	Insecure bool     `json:"insecure"`
}

// config returns the client's side towards one server.
func (p *tlsPlan) config(server int) *tls.Config {
	return &tls.Config{
		ServerName:         p.Names[server],
		InsecureSkipVerify: p.Insecure,
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"http/1.1"},
	}
}

// secured is the TLS of one connection. While it shakes hands it has the
// socket, and a goroutine for it; afterwards it only turns bytes into others,
// in the loop: in is what has been received, out what is to be sent.
type secured struct {
	net.Conn // nil: crypto/tls asks a transport for nothing but this
	tls      *tls.Conn
	fd       int // -1 after the handshake
	in, out  []byte
}

// Read implements [net.Conn] for crypto/tls. Behind the last byte received is
// [os.ErrDeadlineExceeded], after which crypto/tls can go on.
func (t *secured) Read(b []byte) (int, error) {
	if t.fd < 0 {
		n := copy(b, t.in)
		t.in = t.in[n:]
		if n == 0 {
			return 0, os.ErrDeadlineExceeded
		}
		return n, nil
	}
	for {
		n, errno := floor.Recv(t.fd, b)
		switch {
		case errno == unix.EAGAIN:
			if err := t.await(unix.POLLIN); err != nil {
				return 0, err
			}
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write implements [net.Conn] for crypto/tls.
func (t *secured) Write(b []byte) (int, error) {
	if t.fd < 0 {
		t.out = append(t.out, b...)
		return len(b), nil
	}
	sent := 0
	for {
		n, errno := floor.Send(t.fd, b[sent:])
		if errno != 0 && errno != unix.EAGAIN {
			return sent, errno
		}
		if errno == 0 {
			sent += n
		}
		if sent == len(b) {
			return sent, nil
		}
		if err := t.await(unix.POLLOUT); err != nil {
			return sent, err
		}
	}
}

// await waits for the socket; what ends the wait too early is a shutdown(2).
func (t *secured) await(event int16) error {
	fds := []unix.PollFd{{Fd: int32(t.fd), Events: event}}
	for {
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return err
		}
	}
}

// seal returns the records that b becomes. They are valid until the next call.
func (t *secured) seal(b []byte) ([]byte, error) {
	_, err := t.tls.Write(b)
	return t.written(), err
}

// written takes what TLS has written since it was last asked.
func (t *secured) written() []byte {
	b := t.out
	t.out = b[:0]
	return b
}
