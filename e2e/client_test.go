//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/client"
	"github.com/tocsin-push/tocsin/wire"
)

// The Go client against the real server: the other half of its own tests,
// which decide every byte of a fake one.
func TestGoClient(t *testing.T) {
	s := serve(t, "--drain", "1s")
	events := make(chan wire.Event, 1024)
	next := func() wire.Event {
		t.Helper()
		select {
		case e := <-events:
			return e
		case <-time.After(patience):
			t.Fatalf("no event in %s", patience)
			panic("not reached")
		}
	}
	want := func(topic, data string) {
		t.Helper()
		if e := next(); e.Message == nil || e.Message.Topic != topic || string(e.Message.Data) != data {
			t.Fatalf("got %+v %+v, want %s on %s", e, e.Message, data, topic)
		}
	}
	c, err := client.Dial(t.Context(), s.ws("?user=ann&topics=news"), client.Options{
		OnEvent: func(c *client.Client, e wire.Event) {
			if e.Message != nil && e.Message.Ack {
				if err := c.Ack(t.Context(), e.Message.ID); err != nil {
					t.Error(err)
				}
			}
			events <- e
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if e := next(); e.Welcome == nil || e.Welcome.User != "ann" {
		t.Errorf("first event %+v", e)
	}
	if _, err := c.Subscribe(t.Context(), "sport", nil); err != nil {
		t.Fatal(err)
	}
	s.push("publish", `{"topic":"news","data":1}`, 1)
	want("news", "1")
	s.push("publish", `{"topic":"sport","data":2}`, 1)
	want("sport", "2")
	s.push("push", `{"user":"ann","data":3,"wait":"ack"}`, 1)
	want(wire.UserTopic, "3")

	s.terminate()
	if e := next(); e.Goodbye == nil || e.Goodbye.Code != wire.CloseShutdown {
		t.Errorf("got %+v, want goodbye", e)
	}
	s.wantExit()
	s.start()
	if e := next(); e.Welcome == nil {
		t.Errorf("got %+v, want the second welcome", e)
	}
	// The new server numbers anew: both topics were resumed, with a gap told.
	gaps := map[string]string{}
	for range 2 {
		if e := next(); e.Gap != nil {
			gaps[e.Gap.Topic] = e.Gap.Reason
		}
	}
	if gaps["news"] != "epoch" || gaps["sport"] != "epoch" {
		t.Errorf("gaps %v, want one of each topic because of the epoch", gaps)
	}
	s.push("publish", `{"topic":"news","data":4}`, 1)
	want("news", "4")
	s.push("publish", `{"topic":"sport","data":5}`, 1)
	want("sport", "5")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
