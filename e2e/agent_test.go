//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/wire"
	protocol "github.com/tocsin-push/tocsin/wire/tocsin"
)

// An agent is a foreign WebSocket client in a process of its own, under
// agents/. It does as it is told, one JSON object a line:
//
//	{"op":"open","id":1,"url":"ws://…","after_ms":0}
//	{"op":"send","id":1,"text":"…"}
//	{"op":"close","id":1}
//
// and says what happens to its sockets:
//
//	{"id":1,"event":"open","text":"tocsin.v1"}      the subprotocol
//	{"id":1,"event":"text","text":"…"}
//	{"id":1,"event":"close","code":3001,"text":"shutdown"}
//	{"id":1,"event":"error","text":"…"}
//
// The browser can also be told to wait until its page shows something,
// {"op":"see","id":2,"text":"…"}, and says {"id":2,"event":"seen"}.
type agent struct {
	t      *testing.T // of the scenario under way
	stdin  *json.Encoder
	lastID int

	mu    sync.Mutex
	conns map[int]*conn // guarded by mu
}

type order struct {
	Op      string `json:"op"`
	ID      int    `json:"id"`
	URL     string `json:"url,omitempty"`
	AfterMS int    `json:"after_ms"`
	Text    string `json:"text,omitempty"`
}

type happening struct {
	ID    int    `json:"id"`
	Event string `json:"event"`
	Code  int    `json:"code"`
	Text  string `json:"text"`
}

// startAgent runs a command until the test ends.
func startAgent(t *testing.T, name string, args ...string) *agent {
	t.Helper()
	cmd := exec.Command(name, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; .ci/run installs what is missing", err)
	}
	a := &agent{t: t, stdin: json.NewEncoder(stdin), conns: make(map[int]*conn)}
	read := make(chan struct{})
	go func() {
		a.read(t, stdout)
		close(read)
	}()
	t.Cleanup(func() {
		stdin.Close() // ends it
		kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		<-read
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%s %v ended: %v\n%s", name, args, err, stderr)
		}
		kill.Stop()
	})
	return a
}

// read hands what the agent says to the connections it speaks of, until the
// end of t, the test that started it.
func (a *agent) read(t *testing.T, stdout io.Reader) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var h happening
		if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
			t.Errorf("the agent said %q", lines.Bytes())
			continue
		}
		a.mu.Lock()
		c := a.conns[h.ID]
		a.mu.Unlock()
		if c == nil {
			t.Errorf("the agent said %q", lines.Bytes())
			continue
		}
		c.events <- h
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		close(c.events)
	}
}

func (a *agent) tell(o order) {
	a.t.Helper()
	if err := a.stdin.Encode(o); err != nil {
		a.t.Fatalf("the agent is gone: %v", err)
	}
}

// conn is a socket of an agent.
type conn struct {
	a      *agent
	id     int
	lastID int
	events chan happening // closed with the agent
}

// dial has the agent open a socket after a while, and wants it to open.
func (a *agent) dial(url string, afterMS int) *conn {
	a.t.Helper()
	c := a.register()
	a.tell(order{Op: "open", ID: c.id, URL: url, AfterMS: afterMS})
	if name := c.want("open").Text; name != protocol.Subprotocol {
		a.t.Errorf("the subprotocol is %q", name)
	}
	return c
}

// register makes room for what the agent says of a new id.
func (a *agent) register() *conn {
	a.lastID++
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &conn{a: a, id: a.lastID, events: make(chan happening, 1024)}
	a.conns[c.id] = c
	return c
}

// wantSeen waits until the browser's page shows text.
func (a *agent) wantSeen(text string) {
	a.t.Helper()
	c := a.register()
	a.tell(order{Op: "see", ID: c.id, Text: text})
	c.want("seen")
}

// open dials and reads the welcome.
func (a *agent) open(url string) (*conn, *wire.Welcome) {
	a.t.Helper()
	c := a.dial(url, 0)
	return c, c.welcome()
}

func (c *conn) welcome() *wire.Welcome {
	c.a.t.Helper()
	e := c.next()
	if e.Welcome == nil || e.Welcome.Conn == "" {
		c.a.t.Fatalf("the first frame is no welcome: %+v", e)
	}
	return e.Welcome
}

// want returns the next happening, which must be one of that name.
func (c *conn) want(event string) happening {
	c.a.t.Helper()
	select {
	case h, ok := <-c.events:
		if !ok || h.Event != event {
			c.a.t.Fatalf("socket %d: %+v, want %s", c.id, h, event)
		}
		return h
	case <-time.After(patience):
		c.a.t.Fatalf("socket %d: nothing in %s, want %s", c.id, patience, event)
		panic("not reached")
	}
}

// next returns the next frame as an event.
func (c *conn) next() wire.Event {
	c.a.t.Helper()
	text := c.want("text").Text
	e, err := protocol.ParseEvent([]byte(text))
	if err != nil {
		c.a.t.Fatalf("the server sent %q: %v", text, err)
	}
	return e
}

// wantMessage wants a message next.
func (c *conn) wantMessage(topic, data string) *wire.Message {
	c.a.t.Helper()
	e := c.next()
	if e.Message == nil || e.Message.Topic != topic || string(e.Message.Data) != data {
		c.a.t.Fatalf("socket %d: got %+v %+v, want %s on %s", c.id, e, e.Message, data, topic)
	}
	return e.Message
}

func (c *conn) send(text string) {
	c.a.t.Helper()
	c.a.tell(order{Op: "send", ID: c.id, Text: text})
}

// command sends a command and returns its reply, which comes next.
func (c *conn) command(body string) wire.Event {
	c.a.t.Helper()
	c.lastID++
	c.send(fmt.Sprintf(`{"id":%d,%s}`, c.lastID, body))
	e := c.next()
	if e.ID != uint64(c.lastID) || (e.OK == nil) == (e.Error == nil) {
		c.a.t.Fatalf("%s was answered by %+v", body, e)
	}
	return e
}

// wantOK sends a command that must succeed.
func (c *conn) wantOK(body string) *wire.OK {
	c.a.t.Helper()
	e := c.command(body)
	if e.OK == nil {
		c.a.t.Fatalf("%s was answered by %v", body, e.Error)
	}
	return e.OK
}

// wantError sends a text that must be refused with one of the codes.
func (c *conn) wantError(text string, codes ...wire.ErrorCode) {
	c.a.t.Helper()
	c.send(text)
	if e := c.next(); e.Error == nil || !slices.Contains(codes, e.Error.Code) || e.Error.Message == "" {
		c.a.t.Errorf("%s was answered by %+v, want error %v", text, e, codes)
	}
}
