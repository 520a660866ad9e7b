//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	patience = 30 * time.Second // for anything that must happen
	apiKey   = "e2e-key"
)

var binary string // tocsin, built once

func TestMain(m *testing.M) {
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tocsin-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "tocsin")
	if out, err := exec.Command("go", "build", "-o", binary, "../cmd/tocsin").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// tocsin is a running server.
type tocsin struct {
	t           *testing.T
	listen, api string
	cmd         *exec.Cmd
	log         bytes.Buffer  // owned by cmd until exited is closed
	exited      chan struct{} // err is set
	err         error
}

// serve starts the binary on ports of its own.
func serve(t *testing.T, flags ...string) *tocsin {
	t.Helper()
	ports := freePorts(t, 2)
	s := &tocsin{t: t, listen: ports[0], api: ports[1]}
	s.start(flags...)
	return s
}

func (s *tocsin) start(flags ...string) {
	s.t.Helper()
	args := append([]string{"serve", "--listen", s.listen, "--api-listen", s.api, "--api-key", apiKey, "--dev"}, flags...)
	s.cmd = exec.Command(binary, args...)
	s.log.Reset()
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() {
		s.err = cmd.Wait()
		close(exited)
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-exited
		if s.t.Failed() {
			s.t.Logf("tocsin said:\n%s", s.log.Bytes())
		}
	})
	s.waitReady()
}

// waitReady asks until the server says it is ready.
func (s *tocsin) waitReady() {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		resp, err := http.Get("http://" + s.api + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case <-s.exited:
			s.t.Fatalf("tocsin ended: %v", s.err)
		case <-deadline:
			s.t.Fatalf("tocsin is not ready after %s: %v", patience, err)
		}
	}
}

// terminate sends SIGTERM.
func (s *tocsin) terminate() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
}

// wantExit waits for the end of the process and wants status 0.
func (s *tocsin) wantExit() {
	s.t.Helper()
	select {
	case <-s.exited:
		if s.err != nil {
			s.t.Errorf("tocsin ended with %v", s.err)
		}
	case <-time.After(patience):
		s.t.Fatalf("tocsin lives %s after SIGTERM", patience)
	}
}

// ws returns a WebSocket URL of the server.
func (s *tocsin) ws(query string) string { return "ws://" + s.listen + "/ws" + query }

// receipt is what the API answers.
type receipt struct {
	ID          string `json:"id"`
	Subscribers int    `json:"subscribers"`
}

// post calls the API and wants a status.
func (s *tocsin) post(path, body string, status int) (r receipt) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+s.api+"/api/"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("X-API-Key", apiKey)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != status {
		s.t.Fatalf("POST %s %s: %s %s, want %d", path, body, resp.Status, answer, status)
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		s.t.Fatalf("POST %s answered %q: %v", path, answer, err)
	}
	return r
}

// push posts to the API and wants so many connections to be addressed.
func (s *tocsin) push(path, body string, subscribers int) receipt {
	s.t.Helper()
	r := s.post(path, body, http.StatusOK)
	if r.Subscribers != subscribers {
		s.t.Errorf("POST %s %s was for %d connections, want %d", path, body, r.Subscribers, subscribers)
	}
	return r
}

// freePorts returns addresses that nobody listened on a moment ago.
func freePorts(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs
}

// lockedBuffer is a bytes.Buffer for a process's output that is read while it
// is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
