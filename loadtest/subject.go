//go:build linux

package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// subject is a server under test: the one that was asked for, or the floor.
type subject struct {
	report.Result
	pids    machine.Processes // none if not known
	targets []*generator.Target
	fleet   *generator.Fleet
	publish func(ctx context.Context, payload []byte) error
	stop    func() // ends what the run itself started

	cpu        []float64               // what the unit of work cost in each round, µs
	first      generator.Counts        // of the connect
	handshakes *hdrhistogram.Histogram // and how long each took
	own        int64                   // memory of the generator before it

	pings uint64 // that were answered

	// What was counted since fresh.
	sum  generator.Counts
	sums map[string]*hdrhistogram.Histogram
}

// count returns what the workers counted since it was last called, and adds
// that to the subject's sums.
func (sub *subject) count() (generator.Counts, map[string]*hdrhistogram.Histogram, error) {
	c, hists, err := sub.fleet.Count()
	if err != nil {
		return c, hists, err
	}
	sub.keep(&c)
	sub.sum.Add(&c)
	sub.sum.Open, sub.sum.Pending, sub.sum.CPU, sub.sum.Resident = c.Open, c.Pending, c.CPU, c.Resident
	for name, h := range hists {
		if sub.sums[name] == nil {
			sub.sums[name] = generator.NewHistogram()
		}
		sub.sums[name].Merge(h)
	}
	return c, hists, nil
}

// keep adds to what is never counted anew. What the scenario itself did is not
// among the failures and losses.
func (sub *subject) keep(c *generator.Counts) {
	sub.pings += c.Pings
	sub.Failures = generator.AddReasons(sub.Failures, c.Failures)
	maps.DeleteFunc(sub.Failures, func(reason string, _ uint64) bool { return reason == "interrupted" })
	sub.Lost = generator.AddReasons(sub.Lost, c.Lost)
	maps.DeleteFunc(sub.Lost, func(reason string, _ uint64) bool { return reason == "dropped" })
}

// fresh begins new sums. It returns what the workers counted until now.
func (sub *subject) fresh() (generator.Counts, map[string]*hdrhistogram.Histogram, error) {
	c, hists, err := sub.count()
	sub.sum, sub.sums = generator.Counts{}, map[string]*hdrhistogram.Histogram{}
	return c, hists, err
}

// muster starts the generator for a subject.
func (s *session) muster(sub *subject, conns int) error {
	sources, err := generator.Sources(conns, sub.targets, s.Source)
	if err != nil {
		return err
	}
	sub.fleet, err = generator.Muster(&generator.Config{
		Conns: conns, Procs: s.Procs, Targets: sub.targets, Sources: sources, Insecure: s.Insecure,
		Concurrency: s.Concurrency, Timeout: s.Timeout,
	})
	return err
}

// open brings the subject's connections up, and returns how long that took.
// What the workers counted is in sub.first, and they count anew.
func (s *session) open(ctx context.Context, sub *subject) (took time.Duration, err error) {
	if err := s.muster(sub, s.N); err != nil {
		return 0, err
	}
	c, _, err := sub.fresh()
	if err != nil {
		return 0, err
	}
	sub.own = c.Resident
	defer s.watch(sub, "connect", s.N, func(c *generator.Counts) int { return c.Open })()
	began := time.Now()
	if err = sub.fleet.Connect(ctx, s.Rate); err != nil {
		return 0, err
	}
	took = time.Since(began)
	first, hists, err := sub.fresh()
	if err != nil {
		return took, err
	}
	first.CPU -= c.CPU
	sub.first = first
	sub.handshakes = hists[generator.HistHandshake]
	sub.Draw(generator.HistHandshake, sub.handshakes)
	if first.Opened == 0 && ctx.Err() == nil {
		return took, fmt.Errorf("none of %s connections to %s was opened", report.Thousands(float64(s.N)), sub.URL)
	}
	return took, ctx.Err()
}

// watch tells progress until the returned function is called.
func (s *session) watch(sub *subject, what string, total int, done func(c *generator.Counts) int) (stop func()) {
	s.progress.Begin(sub.Name+": "+what, total)
	quit, over := make(chan struct{}), make(chan struct{})
	look := func() {
		c := sub.fleet.Now()
		text := fmt.Sprintf("%s open", report.Thousands(float64(c.Open)))
		if n := generator.SumReasons(c.Failures) + generator.SumReasons(c.Lost) - c.Lost["dropped"]; n > 0 {
			text += fmt.Sprintf(", %s errors", report.Thousands(float64(n)))
		}
		resident := int64(0)
		if len(sub.pids) > 0 {
			if mem, err := sub.pids.Memory(); err == nil {
				resident = mem.Resident
				text += fmt.Sprintf(", server %d MiB", mem.Resident>>20)
			}
		}
		sub.Sample(time.Since(s.start), c.Open, resident)
		s.progress.At(done(&c), text)
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
		s.progress.End()
	}
}

// meter returns a function that tells the CPU time the subject has used since,
// NaN if its process is not known.
func (sub *subject) meter() func() float64 {
	before, err := sub.pids.CPU()
	return func() float64 {
		after, err2 := sub.pids.CPU()
		if len(sub.pids) == 0 || err != nil || err2 != nil {
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
		sub.Put(key, median(sub.cpu))
	}
}

// alive returns an error when the subject has ended every connection.
func (sub *subject) alive() error {
	if c := sub.fleet.Now(); c.Open == 0 {
		return fmt.Errorf("%s: every connection was lost: did the server die?", sub.Name)
	}
	return nil
}

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

// median returns the middle of values, of an even number the mean of two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
