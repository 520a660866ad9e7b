package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/tocsin-push/tocsin/wire"
	protocol "github.com/tocsin-push/tocsin/wire/tocsin"
)

// TestMain lets the test binary be the tocsin binary too.
func TestMain(m *testing.M) {
	if os.Getenv("BE_TOCSIN") != "" {
		main()
		os.Exit(0)
	}
	if err := os.Unsetenv("TOCSIN_FULL"); err != nil { // of other packages' tests, and no setting
		panic(err)
	}
	_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // else each tocsin sleeps for a second at its end
	os.Exit(m.Run())
}

func command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "BE_TOCSIN=1")
	return cmd
}

// result is how a command ended.
type result struct {
	status   int
	out, err string
}

func tocsin(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	cmd := command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// exit is a command line, and how it ends: with what words, unless it succeeds.
type exit struct {
	args   string
	status int
	words  string
}

// exits are many. Somebody else listens at the address taken.
func exits(taken string) []exit {
	return []exit{
		{"version", 0, ""},
		{"--version", 0, ""},
		{"serve --version", 0, ""},
		{"", 0, ""},
		{"serve --help", 0, ""},
		{"token --user 42 --ttl 1h --api-key 0123456789abcdef", 0, ""},
		{"token --user 42 --ttl 1h --api-key 0123456789abcde", 2, "openssl rand -hex 32"},
		{"serve", 2, "api-key"},
		{"serve --api-key=", 2, "api-key"},
		{"serve --api-key=a\tb", 2, "api-key must be"},
		{"serve --api-key=0123456789abcde", 2, "api-key has 15 bytes, it must have at least 16"},
		{"serve --api-key=0123456789abcdef --api-key=short", 2, "openssl rand -hex 32"},
		{"serve --dev --nothing", 2, "--nothing"},
		{"serve --dev --max-topics=0", 2, "max-topics"},
		{"serve --dev --max-topics", 2, "max-topics"},
		{"serve --dev --config /no/such/file", 2, "/no/such/file"},
		{"serve --dev --max-connections=1000000000 --listen 127.0.0.1:0 --api-listen 127.0.0.1:0", 2, "1000000000"},
		{"serve --dev --listen " + taken + " --api-listen 127.0.0.1:0", 1, "address already in use"},
		{"serve --dev --listen 127.0.0.1:0 --api-listen " + taken, 1, "address already in use"},
		{"nothing", 2, "nothing"},
		{"publish news", 2, "<data>"},
		{"publish news unquoted", 2, "not JSON"},
		{"publish news 1 --wait=ack", 2, "wait"},
		{"push 1", 2, "give --user or --conn"},
		{"disconnect", 2, "give --user or --conn"},
		{"disconnect --user a --code 3", 2, "code is"},
		{"push 1 --user a --conn b", 2, "--user and --conn"},
		{"broadcast 1 --rate -1", 2, "rate"},
		{"publish news 1 --api ftp://x", 2, "api is"},
		{"publish news 1 --api http://127.0.0.1:1", 1, "--api"},
		{"token --user 42", 2, "api-key"},
		{"token --user", 2, "user"},
		{"token --user a\tb --api-key 0123456789abcdef", 2, "user"},
	}
}

func TestExitStatus(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range exits(taken.Addr().String()) {
		var args []string
		if c.args != "" {
			args = strings.Split(c.args, " ")
		}
		got := tocsin(t, "", args...)
		if got.status != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.args, got.status, c.status, got.err)
		}
		if c.status == 0 {
			if got.out == "" || got.err != "" {
				t.Errorf("%s: printed %q and %q", c.args, got.out, got.err)
			}
			continue
		}
		lines := strings.Split(strings.TrimSpace(got.err), "\n")
		last := lines[len(lines)-1]
		if !strings.HasPrefix(last, "tocsin: ") || !strings.Contains(last, c.words) || got.out != "" || len(lines) != 1 {
			t.Errorf("%s: printed %q and %q", c.args, got.out, got.err)
		}
	}
}

// fakeAPI answers each request as it is told, and passes on what it got.
type fakeAPI struct {
	status  int
	answer  string
	request chan heard
}

type heard struct{ path, body, key string }

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // a body that ends early is not what is wanted
	f.request <- heard{r.URL.Path, string(body), r.Header.Get("X-API-Key")}
	w.WriteHeader(f.status)
	_, _ = io.WriteString(w, f.answer)
}

