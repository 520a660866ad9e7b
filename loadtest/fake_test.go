//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/scenario"
	"github.com/tocsin-push/tocsin/wire"
)

// TestMain lets this test's program be the processes that loadtest starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "worker" || os.Args[1] == "floor-server") {
		os.Exit(run(context.Background(), os.Args[1:], scenario.Streams{Out: os.Stdout, Err: os.Stderr}))
	}
	_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // else each worker sleeps for a second at its end
	os.Exit(m.Run())
}

// fake is a WebSocket server that does what a test tells it.
type fake struct {
	url     string
	trigger string

	// publish is called for each connection and published payload, counted
	// from 1; by default it sends the payload.
	publish func(c *fakeConn, seq int, payload []byte)
	// push is called for each push, counted from 1, with the connection of its
	// user, and returns the receipt; by default it sends the data.
	push func(c *fakeConn, n int, data []byte) answer
	// message is called for each message of a client.
	message func(c *fakeConn, payload []byte)
	// greeting follows the 101 in the same write.
	greeting []byte

	mu    sync.Mutex
	met   int         // handshakes; the first is loadtest's look at the server
	conns []*fakeConn // in the order of their handshakes
	seq   int
	users map[string]*fakeConn
}

// answer is what the fake's API says of one push.
type answer struct {
	Status  int    `json:"status"`
	Code    string `json:"code,omitempty"`
	Written int    `json:"written"`
	Queued  int    `json:"queued"`
	Dropped int    `json:"dropped"`
}

type fakeConn struct {
	net.Conn
	server *fake
	index  int
	wmu    sync.Mutex
	held   []byte // a payload that a test holds back
}

func newFake(t *testing.T) *fake {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newFakeOn(t, ln)
}

func newFakeOn(t *testing.T, ln net.Listener) *fake {
	t.Helper()
	f := &fake{url: "ws://" + ln.Addr().String() + "/ws", users: map[string]*fakeConn{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/", f.fanOut)
	mux.HandleFunc("POST /api/push", f.pushed)
	mux.HandleFunc("POST /api/batch", f.pushed)
	api := httptest.NewServer(mux)
	f.trigger = api.URL
	var done sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		api.Close()
		f.closeAll()
		done.Wait()
	})
	done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			done.Go(func() { f.serve(c) })
		}
	})
	return f
}

func (f *fake) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	head := append([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "),
		floor.AppendAccept(nil, []byte(req.Header.Get("Sec-WebSocket-Key")))...)
	c := &fakeConn{Conn: conn, server: f}
	f.mu.Lock()
	c.index = f.met
	f.met++
	f.conns = append(f.conns, c)
	f.users[req.URL.Query().Get("user")] = c
	_, err = conn.Write(append(append(head, "\r\n\r\n"...), f.greeting...))
	f.mu.Unlock()
	for err == nil {
		var h ws.Header
		if h, err = ws.ReadHeader(r); err != nil || h.OpCode == ws.OpClose {
			break
		}
		payload := make([]byte, min(h.Length, 1<<20))
		if _, err = io.ReadFull(r, payload); err != nil {
			break
		}
		ws.Cipher(payload, h.Mask, 0)
		if h.OpCode.IsData() && f.message != nil {
			f.message(c, payload)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = slices.DeleteFunc(f.conns, func(other *fakeConn) bool { return other == c })
}

func (f *fake) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
}

func (c *fakeConn) say(payload []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, _ = c.Write(wire.AppendFrame(nil, ws.OpText, payload)) // a lost one is the generator's to notice
}

func (f *fake) fanOut(w http.ResponseWriter, r *http.Request) {
	payload, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.seq++
	seq, conns := f.seq, slices.Clone(f.conns)
	f.mu.Unlock()
	for _, c := range conns {
		if f.publish != nil {
			f.publish(c, seq, payload)
		} else {
			c.say(payload)
		}
	}
}

// pushed takes a push, or a batch of them, a line each.
func (f *fake) pushed(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body) // all of it: net/http ends it with the first byte of the answer
	if err != nil {
		return
	}
	enc := json.NewEncoder(w)
	for line := range bytes.Lines(body) {
		var p struct {
			User string
			Data json.RawMessage
		}
		if err := json.Unmarshal(line, &p); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.mu.Lock()
		f.seq++
		n, c := f.seq, f.users[p.User]
		f.mu.Unlock()
		a := answer{Status: http.StatusOK, Written: 1}
		switch {
		case c == nil:
			a = answer{Status: http.StatusNotFound, Code: "nobody"}
		case f.push != nil:
			a = f.push(c, n, p.Data)
		default:
			c.say(p.Data)
		}
		if r.URL.Path == "/api/push" {
			w.WriteHeader(a.Status)
		}
		_ = enc.Encode(a) // the generator may be gone
	}
}

// outcome is how a run of the program ended, and what it printed.
type outcome struct {
	status  int
	out     string
	err     string
	Results []struct {
		Name     string
		Values   map[string]float64
		Lost     map[string]uint64
		Failures map[string]uint64
		Refused  map[string]uint64 `json:"pushes_failed"`
	}
	Stages []report.Stage
	Error  string
	Notes  []string
}

// value returns a figure of the first result.
func (o *outcome) value(t *testing.T, key string) float64 {
	t.Helper()
	if len(o.Results) == 0 {
		t.Fatalf("no results in %q; it said %q", o.out, o.err)
	}
	v, ok := o.Results[0].Values[key]
	if !ok {
		t.Fatalf("no figure %s in %s; it said %q", key, o.out, o.err)
	}
	return v
}

// want checks whole numbers among the figures.
func (o *outcome) want(t *testing.T, figures map[string]float64) {
	t.Helper()
	for key, want := range figures {
		if got := o.value(t, key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
}

// loadtest runs the program in this process, but for its workers.
func loadtest(t *testing.T, args ...string) *outcome {
	t.Helper()
	return loadtestUntil(t.Context(), t, args...)
}

func loadtestUntil(ctx context.Context, t *testing.T, args ...string) *outcome {
	t.Helper()
	var out, errs strings.Builder
	o := &outcome{status: run(ctx, append(args, "--json"), scenario.Streams{Out: &out, Err: &errs})}
	o.out, o.err = out.String(), errs.String()
	if o.out != "" {
		if err := json.Unmarshal([]byte(o.out), o); err != nil {
			t.Fatalf("%v in %s", err, o.out)
		}
	}
	return o
}

// nobody returns a loopback address that nobody listens on.
func nobody(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
