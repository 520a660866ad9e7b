//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/wire"
)

// TestLies has a server drop one delivery in a thousand, double one, swap two
// and delay one by half a second: all of it is counted, and nothing else.
func TestLies(t *testing.T) {
	const conns, rounds = 100, 20
	f := newFake(t)
	var deliveries atomic.Int64
	f.publish = func(c *fakeConn, seq int, payload []byte) {
		if c.held != nil {
			c.say(payload)
			c.say(c.held)
			c.held = nil
			return
		}
		switch n := deliveries.Add(1); {
		case n%1000 == 500:
			return // dropped
		case seq == 3 && c.index == 7:
			c.say(payload)
			c.say(payload)
		case seq == 9 && c.index == 31:
			c.held = bytes.Clone(payload) // comes after the next
		case seq == 12 && c.index == 50:
			time.AfterFunc(500*time.Millisecond, func() { c.say(payload) })
		default:
			c.say(payload)
		}
	}
	o := loadtest(t, "broadcast", "--url", f.url, "--trigger", f.trigger, "-n", strconv.Itoa(conns),
		"--rounds", strconv.Itoa(rounds), "--wait", "1s", "--late", "400ms")
	o.want(t, map[string]float64{
		"connections": conns, "rounds": rounds, "expected": conns * rounds,
		"delivered": conns*rounds - 2, "missing": 2, "doubled": 1, "misordered": 1,
	})
	// The swapped one is late as well; a slow machine may add to them.
	if late := o.value(t, "late"); late < 2 {
		t.Errorf("late is %v, want the delayed and the swapped delivery", late)
	}
	if longest := o.value(t, "delivery_max_ms"); longest < 500 {
		t.Errorf("the longest delivery took %v ms, one was delayed by 500", longest)
	}
	if want := "missing 2, doubled 1, out of order 1"; o.status != 1 || !strings.Contains(o.err, want) {
		t.Errorf("status %d, %q; want 1 and %q", o.status, o.err, want)
	}
}

// TestOpenLoop has a server answer nothing until 50 messages have come: a
// generator that waits for answers would never send them, and the first
// answers must be told as late as they are.
func TestOpenLoop(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	var owed []*fakeConn
	open := false
	f.message = func(c *fakeConn, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		owed = append(owed, c)
		if open = open || len(owed) == 50; open {
			for _, c := range owed {
				c.say([]byte("pong"))
			}
			owed = nil
		}
	}
	o := loadtest(t, "echo", "--url", f.url, "-n", "10", "--active", "5", "--message-rate", "200", "--duration", "500ms", "--message", "hello")
	o.want(t, map[string]float64{"connections": 10, "active": 5, "sent": 100, "replies": 100, "unanswered": 0})
	// The 50th message is due 245 ms after the first.
	if longest := o.value(t, "echo_max_ms"); longest < 245 {
		t.Errorf("the longest wait was %v ms, the first answer came 245 ms after its message was due", longest)
	}
	if o.status != 0 {
		t.Errorf("status %d: %s", o.status, o.err)
	}
}

func TestSaturatedEcho(t *testing.T) {
	f := newFake(t)
	f.message = (*fakeConn).say
	o := loadtest(t, "echo", "--url", f.url, "-n", "20", "--active", "8", "--procs", "3", "--message-rate", "0", "--duration", "100ms")
	if sent, replies := o.value(t, "sent"), o.value(t, "replies"); sent < 8 || sent != replies {
		t.Errorf("%v sent, %v replies", sent, replies)
	}
}

func TestConnect(t *testing.T) {
	f := newFake(t)
	f.greeting = wire.AppendFrame(nil, ws.OpText, []byte(`{"welcome":{"conn":"x","ping":0}}`))
	page := filepath.Join(t.TempDir(), "report.html")
	o := loadtest(t, "connect", "--url", f.url+"?user={n}", "-n", "50", "--procs", "2", "--hold", "1ms", "--floor",
		"--pid", strconv.Itoa(os.Getpid()), "--report", page)
	o.want(t, map[string]float64{"connections": 50})
	for _, key := range []string{"handshake_p90_ms", "cpu_us_per_connect", "resident_bytes", "threads", "connects_per_s"} {
		if o.value(t, key) <= 0 {
			t.Errorf("%s is %v", key, o.value(t, key))
		}
	}
	if len(o.Results) != 2 || o.Results[1].Name != "floor" || o.Results[1].Values["connections"] != 50 {
		t.Errorf("the floor is missing: %+v", o.Results)
	}
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "Handshake", "memory a connection", "descriptors a process"} {
		if !bytes.Contains(html, []byte(want)) {
			t.Errorf("the report does not have %q", want)
		}
	}
	for _, never := range []string{"<script", "src=", "@import", "<link"} {
		if bytes.Contains(html, []byte(never)) {
			t.Errorf("the report has %q: it must not need a network", never)
		}
	}
}