func newFakeAPI(t *testing.T, status int, answer string) (*fakeAPI, string) {
	f := &fakeAPI{status, answer, make(chan heard, 1)}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return f, srv.URL
}

// TestSending checks what the commands make of a message.
func TestSending(t *testing.T) {
	const receipt = `{"id":"m1","devices":[{"status":"acked"}]}`
	api, url := newFakeAPI(t, http.StatusOK, receipt)
	for _, c := range []struct {
		args, stdin, path, body string
	}{
		{`publish news {"hi":1}`, "", "/api/publish", `{"data":{"hi":1},"topic":"news","wait":"sent"}`},
		{
			"publish news - --id m --ttl 2m --urgency high --collapse-key c --idempotency-key i --wait none", "[1,\n2]", "/api/publish",
			`{"collapse_key":"c","data":[1,2],"id":"m","idempotency_key":"i","topic":"news","ttl":120,"urgency":"high","wait":"none"}`,
		},
		{"push 1 --user 42", "", "/api/push", `{"data":1,"user":"42","wait":"sent"}`},
		{"push --conn c9 1 --wait ack --timeout 1500ms", "", "/api/push", `{"conn":"c9","data":1,"timeout_ms":1500,"wait":"ack"}`},
		{"disconnect --user 42", "", "/api/disconnect", `{"user":"42"}`},
		{"disconnect --conn c9 --code 3011 --reason moved", "", "/api/disconnect", `{"code":3011,"conn":"c9","reason":"moved"}`},
		{"broadcast 1 --rate 500", "", "/api/broadcast", `{"data":1,"rate":500,"wait":"sent"}`},
	} {
		got := tocsin(t, c.stdin, append(strings.Split(c.args, " "), "--api", url+"/", "--api-key", "K")...)
		if got != (result{0, receipt + "\n", ""}) {
			t.Fatalf("%s: %+v", c.args, got)
		}
		if sent := <-api.request; sent != (heard{c.path, c.body, "K"}) {
			t.Errorf("%s: %+v", c.args, sent)
		}
	}
}

func TestRefusalsAreShown(t *testing.T) {
	_, url := newFakeAPI(t, http.StatusConflict, `{"detail":"It came before."}`)
	if got := tocsin(t, "", "publish", "news", "1", "--api", url); got != (result{1, "", "tocsin: It came before. (409 Conflict)\n"}) {
		t.Errorf("%+v", got)
	}
	_, url = newFakeAPI(t, http.StatusNotFound, "<html>")
	if got := tocsin(t, "", "publish", "news", "1", "--api", url); got.status != 1 || !strings.Contains(got.err, "is it a Tocsin server's API?") {
		t.Errorf("%+v", got)
	}
}

// TestWhatBecameOfAMessage: nobody is no failure of a publish, and a receipt is
// shown whatever came of it.
func TestWhatBecameOfAMessage(t *testing.T) {
	const nobody = `{"type":"about:blank","title":"Not Found","status":404,"detail":"Nobody is there.","code":"nobody"}`
	const noAck = `{"id":"m1","subscribers":1,"written":1,"devices":[{"conn":"c1","status":"written"}]}`
	for _, c := range []struct {
		args   string
		status int
		answer string
		want   result
	}{
		{"publish news 1", 200, `{"id":"m1","subscribers":0}`, result{0, `{"id":"m1","subscribers":0}` + "\n", "tocsin: nobody is subscribed to \"news\"\n"}},
		{"broadcast 1", 200, `{"id":"m1","subscribers":0}`, result{0, `{"id":"m1","subscribers":0}` + "\n", "tocsin: nobody is connected\n"}},
		{"push 1 --user 42", 404, nobody, result{1, "", "tocsin: Nobody is there. (404 Not Found)\n"}},
		{"disconnect --user 42", 404, nobody, result{1, "", "tocsin: Nobody is there. (404 Not Found)\n"}},
		{"push 1 --user 42 --wait ack --timeout 2s", 200, noAck, result{1, noAck + "\n", "tocsin: no device acknowledged within 2s\n"}},
		{"push 1 --user 42 --wait sent", 200, noAck, result{0, noAck + "\n", ""}},
		{
			"push 1 --user 42 --wait ack", 504, `{"type":"about:blank","title":"Gateway Timeout","status":504,"detail":"It ended.","code":"outcome_unknown","id":"m1","subscribers":1}`,
			result{1, `{"id":"m1","subscribers":1}` + "\n", "tocsin: It ended. (504 Gateway Timeout)\n"},
		},
		{"push 1 --user 42 --wait ack", 200, `{"id":"m1","devices":[{"status":"queued"},{"status":"acked"}]}`, result{0, `{"id":"m1","devices":[{"status":"queued"},{"status":"acked"}]}` + "\n", ""}},
	} {
		_, url := newFakeAPI(t, c.status, c.answer)
		if got := tocsin(t, "", append(strings.Fields(c.args), "--api", url)...); got != c.want {
			t.Errorf("%s, %d %s:\n%+v, want\n%+v", c.args, c.status, c.answer, got, c.want)
		}
	}
}

