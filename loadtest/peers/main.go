// Peer serves WebSockets with one of the libraries that people would otherwise
// pick, so that loadtest can hold Tocsin against them. Every peer does the same
// work and is written as its library's documentation recommends:
//
//	peer NAME --listen 127.0.0.1:8080 --trigger-listen 127.0.0.1:8081
//
// A connection to /ws gets each of its messages back. A POST to the trigger
// address sends the body as one text message to every connection, and is
// answered with their number when all writes were handed over.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	path             = "/ws"
	maxMessage       = 1 << 20          // bytes of a message
	handshakeTimeout = 5 * time.Second  // accept to the end of the request head
	writeTimeout     = 10 * time.Second // one write, where writes block
)

// broadcast sends payload as a text message to every connection, and returns
// how many there were, when all writes were handed over. It may be called by
// several goroutines.
type broadcast func(payload []byte) int

// peers has a function for each library, which listens on addr, serves it for
// the rest of the process's life, and returns when it listens.
var peers = map[string]func(addr string) (broadcast, error){
	"article": startArticle,
	"coder":   startCoder,
	"gnet":    startGnet,
	"gorilla": startGorilla,
	"gws":     startGws,
	"nbio":    startNbio,
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("peer: ")
	if err := run(os.Args[1:]); err != nil {
		log.Print(err)
		if errors.As(err, new(usageError)) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// usageError is a command line that makes no sense.
type usageError string

func (e usageError) Error() string { return string(e) }

func run(args []string) error {
	names := strings.Join(slices.Sorted(maps.Keys(peers)), ", ")
	if len(args) == 0 {
		return usageError("usage: peer NAME --listen ADDR --trigger-listen ADDR, where NAME is one of " + names)
	}
	start, ok := peers[args[0]]
	if !ok {
		return usageError(fmt.Sprintf("unknown peer %q, it must be one of %s", args[0], names))
	}
	flags := flag.NewFlagSet("peer "+args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is printed once, by main
	listen := flags.String("listen", "127.0.0.1:8080", "where to serve WebSockets")
	triggerListen := flags.String("trigger-listen", "127.0.0.1:8081", "where a POST broadcasts its body")
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(os.Stdout)
			flags.PrintDefaults()
			return nil
		}
		return usageError(err.Error())
	}
	if flags.NArg() > 0 {
		return usageError(fmt.Sprintf("unexpected argument %q", flags.Arg(0)))
	}
	send, err := start(*listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", *listen, err)
	}
	log.Printf("%s serves ws://%s%s, trigger http://%s/", args[0], *listen, path, *triggerListen)
	server := &http.Server{Addr: *triggerListen, Handler: trigger(send), ReadHeaderTimeout: handshakeTimeout}
	return server.ListenAndServe()
}

// trigger answers a POST with the number of connections its body was sent to.
func trigger(send broadcast) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "POST the message to broadcast", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintln(w, send(body)) // a caller that went away needs no answer
	})
}

// serveHTTP serves upgrade on /ws of addr with net/http.
func serveHTTP(addr string, upgrade http.HandlerFunc) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc(path, upgrade)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: handshakeTimeout}
	go func() { log.Fatal(server.Serve(ln)) }()
	return nil
}

// set is the connections of a peer in the order in which they came, which is
// nearly that of their descriptors: the cheapest order to write to them.
type set[C comparable] struct {
	mu    sync.Mutex
	list  []C
	place map[C]int
}

func (s *set[C]) add(c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.place == nil {
		s.place = make(map[C]int)
	}
	s.place[c] = len(s.list)
	s.list = append(s.list, c)
}

// remove does nothing if c was never added, or is gone already.
func (s *set[C]) remove(c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place, ok := s.place[c]
	if !ok {
		return
	}
	last := len(s.list) - 1
	s.list[place] = s.list[last]
	s.place[s.list[place]] = place
	clear(s.list[last:])
	s.list = s.list[:last]
	delete(s.place, c)
}

// all returns a copy, so that nobody waits for a broadcast to come or go.
func (s *set[C]) all() []C {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}
