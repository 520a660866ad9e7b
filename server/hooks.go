package server

import (
	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// The jobs of the hooks. Each is made in a turn, runs in the engine's pool, and
// is done in a turn again.

// openJob calls OnOpen.
type openJob struct {
	hook func(Conn)
	conn Conn
}

// Run implements engine.Job.
func (j *openJob) Run() { j.hook(j.conn) }

// Done implements engine.Job.
func (*openJob) Done(*engine.Turn, *engine.Conn) {}

// closeJob calls OnClose.
type closeJob struct {
	hook func(Conn, int)
	conn Conn
	code int
}

// Run implements engine.Job.
func (j *closeJob) Run() { j.hook(j.conn, j.code) }

// Done implements engine.Job.
func (*closeJob) Done(*engine.Turn, *engine.Conn) {}

// messageJob gives a message to OnMessage.
type messageJob struct {
	conn    Conn
	op      ws.OpCode
	payload []byte
	handled bool
}

// Run implements engine.Job.
func (j *messageJob) Run() { j.handled = j.conn.srv.cfg.OnMessage(j.conn, j.op, j.payload) }

// Done implements engine.Job.
func (j *messageJob) Done(t *engine.Turn, c *engine.Conn) {
	if !j.handled && c.Open() {
		j.conn.srv.unhandled(t, c, j.op, j.payload)
	}
}

// Message implements engine.App: OnMessage has the first word.
func (a app) Message(t *engine.Turn, c *engine.Conn, op ws.OpCode, payload []byte) {
	srv := a.srv
	if srv.cfg.OnMessage == nil {
		srv.unhandled(t, c, op, payload)
		return
	}
	t.Call(c, &messageJob{conn: srv.handle(t, c, srv.session(t, c)), op: op, payload: append([]byte{}, payload...)})
}

// unhandled acts on a message that OnMessage did not handle: its commands, if
// it is of the kind that the codec speaks.
func (srv *Server) unhandled(t *engine.Turn, c *engine.Conn, op ws.OpCode, payload []byte) {
	if op != codecs[c.Codec()].Op() {
		t.Close(c, wire.CloseUnsupported, "binary messages are not spoken here")
		return
	}
	srv.commands(t, c, payload)
}
