package client

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

const welcome = `{"welcome":{"conn":"c1","user":"ann","ping":25}}`

// fake is a server whose every byte the test decides. It lives in a synctest
// bubble, over pipes.
type fake struct {
	t       *testing.T
	welcome text         // sent after every 101
	refuse  text         // an HTTP answer in place of the 101
	dialed  chan *peer   // connections that were upgraded
	dials   atomic.Int32 // attempts, refused ones too
	events  chan wire.Event
}

// text is a string that the test changes while the server runs.
type text struct{ v atomic.Value }

func (x *text) set(s string) { x.v.Store(s) }

func (x *text) String() string {
	s, _ := x.v.Load().(string)
	return s
}

// run runs f with a fake server in a bubble of its own.
func run(t *testing.T, f func(t *testing.T, s *fake)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &fake{t: t, dialed: make(chan *peer, 16), events: make(chan wire.Event, 1024)}
		s.welcome.set(welcome)
		f(t, s)
	})
}

// dial connects a client and returns its first connection's other end.
func (s *fake) dial(query string, opt Options) (*Client, *peer) {
	s.t.Helper()
	opt.NetDial = s.accept
	if opt.OnEvent == nil {
		opt.OnEvent = func(_ *Client, e wire.Event) { s.events <- e }
	}
	c, err := Dial(s.t.Context(), "ws://tocsin.test/ws"+query, opt)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			s.t.Error(err)
		}
		<-c.Done()
	})
	return c, <-s.dialed
}

// accept is the client's NetDial.
func (s *fake) accept(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	s.dials.Add(1)
	p := &peer{t: s.t, conn: far, in: make(chan ws.Frame, 64)}
	go p.serve(s)
	return near, nil
}

// nextEvent returns the next event that is no welcome.
func (s *fake) nextEvent() wire.Event {
	s.t.Helper()
	for {
		synctest.Wait()
		select {
		case e := <-s.events:
			if e.Welcome == nil {
				return e
			}
		default:
			s.t.Fatal("no event came")
		}
	}
}

func (s *fake) wantNoEvent() {
	s.t.Helper()
	synctest.Wait()
	for len(s.events) > 0 {
		if e := <-s.events; e.Welcome == nil {
			s.t.Fatalf("unwanted event %+v", e)
		}
	}
}

// peer is the server's end of one connection.
type peer struct {
	t     *testing.T
	conn  net.Conn
	query string
	in    chan ws.Frame // what the client sent, unmasked; closed with the connection
}

func (p *peer) serve(s *fake) {
	defer close(p.in)
	if refusal := s.refuse.String(); refusal != "" {
		buf := make([]byte, 4096)
		_, _ = p.conn.Read(buf)
		_, _ = io.WriteString(p.conn, refusal)
		p.conn.Close()
		return
	}
	u := ws.Upgrader{
		OnRequest: func(uri []byte) error { p.query = string(uri); return nil },
		Protocol:  func(name []byte) bool { return string(name) == tocsin.Subprotocol },
	}
	if _, err := u.Upgrade(p.conn); err != nil {
		return
	}
	if _, err := p.conn.Write(wire.AppendFrame(nil, ws.OpText, []byte(s.welcome.String()))); err != nil {
		return
	}
	s.dialed <- p
	for {
		f, err := readFrame(p.conn)
		if err != nil {
			return
		}
		if !f.Header.Masked {
			p.t.Error("the client sent an unmasked frame")
		}
		p.in <- f
	}
}

// readFrame reads a frame of the client's and unmasks it.
func readFrame(r io.Reader) (ws.Frame, error) {
	h, err := ws.ReadHeader(r)
	if err != nil {
		return ws.Frame{}, err
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return ws.Frame{}, err
	}
	ws.Cipher(payload, h.Mask, 0)
	return ws.Frame{Header: h, Payload: payload}, nil
}

// send writes a text frame.
func (p *peer) send(format string, args ...any) {
	p.t.Helper()
	p.raw(wire.AppendFrame(nil, ws.OpText, fmt.Appendf(nil, format, args...)))
}

func (p *peer) raw(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// drop ends the connection without a word.
func (p *peer) drop() { p.conn.Close() }

// nextFrame returns the next frame of the client's.
func (p *peer) nextFrame() ws.Frame {
	p.t.Helper()
	f, ok := <-p.in
	if !ok {
		p.t.Fatal("the client is gone")
	}
	return f
}

// wantCommand reads a command, compares its body and returns its id.
func (p *peer) wantCommand(verb, body string) uint64 {
	p.t.Helper()
	f := p.nextFrame()
	var cmd map[string]json.RawMessage
	if err := json.Unmarshal(f.Payload, &cmd); err != nil || f.Header.OpCode != ws.OpText {
		p.t.Fatalf("the client sent opcode %d, %q", f.Header.OpCode, f.Payload)
	}
	if got := string(cmd[verb]); got != body {
		p.t.Fatalf("the client sent %s, want %s with %s", f.Payload, verb, body)
	}
	var id uint64
	if err := json.Unmarshal(cmd["id"], &id); err != nil {
		p.t.Fatal(err)
	}
	return id
}

// wantClose reads a Close frame and the end of the connection.
func (p *peer) wantClose(code wire.CloseCode) {
	p.t.Helper()
	f := p.nextFrame()
	if f.Header.OpCode != ws.OpClose || len(f.Payload) < 2 {
		p.t.Fatalf("the client sent opcode %d, %q, want a Close frame", f.Header.OpCode, f.Payload)
	}
	if got := wire.CloseCode(binary.BigEndian.Uint16(f.Payload)); got != code {
		p.t.Fatalf("the client closed with %d %s, want %d", got, f.Payload[2:], code)
	}
	p.wantGone()
}

func (p *peer) wantGone() {
	p.t.Helper()
	if f, ok := <-p.in; ok {
		p.t.Fatalf("the client sent opcode %d, %q, want the end", f.Header.OpCode, f.Payload)
	}
}

// wantDial waits for the client to come back and returns how long it took.
func (s *fake) wantDial() (*peer, time.Duration) {
	s.t.Helper()
	began := time.Now()
	return <-s.dialed, time.Since(began)
}
