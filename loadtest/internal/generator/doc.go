// Package generator makes the load: raw sockets in epoll loops, opened, watched
// and, when a message is due, written to.
//
// The sockets are held by worker processes, which a [Fleet] starts and gives
// orders to, in lines of JSON (order.go). A worker is one loop: engine.go, then
// in the order of a connection's life dial.go, tls.go where the server speaks
// it, and read.go. What is followed on the connections stands apart from the
// loop, which hands it every message and every end: deliver.go the messages to
// all, unicast.go those to one, talk.go questions and answers, return.go the
// connections that come back.
//
// The program that uses it is its own worker: started with the one argument
// "worker" it must call [Work].
//
// It knows servers and connections by their numbers. It does not know what is
// measured with it, how a server is asked to send, or who is told.
package generator