// TestKeyStaysWithTheServer: a redirect is told and not followed.
func TestKeyStaysWithTheServer(t *testing.T) {
	other, elsewhere := newFakeAPI(t, http.StatusOK, `{"id":"m1"}`)
	for _, status := range []int{301, 302, 303, 307, 308} {
		redirect := httptest.NewServer(http.RedirectHandler(elsewhere+"/api/publish", status))
		got := tocsin(t, "", "publish", "news", "1", "--api", redirect.URL, "--api-key", "K")
		redirect.Close()
		if got.status != 1 || got.out != "" || !strings.Contains(got.err, "points to "+elsewhere) || !strings.Contains(got.err, "--api") {
			t.Errorf("%d: %+v", status, got)
		}
	}
	select {
	case sent := <-other.request:
		t.Errorf("the other server got %+v", sent)
	default:
	}
}

// process is a serving tocsin.
type process struct {
	cmd     *exec.Cmd
	log     *bufio.Scanner
	out     io.Reader
	ws, api string
}

// serve starts a server and reads the three lines that it greets with.
func serve(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, command(append([]string{"serve", "--listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"}, args...)...))
}

// start is serve for a command that is made by hand.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	cmd.Env = append(os.Environ(), "BE_TOCSIN=1")
	p := &process{cmd: cmd}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // most have ended by themselves
		_ = p.cmd.Wait()
	})
	p.log = bufio.NewScanner(stderr)
	p.ws = p.nextLine(t)["url"].(string)
	p.api = strings.TrimSuffix(p.nextLine(t)["url"].(string), "/api/")
	if line := p.nextLine(t); line["connections"].(float64) < 1 || line["limit"] == "" {
		t.Fatalf("%v", line)
	}
	return p
}

func (p *process) nextLine(t *testing.T) (line map[string]any) {
	t.Helper()
	if !p.log.Scan() {
		t.Fatal("the log ended early")
	}
	if err := json.Unmarshal(p.log.Bytes(), &line); err != nil {
		t.Fatalf("%s: %v", p.log.Bytes(), err)
	}
	if line["level"] != "INFO" {
		t.Fatalf("%v", line)
	}
	return line
}

// wait returns the exit status and the rest of the log.
func (p *process) wait(t *testing.T) (status int, log string) {
	t.Helper()
	for p.log.Scan() {
		log += p.log.Text() + "\n"
	}
	if err := p.cmd.Wait(); err != nil && p.cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode(), log
}

func (p *process) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// connection is a client of a process.
type connection struct {
	net.Conn
	io.ReadWriter
}

