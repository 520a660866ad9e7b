package server

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/internal/wstest"
)

// A request that came by ServeHTTP is late when the kernel's clock says so.
func TestServeHTTPIsLateByTheKernelsClock(t *testing.T) {
	const authTimeout = 8 * time.Second
	s := newSim(t, 1, Config{AuthTimeout: authTimeout, Auth: func(*http.Request) (Identity, error) { return Identity{}, nil }})
	s.Look = time.Second // between the request and the call of Auth
	var timers []time.Duration
	stopped := 0
	s.Timer = func(d time.Duration, f func()) func() bool {
		timers = append(timers, d)
		f()
		return func() bool { stopped++; return false }
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(wstest.Request("tocsin.test", "/ws", "dGhlIHNhbXBsZSBub25jZQ=="))))
	if err != nil {
		t.Fatal(err)
	}
	w := hijackable{httptest.NewRecorder()}
	s.srv.ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "authentication took too long") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if len(timers) != 1 || timers[0] != authTimeout-s.Look || stopped != 1 {
		t.Errorf("timers of %v, %d of them stopped", timers, stopped)
	}
	if st := s.srv.Stats(); st.Handshaking != 0 || st.HandshakeRejects["timeout"] != 1 {
		t.Errorf("%d handshaking, rejects %v", st.Handshaking, st.HandshakeRejects)
	}
	s.Look = 0
	s.run() // Auth returns, and nobody waits for it
	s.check()
}

// hijackable is a writer that says that its connection can be taken over.
type hijackable struct{ *httptest.ResponseRecorder }

func (hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, net.ErrClosed }

// A ResponseWriter that panics takes its request's place with it, not the
// server's: nothing of the request is counted any more.
func TestServeHTTPSurvivesResponseWriter(t *testing.T) {
	for name, cfg := range map[string]Config{
		"in a refusal at once":         {},
		"while it waits for its topic": {Bus: silentBus{}, AuthTimeout: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, 1, cfg)
			s.Timer = func(_ time.Duration, f func()) func() bool { f(); return func() bool { return false } }
			if cfg.Bus == nil {
				s.probe.BeginDrain(false)
			}
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(wstest.Request("tocsin.test", "/ws?topics=news", "dGhlIHNhbXBsZSBub25jZQ=="))))
			if err != nil {
				t.Fatal(err)
			}
			func() {
				defer func() {
					if recover() == nil {
						t.Error("the panic did not reach the http.Server")
					}
				}()
				s.srv.ServeHTTP(faulty{}, r)
			}()
			s.check()
			if st := s.srv.Stats(); st.Handshaking+st.Topics != 0 {
				t.Errorf("%d handshaking, %d topics", st.Handshaking, st.Topics)
			}
		})
	}
}

// faulty is a ResponseWriter that panics.
type faulty struct{ hijackable }

func (faulty) Header() http.Header { panic("a ResponseWriter that panics") }

// silentBus never says where a topic stands.
type silentBus struct{}

func (silentBus) Start(Sink) error { return nil }
func (silentBus) Publish(context.Context, Publication) (Position, error) {
	return Position{}, nil
}
func (silentBus) Subscribe(string)   {}
func (silentBus) Unsubscribe(string) {}
func (silentBus) Close() error       { return nil }
