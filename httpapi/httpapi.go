// Package httpapi is the way in over HTTP for backends and operators: publish,
// push, broadcast and disconnect, information, metrics, health and profiles.
// It belongs on a port of its own that clients do not reach.
//
// A request passes, in this order: Origin (browsers are refused, 403), API key
// (401), rate of that key (429), method (405), and for a POST media type (415),
// size (413) and time (408) of its body, which is checked whole before anything
// in it is believed (400). Every refusal is an RFC 9457 problem whose detail is
// one sentence.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// Backend is what the API serves; a [server.Server] is one. Any goroutine
// calls any method.
type Backend interface {
	Publish(ctx context.Context, topic string, m server.Message) (server.Receipt, error)
	Push(ctx context.Context, to server.Target, m server.Message) (server.Receipt, error)
	Broadcast(ctx context.Context, m server.Message) (server.Receipt, error)
	Disconnect(ctx context.Context, to server.Target, code wire.CloseCode, reason string) (int, error)
	User(name string) []string
	Topic(name string) (at server.Position, subscribers int, ok bool)
	Stats() server.Stats
}

// Config says how the API behaves. The zero value of each field means its default.
type Config struct {
	// Keys are the API keys; a request carries one as X-API-Key or as a Bearer
	// token. None: everybody may do everything, which is for development only.
	Keys []string
	// KeyRate bounds the POST requests a second with one key; as many may come
	// at once. 0: no limit.
	KeyRate int
	// MaxPublish bounds data, in bytes; the rest of a body may have 8 KiB
	// more. Default 64 KiB. It should be that of [server.Config].
	MaxPublish int
	// BodyTimeout bounds the time from the first to the last byte of a body.
	// Default 10 s.
	BodyTimeout time.Duration
	// Ready tells whether new connections should come here; /readyz answers
	// 503 when it says no, and always while the backend drains. Nil: yes.
	Ready func() bool
	// Demo is the ws:// address that the page at / connects to. Empty: no page.
	Demo string
	// Logger gets what a client is not told. Default [slog.Default].
	Logger *slog.Logger
}

// envelope is the room in a body for everything but data.
const envelope = 8 << 10

type api struct {
	// Static after New.
	backend Backend
	cfg     Config
	keys    []apiKey
	open    apiKey // of everybody, when there are no keys
	metrics *metrics
}

// New returns a handler for all paths of the API. It starts nothing and keeps
// no state but rates and counters.
func New(backend Backend, cfg Config) http.Handler {
	if cfg.MaxPublish == 0 {
		cfg.MaxPublish = 64 << 10
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	a := &api{backend: backend, cfg: cfg, metrics: newMetrics(backend)}
	a.keys, a.open = newKeys(cfg.Keys, cfg.KeyRate)

	mux := http.NewServeMux()
	for _, route := range []struct {
		pattern, method string
		access          access
		serve           handler
	}{
		{"/api/publish", http.MethodPost, keyed, a.publish},
		{"/api/push", http.MethodPost, keyed, a.push},
		{"/api/broadcast", http.MethodPost, keyed, a.broadcast},
		{"/api/disconnect", http.MethodPost, keyed, a.disconnect},
		{"/api/stats", http.MethodGet, keyed, a.stats},
		{"/api/users/{id...}", http.MethodGet, keyed, a.user},
		{"/api/topics/{name...}", http.MethodGet, keyed, a.topic},
		{"/metrics", http.MethodGet, public, plain(a.metrics.handler())},
		{"/healthz", http.MethodGet, public, a.healthz},
		{"/readyz", http.MethodGet, public, a.readyz},
		// Not cmdline, which shows keys that were given as flags.
		{"/debug/pprof/", http.MethodGet, keyed, plain(http.HandlerFunc(pprof.Index))},
		{"/debug/pprof/profile", http.MethodGet, keyed, plain(http.HandlerFunc(pprof.Profile))},
		{"/debug/pprof/symbol", http.MethodGet, keyed, plain(http.HandlerFunc(pprof.Symbol))},
		{"/debug/pprof/trace", http.MethodGet, keyed, plain(http.HandlerFunc(pprof.Trace))},
		{"/{$}", http.MethodGet, public, a.demo},
		{"/", "", public, notFound},
	} {
		h := a.guard(route.method, route.access, route.serve)
		mux.Handle(route.pattern, a.metrics.instrument(route.pattern, h))
	}
	return mux
}

// handler answers a request, or returns why it is refused: a *[problem], or an
// error of package server.
type handler func(w http.ResponseWriter, r *http.Request) error

func plain(h http.Handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

// access says whether a route asks for an API key.
type access bool

const (
	public access = false
	keyed  access = true
)

// guard wraps serve in what is checked before a body is read.
func (a *api) guard(method string, need access, serve handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := a.admit(w, r, method, need); err != nil {
			a.refuse(w, r, err)
		} else if err := serve(w, r); err != nil {
			a.refuse(w, r, err)
		}
	})
}

func (a *api) admit(w http.ResponseWriter, r *http.Request, method string, need access) error {
	if len(r.Header["Origin"]) > 0 {
		return refusef(http.StatusForbidden, "The API does not serve browsers: requests with an Origin header are refused.")
	}
	key := &a.open
	if need == keyed && len(a.keys) > 0 {
		var err error
		if key, err = a.authenticate(w, r); err != nil {
			return err
		}
	}
	if method == http.MethodPost {
		if err := key.take(); err != nil {
			return err
		}
	}
	if method != "" && r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
		w.Header().Set("Allow", method)
		return refusef(http.StatusMethodNotAllowed, "The method is %s, this path takes %s.", r.Method, method)
	}
	return nil
}

func notFound(_ http.ResponseWriter, r *http.Request) error {
	return refusef(http.StatusNotFound, "There is no %s here, see docs/protocol.md for the paths.", r.URL.Path)
}
