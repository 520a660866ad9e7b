package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit" // knows cgroup v1, v2, hybrid and nested
	"golang.org/x/term"

	"github.com/tocsin-push/tocsin/httpapi"
	"github.com/tocsin-push/tocsin/internal/limits"
	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/server"
)

type serveCmd struct{ settings }

// Help is shown below the usage of serve.
func (serveCmd) Help() string {
	return "Either api-key or dev must be given. Each setting is a flag (--max-topics), an environment variable (TOCSIN_MAX_TOPICS) and a key of the config file (max-topics); " +
		"the first of these that is given counts. Sizes are written 65536, 64KiB or 1MiB, times 500ms, 10s or 2m. " +
		"docs/configuration.md says what each protects against. SIGTERM, SIGINT and SIGHUP drain: /readyz says no for drain-delay, " +
		"then clients are closed over drain and told to come back spread over return-window."
}

// service is a running serve command.
type service struct {
	*settings
	log      *slog.Logger
	srv      *server.Server
	api      *http.Server
	clients  net.Listener
	backends net.Listener
	leaving  atomic.Bool // /readyz says no
}

// Run serves until a signal, and returns nil after a complete drain.
func (c *serveCmd) Run(std streams) error {
	if err := c.check(); err != nil {
		return err
	}
	s := &service{settings: &c.settings, log: c.logger(std.err)}
	slog.SetDefault(s.log)
	c.warn(s.log)
	useMachine()
	if _, err := memlimit.Set(memlimit.WithRatio(0.9)); err != nil {
		s.log.Warn("the memory limit of the cgroup is unknown; set GOMEMLIMIT", "err", err)
	}
	var err error
	if s.srv, err = server.New(c.serverConfig(s.log)); err != nil {
		return usageError{err}
	}
	if s.clients, err = listen("listen", c.Listen); err != nil {
		return err
	}
	if s.backends, err = listen("api-listen", c.APIListen); err != nil {
		return err
	}
	s.api = s.newAPI()

	signals := notifySignals()
	failed := make(chan error, 2)
	go func() { failed <- s.srv.Serve(s.clients) }()
	go func() { failed <- fmt.Errorf("serve %s: %w", s.backends.Addr(), s.api.Serve(s.backends)) }()
	s.announce(std.out)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go giveBack(ctx, lookEvery)
	select {
	case err := <-failed:
		return err
	case sig := <-signals:
		return s.drain(sig, signals)
	}
}

// useMachine gives this process the processors and the descriptors that it may
// have. With one processor the runtime's monitor takes it away from every wait
// for readiness, which makes a lone message half as dear again.
func useMachine() {
	if runtime.GOMAXPROCS(0) == 1 && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2)
	}
	_ = limits.Raise() // what is still too low is found and told
}

func listen(key, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // its sockets cost more and know fewer options
	network := "tcp"
	if host, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(host).To4() != nil {
		network = "tcp4" // with tcp, 0.0.0.0 would be [::] too
	}
	ln, err := lc.Listen(context.Background(), network, address)
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if err != nil {
		return nil, fmt.Errorf("%s is %s, which cannot be listened on: %w", key, address, err)
	}
	return ln, nil
}

func (s *service) newAPI() *http.Server {
	cfg := httpapi.Config{
		Keys: s.APIKey, KeyRate: s.APIRate, MaxPublish: s.maxPublish(),
		MaxBatch: s.APIMaxBatch, MaxBatchItems: s.APIMaxBatchItems, MaxConnections: s.APIMaxConnections,
		BodyTimeout: s.APITimeout, WriteTimeout: s.APITimeout,
		Ready:  func() bool { return !s.leaving.Load() },
		Logger: s.log,
	}
	if s.Dev {
		cfg.Demo = "ws://" + reachable(s.clients) + s.Path
	}
	return httpapi.NewServer(s.srv, cfg)
}

// notifySignals returns the signals that end the server. SIGHUP is one of them,
// as a closed terminal must not cut every client, but not under nohup, which
// starts a process with SIGHUP ignored.
func notifySignals() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	return signals
}

// oneSignal is for how long signals count as one: timeout(1) and others signal
// a process and then its group.
const oneSignal = time.Second

