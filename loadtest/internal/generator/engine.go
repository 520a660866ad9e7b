//go:build linux

package generator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

const (
	wakeMark  = -1
	tickEvery = 100 * time.Millisecond
	maxFrame  = 16 << 20
	dialBatch = 64 // connects between two looks at the sockets
)

// engine is one worker: an epoll loop over raw sockets. One goroutine runs it;
// orders come through a channel and an eventfd.
type engine struct {
	epfd   int
	wake   int
	orders chan order
	out    *json.Encoder

	handshakes chan handshake // of TLS, that are over

	plan     plan
	servers  []unix.Sockaddr
	requests []request
	sources  []unix.Sockaddr
	seed     seed

	conns []conn
	buf   []byte // what recv fills
	plain []byte // what TLS makes of it
	now   int64  // when the last wait ended
	tick  int64  // when the next tally is due

	dial    dialer
	deliver delivery
	unicast unicast
	echo    echo
	herd    herd

	ledger
	quit bool
}

// Work is all that a worker process does: it takes orders from in, tells what
// came of them to out, and ends with in. It returns why it could not go on.
func Work(in io.Reader, out io.Writer) error {
	e := &engine{
		orders: make(chan order, 16), handshakes: make(chan handshake, 128), out: json.NewEncoder(out), buf: make([]byte, 64<<10),
		seed: seed(time.Now().UnixNano()), ledger: newLedger(),
	}
	var err error
	if e.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	defer floor.Close(e.epfd)
	if e.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if errno := floor.Control(e.epfd, unix.EPOLL_CTL_ADD, e.wake, unix.EPOLLIN, wakeMark, 0); errno != 0 {
		return fmt.Errorf("epoll_ctl: %w", errno)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		e.readOrders(in)
	}()
	err = e.run()
	if err != nil {
		err = errors.Join(err, e.out.Encode(tally{Error: err.Error()}))
	}
	for range e.orders { // whatever comes now comes too late
	}
	<-read
	floor.Close(e.wake)
	return err
}

// readOrders hands the loop what comes from the coordinator; it ends with in.
func (e *engine) readOrders(in io.Reader) {
	defer e.ring()
	defer close(e.orders)
	for dec := json.NewDecoder(in); ; {
		var o order
		if dec.Decode(&o) != nil {
			return
		}
		e.orders <- o
		e.ring()
	}
}

// ring makes the loop look at its orders.
func (e *engine) ring() {
	one := [8]byte{1}
	_, _ = unix.Write(e.wake, one[:]) // only fails when it is rung already
}

