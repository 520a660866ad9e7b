//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/client"
	"github.com/tocsin-push/tocsin/wire"
)

// events are what a client was given.
type events struct {
	t   *testing.T
	all chan wire.Event
}

func (e events) next() wire.Event {
	e.t.Helper()
	select {
	case got := <-e.all:
		return got
	case <-time.After(patience):
		e.t.Fatalf("no event in %s", patience)
		panic("not reached")
	}
}

func (e events) want(topic, data string) {
	e.t.Helper()
	if got := e.next(); got.Message == nil || got.Message.Topic != topic || string(got.Message.Data) != data {
		e.t.Fatalf("got %+v %+v, want %s on %s", got, got.Message, data, topic)
	}
}

// The Go client against the real server: the other half of its own tests,
// which decide every byte of a fake one.
func TestGoClient(t *testing.T) {
	s := serve(t, "--drain", "1s")
	given := events{t, make(chan wire.Event, 1024)}
	c, err := client.Dial(t.Context(), s.ws("?user=ann&topics=news"), client.Options{
		OnEvent: func(c *client.Client, e wire.Event) {
			if e.Message != nil && e.Message.Ack {
				if err := c.Ack(t.Context(), e.Message.ID); err != nil {
					t.Error(err)
				}
			}
			given.all <- e
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if e := given.next(); e.Welcome == nil || e.Welcome.User != "ann" {
		t.Errorf("first event %+v", e)
	}
	if _, err := c.Subscribe(t.Context(), "sport", nil); err != nil {
		t.Fatal(err)
	}
	s.push("publish", `{"topic":"news","data":1}`, 1)
	given.want("news", "1")
	s.push("publish", `{"topic":"sport","data":2}`, 1)
	given.want("sport", "2")
	s.push("push", `{"user":"ann","data":3,"wait":"ack"}`, 1)
	given.want(wire.UserTopic, "3")

	s.terminate()
	if e := given.next(); e.Goodbye == nil || e.Goodbye.Code != wire.CloseShutdown {
		t.Errorf("got %+v, want goodbye", e)
	}
	s.wantExit()
	s.start()
	if e := given.next(); e.Welcome == nil {
		t.Errorf("got %+v, want the second welcome", e)
	}
	// The new server numbers anew: both topics were resumed, with a gap told.
	gaps := map[string]string{}
	for range 2 {
		if e := given.next(); e.Gap != nil {
			gaps[e.Gap.Topic] = e.Gap.Reason
		}
	}
	if gaps["news"] != "epoch" || gaps["sport"] != "epoch" {
		t.Errorf("gaps %v, want one of each topic because of the epoch", gaps)
	}
	s.push("publish", `{"topic":"news","data":4}`, 1)
	given.want("news", "4")
	s.push("publish", `{"topic":"sport","data":5}`, 1)
	given.want("sport", "5")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
