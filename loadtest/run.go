//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/internal/limits"
)

// common are the flags of every scenario.
type common struct {
	URL         string        `default:"ws://127.0.0.1:8080/ws" help:"WebSocket to connect to; {n} in it stands for the number of the connection, from 0."`
	Servers     []string      `placeholder:"HOST:PORT" help:"Spread the connections over these servers instead of the URL's host."`
	N           int           `name:"n" short:"n" default:"1000" help:"Connections."`
	Rate        float64       `help:"Connects a second; 0 is as fast as --concurrency allows."`
	Concurrency int           `default:"100" help:"Handshakes at once."`
	Timeout     time.Duration `default:"30s" help:"Of one handshake."`
	Header      []string      `sep:"none" placeholder:"NAME:VALUE" help:"Send this header with every handshake; {n} as in the URL."`
	Source      []string      `placeholder:"IP" help:"Connect from these addresses. Towards 127.0.0.0/8 it takes as many of that as the ports make necessary."`
	Procs       int           `help:"Generator processes; at least what the descriptor limit makes necessary."`
	AllowRemote bool          `help:"Allow servers that are not on this machine."`
	Pid         int           `help:"Process of the server, to tell its CPU and memory."`
	Floor       bool          `help:"Measure a bare loop of system calls beside the server, in turns, and tell the ratio."`
	ServerCPU   int           `default:"-1" placeholder:"CPU" help:"Bind the server (--pid) and the floor to this CPU. A Go server then wants GOMAXPROCS=2 in its environment."`
	GenCPU      int           `name:"generator-cpu" default:"-1" placeholder:"CPU" help:"Bind the generator to this CPU."`
	JSON        bool          `name:"json" help:"Print the report as JSON."`
	Report      string        `placeholder:"FILE.html" type:"path" help:"Write the report as one self-contained HTML file too."`
}

// subject is a server under test: the one that was asked for, or the floor.
type subject struct {
	result
	pid     int // 0 if not known
	targets []*target
	fleet   *fleet
	publish func(ctx context.Context, payload []byte) error
	stop    func() // ends what the run itself started

	cpu   []float64 // what the unit of work cost in each round, µs
	first counts    // of the connect
	own   int64     // memory of the generator before it
}

// session is one run of a scenario.
type session struct {
	common
	report   *report
	progress *progress
	subjects []*subject // the server, then the floor
	start    time.Time
	packets  int64 // that the kernel had thrown away before
}

// execute runs a scenario, writes what was measured, and returns what went
// wrong. measure may return an error and leave results behind.
func execute(ctx context.Context, name string, c common, out, status io.Writer, prepare func(s *session, sub *subject) error, measure func(context.Context, *session) error) error {
	s := &session{common: c, progress: newProgress(status), start: time.Now(), packets: packetsDropped(), report: &report{
		Scenario: name, Command: commandLine(os.Args), Started: time.Now(), Machine: thisMachine(),
	}}
	defer s.close()
	err := s.setUp(ctx, prepare)
	if err != nil {
		return err // nothing was measured
	}
	err = measure(ctx, s)
	if ctx.Err() != nil {
		s.report.Interrupted, err = true, nil
	}
	s.progress.end()
	s.report.Seconds = time.Since(s.start).Seconds()
	for _, sub := range s.subjects {
		s.closing(sub)
		s.report.Results = append(s.report.Results, &sub.result)
	}
	if n := packetsDropped() - s.packets; n > 0 {
		s.report.note("the kernel threw %s packets away, which delays and can end connections: raise it: sysctl -w net.core.netdev_max_backlog=100000", thousands(float64(n)))
	}
	if err == nil {
		err = s.verdict()
	}
	if err != nil {
		s.report.Error = err.Error()
	}
	return errors.Join(err, s.write(out))
}

func (s *session) write(out io.Writer) error {
	var err error
	if s.JSON {
		err = s.report.writeJSON(out)
	} else {
		err = s.report.writeTable(out)
	}
	if s.Report != "" {
		err = errors.Join(err, s.report.writeHTML(s.Report))
	}
	return err
}

func (s *session) close() {
	s.progress.end()
	for _, sub := range s.subjects {
		if sub.fleet != nil {
			sub.fleet.close()
		}
		if sub.stop != nil {
			sub.stop()
		}
	}
}

