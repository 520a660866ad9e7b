package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tocsin-push/tocsin/server"
)

func lines(body string) ask { return post("/api/batch", body).with("Content-Type", linesType) }

// wantLines checks that w has these lines.
func wantLines(t *testing.T, w *httptest.ResponseRecorder, want ...string) {
	t.Helper()
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != linesType {
		t.Fatalf("status %d, %s: %s", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	got := strings.Split(strings.TrimSuffix(w.Body.String(), "\n"), "\n")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("lines\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// byAddress is a backend whose receipts name who they are for; nobody is away.
type byAddress struct{ *backend }

func (b byAddress) Batch(ctx context.Context, items []server.BatchItem) []server.BatchResult {
	results := b.backend.Batch(ctx, items)
	for i, item := range items {
		results[i].Receipt = server.Receipt{ID: item.Topic + item.To.User + item.To.Conn, Subscribers: 1, Written: 1}
		switch item.To.User {
		case "away":
			results[i] = server.BatchResult{Err: fmt.Errorf("push: %w", server.ErrNobody)}
		case "gone":
			results[i].Err = fmt.Errorf("push: %w", server.ErrNobody)
		}
	}
	return results
}

// TestABatchAnswersEachItemInOrder: as lines and as an array (docs/faults.md P5).
func TestABatchAnswersEachItemInOrder(t *testing.T) {
	items := []string{
		`{"topic":"news","data":1,"wait":"none"}`,
		`{"user":"ann","data":{"hi": 1},"id":"m1","ttl":60,"urgency":"high","collapse_key":"c","idempotency_key":"k"}`,
		`{"user":"away","data":1}`,
		`{"data":1}`,
		`{"topic":"a","user":"b","data":1}`,
		`{"user":"ann","data":1,"tll":5}`,
		`{"user":"ann","data":1,"wait":"ack"}`,
		`{"user":"ann","data":"` + strings.Repeat("x", 1024) + `"}`,
		`{"conn":"c9","data":1}`,
		`{"users":["ann","b b","away","bob"],"data":1}`,
		`{"users":[],"data":1}`,
		`{"user":"gone","data":1}`,
	}
	const (
		sent = `"subscribers":1,"written":1,"queued":0,"dropped":0,"duplicate":false}`
		away = `"status":404,"code":"nobody","detail":"Nobody is there: no connection has that user, topic or id."`
		one  = `"status":400,"code":"bad_request","detail":"Exactly one of the fields topic, user, users and conn must be given."}`
	)
	want := []string{
		`{"index":0,"status":200,"id":"news","subscribers":1,"duplicate":false}`,
		`{"index":1,"status":200,"id":"ann",` + sent,
		`{"index":2,` + away + `}`,
		`{"index":3,` + one,
		`{"index":4,` + one,
		`{"index":5,"status":400,"code":"bad_request","detail":"There is no field \"tll\", did you mean ttl?"}`,
		`{"index":6,"status":400,"code":"bad_request","detail":"The field wait must be none or sent in a batch; /api/push can wait for an ack."}`,
		`{"index":7,"status":413,"code":"too_big","detail":"The field data may have at most 1024 bytes, see max-publish."}`,
		`{"index":8,"status":200,"id":"c9",` + sent,
		`{"index":9,"user":"ann","status":200,"id":"ann",` + sent,
		`{"index":9,"user":"b b","status":400,"code":"bad_request","detail":"The user name has a space or control character at byte 1."}`,
		`{"index":9,"user":"away",` + away + `}`,
		`{"index":9,"user":"bob","status":200,"id":"bob",` + sent,
		`{"index":10,"status":400,"code":"bad_request","detail":"The field users must be a list of at least one string."}`,
		`{"index":11,` + away + `,"id":"gone",` + sent,
	}
	for _, q := range []ask{
		lines(strings.Join(items, "\n")),
		lines("\r\n" + strings.Join(items, "\r\n\n") + "\n"),
		post("/api/batch", "["+strings.Join(items, ",\n")+"]"),
	} {
		b := byAddress{&backend{}}
		wantLines(t, do(New(b, Config{MaxPublish: 1024}), q), want...)
		if len(b.items) != 8 {
			t.Fatalf("%d items reached the backend", len(b.items))
		}
		full := server.BatchItem{To: server.Target{User: "ann"}, Message: server.Message{
			Data: []byte(`{"hi": 1}`), ID: "m1", IdempotencyKey: "k", CollapseKey: "c", Urgency: "high", TTL: time.Minute, Wait: server.WaitSent,
		}}
		if !reflect.DeepEqual(b.items[1], full) || b.items[0].Topic != "news" || b.items[0].Message.Wait != server.WaitNone {
			t.Errorf("items %+v", b.items[:2])
		}
	}
}

// TestABatchThatIsNotOneIsRefusedWhole: nothing of it reaches the backend,
// unless it comes in lines, where only one is wrong.
func TestABatchThatIsNotOneIsRefusedWhole(t *testing.T) {
	b := &backend{}
	h := New(b, Config{MaxBatch: 2000, MaxBatchItems: 5})
	const ok = `{"topic":"a","data":1}`
	for _, c := range []struct {
		ask   ask
		code  code
		words string
	}{
		{post("/api/batch", `[`+ok+`,{"topic":"a","data":01}]`), codeBadRequest, "not valid JSON"},
		{post("/api/batch", `[`+ok+`,]`), codeBadRequest, "not valid JSON"},
		{post("/api/batch", `[`+ok), codeBadRequest, "not valid JSON"},
		{post("/api/batch", "["+ok+",\"\xff\"]"), codeBadRequest, "UTF-8"},
		{post("/api/batch", ok), codeBadRequest, "array"},
		{post("/api/batch", `[`+strings.Repeat(ok+",", 5)+ok+`]`), codeTooMany, "5 messages"},
		{lines(strings.Repeat(ok+"\n", 6)), codeTooMany, "5 messages"},
		{lines(`{"users":["a","b","c","d","e","f"],"data":1}`), codeTooMany, "5 messages"},
		{lines(strings.Repeat(" ", 2001)), codeTooBig, "2000 bytes"},
		{lines(ok).with("Content-Type", "text/plain"), codeMediaType, "application/json or application/x-ndjson"},
	} {
		wantProblem(t, do(h, c.ask), c.code.status(), c.words)
		if b.calls != 0 {
			t.Fatalf("%s: %d calls", c.ask.body, b.calls)
		}
	}
	wantLines(t, do(h, lines(ok+"\n{\n"+ok)),
		`{"index":0,"status":200,"id":"","subscribers":0,"written":0,"queued":0,"dropped":0,"duplicate":false}`,
		`{"index":1,"status":400,"code":"bad_request","detail":"The body cannot be read: not valid JSON."}`,
		`{"index":2,"status":200,"id":"","subscribers":0,"written":0,"queued":0,"dropped":0,"duplicate":false}`)
	wantLines(t, do(h, post("/api/batch", `[]`)), "")
}

// TestABatchThatEndsEarlySendsNothing: the publisher died while it sent the
// batch (docs/faults.md P9).
func TestABatchThatEndsEarlySendsNothing(t *testing.T) {
	b := &backend{}
	_, address := listening(t, b, Config{})
	c := dialed(t, address,
		"POST /api/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 100\r\n\r\n{\"topic\":\"a\",\"data\":1}\n")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusBadRequest || b.calls != 0 {
		t.Errorf("%v, %v, %d calls", resp, err, b.calls)
	}
}

// TestUsersShareAPayloadAndNotAKey: a retry of one item for many users sends
// to those again who did not get it, so each has a key of its own.
func TestUsersShareAPayloadAndNotAKey(t *testing.T) {
	keys := func(body string) (keys []string) {
		b := &backend{}
		do(New(b, Config{}), lines(body))
		if len(b.items) != 2 || &b.items[0].Message.Data[0] != &b.items[1].Message.Data[0] {
			t.Fatalf("%s: items %+v", body, b.items)
		}
		for _, item := range b.items {
			keys = append(keys, item.Message.IdempotencyKey)
		}
		return keys
	}
	byKey, byID := keys(`{"users":["a","b"],"data":1,"idempotency_key":"k","id":"m"}`), keys(`{"users":["a","b"],"data":1,"id":"k"}`)
	if byKey[0] == byKey[1] || byKey[0] == "k" || len(byKey[0]) > 128 || !reflect.DeepEqual(byKey, byID) {
		t.Errorf("keys %q and %q", byKey, byID)
	}
	if none := keys(`{"users":["a","b"],"data":1}`); none[0] != "" || none[1] != "" {
		t.Errorf("keys %q without any", none)
	}
}

// TestABatchCountsItsMessages: the key's rate holds for messages, however they
// come (docs/faults.md P4).
func TestABatchCountsItsMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{}
		h := New(b, Config{KeyRate: 10})
		batch := lines(`{"users":["` + strings.Repeat(`a","`, 34) + `a"],"data":1}`) // 35 messages
		if w := do(h, batch); w.Code != http.StatusOK || b.calls != 35 {
			t.Fatalf("status %d, %d calls", w.Code, b.calls)
		}
		// 25 more than there were, and the one that is asked for.
		w := do(h, post("/api/broadcast", `{"data":1}`))
		wantProblem(t, w, http.StatusTooManyRequests, "api-rate")
		if got := w.Header().Get("Retry-After"); got != "3" {
			t.Errorf("Retry-After %q", got)
		}
		time.Sleep(2500 * time.Millisecond) // of the bubble's clock
		wantProblem(t, do(h, batch), http.StatusTooManyRequests)
		time.Sleep(100 * time.Millisecond)
		if w := do(h, batch); w.Code != http.StatusOK {
			t.Errorf("status %d", w.Code)
		}
	})
}

// TestALongAnswerIsWhole: the answer to a full batch is longer than what is
// kept of it at a time.
func TestALongAnswerIsWhole(t *testing.T) {
	const n = 10_000
	var body strings.Builder
	for i := range n {
		fmt.Fprintf(&body, "{\"user\":\"u%d\",\"data\":%d}\n", i, i)
	}
	d := json.NewDecoder(do(New(byAddress{&backend{}}, Config{}), lines(body.String())).Body)
	for i := range n {
		var line struct {
			Index, Status int
			ID            string
		}
		if err := d.Decode(&line); err != nil || line.Index != i || line.Status != 200 || line.ID != fmt.Sprintf("u%d", i) {
			t.Fatalf("line %d: %+v, %v", i, line, err)
		}
	}
	if d.More() {
		t.Error("more lines than items")
	}
}
