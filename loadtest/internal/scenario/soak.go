//go:build linux

package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/api"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// Soak asks: does a server hold all of this at once? One set of connections
// goes through everything.
type Soak struct {
	common
	api.Publisher
	bystanders
	Hold    time.Duration `default:"1m" help:"Keep the connections open so long before memory is read; more than the server's ping interval, so that its heartbeats are seen."`
	Rounds  int           `default:"3" help:"Messages to all before the herd; one more comes after it."`
	Percent float64       `default:"10" help:"How many are dropped at once and come back; the others stay, and may not be lost."`
}

// Help is shown below the usage of soak.
func (Soak) Help() string {
	return "Nothing ends because it takes long: --wait and --patience grow with the connections. " +
		"Exit status 0 means that every connection was opened and none lost, that every message came once and in order everywhere, " +
		"and that all of the herd are back."
}

// Run goes through all stages, and writes the report.
func (cmd *Soak) Run(ctx context.Context, std Streams) error {
	herd := &Herd{common: cmd.common, bystanders: cmd.bystanders, Percent: cmd.Percent, Obey: true}
	return execute(ctx, "soak", cmd.common, std.Out, std.Err, func(s *session, sub *subject) error {
		if cmd.Floor {
			return usage.Errorf("soak has no --floor: the other scenarios have")
		}
		return errors.Join(herd.check(), aim(&cmd.Publisher, s, sub, cmd.Rounds))
	}, func(ctx context.Context, s *session) error {
		return cmd.measure(ctx, s, herd)
	})
}

func (cmd *Soak) measure(ctx context.Context, s *session, herd *Herd) error {
	sub := s.subjects[0]
	var empty footprint
	if err := cmd.stage(ctx, s, "connect", func() (err error) {
		empty, err = s.connect(ctx, sub)
		return err
	}); err != nil {
		return err
	}
	before := sub.pings
	if err := cmd.stage(ctx, s, "hold", func() error { return s.settle(ctx, sub, empty, cmd.Hold) }); err != nil {
		return err
	}
	if sub.pings == before {
		s.report.Note("no heartbeat came in the hold: make --hold longer than the server's ping interval")
	}
	b, err := beginMessages(ctx, s, &cmd.Publisher, cmd.Rounds+1)
	if err != nil {
		return err
	}
	message := func() error {
		return cmd.stage(ctx, s, fmt.Sprintf("message %d of %d", b.seq+1, b.rounds), func() error { return b.round(ctx, s) })
	}
	for err == nil && b.seq < cmd.Rounds {
		err = message()
	}
	if err == nil {
		err = cmd.stage(ctx, s, "herd", func() error { return herd.one(ctx, s, sub) })
	}
	if err == nil {
		err = message()
	}
	return errors.Join(err, b.conclude(s))
}

// stage does one step, and notes what became of the connections meanwhile.
func (cmd *Soak) stage(ctx context.Context, s *session, name string, do func() error) error {
	sub, began := s.subjects[0], time.Now()
	lost, pings, delivered := generator.SumReasons(sub.Lost), sub.pings, sub.sum.Delivered
	err := errors.Join(do(), ctx.Err())
	if sub.fleet == nil {
		return err
	}
	took := time.Since(began)
	c, _, countErr := sub.count()
	if countErr != nil {
		return errors.Join(err, countErr)
	}
	s.report.Stages = append(s.report.Stages, report.Stage{
		Name: name, Seconds: took.Seconds(), Open: c.Open, Lost: generator.SumReasons(sub.Lost) - lost,
		Pings: sub.pings - pings, Delivered: sub.sum.Delivered - delivered,
	})
	cmd.pause(ctx, s)
	return err
}

// pause notes the longest pause of a Go server's garbage collector. Its metrics
// know the last 256 collections, so that they are read after every stage.
func (cmd *Soak) pause(ctx context.Context, s *session) {
	if cmd.Trigger != "" || ctx.Err() != nil {
		return
	}
	const name = `go_gc_duration_seconds{quantile="1"}`
	v, err := cmd.Metric(ctx, name)
	if err != nil {
		s.report.Note("the server's GC pauses are not told: %v", err)
		return
	}
	values := s.subjects[0].Values
	values["gc_pause_max_ms"] = max(values["gc_pause_max_ms"], 1000*v)
	s.report.Note("the longest GC pause is the largest %s of the server's /metrics, read after every stage", name)
}
