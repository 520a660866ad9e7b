//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// liar is a server that does with some pushes what it should not.
type liar struct {
	*fake
	mu   sync.Mutex
	held []byte
}

func (f *liar) take(c *fakeConn, n int, data []byte) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	other := f.users["u0"]
	if other == c {
		other = f.users["u1"]
	}
	written := answer{Status: 200, Written: 1}
	switch {
	case n == 5: // lost
	case n == 10:
		c.say(data)
		c.say(data)
	case n == 15: // to another user, and so missing
		other.say(data)
	case n == 20: // to another user too
		c.say(data)
		other.say(data)
	case n == 25:
		c.say(data)
		return answer{Status: 200, Dropped: 1} // which is false
	case n == 30:
		c.say(data)
		return answer{Status: 200, Written: 2} // and so is that
	case n == 35:
		return answer{Status: 200, Dropped: 1}
	case n == 40:
		return answer{Status: 429, Code: "busy"}
	case n == 45:
		c.say(data)
		return answer{Status: 503, Code: "too_late"} // nobody knows, so that it may come
	case n == 50:
		c.say(data)
		return answer{Status: 200, Queued: 1}
	case n > 55 && c.index == f.users["u3"].index && f.held == nil:
		f.held = bytes.Clone(data)
	case c.index == f.users["u3"].index && len(f.held) > 0:
		c.say(data)
		c.say(f.held)
		f.held = []byte{}
	default:
		c.say(data)
	}
	return written
}

// TestPushLies has a server lose a push, double one, give one to another user
// and one to both, swap two of a user, and lie in receipts: all of it is
// counted, and nothing else.
func TestPushLies(t *testing.T) {
	for _, batch := range []string{"0", "10"} {
		t.Run("batch "+batch, func(t *testing.T) {
			f := newFake(t)
			f.push = (&liar{fake: f}).take
			o := loadtest(t, "push", "--url", f.url, "--api", f.trigger, "-n", "4", "--publishers", "4", "--batch", batch,
				"--push-rate", "1000", "--duration", "400ms", "--wait", "500ms")
			o.want(t, map[string]float64{
				"connections": 4, "pushes": 400,
				"receipt_written": 400 - 5 + 1, "receipt_queued": 1, "receipt_dropped": 2, "receipt_failed": 2, "receipt_false": 2,
				"expected": 396, "delivered": 396, "missing": 2, "doubled": 1, "misordered": 1, "foreign": 2,
			})
			if got := o.Results[0].Refused; len(got) != 2 || got["429 busy"] != 1 || got["503 too_late"] != 1 {
				t.Errorf("failed: %v", got)
			}
			want := "of 400 pushes failed 2, missing 2, doubled 1, out of order 1, foreign 2, receipts false 2"
			if o.status != 1 || !strings.Contains(o.err, want) {
				t.Errorf("status %d, %q; want 1 and %q", o.status, o.err, want)
			}
		})
	}
}

