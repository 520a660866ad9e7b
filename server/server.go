package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/internal/seldom"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// Server keeps connections and delivers messages to them. Make one with [New];
// any goroutine may call its methods.
type Server struct {
	// Static after construction.
	cfg      Config
	engine   *engine.Engine
	shards   []shardData // of each of the engine's
	hub      *hub
	ids      ids
	idPrefix string
	log      *seldom.Log

	// What any goroutine counts or sets.
	publishBytes atomic.Int64
	// Batches that wait for the publish budget, and a token for one of them
	// when some of it is free.
	batchesWaiting atomic.Int64
	budgetFree     chan struct{}
	idNext         atomic.Uint64
	counts         counts
	acks           acks
	once           onces
	flight         flight
	forgetting     forgetting

	// Owned by Shutdown.
	shutdown    sync.Once
	shutdownErr error
	ended       chan struct{}
}

// New makes a server and starts its goroutines, whose number does not depend on
// that of the connections; [Server.Shutdown] ends them. It raises the process's
// soft limit of descriptors to the hard one. Errors say which Config field is
// wrong, or which limit is too low for Config.MaxConnections.
func New(cfg Config) (*Server, error) {
	srv, err := newServer(cfg)
	if err != nil {
		return nil, err
	}
	if err := srv.start(); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return srv, nil
}

// start makes what runs.
func (srv *Server) start() error {
	if err := srv.hub.bus.Start(srv.hub); err != nil {
		return fmt.Errorf("start bus: %w", err)
	}
	if err := srv.engine.Start(); err != nil {
		return errors.Join(err, srv.hub.bus.Close())
	}
	srv.forgetting.mu.Lock()
	defer srv.forgetting.mu.Unlock()
	srv.forgetting.startLocked(srv)
	return nil
}

// newServer makes a server that does not run yet.
func newServer(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	srv := &Server{
		cfg:        cfg,
		shards:     make([]shardData, cfg.Shards),
		budgetFree: make(chan struct{}, 1),
		ended:      make(chan struct{}),
	}
	if srv.engine, err = engine.New(srv.engineConfig(), app{srv}); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	srv.ids = newIDs(srv.engine.Rand)
	srv.idPrefix = srv.randomName()
	srv.log = seldom.New(cfg.Logger, srv.engine.Now)
	srv.acks = acks{after: srv.engine.After, waiting: map[string][]*ackWait{}}
	srv.once = newOnces(srv.engine.Now, cfg.IdempotencyBudget)
	srv.flight.node = srv.randomNumber()
	srv.hub = newHub(srv)
	return srv, nil
}

// engineConfig is the engine's part of the Config.
func (srv *Server) engineConfig() engine.Config {
	c := &srv.cfg
	return engine.Config{
		Path: c.Path, Subprotocols: []string{tocsin.Subprotocol}, Codecs: codecs,
		NameOf: func(r engine.Ref) string { return srv.ids.name(r) },
		Logger: c.Logger, Kernel: c.kernel, OnFatal: c.onFatal,

		Shards: c.Shards, Workers: c.Workers, CallWorkers: c.HookWorkers,

		MaxConnections: c.MaxConnections, MaxMessage: c.MaxMessage, MaxFrames: c.MaxFrames,
		MaxControl: c.MaxControl, MaxOutbox: c.MaxOutbox, OutboxBudget: c.OutboxBudget,

		HandshakeTimeout: c.HandshakeTimeout, AuthTimeout: c.AuthTimeout, MessageTimeout: c.MessageTimeout,
		WriteTimeout: c.WriteTimeout, OutboxAge: c.OutboxAge, PingInterval: c.PingInterval,
		PongTimeout: c.PongTimeout, CloseTimeout: c.CloseTimeout, Drain: c.Drain, ReturnWindow: c.ReturnWindow,
	}
}

// randomNumber returns a number that no other process has.
func (srv *Server) randomNumber() uint64 {
	var b [8]byte
	srv.engine.Rand(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// Capacity returns how many connections the server takes at once.
func (srv *Server) Capacity() int { return srv.engine.Capacity() }

// Shutdown drains the server: it stops accepting, sends every connection a
// goodbye and a Close, spread over Config.Drain, flushes what waits, and ends
// every goroutine it started. The goodbye's retry_after_ms is half a second and
// a part of Config.ReturnWindow; the parts differ, so that the clients come back
// spread over it. When ctx ends first the rest is closed at once and ctx's error
// returned. Any goroutine may call it; later calls wait for the first.
func (srv *Server) Shutdown(ctx context.Context) error {
	srv.shutdown.Do(func() {
		srv.shutdownErr = srv.engine.Shutdown(ctx)
		srv.forgetting.end()
		if err := srv.hub.bus.Close(); err != nil {
			srv.cfg.Logger.Warn("close bus", "error", err)
		}
		close(srv.ended)
	})
	<-srv.ended
	return srv.shutdownErr
}

// forgetEvery is how often it is looked for what was remembered long enough.
const forgetEvery = 500 * time.Millisecond

// forgetting is what forgets idempotency keys and topics that linger.
type forgetting struct {
	mu      lockorder.Mutex[lockorder.Outer]
	stop    func() bool
	ended   bool
	running sync.WaitGroup // what is being forgotten, without the lock: the bus is called
}

func (f *forgetting) startLocked(srv *Server) {
	f.stop = srv.engine.After(forgetEvery, func() {
		if !f.begin() {
			return
		}
		defer f.running.Done()
		srv.forget()
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.ended {
			f.startLocked(srv)
		}
	})
}

// begin reports whether something may be forgotten. Who does it says so to running.
func (f *forgetting) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended {
		f.running.Add(1)
	}
	return !f.ended
}

// end waits until nothing is being forgotten, nor will be.
func (f *forgetting) end() {
	f.mu.Lock()
	f.ended = true
	f.stop()
	f.mu.Unlock()
	f.running.Wait()
}

// forget forgets what was remembered long enough.
func (srv *Server) forget() {
	now := srv.engine.Now()
	srv.once.forget(now)
	srv.hub.tick(now)
	srv.flight.giveUp(now, srv.hub.comes)
}
