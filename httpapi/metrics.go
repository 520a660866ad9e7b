package httpapi

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// metrics is a registry of its own, so that an embedder's stays as it is. No
// label has a user, a topic or an address: their number is not ours to bound.
type metrics struct {
	registry     *prometheus.Registry
	requests     *prometheus.HistogramVec
	unauthorized *prometheus.CounterVec
}

func newMetrics(backend Backend) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tocsin_api_request_seconds",
			Help:    "Time until the answer to an API request was ready, by route, status, and code of the problem or ok.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20),
		}, []string{"route", "status", "code"}),
		unauthorized: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_api_unauthorized_total",
			Help: "API requests refused with 401, by what the key was.",
		}, []string{"reason"}),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		newProcessCollector(),
		newBuildInfo(),
		newStatsCollector(backend), m.requests, m.unauthorized)
	for _, reason := range []string{"missing", "wrong"} {
		m.unauthorized.WithLabelValues(reason)
	}
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// observe counts the request and the time until its answer was ready.
func (x *exchange) observe() {
	seen := x.route.ok
	if x.status != http.StatusOK {
		seen = x.api.metrics.requests.WithLabelValues(x.route.path, strconv.Itoa(x.status), string(x.code))
	}
	seen.Observe(x.ready.Sub(x.start).Seconds())
}

