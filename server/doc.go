// Package server is the push server as a library. It keeps WebSocket
// connections, most of them idle, and delivers messages to a topic, a user, one
// connection or everybody.
//
// # The parts
//
// A connection is a [conn]: a slot of 64 bytes, no net.Conn, goroutine, timer,
// lock or buffer of its own. Slots belong to shards by descriptor number. A
// shard has an epoll set, an inbox and whatever its connections need at the
// moment, and is served in turns: at any time at most one goroutine has a
// shard's turn, and it alone touches the shard's connections. The hub knows
// which shards have subscribers of a topic and which connections a user has.
// The bus gives a topic's messages their order.
//
// # A message in
//
//	netpoll.Poller    a shard's set has something            poller_linux.go
//	shard.onReady     the turn, here or in the pool          shard.go
//	worker.serve      recv                                   read.go
//	worker.feed       frame by frame, until a hook is busy   read.go
//	half.take         whole frames, checked and unmasked     half.go
//	worker.frame      control frames answered                read.go
//	worker.command    what the client wants                  command.go
//
// # A message out
//
//	Server.Publish    checked, once, within the budget       publish.go
//	Bus.Publish       its place in the topic                 hub.go
//	hub.deliverLocked encoded once; into the inboxes         hub.go
//	worker.takeInbox  in the shard's turn                    shard.go
//	worker.walk       subscribers in descriptor order        fanout.go
//	worker.give       one send, or the outbox                fanout.go
//	worker.flush      the outbox, when the socket has room   write.go
//
// # Goroutines
//
// New starts all of them and Shutdown ends them: the poller (easygo's wait
// loop), which watches listeners and the shards' sets, accepts, and serves a
// shard itself while the pool is idle; the ticker; and the workers of two pools,
// which ants starts when there is work: Config.Workers that serve shards and
// Config.HookWorkers that run user code. Serve blocks in its caller's.
//
// # Locks
//
// In this order, and never two of one kind together: a stripe of the topic
// index or of the user index; an inbox; a pool. listener.mu comes before an
// inbox; acks.mu, once.mu and hookCall.mu stand alone. Nothing is called
// out while a lock is held, but for Bus.Subscribe and Bus.Unsubscribe, which
// must not block.
//
// # Not done here
//
// TLS, history and resuming a topic, presence, compression. A reader who was
// away is told which range was missed.
package server
