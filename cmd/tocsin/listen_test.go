package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// listening is a tocsin listen that runs.
type listening struct {
	t        *testing.T
	out, err *bufio.Scanner
	signal   func(os.Signal) error
	wait     func() (status int)
}

func startListening(t *testing.T, args ...string) *listening {
	t.Helper()
	cmd := command(append([]string{"listen"}, args...)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // most have ended by themselves
	return &listening{t, bufio.NewScanner(stdout), bufio.NewScanner(stderr), cmd.Process.Signal, func() int {
		_ = cmd.Wait() // its status is what counts
		return cmd.ProcessState.ExitCode()
	}}
}

// told returns the next line on standard error, which must be of this kind.
func (l *listening) told(kind string) string {
	l.t.Helper()
	if !l.err.Scan() || !strings.HasPrefix(l.err.Text(), `{"`+kind+`":`) {
		l.t.Fatalf("told %q, want %s", l.err.Text(), kind)
	}
	return l.err.Text()
}

// message returns the next message.
func (l *listening) message() (m struct {
	wire.Message
	Data json.RawMessage
},
) {
	l.t.Helper()
	if !l.out.Scan() {
		l.t.Fatalf("no message, but %v", l.out.Err())
	}
	if err := json.Unmarshal(l.out.Bytes(), &m); err != nil {
		l.t.Fatalf("%s: %v", l.out.Bytes(), err)
	}
	return m
}

func TestListenPrintsMessages(t *testing.T) {
	p := serve(t, "--dev")
	l := startListening(t, "news", "sport", "--url", p.ws, "--user", "42", "--count", "4")
	l.told("welcome")
	l.told("subscribed")
	l.told("subscribed")
	for _, send := range [][]string{
		{"publish", "news", `{"hi":1}`},
		{"publish", "sport", "2"},
		{"push", "3", "--user", "42", "--wait", "ack"},
		{"broadcast", "4"},
	} {
		if got := tocsin(t, "", append(send, "--api", p.api)...); got.status != 0 || got.err != "" {
			t.Fatalf("%v: %+v", send, got)
		}
	}
	for _, want := range []struct{ topic, data string }{{"news", `{"hi":1}`}, {"sport", "2"}, {wire.UserTopic, "3"}, {wire.AllTopic, "4"}} {
		if m := l.message(); m.Topic != want.topic || string(m.Data) != want.data || m.ID == "" {
			t.Errorf("got %+v, want %v", m, want)
		}
	}
	if status := l.wait(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestListenComesBack, goes on where it was, and goes when it is told to stay away.
func TestListenComesBack(t *testing.T) {
	p := serve(t, "--dev")
	l := startListening(t, "news", "--url", p.ws, "--user", "42")
	l.told("welcome")
	l.told("subscribed")
	if got := tocsin(t, "", "disconnect", "--user", "42", "--code", "3011", "--api", p.api); got.status != 0 || !strings.Contains(got.out, `"disconnected":1`) {
		t.Fatalf("%+v", got)
	}
	for l.err.Scan() && !strings.HasPrefix(l.err.Text(), `{"welcome"`) { // a goodbye or a gap may come between
	}
	if got := tocsin(t, "", "disconnect", "--user", "42", "--api", p.api); got.status != 0 {
		t.Fatalf("%+v", got)
	}
	var last string
	for l.err.Scan() {
		last = l.err.Text()
	}
	if status := l.wait(); status != 1 || !strings.Contains(last, "3503") {
		t.Errorf("status %d, told %q", status, last)
	}
}

func TestListenEndsWithASignal(t *testing.T) {
	p := serve(t, "--dev")
	l := startListening(t, "news", "--url", p.ws)
	l.told("welcome")
	l.told("subscribed")
	if err := l.signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status := l.wait(); status != 0 {
		t.Errorf("status %d", status)
	}
}

func TestListenComesInWithAToken(t *testing.T) {
	const key = "0123456789abcdef0123456789abcdef"
	p := serve(t, "--api-key", key)
	token := strings.TrimSpace(tocsin(t, "", "token", "--user", "42", "--api-key", key).out)
	for _, args := range [][]string{{"--user", "42", "--api-key", key}, {"--token", token}} {
		l := startListening(t, append(args, "--url", p.ws)...)
		if welcome := l.told("welcome"); !strings.Contains(welcome, `"user":"42"`) {
			t.Errorf("%v: %s", args, welcome)
		}
		if err := l.signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := l.wait(); status != 0 {
			t.Errorf("%v: status %d", args, status)
		}
	}
	for _, c := range []struct {
		args   string
		status int
		words  string
	}{
		{"listen news --user 42 --url " + p.ws, 1, "401 Unauthorized"},
		{"listen news --token wrong --url " + p.ws, 1, "see --user and --token"},
		{"listen news --token wrong --url " + p.ws + "/elsewhere", 1, "see --url"},
		{"listen --url ws://127.0.0.1:1/ws", 1, "connection refused"},
		{"listen --url http://127.0.0.1:1/ws", 2, "url is"},
		{"listen a b --after 3 --epoch x", 2, "after needs one topic"},
		{"listen a --after 3", 2, "--epoch"},
		{"listen a --user", 2, "--user: its value is missing"},
		{"listen --user 42 --token x", 2, "user and token"},
		{"listen $x --token " + token + " --url " + p.ws, 1, `cannot subscribe to "$x": topic names that start with $ are reserved`},
	} {
		if got := tocsin(t, "", strings.Fields(c.args)...); got.status != c.status || !strings.Contains(got.err, c.words) || got.out != "" {
			t.Errorf("%s: %+v", c.args, got)
		}
	}
}

// TestListenBeginsAfterAPosition and is told what it missed.
func TestListenBeginsAfterAPosition(t *testing.T) {
	p := serve(t, "--dev")
	first := startListening(t, "news", "--url", p.ws)
	first.told("welcome")
	var at struct{ Subscribed wire.OK }
	if err := json.Unmarshal([]byte(first.told("subscribed")), &at); err != nil {
		t.Fatal(err)
	}
	if got := tocsin(t, "", "publish", "news", "1", "--api", p.api); got.status != 0 {
		t.Fatalf("%+v", got)
	}
	if m := first.message(); m.Seq != 1 {
		t.Fatalf("got %+v", m)
	}
	second := startListening(t, "news", "--url", p.ws, "--after", "0", "--epoch", at.Subscribed.Epoch)
	second.told("welcome")
	for second.err.Scan() && !strings.HasPrefix(second.err.Text(), `{"gap":`) { // beside the answer
	}
	if gap := second.err.Text(); !strings.Contains(gap, `"from":1,"to":1`) {
		t.Errorf("told %q", gap)
	}
}

// TestListenEndsThoughNobodyReadsIt: a signal counts also while a line cannot
// be written.
func TestListenEndsThoughNobodyReadsIt(t *testing.T) {
	p := serve(t, "--dev")
	l := startListening(t, "news", "--url", p.ws, "--user", "42")
	l.told("welcome")
	l.told("subscribed")
	line := `"` + strings.Repeat("x", 30_000) + `"`
	for range 10 { // a pipe takes 64 KiB
		if got := tocsin(t, line, "publish", "news", "-", "--api", p.api); got.status != 0 {
			t.Fatalf("%+v", got)
		}
	}
	if err := l.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() { ended <- l.wait() }()
	select {
	case status := <-ended:
		if status != 0 {
			t.Errorf("exit status %d", status)
		}
	case <-time.After(30 * time.Second):
		t.Error("it does not end")
	}
}
