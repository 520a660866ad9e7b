//go:build linux

package scenario

import (
	"context"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/api"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// Floor asks: what does the kernel charge for the same work?
type Floor struct {
	N        int           `name:"n" short:"n" default:"1000" help:"Connections."`
	Rounds   int           `default:"10" help:"Messages to all of them."`
	Active   int           `default:"100" help:"Connections that talk, each when it has its answer."`
	Duration time.Duration `default:"3s" help:"So long."`
	Size     int           `default:"128" help:"Bytes of a message to all."`

	ServerCPU int `default:"-1" placeholder:"CPU" help:"Bind the floor to this CPU."`
	GenCPU    int `name:"generator-cpu" default:"-1" placeholder:"CPU" help:"Bind the generator to this CPU."`
	report.Output
}

// Run starts the bare loop, has it do all three kinds of work, and writes the report.
func (cmd *Floor) Run(ctx context.Context, std Streams) error {
	sub, err := startFloor(cmd.ServerCPU)
	if err != nil {
		return err
	}
	c := common{
		URL: sub.URL, N: cmd.N, Pid: sub.pids, Concurrency: 100, Timeout: 30 * time.Second,
		ServerCPU: -1, GenCPU: cmd.GenCPU, Output: cmd.Output,
	}
	b := Broadcast{
		Publisher: api.Publisher{Trigger: "http" + strings.TrimPrefix(sub.URL, "ws"), Size: cmd.Size, Late: 250 * time.Millisecond},
		Rounds:    cmd.Rounds,
	}
	e := Echo{talk: talk{Active: min(cmd.Active, cmd.N), Duration: cmd.Duration, Message: "ping"}, Rounds: 1}
	return execute(ctx, "floor", c, std.Out, std.Err, func(s *session, first *subject) error {
		first.Name, first.stop = "floor", sub.stop
		if err := e.check(cmd.N); err != nil {
			return err
		}
		return aim(&b.Publisher, s, first, b.Rounds)
	}, func(ctx context.Context, s *session) error {
		return cmd.measure(ctx, s, &b, &e)
	})
}

// measure opens the connections once and does all three kinds of work on them.
func (cmd *Floor) measure(ctx context.Context, s *session, b *Broadcast, e *Echo) error {
	sub := s.subjects[0]
	if err := (&Connect{}).one(ctx, s, sub); err != nil {
		return err
	}
	if err := b.onOpen(ctx, s); err != nil {
		return err
	}
	return e.onOpen(ctx, s)
}
