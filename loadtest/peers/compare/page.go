package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// row is a line of the table.
type row struct {
	scenario, key string
	title, unit   string
	more          bool // more is better
}

var rows = []row{
	{"connect", "user_bytes_per_connection", "memory of an idle connection, user space", "B", false},
	{"connect", "cpu_us_per_connect", "server CPU of a connect", "µs", false},
	{"connect", "connects_per_s", "connects a second", "", true},
	{"broadcast", "cpu_us_per_delivery", "server CPU of a delivery", "µs", false},
	{"broadcast", "deliveries_per_s", "deliveries a second", "", true},
	{"broadcast", "fanout_p50_ms", "publish to the last delivery, median", "ms", false},
	{"saturated", "messages_per_s", "echoes a second, saturated", "", true},
	{"saturated", "cpu_us_per_message", "server CPU of an echo, saturated", "µs", false},
	{"echo", "cpu_us_per_message", "server CPU of an echo at 10,000 a second", "µs", false},
	{"echo", "echo_p50_ms", "echo at 10,000 a second, median", "ms", false},
	{"echo", "echo_p99_ms", "echo at 10,000 a second, 99 %", "ms", false},
}

// place is where a measurement belongs.
type place struct{ server, scenario, key string }

// measurement is a figure of one run, and that of the bare loop beside it, NaN
// if it has none.
type measurement struct{ value, floor float64 }

// measurements are all that was measured of each.
type measurements map[place][]measurement

// add takes what a run tells of the server, and of the floor beside it.
func (m measurements) add(name, scenario string, r *report) {
	put := func(server, key string, v, beside float64) {
		at := place{server, scenario, key}
		m[at] = append(m[at], measurement{v, beside})
	}
	for key, v := range r.Results[0].Values {
		beside := math.NaN()
		if len(r.Results) > 1 {
			if f, ok := r.Results[1].Values[key]; ok {
				beside = f
			}
		}
		put(name, key, v, beside)
	}
	for _, result := range r.Results[1:] {
		for key, v := range result.Values {
			put(floor, key, v, v)
		}
	}
}

// By what factor the bare loop of a run may be off its median over all runs
// before the run counts as disturbed.
const (
	offCPU = 1.10
	off    = 1.50 // of times and rates, which vary more
)

// disturbed tells whether the machine was another one in a run: the bare loop,
// which is the same in all, took more than usual, or less, as it does per
// message when it gets the CPU so late that many are there at once.
func (m measurements) disturbed(r row, one measurement) bool {
	if r.unit == "B" { // memory is what it is, however busy the machine
		return false
	}
	var all []float64
	for _, beside := range m[place{floor, r.scenario, r.key}] {
		all = append(all, beside.value)
	}
	limit, usual := off, middle(all)
	if r.unit == "µs" {
		limit = offCPU
	}
	return one.floor > limit*usual || usual > limit*one.floor
}

// undisturbed returns what was measured in the runs that were not disturbed,
// and how many were. If all were, it returns what was measured in them.
func (m measurements) undisturbed(server string, r row) (values []float64, disturbed int) {
	all := m[place{server, r.scenario, r.key}]
	for _, one := range all {
		if m.disturbed(r, one) {
			disturbed++
		} else {
			values = append(values, one.value)
		}
	}
	if values == nil {
		for _, one := range all {
			values = append(values, one.value)
		}
	}
	return values, disturbed
}

// median returns that of the runs that were not disturbed, if there are any,
// and NaN if nothing was measured.
func (m measurements) median(server string, r row) float64 {
	values, _ := m.undisturbed(server, r)
	return middle(values)
}

// counts tells whether a server's figure may be the best of a row.
func (m measurements) counts(server string, r row) bool {
	_, disturbed := m.undisturbed(server, r)
	return disturbed < len(m[place{server, r.scenario, r.key}])
}

// middle returns the median of values, NaN if there are none.
func middle(values []float64) float64 {
	all := slices.Sorted(slices.Values(values))
	n := len(all)
	if n == 0 {
		return math.NaN()
	}
	return (all[(n-1)/2] + all[n/2]) / 2
}

// page is docs/comparison.md.
type page struct {
	*settings
	date     time.Time
	machine  machine
	took     measurements
	failures []string
}

func (p *page) fail(name string, sc scenario, err error) {
	p.failures = append(p.failures, fmt.Sprintf("%s, %s: %v", name, sc.title, err))
}

// byHand stands above the part of the page that people write; it is kept.
const byHand = "<!-- written by hand from here on -->"

const byHandAtFirst = `

## To add another server

loadtest loads any WebSocket server. Centrifugo 6.3 or newer, for example: let
it serve ` + "`uni_websocket`" + `, let clients subscribe to a channel ` + "`all`" + `, and put a handler
before its publish API that turns a POST of the bare payload into
` + "`{\"channel\":\"all\",\"data\":PAYLOAD}`" + `. Start it on the server's CPU as above, and run
the connect and broadcast commands above with

    --url 'ws://127.0.0.1:8000/connection/uni_websocket?cf_connect=%7B%22subs%22:%7B%22all%22:%7B%7D%7D%7D'
    --trigger http://127.0.0.1:8002/

where the handler listens on 8002. It has no echo.
`

