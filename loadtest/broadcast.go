//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// publisher are the flags that say how a message is published.
type publisher struct {
	API     string `name:"api" default:"http://127.0.0.1:8081" help:"Tocsin's publish API."`
	APIKey  string `name:"api-key" env:"TOCSIN_API_KEY" help:"Its key."`
	Topic   string `default:"loadtest" help:"Publish to this topic; the connections subscribe by ?topics= unless the URL has that already."`
	All     bool   `help:"Broadcast to every connection instead of publishing to a topic."`
	Trigger string `placeholder:"URL" help:"For other servers: POST the payload here to have it sent to every connection."`
	Size    int    `default:"128" help:"Bytes of the payload."`
}

// broadcastCmd asks: one message, how long until the last of N has it?
type broadcastCmd struct {
	common
	publisher
	Rounds int           `default:"10" help:"Messages to publish, each when the last has arrived everywhere."`
	Every  time.Duration `help:"Leave at least so long between two."`
	Wait   time.Duration `default:"30s" help:"What has not come by then is missing."`
	Late   time.Duration `default:"1s" help:"Count deliveries that take longer."`
}

func (cmd *broadcastCmd) Run(ctx context.Context, std streams) error {
	return execute(ctx, "broadcast", cmd.common, std.out, std.err, cmd.prepare, cmd.measure)
}

func (cmd *broadcastCmd) prepare(s *session, sub *subject) error {
	if cmd.Rounds < 1 || cmd.Rounds > 1<<16 || cmd.Late <= 0 || cmd.Wait <= 0 {
		return usagef("--rounds must be 1 to %d, --late and --wait more than 0", 1<<16)
	}
	if cmd.Size < minPayload || cmd.Size > 1<<20 {
		return usagef("--size must be %d to %d bytes", minPayload, 1<<20)
	}
	return cmd.aim(s, sub)
}

// aim gives a subject its way to publish.
func (p *publisher) aim(s *session, sub *subject) error {
	where := p.Trigger
	if where == "" {
		where = strings.TrimSuffix(p.API, "/")
		if p.All {
			where += "/api/broadcast"
		} else {
			where += "/api/publish"
			sub.URL = withTopic(sub.URL, p.Topic)
		}
	}
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return usagef("%s is not an HTTP URL to publish to", where)
	}
	if !isLoopback(u.Hostname()) && !s.AllowRemote {
		return usagef("%s is not on this machine: loadtest only loads loopback addresses unless --allow-remote is given", where)
	}
	client := &http.Client{Timeout: time.Minute + time.Duration(s.N)*time.Millisecond}
	sub.publish = func(ctx context.Context, payload []byte) error {
		return p.post(ctx, client, where, payload)
	}
	return nil
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
	if p.APIKey != "" {
		req.Header.Set("X-API-Key", p.APIKey)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("publish: POST %s: %s: %s", where, resp.Status, bytes.TrimSpace(text[:min(len(text), 300)]))
	}
	return nil
}

// minPayload is what a payload needs: the stamp, in JSON.
const minPayload = 80

// payload makes the message of a round, size bytes of JSON.
func payload(run string, seq, size int) []byte {
	b := appendStamp([]byte(`{"loadtest":"`), run, seq, nanos())
	b = append(b, `","pad":"`...)
	for len(b) < size-2 {
		b = append(b, '.')
	}
	return append(b, `"}`...)
}

func newRun() string { return strconv.FormatUint(rand.Uint64()>>24, 36) }

// fanOuts is what the rounds of one subject added up to.
type fanOuts struct {
	rounds   int
	expected int
	spread   *hdrhistogram.Histogram // publish to last delivery
	seconds  float64                 // all spreads together
	own      time.Duration           // CPU of the generator before the first
}

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
	run := newRun()
	all := make([]fanOuts, len(s.subjects))
	for k, sub := range s.subjects {
		all[k].spread = newHistogram()
		if _, err := sub.fleet.do(ctx, func(int) order {
			return order{Do: doArm, Run: run, Rounds: cmd.Rounds, Late: cmd.Late}
		}); err != nil {
			return err
		}
		c, _, err := sub.fleet.count(true)
		if err != nil {
			return err
		}
		all[k].own = c.SelfC
	}
	err := cmd.rounds(ctx, s, run, all)
	for k, sub := range s.subjects {
		cmd.conclude(s, sub, &all[k])
	}
	return err
}

// rounds publishes to the subjects in turn.
func (cmd *broadcastCmd) rounds(ctx context.Context, s *session, run string, all []fanOuts) error {
	for seq := 1; seq <= cmd.Rounds && ctx.Err() == nil; seq++ {
		began := time.Now()
		for k, sub := range s.subjects {
			if err := cmd.round(ctx, s, sub, run, seq, &all[k]); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(cmd.Every - time.Since(began)):
		}
	}
	return nil
}

// round publishes one message and waits until everybody has it.
func (cmd *broadcastCmd) round(ctx context.Context, s *session, sub *subject, run string, seq int, all *fanOuts) error {
	before := all.expected
	defer s.watch(sub, fmt.Sprintf("message %d of %d", seq, cmd.Rounds), s.N, func(c *counts) int { return int(c.Delivered) - before })()
	type end struct {
		tallies []tally
		err     error
	}
	over := make(chan end, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	spent := sub.meter()
	sent := nanos()
	go func() {
		tallies, err := sub.fleet.do(ctx, func(int) order { return order{Do: doAwait, Seq: seq, Timeout: cmd.Wait} })
		over <- end{tallies, err}
	}()
	err := sub.publish(ctx, payload(run, seq, cmd.Size))
	if err != nil {
		interrupted := ctx.Err() != nil
		cancel()
		<-over
		if interrupted {
			return nil
		}
		return err
	}
	e := <-over
	if e.err != nil {
		return e.err
	}
	used := spent()
	got, expected, last := 0, 0, int64(0)
	for _, t := range e.tallies {
		got, expected, last = got+t.Round.Got, expected+t.Round.Expected, max(last, t.Round.Last)
	}
	all.rounds++
	all.expected += expected
	if got > 0 {
		sub.spend(used, uint64(got))
		all.seconds += float64(last-sent) / 1e9
		_ = all.spread.RecordValue(min(last-sent, int64(time.Hour))) // within its bounds by that
	}
	if ctx.Err() != nil {
		return nil
	}
	return sub.alive()
}

// conclude notes what the rounds added up to.
func (cmd *broadcastCmd) conclude(s *session, sub *subject, all *fanOuts) {
	c, hists, err := sub.fleet.count(false)
	if err != nil {
		s.report.note("%s: %v", sub.Name, err)
		return
	}
	sub.put("generator_cpu_us", float64((c.SelfC-all.own).Microseconds())/float64(max(1, c.Delivered)))
	sub.put("rounds", float64(all.rounds))
	sub.put("expected", float64(all.expected))
	sub.put("delivered", float64(c.Delivered))
	sub.put("missing", float64(max(0, all.expected-int(c.Delivered))))
	sub.put("doubled", float64(c.Doubled))
	sub.put("misordered", float64(c.Misordered))
	sub.put("late", float64(c.Late))
	sub.putHist("delivery", hists[histDelivery])
	sub.putHist("fanout", all.spread)
	if all.seconds > 0 {
		sub.put("deliveries_per_s", float64(c.Delivered)/all.seconds)
	}
	sub.putCPU("cpu_us_per_delivery")
}
