//go:build linux

package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// client is a small WebSocket client for crowds; package wstest has the strict
// one. Its methods return errors, because in a crowd some are to be expected.
type client struct {
	net.Conn
	br *bufio.Reader
}

// connect connects without a word; the end of the test ends it. A receive
// buffer of so many bytes, if not 0, makes the peer's sends stop early.
func connect(t testing.TB, addr string, receive int) *client {
	t.Helper()
	d := net.Dialer{Timeout: patience}
	if receive > 0 {
		d.Control = setBuffer(unix.SO_RCVBUF, receive)
	}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{nc, bufio.NewReaderSize(nc, 512)}
}

// dial connects and upgrades.
func dial(t testing.TB, addr, path string) *client {
	t.Helper()
	c := connect(t, addr, 0)
	c.upgrade(t, path)
	return c
}

func (c *client) upgrade(t testing.TB, path string) {
	t.Helper()
	c.write(wstest.Request("tocsin.test", path, wstest.NewKey()))
	if status := c.status(); status != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade of %s: status %d", path, status)
	}
}

// status reads an HTTP answer, 0 if there is none.
func (c *client) status() int {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return 0
	}
	return r.StatusCode
}

func (c *client) write(s string) bool {
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	_, err := c.Write([]byte(s))
	return err == nil
}

func (c *client) send(frames ...wstest.Frame) bool { return c.write(string(wstest.Encode(frames...))) }

// next reads a frame.
func (c *client) next() (f ws.Frame, err error) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	f.Header, err = ws.ReadHeader(c.br)
	if err == nil {
		f.Payload = make([]byte, f.Header.Length)
		_, err = io.ReadFull(c.br, f.Payload)
	}
	return f, err
}

// message reads up to the next message of a topic; nil at the end.
func (c *client) message() *wire.Message {
	for {
		f, err := c.next()
		if err != nil || f.Header.OpCode == ws.OpClose {
			return nil
		}
		if e, err := tocsin.ParseEvent(f.Payload); f.Header.OpCode == ws.OpText && err == nil && e.Message != nil {
			return e.Message
		}
	}
}

// code reads to the Close frame and returns its code; 0 at another end.
func (c *client) code() wire.CloseCode {
	for {
		f, err := c.next()
		if err != nil {
			return 0
		}
		if f.Header.OpCode == ws.OpClose {
			code, _ := ws.ParseCloseFrameData(f.Payload)
			return wire.CloseCode(code)
		}
	}
}

// pongs answers pings until the stream ends.
func (c *client) pongs() {
	for {
		f, err := c.next()
		if err != nil {
			return
		}
		if f.Header.OpCode == ws.OpPing {
			c.send(wstest.Pong(string(f.Payload)))
		}
	}
}

// ping sends a ping and wants its pong as the next thing but messages.
func (c *client) ping(s string) bool {
	if !c.send(wstest.Ping(s)) {
		return false
	}
	for {
		f, err := c.next()
		if err != nil || f.Header.OpCode == ws.OpClose {
			return false
		}
		if f.Header.OpCode == ws.OpPong {
			return string(f.Payload) == s
		}
	}
}

// setBuffer sets a socket's buffer before it connects or listens, so that the
// kernel does not make it larger.
func setBuffer(option, n int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		if ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, n) }); ctlErr != nil {
			return ctlErr
		}
		return err
	}
}

// crowd runs do for n clients, some at a time, and waits for all.
func crowd(n int, do func(i int)) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, 64)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			do(i)
			<-turn
		})
	}
	wg.Wait()
}

// rawSocket connects with nothing of Go's in between, so that it costs no
// memory here.
func rawSocket(t testing.TB, addr string) (fd int) {
	t.Helper()
	host, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// rawAnswer reads what a raw socket was sent, to the end.
func rawAnswer(fd int) string {
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return b.String()
		}
		b.Write(buf[:n])
	}
}
