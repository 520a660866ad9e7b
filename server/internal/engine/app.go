package engine

import "github.com/gobwas/ws"

// App is what connections are kept for. Its methods run in the turn of the
// connection's shard: they do not block. Slices they are given live until they
// return.
type App interface {
	// Request decides on a whole and valid upgrade request: before it returns
	// it calls [Turn.Upgrade], [Turn.Refuse], or [Turn.Call] with a job whose
	// Done does so.
	Request(t *Turn, c *Conn, r Request)
	// Message takes one text or binary message of an open connection.
	Message(t *Turn, c *Conn, op ws.OpCode, payload []byte)
	// Closed is called once for every connection that was upgraded, when it
	// stops being open. It takes the connection out of every [Group].
	Closed(t *Turn, c *Conn, end End)
	// Room is called once the outbox of a connection has as much room as
	// [Turn.Fits] was asked for in vain.
	Room(t *Turn, c *Conn)
	// Sweep is called twice a second for every shard that has connections, also
	// on a busy server.
	Sweep(t *Turn)
}

// Task is something to do for a connection in its shard's turn; see
// [Engine.Post].
type Task interface {
	Do(t *Turn, c *Conn)
}

// Job is work for a connection that may block, or is somebody else's code.
type Job interface {
	// Run does it, in a goroutine of the runner's.
	Run()
	// Done goes on with it, in the turn of the connection's shard, if the
	// connection still is. It is not called after a panic of Run: then the
	// connection is closed with 1011, or refused with 500.
	Done(t *Turn, c *Conn)
}

// Wait is what a connection waits for: one of its methods is called, once.
type Wait interface {
	// Done goes on with the connection, in its turn.
	Done(t *Turn, c *Conn)
	// Gone is told that it ends, in the turn of its shard if it has one.
	Gone()
}
