//go:build linux

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/api"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// Push asks: N users are connected; what does a push to one of them cost,
// and how long until it has it?
type Push struct {
	common
	pushing
	Rounds int `default:"1" help:"Measure so often; CPU is the median."`
}

// pushing are the flags that say how users are pushed to.
type pushing struct {
	api.Address
	User       string        `default:"u{n}" help:"User of connection {n}. Connections log in by ?user= (tocsin serve --dev) unless the URL has a user or a token of its own; the user of the URL counts then."`
	Publishers int           `default:"32" help:"Keep-alive HTTP connections that push, each to users of its own and one request at a time; at most one a connection."`
	PushRate   float64       `name:"push-rate" default:"1000" placeholder:"PER-SECOND" help:"Pushes a second of all of them, sent when they are due; 0: each publisher pushes when it has its answer."`
	Batch      int           `placeholder:"K" help:"Send K pushes at once, a line each, by POST /api/batch. Default: one by POST /api/push."`
	Duration   time.Duration `default:"10s" help:"Of one round."`
	Size       int           `default:"128" help:"Bytes of the payload."`
	Wait       time.Duration `help:"What has not come by then after the last receipt is missing. Default: half a minute, and 2 ms a connection."`
}

// Help is shown below the usage of push.
func (Push) Help() string {
	return "Pushes over HTTP to random users. Each payload has a number and a time, so that every push can be followed. " +
		"Missing: its receipt says written or queued, and it does not come. Doubled: it comes twice. " +
		"Out of order: it comes behind a later one of its user. Foreign: it comes to another user. " +
		"False: it was refused or its receipt says dropped, and it comes. " +
		"With a rate, times count from when a push was due, so the delay of a server that falls behind counts in full."
}

// Run connects the users, pushes to them, and writes the report.
func (cmd *Push) Run(ctx context.Context, std Streams) error {
	return execute(ctx, "push", cmd.common, std.Out, std.Err, func(s *session, sub *subject) error {
		if cmd.Floor {
			return usage.Errorf("push has no --floor: the bare loop has no users")
		}
		if cmd.Rounds < 1 {
			return usage.Errorf("--rounds must be at least 1")
		}
		return cmd.aim(s, sub)
	}, func(ctx context.Context, s *session) error {
		sub := s.subjects[0]
		if _, err := s.open(ctx, sub); err != nil {
			return err
		}
		return cmd.onOpen(ctx, s, sub)
	})
}

// aim checks the flags and has every connection log in as its own user.
func (p *pushing) aim(s *session, sub *subject) error {
	switch {
	case p.Publishers < 1 || p.PushRate < 0 || p.Batch < 0 || p.Duration <= 0 || p.Wait < 0:
		return usage.Errorf("--publishers must be at least 1, --duration more than 0, --push-rate, --batch and --wait not negative")
	case p.PushRate > 0 && p.PushRate*p.Duration.Seconds() > generator.MaxPushes:
		return usage.Errorf("--push-rate and --duration make more than %s pushes", report.Thousands(generator.MaxPushes))
	}
	if err := api.CheckSize(p.Size); err != nil {
		return err
	}
	p.Wait = patience(p.Wait, s.N)
	p.Publishers = min(p.Publishers, s.N)
	sub.URL, p.User = withUser(sub.URL, p.User)
	if !strings.Contains(p.User, "{n}") {
		return usage.Errorf("the user %q is the same on every connection: it needs {n}, the number of the connection", p.User)
	}
	_, err := p.to(s.AllowRemote)
	return err
}

// to returns where pushes are posted.
func (p *pushing) to(remote bool) (*url.URL, error) {
	if p.Batch > 0 {
		return p.Endpoint("/api/batch", remote)
	}
	return p.Endpoint("/api/push", remote)
}

// onOpen pushes to connections that are open.
func (cmd *Push) onOpen(ctx context.Context, s *session, sub *subject) error {
	posters, err := cmd.connect(ctx, s)
	defer func() {
		for _, to := range posters {
			to.Close()
		}
	}()
	if err != nil {
		return err
	}
	sub.cpu = nil
	before, _, err := sub.fresh()
	if err != nil {
		return err
	}
	all := &pushes{Pushed: api.NewPushed(), own: before.CPU + machine.OwnCPU()}
	for r := 0; r < cmd.Rounds && err == nil && ctx.Err() == nil; r++ {
		err = cmd.round(ctx, s, sub, r, posters, all)
	}
	return errors.Join(err, all.conclude(s, sub))
}

