package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// message is what can be said of one from the command line; the words are
// those of the API.
type message struct {
	Data string `arg:"" help:"The message: JSON, or - to read it from standard input."`

	ID             string        `help:"Name of the message." placeholder:"ID"`
	TTL            time.Duration `type:"duration" min:"1s" max:"720h" word:"off" default:"off" help:"Do not send it once it is this old."`
	Urgency        string        `type:"choice" of:"very-low,low,normal,high" placeholder:"WORD" help:"very-low, low, normal or high."`
	CollapseKey    string        `placeholder:"KEY" help:"Of waiting messages with this key, the newest replaces the others."`
	IdempotencyKey string        `placeholder:"KEY" help:"Within two minutes, deliver it once."`

	apiClient `group:"api" embed:""`
}

type publishCmd struct {
	Topic string `arg:"" help:"The topic."`
	message
	Wait string `type:"choice" of:"none,sent" default:"sent" help:"none: answer at once; sent: when it is sent."`
}

// address is whom a command is for.
type address struct {
	User string `xor:"to" placeholder:"NAME" help:"Every device of this user; this or --conn must be given."`
	Conn string `xor:"to" placeholder:"ID" help:"This connection; this or --user must be given."`
}

// body returns the members of a request that say so.
func (a *address) body() (map[string]any, error) {
	switch {
	case a.User != "":
		return map[string]any{"user": a.User}, nil
	case a.Conn != "":
		return map[string]any{"conn": a.Conn}, nil
	}
	return nil, usagef("nobody is named: give --user or --conn")
}

type pushCmd struct {
	message
	address
	Wait    string        `type:"choice" of:"none,sent,ack" default:"sent" help:"none: answer at once; sent: when it is sent; ack: when every device acknowledged."`
	Timeout time.Duration `type:"duration" min:"1ms" max:"10m" default:"10s" help:"With --wait=ack: for this long."`
}

type broadcastCmd struct {
	message
	Rate int    `type:"count" min:"1" max:"1000000000" word:"off" default:"off" help:"Deliveries a second."`
	Wait string `type:"choice" of:"none,sent" default:"sent" help:"none: answer at once; sent: when it is sent."`
}

type disconnectCmd struct {
	address
	Code   int    `type:"count" min:"1000" max:"4999" word:"default" default:"default" help:"Close code, docs/protocol.md lists them. default: 3503, the client stays away."`
	Reason string `placeholder:"TEXT" help:"Told to the client. Default: the words of the code."`

	apiClient `group:"api" embed:""`
}

// Run publishes and prints the receipt.
func (c *publishCmd) Run(std streams) error {
	receipt, err := c.send(std, "/api/publish", c.Wait, map[string]any{"topic": c.Topic})
	return receipt.print(std, err, fmt.Sprintf("nobody is subscribed to %q", c.Topic))
}

// Run pushes and prints the receipt, also that of a message which reached
// nobody in time.
func (c *pushCmd) Run(std streams) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	if c.Wait == "ack" {
		body["timeout_ms"] = c.Timeout.Milliseconds()
	}
	receipt, err := c.send(std, "/api/push", c.Wait, body)
	if err := receipt.print(std, err, ""); err != nil {
		return err
	}
	if c.Wait == "ack" && !slices.ContainsFunc(receipt.Devices, func(d device) bool { return d.Status == "acked" }) {
		return fmt.Errorf("no device acknowledged within %s", c.Timeout)
	}
	return nil
}

// Run broadcasts and prints the receipt.
func (c *broadcastCmd) Run(std streams) error {
	body := map[string]any{}
	if c.Rate > 0 {
		body["rate"] = c.Rate
	}
	receipt, err := c.send(std, "/api/broadcast", c.Wait, body)
	return receipt.print(std, err, "nobody is connected")
}

