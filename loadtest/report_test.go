//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// TestPercentilesNeedSamples wants none above which there is no sample.
func TestPercentilesNeedSamples(t *testing.T) {
	for n, want := range map[int64]string{
		1: "max min p50", 5: "max min p50", 9: "max min p50", 10: "max min p50 p90", 99: "max min p50 p90",
		100: "max min p50 p90 p99", 999: "max min p50 p90 p99", 1000: "max min p50 p90 p999 p99",
	} {
		h := newHistogram()
		for v := range n {
			if err := h.RecordValue(int64(time.Millisecond) * (v + 1)); err != nil {
				t.Fatal(err)
			}
		}
		r := newResult("", "")
		r.putHist("x", h)
		var got []string
		for _, key := range slices.Sorted(maps.Keys(r.Values)) {
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(key, "x_"), "_ms"))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("of %d samples %v are told, want %s", n, got, want)
		}
		if low, high := r.Values["x_min_ms"], r.Values["x_max_ms"]; low < 0.99 || low > 1.01 || high < float64(n)*0.99 || high > float64(n)*1.01 {
			t.Errorf("of 1 to %d ms the shortest is %v and the longest %v", n, low, high)
		}
	}
}

// twoResults is a report of a server and the floor.
func twoResults(t *testing.T) *report {
	t.Helper()
	r := &report{Scenario: "echo", Started: time.Now(), Results: []*result{}}
	for _, name := range []string{"server", "floor"} {
		res := newResult(name, "")
		h := newHistogram()
		for v := range int64(200) {
			if err := h.RecordValue(v * 1000_000); err != nil {
				t.Fatal(err)
			}
		}
		res.putHist("echo", h)
		res.put("cpu_us_per_message", 10)
		res.put("messages_per_s", 1000)
		res.put("attempts", 5)
		res.put("user_bytes_per_connection", -2560)
		res.put("resident_bytes", 19_000_000)
		for k := range 5 {
			res.samples = append(res.samples, sample{at: time.Duration(k) * time.Second, open: 100, resident: 19_000_000})
		}
		r.Results = append(r.Results, &res)
	}
	return r
}

func TestRatiosAreOfCPUUnlessPinned(t *testing.T) {
	r := twoResults(t)
	told := func() string {
		var out bytes.Buffer
		if err := r.writeJSON(&out); err != nil {
			t.Fatal(err)
		}
		var got struct{ Ratios map[string]float64 }
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return strings.Join(slices.Sorted(maps.Keys(got.Ratios)), " ")
	}
	if got := told(); got != "cpu_us_per_message" {
		t.Errorf("ratios of %s", got)
	}
	r.pinned = true
	if got, want := told(), "cpu_us_per_message echo_max_ms echo_p50_ms echo_p90_ms echo_p99_ms messages_per_s"; got != want {
		t.Errorf("ratios of %s, want %s", got, want)
	}
}

// TestHTMLHasTables wants real tables, and no heading twice.
func TestHTMLHasTables(t *testing.T) {
	r := twoResults(t)
	r.Stages = []stage{{Name: "hold"}}
	r.note("a note")
	plots, err := r.plots()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "r.html")
	if err := r.writeHTML(file, plots); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for want, n := range map[string]int{
		"<table>": 2, "<pre>": 0, "loadtest echo": 2, "<td>within noise</td>": 2, "<td>18.1 MiB</td>": 2, "<li>note: a note</li>": 1,
		"<th>floor</th>": 1, "svg { width: 100%": 1, "19,000,000": 0, "&lt;": 0,
	} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%q is there %d times, want %d", want, got, n)
		}
	}
}

// TestLegendIsNotStruckThrough wants no line where a plot's legend has its
// words, with room for the widest font that a browser may take.
func TestLegendIsNotStruckThrough(t *testing.T) {
	plots, err := twoResults(t).plots()
	if err != nil || len(plots) != 3 {
		t.Fatalf("%d plots, %v", len(plots), err)
	}
	const width, height = 80, 8 // of a word, points
	words := regexp.MustCompile(`<text x="([\d.]+)" y="-([\d.]+)"[^>]*>(server|floor)<`)
	lines := regexp.MustCompile(`<path d="M([^"]*)" style="fill:none`)
	for _, p := range plots {
		found := words.FindAllStringSubmatch(p.svg, -1)
		if len(found) != 2 {
			t.Fatalf("%s: the legend is %q", p.name, found)
		}
		for _, w := range found {
			left, low := coordinate(t, w[1]), coordinate(t, w[2])
			for _, line := range lines.FindAllStringSubmatch(p.svg, -1) {
				var xs, ys []float64
				for point := range strings.SplitSeq(line[1], "L") {
					x, y, _ := strings.Cut(point, ",")
					xs, ys = append(xs, coordinate(t, x)), append(ys, coordinate(t, y))
				}
				if slices.Min(xs) < left+width && slices.Max(xs) > left && slices.Min(ys) < low+height && slices.Max(ys) > low {
					t.Errorf("%s: %q at %v,%v is struck through by %s", p.name, w[3], left, low, line[1])
				}
			}
		}
	}
}

