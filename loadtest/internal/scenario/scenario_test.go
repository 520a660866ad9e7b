//go:build linux

package scenario

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/wire"
)

// TestMain lets this test's program be the generator's worker.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := generator.Work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // else each worker sleeps for a second at its end
	os.Exit(m.Run())
}

// echoServer answers each message with itself and counts them; it returns its
// URL.
func echoServer(t *testing.T, heard *atomic.Int64) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		accept := floor.AppendAccept(nil, []byte(r.Header.Get("Sec-WebSocket-Key")))
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept)
		for {
			h, err := ws.ReadHeader(rw)
			if err != nil || h.OpCode == ws.OpClose {
				return
			}
			payload := make([]byte, h.Length)
			if _, err := io.ReadFull(rw, payload); err != nil {
				return
			}
			ws.Cipher(payload, h.Mask, 0)
			heard.Add(1)
			_, _ = conn.Write(wire.AppendFrame(nil, ws.OpText, payload)) // a lost one is the generator's to notice
		}
	}))
	t.Cleanup(server.Close)
	return "ws" + strings.TrimPrefix(server.URL, "http")
}

// TestNothingIsCountedTwice has a fleet talk, and wants its counters at nothing
// once they were read.
func TestNothingIsCountedTwice(t *testing.T) {
	var heard atomic.Int64
	url := echoServer(t, &heard)
	s := &session{common: common{N: 6, Concurrency: 10, Timeout: time.Minute}, progress: report.NewProgress(&bytes.Buffer{}), report: &report.Report{}, start: time.Now()}
	sub := &subject{Result: report.NewResult("server", url)}
	s.subjects = []*subject{sub}
	defer s.close()
	if err := s.aim(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := sub.fleet.Talk(t.Context(), generator.Talk{Active: 3, Rate: 1000, Duration: 50 * time.Millisecond, Message: "x"}); err != nil {
			t.Fatal(err)
		}
		c, _, err := sub.count()
		if now := sub.fleet.Now(); err != nil || c.Replies != 50 || now.Replies != 0 || now.Open != 6 {
			t.Errorf("%v: %d replies, then %d, and %d open; want 50, 0 and 6", err, c.Replies, now.Replies, now.Open)
		}
	}
	if sub.sum.Replies != 100 || heard.Load() != 100 {
		t.Errorf("%d replies to %d messages, want 100", sub.sum.Replies, heard.Load())
	}
}

// TestRowThatIsNotMeasured wants an error, where a bar that is missed is none.
func TestRowThatIsNotMeasured(t *testing.T) {
	b := &benchRun{Bench: &Bench{Rounds: 2, Duration: time.Millisecond}}
	both := func(server, floor []float64) []*subject { return []*subject{{cpu: server}, {cpu: floor}} }
	if err := b.compare("rate", "", 10, 1, both([]float64{3}, []float64{1, 1})); err == nil || !strings.Contains(err.Error(), "--duration") {
		t.Errorf("a row with one round of two: %v", err)
	}
	if err := b.compare("rate", "", 10, 1, both([]float64{3, 5}, []float64{1, 2})); err != nil {
		t.Error(err)
	}
	if i := slices.IndexFunc(b.rows, func(r report.Row) bool { return r.Measured == 4 && r.Floor == 1.5 && r.Ratio == 2.75 && !r.Met }); i != 0 || len(b.rows) != 1 {
		t.Errorf("%+v", b.rows)
	}
}

// TestLateIsNotSaturated tells a generator that was busy from one that was not
// and was late all the same.
func TestLateIsNotSaturated(t *testing.T) {
	for _, c := range []struct {
		busy    float64
		lag     time.Duration
		samples int
		want    string
	}{
		{0.05, 5 * time.Millisecond, 100, "generator late: 1 % of its messages left more than 5.0 ms late, although it was busy only 5 % of the time"},
		{0.99, 5 * time.Millisecond, 100, "generator saturated: it was busy 99 % of the time, and 1 % of its messages left more than 5.0 ms late"},
		{0.99, 0, 100, "generator saturated: it was busy 99 % of the time, so that latencies and rates are its own as well"},
		{0.05, 5 * time.Millisecond, 99, ""}, // too few to tell of one in a hundred
		{0.05, 0, 1000, ""},
	} {
		lag := generator.NewHistogram()
		if err := lag.RecordValues(int64(c.lag), int64(c.samples)); err != nil {
			t.Fatal(err)
		}
		res := report.NewResult("server", "")
		s := &session{report: &report.Report{}}
		s.saturation(&subject{Result: res}, c.busy, lag)
		if got := strings.Join(s.report.Notes, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("busy %v, %v late: %q, want %q", c.busy, c.lag, got, c.want)
		}
	}
}

// TestGrowthLeavesOutEmptyCaches wants only caches that hold something of the
// connections'.
func TestGrowthLeavesOutEmptyCaches(t *testing.T) {
	before := map[string]machine.Slab{"a": {Objects: 100, Bytes: 1000}, "b": {Objects: 100, Bytes: 1000}, "c": {Objects: 100, Bytes: 1000}, "proc_inode_cache": {}}
	after := map[string]machine.Slab{"a": {Objects: 200, Bytes: 9000}, "b": {Objects: 97, Bytes: 9000}, "c": {Objects: 100, Bytes: 9000}, "proc_inode_cache": {Objects: 900, Bytes: 9000}}
	if got := growth(before, after, 100); len(got) != 1 || got[0].Name != "a" || got[0].Objects != 1 {
		t.Errorf("%+v", got)
	}
}

// TestLiveFitsFewConnections has less connections than stay by default.
func TestLiveFitsFewConnections(t *testing.T) {
	live := Herd{common: common{N: 3}, bystanders: bystanders{Live: -1, LiveRate: 1}, Percent: 100}
	if err := live.check(); err != nil || live.Live != 2 {
		t.Errorf("%d live of 3, %v", live.Live, err)
	}
}

func join(a, b string) string { return a + " " + b }

func TestURLsAreEdited(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{withTopic("ws://h/ws", "a b"), "ws://h/ws?topics=a+b"},
		{withTopic("ws://h/ws?user={n}", "t"), "ws://h/ws?user={n}&topics=t"},
		{withTopic("ws://h/ws?topics=x", "t"), "ws://h/ws?topics=x"},
		{join(withUser("ws://h/ws", "u{n}")), "ws://h/ws?user=u{n} u{n}"},
		{join(withUser("ws://h/ws?a=b", "a b{n}")), "ws://h/ws?a=b&user=a+b{n} a b{n}"},
		{join(withUser("ws://h/ws?user=x%20{n}&a=b", "u{n}")), "ws://h/ws?user=x%20{n}&a=b x {n}"},
		{join(withUser("ws://h/ws?token=t-{n}", "u{n}")), "ws://h/ws?token=t-{n} u{n}"},
		{withHost("ws://h:1/ws?a=b", "i:2"), "ws://i:2/ws?a=b"},
		{withHost("ws://h:1", "i:2"), "ws://i:2"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestMedian(t *testing.T) {
	if median([]float64{3, 1, 2}) != 2 || median([]float64{4, 1, 2, 3}) != 2.5 {
		t.Error("median")
	}
}
