package server

import (
	"context"
	"net/netip"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// Conn is a handle on one connection, given to hooks. It is a small value that
// may be kept, compared, and used from any goroutine; after the connection has
// ended methods that act on it do nothing.
type Conn struct {
	srv  *Server
	ref  engine.Ref // 0 until there is a connection: see ID
	user string
	own  *personal
	peer netip.AddrPort
}

// handle returns the handle on c for a hook.
func (srv *Server) handle(t *engine.Turn, c *engine.Conn, s *session) Conn {
	conn := Conn{srv: srv, ref: c.Ref(), user: s.user}
	if s.more != nil {
		conn.own = s.more.own
	}
	if srv.cfg.hooked() {
		conn.peer = t.Peer(c)
	}
	return conn
}

// ID returns the connection's id, as in its welcome and in [Target]. It is ""
// where Allow is asked about the topics of a request that came by
// [Server.ServeHTTP], as there is no connection yet.
func (c Conn) ID() string {
	if c.ref == 0 {
		return ""
	}
	return c.srv.ids.name(c.ref)
}

// User returns the user that Auth named, "" if there is none.
func (c Conn) User() string { return c.user }

// Data returns the Data of the [Identity] that Auth returned, nil if there is
// none. Any goroutine may call it: what is changed in it needs a lock of yours.
func (c Conn) Data() any {
	if c.own == nil {
		return nil
	}
	return c.own.data
}

// RemoteAddr returns the address of the other end of the socket, also in
// OnClose. That is a proxy's if there is one. It is the zero value for a Unix
// socket.
func (c Conn) RemoteAddr() netip.AddrPort { return c.peer }

// Send queues one text or binary message for the connection; payload is copied.
// It is not told whether the connection still exists.
func (c Conn) Send(op ws.OpCode, payload []byte) { c.srv.engine.SendFrame(c.ref, op, payload) }

// Subscribe subscribes the connection to a topic as [Server.Subscribe] does, and
// waits until it has taken effect. In OnOpen, for example, it gives a connection
// its first topics. The error wraps [ErrNobody] if the connection has ended.
func (c Conn) Subscribe(topic string) error {
	_, err := c.srv.Subscribe(context.Background(), Target{Conn: c.srv.ids.name(c.ref)}, topic)
	return err
}

// Unsubscribe ends the connection's subscription to a topic, if there is one, as
// [Server.Unsubscribe] does.
func (c Conn) Unsubscribe(topic string) {
	c.srv.engine.Ask(c.ref, &enrollment{srv: c.srv, topic: topic, off: true, told: make(told, 1)})
}

// Close starts the closing handshake with the given code and reason.
func (c Conn) Close(code wire.CloseCode, reason string) { c.srv.engine.Close(c.ref, code, reason) }
