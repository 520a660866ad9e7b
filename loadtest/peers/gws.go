package main

import (
	"bufio"
	"log"
	"net"
	"net/http"

	"github.com/lxzan/gws"
)

// startGws serves with the library's own server, which reads the request
// without net/http's and has a goroutine per connection. Messages of one
// connection are answered in order, the default.
func startGws(addr string) (broadcast, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	handler := new(gwsHandler)
	server := gws.NewServer(handler, &gws.ServerOption{
		HandshakeTimeout:   handshakeTimeout,
		ReadMaxPayloadSize: maxMessage,
		Recovery:           gws.Recovery,
	})
	server.OnError = func(c net.Conn, err error) {
		if c == nil {
			log.Printf("gws: accept: %v", err)
			return
		}
		_ = c.Close()
	}
	upgrade := server.OnRequest
	server.OnRequest = func(c net.Conn, br *bufio.Reader, r *http.Request) {
		if r.URL.Path != path {
			_, _ = c.Write([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
			_ = c.Close()
			return
		}
		upgrade(c, br, r)
	}
	go func() { log.Fatal(server.RunListener(ln)) }()
	return handler.broadcast, nil
}

type gwsHandler struct {
	gws.BuiltinEventHandler
	conns set[*gws.Conn]
}

func (h *gwsHandler) OnOpen(c *gws.Conn) { h.conns.add(c) }

func (h *gwsHandler) OnClose(c *gws.Conn, _ error) { h.conns.remove(c) }

func (h *gwsHandler) OnPing(c *gws.Conn, payload []byte) { _ = c.WritePong(payload) }

func (h *gwsHandler) OnMessage(c *gws.Conn, message *gws.Message) {
	defer message.Close()
	_ = c.WriteMessage(message.Opcode, message.Bytes()) // errors end in OnClose
}

// broadcast hands the frame to each connection's own write queue.
func (h *gwsHandler) broadcast(payload []byte) int {
	b := gws.NewBroadcaster(gws.OpcodeText, payload)
	defer b.Close()
	all := h.conns.all()
	for _, c := range all {
		_ = b.Broadcast(c)
	}
	return len(all)
}
