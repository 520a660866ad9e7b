package server

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/pool"
)

// Server keeps connections and delivers messages to them. Make one with [New];
// any goroutine may call its methods.
type Server struct {
	// Static after construction.
	cfg      Config
	kernel   kernel
	capacity int // connections at once
	shards   []*shard
	hub      *hub
	ids      ids
	idPrefix string
	log      limitedLog
	turns    *pool.Pool[*shard]    // serves shards
	workers  []*worker             // of turns, by number
	hooks    *pool.Pool[*hookCall] // runs user code
	poller   *netpoll.Poller       // watches the shards' epoll sets and the listeners
	inline   *worker               // owned by the poller's goroutine

	// What any goroutine counts or sets.
	conns        atomic.Int64 // descriptors of connections
	handshaking  atomic.Int64
	opened       atomic.Int64
	hooksWaiting atomic.Int64 // calls that shards keep because the pool is full
	outboxBytes  atomic.Int64
	publishBytes atomic.Int64
	// Batches that wait for the publish budget, and a token for one of them
	// when some of it is free.
	batchesWaiting atomic.Int64
	budgetFree     chan struct{}
	idNext         atomic.Uint64
	lastTick       atomic.Pointer[tickTime]
	draining       atomic.Bool
	hurryDrain     atomic.Bool
	closed         atomic.Bool
	stats          stats
	acks           acks
	once           onces

	mu        sync.Mutex // guards listeners
	listeners []*listener

	// Owned by Shutdown.
	shutdown    sync.Once
	shutdownErr error
	ended       chan struct{}
	empty       chan struct{} // gets a token when the last connection or waiting hook goes
	tickerStop  chan struct{}
	hurried     chan struct{} // gets a token when a shard cannot wait for the next sweep
	tickerEnded chan struct{}
	drainUntil  time.Duration // kernel.Now; set before draining is told to shards
	retryWindow int64         // ms over which clients are told to come back
	retryNext   atomic.Int64
}

// reservedFDs is what a process needs beside its connections: epoll sets,
// listeners, logs, the API's connections.
const reservedFDs = 256

// New makes a server and starts its goroutines, whose number does not depend on
// that of the connections; [Server.Shutdown] ends them. It raises the process's
// soft limit of descriptors to the hard one. Errors say which Config field is
// wrong, or which limit is too low for Config.MaxConnections.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	srv := &Server{
		cfg:         cfg,
		kernel:      cfg.kernel,
		ids:         newIDs(),
		idPrefix:    randomName(),
		ended:       make(chan struct{}),
		empty:       make(chan struct{}, 1),
		budgetFree:  make(chan struct{}, 1),
		tickerStop:  make(chan struct{}),
		hurried:     make(chan struct{}, 1),
		tickerEnded: make(chan struct{}),
	}
	if srv.kernel == nil {
		srv.kernel = system{start: time.Now()}
	}
	srv.lastTick.Store(&tickTime{kernel: srv.kernel.Now()})
	if srv.capacity, err = capacity(&cfg); err != nil {
		return nil, err
	}
	srv.log = limitedLog{logger: cfg.Logger, last: map[string]*limitedLine{}}
	srv.acks.waiting = map[string][]*ackWait{}
	srv.once = newOnces(srv.kernel, cfg.IdempotencyBudget)
	srv.hub = newHub(srv)
	if err := srv.start(); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return srv, nil
}

func newHub(srv *Server) *hub {
	h := &hub{users: newIndex[*conn](), topics: newIndex[*topic](), epoch: randomName() + "-", srv: srv, bus: srv.cfg.Bus}
	if h.bus == nil {
		h.bus = localBus{h}
	}
	return h
}