// render returns the page; what was written by hand in old is kept.
func (p *page) render(old string) string {
	var b strings.Builder
	b.WriteString("# Tocsin and its peers\n\nGenerated by `make compare`. Medians; in brackets the multiple of Tocsin's figure. ")
	b.WriteString("The best of each row is bold, with all that are within 2 % of it, which is less than runs differ by. The bare loop does the same with system calls alone: nobody gets far below its CPU.\n\n")
	p.table(&b)
	p.verdict(&b)
	if len(p.failures) > 0 {
		b.WriteString("\nRuns that failed and are not in the table:\n\n")
		for _, f := range p.failures {
			fmt.Fprintf(&b, "- %s\n", f)
		}
	}
	p.how(&b)
	b.WriteString("\n" + byHand)
	if _, kept, ok := strings.Cut(old, byHand); ok {
		b.WriteString(kept)
	} else {
		b.WriteString(byHandAtFirst)
	}
	return b.String()
}

func (p *page) table(b *strings.Builder) {
	columns := append(slices.Clone(p.names()), floor)
	fmt.Fprintf(b, "| | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---:|", len(columns)))
	some, every := false, false // rows with disturbed runs, and with no others
	for _, r := range rows {
		leaders, own := p.leaders(r), p.took.median(tocsin, r)
		fmt.Fprintf(b, "| %s", r.title)
		if r.unit != "" {
			fmt.Fprintf(b, ", %s", r.unit)
		}
		for _, name := range columns {
			v := p.took.median(name, r)
			cell := "–"
			if !math.IsNaN(v) {
				cell = number(v)
				if slices.Contains(leaders, name) {
					cell = "**" + cell + "**"
				}
				if name != tocsin && own > 0 {
					cell += fmt.Sprintf(" (%.2f)", v/own)
				}
				if _, disturbed := p.took.undisturbed(name, r); !p.took.counts(name, r) {
					cell, every = cell+" ²", true
				} else if disturbed > 0 {
					cell, some = cell+" ¹", true
				}
			}
			fmt.Fprintf(b, " | %s", cell)
		}
		b.WriteString(" |\n")
	}
	if some || every {
		fmt.Fprintf(b, "\nA run is disturbed when the bare loop beside it is off its median by a factor of more than %.2f in CPU time, or %.2f in a time or a rate.\n\n", offCPU, off)
	}
	if some {
		b.WriteString("- ¹ Disturbed runs are left out.\n")
	}
	if every {
		b.WriteString("- ² Every run was disturbed: this is their median, and not among the best.\n")
	}
}

// tie is how much better a figure must be to count as better.
const tie = 0.02

// leaders returns the servers that nobody is better than in a row, the best
// one first; none if nothing was measured.
func (p *page) leaders(r row) []string {
	measured := slices.DeleteFunc(slices.Clone(p.names()), func(name string) bool { return !p.took.counts(name, r) })
	slices.SortStableFunc(measured, func(a, b string) int {
		if r.more {
			a, b = b, a
		}
		return cmp.Compare(p.took.median(a, r), p.took.median(b, r))
	})
	if len(measured) == 0 {
		return nil
	}
	best := p.took.median(measured[0], r)
	return slices.DeleteFunc(measured, func(name string) bool {
		return math.Abs(p.took.median(name, r)-best) > tie*best
	})
}

// verdict names the rows in which a peer is better.
func (p *page) verdict(b *strings.Builder) {
	if !slices.Contains(p.names(), tocsin) {
		return
	}
	var lost []string
	for _, r := range rows {
		if leaders := p.leaders(r); len(leaders) > 0 && !slices.Contains(leaders, tocsin) {
			lost = append(lost, fmt.Sprintf("- %s: %s is better, %s against %s\n", r.title, leaders[0],
				number(p.took.median(leaders[0], r)), number(p.took.median(tocsin, r))))
		}
	}
	if len(lost) == 0 {
		b.WriteString("\nTocsin is first in every row.\n")
		return
	}
	b.WriteString("\nWhere a peer is better:\n\n" + strings.Join(lost, ""))
}

func (p *page) how(b *strings.Builder) {
	fmt.Fprintf(b, "\n## How it was measured\n\n%s, %s; %d connections; %s of each, interleaved, each with a new server process. ",
		p.date.UTC().Format("2 January 2006 15:04 UTC"), p.machine, p.n, runs(p.rounds))
	b.WriteString("Tocsin's connections have a user and a topic each, the peers' have nothing. An echo is, for Tocsin, a command that it answers. " +
		"loadtest/peers has the peers' source and versions.\n\n```\n")
	const listen, side = "127.0.0.1:8080", "127.0.0.1:8081"
	const name = "NAME" // of a peer
	fmt.Fprintf(b, "GOMAXPROCS=2 taskset %s\n", shell(serverArgs(p.serverCPU, "bin/compare", tocsin, listen, side)))
	fmt.Fprintf(b, "GOMAXPROCS=2 taskset %s\n", shell(serverArgs(p.serverCPU, "bin/compare", name, listen, side)))
	for _, sc := range scenarios {
		fmt.Fprintf(b, "bin/compare/loadtest %s --pid=PID\n", shell(p.loadArgs(tocsin, sc, listen, side)))
	}
	fmt.Fprintf(b, "bin/compare/loadtest %s --pid=PID\n```\n", shell(p.loadArgs(name, scenarios[1], listen, side)))
}

// runs says how many there were.
func runs(n int) string {
	if n == 1 {
		return "one run"
	}
	return fmt.Sprintf("%d runs", n)
}

// shell quotes what a shell would not take as it is.
func shell(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if strings.ContainsAny(a, "?&{} ") {
			a = "'" + a + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}

// number returns v with three digits that mean something.
func number(v float64) string {
	digits := 0
	for limit := 100.0; math.Abs(v) < limit && digits < 3; limit /= 10 {
		digits++
	}
	return fmt.Sprintf("%.*f", digits, v)
}
