// Package server is the push server as a library. It keeps WebSocket connections,
// most of them idle, and delivers messages to a topic, a user, one connection or
// everybody.
//
// # Use
//
// [New] makes a [Server] from a [Config]. Config.Auth names the user of
// each connection; without it New wants Config.Dev. [Server.Serve] takes clients from a listener, and
// [Server.ServeHTTP] takes them from an http.Server of yours; both may be used
// at once. [Server.Publish] sends to a topic, [Server.Push] to a user or to one
// connection, [Server.Broadcast] to everybody, and [Server.Batch] many messages
// in one call. Each returns a [Receipt], which says who got the message.
// [Server.Shutdown] closes the clients, spread over Config.Drain, and tells
// them when to come back. All of these may be called by any goroutine.
//
// A program can have its say in Config: Auth (who may connect), Allow (who may
// subscribe and publish), OnMessage (messages from clients), OnOpen and OnClose.
// These hooks may block. They run on goroutines of their own, never more than
// Config.HookWorkers at once. The HTTP API and the metrics are in package httpapi.
// Clients speak the protocol of docs/protocol.md.
//
// The server runs on Linux. On other systems it builds, and New returns an error.
//
// # Inside
//
// docs/design.md explains the words and follows a message in and a message out,
// function by function. In short: a connection is a slot of 64 bytes (type conn),
// without net.Conn, goroutine, timer, lock or buffer. Connections are dealt to
// shards by descriptor number. A shard has an epoll set and an inbox, and is
// served in turns: at most one goroutine has the turn of a shard, and it alone
// touches the shard's connections.
//
// # Goroutines
//
// New starts all of them, and Shutdown ends them. The poller (easygo's wait loop)
// watches the listeners and the shards' sets, accepts connections, and serves a
// shard itself while the pool is idle. The ticker wakes shards for their
// sweeps. Two pools of ants have workers as long as there is work: at most
// Config.Workers that serve shards, and Config.HookWorkers that run hooks. Serve starts none and returns
// when the server shuts down.
//
// # Locks
//
// They are taken in this order, and never two of one kind together: a stripe of
// the topic index or of the user index; an inbox; a pool. listener.mu comes
// before an inbox. acks.mu, once.mu and hookCall.mu are taken alone. While a lock
// is held, nothing outside this package is called but Bus.Subscribe and
// Bus.Unsubscribe, which must not block.
//
// # Not done here
//
// TLS, history, presence, compression. A client that was away is told which
// messages it missed, and is not given them.
package server
