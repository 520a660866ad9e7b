// Package wstest is a WebSocket client for tests: strict about everything that
// a server sends, and able to send anything, right or wrong, in any pieces.
// Its verbs fail the test that they were given; nothing waits for ever.
package wstest

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// Timeout bounds every single wait for the server.
const Timeout = 30 * time.Second

// Conn is a connection to a server under test. It belongs to the goroutine of
// its test.
type Conn struct {
	t      testing.TB
	nc     *net.TCPConn
	frames frameReader
}

// Open connects without a word. The connection ends with the test.
func Open(t testing.TB, addr string) *Conn {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, Timeout)
	if err != nil {
		t.Fatal(err)
	}
	c := &Conn{t: t, nc: nc.(*net.TCPConn)}
	c.frames.br = bufio.NewReader(timed{c.nc})
	t.Cleanup(c.Drop)
	return c
}

// timed sets a deadline before every read.
type timed struct{ *net.TCPConn }

func (r timed) Read(b []byte) (int, error) {
	if err := r.SetReadDeadline(time.Now().Add(Timeout)); err != nil {
		return 0, err
	}
	return r.TCPConn.Read(b)
}

// Dial connects and upgrades; header are whole lines such as "Origin: x".
func Dial(t testing.TB, addr, path string, header ...string) *Conn {
	t.Helper()
	c := Open(t, addr)
	c.Upgrade(path, header...)
	return c
}

// Request returns the text of a correct upgrade request.
func Request(host, path, key string, header ...string) string {
	return strings.Join(append([]string{
		"GET " + path + " HTTP/1.1",
		"Host: " + host,
		"Upgrade: websocket",
		"Connection: Upgrade",
		"Sec-WebSocket-Key: " + key,
		"Sec-WebSocket-Version: 13",
	}, header...), "\r\n") + "\r\n\r\n"
}

// NewKey returns a Sec-WebSocket-Key, RFC 6455 section 4.1.
func NewKey() string {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails, crypto/rand says
	return base64.StdEncoding.EncodeToString(nonce[:])
}

// Upgrade asks for the upgrade and wants it.
func (c *Conn) Upgrade(path string, header ...string) *http.Response {
	c.t.Helper()
	key := NewKey()
	c.SendRaw([]byte(Request(c.nc.RemoteAddr().String(), path, key, header...)))
	return c.WantUpgraded(key)
}

// WantUpgraded reads a 101 and checks it against the key that was sent. What
// came in the same packet is left for [Conn.NextFrame].
func (c *Conn) WantUpgraded(key string) *http.Response {
	c.t.Helper()
	res := c.Response(http.MethodGet)
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	want := base64.StdEncoding.EncodeToString(sum[:])
	switch {
	case res.StatusCode != http.StatusSwitchingProtocols:
		body, _ := io.ReadAll(res.Body)
		c.t.Fatalf("upgrade refused: %s: %s", res.Status, body)
	case !strings.EqualFold(res.Header.Get("Upgrade"), "websocket"),
		!strings.EqualFold(res.Header.Get("Connection"), "upgrade"):
		c.t.Fatalf("101 says Upgrade %q and Connection %q", res.Header["Upgrade"], res.Header["Connection"])
	case !slices.Equal(res.Header["Sec-Websocket-Accept"], []string{want}):
		c.t.Fatalf("Sec-WebSocket-Accept is %q, want %q", res.Header["Sec-Websocket-Accept"], want)
	case res.Header["Sec-Websocket-Extensions"] != nil:
		c.t.Fatalf("extensions nobody asked for: %q", res.Header["Sec-Websocket-Extensions"])
	}
	return res
}

// Response reads an HTTP answer to a request of that method, its body too.
func (c *Conn) Response(method string) *http.Response {
	c.t.Helper()
	res, err := http.ReadResponse(c.frames.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("reading an HTTP answer: %v", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		body, err := io.ReadAll(res.Body)
		if err != nil {
			c.t.Fatalf("reading the body of %s: %v", res.Status, err)
		}
		res.Body = io.NopCloser(bytes.NewReader(body))
	}
	return res
}

// Send writes frames in one call.
func (c *Conn) Send(frames ...Frame) {
	c.t.Helper()
	c.SendRaw(Encode(frames...))
}

// SendRaw writes b in one call.
func (c *Conn) SendRaw(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("writing %d bytes: %v", len(b), err)
	}
}