// run is the loop.
func (e *engine) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // without it waits are 50 µs longer, and that is all
	defer e.closeAll()
	events := make([]unix.EpollEvent, 256)
	for !e.quit {
		n, errno := e.wait(events)
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("epoll_wait: %w", errno)
		}
		e.now = machine.Now()
		for i := range events[:n] {
			if err := e.serve(&events[i]); err != nil {
				return err
			}
		}
		e.dialDue()
		e.sendDue()
		e.finish()
		if e.now >= e.tick {
			e.tick = e.now + int64(tickEvery)
			if err := e.report(tally{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// wait blocks until something is ready or due, to the nanosecond: a coarser
// wait would send in bursts and so be kinder to the server than life is.
func (e *engine) wait(events []unix.EpollEvent) (int, unix.Errno) {
	began := machine.Now()
	until := min(e.tick, e.dial.nextDue(e), e.echo.nextDue(began), e.deliver.nextDue(), e.herd.nextDue(e.dial.pending))
	n, errno := pwait(e.epfd, events, max(0, until-began))
	e.idle += machine.Now() - began
	return n, errno
}

func (e *engine) serve(ev *unix.EpollEvent) error {
	if ev.Fd == wakeMark {
		return e.takeOrders()
	}
	c := &e.conns[ev.Fd]
	if c.fd != ev.Pad {
		return nil // of a descriptor that is closed already
	}
	i := int(ev.Fd)
	const broken = unix.EPOLLERR | unix.EPOLLHUP
	if ev.Events&(unix.EPOLLOUT|broken) != 0 {
		switch {
		case c.state == dialing:
			e.ask(i, c)
		case c.extra != nil && len(c.extra.out) > 0:
			e.flush(i, c)
		}
	}
	const ending = unix.EPOLLRDHUP | broken
	if ev.Events&(unix.EPOLLIN|ending) != 0 && c.fd == ev.Pad && c.state >= asked {
		e.read(i, c, ev.Events&ending != 0)
	}
	return nil
}

// takeOrders takes all that it has been rung for. The ring comes after what
// it is for, so that nothing is left waiting.
func (e *engine) takeOrders() error {
	var b [8]byte
	_, _ = unix.Read(e.wake, b[:])
	for {
		select {
		case o, ok := <-e.orders:
			if !ok {
				e.quit = true
				return nil
			}
			if err := e.obey(&o); err != nil {
				return err
			}
		case h := <-e.handshakes:
			e.shaken(h)
		default:
			return nil
		}
	}
}

func (e *engine) obey(o *order) error {
	switch o.Do {
	case doPlan:
		if err := e.prepare(o.Plan); err != nil {
			return err
		}
	case doConnect:
		e.connect(o)
		return nil
	case doArm:
		e.deliver.arm(e.conns, o)
	case doAwait:
		e.answer(e.deliver.await(e.now, e.conns, o))
		return nil
	case doEcho:
		e.startEcho(o)
		return nil
	case doHerd:
		e.startHerd(o)
		return nil
	case doPushes:
		e.unicast.expect(&e.ledger, e.conns, o)
	case doCame:
		return e.report(e.unicast.tell(&e.ledger, o))
	case doSync:
	case doStop:
		e.stop()
	case doTally:
		return e.tallyAll(o)
	default:
		return fmt.Errorf("unknown order %q", o.Do)
	}
	return e.report(tally{ID: o.ID})
}

// startEcho has connections talk.
func (e *engine) startEcho(o *order) {
	e.now = machine.Now()
	e.echo.begin(&e.ledger, e.now, len(e.conns), o)
	for i := range e.echo.active {
		c := &e.conns[i]
		c.sent, c.got = 0, 0
		if c.state == opened {
			e.check(i, c, e.echo.joined(&e.ledger, e.now, i, c))
		}
	}
}

// sendDue sends what is due of the talk.
func (e *engine) sendDue() {
	for i := e.echo.due(e.now); i >= 0; i = e.echo.due(e.now) {
		c := &e.conns[i]
		e.check(i, c, e.echo.sayDue(&e.ledger, i, c))
	}
}

// startHerd has connections come back when they end, and drops them first if
// the order says so.
func (e *engine) startHerd(o *order) {
	e.herd.begin(&e.ledger, e.now, len(e.conns), o)
	e.dial.schedule = true // a handshake that has to wait for others is late
	for i := o.Keep; o.Drop && i < len(e.conns); i++ {
		if c := &e.conns[i]; c.state == opened {
			e.lose(i, c, "dropped")
		}
	}
}

// stop ends what runs; finish then answers it.
func (e *engine) stop() {
	e.stopDialing()
	e.echo.end = min(e.echo.end, e.now)
	e.echo.deadline = min(e.echo.deadline, e.now)
	e.deliver.deadline = min(e.deliver.deadline, e.now)
	e.herd.deadline = min(e.herd.deadline, e.now)
}

// finish answers the orders that are done.
func (e *engine) finish() {
	e.answer(e.finishConnect())
	e.answer(e.deliver.finish(&e.ledger, e.now))
	e.answer(e.echo.finish(&e.ledger, e.now))
	e.answer(e.herd.finish(&e.ledger, e.now, e.dial.pending))
}

// report sends a tally. The coordinator always reads, so it does not wait.
func (e *engine) report(t tally) error {
	t.Counts = e.total
	t.Pending = e.dial.pending
	if err := e.out.Encode(&t); err != nil {
		return fmt.Errorf("the coordinator is gone: %w", err)
	}
	return nil
}

// answer reports that an order is done, if t is not nil.
func (e *engine) answer(t *tally) {
	if t != nil && e.report(*t) != nil {
		e.quit = true
	}
}

// tallyAll tells everything that was counted, and counts anew.
func (e *engine) tallyAll(o *order) error {
	e.total.CPU = machine.OwnCPU()
	if m, err := machine.ReadMemory(os.Getpid()); err == nil {
		e.total.Resident = m.Resident
	}
	hists, err := e.encode()
	if err != nil {
		return err
	}
	err = e.report(tally{ID: o.ID, Anew: true, Hists: hists})
	e.anew()
	return err
}

func (e *engine) prepare(p *plan) error {
	e.plan = *p
	for _, s := range p.Servers {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return err
		}
		e.servers = append(e.servers, sockaddr(a))
	}
	for _, r := range p.Requests {
		e.requests = append(e.requests, parseRequest(r))
	}
	for _, s := range p.Sources {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		e.sources = append(e.sources, sockaddr(netip.AddrPortFrom(a, 0)))
	}
	return nil
}

func (e *engine) closeAll() {
	for i := range e.conns {
		if fd := e.conns[i].fd; fd >= 0 {
			floor.Close(int(fd))
		}
	}
}
