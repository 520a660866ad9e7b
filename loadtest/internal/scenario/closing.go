//go:build linux

package scenario

import (
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
)

// closing notes what is known of a subject at the end.
func (s *session) closing(sub *subject) {
	if sub.fleet == nil {
		return
	}
	c, _, err := sub.count()
	if err != nil {
		s.report.Note("%s: %v", sub.Name, err)
		sub.keep(&c) // as far as it is known
	}
	sub.Put("connections", float64(c.Open))
	if sub.pings > 0 {
		sub.Put("pings", float64(sub.pings))
	}
	if n := generator.SumReasons(sub.Failures); n > 0 {
		sub.Put("failed", float64(n))
	}
	if n := generator.SumReasons(sub.Lost); n > 0 {
		sub.Put("lost", float64(n))
	}
	if len(sub.pids) > 0 {
		if m, err := sub.pids.Memory(); err == nil {
			sub.Put("resident_bytes", float64(m.Resident))
			sub.Put("peak_bytes", float64(m.Peak))
			sub.Put("threads", float64(m.Threads))
		}
		if pss, err := sub.pids.Proportional(); err == nil {
			sub.Put("proportional_bytes", float64(pss))
		}
	}
	if sub.first.Opened >= 5000 { // with fewer, a process's own start is most of it
		sub.Put("generator_bytes_per_connection", float64(sub.first.Resident-sub.own)/float64(sub.first.Opened))
	}
	busy := sub.sum.Busy
	if s.report.Scenario == "connect" {
		busy = sub.first.Busy
	}
	s.saturation(sub, busy, sub.sums[generator.HistLag])
}

// saturation says so when the generator was what held things up: it was
// saturated if it was busy, and late if it was not and sent too late all the
// same.
func (s *session) saturation(sub *subject, busy float64, lag *hdrhistogram.Histogram) {
	sub.Put("generator_busy_percent", 100*busy)
	behind := ""
	if lag != nil && lag.TotalCount() >= 100 && lag.ValueAtQuantile(99) > int64(time.Millisecond) {
		behind = fmt.Sprintf("1 %% of its messages left more than %.1f ms late", float64(lag.ValueAtQuantile(99))/1e6)
	}
	switch {
	case busy > 0.95 && behind != "":
		s.report.Note("%s: generator saturated: it was busy %.0f %% of the time, and %s", sub.Name, 100*busy, behind)
	case busy > 0.95:
		s.report.Note("%s: generator saturated: it was busy %.0f %% of the time, so that latencies and rates are its own as well", sub.Name, 100*busy)
	case behind != "":
		s.report.Note("%s: generator late: %s, although it was busy only %.0f %% of the time: it was not given a CPU in time", sub.Name, behind, 100*busy)
	}
}
