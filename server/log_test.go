//go:build linux

package server

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// At debug level one client can be followed from its request to its end, and no
// line has what its query said.
func TestDebugLogFollowsAClient(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
		t.Run(level.String(), func(t *testing.T) {
			var log logBuffer
			srv, addr := started(t, Config{
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level})),
				Auth: func(r *http.Request) (Identity, error) {
					if r.URL.Query().Get("token") != "SECRETgood" {
						return Identity{}, errors.New("the token is wrong")
					}
					return Identity{User: "ann"}, nil
				},
			})
			c := wstest.Dial(t, addr, "/ws?token=SECRETgood&topics=a,b")
			id := c.WantWelcome().Conn
			for range 5 {
				bad := connect(t, addr, 0)
				bad.write(wstest.Request("tocsin.test", "/ws?token=SECRETbad", wstest.NewKey()))
				if status := bad.status(); status != http.StatusUnauthorized {
					t.Errorf("a wrong token: %d", status)
				}
			}
			if _, err := srv.Disconnect(t.Context(), Target{User: "ann"}, wire.CloseForceReconnect, "go elsewhere"); err != nil {
				t.Fatal(err)
			}
			c.WantClosed(wire.CloseForceReconnect)
			text := log.String()
			wants := map[string]int{
				fmt.Sprintf("msg=open conn=%s user=ann peer=127.0.0.1:", id):                            1,
				fmt.Sprintf(`msg=close conn=%s user=ann code=3011 by=server reason="go elsewhere"`, id): 1,
				`status=401 reason=auth text="the token is wrong"`:                                      5,
				`msg="a client was refused by Auth" error="the token is wrong"`:                         1,
				"SECRET": 0,
			}
			for want, n := range wants {
				if level == slog.LevelInfo && strings.HasPrefix(want, "msg=") && !strings.Contains(want, "Auth") || level == slog.LevelInfo && n == 5 {
					n = 0
				}
				if got := strings.Count(text, want); got != n {
					t.Errorf("%d lines with %s, want %d:\n%s", got, want, n, text)
				}
			}
		})
	}
}

// What a client is told names no setting, no Go field and no package; the
// operator's log does.
func TestClientsAreToldNoKnobs(t *testing.T) {
	texts := []string{engine.TextFull}
	for _, cut := range engine.Cuts() {
		texts = append(texts, cut.Text())
	}
	for _, f := range append(failures, failure{err: errors.New("bus: no route to 10.0.0.1")}) {
		texts = append(texts, publishError(fmt.Errorf("publish: %w", f.err)).Message)
	}
	for _, text := range texts {
		for _, knob := range []string{"Config", "max_", "max-", "_timeout", "-timeout", "_budget", "-budget", "outbox", "server:", "10.0.0.1"} {
			if text == "" || strings.Contains(text, knob) {
				t.Errorf("a client is told %q", text)
			}
		}
	}
}
