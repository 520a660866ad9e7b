package netpoll

import (
	"fmt"

	"github.com/mailru/easygo/netpoll"
)

// Poller calls back when a watched descriptor becomes readable. All callbacks
// run in the poller's one goroutine, one at a time; they may call Rearm and
// must not call Close.
type Poller struct {
	ep *netpoll.Epoll
}

// oneShot is level-triggered: Rearm reports what is ready already.
const oneShot = netpoll.EPOLLIN | netpoll.EPOLLONESHOT

// NewPoller starts a poller. onError is called, once and from the poller's
// goroutine, if waiting fails for good; the poller is then dead. EINTR is not
// a failure.
func NewPoller(onError func(error)) (*Poller, error) {
	ep, err := netpoll.EpollCreate(&netpoll.EpollConfig{OnWaitError: onError})
	if err != nil {
		return nil, fmt.Errorf("create poller: %w", err)
	}
	return &Poller{ep: ep}, nil
}

// Add watches fd. onReady is called, in the poller's goroutine, once when fd is
// readable, in error or hung up; then not again until Rearm.
func (p *Poller) Add(fd int, onReady func()) error {
	err := p.ep.Add(fd, oneShot, func(e netpoll.EpollEvent) {
		if e&(netpoll.EPOLLIN|netpoll.EPOLLERR|netpoll.EPOLLHUP) != 0 { // not at Close
			onReady()
		}
	})
	if err != nil {
		// easygo keeps the callback of a failed Add, and would answer
		// ErrRegistered for this number for ever.
		_ = p.ep.Del(fd)
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	return nil
}

// Rearm makes fd report again; if it is ready now, at once. Any goroutine may
// call it.
func (p *Poller) Rearm(fd int) error { return p.ep.Mod(fd, oneShot) }

// Del stops watching fd. It must come before fd is closed. A callback that is
// already on its way may still run.
func (p *Poller) Del(fd int) error { return p.ep.Del(fd) }

// Close ends the poller's goroutine. It must not be called from a callback.
func (p *Poller) Close() error { return p.ep.Close() }
