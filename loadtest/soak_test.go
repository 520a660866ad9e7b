//go:build linux

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// soakArgs are those of a soak of 40 connections that takes seconds.
func soakArgs(f *fake, more ...string) []string {
	return append([]string{
		"soak", "--url", f.url, "--trigger", f.trigger, "-n", "40", "--procs", "2", "--hold", "50ms",
		"--rounds", "2", "--percent", "25", "--live", "4", "--live-rate", "100",
	}, more...)
}

// pinging makes a fake that greets with a heartbeat and answers commands.
func pinging(t *testing.T) *fake {
	f := newFake(t)
	f.greeting = wire.AppendFrame(wire.AppendFrame(nil, ws.OpText, []byte(`{"welcome":{"conn":"x"}}`)), ws.OpPing, []byte("?"))
	f.message = (*fakeConn).say
	return f
}

func TestSoak(t *testing.T) {
	f := pinging(t)
	dir := t.TempDir()
	page, plots := filepath.Join(dir, "report.md"), filepath.Join(dir, "report")
	o := loadtest(t, soakArgs(f, "--markdown", page, "--plots", plots, "--remark", "said <so>", "--pid", strconv.Itoa(os.Getpid()))...)
	if o.status != 0 {
		t.Errorf("status %d: %s", o.status, o.err)
	}
	o.want(t, map[string]float64{
		"connections": 40, "rounds": 3, "expected": 120, "delivered": 120, "missing": 0, "doubled": 0, "misordered": 0,
		"dropped": 10, "back": 10, "attempts": 10, "pings": 50, // of 50 handshakes
	})
	for _, key := range []string{"handshake_p90_ms", "delivery_p99_ms", "outage_p90_ms", "meanwhile_max_ms", "hold_bytes", "peak_bytes", "cpu_us_per_connect", "cpu_us_per_return", "cpu_us_per_delivery"} {
		if o.value(t, key) <= 0 {
			t.Errorf("%s is %v", key, o.value(t, key))
		}
	}
	var names []string
	for _, st := range o.Stages {
		names = append(names, st.Name)
		if want := strings.HasPrefix(st.Name, "message"); st.Open != 40 || st.Lost != 0 || want != (st.Delivered == 40) {
			t.Errorf("%+v", st)
		}
	}
	if want := "connect, hold, message 1 of 3, message 2 of 3, herd, message 3 of 3"; strings.Join(names, ", ") != want {
		t.Errorf("the stages are %q, want %s", names, want)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# loadtest soak: 40 connections\n", "| message 3 of 3 |", "| delivered | 120 |", "- note: said &lt;so>", "](report-connections.svg)", "](report-delivery.svg)"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the page does not have %q:\n%s", want, text)
		}
	}
	for _, name := range []string{"connections", "memory", "handshake", "delivery", "fanout", "outage", "before", "meanwhile"} {
		if svg, err := os.ReadFile(plots + "-" + name + ".svg"); err != nil || !bytes.Contains(svg, []byte("<svg")) {
			t.Errorf("plot %s: %v", name, err)
		}
	}
}

// TestSoakTellsLies loses one of those who stay and keeps back one delivery.
func TestSoakTellsLies(t *testing.T) {
	f := pinging(t)
	f.publish = func(c *fakeConn, seq int, payload []byte) {
		if seq == 2 && c.index == 3 {
			c.say(payload)
			c.Close()
		} else if seq != 1 || c.index != 5 {
			c.say(payload)
		}
	}
	o := loadtest(t, soakArgs(f, "--wait", "500ms")...)
	o.want(t, map[string]float64{"lost": 1, "rounds": 3, "expected": 40 + 40 + 39, "delivered": 39 + 40 + 39, "missing": 1})
	if want := "1 connections were lost"; o.status != 1 || !strings.Contains(o.err, want) {
		t.Errorf("status %d, %q; want 1 and %q", o.status, o.err, want)
	}
}

// TestSoakInterrupted ends a soak in its second message, whose deliveries are
// then not missing but unknown.
func TestSoakInterrupted(t *testing.T) {
	f := pinging(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.publish = func(c *fakeConn, seq int, payload []byte) {
		switch {
		case seq == 1 || c.index < 10:
			c.say(payload)
		case c.index == 39:
			cancel()
		}
	}
	o := loadtestUntil(ctx, t, soakArgs(f)...)
	o.want(t, map[string]float64{"connections": 40, "rounds": 1, "missing": 0})
	if len(o.Stages) != 4 || o.status != 1 || !strings.Contains(o.err, "interrupted") || !strings.Contains(o.out, `"interrupted": true`) {
		t.Errorf("status %d, %q, stages %+v", o.status, o.err, o.Stages)
	}
}
