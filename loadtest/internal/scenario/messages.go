//go:build linux

package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/loadtest/internal/api"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// aim gives a subject its way to publish.
func aim(p *api.Publisher, s *session, sub *subject, rounds int) (err error) {
	if rounds < 1 || rounds > 1<<16 || p.Late <= 0 || p.Wait < 0 {
		return usage.Errorf("--rounds must be 1 to %d, --late more than 0, --wait not negative", 1<<16)
	}
	if err := api.CheckSize(p.Size); err != nil {
		return err
	}
	p.Wait = patience(p.Wait, s.N)
	if p.ByTopic() {
		sub.URL = withTopic(sub.URL, p.Topic)
	}
	sub.publish, err = p.Open(s.AllowRemote)
	return err
}

// messageRun is a number of messages that all connections must have.
type messageRun struct {
	*api.Publisher
	run    string
	rounds int
	seq    int       // of the last message
	all    []fanOuts // by subject
}

// fanOuts is what the messages to one subject added up to.
type fanOuts struct {
	rounds   int
	expected int
	spread   *hdrhistogram.Histogram // publish to last delivery
	seconds  float64                 // all spreads together
	own      time.Duration           // CPU of the generator before the first
}

// beginMessages has the workers expect that many messages.
func beginMessages(ctx context.Context, s *session, p *api.Publisher, rounds int) (*messageRun, error) {
	b := &messageRun{Publisher: p, run: generator.NewRun(), rounds: rounds, all: make([]fanOuts, len(s.subjects))}
	for k, sub := range s.subjects {
		sub.cpu, b.all[k].spread = nil, generator.NewHistogram()
		if err := sub.fleet.Arm(ctx, b.run, rounds, p.Late); err != nil {
			return nil, err
		}
		c, _, err := sub.fresh()
		if err != nil {
			return nil, err
		}
		b.all[k].own = c.CPU
	}
	return b, nil
}

// round publishes the next message to the subjects in turn.
func (b *messageRun) round(ctx context.Context, s *session) error {
	b.seq++
	for k, sub := range s.subjects {
		if err := b.one(ctx, s, sub, &b.all[k]); err != nil {
			return err
		}
	}
	return nil
}

// one publishes one message and waits until everybody has it.
func (b *messageRun) one(ctx context.Context, s *session, sub *subject, all *fanOuts) error {
	before := sub.fleet.Now().Delivered
	defer s.watch(sub, fmt.Sprintf("message %d of %d", b.seq, b.rounds), s.N, func(c *generator.Counts) int { return int(c.Delivered - before) })()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	await, err := sub.fleet.Expect(ctx, b.seq, b.Wait)
	if err != nil {
		return err
	}
	spent := sub.meter()
	sent := machine.Now()
	published := sub.publish(ctx, generator.AppendMessage(nil, b.Size, b.run, b.seq, machine.Now()))
	if published != nil {
		cancel()
	}
	told, err := await(inner)
	if published != nil && ctx.Err() == nil {
		return published
	}
	if err != nil {
		return err
	}
	used := spent()
	if ctx.Err() != nil { // nobody knows what was still to come
		all.expected += told.Got
		return nil
	}
	all.rounds++
	all.expected += told.Expected
	if told.Got > 0 {
		sub.spend(used, uint64(told.Got))
		all.seconds += float64(told.Last-sent) / 1e9
		_ = all.spread.RecordValue(min(told.Last-sent, int64(time.Hour))) // within its bounds by that
	}
	return sub.alive()
}

// conclude notes what the messages added up to.
func (b *messageRun) conclude(s *session) error {
	for k, sub := range s.subjects {
		if _, _, err := sub.count(); err != nil {
			return err
		}
		c, all := &sub.sum, &b.all[k]
		sub.Put("generator_cpu_us", float64((c.CPU-all.own).Microseconds())/float64(max(1, c.Delivered)))
		sub.Put("rounds", float64(all.rounds))
		sub.Put("expected", float64(all.expected))
		sub.Put("delivered", float64(c.Delivered))
		sub.Put("missing", float64(max(0, all.expected-int(c.Delivered))))
		sub.Put("doubled", float64(c.Doubled))
		sub.Put("misordered", float64(c.Misordered))
		sub.Put("late", float64(c.Late))
		sub.PutHist("delivery", sub.sums[generator.HistDelivery])
		sub.PutHist("fanout", all.spread)
		if all.seconds > 0 {
			sub.Put("deliveries_per_s", float64(c.Delivered)/all.seconds)
		}
		sub.putCPU("cpu_us_per_delivery")
	}
	return nil
}
