package main

import (
	"bytes"
	"context"
	"net/http"

	"github.com/coder/websocket"
)

// startCoder serves with a goroutine per connection, which is not the
// handler's, so that the request is freed. The library locks its writers
// itself and has no prepared message.
func startCoder(addr string) (broadcast, error) {
	var conns set[*websocket.Conn]
	err := serveHTTP(addr, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
			InsecureSkipVerify: true, // any Origin
			CompressionMode:    websocket.CompressionDisabled,
		})
		if err != nil {
			return // Accept has answered
		}
		c.SetReadLimit(maxMessage)
		conns.add(c)
		go func() {
			echoCoder(c)
			conns.remove(c)
			_ = c.CloseNow()
		}()
	})
	return func(payload []byte) int {
		all := conns.all()
		for _, c := range all {
			// On an error the library closes, and the read loop removes it.
			_ = writeCoder(c, websocket.MessageText, payload)
		}
		return len(all)
	}, err
}

// echoCoder returns when the connection ends.
func echoCoder(c *websocket.Conn) {
	for {
		kind, r, err := c.Reader(context.Background())
		if err != nil {
			return
		}
		buf := buffers.Get().(*bytes.Buffer)
		buf.Reset()
		if _, err = buf.ReadFrom(r); err == nil {
			err = writeCoder(c, kind, buf.Bytes())
		}
		buffers.Put(buf)
		if err != nil {
			return
		}
	}
}

func writeCoder(c *websocket.Conn, kind websocket.MessageType, payload []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	return c.Write(ctx, kind, payload)
}
