package main

import (
	"net"
	"net/http"
	"time"

	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	"github.com/lesismal/nbio/nbhttp/websocket"
)

// startNbio serves with the library's epoll mode, configured as in its authors'
// own benchmark: payloads return to the pool after OnMessage, and no connection
// has a timer.
func startNbio(addr string) (broadcast, error) {
	logging.SetLevel(logging.LevelError)
	ln, err := net.Listen("tcp", addr) // the engine's own Start hangs on an address that is in use
	if err != nil {
		return nil, err
	}
	var conns set[*websocket.Conn]
	upgrader := websocket.NewUpgrader()
	upgrader.KeepaliveTime = 0
	upgrader.HandshakeTimeout = handshakeTimeout
	upgrader.MessageLengthLimit = maxMessage
	upgrader.CheckOrigin = func(*http.Request) bool { return true }
	upgrader.OnMessage(func(c *websocket.Conn, kind websocket.MessageType, data []byte) {
		_ = c.WriteMessage(kind, data) // errors end in OnClose
	})
	upgrader.OnOpen(func(c *websocket.Conn) { conns.add(c) })
	upgrader.OnClose(func(c *websocket.Conn, _ error) { conns.remove(c) })
	mux := http.NewServeMux()
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // Upgrade has answered
		}
		_ = c.SetReadDeadline(time.Time{})
	})
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network:                 "tcp",
		Addrs:                   []string{addr},
		Listen:                  func(string, string) (net.Listener, error) { return ln, nil },
		Handler:                 mux,
		IOMod:                   nbhttp.IOModNonBlocking,
		ReleaseWebsocketPayload: true,
	})
	return func(payload []byte) int {
		all := conns.all()
		for _, c := range all {
			_ = c.WriteMessage(websocket.TextMessage, payload)
		}
		return len(all)
	}, engine.Start()
}
