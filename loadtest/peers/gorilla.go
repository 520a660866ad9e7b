package main

import (
	"bytes"
	"log"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// gorillaConn is a connection and the lock that its one concurrent writer holds.
type gorillaConn struct {
	*websocket.Conn
	mu sync.Mutex
}

// startGorilla serves with a goroutine per connection. Write buffers come from
// a pool and the read buffer is small, as the documentation advises for many
// connections that write rarely; the read loop is not the handler's goroutine,
// so that net/http's buffers and the request are freed.
func startGorilla(addr string) (broadcast, error) {
	var conns set[*gorillaConn]
	upgrader := websocket.Upgrader{
		HandshakeTimeout: handshakeTimeout,
		ReadBufferSize:   1024,
		WriteBufferSize:  1024,
		WriteBufferPool:  new(sync.Pool),
		CheckOrigin:      func(*http.Request) bool { return true },
	}
	err := serveHTTP(addr, func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // Upgrade has answered
		}
		ws.SetReadLimit(maxMessage)
		c := &gorillaConn{Conn: ws}
		conns.add(c)
		go func() {
			c.echo()
			conns.remove(c)
			_ = c.Close()
		}()
	})
	return func(payload []byte) int {
		message, err := websocket.NewPreparedMessage(websocket.TextMessage, payload)
		if err != nil {
			log.Print(err)
			return 0
		}
		all := conns.all()
		for _, c := range all {
			if err := c.writePrepared(message); err != nil {
				_ = c.Close() // its read loop removes it
			}
		}
		return len(all)
	}, err
}

// echo returns when the connection ends.
func (c *gorillaConn) echo() {
	for {
		kind, r, err := c.NextReader()
		if err != nil {
			return
		}
		buf := buffers.Get().(*bytes.Buffer)
		buf.Reset()
		if _, err = buf.ReadFrom(r); err == nil {
			err = c.write(kind, buf.Bytes())
		}
		buffers.Put(buf)
		if err != nil {
			return
		}
	}
}

func (c *gorillaConn) write(kind int, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.SetWriteDeadline(time.Now().Add(writeTimeout)) // only remembers it
	return c.WriteMessage(kind, payload)
}

func (c *gorillaConn) writePrepared(message *websocket.PreparedMessage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
	return c.WritePreparedMessage(message)
}

// buffers holds the *bytes.Buffer that messages are read into.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}
