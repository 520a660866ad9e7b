//go:build linux

package api

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestPosterComesBack has the server close the connection after each answer.
func TestPosterComesBack(t *testing.T) {
	var seen []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("X-API-Key")+" "+r.URL.Path+" "+r.Header.Get("Content-Type"))
		w.Header().Set("Connection", "close")
		_, _ = w.Write([]byte(strings.Repeat("x", 5000*len(seen))))
	}))
	defer api.Close()
	at, err := postTo(api.URL+"/path", false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPoster(t.Context(), at, "key", "text/plain", false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for n := 1; n <= 3; n++ {
		status, answer, err := p.post(t.Context(), []byte("hello"))
		if err != nil || status != 200 || len(answer) != 5000*n {
			t.Errorf("post %d: %d, %d bytes, %v", n, status, len(answer), err)
		}
	}
	if len(seen) != 3 || seen[2] != "key /path text/plain" {
		t.Errorf("the server saw %q", seen)
	}
}

// TestPosterSeesThatAnIdleConnectionIsClosed has the server close it between
// two posts; the second must not be lost with it.
func TestPosterSeesThatAnIdleConnectionIsClosed(t *testing.T) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }))
	defer api.Close()
	at, err := postTo(api.URL, false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPoster(t.Context(), at, "", "text/plain", true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for n := range 2 {
		status, answer, err := p.post(t.Context(), []byte("hello"))
		if err != nil || status != 200 || string(answer) != "ok" {
			t.Fatalf("post %d: %d %s %v", n, status, answer, err)
		}
		api.CloseClientConnections()
		for limit := time.Now().Add(10 * time.Second); !p.ended(); runtime.Gosched() {
			if time.Now().After(limit) {
				t.Fatal("the end is not seen")
			}
		}
		p.last = p.last.Add(-time.Minute)
	}
}
