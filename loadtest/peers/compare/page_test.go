package main

import (
	"errors"
	"math"
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
		p.took[place{server, scenario, key}] = values
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
	p.took[place{tocsin, "echo", "echo_p50_ms"}] = []float64{1}
	p.took[place{"nbio", "echo", "echo_p50_ms"}] = []float64{1}
	if text := p.render(""); !strings.Contains(text, "\nTocsin is first in every row.\n") {
		t.Error(text)
	}
}

func TestAddTellsTheFloorFromTheServer(t *testing.T) {
	var r report
	r.Results = append(r.Results, struct {
		Values map[string]float64 `json:"values"`
	}{map[string]float64{"a": 1}}, struct {
		Values map[string]float64 `json:"values"`
	}{map[string]float64{"a": 2}})
	m := make(measurements)
	m.add("nbio", "echo", &r)
	m.add("nbio", "echo", &r)
	at := row{scenario: "echo", key: "a"}
	if got := []float64{m.median("nbio", at), m.median(floor, at)}; got[0] != 1 || got[1] != 2 {
		t.Errorf("medians %v, want 1 and 2", got)
	}
	if got := m.median(tocsin, at); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.000", 0.0123: "0.012", 1.234: "1.23", 99.96: "100.0", 123.4: "123", 65432.1: "65432"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}
