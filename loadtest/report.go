//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/internal/limits"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// figure is something that a scenario measures; its key is what --json calls
// it.
type figure struct {
	key, label, unit string
	ratio            ratio
}

// ratio says when a figure is told as a multiple of the floor's, which does
// the least work that is possible, and so has the least CPU time. Its
// latencies and rates are no such bound: they are the whole machine's.
type ratio uint8

const (
	noRatio     ratio = iota
	pinnedRatio       // where server and floor were bound to the same CPU
	cpuRatio          // always
)

// figures are all there are, in the order of the report.
var figures = slices.Concat(
	[]figure{
		{"connections", "connections open", "", noRatio},
		{"failed", "handshakes failed", "", noRatio},
		{"lost", "connections lost", "", noRatio},
		{"pings", "heartbeats answered", "", noRatio},
		{"connect_s", "time to open them", "s", noRatio},
		{"connects_per_s", "connects a second", "", noRatio},
	},
	percentileFigures("handshake", "handshake"),
	[]figure{
		{"cpu_us_per_connect", "server CPU a connect", "µs", cpuRatio},
		{"rounds", "messages published", "", noRatio},
		{"pushes", "pushes", "", noRatio},
		{"pushes_per_s", "pushes a second", "", noRatio},
		{"receipt_written", "receipts: written", "", noRatio},
		{"receipt_queued", "receipts: queued", "", noRatio},
		{"receipt_dropped", "receipts: dropped", "", noRatio},
		{"receipt_failed", "receipts: failed", "", noRatio},
		{"receipt_false", "receipts: false", "", noRatio},
		{"expected", "deliveries expected", "", noRatio},
		{"delivered", "delivered", "", noRatio},
		{"missing", "missing", "", noRatio},
		{"doubled", "doubled", "", noRatio},
		{"misordered", "out of order", "", noRatio},
		{"foreign", "foreign: came to another user", "", noRatio},
		{"late", "late", "", noRatio},
	},
	percentileFigures("delivery", "publish to delivery"),
	percentileFigures("http", "push to receipt, over HTTP"),
	percentileFigures(histPush, "push to client"),
	percentileFigures("fanout", "publish to last delivery"),
	[]figure{
		{"cpu_us_per_push", "server CPU a push", "µs", noRatio},
		{"deliveries_per_s", "deliveries a second", "", pinnedRatio},
		{"cpu_us_per_delivery", "server CPU a delivery", "µs", cpuRatio},
		{"active", "connections that talk", "", noRatio},
		{"sent", "messages sent", "", noRatio},
		{"replies", "replies", "", noRatio},
		{"unanswered", "unanswered", "", noRatio},
		{"messages_per_s", "replies a second", "", pinnedRatio},
	},
	percentileFigures("echo", "send to reply"),
	[]figure{
		{"cpu_us_per_message", "server CPU a message", "µs", cpuRatio},
		{"dropped", "connections dropped", "", noRatio},
		{"back", "connections back", "", noRatio},
		{"back_s", "time until all are back", "s", pinnedRatio},
		{"attempts", "attempts to come back", "", noRatio},
		{"goodbyes", "goodbyes received", "", noRatio},
		{"cpu_us_per_return", "server CPU a connection that comes back", "µs", cpuRatio},
	},
	percentileFigures("outage", "drop to back"),
	percentileFigures("before", "live clients before: send to reply"),
	percentileFigures("meanwhile", "live clients meanwhile: send to reply"),
	[]figure{
		{"idle_cpu_percent", "server CPU while idle", "%", noRatio},
		{"gc_pause_max_ms", "server's longest GC pause", "ms", noRatio},
		{"hold_bytes", "server memory after the hold, resident", "MiB", noRatio},
		{"resident_bytes", "server memory, resident", "MiB", noRatio},
		{"peak_bytes", "server memory, resident, at its most", "MiB", noRatio},
		{"proportional_bytes", "server memory, proportional", "MiB", noRatio},
		{"threads", "server threads", "", noRatio},
		{"user_bytes_per_connection", "memory a connection: user space", "B", noRatio},
		{"kernel_bytes_per_connection", "memory a connection: kernel, both ends", "B", noRatio},
		{"kernel_server_bytes_per_connection", "memory a connection: kernel, server side (estimate)", "B", noRatio},
		{"generator_cpu_us", "generator CPU for each of them", "µs", noRatio},
		{"generator_bytes_per_connection", "generator memory a connection", "B", noRatio},
		{"generator_busy_percent", "generator busy", "%", noRatio},
	},
)

