package server

import (
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
)

// kernel is everything a shard asks of the operating system and the clock.
// What a connection receives and sends goes through it alone, so that a test
// can be the kernel: split reads, refuse writes, stop the clock.
type kernel interface {
	Recv(fd int, b []byte) (int, netpoll.Errno)
	Send(fd int, b []byte) (int, netpoll.Errno)
	Accept(listener int) (int, netpoll.Errno)
	CloseWrite(fd int) netpoll.Errno
	Close(fd int) netpoll.Errno
	Wait(s *netpoll.Set, events []netpoll.Event) (int, netpoll.Errno)
	Now() time.Duration // monotonic, from an arbitrary start
}

// system is the real kernel.
type system struct{ start time.Time }

func (system) Recv(fd int, b []byte) (int, netpoll.Errno) { return netpoll.Recv(fd, b) }
func (system) Send(fd int, b []byte) (int, netpoll.Errno) { return netpoll.Send(fd, b) }
func (system) Accept(listener int) (int, netpoll.Errno)   { return netpoll.Accept(listener) }
func (system) CloseWrite(fd int) netpoll.Errno            { return netpoll.CloseWrite(fd) }
func (system) Close(fd int) netpoll.Errno                 { return netpoll.Close(fd) }
func (k system) Now() time.Duration                       { return time.Since(k.start) }
func (system) Wait(s *netpoll.Set, events []netpoll.Event) (int, netpoll.Errno) {
	return s.Wait(events)
}
