package httpapi

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

func TestMetricsTellWhatStatsSays(t *testing.T) {
	b := &backend{stats: server.Stats{
		Connections: 15000, Capacity: 19936, Draining: true, Deliveries: 7, IdempotencyBytes: 512, IdempotencyEvictions: 9,
		HandshakeRejects: map[string]uint64{"timeout": 3},
		Closes:           map[server.CloseKind]uint64{{Code: 3008, By: "server"}: 4, {Code: 4000, By: "client"}: 1, {Code: 4001, By: "client"}: 2},
	}}
	b.stats.FanoutSeconds.Counts[0] = 2  // up to 1 µs
	b.stats.FanoutSeconds.Counts[10] = 3 // up to 1,024 µs
	b.stats.FanoutSeconds.Counts[25] = 1 // longer than all bounds
	b.stats.FanoutSeconds.Sum = 40 * time.Second
	got := do(New(b, Config{}), get("/metrics")).Body.String()
	for _, line := range []string{
		"tocsin_connections 15000", "tocsin_max_connections 19936", "tocsin_draining 1", "tocsin_deliveries_total 7", "tocsin_idempotency_bytes 512", "tocsin_idempotency_evictions_total 9",
		`tocsin_handshake_rejects_total{reason="timeout"} 3`,
		`tocsin_closes_total{by="server",code="3008"} 4`, `tocsin_closes_total{by="client",code="other"} 3`,
		`tocsin_fanout_seconds_bucket{le="1e-06"} 2`, `tocsin_fanout_seconds_bucket{le="0.000512"} 2`,
		`tocsin_fanout_seconds_bucket{le="0.001024"} 5`, `tocsin_fanout_seconds_bucket{le="+Inf"} 6`,
		"tocsin_fanout_seconds_sum 40", "tocsin_fanout_seconds_count 6",
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	for _, part := range []string{"go_goroutines", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_max_fds"} {
		if !strings.Contains(got, part) {
			t.Errorf("nothing of %s", part)
		}
	}
}

func TestMetricsKeepTheRules(t *testing.T) {
	b := &backend{stats: server.Stats{Drops: map[string]uint64{"expired": 1}, Closes: map[server.CloseKind]uint64{{Code: 1000, By: "client"}: 1}}}
	problems, err := promlint.New(do(New(b, Config{}), get("/metrics")).Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, c := range []prometheus.Collector{newStatsCollector(b), newProcessCollector()} {
		strict := prometheus.NewPedanticRegistry()
		if err := strict.Register(c); err != nil {
			t.Error(err)
		}
		if _, err := strict.Gather(); err != nil {
			t.Error(err)
		}
	}
}

// TestMetricsStaySmall: neither users nor topics nor what clients choose
// becomes a label (docs/faults.md R10).
func TestMetricsStaySmall(t *testing.T) {
	many := full(20000, 1e6)
	b := &backend{conns: make(map[string][]string, many)}
	b.stats.Closes = make(map[server.CloseKind]uint64)
	for i := range many {
		b.conns[fmt.Sprintf("alice-%d", i)] = []string{"c"}
		if code := wire.CloseCode(min(i, 4999)); code.ValidReceived() {
			b.stats.Closes[server.CloseKind{Code: code, By: "client"}] = 1
		}
	}
	b.stats.Users, b.stats.Topics = 1e6, 1e6
	h := New(b, Config{})
	for i := range many {
		if w := do(h, get(fmt.Sprintf("/api/users/alice-%d", i))); w.Code != http.StatusOK {
			t.Fatalf("status %d", w.Code)
		}
		do(h, get(fmt.Sprintf("/api/topics/flowers-%d", i)))
		do(h, get(fmt.Sprintf("/no/nowhere-%d", i)))
	}
	do(h, post("/api/publish", `{"topic":"flowers-1","data":1}`))
	body := do(h, get("/metrics")).Body.String()
	if len(body) > 1<<20 {
		t.Errorf("%d bytes of metrics", len(body))
	}
	for _, name := range []string{"alice-", "flowers-", "nowhere-"} {
		if strings.Contains(body, name) {
			t.Errorf("metrics have a label with %s", name)
		}
	}
	t.Logf("%d bytes of metrics", len(body))
}

// TestRequestsAreCountedByCode: a user who is away is not an error like
// others, and 1 ms is told from 2 ms.
func TestRequestsAreCountedByCode(t *testing.T) {
	h := New(&backend{err: server.ErrNobody}, Config{})
	do(h, post("/api/push", `{"user":"a","data":1}`))
	do(h, get("/nowhere"))
	do(h, get("/debug/pprof/nothing"))
	got := do(h, get("/metrics")).Body.String()
	for _, line := range []string{
		`tocsin_api_request_seconds_count{code="nobody",route="/api/push",status="404"} 1`,
		`tocsin_api_request_seconds_count{code="not_found",route="other",status="404"} 1`,
		`tocsin_api_request_seconds_count{code="other",route="/debug/pprof/{name}",status="404"} 1`,
		`tocsin_api_request_seconds_count{code="ok",route="/api/push",status="200"} 0`,
		`tocsin_api_request_seconds_bucket{code="ok",route="/api/push",status="200",le="0.0008"} 0`,
		`tocsin_api_request_seconds_bucket{code="ok",route="/api/push",status="200",le="0.0016"} 0`,
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if !strings.Contains(got, `tocsin_build_info{goversion="`+runtime.Version()+`"`) {
		t.Error("no tocsin_build_info")
	}
}