// percentiles are told of samples that can carry them: above the 99th of
// fewer than a hundred there is nothing.
var percentiles = []struct {
	key, label string
	at         float64
	least      int64 // samples
}{
	{"min", "shortest", 0, 1},
	{"p50", "median", 50, 1},
	{"p90", "90 %", 90, 10},
	{"p99", "99 %", 99, 100},
	{"p999", "99.9 %", 99.9, 1000},
	{"max", "longest", 100, 1},
}

func percentileFigures(key, label string) (list []figure) {
	for _, p := range percentiles {
		list = append(list, figure{key + "_" + p.key + "_ms", label + ", " + p.label, "ms", pinnedRatio})
	}
	return list
}

// result is what was measured of one subject.
type result struct {
	Name     string             `json:"name"`
	URL      string             `json:"url"`
	Values   map[string]float64 `json:"values"`
	Failures map[string]uint64  `json:"failures,omitempty"`
	Lost     map[string]uint64  `json:"lost,omitempty"`
	Refused  map[string]uint64  `json:"pushes_failed,omitempty"` // by status and code
	Slabs    []slabDelta        `json:"kernel_caches,omitempty"`

	hists   map[string]*hdrhistogram.Histogram
	samples []sample
}

// sample is one moment of a run.
type sample struct {
	at       time.Duration // since the run began
	open     int
	resident int64
}

func (r *result) put(key string, v float64) { r.Values[key] = v }

// putHist notes a histogram and its percentiles.
func (r *result) putHist(key string, h *hdrhistogram.Histogram) {
	if h == nil || h.TotalCount() == 0 {
		return
	}
	r.hists[key] = h
	for _, p := range percentiles {
		if h.TotalCount() >= p.least {
			r.put(key+"_"+p.key+"_ms", float64(h.ValueAtQuantile(p.at))/1e6)
		}
	}
}

// report is what a run tells.
type report struct {
	Scenario    string          `json:"scenario"`
	Command     string          `json:"command"`
	Server      string          `json:"server_command,omitempty"`
	Started     time.Time       `json:"started"`
	Seconds     float64         `json:"seconds"`
	Machine     machine.Machine `json:"machine"`
	Stages      []stage         `json:"stages,omitempty"`
	Results     []*result       `json:"results"` // the server, and the floor if it was asked for
	Notes       []string        `json:"notes,omitempty"`
	Interrupted bool            `json:"interrupted,omitempty"`
	Error       string          `json:"error,omitempty"`

	pinned bool // server and floor had the same CPU to themselves
}

func (r *report) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// ratio returns the first result's figure as a multiple of the floor's.
func (r *report) ratio(f figure) (float64, bool) {
	if len(r.Results) < 2 || f.ratio == noRatio || f.ratio == pinnedRatio && !r.pinned {
		return 0, false
	}
	a, ok := r.Results[0].Values[f.key]
	b, also := r.Results[1].Values[f.key]
	return a / b, ok && also && b > 0
}

// writeJSON writes the report for machines, the ratios included.
func (r *report) writeJSON(w io.Writer) error {
	ratios := map[string]float64{}
	for _, f := range figures {
		if v, ok := r.ratio(f); ok {
			ratios[f.key] = v
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		*report
		Ratios map[string]float64 `json:"ratios,omitempty"`
	}{r, ratios})
}

// stage is one step of a soak.
type stage struct {
	Name      string  `json:"name"`
	Seconds   float64 `json:"seconds"`
	Open      int     `json:"open"` // at its end
	Lost      uint64  `json:"lost"` // but for those that the scenario itself drops
	Pings     uint64  `json:"pings_answered"`
	Delivered uint64  `json:"delivered"`
}