// connect opens the connections of the publishers.
func (p *pushing) connect(ctx context.Context, s *session) (posters []*api.Poster, err error) {
	to, err := p.to(s.AllowRemote)
	if err != nil {
		return nil, err
	}
	format := "application/json"
	if p.Batch > 0 {
		format = "application/x-ndjson"
	}
	for range p.Publishers {
		one, err := api.NewPoster(ctx, to, p.APIKey, format, s.Insecure)
		if err != nil {
			return posters, fmt.Errorf("the API at %s cannot be reached, see --api: %w", to.Host, err)
		}
		posters = append(posters, one)
	}
	return posters, nil
}

// round pushes for the duration and waits for what was promised.
func (cmd *Push) round(ctx context.Context, s *session, sub *subject, r int, posters []*api.Poster, all *pushes) error {
	run := generator.NewRun()
	v, err := api.NewVolley(&api.Config{
		Run: run, User: cmd.User, Users: s.N, Batch: cmd.Batch, Size: cmd.Size, Rate: cmd.PushRate, Duration: cmd.Duration,
	})
	if err != nil {
		return err
	}
	if err := sub.fleet.ExpectPushes(ctx, run); err != nil {
		return err
	}
	before := sub.fleet.Now().Delivered
	defer s.watch(sub, fmt.Sprintf("push, round %d of %d", r+1, cmd.Rounds), v.Pushes(), func(c *generator.Counts) int { return int(c.Delivered - before) })()
	spent := sub.meter()
	pushed, fates := v.Fly(ctx, posters)
	err = sub.await(ctx, fates, cmd.Wait)
	sub.spend(spent(), uint64(pushed.Sent))
	if err != nil {
		return err
	}
	time.Sleep(lull)
	f, err := sub.compare(fates)
	if err != nil {
		return err
	}
	all.Add(pushed)
	all.found.Promised += f.Promised
	all.found.Missing += f.Missing
	all.found.Denied += f.Denied
	return sub.alive()
}

// lull is how long a round waits for what must not come.
const lull = 250 * time.Millisecond

// pushes are all rounds together.
type pushes struct {
	*api.Pushed
	found api.Found
	own   time.Duration // CPU time that the generator had used before
}

// compare holds the fates of the pushes against what came.
func (sub *subject) compare(fates api.Fates) (api.Found, error) {
	arrived, err := sub.fleet.Came()
	if err != nil {
		return api.Found{}, err
	}
	return fates.Compare(arrived.Has), nil
}

// await waits until everything that was promised has come; after an
// interruption, for a second.
func (sub *subject) await(ctx context.Context, fates api.Fates, limit time.Duration) error {
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			limit = min(limit, time.Second)
		}
		f, err := sub.compare(fates)
		if err != nil || f.Missing == 0 || time.Since(began) > limit || sub.fleet.Now().Open == 0 {
			return err
		}
	}
}

// conclude notes what the rounds added up to.
func (all *pushes) conclude(s *session, sub *subject) error {
	if _, _, err := sub.count(); err != nil {
		return err
	}
	c := &sub.sum
	sub.Put("pushes", float64(all.Sent))
	for key, n := range map[string]int{
		"receipt_written": all.Written, "receipt_queued": all.Queued, "receipt_dropped": all.Dropped, "receipt_failed": all.Failed,
		"receipt_false": all.Untrue + all.found.Denied, "expected": all.found.Promised, "missing": all.found.Missing,
	} {
		sub.Put(key, float64(n))
	}
	for key, n := range map[string]uint64{"delivered": c.Delivered, "doubled": c.Doubled, "misordered": c.Misordered, "foreign": c.Foreign} {
		sub.Put(key, float64(n))
	}
	sub.Refused = generator.AddReasons(sub.Refused, all.Reasons)
	sub.PutHist("http", all.HTTP)
	sub.PutHist(generator.HistPush, sub.sums[generator.HistPush])
	sub.putCPU("cpu_us_per_push")
	used := c.CPU + machine.OwnCPU() - all.own // by the workers, and by the publishers here
	sub.Put("generator_cpu_us", float64(used.Microseconds())/float64(max(1, all.Sent)))
	if all.Seconds > 0 {
		sub.Put("pushes_per_s", float64(all.Sent-all.Failed)/all.Seconds)
		c.Busy = max(c.Busy, used.Seconds()/all.Seconds/s.generatorCPUs())
	}
	if late := all.Lag; late.TotalCount() > 0 {
		sub.sums[generator.HistLag] = late
	}
	if share := float64(all.Held) / float64(max(1, all.Posted)); share > 0.01 {
		s.report.Note("%s: %.0f %% of the requests were due while their connection still waited for an answer; more --publishers send them when they are due", sub.Name, 100*share)
	}
	return nil
}
