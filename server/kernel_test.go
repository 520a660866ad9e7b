//go:build linux

package server

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/pool"
	"github.com/tocsin-push/tocsin/wire"
)

// sim is a server without goroutines on a kernel without sockets: its turns
// run when the test says so, its clock stands still until then, and each peer
// is two buffers. What happens follows from the seed and from the descriptors
// that the process has open.
type sim struct {
	t     testing.TB
	srv   *Server
	w     *worker
	rng   *rand.Rand
	time  time.Duration
	look  time.Duration // that every look at the clock takes
	sets  map[*netpoll.Set]int
	peers map[int]*peer // by descriptor, the newest
	order []*peer       // those that live, and some that did
	ready []*peer       // those with an edge
	stale []netpoll.Event

	sent []*message // whose receipts have to add up

	closed   int // descriptors
	cutReads bool
	sink     bool // what is sent is counted and thrown away
	sentN    int
	waitErr  []netpoll.Errno // what the next waits return
	recvs    int
}

// peer is the other end of one connection.
type peer struct {
	s    *sim
	fd   int
	ref  ref
	in   []byte // on its way to the server
	eof  bool   // behind in
	out  []byte // from the server, not yet read
	ends bool   // behind out
	room int    // bytes that the socket takes until it refuses; negative: all
	gone bool   // the server has closed the descriptor
	edge netpoll.Event
	full bool // a send was refused; room makes an edge
}

func newSim(t testing.TB, seed uint64, cfg Config) *sim {
	s := &sim{t: t, rng: rand.New(rand.NewPCG(seed, 0)), sets: map[*netpoll.Set]int{}, peers: map[int]*peer{}, time: time.Hour}
	cfg.Dev, cfg.Logger, cfg.kernel = true, silent, s
	setDefault(&cfg.Shards, 1)
	setDefault(&cfg.MaxConnections, 10_000)
	cfg.onFatal = func(err error) { t.Errorf("fatal: %v", err) }
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	srv := &Server{cfg: cfg, kernel: s, capacity: cfg.MaxConnections, ids: newIDs(), empty: make(chan struct{}, 1)}
	srv.log = limitedLog{logger: silent, last: map[string]*limitedLine{}}
	srv.acks.waiting = map[string][]*ackWait{}
	srv.once = newOnces(s, cfg.IdempotencyBudget)
	srv.hub = newHub(srv)
	for i := range cfg.Shards {
		sh, err := newShard(srv, i)
		if err != nil {
			t.Fatal(err)
		}
		sh.state.Store(shardAgain) // its turns are ours
		s.sets[sh.set] = i
		srv.shards = append(srv.shards, sh)
		t.Cleanup(func() { sh.set.Close() })
	}
	srv.hooks, err = pool.New(1, 1, func(_ int, call *hookCall) { srv.runHook(call) }, srv.hookPanicked)
	if err != nil {
		t.Fatal(err)
	}
	srv.turns, err = pool.New(1, 1, func(int, *shard) {}, srv.turnPanicked)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range s.peers {
			if !p.gone {
				netpoll.Close(p.fd)
			}
		}
		for _, err := range []error{srv.hooks.Release(context.Background()), srv.turns.Release(context.Background())} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	s.srv, s.w = srv, newWorker(srv)
	return s
}

// The kernel.

func (s *sim) Now() time.Duration              { s.time += s.look; return s.time }
func (s *sim) Accept(int) (int, netpoll.Errno) { return -1, unix.EAGAIN }
func (s *sim) CloseWrite(fd int) netpoll.Errno { s.peer(fd).ends = true; return 0 }
func (s *sim) peer(fd int) *peer {
	p := s.peers[fd]
	if p == nil || p.gone {
		s.t.Fatalf("a system call on descriptor %d, which is closed", fd)
	}
	return p
}

func (s *sim) Close(fd int) netpoll.Errno {
	p := s.peer(fd)
	p.gone = true
	s.closed++
	return netpoll.Close(fd)
}

func (s *sim) Recv(fd int, b []byte) (int, netpoll.Errno) {
	s.recvs++
	p := s.peer(fd)
	if len(p.in) == 0 {
		if p.eof {
			return 0, 0
		}
		return 0, unix.EAGAIN
	}
	n := len(p.in)
	if s.cutReads { // the rest has not arrived yet; its edge will follow
		n = 1 + s.rng.IntN(n)
		p.raise(netpoll.Event{Readable: true})
	}
	n = copy(b, p.in[:n])
	p.in = p.in[n:]
	return n, 0
}

