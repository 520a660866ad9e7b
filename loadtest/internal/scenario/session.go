//go:build linux

package scenario

import (
	"runtime"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// session is one run of a scenario.
type session struct {
	common
	report   *report.Report
	progress *report.Progress
	subjects []*subject // the server, then the floor
	start    time.Time
	packets  int64 // that the kernel had thrown away before
}

func (s *session) close() {
	s.progress.End()
	for _, sub := range s.subjects {
		if sub.fleet != nil {
			sub.fleet.Close()
		}
		if sub.stop != nil {
			sub.stop()
		}
	}
}

// generatorCPUs returns how many CPUs the generator may use.
func (s *session) generatorCPUs() float64 {
	if s.GenCPU >= 0 {
		return 1
	}
	return float64(runtime.NumCPU())
}

// newSession returns a session of n connections that tells nobody, for a row of
// the bench.
func newSession(p *report.Progress, n int, subjects ...*subject) *session {
	return &session{
		common:   common{N: n, Concurrency: 100, Timeout: 30 * time.Second},
		progress: p, report: &report.Report{}, subjects: subjects, start: time.Now(),
	}
}
