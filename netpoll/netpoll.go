// Package netpoll says which epoll sets have ready sockets, and does the
// non-blocking system calls on raw descriptors.
//
// There are two levels. A [Set] is an epoll instance that holds sockets:
// edge-triggered, registered once for reading, writing and half-close, never
// modified. Waiting on it never blocks; whoever owns the set calls
// [Set.Wait] until nothing is left. A [Poller] blocks, in one goroutine, on
// behalf of everybody: it watches descriptors level-triggered and one-shot,
// sets (an epoll descriptor is readable while an event is pending in it,
// epoll(7)) and listeners alike, and calls the callback of one that became
// readable. After that the descriptor is silent until [Poller.Rearm].
//
// What follows from it:
//
//   - Rearm asks the kernel for the present state. So an event that came between
//     the owner's last Wait and Rearm is reported, and the owner need not wait
//     once more to be sure.
//   - A socket with an error or a hang-up is reported as readable and writable.
//     The next Recv or Send on it returns the error.
//   - An event is a hint. It names its socket by a key that the owner chose,
//     who must check that the key still means the same socket.
//   - A descriptor leaves its set when it is closed, which requires that it
//     was never duplicated.
//
// All of it exists on Linux. Elsewhere every call returns
// [errors.ErrUnsupported], so that programs still build.
package netpoll

import "syscall"

// Event is one ready socket.
type Event struct {
	Key      uint64
	Readable bool // includes end of file, error and hang-up
	Writable bool
	HangUp   bool // the peer has sent its end of file, or the socket failed
}

// The error numbers that a caller of the socket calls must know.
const (
	EAGAIN = syscall.EAGAIN
	EINTR  = syscall.EINTR
)
