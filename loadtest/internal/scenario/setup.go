//go:build linux

package scenario

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/tocsin-push/tocsin/internal/limits"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// setUp checks everything that can be checked before the first connection.
func (s *session) setUp(ctx context.Context, prepare func(*session, *subject) error) error {
	if s.N < 1 || s.Concurrency < 1 || s.Rate < 0 || s.Timeout <= 0 || s.Procs < 0 {
		return usage.Errorf("--n, --concurrency and --timeout must be at least 1, --rate and --procs not negative")
	}
	for _, cpu := range []int{s.ServerCPU, s.GenCPU} {
		if cpu >= runtime.NumCPU() {
			return usage.Errorf("there is no CPU %d: this machine has 0 to %d", cpu, runtime.NumCPU()-1)
		}
	}
	server := &subject{Result: report.NewResult("server", s.URL), pids: s.Pid}
	s.subjects = []*subject{server}
	s.report.Pinned = s.ServerCPU >= 0 && len(s.Pid) > 0
	if prepare != nil {
		if err := prepare(s, server); err != nil {
			return err
		}
	}
	if err := s.aim(ctx, server); err != nil {
		return err
	}
	if err := s.bind(); err != nil {
		return err
	}
	if s.Floor {
		floor, err := startFloor(s.ServerCPU)
		if err != nil {
			return err
		}
		s.subjects = append(s.subjects, floor)
		if err := s.aim(ctx, floor); err != nil {
			return err
		}
	}
	if err := s.checkLimits(); err != nil {
		return err
	}
	for _, sub := range s.subjects {
		for _, t := range sub.targets {
			if err := t.Probe(ctx, s.Insecure); err != nil {
				return err
			}
		}
	}
	return nil
}

// bind binds the server's processes and this one to their CPUs.
func (s *session) bind() error {
	for _, pid := range s.Pid {
		if _, err := machine.CPU(pid); err != nil {
			return usage.Errorf("--pid %d: there is no such process", pid)
		}
		if s.ServerCPU >= 0 {
			if err := machine.Pin(pid, s.ServerCPU); err != nil {
				return err
			}
		}
	}
	if s.GenCPU >= 0 {
		return machine.Pin(os.Getpid(), s.GenCPU)
	}
	return nil
}

// aim finds out where a subject is.
func (s *session) aim(ctx context.Context, sub *subject) error {
	urls := []string{sub.URL}
	if sub.Name == "server" && len(s.Servers) > 0 {
		urls = nil
		for _, host := range s.Servers {
			urls = append(urls, withHost(sub.URL, host))
		}
	}
	for _, u := range urls {
		t, err := generator.ParseTarget(ctx, u, s.Header, s.AllowRemote)
		if err != nil {
			return err
		}
		sub.targets = append(sub.targets, t)
	}
	return nil
}

// checkLimits refuses a run that cannot end well, with every limit that is too
// small in a line of its own; one that only costs speed is noted.
func (s *session) checkLimits() error {
	_ = limits.Raise() // what is still too low is found below
	conns := s.N * len(s.subjects)
	side := limits.Client
	if s.subjects[0].targets[0].Local() {
		side = limits.Both
	}
	sources, err := generator.Sources(s.N, s.subjects[0].targets, s.Source)
	if err != nil {
		return err
	}
	procs := generator.Processes(s.N, s.Procs) * len(s.subjects)
	var low []string
	for _, f := range limits.Check(limits.Need{
		Connections: conns, Processes: procs, Sources: max(1, len(sources)) * len(s.subjects[0].targets) * len(s.subjects), Side: side,
	}) {
		switch {
		case f.OK:
		case f.Allows == limits.Unbounded || f.Allows >= conns:
			s.report.Note("%s", f)
		default:
			low = append(low, f.String())
		}
	}
	if len(low) > 0 {
		return fmt.Errorf("this machine does not allow %s connections:\n%s", report.Thousands(float64(conns)), strings.Join(low, "\n"))
	}
	return nil
}
