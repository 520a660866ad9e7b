//go:build linux

package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

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
		lag := generator.NewHistogram()
		if err := lag.RecordValues(int64(c.lag), int64(c.samples)); err != nil {
			t.Fatal(err)
		}
		res := report.NewResult("server", "")
		s := &session{report: &report.Report{}}
		s.saturation(&subject{Result: res}, c.busy, lag)
		if got := strings.Join(s.report.Notes, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("busy %v, %v late: %q, want %q", c.busy, c.lag, got, c.want)
		}
	}
}

// TestGrowthLeavesOutEmptyCaches wants only caches that hold something of the
// connections'.
func TestGrowthLeavesOutEmptyCaches(t *testing.T) {
	before := map[string]machine.Slab{"a": {Objects: 100, Bytes: 1000}, "b": {Objects: 100, Bytes: 1000}, "c": {Objects: 100, Bytes: 1000}, "proc_inode_cache": {}}
	after := map[string]machine.Slab{"a": {Objects: 200, Bytes: 9000}, "b": {Objects: 97, Bytes: 9000}, "c": {Objects: 100, Bytes: 9000}, "proc_inode_cache": {Objects: 900, Bytes: 9000}}
	if got := growth(before, after, 100); len(got) != 1 || got[0].Name != "a" || got[0].Objects != 1 {
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
