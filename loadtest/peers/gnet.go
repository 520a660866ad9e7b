package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/gobwas/ws"
	"github.com/panjf2000/gnet/v2"
)

// startGnet serves with gnet's event loops and gobwas/ws for the bytes. Frames
// are read where gnet has them and echoed frame by frame, in one write for all
// that arrived together; a broadcast is one task for each event loop.
func startGnet(addr string) (broadcast, error) {
	server := &gnetServer{booted: make(chan struct{}), loops: make(map[gnet.EventLoop]*gnetLoop)}
	server.upgrader.OnRequest = onlyPath
	failed := make(chan error, 1)
	go func() {
		failed <- gnet.Run(server, "tcp://"+addr, gnet.WithMulticore(true))
	}()
	select {
	case <-server.booted:
		return server.broadcast, nil
	case err := <-failed:
		return nil, err
	}
}

type gnetServer struct {
	gnet.BuiltinEventEngine
	booted   chan struct{}
	upgrader ws.Upgrader

	mu    sync.Mutex
	loops map[gnet.EventLoop]*gnetLoop
}

// gnetLoop is what the connections of an event loop share. Only that loop's
// goroutine touches it. It is the context of its upgraded connections.
type gnetLoop struct {
	conns set[gnet.Conn]
	in    bytes.Reader
	out   bytes.Buffer
}

var endOfHead = []byte("\r\n\r\n")

// onlyPath refuses a request for anything but /ws.
func onlyPath(uri []byte) error {
	if p, _, _ := bytes.Cut(uri, []byte("?")); string(p) != path {
		return ws.RejectConnectionError(ws.RejectionStatus(http.StatusNotFound))
	}
	return nil
}

func (s *gnetServer) OnBoot(gnet.Engine) gnet.Action {
	close(s.booted)
	return gnet.None
}

func (s *gnetServer) OnClose(c gnet.Conn, _ error) gnet.Action {
	if loop, ok := c.Context().(*gnetLoop); ok {
		loop.conns.remove(c)
	}
	return gnet.None
}

func (s *gnetServer) OnTraffic(c gnet.Conn) gnet.Action {
	loop, ok := c.Context().(*gnetLoop)
	if !ok {
		var action gnet.Action
		if loop, action = s.upgrade(c); loop == nil {
			return action
		}
	}
	return loop.echo(c)
}

// upgrade returns nil while the request is not there or not wanted.
func (s *gnetServer) upgrade(c gnet.Conn) (*gnetLoop, gnet.Action) {
	head, err := c.Peek(-1)
	if err != nil {
		return nil, gnet.Close
	}
	end := bytes.Index(head, endOfHead)
	if end < 0 {
		if len(head) > 8<<10 {
			return nil, gnet.Close
		}
		return nil, gnet.None
	}
	loop := s.loop(c.EventLoop())
	end += len(endOfHead)
	loop.in.Reset(head[:end])
	loop.out.Reset()
	_, err = s.upgrader.Upgrade(struct {
		io.Reader
		io.Writer
	}{&loop.in, &loop.out})
	if _, werr := c.Write(loop.out.Bytes()); err != nil || werr != nil {
		return nil, gnet.Close
	}
	if _, err := c.Discard(end); err != nil {
		return nil, gnet.Close
	}
	c.SetContext(loop)
	loop.conns.add(c)
	return loop, gnet.None
}

func (s *gnetServer) loop(el gnet.EventLoop) *gnetLoop {
	s.mu.Lock()
	defer s.mu.Unlock()
	loop, ok := s.loops[el]
	if !ok {
		loop = new(gnetLoop)
		s.loops[el] = loop
	}
	return loop
}

// echo answers every whole frame that has arrived.
func (l *gnetLoop) echo(c gnet.Conn) gnet.Action {
	data, err := c.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	l.out.Reset()
	action, done := gnet.None, 0
	for action == gnet.None && done < len(data) {
		l.in.Reset(data[done:])
		h, err := ws.ReadHeader(&l.in)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil || !h.Masked || h.Length > maxMessage {
			action = gnet.Close
			break
		}
		body := data[len(data)-l.in.Len():]
		if int64(len(body)) < h.Length {
			break
		}
		body = body[:h.Length]
		ws.Cipher(body, h.Mask, 0)
		action = l.answer(h, body)
		done = len(data) - l.in.Len() + len(body)
	}
	if l.out.Len() > 0 {
		if _, err := c.Write(l.out.Bytes()); err != nil {
			return gnet.Close
		}
	}
	if done > 0 { // Discard(0) would discard everything
		if _, err := c.Discard(done); err != nil {
			return gnet.Close
		}
	}
	return action
}

// answer appends the answer to one frame.
func (l *gnetLoop) answer(h ws.Header, body []byte) gnet.Action {
	action := gnet.None
	switch h.OpCode {
	case ws.OpPong:
		return gnet.None
	case ws.OpPing:
		h.OpCode = ws.OpPong
	case ws.OpClose:
		action = gnet.Close
	}
	h.Masked = false
	if err := ws.WriteHeader(&l.out, h); err != nil {
		return gnet.Close
	}
	l.out.Write(body)
	return action
}

func (s *gnetServer) broadcast(payload []byte) int {
	frame := ws.MustCompileFrame(ws.NewTextFrame(payload))
	s.mu.Lock()
	waiting := len(s.loops)
	counts := make(chan int, waiting)
	for el, loop := range s.loops {
		err := el.Execute(context.Background(), gnet.RunnableFunc(func(context.Context) error {
			all := loop.conns.all()
			for _, c := range all {
				_, _ = c.Write(frame) // errors end in OnClose
			}
			counts <- len(all)
			return nil
		}))
		if err != nil {
			waiting--
		}
	}
	s.mu.Unlock()
	total := 0
	for range waiting {
		total += <-counts
	}
	return total
}
