//go:build linux

package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// Herd asks: everyone is dropped at once and comes back: how long does that
// take, and what do those feel who stayed?
type Herd struct {
	common
	bystanders
	Percent float64 `default:"100" help:"How many of the connections are dropped, where the generator does that; never the live ones."`
	Command string  `placeholder:"SHELL" help:"What makes the server drop its clients, say a restart of it. Default: the generator closes the connections."`
	Obey    bool    `negatable:"" default:"true" help:"Wait as the server's goodbye says before coming back."`
}

// bystanders are the flags of those who stay while a herd comes back.
type bystanders struct {
	Live     int           `default:"-1" placeholder:"N" help:"Connections that stay and talk all the time, where the generator does the dropping. Default: 100, or all but one if there are fewer."`
	LiveRate float64       `placeholder:"PER-SECOND" default:"200" help:"Messages a second of theirs."`
	Message  string        `default:"{\"id\":1,\"ping\":{}}" help:"What they send."`
	Patience time.Duration `help:"Who is not back by then stays away. Default: half a minute, and 2 ms a connection."`
}

// Run opens the connections, has them dropped and come back, and writes the report.
func (cmd *Herd) Run(ctx context.Context, std Streams) error {
	return execute(ctx, "herd", cmd.common, std.Out, std.Err, func(*session, *subject) error {
		if cmd.Command != "" && cmd.Floor {
			return usage.Errorf("--command is for the server alone, so it cannot be measured with --floor")
		}
		return cmd.check()
	}, cmd.measure)
}

func (cmd *Herd) check() error {
	if cmd.Live == -1 {
		cmd.Live = min(100, cmd.N-1)
	}
	if cmd.Live < 0 || cmd.Live >= cmd.N || cmd.LiveRate <= 0 || cmd.Patience < 0 {
		return usage.Errorf("--live must be 0 to one less than the connections, --live-rate more than 0, --patience not negative")
	}
	if cmd.Percent <= 0 || cmd.Percent > 100 {
		return usage.Errorf("--percent must be more than 0 and at most 100")
	}
	cmd.Patience = patience(cmd.Patience, cmd.N)
	return nil
}

func (cmd *Herd) measure(ctx context.Context, s *session) error {
	for _, sub := range s.subjects {
		if _, err := s.open(ctx, sub); err != nil {
			return err
		}
		if err := cmd.one(ctx, s, sub); err != nil {
			return err
		}
		sub.PutHist(generator.HistHandshake, sub.sums[generator.HistHandshake])
	}
	return nil
}

// calm is how long the live clients are listened to before the drop.
const calm = 3 * time.Second

func (cmd *Herd) one(ctx context.Context, s *session, sub *subject) error {
	f := sub.fleet
	live := generator.Talk{Active: cmd.Live, Rate: cmd.LiveRate, Message: cmd.Message, Duration: calm}
	if cmd.Live > 0 {
		if err := f.Talk(ctx, live); err != nil {
			return err
		}
	}
	_, hists, err := sub.count()
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	sub.PutHist("before", hists[generator.HistEcho])

	live.Duration = cmd.Patience
	talkCtx, hush := context.WithCancel(ctx)
	talked := make(chan error, 1)
	if cmd.Live > 0 {
		go func() { talked <- f.Talk(talkCtx, live) }()
	} else {
		talked <- nil
	}
	err = cmd.drop(ctx, s, sub)
	hush()
	if err = errors.Join(err, <-talked); err != nil {
		return err
	}
	_, hists, err = sub.count()
	if err != nil {
		return err
	}
	sub.PutHist("meanwhile", hists[generator.HistEcho])
	sub.PutHist("outage", hists[generator.HistOutage])
	return ctx.Err()
}

// drop ends the connections and waits until they are back.
func (cmd *Herd) drop(ctx context.Context, s *session, sub *subject) error {
	stop := s.watch(sub, "come back", s.N, func(c *generator.Counts) int { return c.Open })
	defer stop()
	spent := sub.meter()
	began := machine.Now()
	ran := make(chan error, 1)
	keep := max(cmd.Live, s.N-int(math.Ceil(float64(s.N)*cmd.Percent/100)))
	if cmd.Command != "" {
		keep = 0
		go func() {
			out, err := exec.CommandContext(ctx, "sh", "-c", cmd.Command).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("--command: %w: %s", err, out)
			}
			ran <- err
		}()
	} else {
		ran <- nil
	}
	told, err := sub.fleet.Herd(ctx, generator.Herd{Keep: keep, Drop: cmd.Command == "", Obey: cmd.Obey, Patience: cmd.Patience})
	if err = errors.Join(err, <-ran); err != nil {
		return err
	}
	dropped, back, last := told.Expected, told.Got, max(began, told.Last)
	c := sub.fleet.Now()
	sub.Put("dropped", float64(dropped))
	sub.Put("back", float64(back))
	sub.Put("back_s", float64(last-began)/1e9)
	sub.Put("attempts", float64(c.Attempts))
	sub.Put("goodbyes", float64(c.Goodbyes))
	if used := spent(); back > 0 && !math.IsNaN(used) {
		sub.Put("cpu_us_per_return", used/float64(back))
	}
	if back < dropped && ctx.Err() == nil {
		return fmt.Errorf("%s: %s of %s connections did not come back within %s", sub.Name, report.Thousands(float64(dropped-back)), report.Thousands(float64(dropped)), cmd.Patience)
	}
	return nil
}