func connect(t *testing.T, url string) connection {
	t.Helper()
	conn, br, _, err := ws.Dial(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	rw := struct {
		io.Reader
		io.Writer
	}{conn, conn}
	if br != nil {
		rw.Reader = br
	}
	return connection{conn, rw}
}

func (c connection) next(t *testing.T) wire.Event {
	t.Helper()
	text, err := wsutil.ReadServerText(c.ReadWriter)
	if err != nil {
		t.Fatal(err)
	}
	event, err := protocol.ParseEvent(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return event
}

func getStatus(t *testing.T, url string) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestDevelopment is the path that the README begins with.
func TestDevelopment(t *testing.T) {
	p := serve(t, "--dev")
	if got := getStatus(t, p.api+"/"); got != http.StatusOK {
		t.Errorf("demo page: status %d", got)
	}
	c := connect(t, p.ws+"?user=42&topics=news")
	if w := c.next(t).Welcome; w == nil || w.User != "42" || len(w.Topics) != 1 {
		t.Fatalf("welcomed with %+v", w)
	}
	got := tocsin(t, "", "publish", "news", `{"hi":1}`, "--api", p.api)
	if got.status != 0 || !strings.Contains(got.out, `"subscribers":1`) {
		t.Fatalf("%+v", got)
	}
	if m := c.next(t).Message; m == nil || m.Topic != "news" || m.Seq != 1 || string(m.Data) != `{"hi":1}` {
		t.Fatalf("got %+v", m)
	}
	if got := tocsin(t, "", "push", "1", "--user", "43", "--api", p.api); got.status != 1 || !strings.Contains(got.err, "Nobody") {
		t.Errorf("%+v", got)
	}
	c.Close()
	p.signal(t, syscall.SIGTERM)
	if status, log := p.wait(t); status != 0 {
		t.Errorf("status %d:\n%s", status, log)
	}
}

// TestTokensLetIn: with a key, clients need a token and backends the key, and
// neither is ever logged (docs/faults.md H15).
func TestTokensLetIn(t *testing.T) {
	const key = "0123456789abcdef0123456789abcdef"
	p := serve(t, "--api-key", key, "--log-level=debug")
	for path, want := range map[string]int{"/": 404, "/api/stats": 401, "/healthz": 200, "/readyz": 200, "/metrics": 200} {
		if got := getStatus(t, p.api+path); got != want {
			t.Errorf("%s: status %d, want %d", path, got, want)
		}
	}
	for _, query := range []string{"", "?user=42", "?token=SECRETxyz"} {
		_, _, _, err := ws.Dial(context.Background(), p.ws+query)
		if err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("%s: %v", query, err)
		}
	}
	token := strings.TrimSpace(tocsin(t, "", "token", "--user", "42", "--api-key", key).out)
	c := connect(t, p.ws+"?token="+token)
	if w := c.next(t).Welcome; w == nil || w.User != "42" {
		t.Fatalf("welcomed with %+v", w)
	}
	if got := tocsin(t, "", "push", "1", "--user", "42", "--api", p.api); got.status != 1 || !strings.Contains(got.err, "401") {
		t.Errorf("without a key: %+v", got)
	}
	if got := tocsin(t, "", "push", "1", "--user", "42", "--api", p.api, "--api-key", key); got.status != 0 {
		t.Errorf("%+v", got)
	}
	if m := c.next(t).Message; m == nil || m.Topic != wire.UserTopic || string(m.Data) != "1" {
		t.Errorf("got %+v", m)
	}
	c.Close()
	p.signal(t, syscall.SIGINT)
	status, log := p.wait(t)
	if status != 0 {
		t.Errorf("status %d:\n%s", status, log)
	}
	for _, secret := range []string{key, token, "SECRETxyz"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %s:\n%s", secret, log)
		}
	}
}

// TestTokenRunsOut: the connection is closed with 3005 when its token would not
// be taken any more (docs/faults.md A12).
func TestTokenRunsOut(t *testing.T) {
	keys := keyring{APIKey: []string{"0123456789abcdef0123456789abcdef"}}
	p := serve(t, "--api-key", keys.APIKey[0])
	token, err := keys.sign("42", 2*time.Second-leeway)
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, p.ws+"?token="+token)
	if w := c.next(t).Welcome; w == nil || w.User != "42" {
		t.Fatalf("welcomed with %+v", w)
	}
	var closed wsutil.ClosedError
	if _, err := wsutil.ReadServerText(c.ReadWriter); !errors.As(err, &closed) || wire.CloseCode(closed.Code) != wire.CloseExpired {
		t.Errorf("closed with %v, want 3005", err)
	}
}

// TestDrain: clients are told goodbye and the process ends with 0.
func TestDrain(t *testing.T) {
	p := serve(t, "--dev", "--drain=100ms", "--return-window=2m")
	c := connect(t, p.ws)
	if e := c.next(t); e.Welcome == nil {
		t.Fatalf("got %+v", e)
	}
	p.signal(t, syscall.SIGTERM)
	if line := p.nextLine(t); line["drain-delay"] != "0s" || line["at-most"] != "9.1s" {
		t.Errorf("%v", line)
	}
	if line := p.nextLine(t); line["msg"] != "draining" || line["over"] != "100ms" || line["return-window"] != "2m0s" {
		t.Errorf("%v", line)
	}
	if g := c.next(t).Goodbye; g == nil || g.Code != wire.CloseShutdown {
		t.Errorf("got %+v", g)
	}
	_, err := wsutil.ReadServerText(c.ReadWriter)
	if closed, ok := errors.AsType[wsutil.ClosedError](err); !ok || closed.Code != ws.StatusCode(wire.CloseShutdown) {
		t.Errorf("closed with %v", err)
	}
	if status, log := p.wait(t); status != 0 || !strings.Contains(log, "stopped") {
		t.Errorf("status %d:\n%s", status, log)
	}
}

