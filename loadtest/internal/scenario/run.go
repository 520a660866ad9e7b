//go:build linux

package scenario

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// execute runs a scenario, writes what was measured, and returns what went
// wrong. measure may return an error and leave results behind.
func execute(ctx context.Context, name string, c common, out, status io.Writer, prepare func(s *session, sub *subject) error, measure func(context.Context, *session) error) error {
	s := &session{common: c, progress: report.NewProgress(status), start: time.Now(), packets: machine.PacketsDropped(), report: &report.Report{
		Scenario: name, Command: machine.CommandLine("loadtest", os.Args), Started: time.Now(), Machine: machine.This(), Notes: c.Remark,
	}}
	defer s.close()
	err := s.setUp(ctx, prepare)
	if err != nil {
		return err // nothing was measured
	}
	s.report.Server = s.subjects[0].pids.Commands()
	err = measure(ctx, s)
	if s.report.Interrupted = ctx.Err() != nil; s.report.Interrupted {
		err = nil
	}
	s.progress.End()
	s.report.Seconds = time.Since(s.start).Seconds()
	for _, sub := range s.subjects {
		s.closing(sub)
		s.report.Results = append(s.report.Results, &sub.Result)
	}
	if n := machine.PacketsDropped() - s.packets; n > 0 {
		s.report.Note("the kernel threw %s packets away, which delays and can end connections: raise it: sysctl -w net.core.netdev_max_backlog=100000", report.Thousands(float64(n)))
	}
	if err == nil {
		err = s.verdict()
	}
	if err == nil && s.report.Interrupted {
		err = errors.New("interrupted; the report is of what was measured until then")
	}
	if err != nil {
		s.report.Error = err.Error()
	}
	return errors.Join(err, s.Write(s.report, out))
}
