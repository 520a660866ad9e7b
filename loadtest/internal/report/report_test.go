//go:build linux

package report

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// histogram counts nanoseconds as the generator's do.
func histogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1000, int64(time.Hour), 3)
}

// TestPercentiles compares those of random latencies with the sorted values.
func TestPercentiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	h := histogram()
	var values []float64
	for range 60000 {
		v := int64(math.Exp(rng.Float64()*15) * 1000) // 1 µs to 3 s
		if err := h.RecordValue(v); err != nil {
			t.Fatal(err)
		}
		values = append(values, float64(v))
	}
	slices.Sort(values)
	r := NewResult("", "")
	r.PutHist("delivery", h)
	for _, p := range percentiles {
		rank := max(1, int(math.Ceil(p.at/100*float64(len(values)))))
		want := values[rank-1] / 1e6
		got := r.Values["delivery_"+p.key+"_ms"]
		if math.Abs(got-want) > want/1000+0.001 { // 0.1 %, and microseconds
			t.Errorf("%s is %v ms, of the sorted values it is %v", p.key, got, want)
		}
	}
}

// TestPercentilesNeedSamples wants none above which there is no sample.
func TestPercentilesNeedSamples(t *testing.T) {
	for n, want := range map[int64]string{
		1: "max min p50", 5: "max min p50", 9: "max min p50", 10: "max min p50 p90", 99: "max min p50 p90",
		100: "max min p50 p90 p99", 999: "max min p50 p90 p99", 1000: "max min p50 p90 p999 p99",
	} {
		h := histogram()
		for v := range n {
			if err := h.RecordValue(int64(time.Millisecond) * (v + 1)); err != nil {
				t.Fatal(err)
			}
		}
		r := NewResult("", "")
		r.PutHist("x", h)
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
func twoResults(t *testing.T) *Report {
	t.Helper()
	r := &Report{Scenario: "echo", Started: time.Now(), Results: []*Result{}}
	for _, name := range []string{"server", "floor"} {
		res := NewResult(name, "")
		h := histogram()
		for v := range int64(200) {
			if err := h.RecordValue(v * 1000_000); err != nil {
				t.Fatal(err)
			}
		}
		res.PutHist("echo", h)
		res.Put("cpu_us_per_message", 10)
		res.Put("messages_per_s", 1000)
		res.Put("attempts", 5)
		res.Put("user_bytes_per_connection", -2560)
		res.Put("resident_bytes", 19_000_000)
		for k := range 5 {
			res.Sample(time.Duration(k)*time.Second, 100, 19_000_000)
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
	r.Pinned = true
	if got, want := told(), "cpu_us_per_message echo_max_ms echo_p50_ms echo_p90_ms echo_p99_ms messages_per_s"; got != want {
		t.Errorf("ratios of %s, want %s", got, want)
	}
}

// TestHTMLHasTables wants real tables, and no heading twice.
func TestHTMLHasTables(t *testing.T) {
	r := twoResults(t)
	r.Stages = []Stage{{Name: "hold"}}
	r.Note("a note")
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
		p := &Progress{what: "talk", total: c.total, began: time.Now().Add(-c.began)}
		if got := p.line(c.n, "10 open"); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	var out bytes.Buffer
	p := &Progress{w: &out, live: true}
	p.Begin("hold", 10)
	p.At(5, "10 open")
	p.End()
	if text := out.String(); strings.Contains(text, "it/") || strings.Contains(text, "[") {
		t.Errorf("the bar says %q", text)
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Thousands(1234567), "1,234,567"},
		{Thousands(-1000), "-1,000"},
		{Thousands(-0.1), "0"},
		{cell(12.345, "µs", true), "12.3 µs"},
		{cell(0.012, "ms", true), "0.012 ms"},
		{cell(1234, "ms", true), "1234 ms"},
		{cell(-2560, "B", true), "within noise"},
		{cell(21_221_376, "MiB", true), "20.2 MiB"},
		{cell(1_511_828_488, "MiB", true), "1,442 MiB"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}