// capacity raises the descriptor limit and says how many connections fit.
func capacity(cfg *Config) (int, error) {
	limit, hard, err := netpoll.RaiseDescriptorLimit()
	if err != nil {
		return 0, fmt.Errorf("server: %w", err)
	}
	reserved := uint64(max(reservedFDs, reservedFDs/2+cfg.Shards))
	fits := int(min(max(limit, reserved)-reserved, 1<<30))
	switch {
	case fits == 0:
		return 0, fmt.Errorf("server: the limit of open files (RLIMIT_NOFILE) is %d, hard %d, and a server needs %d for itself and one for each connection: raise it with ulimit -Hn %d or LimitNOFILE=",
			limit, hard, reserved, uint64(max(cfg.MaxConnections, 1000))+reserved)
	case cfg.MaxConnections == 0:
		return fits, nil
	case cfg.MaxConnections > fits:
		return 0, fmt.Errorf("server: max-connections is %d, which needs %d open files; the limit (RLIMIT_NOFILE) is %d, hard %d: raise it with ulimit -Hn %d or LimitNOFILE=, or set max-connections to %d or less",
			cfg.MaxConnections, uint64(cfg.MaxConnections)+reserved, limit, hard, uint64(cfg.MaxConnections)+reserved, fits)
	}
	return cfg.MaxConnections, nil
}

// start makes what runs. After an error everything that was made is ended.
func (srv *Server) start() (err error) {
	defer func() {
		if err != nil {
			srv.abort()
		}
	}()
	for i := range srv.cfg.Shards {
		s, err := newShard(srv, i)
		if err != nil {
			return err
		}
		srv.shards = append(srv.shards, s)
	}
	for range srv.cfg.Workers {
		srv.workers = append(srv.workers, newWorker(srv))
	}
	srv.inline = newWorker(srv)
	srv.turns, err = pool.New(srv.cfg.Workers, srv.cfg.Shards, func(n int, s *shard) { srv.workers[n].turn(s, false) }, srv.turnPanicked)
	if err != nil {
		return err
	}
	srv.hooks, err = pool.New(srv.cfg.HookWorkers, 16*srv.cfg.HookWorkers, func(_ int, call *hookCall) { srv.runHook(call) }, srv.hookPanicked)
	if err != nil {
		return err
	}
	if srv.poller, err = netpoll.NewPoller(srv.pollerFailed); err != nil {
		return err
	}
	for _, s := range srv.shards {
		if err := srv.poller.Add(s.set.FD(), s.onReady); err != nil {
			return err
		}
	}
	go func() {
		defer close(srv.tickerEnded)
		srv.runTicker(srv.tickerStop)
	}()
	return nil
}

// abort ends what start has made before it failed.
func (srv *Server) abort() {
	if srv.poller != nil {
		_ = srv.poller.Close()
	}
	if srv.turns != nil {
		_ = srv.turns.Release(context.Background())
	}
	if srv.hooks != nil {
		_ = srv.hooks.Release(context.Background())
	}
	for _, s := range srv.shards {
		s.set.Close()
	}
}

// turnPanicked gives a shard whose turn panicked back, so that its other
// connections go on; the one that was being served may be left half done, and
// the next sweep finds it.
func (srv *Server) turnPanicked(s *shard, value any, stack []byte) {
	srv.cfg.Logger.Error("a turn panicked; this is a bug in tocsin", "shard", s.index, "panic", fmt.Sprint(value), "stack", string(stack))
	s.ready.Store(true)
	s.state.Store(shardIdle)
	s.wake()
}

// hookPanicked is for a panic outside user code, which protect has caught.
func (srv *Server) hookPanicked(_ *hookCall, value any, stack []byte) {
	srv.cfg.Logger.Error("the hook pool panicked; this is a bug in tocsin", "panic", fmt.Sprint(value), "stack", string(stack))
}

// fatal ends the process loudly: without readiness nothing can be served, and
// a supervisor that restarts helps more than silence.
func (srv *Server) fatal(what string, err error) {
	srv.cfg.Logger.Error(what+"; the process ends", "error", err)
	if srv.cfg.onFatal != nil {
		srv.cfg.onFatal(err)
		return
	}
	go panic(fmt.Sprintf("server: %s: %v", what, err))
}

func (srv *Server) pollerFailed(err error) {
	if !srv.closed.Load() {
		srv.fatal("epoll_wait failed", err)
	}
}

// gone counts the end of a connection's descriptor.
func (srv *Server) gone() {
	if srv.conns.Add(-1) == 0 {
		srv.signalEmpty()
	}
}

// signalEmpty has Shutdown look again whether everything has ended.
func (srv *Server) signalEmpty() {
	select {
	case srv.empty <- struct{}{}:
	default:
	}
}

// Capacity returns how many connections the server takes at once.
func (srv *Server) Capacity() int { return srv.capacity }
