package main

import (
	"bytes"
	"log"
	"net"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"github.com/mailru/easygo/netpoll"
	"github.com/panjf2000/ants/v2"
)

// articleWorkers is how many connections are served at once.
const articleWorkers = 128

// articleConn is a connection as the article has it: a net.Conn for the bytes
// and a netpoll.Desc, which has a descriptor of its own, for readiness.
type articleConn struct {
	net.Conn
	desc *netpoll.Desc
	mu   sync.Mutex // held by the writer
}

type articleServer struct {
	poller   netpoll.Poller
	pool     *ants.Pool
	upgrader ws.Upgrader
	conns    set[*articleConn]
}

// startArticle serves with the design of "A Million WebSockets and Go": a
// goroutine accepts, a bounded pool upgrades and reads, and easygo tells when
// there is something to read, once, until it is resumed.
func startArticle(addr string) (broadcast, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &articleServer{upgrader: ws.Upgrader{OnRequest: onlyPath}}
	if s.poller, err = netpoll.New(nil); err != nil {
		return nil, err
	}
	if s.pool, err = ants.NewPool(articleWorkers); err != nil {
		return nil, err
	}
	go s.accept(ln)
	return s.broadcast, nil
}

func (s *articleServer) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			log.Printf("accept: %v", err)
			time.Sleep(5 * time.Millisecond) // out of descriptors: give some time to come free
			continue
		}
		s.schedule(func() { s.open(conn) })
	}
}

// schedule waits for a free worker.
func (s *articleServer) schedule(task func()) {
	if err := s.pool.Submit(task); err != nil {
		log.Fatal(err) // only a pool that was closed refuses
	}
}

// open upgrades conn and starts to watch it.
func (s *articleServer) open(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if _, err := s.upgrader.Upgrade(conn); err != nil {
		_ = conn.Close()
		return
	}
	_ = conn.SetDeadline(time.Time{})
	desc, err := netpoll.HandleReadOnce(conn)
	if err != nil {
		log.Print(err)
		_ = conn.Close()
		return
	}
	c := &articleConn{Conn: conn, desc: desc}
	s.conns.add(c)
	err = s.poller.Start(desc, func(event netpoll.Event) {
		if event&(netpoll.EventReadHup|netpoll.EventHup) != 0 {
			s.close(c)
			return
		}
		s.schedule(func() { s.receive(c) })
	})
	if err != nil {
		log.Print(err)
		s.close(c)
	}
}

// receive echoes one message and asks to be told of the next.
func (s *articleServer) receive(c *articleConn) {
	payload, op, err := wsutil.ReadClientData(c)
	if err != nil {
		s.close(c)
		return
	}
	var frame bytes.Buffer
	if err := ws.WriteFrame(&frame, ws.NewFrame(op, true, payload)); err != nil {
		s.close(c)
		return
	}
	if _, err := c.Write(frame.Bytes()); err != nil {
		s.close(c)
		return
	}
	if err := s.poller.Resume(c.desc); err != nil {
		s.close(c)
	}
}

// close is called by whoever was told of the event, so once.
func (s *articleServer) close(c *articleConn) {
	s.conns.remove(c)
	_ = s.poller.Stop(c.desc)
	_ = c.desc.Close()
	_ = c.Close()
}

// Write writes one frame; wsutil answers control frames with it.
func (c *articleConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Conn.Write(p)
}

func (s *articleServer) broadcast(payload []byte) int {
	frame := ws.MustCompileFrame(ws.NewTextFrame(payload))
	all := s.conns.all()
	for _, c := range all {
		_, _ = c.Write(frame) // the poller tells of a connection that broke
	}
	return len(all)
}