// TestSecondSignalExitsAtOnce (docs/faults.md D2). While the first waits,
// /readyz says so and clients are still served.
func TestSecondSignalExitsAtOnce(t *testing.T) {
	p := serve(t, "--dev", "--drain-delay=1h")
	connect(t, p.ws)
	p.signal(t, syscall.SIGTERM)
	if line := p.nextLine(t); line["signal"] != "terminated" {
		t.Errorf("%v", line)
	}
	for getStatus(t, p.api+"/readyz") != http.StatusServiceUnavailable { // it follows the line at once
	}
	if got := getStatus(t, p.api+"/healthz"); got != http.StatusOK {
		t.Errorf("healthz: status %d", got)
	}
	if e := connect(t, p.ws).next(t); e.Welcome == nil {
		t.Errorf("got %+v", e)
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	go func() { // those of the first second do not count
		for p.cmd.Process.Signal(syscall.SIGINT) == nil {
			<-again.C
		}
	}()
	if status, log := p.wait(t); status != 1 || !strings.Contains(log, "second signal") {
		t.Errorf("status %d:\n%s", status, log)
	}
}

// TestSignalsOfOneMomentAreOne (docs/faults.md D2): timeout(1) signals a process
// and then its group, a terminal that closes may send SIGHUP and SIGTERM
// (docs/faults.md X16).
func TestSignalsOfOneMomentAreOne(t *testing.T) {
	p := serve(t, "--dev", "--drain=500ms")
	c := connect(t, p.ws)
	if e := c.next(t); e.Welcome == nil {
		t.Fatalf("got %+v", e)
	}
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT, syscall.SIGTERM} {
		p.signal(t, sig)
	}
	if g := c.next(t).Goodbye; g == nil || g.Code != wire.CloseShutdown {
		t.Errorf("got %+v", g)
	}
	c.Close()
	if status, log := p.wait(t); status != 0 || !strings.Contains(log, "stopped") {
		t.Errorf("status %d:\n%s", status, log)
	}
}

func TestSecondSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal, 8)
		go func() {
			for range 4 {
				signals <- syscall.SIGTERM
				time.Sleep(oneSignal / 3)
			}
			signals <- syscall.SIGINT
		}()
		began := time.Now()
		if sig := secondSignal(signals); sig != syscall.SIGINT || time.Since(began) <= oneSignal {
			t.Errorf("%v after %s", sig, time.Since(began))
		}
	})
}

// TestHangupDrains, but not a process that was started with nohup
// (docs/faults.md X16).
func TestHangupDrains(t *testing.T) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("under nohup")
	}
	p := serve(t, "--dev")
	c := connect(t, p.ws)
	c.next(t)
	p.signal(t, syscall.SIGHUP)
	if g := c.next(t).Goodbye; g == nil || g.Code != wire.CloseShutdown {
		t.Errorf("got %+v", g)
	}
	c.Close()
	if status, log := p.wait(t); status != 0 || !strings.Contains(log, "stopped") {
		t.Errorf("status %d:\n%s", status, log)
	}

	p = start(t, exec.Command("sh", "-c", `trap "" HUP; exec "$0" "$@"`, os.Args[0], "serve", "--listen=127.0.0.1:0", "--api-listen=127.0.0.1:0", "--dev"))
	p.signal(t, syscall.SIGHUP)
	c = connect(t, p.ws)
	if e := c.next(t); e.Welcome == nil {
		t.Errorf("after SIGHUP under nohup: %+v", e)
	}
	c.Close()
	p.signal(t, syscall.SIGTERM)
	if status, log := p.wait(t); status != 0 || strings.Contains(log, "hangup") {
		t.Errorf("status %d:\n%s", status, log)
	}
}