func TestHerd(t *testing.T) {
	f := newFake(t)
	f.message = (*fakeConn).say
	o := loadtest(t, "herd", "--url", f.url, "-n", "40", "--live", "4", "--live-rate", "100", "--percent", "50", "--floor")
	o.want(t, map[string]float64{"connections": 40, "dropped": 20, "back": 20, "attempts": 20})
	if o.value(t, "outage_p50_ms") <= 0 || o.value(t, "meanwhile_p50_ms") <= 0 || o.value(t, "before_p50_ms") <= 0 {
		t.Error("a latency is missing")
	}
	if o.status != 0 {
		t.Errorf("status %d: %s", o.status, o.err)
	}
}

// TestHerdObeys has the server drop everybody with a goodbye.
func TestHerdObeys(t *testing.T) {
	f := newFake(t)
	kick := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		f.mu.Lock()
		conns := slices.Clone(f.conns)
		f.mu.Unlock()
		for _, c := range conns {
			c.say([]byte(`{"goodbye":{"code":3001,"reason":"shutdown","retry_after_ms":300}}`))
			_, _ = c.Write(wire.AppendClose(nil, 3001, "shutdown"))
			c.Close()
		}
	}))
	defer kick.Close()
	port := kick.URL[strings.LastIndexByte(kick.URL, ':')+1:]
	command := fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%s; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`, port)
	o := loadtest(t, "herd", "--url", f.url, "-n", "20", "--live", "0", "--command", "bash -c '"+strings.ReplaceAll(command, "'", `'\''`)+"'")
	o.want(t, map[string]float64{"connections": 20, "dropped": 20, "back": 20, "goodbyes": 20})
	if d := o.value(t, "outage_max_ms"); d < 300 {
		t.Errorf("the last was back after %v ms, goodbye asked for 300", d)
	}
}

// TestServerDies has the server go away in the third of ten rounds.
func TestServerDies(t *testing.T) {
	f := newFake(t)
	f.publish = func(c *fakeConn, seq int, payload []byte) {
		if seq < 3 {
			c.say(payload)
		} else {
			c.Close()
		}
	}
	o := loadtest(t, "broadcast", "--url", f.url, "--trigger", f.trigger, "-n", "10", "--rounds", "10")
	o.want(t, map[string]float64{"delivered": 20, "rounds": 3, "lost": 10})
	if o.status != 1 || !strings.Contains(o.err, "did the server die?") || o.Error == "" {
		t.Errorf("status %d, %q", o.status, o.err)
	}
}

// TestInterrupted ends a run early; what was measured is told.
func TestInterrupted(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	var n atomic.Int64
	f.message = func(c *fakeConn, payload []byte) {
		c.say(payload)
		if n.Add(1) == 20 {
			cancel()
		}
	}
	o := loadtestUntil(ctx, t, "echo", "--url", f.url, "-n", "10", "--active", "10", "--message-rate", "1000", "--duration", "1h")
	if o.value(t, "replies") < 20 || !strings.Contains(o.out, `"interrupted": true`) {
		t.Errorf("no report of what was measured: %s", o.out)
	}
}

// silentServer closes every connection, and returns where it listens.
func silentServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return ln.Addr().String()
}

// fault is a command line that cannot be obeyed, and what is told of it.
type fault struct {
	args   string
	status int
	want   string
}

// faults are many, with the servers that they need.
func faults(t *testing.T) []fault {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no entry", http.StatusForbidden)
	}))
	t.Cleanup(refusing.Close)
	refused := "ws" + strings.TrimPrefix(refusing.URL, "http")
	silent := silentServer(t)
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	f := newFake(t)
	nobody := nobody(t)
	return []fault{
		{"connect --url ws://" + nobody, 1, "is the server running?"},
		{"connect --url " + refused, 1, "403 Forbidden no entry"},
		{"connect --url ws://" + silent, 1, "without an answer"},
		{"connect --url wss://" + nobody, 1, "is the server running?"},
		{"connect --url wss" + strings.TrimPrefix(f.url, "ws"), 1, "does it speak TLS?"},
		{"connect --url wss" + strings.TrimPrefix(secure.URL, "https"), 1, "--insecure"},
		{"connect --insecure --url wss" + strings.TrimPrefix(secure.URL, "https"), 1, "refused the upgrade: 404"},
		{"connect --url ws" + strings.TrimPrefix(secure.URL, "https"), 1, "HTTPS"},
		{"connect --url nonsense", 2, "not a WebSocket URL"},
		{"connect --url ws://127.0.0.1:99999/", 2, "port"},
		{"connect --url ws://192.0.2.1/", 2, "--allow-remote"},
		{"connect --url " + f.url + " -n 0", 2, "--n"},
		{"connect --url " + f.url + " -n 100000000", 1, "does not allow"},
		{"connect --url " + f.url + " --pid 999999999", 2, "no such process"},
		{"connect --url " + f.url + " --header nocolon", 2, "--header"},
		{"connect --url " + f.url + " --source here", 2, "--source"},
		{"connect --url " + f.url + " --server-cpu 100000", 2, "no CPU"},
		{"connect --no-such-flag", 2, "unknown flag"},
		{"broadcast --url " + f.url + " --trigger http://192.0.2.1/", 2, "--allow-remote"},
		{"broadcast --url " + f.url + " --trigger " + refusing.URL, 1, "publish: POST"},
		{"broadcast --url " + f.url + " --rounds 0", 2, "--rounds"},
		{"broadcast --url " + f.url + " --size 5", 2, "--size"},
		{"echo --url " + f.url + " --active 2000", 2, "--active"},
		{"echo --url " + f.url + " -n 1 --active 1 --duration 10ms --message-rate 1000", 1, "were not answered"},
		{"herd --url " + f.url + " -n 10 --live 10", 2, "--live"},
		{"herd --url " + f.url + " --percent 0", 2, "--percent"},
		{"soak --url " + f.url + " --percent 101", 2, "--percent"},
		{"soak --url " + f.url + " --floor", 2, "--floor"},
		{"soak --url " + f.url + " --rounds 0", 2, "--rounds"},
		{"push --url " + f.url + " --floor", 2, "--floor"},
		{"push --url " + f.url + " --user everybody", 2, "{n}"},
		{"push --url " + f.url + "?user=me", 2, "{n}"},
		{"push --url " + f.url + " --publishers 0", 2, "--publishers"},
		{"push --url " + f.url + " --size 5", 2, "--size"},
		{"push --url " + f.url + " --rounds 0", 2, "--rounds"},
		{"push --url " + f.url + " --api http://192.0.2.1/", 2, "--allow-remote"},
		{"push --url " + f.url + " --api http://" + nobody, 1, "see --api"},
		{"bench --tocsin /dev/null/nothing", 2, "--tocsin"},
	}
}

// TestOneSentence wants every fault told in one line, with the right status.
func TestOneSentence(t *testing.T) {
	for _, c := range faults(t) {
		if strings.Contains(c.args, "not answered") && testing.Short() {
			continue
		}
		o := loadtest(t, strings.Fields(c.args)...)
		last := o.err[strings.LastIndex(strings.TrimSpace(o.err), "\n")+1:]
		if c.want == "does not allow" {
			last = o.err // and every limit in a line of its own
		}
		if o.status != c.status || !strings.Contains(last, c.want) {
			t.Errorf("%s: status %d, %q; want %d, %q", c.args, o.status, o.err, c.status, c.want)
		}
	}
}

// TestServersAreSpread gives two servers half of the connections each.
func TestServersAreSpread(t *testing.T) {
	a, b := newFake(t), newFake(t)
	host := func(f *fake) string { return strings.TrimSuffix(strings.TrimPrefix(f.url, "ws://"), "/ws") }
	var mu sync.Mutex
	got := map[string]int{}
	for name, f := range map[string]*fake{"a": a, "b": b} {
		f.message = func(c *fakeConn, payload []byte) {
			mu.Lock()
			got[name]++
			mu.Unlock()
			c.say(payload)
		}
	}
	o := loadtest(t, "echo", "--servers", host(a)+","+host(b), "-n", "10", "--active", "10", "--message-rate", "100", "--duration", "200ms")
	o.want(t, map[string]float64{"connections": 10, "sent": 20, "replies": 20})
	mu.Lock()
	defer mu.Unlock()
	if got["a"] != 10 || got["b"] != 10 {
		t.Errorf("messages by server: %v", got)
	}
}

// TestProcessesAreSummed takes a process that does nothing twice.
func TestProcessesAreSummed(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	f := newFake(t)
	pid := strconv.Itoa(cmd.Process.Pid)
	o := loadtest(t, "connect", "--url", f.url, "-n", "5", "--hold", "1ms", "--pid", pid+","+pid)
	one, err := machine.ReadMemory(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	o.want(t, map[string]float64{"resident_bytes": 2 * float64(one.Resident), "threads": 2})
	if !strings.Contains(o.out, `"server_command": "sleep 1000\nsleep 1000"`) {
		t.Errorf("the servers' commands are not told: %s", o.out)
	}
}