func (s *sim) Send(fd int, b []byte) (int, netpoll.Errno) {
	if s.sink {
		s.sentN += len(b)
		return len(b), 0
	}
	p := s.peer(fd)
	if p.ends {
		return 0, unix.EPIPE
	}
	n := len(b)
	if p.room >= 0 {
		n = min(n, p.room)
		p.room -= n
		p.full = n < len(b)
	}
	if n == 0 {
		return 0, unix.EAGAIN
	}
	p.out = append(p.out, b[:n]...)
	return n, 0
}

// Wait reports the edges of a set in any order, now and then one for a
// connection that has ended.
func (s *sim) Wait(set *netpoll.Set, events []netpoll.Event) (int, netpoll.Errno) {
	if len(s.waitErr) > 0 {
		errno := s.waitErr[0]
		s.waitErr = s.waitErr[1:]
		if errno != 0 {
			return 0, errno
		}
	}
	shard, n := s.sets[set], 0
	for _, e := range s.stale {
		if n < len(events) && shardOf(ref(e.Key).fd(), len(s.srv.shards)) == shard {
			events[n] = e
			n++
		}
	}
	s.stale = nil
	var later []*peer
	s.rng.Shuffle(len(s.ready), func(i, j int) { s.ready[i], s.ready[j] = s.ready[j], s.ready[i] })
	for _, p := range s.ready {
		switch {
		case p.gone || p.edge == netpoll.Event{}:
			continue
		case shardOf(p.fd, len(s.srv.shards)) != shard || n == len(events):
			later = append(later, p)
			continue
		}
		events[n] = p.edge
		events[n].Key = uint64(p.ref)
		p.edge = netpoll.Event{}
		n++
	}
	s.ready = later
	return n, 0
}

// The test's side.

// socket makes a connection that the server has not accepted yet.
func (s *sim) socket() *peer {
	s.t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &peer{s: s, fd: fd, room: -1}
	s.peers[fd] = p
	s.order = append(slices.DeleteFunc(s.order, func(p *peer) bool { return p.gone }), p)
	s.srv.conns.Add(1)
	return p
}

// open accepts one connection; nothing is said yet.
func (s *sim) open() *peer {
	s.t.Helper()
	p := s.socket()
	s.srv.admit([]int{p.fd})
	s.run()
	p.ref = s.slot(p).ref()
	return p
}

func (s *sim) slot(p *peer) *conn {
	n := len(s.srv.shards)
	return s.srv.shards[shardOf(p.fd, n)].at(localIndex(p.fd, n))
}

// dial opens and upgrades; the answer is read.
func (s *sim) dial(path string) *peer {
	s.t.Helper()
	p := s.open()
	p.write([]byte(wstest.Request("tocsin.test", path, "dGhlIHNhbXBsZSBub25jZQ==")))
	for p.edge != (netpoll.Event{}) { // reads may be cut
		s.run()
	}
	head, rest, _ := bytes.Cut(p.out, []byte("\r\n\r\n"))
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		s.t.Fatalf("upgrade of %s: %q", path, p.out)
	}
	p.out = rest
	if !strings.Contains(path, "raw") {
		p.frames()
	}
	return p
}

// raise makes an edge, which the next wait may tell.
func (p *peer) raise(e netpoll.Event) {
	p.edge.Readable = p.edge.Readable || e.Readable
	p.edge.Writable = p.edge.Writable || e.Writable
	p.edge.HangUp = p.edge.HangUp || e.HangUp
	if !slices.Contains(p.s.ready, p) {
		p.s.ready = append(p.s.ready, p)
	}
}

func (p *peer) write(b []byte) {
	p.in = append(p.in, b...)
	p.raise(netpoll.Event{Readable: true})
}

func (p *peer) send(frames ...wstest.Frame) { p.write(wstest.Encode(frames...)) }

// hangUp ends the peer's side.
func (p *peer) hangUp() {
	p.eof = true
	p.raise(netpoll.Event{Readable: true, HangUp: true})
}