// setUp checks everything that can be checked before the first connection.
func (s *session) setUp(ctx context.Context, prepare func(*session, *subject) error) error {
	if s.N < 1 || s.Concurrency < 1 || s.Rate < 0 || s.Timeout <= 0 || s.Procs < 0 {
		return usagef("--n, --concurrency and --timeout must be at least 1, --rate and --procs not negative")
	}
	for _, cpu := range []int{s.ServerCPU, s.GenCPU} {
		if cpu >= runtime.NumCPU() {
			return usagef("there is no CPU %d: this machine has 0 to %d", cpu, runtime.NumCPU()-1)
		}
	}
	server := &subject{result: newResult("server", s.URL), pid: s.Pid}
	s.subjects = []*subject{server}
	if prepare != nil {
		if err := prepare(s, server); err != nil {
			return err
		}
	}
	if err := s.aim(ctx, server); err != nil {
		return err
	}
	if s.Pid != 0 {
		if _, err := cpuOf(s.Pid); err != nil {
			return usagef("--pid %d: there is no such process", s.Pid)
		}
	}
	if s.GenCPU >= 0 {
		if err := pin(os.Getpid(), s.GenCPU); err != nil {
			return err
		}
	}
	if s.ServerCPU >= 0 && s.Pid != 0 {
		if err := pin(s.Pid, s.ServerCPU); err != nil {
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
			if err := t.probe(ctx); err != nil {
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
		t, err := parseTarget(ctx, u, s.Header, s.AllowRemote)
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
	if s.subjects[0].targets[0].addr.Addr().IsLoopback() {
		side = limits.Both
	}
	sources, err := sourcesFor(s.N, s.subjects[0].targets, s.Source)
	if err != nil {
		return err
	}
	procs := max(1, s.Procs, (s.N+capacity()-1)/capacity()) * len(s.subjects)
	var low []string
	for _, f := range limits.Check(limits.Need{
		Connections: conns, Processes: procs, Sources: max(1, len(sources)) * len(s.subjects[0].targets) * len(s.subjects), Side: side,
	}) {
		switch {
		case f.OK:
		case f.Allows == limits.Unbounded || f.Allows >= conns:
			s.report.note("%s", f)
		default:
			low = append(low, f.String())
		}
	}
	if len(low) > 0 {
		return fmt.Errorf("this machine does not allow %s connections:\n%s", thousands(float64(conns)), strings.Join(low, "\n"))
	}
	return nil
}

func newResult(name, url string) result {
	return result{Name: name, URL: url, Values: map[string]float64{}, hists: newHists()}
}

// muster starts the generator for a subject.
func (s *session) muster(sub *subject, conns int) error {
	sources, err := sourcesFor(conns, sub.targets, s.Source)
	if err != nil {
		return err
	}
	p := plan{Sources: sources, Concurrency: s.Concurrency, Timeout: s.Timeout}
	for _, t := range sub.targets {
		p.Servers = append(p.Servers, t.addr.String())
		p.Requests = append(p.Requests, t.request)
	}
	sub.fleet, err = muster(conns, s.Procs, p)
	return err
}

// watch tells progress until the returned function is called.
func (s *session) watch(sub *subject, what string, total int, done func(c *counts) int) (stop func()) {
	s.progress.begin(sub.Name+": "+what, total)
	quit, over := make(chan struct{}), make(chan struct{})
	look := func() {
		c := sub.fleet.now()
		text := fmt.Sprintf("%s open", thousands(float64(c.Open)))
		if n := sumReasons(c.Failures) + sumReasons(c.Lost); n > 0 {
			text += fmt.Sprintf(", %s errors", thousands(float64(n)))
		}
		m := sample{at: time.Since(s.start), open: c.Open}
		if sub.pid != 0 {
			if mem, err := readMemory(sub.pid); err == nil {
				m.resident = mem.Resident
				text += fmt.Sprintf(", server %d MiB", mem.Resident>>20)
			}
		}
		sub.samples = append(sub.samples, m)
		s.progress.at(done(&c), text)
	}
	go func() {
		defer close(over)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			look()
			select {
			case <-quit:
				look()
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		close(quit)
		<-over
		s.progress.end()
	}
}

// meter returns a function that tells the CPU time the subject has used since,
// NaN if its process is not known.
func (sub *subject) meter() func() float64 {
	before, err := cpuOf(sub.pid)
	return func() float64 {
		after, err2 := cpuOf(sub.pid)
		if sub.pid == 0 || err != nil || err2 != nil {
			return math.NaN()
		}
		return float64(after-before) / float64(time.Microsecond)
	}
}

// spend notes what a round of so many units cost.
func (sub *subject) spend(us float64, units uint64) {
	if units > 0 && !math.IsNaN(us) {
		sub.cpu = append(sub.cpu, us/float64(units))
	}
}

// putCPU notes the median over the rounds.
func (sub *subject) putCPU(key string) {
	if len(sub.cpu) > 0 {
		sub.put(key, median(sub.cpu))
	}
}

// open brings the subject's connections up, and returns how long that took.
// What the workers counted is in sub.first, and they count anew.
func (s *session) open(ctx context.Context, sub *subject) (took time.Duration, err error) {
	if err := s.muster(sub, s.N); err != nil {
		return 0, err
	}
	f := sub.fleet
	c, _, err := f.count(true)
	if err != nil {
		return 0, err
	}
	sub.own = c.SelfM
	defer s.watch(sub, "connect", s.N, func(c *counts) int { return c.Open })()
	began := time.Now()
	if _, err = f.do(ctx, func(k int) order {
		return order{Do: doConnect, N: f.share[k], Rate: s.Rate * float64(f.share[k]) / float64(s.N)}
	}); err != nil {
		return 0, err
	}
	took = time.Since(began)
	first, hists, err := f.count(true)
	if err != nil {
		return took, err
	}
	first.SelfC -= c.SelfC
	sub.first, sub.Failures = first, first.Failures
	sub.hists[histHandshake] = hists[histHandshake]
	if first.Opened == 0 && ctx.Err() == nil {
		return took, fmt.Errorf("none of %s connections to %s was opened", thousands(float64(s.N)), sub.URL)
	}
	return took, ctx.Err()
}

// alive returns an error when the subject has ended every connection.
func (sub *subject) alive() error {
	if c := sub.fleet.now(); c.Open == 0 {
		return fmt.Errorf("%s: every connection was lost: did the server die?", sub.Name)
	}
	return nil
}

// closing notes what is known of a subject at the end.
func (s *session) closing(sub *subject) {
	if sub.fleet == nil {
		return
	}
	c, hists, err := sub.fleet.count(false)
	if err != nil {
		s.report.note("%s: %v", sub.Name, err)
	}
	sub.put("connections", float64(c.Open))
	sub.Failures = addReasons(sub.Failures, c.Failures)
	if n := sumReasons(sub.Failures); n > 0 {
		sub.put("failed", float64(n))
	}
	sub.Lost = addReasons(sub.first.Lost, c.Lost)
	delete(sub.Lost, "dropped") // by the scenario itself
	if n := sumReasons(sub.Lost); n > 0 {
		sub.put("lost", float64(n))
	}
	if sub.pid != 0 {
		if m, err := readMemory(sub.pid); err == nil {
			sub.put("resident_bytes", float64(m.Resident))
			sub.put("threads", float64(m.Threads))
		}
		if pss, err := readProportional(sub.pid); err == nil {
			sub.put("proportional_bytes", float64(pss))
		}
	}
	if sub.first.Opened >= 5000 { // with fewer, a process's own start is most of it
		sub.put("generator_bytes_per_connection", float64(sub.first.SelfM-sub.own)/float64(sub.first.Opened))
	}
	busy := c.Busy
	if s.report.Scenario == "connect" {
		busy = sub.first.Busy
	}
	s.saturation(sub, busy, hists[histLag])
}

// saturation says so when the generator was what held things up.
func (s *session) saturation(sub *subject, busy float64, lag *hdrhistogram.Histogram) {
	sub.put("generator_busy_percent", 100*busy)
	if lag != nil && lag.ValueAtQuantile(99) > int64(time.Millisecond) {
		s.report.note("%s: generator saturated: 1 %% of its messages left more than %.1f ms late", sub.Name, float64(lag.ValueAtQuantile(99))/1e6)
	} else if busy > 0.95 {
		s.report.note("%s: generator saturated: its loop was busy %.0f %% of the time, so that latencies and rates are its own as well", sub.Name, 100*busy)
	}
}

// verdict says what is wrong with a run that went through to its end.
func (s *session) verdict() error {
	for _, sub := range s.subjects {
		v := sub.Values
		switch {
		case v["failed"] > 0 && s.report.Scenario != "herd":
			return fmt.Errorf("%s: %s of %s handshakes failed", sub.Name, thousands(v["failed"]), thousands(float64(s.N)))
		case v["lost"] > 0 && s.report.Scenario != "herd":
			return fmt.Errorf("%s: %s connections were lost", sub.Name, thousands(v["lost"]))
		case v["missing"]+v["doubled"]+v["misordered"] > 0:
			return fmt.Errorf("%s: deliveries missing %s, doubled %s, out of order %s", sub.Name, thousands(v["missing"]), thousands(v["doubled"]), thousands(v["misordered"]))
		case v["unanswered"] > 0:
			return fmt.Errorf("%s: %s messages were not answered", sub.Name, thousands(v["unanswered"]))
		}
	}
	return nil
}
