package main

import (
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestPage(t *testing.T) {
	p := page{
		settings: &settings{n: 1000, rounds: 2, genCPU: 1, only: "tocsin,gws"},
		date:     time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		machine:  machine{CPU: "Abacus", CPUs: 2, Memory: 8 << 30, Kernel: "6.1"},
		took:     make(measurements),
	}
	add := func(server, scenario, key string, values ...float64) {
		for _, v := range values {
			at := place{server, scenario, key}
			p.took[at] = append(p.took[at], measurement{v, math.NaN()})
		}
	}
	add(tocsin, "connect", "user_bytes_per_connection", 100, 300)
	add("gws", "connect", "user_bytes_per_connection", 7000, 8000)
	add(tocsin, "broadcast", "cpu_us_per_delivery", 10, 12, 11)
	add("gws", "broadcast", "cpu_us_per_delivery", 9, 10, 9.9)
	add(floor, "broadcast", "cpu_us_per_delivery", 8.8)
	add(tocsin, "broadcast", "deliveries_per_s", 1000)
	add("gws", "broadcast", "deliveries_per_s", 999)
	p.fail("gws", scenarios[2], errors.New("loadtest: exit status 1: 3 missing"))

	first := p.render("")
	for _, want := range []string{
		"| | tocsin | gws | bare loop |\n|---|---:|---:|---:|\n",
		"| memory of an idle connection, user space, B | **200** | 7500 (37.50) | – |\n",
		"| server CPU of a delivery, µs | 11.0 | **9.90** (0.90) | 8.80 (0.80) |\n",
		"| deliveries a second | **1000** | **999** (1.00) | – |\n",
		"| echoes a second, saturated | – | – | – |\n",
		"Where a peer is better:\n\n- server CPU of a delivery: gws is better, 9.90 against 11.0\n",
		"- gws, echo, saturated: loadtest: exit status 1: 3 missing\n",
		"2 January 2026 03:04 UTC, 2 × Abacus, 8 GiB, Linux 6.1; 1000 connections; 2 runs of each",
		"GOMAXPROCS=2 taskset --cpu-list 0 bin/compare/peer NAME --listen=127.0.0.1:8080 --trigger-listen=127.0.0.1:8081\n",
		"Centrifugo",
	} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in\n%s", want, first)
		}
	}

	before, _, _ := strings.Cut(first, byHand)
	again := p.render(before + byHand + "\n\nGws wins because we let it.\n")
	if want := before + byHand + "\n\nGws wins because we let it.\n"; again != want {
		t.Errorf("what was written by hand is not kept:\n%s", again)
	}
}

func TestTocsinFirstInEveryRow(t *testing.T) {
	p := page{settings: &settings{only: "tocsin,nbio"}, took: make(measurements)}
	p.took[place{tocsin, "echo", "echo_p50_ms"}] = []measurement{{1, 1}}
	p.took[place{"nbio", "echo", "echo_p50_ms"}] = []measurement{{1, 1}}
	if text := p.render(""); !strings.Contains(text, "\nTocsin is first in every row.\n") {
		t.Error(text)
	}
}

func TestAddTellsTheFloorFromTheServer(t *testing.T) {
	r := reportOf(map[string]float64{"a": 1}, map[string]float64{"a": 2})
	m := make(measurements)
	m.add("nbio", "echo", r)
	m.add("nbio", "echo", r)
	at := row{scenario: "echo", key: "a"}
	if got := []float64{m.median("nbio", at), m.median(floor, at)}; got[0] != 1 || got[1] != 2 {
		t.Errorf("medians %v, want 1 and 2", got)
	}
	if got := m.median(tocsin, at); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
}

// reportOf returns what loadtest tells of a server and of the floor beside it.
func reportOf(server, beside map[string]float64) *report {
	r := new(report)
	for _, values := range []map[string]float64{server, beside} {
		r.Results = append(r.Results, struct {
			Values map[string]float64 `json:"values"`
		}{values})
	}
	return r
}

// TestDisturbedRunsAreMarkedAndLeftOut has the bare loop take twice its CPU
// time beside one of gws's runs, and beside all of nbio's.
func TestDisturbedRunsAreMarkedAndLeftOut(t *testing.T) {
	p := page{settings: &settings{only: "tocsin,gws,nbio", rounds: 3}, took: make(measurements)}
	for server, runs := range map[string][3][2]float64{ // its figure, the floor's
		tocsin: {{11, 10}, {11, 10}, {11, 10.5}},
		"gws":  {{9, 10}, {5, 20}, {9, 10}},
		"nbio": {{8, 20}, {7, 20}, {8, 20}},
	} {
		for _, run := range runs {
			p.took.add(server, "broadcast", reportOf(map[string]float64{"cpu_us_per_delivery": run[0]}, map[string]float64{"cpu_us_per_delivery": run[1]}))
		}
	}
	text := p.render("")
	for _, want := range []string{
		"| server CPU of a delivery, µs | 11.0 | **9.00** (0.82) ¹ | 8.00 (0.73) ² | 10.0 (0.91) ¹ |\n",
		"by a factor of more than 1.10 in CPU time",
		"- ¹ Disturbed runs are left out.\n- ² Every run was disturbed",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestARateIsDisturbedWhenItIsOff(t *testing.T) {
	m := make(measurements)
	r := row{scenario: "saturated", key: "messages_per_s", more: true}
	for _, rate := range []float64{100, 90, 110, 60, 300} {
		m.add("gws", "saturated", reportOf(map[string]float64{r.key: 50}, map[string]float64{r.key: rate}))
	}
	if _, disturbed := m.undisturbed("gws", r); disturbed != 2 {
		t.Errorf("%d runs count as disturbed, want those of 60 and of 300 a second", disturbed)
	}
}

func TestOneRoundIsNotPublished(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("compare needs two CPUs")
	}
	s := settings{n: 1000, rounds: 1, genCPU: 1, out: published}
	if err := s.check(); err == nil || !strings.Contains(err.Error(), "-force") {
		t.Errorf("one round for %s: %v", published, err)
	}
	forced, elsewhere, two := s, s, s
	forced.force, elsewhere.out, two.rounds = true, "other.md", 2
	for _, ok := range []settings{forced, elsewhere, two} {
		if err := ok.check(); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	if text := (&page{settings: &forced, took: make(measurements)}).render(""); !strings.Contains(text, "; one run of each, interleaved") {
		t.Error(text)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.000", 0.0123: "0.012", 1.234: "1.23", 99.96: "100.0", 123.4: "123", 65432.1: "65432"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}
