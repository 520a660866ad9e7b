package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/tocsin-push/tocsin/client"
	"github.com/tocsin-push/tocsin/wire"
)

// Prints what is published to news until it is interrupted.
func ExampleDial() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c, err := client.Dial(ctx, "ws://127.0.0.1:8080/ws?user=ann", client.Options{
		OnEvent: func(_ *client.Client, e wire.Event) {
			if m := e.Message; m != nil {
				fmt.Printf("%s: %s\n", m.Topic, m.Data)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Subscribe(ctx, "news", nil); err != nil {
		log.Print(err)
		return
	}
	select {
	case <-ctx.Done():
	case <-c.Done():
		log.Print(c.Err())
	}
}
