//go:build linux

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Publisher are the flags that say how a message to all is published.
type Publisher struct {
	Address
	Topic   string `default:"loadtest" help:"Publish to this topic; the connections subscribe by ?topics= unless the URL has that already."`
	All     bool   `help:"Broadcast to every connection instead of publishing to a topic."`
	Trigger string `placeholder:"URL" help:"For other servers: POST the payload here to have it sent to every connection."`
	Size    int    `default:"128" help:"Bytes of the payload."`

	Wait time.Duration `help:"What has not come by then is missing. Default: half a minute, and 2 ms a connection."`
	Late time.Duration `default:"1s" help:"Count deliveries that take longer."`
}

// ByTopic says that only those who subscribe to the topic have a message.
func (p *Publisher) ByTopic() bool { return p.Trigger == "" && !p.All }

// Open returns a function that publishes a payload and waits for the answer, up
// to a minute longer than Wait; any goroutine may call it. Only loopback
// addresses are allowed unless remote is set; an error of Open is a
// [usage.Error].
func (p *Publisher) Open(remote bool) (publish func(ctx context.Context, payload []byte) error, err error) {
	where := p.Trigger
	switch {
	case where != "":
	case p.All:
		where = p.at("/api/broadcast")
	default:
		where = p.at("/api/publish")
	}
	if _, err := postTo(where, remote); err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: time.Minute + p.Wait}
	return func(ctx context.Context, payload []byte) error {
		return p.post(ctx, client, where, payload)
	}, nil
}

// post publishes one payload.
func (p *Publisher) post(ctx context.Context, client *http.Client, where string, payload []byte) error {
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

// Metric asks tocsin's /metrics for one figure, named as a line there begins. An
// answer without it is an error.
func (p *Publisher) Metric(ctx context.Context, name string) (float64, error) {
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