// drain makes room for n more bytes; negative for any number.
func (p *peer) drain(n int) {
	p.room = n
	if p.full {
		p.full = false
		p.raise(netpoll.Event{Writable: true})
	}
}

// frames reads what has come as whole frames and leaves the rest.
func (p *peer) frames() (out []wstest.Frame) {
	p.s.t.Helper()
	for {
		h, size := wire.ParseHeader(p.out)
		if size == 0 || int64(len(p.out)-size) < h.Length {
			return out
		}
		if h.Masked || h.Rsv != 0 || !h.Fin || h.OpCode == ws.OpContinuation || h.OpCode.IsReserved() {
			p.s.t.Fatalf("a bad frame from the server: %+v", h)
		}
		out = append(out, wstest.Frame{Op: h.OpCode, Payload: p.out[size : size+int(h.Length)]})
		p.out = p.out[size+int(h.Length):]
	}
}

// turn serves one shard until nothing is left.
func (s *sim) turn(sh *shard) {
	s.w.shard = sh
	s.srv.lastTick.Store(&tickTime{s.time, s.time}) // the ticker has just been
	s.w.clock()
	s.w.noticeStall()
	sh.ready.Store(true)
	for i := 0; s.w.round(); i++ {
		if i == 10_000 {
			s.t.Fatal("a turn without end")
		}
	}
}

// run serves every shard twice, as what one does can be another's work.
func (s *sim) run() {
	for range 2 {
		for _, i := range s.rng.Perm(len(s.srv.shards)) {
			s.turn(s.srv.shards[i])
		}
	}
}

// sweep lets d pass and has every shard look at its deadlines.
func (s *sim) sweep(d time.Duration) {
	s.time += d
	for _, sh := range s.srv.shards {
		sh.tick.Store(true)
		s.turn(sh)
	}
	s.run()
}

// check compares the server's accounts with what there is. The test has the
// turn, so it may look.
func (s *sim) check() {
	s.t.Helper()
	waiting, conns, open := 0, 0, 0
	for _, sh := range s.srv.shards {
		for i := sh.slots.next(0); i >= 0; i = sh.slots.next(i + 1) {
			c := sh.at(i)
			conns++
			if (c.state == stateOpen) != sh.open.has(i) || c.state == stateFree {
				s.t.Fatalf("slot %d is in state %d", i, c.state)
			}
			if c.state == stateOpen {
				open++
			}
			if c.ext == nil {
				continue
			}
			o, n := &c.ext.out, 0
			for _, e := range o.q {
				n += len(e.b)
			}
			if o.off > 0 {
				n -= o.off
			}
			if n != o.bytes || len(o.q) > 0 && o.off >= len(o.q[0].b) || len(o.q) == 0 && o.off != 0 {
				s.t.Fatalf("an outbox of %d bytes says %d, %d of its first entry have left", n, o.bytes, o.off)
			}
			// Pongs and the Close frame go in whatever there is.
			if most := s.srv.cfg.MaxOutbox + maxGaps + 4*(2+ws.MaxControlFramePayloadSize); n > most && len(o.q) > 2 {
				s.t.Fatalf("an outbox of %d bytes in %d entries, the limit is %d", n, len(o.q), most)
			}
			if c.state == stateOpen && c.ext.idle() {
				s.t.Fatal("a connection keeps an extra that nothing needs")
			}
			waiting += n
		}
	}
	for _, m := range s.sent {
		written, queued, dropped := m.outcome.read()
		if n := int(m.subscribers.Load()); m.pending.Load() == 0 && n != written+queued+dropped {
			s.t.Fatalf("the receipt of %q is for %d: %d written, %d queued, %d dropped", m.data, n, written, queued, dropped)
		}
	}
	alive := 0
	for _, p := range s.peers {
		if !p.gone {
			alive++
		}
	}
	st := s.srv.Stats()
	if st.OutboxBytes != int64(waiting) || st.Connections != open || conns != alive || int(s.srv.conns.Load()) != alive || st.PublishBytes < 0 {
		s.t.Fatalf("the accounts say %d bytes waiting, %d open and %d connections of %d bytes published; there are %d, %d and %d of %d",
			st.OutboxBytes, st.Connections, s.srv.conns.Load(), st.PublishBytes, waiting, open, alive, conns)
	}
}
