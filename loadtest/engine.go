//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// The life of a connection.
const (
	idle     = iota // not wanted, or not yet
	waiting         // in the dial queue
	dialing         // connect(2) is on its way
	securing        // the TLS handshake has the socket
	asked           // the request is sent
	opened
)

// conn is all that a connection costs while nothing is half-read or unsent.
type conn struct {
	extra *extra
	at    int64  // when it is due in the dial queue; then when the handshake or the message that runs began
	fd    int32  // -1 without one
	high  uint32 // the highest sequence delivered
	sent  uint32 // messages of the echo
	got   uint32 // and their replies
	retry uint32 // milliseconds that goodbye asked for
	state uint8
	tries uint8 // in a row that failed
}

// extra is what a connection has only for moments.
type extra struct {
	half     []byte   // of a frame or response head that is not whole
	fragment []byte   // of a message that is not whole
	out      []byte   // refused by the socket
	tls      *secured // stays, where TLS is spoken
}

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
	seed     uint64

	conns []conn
	buf   []byte // what recv fills
	plain []byte // what TLS makes of it
	now   int64  // when the last wait ended
	idle  int64  // time spent waiting
	tick  int64  // when the next tally is due

	dial    dialer
	deliver delivery
	unicast unicast
	echo    echo
	herd    herd

	total counts
	hists map[string]*hdrhistogram.Histogram
	quit  bool
}

// The histograms of a worker.
const (
	histHandshake = "handshake"
	histDelivery  = "delivery"
	histPush      = "push"
	histEcho      = "echo"
	histOutage    = "outage"
	histLag       = "lag" // how late the generator itself was in sending
)

var workerHists = []string{histHandshake, histDelivery, histPush, histEcho, histOutage, histLag}

// newHistogram counts nanoseconds up to an hour, within 0.1 %.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1000, int64(time.Hour), 3)
}

func newHists() map[string]*hdrhistogram.Histogram { return map[string]*hdrhistogram.Histogram{} }

// work runs a worker until in ends. It returns why it could not go on.
func work(in io.Reader, out io.Writer) error {
	e := &engine{
		orders: make(chan order, 16), handshakes: make(chan handshake, 128), out: json.NewEncoder(out), buf: make([]byte, 64<<10),
		seed: uint64(time.Now().UnixNano()), hists: newHists(),
	}
	for _, name := range workerHists {
		e.hists[name] = newHistogram()
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

const never = math.MaxInt64

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
		e.arm(o)
	case doAwait:
		e.await(o)
		return nil
	case doEcho:
		e.startEcho(o)
		return nil
	case doHerd:
		e.startHerd(o)
		return nil
	case doPushes:
		e.expectPushes(o)
	case doCame:
		return e.tellPushes(o)
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

// stop ends what runs; finish then answers it.
func (e *engine) stop() {
	e.dial.queue.clear(e)
	e.dial.failAll(e)
	e.echo.end = min(e.echo.end, e.now)
	e.echo.deadline = min(e.echo.deadline, e.now)
	e.deliver.deadline = min(e.deliver.deadline, e.now)
	e.herd.deadline = min(e.herd.deadline, e.now)
}

// finish answers the orders that are done.
func (e *engine) finish() {
	e.finishConnect()
	e.finishAwait()
	e.finishEcho()
	e.finishHerd()
}

// report sends a tally. The coordinator always reads, so it does not wait.
func (e *engine) report(t tally) error {
	t.counts = e.total
	t.Pending = e.dial.pending
	if err := e.out.Encode(&t); err != nil {
		return fmt.Errorf("the coordinator is gone: %w", err)
	}
	return nil
}

// answer reports that an order is done.
func (e *engine) answer(t tally) {
	if e.report(t) != nil {
		e.quit = true
	}
}

// tallyAll tells everything that was counted, and counts anew.
func (e *engine) tallyAll(o *order) error {
	e.total.SelfC = machine.OwnCPU()
	if m, err := machine.ReadMemory(os.Getpid()); err == nil {
		e.total.SelfM = m.Resident
	}
	t := tally{ID: o.ID, Anew: true, Hists: map[string]string{}}
	for name, h := range e.hists {
		if h.TotalCount() == 0 {
			continue
		}
		b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			return fmt.Errorf("histogram %s: %w", name, err)
		}
		t.Hists[name] = string(b)
	}
	err := e.report(t)
	e.total = counts{Open: e.total.Open}
	for _, h := range e.hists {
		h.Reset()
	}
	return err
}

func (e *engine) record(name string, d int64) {
	_ = e.hists[name].RecordValue(min(max(d, 0), int64(time.Hour))) // within its bounds by that
}

// phase measures how busy the loop is.
type phase struct{ began, idle int64 }

func (e *engine) begin() phase { return phase{machine.Now(), e.idle} }

// end notes the busy share of the phase; one of less than 10 ms says nothing.
func (e *engine) end(p phase) {
	if d := machine.Now() - p.began; d > int64(10*time.Millisecond) {
		e.total.Busy = max(e.total.Busy, 1-float64(e.idle-p.idle)/float64(d))
	}
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