// SendPieces writes b in calls of at most size bytes.
func (c *Conn) SendPieces(b []byte, size int) {
	c.t.Helper()
	for piece := range slices.Chunk(b, size) {
		c.SendRaw(piece)
	}
}

// Write implements io.Writer, for tests in which a write may fail.
func (c *Conn) Write(b []byte) (int, error) {
	if err := c.nc.SetWriteDeadline(time.Now().Add(Timeout)); err != nil {
		return 0, err
	}
	return c.nc.Write(b)
}

// NextFrame reads one frame.
func (c *Conn) NextFrame() Frame {
	c.t.Helper()
	f, err := c.frames.next()
	if err != nil {
		c.t.Fatalf("reading a frame: %v", err)
	}
	return f
}

// Want reads one frame and wants it to be this one, FIN included.
func (c *Conn) Want(want Frame) {
	c.t.Helper()
	got := c.NextFrame()
	if got.Op != want.Op || got.More != want.More || !bytes.Equal(got.Payload, want.Payload) {
		c.t.Fatalf("got %v, want %v", got, want)
	}
}

// WantText reads one unfragmented text message and wants it to be s.
func (c *Conn) WantText(s string) {
	c.t.Helper()
	c.Want(Text(s))
}

// WantPong reads one frame and wants a pong with s.
func (c *Conn) WantPong(s string) {
	c.t.Helper()
	c.Want(Pong(s))
}

// Event reads one text message of tocsin.v1.
func (c *Conn) Event() wire.Event {
	c.t.Helper()
	f := c.NextFrame()
	if f.Op != ws.OpText || f.More {
		c.t.Fatalf("got %v, want a text message", f)
	}
	e, err := tocsin.ParseEvent(f.Payload)
	if err != nil {
		c.t.Fatalf("%v in %v", err, f)
	}
	return e
}

// WantWelcome reads the first frame of a connection.
func (c *Conn) WantWelcome() wire.Welcome {
	c.t.Helper()
	e := c.Event()
	if e.Welcome == nil || e.Welcome.Conn == "" {
		c.t.Fatalf("got %+v, want a welcome", e)
	}
	return *e.Welcome
}

// WantClosed wants the server to end the connection: a Close frame with one
// of the codes (0: none) and then, with no word from here, the end of the
// stream.
func (c *Conn) WantClosed(codes ...wire.CloseCode) Frame {
	c.t.Helper()
	f := c.NextFrame()
	if f.Op != ws.OpClose || !slices.Contains(codes, f.CloseCode()) {
		c.t.Fatalf("got %v, want a Close of %d", f, codes)
	}
	c.WantEOF()
	return f
}

// WantEOF wants the stream to end here, without a reset.
func (c *Conn) WantEOF() {
	c.t.Helper()
	if f, err := c.frames.next(); !errors.Is(err, io.EOF) {
		c.t.Fatalf("got %v, %v, want the end of the stream", f, err)
	}
}

// WantNothing closes with 1000 and wants the answer to be all that comes:
// nothing else was on its way.
func (c *Conn) WantNothing() {
	c.t.Helper()
	c.Send(Close(wire.CloseNormal, ""))
	c.WantClosed(wire.CloseNormal)
	c.Drop()
}

// Rest reads to the end of the stream and returns the bytes as they came.
func (c *Conn) Rest() []byte {
	c.t.Helper()
	b, err := io.ReadAll(c.frames.br)
	if err != nil {
		c.t.Fatalf("reading to the end, after %d bytes: %v", len(b), err)
	}
	return b
}

// HalfClose ends the stream to the server and leaves the other open.
func (c *Conn) HalfClose() {
	c.t.Helper()
	if err := c.nc.CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
}

// Reset drops the connection with a reset, which the server notices at once.
func (c *Conn) Reset() {
	c.t.Helper()
	if err := c.nc.SetLinger(0); err != nil {
		c.t.Fatal(err)
	}
	c.Drop()
}

// LocalAddr returns the address by which the server knows the client.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// Drop closes the socket without a Close frame; again does nothing. What is
// left of c can be collected before the test ends.
func (c *Conn) Drop() {
	_ = c.nc.Close()
	c.frames = frameReader{}
}
