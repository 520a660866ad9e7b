package server_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"

	"github.com/tocsin-push/tocsin/server"
)

func Example() {
	srv, err := server.New(server.Config{
		Auth: func(r *http.Request) (server.Identity, error) {
			return server.Identity{User: r.Header.Get("X-User")}, nil // ask your session store
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Println(srv.Serve(ln)) }() // clients: ws://…/ws?topics=news

	receipt, err := srv.Publish(context.Background(), "news", server.Message{Data: []byte(`{"hi":1}`)})
	fmt.Println(receipt.Subscribers, err)
	fmt.Println(srv.Shutdown(context.Background()))
	// Output:
	// 0 <nil>
	// <nil>
}