// TestPush has an honest server, which gets every push once, for the right
// user, in a batch or alone.
func TestPush(t *testing.T) {
	for _, more := range [][]string{
		{"--push-rate", "500"},
		{"--push-rate", "0", "--rounds", "2"},
		{"--push-rate", "5000", "--batch", "50", "--publishers", "3"},
	} {
		t.Run(strings.Join(more, " "), func(t *testing.T) {
			f := newFake(t)
			file := filepath.Join(t.TempDir(), "report")
			o := loadtest(t, append([]string{
				"push", "--url", f.url + "?user=name-{n}", "--api", f.trigger, "-n", "20", "--procs", "3", "--duration", "300ms",
				"--pid", strconv.Itoa(os.Getpid()), "--report", file + ".html", "--markdown", file + ".md", "--plots", file,
			}, more...)...)
			if o.status != 0 {
				t.Fatalf("status %d: %s", o.status, o.err)
			}
			sent := o.value(t, "pushes")
			if sent < 20 {
				t.Errorf("%v pushes", sent)
			}
			o.want(t, map[string]float64{
				"connections": 20, "receipt_written": sent, "expected": sent, "delivered": sent,
				"missing": 0, "doubled": 0, "misordered": 0, "foreign": 0, "receipt_false": 0, "receipt_failed": 0,
			})
			for _, key := range []string{"pushes_per_s", "push_p90_ms", "http_max_ms", "cpu_us_per_push", "generator_cpu_us"} {
				if o.value(t, key) <= 0 {
					t.Errorf("%s is %v", key, o.value(t, key))
				}
			}
			for _, name := range []string{".html", ".md", "-push.svg", "-http.svg"} {
				if _, err := os.Stat(file + name); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestPushInterrupted ends a run early; what was measured is told, and nothing
// is missing.
func TestPushInterrupted(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.push = func(c *fakeConn, n int, data []byte) answer {
		if n == 20 {
			cancel()
		}
		c.say(data)
		return answer{Status: 200, Written: 1}
	}
	o := loadtestUntil(ctx, t, "push", "--url", f.url, "--api", f.trigger, "-n", "5", "--push-rate", "100", "--duration", "1h")
	sent := o.value(t, "pushes")
	if sent < 20 || !strings.Contains(o.out, `"interrupted": true`) {
		t.Errorf("no report of what was measured: %s", o.out)
	}
	o.want(t, map[string]float64{"delivered": sent, "missing": 0, "receipt_failed": 0})
}

// TestPushIsMeasuredFromWhenItWasDue has the API stand still for 400 ms: the
// pushes that were due meanwhile are told as late as they are, and it is not
// the generator that was late.
func TestPushIsMeasuredFromWhenItWasDue(t *testing.T) {
	f := newFake(t)
	f.push = func(c *fakeConn, n int, data []byte) answer {
		if n == 20 {
			time.Sleep(400 * time.Millisecond)
		}
		c.say(data)
		return answer{Status: 200, Written: 1}
	}
	o := loadtest(t, "push", "--url", f.url, "--api", f.trigger, "-n", "5", "--publishers", "1", "--push-rate", "200", "--duration", "600ms")
	o.want(t, map[string]float64{"pushes": 120, "delivered": 120})
	// 80 of the 120 were due while the API stood still, and their median waited 200 ms.
	if p50 := o.value(t, "push_p50_ms"); p50 < 50 {
		t.Errorf("the median is %v ms", p50)
	}
	if !strings.Contains(strings.Join(o.Notes, "\n"), "more --publishers") {
		t.Errorf("notes %q", o.Notes)
	}
}

// TestPushReceiptsOfEveryKind wants each failure counted under its name.
func TestPushReceiptsOfEveryKind(t *testing.T) {
	for _, c := range []struct {
		batch  string
		answer http.HandlerFunc
		want   string
		n      uint64
	}{
		{"0", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, "401", 10},
		{"0", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"subscribers":0,"written":0}`)) }, "200 for nobody", 10},
		{"0", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"id":"x"}`)) }, "200 without an outcome", 10},
		{"0", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`<html>`)) }, "no receipt", 10},
		{"0", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "connection: closed without an answer", 10},
		{"5", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = json.NewEncoder(w).Encode(answer{Code: "draining"})
		}, "503 draining", 10},
		{"5", func(w http.ResponseWriter, _ *http.Request) { // three lines instead of five
			for range 3 {
				_ = json.NewEncoder(w).Encode(answer{Status: 404, Code: "nobody"})
			}
		}, "no receipt", 4},
		{"5", func(w http.ResponseWriter, _ *http.Request) { // six
			for range 6 {
				_ = json.NewEncoder(w).Encode(answer{Status: 404, Code: "nobody"})
			}
		}, "a receipt that belongs to no push", 2},
	} {
		f := newFake(t)
		api := httptest.NewServer(c.answer)
		o := loadtest(t, "push", "--url", f.url, "--api", api.URL, "-n", "3", "--publishers", "1", "--batch", c.batch, "--push-rate", "1000", "--duration", "10ms")
		api.Close()
		if got := o.Results[0].Refused[c.want]; got != c.n || o.status != 1 {
			t.Errorf("%q: %d times, want %d; all are %v; status %d, %s", c.want, got, c.n, o.Results[0].Refused, o.status, o.err)
		}
		o.want(t, map[string]float64{"pushes": 10, "receipt_failed": 10, "missing": 0})
	}
}