func coordinate(t *testing.T, text string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestLateIsNotSaturated tells a generator that was busy from one that was not
// and was late all the same.
func TestLateIsNotSaturated(t *testing.T) {
	for _, c := range []struct {
		busy    float64
		lag     time.Duration
		samples int
		want    string
	}{
		{0.05, 5 * time.Millisecond, 100, "generator late: 1 % of its messages left more than 5.0 ms late, although it was busy only 5 % of the time"},
		{0.99, 5 * time.Millisecond, 100, "generator saturated: it was busy 99 % of the time, and 1 % of its messages left more than 5.0 ms late"},
		{0.99, 0, 100, "generator saturated: it was busy 99 % of the time, so that latencies and rates are its own as well"},
		{0.05, 5 * time.Millisecond, 99, ""}, // too few to tell of one in a hundred
		{0.05, 0, 1000, ""},
	} {
		lag := newHistogram()
		if err := lag.RecordValues(int64(c.lag), int64(c.samples)); err != nil {
			t.Fatal(err)
		}
		res := newResult("server", "")
		s := &session{report: &report{}}
		s.saturation(&subject{result: res}, c.busy, lag)
		if got := strings.Join(s.report.Notes, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("busy %v, %v late: %q, want %q", c.busy, c.lag, got, c.want)
		}
	}
}

// TestFullSocketIsNotTheGeneratorsLag has a message leave late because the
// server did not read.
func TestFullSocketIsNotTheGeneratorsLag(t *testing.T) {
	e := testEngine(1)
	e.echo = echo{order: 1, active: 1, rate: 1000, start: machine.Now() - int64(time.Second), end: never, next: 1, frame: []byte("late")}
	e.echo.catchUp(e, 0, &e.conns[0])
	if n := e.hists[histLag].TotalCount(); n != 0 {
		t.Errorf("%d of them count as its own lag", n)
	}
}

// TestGrowthLeavesOutEmptyCaches wants only caches that hold something of the
// connections'.
func TestGrowthLeavesOutEmptyCaches(t *testing.T) {
	before := map[string]machine.Slab{"a": {Objects: 100, Bytes: 1000}, "b": {Objects: 100, Bytes: 1000}, "c": {Objects: 100, Bytes: 1000}, "proc_inode_cache": {}}
	after := map[string]machine.Slab{"a": {Objects: 200, Bytes: 9000}, "b": {Objects: 97, Bytes: 9000}, "c": {Objects: 100, Bytes: 9000}, "proc_inode_cache": {Objects: 900, Bytes: 9000}}
	if got := growth(before, after, 100); len(got) != 1 || got[0].Cache != "a" || got[0].Objects != 1 {
		t.Errorf("%+v", got)
	}
}

// TestDefaultsFitFewConnections runs scenarios with less connections than
// talk by default.
func TestDefaultsFitFewConnections(t *testing.T) {
	f := newFake(t)
	f.message = (*fakeConn).say
	o := loadtest(t, "echo", "--url", f.url, "-n", "3", "--duration", "50ms", "--message-rate", "100")
	o.want(t, map[string]float64{"active": 3})
	if o.status != 0 {
		t.Errorf("echo: status %d: %s", o.status, o.err)
	}
	live := herdCmd{common: common{N: 3}, bystanders: bystanders{Live: -1, LiveRate: 1}, Percent: 100}
	if err := live.check(); err != nil || live.Live != 2 {
		t.Errorf("herd: %d live of 3, %v", live.Live, err)
	}
}

// TestHelpNamesItsValues wants words in the place of Go's types.
func TestHelpNamesItsValues(t *testing.T) {
	for _, scenario := range []string{"connect", "broadcast", "push", "echo", "herd", "soak", "floor", "bench"} {
		var out, errs strings.Builder
		if status := run(t.Context(), []string{scenario, "--help"}, streams{&out, &errs}); status != 0 {
			t.Errorf("%s: status %d, %s", scenario, status, errs.String())
		}
		if bad := regexp.MustCompile(`--\S+=(FLOAT-64|INT|STRING)\b`).FindString(out.String()); bad != "" {
			t.Errorf("%s has %s", scenario, bad)
		}
	}
}

// TestProgressIsSane wants what is known, and no outlook of less than a
// second.
func TestProgressIsSane(t *testing.T) {
	for _, c := range []struct {
		total, n int
		began    time.Duration // ago
		want     string
	}{
		{-1, 5, time.Minute, "talk: 5 (10 open)"},
		{100, 0, time.Minute, "talk: 0 (10 open)"},
		{100, 50, time.Minute, "talk: 50 of 100, about 1m0s left (10 open)"},
		{100, 100, time.Minute, "talk: 100 of 100 (10 open)"},
		{100, 120, time.Minute, "talk: 120 (10 open)"},
	} {
		p := &progress{what: "talk", total: c.total, began: time.Now().Add(-c.began)}
		if got := p.line(c.n, "10 open"); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	var out bytes.Buffer
	p := &progress{w: &out, live: true}
	p.begin("hold", 10)
	p.at(5, "10 open")
	p.end()
	if text := out.String(); strings.Contains(text, "it/") || strings.Contains(text, "[") {
		t.Errorf("the bar says %q", text)
	}
}