// newBuildInfo returns a gauge that is 1 and tells which build this is.
func newBuildInfo() prometheus.Collector {
	version, revision := "(devel)", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		const module = "github.com/tocsin-push/tocsin"
		if info.Main.Path == module {
			version = info.Main.Version
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					revision = s.Value
				}
			}
		}
		for _, dep := range info.Deps {
			if dep.Path == module {
				version = dep.Version
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "tocsin_build_info",
		Help:        "1; its labels tell which build this is.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}

// scalar is a number of [server.Stats]: tocsin_name in /metrics, with _total
// behind it if it is a counter, and name in /api/stats.
type scalar struct {
	name, help string
	kind       prometheus.ValueType
	get        func(*server.Stats) float64
}

var scalars = []scalar{
	{"connections", "Open WebSocket connections.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.Connections) }},
	{"max_connections", "Connections that this process can hold.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.Capacity) }},
	{"handshaking", "Connections accepted and not yet upgraded.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.Handshaking) }},
	{"users", "Distinct users with a connection.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.Users) }},
	{"topics", "Topics with a subscriber.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.Topics) }},
	{"topics_lingering", "Topics whose last subscriber left a short while ago, see topic-linger.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.Lingering) }},
	{"linger_bytes", "Bytes of topics that linger, see linger-budget.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.LingerBytes) }},
	{"subscriptions", "Subscriptions of all connections.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.Subscriptions) }},
	{"draining", "1 while the server shuts down.", prometheus.GaugeValue, draining},
	{"outbox_bytes", "Bytes waiting for all connections, see outbox-budget.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.OutboxBytes) }},
	{"publish_bytes", "Bytes published and not yet walked, see publish-budget.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.PublishBytes) }},
	{"idempotency_bytes", "Bytes of remembered idempotency keys and ids, see idempotency-budget.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.IdempotencyBytes) }},
	{"hooks_queued", "Hook calls waiting, see hook-workers.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.HooksQueued) }},
	{"shard_connections_min", "Connections of the emptiest shard.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.ShardMin) }},
	{"shard_connections_max", "Connections of the fullest shard.", prometheus.GaugeValue, func(s *server.Stats) float64 { return float64(s.ShardMax) }},
	{"accepted", "Sockets accepted.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.Accepted) }},
	{"published", "Messages accepted for delivery.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.Published) }},
	{"deliveries", "Messages written to or queued for a connection.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.Deliveries) }},
	{"linger_evictions", "Topics forgotten before their time, see linger-budget.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.LingerEvictions) }},
	{"idempotency_evictions", "Idempotency keys forgotten before their two minutes, see idempotency-budget.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.IdempotencyEvictions) }},
	{"hook_panics", "Hooks that panicked.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.HookPanics) }},
	{"received_frames", "WebSocket frames received.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.FramesIn) }},
	{"received_bytes", "Bytes received.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.BytesIn) }},
	{"pings_sent", "Pings sent after silence.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.PingsSent) }},
	{"stale_events", "Events for a connection that was gone.", prometheus.CounterValue, func(s *server.Stats) float64 { return float64(s.StaleEvents) }},
}

func draining(s *server.Stats) float64 {
	if s.Draining {
		return 1
	}
	return 0
}

// vector is a set of counters with one label.
type vector struct {
	name, help, label string
	get               func(*server.Stats) map[string]uint64
}

var vectors = []vector{
	{"accept_errors", "Failed accepts.", "errno", func(s *server.Stats) map[string]uint64 { return s.AcceptErrors }},
	{"handshake_rejects", "Upgrades refused.", "reason", func(s *server.Stats) map[string]uint64 { return s.HandshakeRejects }},
	{"publish_rejects", "Messages refused.", "reason", func(s *server.Stats) map[string]uint64 { return s.PublishRejects }},
	{"drops", "Deliveries not made.", "reason", func(s *server.Stats) map[string]uint64 { return s.Drops }},
	{"cuts", "Slow connections closed with 3008.", "reason", func(s *server.Stats) map[string]uint64 { return s.Cuts }},
	{"command_errors", "Client commands answered with an error.", "code", func(s *server.Stats) map[string]uint64 { return s.CommandErrors }},
}

var histograms = []struct {
	name, help string
	get        func(*server.Stats) *server.Histogram
}{
	{"fanout_seconds", "Time from a publish to its last subscriber.", func(s *server.Stats) *server.Histogram { return &s.FanoutSeconds }},
	{"turn_seconds", "Length of a shard's turn.", func(s *server.Stats) *server.Histogram { return &s.TurnSeconds }},
	{"wait_seconds", "Time from a shard being ready to its turn.", func(s *server.Stats) *server.Histogram { return &s.WaitSeconds }},
	{"hook_seconds", "Length of a hook call.", func(s *server.Stats) *server.Histogram { return &s.HookSeconds }},
}

// statsCollector tells Prometheus what [server.Server.Stats] says.
type statsCollector struct {
	backend    Backend
	scalars    []*prometheus.Desc
	vectors    []*prometheus.Desc
	histograms []*prometheus.Desc
	closes     *prometheus.Desc
}

func newStatsCollector(backend Backend) *statsCollector {
	c := &statsCollector{backend: backend}
	for _, m := range scalars {
		name := "tocsin_" + m.name
		if m.kind == prometheus.CounterValue {
			name += "_total"
		}
		c.scalars = append(c.scalars, prometheus.NewDesc(name, m.help, nil, nil))
	}
	for _, m := range vectors {
		c.vectors = append(c.vectors, prometheus.NewDesc("tocsin_"+m.name+"_total", m.help, []string{m.label}, nil))
	}
	for _, m := range histograms {
		c.histograms = append(c.histograms, prometheus.NewDesc("tocsin_"+m.name, m.help, nil, nil))
	}
	c.closes = prometheus.NewDesc("tocsin_closes_total", "Ends of connections, by close code and who began it.", []string{"code", "by"}, nil)
	return c
}

// Describe implements [prometheus.Collector].
func (c *statsCollector) Describe(out chan<- *prometheus.Desc) {
	for _, list := range [][]*prometheus.Desc{c.scalars, c.vectors, c.histograms, {c.closes}} {
		for _, d := range list {
			out <- d
		}
	}
}

// Collect implements [prometheus.Collector].
func (c *statsCollector) Collect(out chan<- prometheus.Metric) {
	s := c.backend.Stats()
	for i, m := range scalars {
		out <- prometheus.MustNewConstMetric(c.scalars[i], m.kind, m.get(&s))
	}
	for i, m := range vectors {
		for label, n := range m.get(&s) {
			out <- prometheus.MustNewConstMetric(c.vectors[i], prometheus.CounterValue, float64(n), label)
		}
	}
	for kind, n := range boundedCloses(s.Closes) {
		out <- prometheus.MustNewConstMetric(c.closes, prometheus.CounterValue, float64(n), kind.code, kind.by)
	}
	for i, m := range histograms {
		count, buckets := cumulative(m.get(&s))
		out <- prometheus.MustNewConstHistogram(c.histograms[i], count, m.get(&s).Sum.Seconds(), buckets)
	}
}

// cumulative turns counts into Prometheus' buckets: for each bound in seconds,
// how many were not longer.
func cumulative(h *server.Histogram) (count uint64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(h.Counts))
	for i, n := range h.Counts {
		count += n
		if i < len(h.Counts)-1 {
			buckets[(time.Microsecond << i).Seconds()] = count
		}
	}
	return count, buckets
}

type closeLabels struct{ code, by string }

// boundedCloses adds up the codes that are nobody's but a client's as "other":
// there are two thousand that it may choose from.
func boundedCloses(closes map[server.CloseKind]uint64) map[closeLabels]uint64 {
	out := make(map[closeLabels]uint64)
	for kind, n := range closes {
		code := strconv.Itoa(int(kind.Code))
		if kind.Code.String() == code && kind.Code != wire.CloseCode(1006) {
			code = "other"
		}
		out[closeLabels{code, kind.By}] += n
	}
	return out
}
