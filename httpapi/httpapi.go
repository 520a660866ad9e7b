// Package httpapi is the HTTP API of a [server.Server], for backends and operators:
// publish, push, broadcast, batch, subscribe and disconnect; look-ups, metrics, health and
// profiles. [NewServer] returns an http.Server for it; [New] returns the handler
// alone. It belongs on a port of its own that clients do not reach. docs/api.md
// and openapi.yaml describe every request.
//
// A request passes, in this order: Origin (browsers are refused, 403), API key
// (401), method (405), and for a POST media type (415), size (413) and time
// (408) of its body, rate of the key (429), and the body itself, which is
// checked whole before anything in it is believed (400). Every refusal is an
// RFC 9457 problem with a stable code; its detail is one sentence.
package httpapi

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
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
	Batch(ctx context.Context, items []server.BatchItem) []server.BatchResult
	Disconnect(ctx context.Context, to server.Target, code wire.CloseCode, reason string) (int, error)
	Subscribe(ctx context.Context, to server.Target, topic string) (int, error)
	Unsubscribe(ctx context.Context, to server.Target, topic string) (int, error)
	User(name string) []string
	Topics(ctx context.Context, of server.Target) ([]string, error)
	Topic(name string) (at server.Position, subscribers int, ok bool)
	Subscribers(ctx context.Context, topic string) iter.Seq2[server.Subscriber, error]
	Stats() server.Stats
}

// Config says how the API behaves. The zero value of each field means its default.
type Config struct {
	// Keys are the API keys; a request carries one as X-API-Key or as a Bearer
	// token. None: everybody may do everything, which is for development only.
	Keys []string
	// KeyRate bounds the POST requests a second with one key; as many may come
	// at once. Each message of a batch counts as a request. 0: no limit.
	KeyRate int
	// MaxPublish bounds data, in bytes; the rest of a body may have 8 KiB
	// more. Default 64 KiB. It should be that of [server.Config].
	MaxPublish int
	// MaxBatch bounds the body of a batch, in bytes. Default 8 MiB.
	MaxBatch int
	// MaxBatchItems bounds the messages of a batch; one for each user where it
	// lists users. Default 10,000.
	MaxBatchItems int
	// MaxConnections bounds the open connections, for [NewServer]. A new one
	// takes the place of an idle one, or is closed if all are busy. Default 1,000.
	MaxConnections int
	// BodyTimeout bounds the time from the first to the last byte of a body,
	// and for [NewServer] that of a head. Default 10 s.
	BodyTimeout time.Duration
	// WriteTimeout bounds the time in which an answer must have been sent,
	// from when it is ready. A connection over it ends. Default 10 s.
	WriteTimeout time.Duration
	// IdleTimeout ends a connection without a request, for [NewServer].
	// Default 2 min.
	IdleTimeout time.Duration
	// Ready tells whether new connections should come here; /readyz answers
	// 503 when it says no, and always while the backend drains. Nil: yes.
	Ready func() bool
	// Demo is the ws:// address that the page at / connects to. Empty: no page.
	Demo string
	// Logger gets what a client is not told. Default [slog.Default].
	Logger *slog.Logger
}

// fill sets the defaults.
func (c *Config) fill() {
	c.MaxPublish = cmp.Or(c.MaxPublish, 64<<10)
	c.MaxBatch = cmp.Or(c.MaxBatch, 8<<20)
	c.MaxBatchItems = cmp.Or(c.MaxBatchItems, 10_000)
	c.MaxConnections = cmp.Or(c.MaxConnections, 1000)
	c.BodyTimeout = cmp.Or(c.BodyTimeout, 10*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 2*time.Minute)
	c.Logger = cmp.Or(c.Logger, slog.Default())
}

// envelope is the room in a body for everything but data.
const envelope = 8 << 10

type api struct {
	// Static after newAPI.
	backend  Backend
	cfg      Config
	keys     []apiKey
	open     apiKey // of everybody, when there are no keys
	metrics  *metrics
	routes   []*route // for people, in the order of the documents
	exact    map[string]*route
	prefixes []*route
	nowhere  *route // answers for all other paths
	index    []byte // the body of GET /api/

	leaving atomic.Bool // the http.Server shuts down: nobody is waited for long
}

// New returns a handler for all paths of the API. It starts nothing and keeps
// no state but rates and counters. It sets deadlines for bodies and answers;
// those for heads and idle connections are the [http.Server]'s, which
// [NewServer] makes. A [http.ServeMux] in front of it redirects names with //
// or .. in them, unless they are percent-encoded.
func New(backend Backend, cfg Config) http.Handler { return newAPI(backend, cfg) }

func newAPI(backend Backend, cfg Config) *api {
	cfg.fill()
	a := &api{backend: backend, cfg: cfg, metrics: newMetrics(backend)}
	a.keys, a.open = newKeys(cfg.Keys, cfg.KeyRate)
	a.addRoutes()
	return a
}

// ServeHTTP implements [http.Handler].
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{api: a, w: w, r: r, control: http.NewResponseController(w), start: time.Now()}
	x.route, x.name = a.find(r.URL)
	x.setWriteDeadline(x.start)
	err := x.admit()
	if err == nil {
		err = x.route.serve(x)
	}
	if err != nil {
		x.refuse(err)
	}
	x.observe()
}

// exchange is one request and its answer.
type exchange struct {
	api     *api
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	route   *route
	name    string // what stands behind the route's prefix, unescaped
	key     *apiKey
	start   time.Time

	// What became of it.
	mediaType string // of the body
	bodyRead  bool   // to its end
	ready     time.Time
	status    int
	code      code // why it was refused
}

// admit checks what can be checked before the body is read. It leaves a body
// alone that nobody will read.
func (x *exchange) admit() error {
	if x.route.method != http.MethodPost {
		x.leaveBody()
	}
	if len(x.r.Header["Origin"]) > 0 {
		return refusef(codeOrigin, "The API does not serve browsers: requests with an Origin header are refused.")
	}
	x.key = &x.api.open
	if x.route.access == keyed && len(x.api.keys) > 0 {
		var err error
		if x.key, err = x.authenticate(); err != nil {
			return err
		}
	}
	want := x.route.method
	if want != "" && x.r.Method != want && (want != http.MethodGet || x.r.Method != http.MethodHead) {
		x.w.Header().Set("Allow", want)
		return refusef(codeMethod, "The method is %s, this path takes %s.", x.r.Method, want)
	}
	return nil
}

// find returns the route of a path, and what stands behind its prefix and before
// its suffix. Paths are not cleaned: a//b and a/../b are names of topics, and
// a%2Fsubscribers is one too, as is subscribers alone.
func (a *api) find(u *url.URL) (rt *route, name string) {
	if rt, ok := a.exact[u.Path]; ok {
		return rt, ""
	}
	for _, rt := range a.prefixes {
		name, begins := strings.CutPrefix(u.Path, rt.prefix)
		name, ends := strings.CutSuffix(name, rt.suffix)
		if begins && ends && strings.HasSuffix(u.EscapedPath(), rt.suffix) {
			return rt, name
		}
	}
	return a.nowhere, ""
}
