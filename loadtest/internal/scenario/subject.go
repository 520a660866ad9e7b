//go:build linux

package scenario

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

// median returns the middle of values, of an even number the mean of two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// complete returns an error unless n connections were opened and are open.
func (sub *subject) complete(n int) error {
	if c := sub.fleet.Now(); c.Open != n {
		sub.keep(&c)
		return fmt.Errorf("%s: %d of %d connections are open; failed %v, lost %v", sub.Name, c.Open, n, sub.Failures, sub.Lost)
	}
	return nil
}

// quiet waits until the subject has nothing more to do.
func (sub *subject) quiet(ctx context.Context) error {
	for still := 0; still < 2; {
		spent := sub.meter()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if spent() < 2000 { // 2 % of a CPU
			still++
		} else {
			still = 0
		}
	}
	return nil
}
