//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// api are the flags that say where Tocsin is asked.
type api struct {
	API    string `name:"api" default:"http://127.0.0.1:8081" help:"Tocsin's publish API."`
	APIKey string `name:"api-key" env:"TOCSIN_API_KEY" placeholder:"KEY" help:"Its key."`
}

// at returns the URL of a path of the API.
func (a *api) at(path string) string { return strings.TrimSuffix(a.API, "/") + path }

// publisher are the flags that say how a message is published.
type publisher struct {
	api
	Topic   string `default:"loadtest" help:"Publish to this topic; the connections subscribe by ?topics= unless the URL has that already."`
	All     bool   `help:"Broadcast to every connection instead of publishing to a topic."`
	Trigger string `placeholder:"URL" help:"For other servers: POST the payload here to have it sent to every connection."`
	Size    int    `default:"128" help:"Bytes of the payload."`

	Wait time.Duration `help:"What has not come by then is missing. Default: half a minute, and 2 ms a connection."`
	Late time.Duration `default:"1s" help:"Count deliveries that take longer."`
}

// broadcastCmd asks: one message, how long until the last of N has it?
type broadcastCmd struct {
	common
	publisher
	Rounds int           `default:"10" help:"Messages to publish, each when the last has arrived everywhere."`
	Every  time.Duration `help:"Leave at least so long between two."`
}

func (cmd *broadcastCmd) Run(ctx context.Context, std streams) error {
	return execute(ctx, "broadcast", cmd.common, std.out, std.err, func(s *session, sub *subject) error {
		return cmd.aim(s, sub, cmd.Rounds)
	}, cmd.measure)
}

// patience is how long something may take on n connections that only a limit
// ends: long enough for a machine that is emulated.
func patience(given time.Duration, n int) time.Duration {
	return cmp.Or(given, 30*time.Second+time.Duration(n)*2*time.Millisecond)
}

// aim gives a subject its way to publish.
func (p *publisher) aim(s *session, sub *subject, rounds int) error {
	if rounds < 1 || rounds > 1<<16 || p.Late <= 0 || p.Wait < 0 {
		return usage.Errorf("--rounds must be 1 to %d, --late more than 0, --wait not negative", 1<<16)
	}
	if err := checkSize(p.Size); err != nil {
		return err
	}
	p.Wait = patience(p.Wait, s.N)
	where := p.Trigger
	if where == "" {
		if p.All {
			where = p.at("/api/broadcast")
		} else {
			where = p.at("/api/publish")
			sub.URL = withTopic(sub.URL, p.Topic)
		}
	}
	if _, err := postTo(where, s.AllowRemote); err != nil {
		return err
	}
	client := &http.Client{Timeout: time.Minute + p.Wait}
	sub.publish = func(ctx context.Context, payload []byte) error {
		return p.post(ctx, client, where, payload)
	}
	return nil
}

// postTo reads a URL to publish to. Only loopback addresses are allowed unless
// remote is set.
func postTo(where string, remote bool) (*url.URL, error) {
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, usage.Errorf("%s is not an HTTP URL to publish to", where)
	}
	if !isLoopback(u.Hostname()) && !remote {
		return nil, usage.Errorf("%s is not on this machine: loadtest only loads loopback addresses unless --allow-remote is given", where)
	}
	return u, nil
}

func (p *publisher) post(ctx context.Context, client *http.Client, where string, payload []byte) error {
	body := payload
	if p.Trigger == "" {
		m := map[string]any{"data": json.RawMessage(payload)}
		if !p.All {
			m["topic"] = p.Topic
		}
		var err error
		if body, err = json.Marshal(m); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if _, err := p.ask(client, req); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// ask sends a request with the key, and returns the body of an answer that is
// not an error.
func (p *publisher) ask(client *http.Client, req *http.Request) ([]byte, error) {
	if p.APIKey != "" {
		req.Header.Set("X-API-Key", p.APIKey)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", req.Method, req.URL, resp.Status, bytes.TrimSpace(text[:min(len(text), 300)]))
	}
	return text, err
}

// metric asks tocsin's /metrics for one figure, named as a line there begins.
func (p *publisher) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.at("/metrics"), nil)
	if err != nil {
		return 0, err
	}
	req.Close = true // so that none of ours is among what is measured
	text, err := p.ask(&http.Client{Timeout: time.Minute + p.Wait}, req)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if v, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			return strconv.ParseFloat(string(bytes.TrimSpace(v)), 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", req.URL, name)
}

func checkSize(payload int) error {
	if payload < generator.MinPayload || payload > 1<<20 {
		return usage.Errorf("--size must be %d to %d bytes", generator.MinPayload, 1<<20)
	}
	return nil
}

// measure opens the connections and publishes.
func (cmd *broadcastCmd) measure(ctx context.Context, s *session) error {
	for _, sub := range s.subjects {
		if _, err := s.open(ctx, sub); err != nil {
			return err
		}
	}
	return cmd.onOpen(ctx, s)
}

// onOpen measures on connections that are open.
func (cmd *broadcastCmd) onOpen(ctx context.Context, s *session) error {
	b, err := cmd.begin(ctx, s, cmd.Rounds)
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

// broadcast is a run of messages that all connections must have.
type broadcast struct {
	*publisher
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

// begin has the workers expect that many messages.
func (p *publisher) begin(ctx context.Context, s *session, rounds int) (*broadcast, error) {
	b := &broadcast{publisher: p, run: generator.NewRun(), rounds: rounds, all: make([]fanOuts, len(s.subjects))}
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
func (b *broadcast) round(ctx context.Context, s *session) error {
	b.seq++
	for k, sub := range s.subjects {
		if err := b.one(ctx, s, sub, &b.all[k]); err != nil {
			return err
		}
	}
	return nil
}

// one publishes one message and waits until everybody has it.
func (b *broadcast) one(ctx context.Context, s *session, sub *subject, all *fanOuts) error {
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
	published := sub.publish(ctx, generator.AppendPayload(nil, b.Size, b.run, b.seq, machine.Now()))
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
func (b *broadcast) conclude(s *session) error {
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
