package client

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tocsin-push/tocsin/wire"
)

// call is a command that has no reply yet.
type call struct {
	verb  wire.Verb
	topic string
	after *wire.Position
	body  any
	done  chan<- result // buffered; nil for the client's own resubscribing
}

type result struct {
	ok  wire.OK
	err error
}

func (c *call) finish(ok wire.OK, err error) {
	if c.done != nil {
		c.done <- result{ok, err}
	}
}

// subscribe is the body of that command.
type subscribe struct {
	Topic string  `json:"topic"`
	After *uint64 `json:"after,omitempty"`
	Epoch string  `json:"epoch,omitempty"`
}

// Subscribe asks for the messages of topic: those to come or, if after is
// given, those behind that position; OK.Recovered then tells whether all of
// them could be had. The client renews the subscription after the last message
// it was given whenever it comes back.
//
// Like every command it waits while there is no connection. It returns a
// [*wire.Error] if the server refuses, [ErrLost] if the connection ended before
// the reply, and ctx's error if that ended: the outcome is then unknown.
func (c *Client) Subscribe(ctx context.Context, topic string, after *wire.Position) (wire.OK, error) {
	return c.do(ctx, &call{verb: wire.Subscribe, topic: topic, after: after})
}

// Unsubscribe ends a subscription.
func (c *Client) Unsubscribe(ctx context.Context, topic string) error {
	_, err := c.do(ctx, &call{verb: wire.Unsubscribe, topic: topic, body: subscribe{Topic: topic}})
	return err
}

// Publish sends m.Data, which is JSON, to m.Topic; m.ID names the message and
// may be empty. OK tells the message's id and place.
func (c *Client) Publish(ctx context.Context, m wire.Message) (wire.OK, error) {
	if err := wire.CheckJSON(m.Data); err != nil {
		return wire.OK{}, fmt.Errorf("client: publish: Data: %w", err)
	}
	return c.do(ctx, &call{verb: wire.Publish, topic: m.Topic, body: struct {
		Topic string          `json:"topic"`
		ID    string          `json:"id,omitempty"`
		Data  json.RawMessage `json:"data"`
	}{m.Topic, m.ID, m.Data}})
}

// Ack acknowledges a message that came with Ack set.
func (c *Client) Ack(ctx context.Context, messageID string) error {
	_, err := c.do(ctx, &call{verb: wire.Ack, body: map[string]string{"id": messageID}})
	return err
}

// Ping asks the server for a sign of life.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.do(ctx, &call{verb: wire.Ping, body: struct{}{}})
	return err
}

// do sends a command and waits for its reply.
func (c *Client) do(ctx context.Context, cmd *call) (wire.OK, error) {
	if cmd.verb <= wire.Publish {
		if err := wire.CheckTopic(cmd.topic); err != nil {
			return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.verb, err)
		}
	}
	done := make(chan result, 1)
	cmd.done = done
	sock, frame, err := c.enter(ctx, cmd)
	if err != nil {
		return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.verb, err)
	}
	// A server that reads nothing holds up the write, and ctx may end before. A
	// failed write ends the connection, and that ends cmd.
	go func() { _ = sock.text(frame) }()
	select {
	case r := <-done:
		if r.err != nil {
			return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.verb, r.err)
		}
		return r.ok, nil
	case <-ctx.Done():
		return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.verb, ctx.Err())
	}
}

// enter waits for a connection and notes that a reply is expected on it.
func (c *Client) enter(ctx context.Context, cmd *call) (*socket, []byte, error) {
	for {
		c.mu.Lock()
		sock, up, err := c.sock, c.up, c.err
		if c.closing {
			err = ErrClosed
		}
		if err == nil && sock != nil {
			defer c.mu.Unlock()
			frame, err := c.enterLocked(cmd)
			return sock, frame, err
		}
		c.mu.Unlock()
		if err != nil {
			return nil, nil, err
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// enterLocked gives the command its id and returns its frame's payload.
func (c *Client) enterLocked(cmd *call) ([]byte, error) {
	if cmd.verb == wire.Subscribe {
		body := subscribe{Topic: cmd.topic}
		if cmd.after != nil {
			body.After, body.Epoch = &cmd.after.Seq, cmd.after.Epoch
		}
		cmd.body = body
	}
	frame, err := json.Marshal(map[string]any{"id": c.lastID + 1, cmd.verb.String(): cmd.body})
	if err != nil {
		return nil, err
	}
	c.lastID++
	c.calls[c.lastID] = cmd
	c.changed.Broadcast()
	return frame, nil
}

// answer matches a reply with its command.
func (c *Client) answer(e wire.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cmd, ok := c.calls[e.ID]
	if !ok {
		return
	}
	delete(c.calls, e.ID)
	if e.Error != nil {
		cmd.finish(wire.OK{}, e.Error)
		if cmd.done == nil {
			delete(c.topics, cmd.topic)
			c.pushLocked(wire.Event{Cancel: &wire.Cancel{Topic: cmd.topic, Reason: e.Error.Error()}})
		}
		return
	}
	switch cmd.verb {
	case wire.Subscribe:
		at := wire.Position{Seq: e.OK.Seq, Epoch: e.OK.Epoch}
		if cmd.after != nil && e.OK.Recovered != nil && *e.OK.Recovered {
			at.Seq = cmd.after.Seq // what is behind it comes now
		}
		c.topics[cmd.topic] = at
	case wire.Unsubscribe:
		delete(c.topics, cmd.topic)
	}
	cmd.finish(*e.OK, nil)
}
