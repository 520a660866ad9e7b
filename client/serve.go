package client

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

const (
	maxQueue  = 256           // events that wait for OnEvent before the socket is not read
	mostQueue = 16 * maxQueue // that wait before a reply
)

// attach makes sock the connection that commands go to.
func (c *Client) attach(sock *socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		sock.abort()
	}
	c.sock, c.welcome = sock, sock.welcome
	maps.Copy(c.topics, sock.welcome.Topics)
	c.queue = append(c.queue, wire.Event{Welcome: &sock.welcome})
	c.changed.Broadcast()
	close(c.up)
}

// detach fails what still waits for a reply on the connection that ended.
func (c *Client) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := ErrLost
	if c.closing {
		err = ErrClosed
	}
	for id, call := range c.calls {
		delete(c.calls, id)
		call.finish(wire.OK{}, err)
	}
	c.sock, c.up = nil, make(chan struct{})
}

// serve reads sock until it ends, and says how it did.
func (c *Client) serve(sock *socket) error {
	defer c.detach()
	c.resume(sock)
	var goodbye wire.Goodbye
	for {
		payload, err := sock.message()
		if err != nil {
			if closed, ok := errors.AsType[*CloseError](err); ok {
				closed.RetryAfter = time.Duration(goodbye.RetryAfterMS) * time.Millisecond
			}
			return err
		}
		e, err := tocsin.ParseEvent(payload)
		if err != nil {
			return sock.fail(wire.CloseProtocolError, err)
		}
		if e.Goodbye != nil {
			goodbye = *e.Goodbye
		}
		if e.OK != nil || e.Error != nil {
			c.answer(e)
		} else {
			c.event(e)
		}
	}
}

// resume asks for the topics that an earlier connection had.
func (c *Client) resume(sock *socket) {
	c.mu.Lock()
	var frames [][]byte
	for _, topic := range slices.Sorted(maps.Keys(c.topics)) {
		if _, ok := sock.welcome.Topics[topic]; !ok {
			after := c.topics[topic]
			frames = append(frames, c.enterLocked(subscribing(topic, &after)))
		}
	}
	c.mu.Unlock()
	for _, frame := range frames {
		if sock.text(frame) != nil {
			return // the reading goroutine is told by the socket
		}
	}
}

// event notes a message or notice and queues it for OnEvent.
func (c *Client) event(e wire.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case e.Message != nil:
		at, ok := c.topics[e.Message.Topic]
		if ok && e.Message.Seq != 0 {
			if e.Message.Seq <= at.Seq {
				return // had before the connection was lost
			}
			c.topics[e.Message.Topic] = wire.Position{Seq: e.Message.Seq, Epoch: at.Epoch}
		}
	case e.Gap != nil:
		if _, ok := c.topics[e.Gap.Topic]; ok {
			c.topics[e.Gap.Topic] = wire.Position{Seq: e.Gap.To, Epoch: e.Gap.Epoch}
		}
	case e.Cancel != nil:
		delete(c.topics, e.Cancel.Topic)
	}
	c.pushLocked(e)
}

// pushLocked queues e for OnEvent and waits while too much is queued, unless
// somebody waits for a reply: that may be OnEvent itself. A reply behind too many
// events is given up with its connection.
func (c *Client) pushLocked(e wire.Event) {
	for len(c.queue) >= maxQueue && len(c.calls) == 0 && !c.closing {
		c.changed.Wait()
	}
	c.queue = append(c.queue, e)
	c.changed.Broadcast()
	if len(c.queue) >= mostQueue && c.sock != nil {
		c.sock.abort()
	}
}

// dispatch calls OnEvent until the client has ended.
func (c *Client) dispatch() {
	defer close(c.done)
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && c.err == nil && !c.closing {
			c.changed.Wait()
		}
		if c.closing || len(c.queue) == 0 {
			c.mu.Unlock()
			<-c.stopped
			return
		}
		e := c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
		c.changed.Broadcast()
		c.mu.Unlock()
		c.opt.OnEvent(c, e)
	}
}