// TestListensWhereItIsTold: 0.0.0.0 is IPv4, and what is logged can be dialed.
// TestSettingsOfTheAPIReachIt: a refusal names the setting that it follows.
func TestSettingsOfTheAPIReachIt(t *testing.T) {
	p := serve(t, "--dev", "--api-max-batch=100B", "--api-max-batch-items=2")
	for _, c := range []struct{ body, want string }{
		{`[{"data":1},{"data":1},{"data":1}]`, "more than 2 messages, send several batches or see api-max-batch-items"},
		{`[` + strings.Repeat(" ", 100) + `]`, "more than 100 bytes, send several batches or see api-max-batch"},
	} {
		resp, err := http.Post(p.api+"/api/batch", "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(answer), c.want) {
			t.Errorf("%s: %d %s, %v", c.body, resp.StatusCode, answer, err)
		}
	}
}

func TestListensWhereItIsTold(t *testing.T) {
	for _, c := range []struct{ address, host, reach string }{
		{"0.0.0.0:0", "0.0.0.0", "localhost"},
		{"127.0.0.1:0", "127.0.0.1", "127.0.0.1"},
		{":0", "::", "localhost"},
	} {
		ln, err := listen("listen", c.address)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		host, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if host == "0.0.0.0" && c.host == "::" {
			host = "::" // a machine without IPv6
		}
		if host != c.host || reachable(ln) != c.reach+":"+port {
			t.Errorf("%s listens on %s, reachable as %s", c.address, ln.Addr(), reachable(ln))
		}
		conn, err := net.Dial("tcp", reachable(ln))
		if err != nil {
			t.Errorf("%s: %v", c.address, err)
			continue
		}
		conn.Close()
	}
}

// TestStandardOutput: in development it says what to open and what to try.
func TestStandardOutput(t *testing.T) {
	p := serve(t, "--dev")
	p.signal(t, syscall.SIGTERM)
	out, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Open " + p.api + "/ in a browser", "curl -H 'Content-Type: application/json'", p.api + "/api/publish"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("printed %s\nwithout %s", out, want)
		}
	}
	if status, log := p.wait(t); status != 0 {
		t.Errorf("status %d:\n%s", status, log)
	}
}

// TestDescriptorLimitIsRaised from the soft limit to the hard one; a
// max-connections beyond that is refused with all numbers (docs/faults.md R1).
func TestDescriptorLimitIsRaised(t *testing.T) {
	script := `ulimit -Sn 100; ulimit -Hn 400; exec "$0" "$@"`
	limited := func(args ...string) *exec.Cmd {
		cmd := exec.Command("sh", append([]string{"-c", script, os.Args[0], "serve", "--dev", "--listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"}, args...)...)
		cmd.Env = append(os.Environ(), "BE_TOCSIN=1")
		return cmd
	}
	var errs bytes.Buffer
	cmd := limited("--max-connections=1000")
	cmd.Stderr = &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != 2 {
		t.Errorf("status %d", got)
	}
	for _, word := range []string{"1000", "400"} {
		if !strings.Contains(errs.String(), word) {
			t.Errorf("%q does not say %s", errs.String(), word)
		}
	}
	if lines := strings.Count(errs.String(), "\n"); lines != 1 {
		t.Errorf("%d lines: %s", lines, &errs)
	}
	p := &process{cmd: limited()}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.log = bufio.NewScanner(stderr)
	p.nextLine(t)
	p.nextLine(t)
	line := p.nextLine(t)
	if n := line["connections"].(float64); n <= 100 || n >= 400 || !strings.Contains(fmt.Sprint(line["limit"]), "400 descriptors") {
		t.Errorf("%v", line)
	}
	p.signal(t, syscall.SIGTERM)
	if status, log := p.wait(t); status != 0 {
		t.Errorf("status %d:\n%s", status, log)
	}
}

// TestNoRoomForAConnectionIsRefused with limit, need and fix (docs/faults.md R1).
func TestNoRoomForAConnectionIsRefused(t *testing.T) {
	cmd := exec.Command("sh", "-c", `ulimit -n 200; exec "$0" "$@"`, os.Args[0], "serve", "--dev", "--listen=127.0.0.1:0", "--api-listen=127.0.0.1:0")
	cmd.Env = append(os.Environ(), "BE_TOCSIN=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != 2 || strings.Count(string(out), "\n") != 1 {
		t.Errorf("status %d: %s", got, out)
	}
	for _, word := range []string{"is 200", "256 for itself", "ulimit -Hn 1256", "LimitNOFILE="} {
		if !strings.Contains(string(out), word) {
			t.Errorf("%s does not say %s", out, word)
		}
	}
}