// secondSignal returns the first of signals that is not a repetition of the one
// that came when it was called.
func secondSignal(signals <-chan os.Signal) os.Signal {
	first := time.Now()
	for sig := range signals {
		if time.Since(first) > oneSignal {
			return sig
		}
	}
	return nil
}

// drain lets the clients go, and the API last, which tells how far it is. A
// second signal ends the process.
func (s *service) drain(sig os.Signal, signals <-chan os.Signal) error {
	go func() {
		s.log.Error("second signal, exit at once", "signal", secondSignal(signals).String())
		os.Exit(1)
	}()
	s.log.Info("leaving; another signal after a second exits at once", "signal", sig.String(), "drain-delay", s.DrainDelay, "at-most", s.longestStop())
	s.leaving.Store(true)
	<-time.After(s.DrainDelay)
	ctx, cancel := context.WithTimeout(context.Background(), s.settings.drain()+s.CloseTimeout+spare)
	defer cancel()
	if err := s.srv.Shutdown(ctx); err != nil {
		return fmt.Errorf("the drain is not complete, see drain and close-timeout: %w", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), spare)
	defer cancel()
	if err := s.api.Shutdown(ctx); err != nil {
		s.log.Warn("API requests were cut", "err", err)
	}
	s.log.Info("stopped")
	return nil
}

// announce tells in three lines what listens where and how much it can hold,
// and a developer what to do next.
func (s *service) announce(out io.Writer) {
	api := reachable(s.backends)
	connections, limit := s.capacity()
	s.log.Info("WebSocket clients connect here", "url", "ws://"+reachable(s.clients)+s.Path, "listen", s.clients.Addr().String())
	s.log.Info("backends publish here", "url", "http://"+api+"/api/", "api-listen", s.backends.Addr().String())
	s.log.Info("this process can hold", "connections", connections, "limit", limit)
	if !s.Dev {
		return
	}
	key := ""
	if len(s.APIKey) > 0 {
		key = ` -H "X-API-Key: $TOCSIN_API_KEY"`
	}
	fmt.Fprintf(out, "\nOpen http://%s/ in a browser, then:\n\n"+
		"  curl%s -H 'Content-Type: application/json' -d '{\"topic\":\"news\",\"data\":{\"hi\":1}}' http://%s/api/publish\n\n", api, key, api)
}

// capacity returns how many connections fit, and the limit that decides it.
func (s *service) capacity() (connections int, limit string) {
	connections = s.srv.Stats().Capacity
	limit = "max-connections"
	if s.MaxConnections == 0 {
		descriptors, _, _ := netpoll.RaiseDescriptorLimit() // server.New did, and would have failed
		limit = fmt.Sprintf("%d descriptors, see ulimit -n", descriptors)
	}
	const perConnection = 4200 // bytes: 3.84 KB in the kernel, the rest here
	memory := netpoll.PhysicalMemory()
	if cgroup, err := memlimit.FromCgroup(); err == nil && (memory == 0 || cgroup < uint64(memory)) {
		memory = int64(cgroup)
	}
	if fit := int(memory / perConnection); memory > 0 && fit < connections {
		connections, limit = fit, fmt.Sprintf("%d MiB of memory at 4 KiB a connection", memory>>20)
	}
	return connections, limit
}

// reachable returns an address of ln that can be dialed from this machine.
func reachable(ln net.Listener) string {
	host, port, _ := net.SplitHostPort(ln.Addr().String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// warn tells of settings that work and are unwise.
func (s *settings) warn(log *slog.Logger) {
	for key, address := range map[string]string{"listen": s.Listen, "api-listen": s.APIListen} {
		host, _, _ := net.SplitHostPort(address)
		if ip := net.ParseIP(host); s.Dev && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			log.Warn("dev lets everybody in who reaches this address", key, address)
		}
	}
}

func (s *settings) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(s.LogLevel)) // one of four words by now
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	file, isFile := w.(*os.File)
	if s.LogFormat == "text" || s.LogFormat == "auto" && isFile && term.IsTerminal(int(file.Fd())) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// readable has times written as people and the settings write them, in JSON too.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}
