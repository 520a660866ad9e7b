//go:build linux

package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Poster is a keep-alive connection over which one goroutine posts bodies to
// one URL. It does with one write and one read what net/http's client hands
// from goroutine to goroutine.
type Poster struct {
	at   *url.URL
	tls  *tls.Config // nil over plain TCP
	head []byte      // of every request, up to the value of Content-Length

	conn net.Conn
	tcp  syscall.RawConn
	r    *bufio.Reader
	buf  []byte
	last time.Time // when the last answer came
}

// postTimeout is how long one request may take.
const postTimeout = 30 * time.Second

// NewPoster returns a poster that is connected to at. With insecure it takes
// any certificate of an https:// URL. It is to be closed, even with an error.
func NewPoster(ctx context.Context, at *url.URL, key, contentType string, insecure bool) (*Poster, error) {
	p := &Poster{at: at}
	if at.Scheme == "https" {
		p.tls = &tls.Config{ServerName: at.Hostname(), InsecureSkipVerify: insecure}
	}
	p.head = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\n", at.RequestURI(), at.Host, contentType)
	if key != "" {
		p.head = fmt.Appendf(p.head, "X-API-Key: %s\r\n", key)
	}
	p.head = append(p.head, "Content-Length: "...)
	return p, p.dial(ctx)
}

func (p *Poster) dial(ctx context.Context) error {
	port := p.at.Port()
	if port == "" {
		port = p.at.Scheme // net.Dial knows both by name
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(p.at.Hostname(), port))
	if err != nil {
		return err
	}
	if p.tcp, err = conn.(*net.TCPConn).SyscallConn(); err != nil {
		conn.Close()
		return err
	}
	if p.tls != nil {
		secured := tls.Client(conn, p.tls)
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			return err
		}
		conn = secured
	}
	p.conn, p.r, p.last = conn, bufio.NewReaderSize(conn, 16<<10), time.Now()
	return nil
}

// post sends one body and returns the answer, which is valid until the next
// call. After an error nobody knows whether the server took the body; the next
// call has a new connection.
func (p *Poster) post(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	if p.conn != nil && time.Since(p.last) > time.Second && p.ended() {
		p.Close() // an idle one that the server closed, as it may
	}
	if p.conn == nil {
		if err := p.dial(ctx); err != nil {
			return 0, nil, err
		}
	}
	p.buf = strconv.AppendInt(append(p.buf[:0], p.head...), int64(len(body)), 10)
	p.buf = append(append(p.buf, "\r\n\r\n"...), body...)
	_ = p.conn.SetDeadline(time.Now().Add(postTimeout)) // only a closed connection has none
	var resp *http.Response
	if _, err = p.conn.Write(p.buf); err == nil {
		if resp, err = http.ReadResponse(p.r, nil); err == nil {
			answer, err = readInto(p.buf[:0], resp.Body)
			p.buf = answer
		}
	}
	p.last = time.Now()
	if err != nil || resp.Close {
		p.Close()
	}
	if err != nil {
		return 0, nil, err
	}
	return resp.StatusCode, answer, nil
}

// readInto appends all of r to dst.
func readInto(dst []byte, r io.Reader) ([]byte, error) {
	for {
		if len(dst) == cap(dst) {
			dst = append(dst, 0)[:len(dst)]
		}
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return dst, err
		}
	}
}

// ended tells whether the server has closed the connection, or said something
// that nobody asked for.
func (p *Poster) ended() bool {
	over := true
	err := p.tcp.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		over = err != unix.EAGAIN
		return true
	})
	return over || err != nil
}

// Close ends the connection, if there is one.
func (p *Poster) Close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}
