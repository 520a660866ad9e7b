package client

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// call is a command that has no reply yet.
type call struct {
	wire.Command
	done    chan<- result // buffered; nil for the client's own resubscribing
	attempt int           // of that, on this connection, from 0
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

// subscribing is the command to subscribe to topic, after that position if it is
// not nil.
func subscribing(topic string, after *wire.Position) *call {
	cmd := wire.Command{Verb: wire.Subscribe, Topic: []byte(topic)}
	if after != nil {
		cmd.HasAfter, cmd.After, cmd.Epoch = true, after.Seq, []byte(after.Epoch)
	}
	return &call{Command: cmd}
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
	return c.do(ctx, subscribing(topic, after))
}

// Unsubscribe ends a subscription.
func (c *Client) Unsubscribe(ctx context.Context, topic string) error {
	_, err := c.do(ctx, &call{Command: wire.Command{Verb: wire.Unsubscribe, Topic: []byte(topic)}})
	return err
}

// Publish sends m.Data, which is JSON, to m.Topic; m.ID names the message and
// may be empty. OK tells the message's id and place.
func (c *Client) Publish(ctx context.Context, m wire.Message) (wire.OK, error) {
	if err := wire.CheckJSON(m.Data); err != nil {
		return wire.OK{}, fmt.Errorf("client: publish: Data: %w", err)
	}
	return c.do(ctx, &call{Command: wire.Command{
		Verb: wire.Publish, Topic: []byte(m.Topic), MessageID: []byte(m.ID), Data: m.Data,
	}})
}

// Ack acknowledges a message that came with Ack set.
func (c *Client) Ack(ctx context.Context, messageID string) error {
	_, err := c.do(ctx, &call{Command: wire.Command{Verb: wire.Ack, MessageID: []byte(messageID)}})
	return err
}

// Ping asks the server for a sign of life.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.do(ctx, &call{Command: wire.Command{Verb: wire.Ping}})
	return err
}

// do sends a command and waits for its reply.
func (c *Client) do(ctx context.Context, cmd *call) (wire.OK, error) {
	if cmd.Verb <= wire.Publish {
		if err := wire.CheckTopic(cmd.Topic); err != nil {
			return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.Verb, err)
		}
	}
	done := make(chan result, 1)
	cmd.done = done
	sock, frame, err := c.enter(ctx, cmd)
	if err != nil {
		return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.Verb, err)
	}
	// A server that reads nothing holds up the write, and ctx may end before. A
	// failed write ends the connection, and that ends cmd.
	go func() { _ = sock.text(frame) }()
	select {
	case r := <-done:
		if r.err != nil {
			return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.Verb, r.err)
		}
		return r.ok, nil
	case <-ctx.Done():
		return wire.OK{}, fmt.Errorf("client: %s: %w", cmd.Verb, ctx.Err())
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
			return sock, c.enterLocked(cmd), nil
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
func (c *Client) enterLocked(cmd *call) []byte {
	c.lastID++
	cmd.ID = strconv.AppendUint(nil, c.lastID, 10)
	c.calls[c.lastID] = cmd
	c.changed.Broadcast()
	return tocsin.AppendCommand(nil, cmd.Command)
}

// answer matches a reply with its command.
func (c *Client) answer(e wire.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cmd, ok := c.calls[e.ID]
	if !ok {
		if e.OK != nil && e.OK.Topic != "" && e.ID == 0 { // the server subscribed us
			c.topics[e.OK.Topic] = wire.Position{Seq: e.OK.Seq, Epoch: e.OK.Epoch}
			c.pushLocked(e)
		}
		return
	}
	delete(c.calls, e.ID)
	topic := string(cmd.Topic)
	if e.Error != nil {
		switch {
		case cmd.done != nil:
			cmd.finish(wire.OK{}, e.Error)
		case e.Error.Code == wire.Internal:
			c.tryAgainLocked(cmd)
		default:
			delete(c.topics, topic)
			c.pushLocked(wire.Event{Cancel: &wire.Cancel{Topic: topic, Reason: e.Error.Error()}})
		}
		return
	}
	switch cmd.Verb {
	case wire.Subscribe:
		at := wire.Position{Seq: e.OK.Seq, Epoch: e.OK.Epoch}
		if cmd.HasAfter && e.OK.Recovered != nil && *e.OK.Recovered {
			at.Seq = cmd.After // what is behind it comes now
		}
		c.topics[topic] = at
	case wire.Unsubscribe:
		delete(c.topics, topic)
	}
	cmd.finish(*e.OK, nil)
}

// tryAgainLocked has a resubscribing repeated that the server cannot do now, with
// the delays of connecting. If the topic is gone by then, or where it stands has
// changed, somebody else has seen to it.
func (c *Client) tryAgainLocked(cmd *call) {
	sock, topic := c.sock, string(cmd.Topic)
	at, ok := c.topics[topic]
	if !ok {
		return
	}
	time.AfterFunc(c.delay(nil, cmd.attempt), func() {
		c.mu.Lock()
		now, ok := c.topics[topic]
		if c.sock != sock || !ok || now != at {
			c.mu.Unlock()
			return
		}
		again := subscribing(topic, &at)
		again.attempt = cmd.attempt + 1
		frame := c.enterLocked(again)
		c.mu.Unlock()
		_ = sock.text(frame) // a failed write ends the connection
	})
}
