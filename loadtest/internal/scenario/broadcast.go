//go:build linux

package scenario

import (
	"context"
	"errors"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/api"
)

// Broadcast asks: one message, how long until the last of N has it?
type Broadcast struct {
	common
	api.Publisher
	Rounds int           `default:"10" help:"Messages to publish, each when the last has arrived everywhere."`
	Every  time.Duration `help:"Leave at least so long between two."`
}

// Run opens the connections, publishes, and writes the report.
func (cmd *Broadcast) Run(ctx context.Context, std Streams) error {
	return execute(ctx, "broadcast", cmd.common, std.Out, std.Err, func(s *session, sub *subject) error {
		return aim(&cmd.Publisher, s, sub, cmd.Rounds)
	}, cmd.measure)
}

// measure opens the connections and publishes.
func (cmd *Broadcast) measure(ctx context.Context, s *session) error {
	for _, sub := range s.subjects {
		if _, err := s.open(ctx, sub); err != nil {
			return err
		}
	}
	return cmd.onOpen(ctx, s)
}

// onOpen measures on connections that are open.
func (cmd *Broadcast) onOpen(ctx context.Context, s *session) error {
	b, err := beginMessages(ctx, s, &cmd.Publisher, cmd.Rounds)
	if err != nil {
		return err
	}
	for err == nil && b.seq < cmd.Rounds && ctx.Err() == nil {
		began := time.Now()
		err = b.round(ctx, s)
		select {
		case <-ctx.Done():
		case <-time.After(cmd.Every - time.Since(began)):
		}
	}
	return errors.Join(err, b.conclude(s))
}