// figureRows are the figures, a row each; the first names the columns.
func (r *report) figureRows() [][]string {
	head := []string{""}
	for _, res := range r.Results {
		head = append(head, res.Name)
	}
	if len(r.Results) > 1 {
		head = append(head, "ratio")
	}
	rows := [][]string{head}
	for _, f := range figures {
		row := []string{f.label}
		known := false
		for _, res := range r.Results {
			v, ok := res.Values[f.key]
			known = known || ok
			row = append(row, cell(v, f.unit, ok))
		}
		if v, ok := r.ratio(f); ok {
			row = append(row, fmt.Sprintf("%.2f", v))
		} else if len(head) > len(row) {
			row = append(row, "")
		}
		if known {
			rows = append(rows, row)
		}
	}
	return rows
}

// stageRows are the stages, if the scenario has some.
func (r *report) stageRows() [][]string {
	if len(r.Stages) == 0 {
		return nil
	}
	rows := [][]string{{"stage", "took", "open at its end", "lost", "heartbeats answered", "delivered"}}
	for _, st := range r.Stages {
		row := []string{st.Name, cell(st.Seconds, "s", true), thousands(float64(st.Open))}
		for _, n := range []uint64{st.Lost, st.Pings, st.Delivered} {
			row = append(row, thousands(float64(n)))
		}
		rows = append(rows, row)
	}
	return rows
}

// remarks are what the figures do not tell, a line each.
func (r *report) remarks() (lines []string) {
	reasons := func(what string, counted map[string]uint64) {
		for _, reason := range slices.Sorted(maps.Keys(counted)) {
			lines = append(lines, fmt.Sprintf("%s: %s × %s", what, thousands(float64(counted[reason])), reason))
		}
	}
	for _, res := range r.Results {
		reasons(res.Name+": handshakes failed", res.Failures)
		reasons(res.Name+": connections lost", res.Lost)
		reasons(res.Name+": pushes failed", res.Refused)
		for _, s := range res.Slabs {
			lines = append(lines, fmt.Sprintf("%s: kernel cache %-22s %6.2f objects, %6.0f B a connection", res.Name, s.Cache, s.Objects, s.Bytes))
		}
	}
	for _, note := range r.Notes {
		lines = append(lines, "note: "+note)
	}
	if r.Interrupted {
		lines = append(lines, "note: interrupted; this is what was measured until then")
	}
	return lines
}

// tables are the stages, if there are some, and the figures.
func (r *report) tables() (list [][][]string) {
	if rows := r.stageRows(); rows != nil {
		list = append(list, rows)
	}
	return append(list, r.figureRows())
}

// writeTable writes the report for people.
func (r *report) writeTable(w io.Writer) error {
	fmt.Fprintf(w, "loadtest %s, %s, %s\n", r.Scenario, r.Machine, r.Started.Format(time.DateTime))
	for _, rows := range r.tables() {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight) // the padded first column stands to the left
		for _, row := range rows {
			fmt.Fprintf(t, "%-52s\t%s\t\n", row[0], strings.Join(row[1:], "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, line := range r.remarks() {
		fmt.Fprintln(w, line)
	}
	return nil
}

// cell writes a figure. One in MiB is given in bytes.
func cell(v float64, unit string, ok bool) string {
	switch {
	case !ok:
		return ""
	case unit == "":
		return thousands(v)
	case unit == "B" && v < 0:
		return "within noise" // memory of before the first connection was given back
	case unit == "B":
		return thousands(v) + " B"
	case unit == "MiB" && v < 100<<20:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case unit == "MiB":
		return thousands(v/(1<<20)) + " MiB"
	case unit == "%":
		return fmt.Sprintf("%.1f %%", v)
	}
	return fmt.Sprintf("%.*f %s", max(0, 2-int(math.Log10(max(v, 0.01)))), v, unit)
}

// thousands writes a whole number with commas.
func thousands(v float64) string { return limits.Group(int64(math.RoundToEven(v))) }

// median returns the middle of values, of an even number the mean of two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
