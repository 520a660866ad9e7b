//go:build linux

package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// Echo asks: K of N talk at a fixed rate, the rest is idle: how long does
// an answer take?
type Echo struct {
	common
	talk
	Rounds int `default:"1" help:"Measure so often; server and floor take turns, and CPU is the median."`
}

// talk are the flags of the connections that talk.
type talk struct {
	Active      int           `placeholder:"N" help:"Connections that talk. Default: 100, or all if there are fewer."`
	MessageRate float64       `name:"message-rate" placeholder:"PER-SECOND" default:"1000" help:"Messages a second of all of them, sent when they are due whatever the server does; 0: each connection sends when it has its answer."`
	Duration    time.Duration `default:"10s" help:"Of one round."`
	Message     string        `default:"{\"id\":1,\"ping\":{}}" help:"What is sent: a command that Tocsin answers; an echo server answers anything."`
}

func (t *talk) check(conns int) error {
	if t.Active == 0 {
		t.Active = min(100, conns)
	}
	switch {
	case t.Active < 1 || t.Active > conns:
		return usage.Errorf("--active must be 1 to the number of connections, %d", conns)
	case t.MessageRate < 0 || t.Duration <= 0:
		return usage.Errorf("--message-rate must not be negative, --duration more than 0")
	case len(t.Message) > 60000:
		return usage.Errorf("--message must be at most 60,000 bytes")
	}
	return nil
}

// Run opens the connections, has some talk, and writes the report.
func (cmd *Echo) Run(ctx context.Context, std Streams) error {
	return execute(ctx, "echo", cmd.common, std.Out, std.Err, func(*session, *subject) error {
		if cmd.Rounds < 1 {
			return usage.Errorf("--rounds must be at least 1")
		}
		return cmd.check(cmd.N)
	}, cmd.measure)
}

func (cmd *Echo) measure(ctx context.Context, s *session) error {
	for _, sub := range s.subjects {
		if _, err := s.open(ctx, sub); err != nil {
			return err
		}
	}
	return cmd.onOpen(ctx, s)
}

// onOpen measures on connections that are open.
func (cmd *Echo) onOpen(ctx context.Context, s *session) error {
	seconds := make([]float64, len(s.subjects))
	for _, sub := range s.subjects {
		sub.cpu = nil
		if _, _, err := sub.fresh(); err != nil {
			return err
		}
	}
	var err error
	for r := 0; r < cmd.Rounds && err == nil && ctx.Err() == nil; r++ {
		for k, sub := range s.subjects {
			began := time.Now()
			if err = cmd.round(ctx, s, sub, r); err != nil {
				break
			}
			seconds[k] += min(time.Since(began), cmd.Duration).Seconds()
		}
	}
	for k, sub := range s.subjects {
		c, hists, cErr := sub.count()
		if cErr != nil {
			return cErr
		}
		sub.Put("active", float64(cmd.Active))
		sub.Put("sent", float64(c.Sent))
		sub.Put("replies", float64(c.Replies))
		sub.Put("unanswered", float64(c.Sent-c.Replies))
		if seconds[k] > 0 {
			sub.Put("messages_per_s", float64(c.Replies)/seconds[k])
		}
		sub.PutHist("echo", hists[generator.HistEcho])
		sub.putCPU("cpu_us_per_message")
	}
	return err
}

// round lets the connections of one subject talk once.
func (cmd *Echo) round(ctx context.Context, s *session, sub *subject, r int) error {
	before := sub.fleet.Now().Replies
	want := -1
	if cmd.MessageRate > 0 {
		want = int(cmd.MessageRate * cmd.Duration.Seconds())
	}
	defer s.watch(sub, fmt.Sprintf("talk, round %d of %d", r+1, cmd.Rounds), want, func(c *generator.Counts) int { return int(c.Replies - before) })()
	spent := sub.meter()
	if err := sub.fleet.Talk(ctx, cmd.said()); err != nil {
		return err
	}
	sub.spend(spent(), sub.fleet.Now().Replies-before)
	if ctx.Err() != nil {
		return nil
	}
	return sub.alive()
}

// said is what the generator has them say.
func (t *talk) said() generator.Talk {
	return generator.Talk{Active: t.Active, Rate: t.MessageRate, Message: t.Message, Duration: t.Duration}
}
