//go:build linux

package scenario

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

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

// hold waits, with the connections open, and tells what the server costs
// meanwhile.
func (s *session) hold(ctx context.Context, sub *subject, d time.Duration) {
	if d <= 0 {
		return
	}
	began := time.Now()
	defer s.watch(sub, "hold", int(d.Seconds()), func(*generator.Counts) int { return int(time.Since(began).Seconds()) })()
	spent := sub.meter()
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	if us := spent(); !math.IsNaN(us) {
		sub.Put("idle_cpu_percent", 100*us/float64(time.Since(began).Microseconds()))
	}
}
