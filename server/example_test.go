package server_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

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

// What the examples below stand on.
type session struct {
	user, team string
	ends       time.Time
}

func lookUp(string) (*session, error)       { return nil, errors.New("no session") }
func logged(next http.Handler) http.Handler { return next }

func ExampleNew() {
	var auth func(r *http.Request) (server.Identity, error)
	srv, err := server.New(server.Config{Auth: auth})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(srv.Serve(ln)) // they connect to ws://127.0.0.1:8080/ws?topics=news
}

func ExampleIdentity() {
	auth := func(r *http.Request) (server.Identity, error) {
		s, err := lookUp(r.Header.Get("Cookie"))
		if err != nil {
			return server.Identity{}, err // 401; an HTTPError has another status
		}
		return server.Identity{User: s.user, Expires: s.ends, Subscribe: []string{"news", "team-*"}, Data: s}, nil
	}
	_ = server.Config{Auth: auth}
}

func ExampleServer_Publish() {
	var (
		srv *server.Server
		ctx context.Context
	)
	receipt, err := srv.Publish(ctx, "news", server.Message{Data: []byte(`{"hi":1}`)})
	fmt.Println(receipt.Subscribers, err)
}

func ExampleServer_Push() {
	var (
		srv *server.Server
		ctx context.Context
	)
	receipt, err := srv.Push(ctx, server.Target{User: "42"}, server.Message{
		Data: []byte(`{"for":"you"}`), Wait: server.WaitAck,
	})
	if errors.Is(err, server.ErrNobody) {
		return // 42 has no connection
	}
	fmt.Println(receipt.Devices, err)
}

func ExampleConn_Data() {
	var cfg server.Config
	cfg.OnOpen = func(c server.Conn) {
		if err := c.Subscribe("team-" + c.Data().(*session).team); err != nil {
			log.Print(c.RemoteAddr(), err)
		}
	}
}

func ExampleServer_ServeHTTP() {
	var srv *server.Server
	mux := http.NewServeMux()
	mux.Handle("/push", srv)
	web := &http.Server{Addr: ":8080", Handler: logged(mux)}
	log.Fatal(web.ListenAndServe())
}

func ExampleServer_Shutdown() {
	var srv *server.Server
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := srv.Shutdown(ctx) // clients are told when to come back
	fmt.Println(err)
}

// The code in the package comment is that of the examples, which compiles.
func TestPackageCommentIsTheExamples(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks, block := 0, ""
	for line := range strings.Lines(string(doc)) {
		code, ok := strings.CutPrefix(line, "//\t")
		if ok {
			block += "\t" + code
			continue
		}
		if block != "" {
			blocks++
			if !strings.Contains(string(examples), "\n"+block) {
				t.Errorf("no example has\n%s", block)
			}
		}
		block = ""
	}
	if blocks < 7 {
		t.Errorf("%d pieces of code", blocks)
	}
}
