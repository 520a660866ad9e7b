package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// message is what can be said of one from the command line; the words are
// those of the API.
type message struct {
	Data string `arg:"" help:"The message: JSON, or - to read it from standard input."`

	ID             string        `help:"Name of the message." placeholder:"ID"`
	TTL            time.Duration `type:"duration" min:"1s" max:"720h" word:"off" default:"off" help:"Do not send it once it is this old."`
	Urgency        string        `type:"choice" of:"very-low,low,normal,high" default:"normal" help:"very-low, low, normal or high."`
	CollapseKey    string        `placeholder:"KEY" help:"Of waiting messages with this key, the newest replaces the others."`
	IdempotencyKey string        `placeholder:"KEY" help:"Within two minutes, deliver it once."`

	apiClient `group:"api" embed:""`
}

type publishCmd struct {
	Topic string `arg:"" help:"The topic."`
	message
	Wait string `type:"choice" of:"none,sent" default:"sent" help:"Answer at once, or when it is sent."`
}

type pushCmd struct {
	message
	User    string        `xor:"to" required:"" placeholder:"NAME" help:"Every device of this user."`
	Conn    string        `xor:"to" required:"" placeholder:"ID" help:"This connection."`
	Wait    string        `type:"choice" of:"none,sent,ack" default:"sent" help:"Answer at once, when it is sent, or when its devices acknowledged."`
	Timeout time.Duration `type:"duration" min:"1ms" max:"10m" default:"10s" help:"With --wait=ack: for this long."`
}

type broadcastCmd struct {
	message
	Rate int    `type:"count" min:"1" max:"1000000000" word:"off" default:"off" help:"Deliveries a second."`
	Wait string `type:"choice" of:"none,sent" default:"sent" help:"Answer at once, or when it is sent."`
}

// Run publishes and prints the receipt.
func (c *publishCmd) Run(std streams) error {
	return c.send(std, "/api/publish", c.Wait, map[string]any{"topic": c.Topic})
}

// Run pushes and prints the receipt.
func (c *pushCmd) Run(std streams) error {
	body := map[string]any{}
	if c.User != "" {
		body["user"] = c.User
	} else {
		body["conn"] = c.Conn
	}
	if c.Wait == "ack" {
		body["timeout_ms"] = c.Timeout.Milliseconds()
	}
	return c.send(std, "/api/push", c.Wait, body)
}

// Run broadcasts and prints the receipt.
func (c *broadcastCmd) Run(std streams) error {
	body := map[string]any{}
	if c.Rate > 0 {
		body["rate"] = c.Rate
	}
	return c.send(std, "/api/broadcast", c.Wait, body)
}

func (m *message) send(std streams, path, wait string, body map[string]any) error {
	data := []byte(m.Data)
	if m.Data == "-" {
		var err error
		if data, err = io.ReadAll(std.in); err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
	}
	if !json.Valid(data) {
		return usagef(`the message is not JSON; a text needs its quotes: '"hello"'`)
	}
	body["data"], body["wait"] = json.RawMessage(data), wait
	for key, value := range map[string]string{
		"id": m.ID, "urgency": m.Urgency, "collapse_key": m.CollapseKey, "idempotency_key": m.IdempotencyKey,
	} {
		if value != "" {
			body[key] = value
		}
	}
	if m.TTL > 0 {
		body["ttl"] = int64(m.TTL / time.Second)
	}
	receipt, err := m.post(path, body)
	if err == nil {
		_, err = fmt.Fprintf(std.out, "%s\n", receipt)
	}
	return err
}

// apiClient is a server's API, as the command line reaches it.
type apiClient struct {
	API string `type:"url" default:"http://127.0.0.1:8081" help:"Address of its API."`
	keyring
}

// post returns the answer to body, or the sentence that refuses it.
func (c *apiClient) post(path string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequest(http.MethodPost, c.API+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if len(c.APIKey) > 0 {
		r.Header.Set("X-API-Key", c.APIKey[0])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err
		}
		return nil, fmt.Errorf("cannot reach the server at %s, see --api: %w", c.API, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("the answer of %s ended early: %w", c.API, err)
	}
	if resp.StatusCode == http.StatusOK {
		return bytes.TrimSpace(answer), nil
	}
	var problem struct{ Detail string }
	if json.Unmarshal(answer, &problem) != nil || problem.Detail == "" {
		return nil, fmt.Errorf("%s answered %s, is it a Tocsin server's API? see --api", c.API, resp.Status)
	}
	return nil, fmt.Errorf("%s (%s)", problem.Detail, resp.Status)
}
