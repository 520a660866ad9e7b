package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// patience is when a test gives up; nothing in it is as slow.
const patience = 30 * time.Second

// listening starts the server of the API and returns its address.
func listening(t *testing.T, b Backend, cfg Config) (srv *http.Server, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv = NewServer(b, cfg)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close() })
	return srv, ln.Addr().String()
}

// dialed returns a connection on which head has been sent.
func dialed(t *testing.T, address, head string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, head); err != nil {
		t.Fatal(err)
	}
	return c
}

// unsent are requests that announce a body which never comes, and the status
// that they get all the same.
var unsent = []struct {
	status int
	head   string
}{
	{200, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"},
	{200, "GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"},
	{401, "POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"},
	{401, "POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 300000\r\n\r\n"},
	{401, "GET /api/stats HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"},
	{403, "POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nOrigin: http://x\r\nContent-Length: 10\r\n\r\n"},
	{404, "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"},
	{405, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"},
	{405, "PUT /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n"},
	{404, "OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"},
	{413, "POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n"},
	{415, "POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\n"},
}

// TestABodyThatNobodyWantsIsNotWaitedFor: the timeouts are hours, and all the
// same each request is answered and its connection ends (docs/faults.md P3 and X3).
func TestABodyThatNobodyWantsIsNotWaitedFor(t *testing.T) {
	_, address := listening(t, &backend{}, Config{Keys: []string{"k"}, BodyTimeout: time.Hour, WriteTimeout: time.Hour, IdleTimeout: time.Hour})
	conns := make([]net.Conn, full(220, 2000))
	for i := range conns {
		conns[i] = dialed(t, address, unsent[i%len(unsent)].head)
	}
	for i, c := range conns {
		want := unsent[i%len(unsent)]
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", want.head, err)
		}
		if resp.StatusCode != want.status || !resp.Close {
			t.Fatalf("%s: status %d, close %v", want.head, resp.StatusCode, resp.Close)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatalf("%s: %v", want.head, err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != 0 {
			t.Fatalf("%s: the connection does not end: %d bytes, %v", want.head, n, err)
		}
	}
}

// TestARefusedBodyDoesNotEatTheAnswer: who sends its body to the end before it
// reads finds the answer, not a reset.
func TestARefusedBodyDoesNotEatTheAnswer(t *testing.T) {
	_, address := listening(t, &backend{}, Config{Keys: []string{"k"}})
	const length = 100_000
	c := dialed(t, address, fmt.Sprintf("POST /api/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", length)+strings.Repeat(" ", length))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
}

// pipeline sends the request again and again and reads no answer, until the
// connection takes no more for so long, or ends with an error.
func pipeline(t *testing.T, address, path string, stuck time.Duration) error {
	t.Helper()
	c := dialed(t, address, "")
	request := strings.Repeat("GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n", 100)
	for {
		if err := c.SetWriteDeadline(time.Now().Add(stuck)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
	}
}

// TestAnswersThatNobodyReadsEnd: a client that asks and never reads is gone
// after the write timeout.
func TestAnswersThatNobodyReadsEnd(t *testing.T) {
	_, address := listening(t, &backend{}, Config{WriteTimeout: 300 * time.Millisecond})
	for _, path := range []string{"/metrics", "/healthz", "/nowhere", "/api/users/a"} {
		if err := pipeline(t, address, path, patience); isTimeout(err) {
			t.Errorf("%s: the connection lives", path)
		}
	}
}

// TestShutdownIsNotHeld: neither an answer that nobody reads nor a body that
// never comes keeps the process.
func TestShutdownIsNotHeld(t *testing.T) {
	srv, address := listening(t, &backend{}, Config{BodyTimeout: time.Hour, WriteTimeout: time.Hour})
	for _, path := range []string{"/metrics", "/healthz"} {
		if err := pipeline(t, address, path, 500*time.Millisecond); !isTimeout(err) {
			t.Fatalf("%s: not stuck but ended: %v", path, err)
		}
	}
	for _, u := range unsent {
		if u.status < 300 {
			dialed(t, address, u.head)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// TestSlowHeadsAndIdleConnectionsEnd is what NewServer leaves to net/http.
func TestSlowHeadsAndIdleConnectionsEnd(t *testing.T) {
	_, address := listening(t, &backend{}, Config{BodyTimeout: 100 * time.Millisecond, IdleTimeout: 100 * time.Millisecond})
	for _, sent := range []string{"", "GET /healthz HTT", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"} {
		if _, err := io.Copy(io.Discard, dialed(t, address, sent)); err != nil {
			t.Errorf("after %q: %v", sent, err)
		}
	}
}

// TestABodyBehindAFailedExpectationEnds: net/http answers such a request by
// itself and then waits for its body (docs/faults.md P3).
func TestABodyBehindAFailedExpectationEnds(t *testing.T) {
	_, address := listening(t, &backend{}, Config{BodyTimeout: 100 * time.Millisecond})
	for _, body := range []string{"Content-Length: 10", "Transfer-Encoding: chunked"} {
		c := dialed(t, address, "POST /api/publish HTTP/1.1\r\nHost: x\r\nExpect: something\r\n"+body+"\r\n\r\n")
		answer, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 417 ") {
			t.Errorf("%s: %q, %v", body, answer, err)
		}
	}
}

// served asks on c for /healthz and reports whether there is an answer.
func served(c net.Conn) bool {
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return false
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	return err == nil && resp.StatusCode == http.StatusOK
}

// TestConnectionsOverTheBoundAreClosed: the descriptors of the process are the
// clients' too. While all connections are busy a new one is closed; a place that
// is left is somebody else's (docs/faults.md X3).
func TestConnectionsOverTheBoundAreClosed(t *testing.T) {
	_, address := listening(t, &backend{}, Config{MaxConnections: 3, BodyTimeout: time.Hour})
	var busy []net.Conn
	for range 3 {
		busy = append(busy, dialed(t, address, "POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"))
	}
	if served(dialed(t, address, "")) {
		t.Fatal("one too many is served")
	}
	busy[1].Close()
	for deadline := time.Now().Add(patience); !served(dialed(t, address, "")); {
		if time.Now().After(deadline) {
			t.Fatal("the place that was left stays empty")
		}
	}
}

// TestIdleConnectionsMakeRoom: many that were left open keep nobody out.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	_, address := listening(t, &backend{}, Config{MaxConnections: 3})
	for i := range 20 {
		for deadline := time.Now().Add(patience); !served(dialed(t, address, "")); { // none is known to be idle yet
			if time.Now().After(deadline) {
				t.Fatalf("connection %d is not served", i)
			}
		}
	}
}

// TestALongWaitIsNotCut: a push may wait for longer than its body and its
// answer may take, and so may the next one on that connection.
func TestALongWaitIsNotCut(t *testing.T) {
	const limit = 300 * time.Millisecond
	_, address := listening(t, waiting{&backend{}, 3 * limit}, Config{BodyTimeout: limit, WriteTimeout: limit})
	c := dialed(t, address, "")
	r := bufio.NewReader(c)
	for range 2 {
		fmt.Fprintf(c, "POST /api/broadcast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"data\":1}")
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", resp, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAProfileMayTakeItsTime: the deadline of a profile is that of its seconds.
func TestAProfileMayTakeItsTime(t *testing.T) {
	_, address := listening(t, &backend{}, Config{BodyTimeout: 500 * time.Millisecond, WriteTimeout: 500 * time.Millisecond})
	c := dialed(t, address, "GET /debug/pprof/trace?seconds=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n == 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
	wantProblem(t, do(New(&backend{}, Config{}), get("/debug/pprof/profile?seconds=601")), http.StatusBadRequest, "600")
	wantProblem(t, do(New(&backend{}, Config{}), get("/debug/pprof/profile?seconds=NaN")), http.StatusBadRequest, "600")
}