// Run closes connections and prints how many.
func (c *disconnectCmd) Run(std streams) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	if c.Code != 0 {
		body["code"] = c.Code
	}
	if c.Reason != "" {
		body["reason"] = c.Reason
	}
	receipt, err := c.post("/api/disconnect", body)
	return receipt.print(std, err, "")
}

func (m *message) send(std streams, path, wait string, body map[string]any) (receipt, error) {
	data := []byte(m.Data)
	if m.Data == "-" {
		var err error
		if data, err = io.ReadAll(std.in); err != nil {
			return receipt{}, fmt.Errorf("read standard input: %w", err)
		}
	}
	if !json.Valid(data) {
		return receipt{}, usagef(`the message is not JSON; a text needs its quotes: '"hello"'`)
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
	return m.post(path, body)
}

// apiClient is a server's API, as the command line reaches it.
type apiClient struct {
	API string `type:"url" of:"http,https" default:"http://127.0.0.1:8081" help:"Address of its API."`
	keyring
}

// receipt is what the API says about a request.
type receipt struct {
	text        []byte // as it came
	Subscribers *int
	Devices     []device
}

type device struct{ Status string }

// refusal is an answer of the API that is not 200.
type refusal struct {
	status string // 404 Not Found
	Detail string
}

func (r *refusal) Error() string { return fmt.Sprintf("%s (%s)", r.Detail, r.status) }

// print writes the receipt to standard output, if there is one, and returns
// err. That nobody is there to get a message is worth a note, and no failure,
// if nobody says so.
func (r receipt) print(std streams, err error, nobody string) error {
	if len(r.text) > 0 {
		if _, err := fmt.Fprintf(std.out, "%s\n", r.text); err != nil {
			return err
		}
	}
	if nobody != "" && err == nil && r.Subscribers != nil && *r.Subscribers == 0 {
		_, err = fmt.Fprintf(std.err, "tocsin: %s\n", nobody)
	}
	return err
}

// newReceipt returns the receipt that an answer has, which a refusal may have
// beside the members of a problem, RFC 9457.
func newReceipt(answer []byte) (r receipt) {
	var members map[string]json.RawMessage
	if json.Unmarshal(answer, &members) != nil || json.Unmarshal(answer, &r) != nil {
		return receipt{}
	}
	r.text = bytes.TrimSpace(answer)
	if _, problem := members["detail"]; !problem {
		return r
	}
	if _, ok := members["id"]; !ok {
		return receipt{}
	}
	for _, name := range []string{"type", "title", "status", "detail", "code", "instance"} {
		delete(members, name)
	}
	r.text, _ = json.Marshal(members) // it was JSON
	return r
}

// backend follows no redirect: the key would go along, to whoever is there.
var backend = http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// post returns the answer to body; an error may come with a receipt.
func (c *apiClient) post(path string, body any) (receipt, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return receipt{}, err
	}
	r, err := http.NewRequest(http.MethodPost, c.API+path, bytes.NewReader(text))
	if err != nil {
		return receipt{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	if len(c.APIKey) > 0 {
		r.Header.Set("X-API-Key", c.APIKey[0])
	}
	resp, err := backend.Do(r)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err
		}
		return receipt{}, fmt.Errorf("cannot reach the server at %s, see --api: %w", c.API, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return receipt{}, fmt.Errorf("the answer of %s ended early: %w", c.API, err)
	}
	if resp.StatusCode == http.StatusOK {
		return newReceipt(answer), nil
	}
	if to, err := resp.Location(); err == nil {
		return receipt{}, fmt.Errorf("%s answered %s and points to %s, which is not followed because the key would go along: give the address itself with --api",
			c.API, resp.Status, to.Redacted())
	}
	refused := &refusal{status: resp.Status}
	if json.Unmarshal(answer, refused) != nil || refused.Detail == "" {
		return receipt{}, fmt.Errorf("%s answered %s, is it a Tocsin server's API? see --api", c.API, resp.Status)
	}
	return newReceipt(answer), refused
}
