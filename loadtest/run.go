//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/internal/limits"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// common are the flags of every scenario.
type common struct {
	URL         string        `default:"ws://127.0.0.1:8080/ws" help:"WebSocket to connect to, ws:// or wss://; {n} in it stands for the number of the connection, from 0."`
	Servers     []string      `placeholder:"HOST:PORT" help:"Spread the connections over these servers instead of the URL's host."`
	N           int           `name:"n" short:"n" default:"1000" help:"Connections."`
	Rate        float64       `placeholder:"PER-SECOND" help:"Connects a second; 0 is as fast as --concurrency allows."`
	Concurrency int           `default:"100" help:"Handshakes at once."`
	Timeout     time.Duration `default:"30s" help:"Of one handshake."`
	Header      []string      `sep:"none" placeholder:"NAME:VALUE" help:"Send this header with every handshake; {n} as in the URL."`
	Source      []string      `placeholder:"IP" help:"Connect from these addresses. Towards 127.0.0.0/8 it takes as many of that as the ports make necessary."`
	Procs       int           `placeholder:"N" help:"Generator processes; at least what the descriptor limit makes necessary."`
	Insecure    bool          `help:"Take any certificate of a wss:// server. SSL_CERT_FILE in the environment adds authorities instead."`
	AllowRemote bool          `help:"Allow servers that are not on this machine."`
	Pid         []int         `help:"Process of the server, to tell its CPU and memory; of all --servers, their sum."`
	Floor       bool          `help:"Measure a bare loop of system calls beside the server, in turns, and tell the ratio of their CPU time; of times and rates too if --pid and --server-cpu bind both to a CPU."`
	ServerCPU   int           `default:"-1" placeholder:"CPU" help:"Bind the server (--pid) and the floor to this CPU. A Go server then wants GOMAXPROCS=2 in its environment."`
	GenCPU      int           `name:"generator-cpu" default:"-1" placeholder:"CPU" help:"Bind the generator to this CPU."`
	report.Output
}

// session is one run of a scenario.
type session struct {
	common
	report   *report.Report
	progress *report.Progress
	subjects []*subject // the server, then the floor
	start    time.Time
	packets  int64 // that the kernel had thrown away before
}

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
		if err := machine.Pin(os.Getpid(), s.GenCPU); err != nil {
			return err
		}
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

// verdict says what is wrong with a run that went through to its end.
func (s *session) verdict() error {
	for _, sub := range s.subjects {
		v := sub.Values
		switch {
		case sub.failed() > 0:
			return fmt.Errorf("%s: %s of %s handshakes failed", sub.Name, report.Thousands(float64(sub.failed())), report.Thousands(float64(s.N)))
		case v["lost"] > 0 && s.report.Scenario != "herd":
			return fmt.Errorf("%s: %s connections were lost", sub.Name, report.Thousands(v["lost"]))
		case s.report.Scenario == "push":
			return sub.pushVerdict()
		case v["missing"]+v["doubled"]+v["misordered"] > 0:
			return fmt.Errorf("%s: deliveries missing %s, doubled %s, out of order %s", sub.Name, report.Thousands(v["missing"]), report.Thousands(v["doubled"]), report.Thousands(v["misordered"]))
		case v["unanswered"] > 0:
			return fmt.Errorf("%s: %s messages were not answered", sub.Name, report.Thousands(v["unanswered"]))
		}
	}
	return nil
}

// failed returns how many handshakes failed for good: a herd tries again.
func (sub *subject) failed() uint64 {
	return generator.SumReasons(sub.first.Failures) - sub.first.Failures["interrupted"]
}
