package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

var _ Backend = (*server.Server)(nil)

// backend answers every message with receipt and err, and remembers the last.
type backend struct {
	receipt server.Receipt
	err     error
	conns   map[string][]string
	stats   server.Stats

	mu     sync.Mutex
	calls  int
	verb   string
	topic  string
	to     server.Target
	msg    server.Message
	items  []server.BatchItem
	code   wire.CloseCode
	reason string
}

func (b *backend) called(verb, topic string, to server.Target, m server.Message) (server.Receipt, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	b.verb, b.topic, b.to, b.msg = verb, topic, to, m
	return b.receipt, b.err
}

func (b *backend) Publish(_ context.Context, topic string, m server.Message) (server.Receipt, error) {
	return b.called("publish", topic, server.Target{}, m)
}

func (b *backend) Push(_ context.Context, to server.Target, m server.Message) (server.Receipt, error) {
	return b.called("push", "", to, m)
}

func (b *backend) Broadcast(_ context.Context, m server.Message) (server.Receipt, error) {
	return b.called("broadcast", "", server.Target{}, m)
}

func (b *backend) Batch(_ context.Context, items []server.BatchItem) []server.BatchResult {
	results := make([]server.BatchResult, len(items))
	for i, item := range items {
		verb := "push"
		if item.Topic != "" {
			verb = "publish"
		}
		results[i].Receipt, results[i].Err = b.called(verb, item.Topic, item.To, item.Message)
	}
	b.items = items
	return results
}

func (b *backend) Disconnect(_ context.Context, to server.Target, code wire.CloseCode, reason string) (int, error) {
	b.code, b.reason = code, reason
	_, err := b.called("disconnect", "", to, server.Message{})
	n := len(b.conns[to.User])
	if err == nil && n == 0 {
		err = server.ErrNobody
	}
	return n, err
}

func (b *backend) User(name string) []string { return b.conns[name] }

func (b *backend) Topic(name string) (server.Position, int, bool) {
	return server.Position{Seq: 17, Epoch: "x"}, 3, name == "news/sport" || name == "subscribers"
}

func (b *backend) Subscribe(_ context.Context, to server.Target, topic string) (int, error) {
	_, err := b.called("subscribe", topic, to, server.Message{})
	return 2, err
}

func (b *backend) Unsubscribe(_ context.Context, to server.Target, topic string) (int, error) {
	_, err := b.called("unsubscribe", topic, to, server.Message{})
	return 1, err
}

func (b *backend) Topics(_ context.Context, of server.Target) ([]string, error) {
	_, err := b.called("topics", "", of, server.Message{})
	return []string{"news", "sport"}, err
}

func (b *backend) Subscribers(_ context.Context, topic string) iter.Seq2[server.Subscriber, error] {
	return func(yield func(server.Subscriber, error) bool) {
		for _, s := range []server.Subscriber{{Conn: "c1", User: "ann"}, {Conn: "c2"}, {Conn: "c3", User: "bob"}} {
			if !yield(s, nil) {
				return
			}
		}
		if _, err := b.called("subscribers", topic, server.Target{}, server.Message{}); err != nil {
			yield(server.Subscriber{}, err)
		}
	}
}

func (b *backend) Stats() server.Stats { return b.stats }

// full returns the size of a fault: that of every day, or with TOCSIN_FULL set
// (make faults) the one it must stand.
func full(everyDay, faults int) int {
	if os.Getenv("TOCSIN_FULL") != "" {
		return faults
	}
	return everyDay
}

// ask is one request; a header value of "" takes the header away.
type ask struct {
	method, path, body string
	header             map[string]string
}

func post(path, body string) ask { return ask{method: http.MethodPost, path: path, body: body} }
func get(path string) ask        { return ask{method: http.MethodGet, path: path} }

func (q ask) with(key, value string) ask {
	q.header = maps.Clone(q.header)
	if q.header == nil {
		q.header = make(map[string]string)
	}
	q.header[key] = value
	return q
}

func do(h http.Handler, q ask) *httptest.ResponseRecorder {
	r := httptest.NewRequest(q.method, q.path, strings.NewReader(q.body))
	if q.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for k, v := range q.header {
		if r.Header.Set(k, v); v == "" {
			r.Header.Del(k)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// wantProblem checks that w refuses with status, a code of that status, and a
// sentence that has all of words in it.
func wantProblem(t *testing.T, w *httptest.ResponseRecorder, status int, words ...string) {
	t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
		Code                code
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("status %d, body %q: %v", w.Code, w.Body, err)
	}
	if w.Code != status || p.Status != status {
		t.Fatalf("status %d (%d in the body), want %d: %s", w.Code, p.Status, status, p.Detail)
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	if p.Type != "about:blank" || p.Title != http.StatusText(status) || p.Code.status() != status ||
		!strings.HasSuffix(p.Detail, ".") && !strings.HasSuffix(p.Detail, "?") {
		t.Errorf("problem %+v", p)
	}
	for _, word := range words {
		if !strings.Contains(p.Detail, word) {
			t.Errorf("detail %q does not say %q", p.Detail, word)
		}
	}
}

func wantBody(t *testing.T, w *httptest.ResponseRecorder, want string) {
	t.Helper()
	if got := strings.TrimSpace(w.Body.String()); w.Code != http.StatusOK || got != want {
		t.Errorf("status %d, body\n%s\nwant\n%s", w.Code, got, want)
	}
}

func TestMessagesReachTheBackend(t *testing.T) {
	full := `{"data":{"hi": [1]},"id":"m1","ttl":60,"urgency":"high","collapse_key":"c","idempotency_key":"k","wait":"none"`
	message := server.Message{
		Data: []byte(`{"hi": [1]}`), ID: "m1", IdempotencyKey: "k", CollapseKey: "c",
		Urgency: "high", TTL: time.Minute, Wait: server.WaitNone,
	}
	rated := message
	rated.Rate = 500
	for _, c := range []struct {
		ask   ask
		verb  string
		topic string
		to    server.Target
		msg   server.Message
	}{
		{post("/api/publish", full+`,"topic":"news"}`), "publish", "news", server.Target{}, message},
		{post("/api/push", full+`,"user":"42"}`), "push", "", server.Target{User: "42"}, message},
		{post("/api/push", full+`,"conn":"c9"}`), "push", "", server.Target{Conn: "c9"}, message},
		{post("/api/broadcast", full+`,"rate":500}`), "broadcast", "", server.Target{}, rated},
		{
			post("/api/push", `{"user":"42","data":null,"wait":"ack","timeout_ms":1500}`), "push", "",
			server.Target{User: "42"},
			server.Message{Data: []byte("null"), Wait: server.WaitAck, AckTimeout: 1500 * time.Millisecond},
		},
		{
			post("/api/publish", `{"topic":"a","data":"\u00e9","ttl":null}`), "publish", "a",
			server.Target{},
			server.Message{Data: []byte(`"\u00e9"`), Wait: server.WaitSent},
		},
	} {
		b := &backend{}
		if w := do(New(b, Config{}), c.ask); w.Code != http.StatusOK {
			t.Fatalf("%s: status %d: %s", c.ask.body, w.Code, w.Body)
		}
		if b.verb != c.verb || b.topic != c.topic || b.to != c.to || !reflect.DeepEqual(b.msg, c.msg) {
			t.Errorf("%s %s:\n%s %q %+v %+v", c.ask.path, c.ask.body, b.verb, b.topic, b.to, b.msg)
		}
	}
}

func TestReceipts(t *testing.T) {
	b := &backend{receipt: server.Receipt{
		ID: "m1", Seq: 7, Epoch: "x", Subscribers: 3, Written: 1, Queued: 1, Dropped: 1,
		Devices: []server.Device{{Conn: "c1", Status: server.StatusAcked}, {Conn: "c2", Status: server.StatusQueued}},
	}}
	h := New(b, Config{})
	wantBody(t, do(h, post("/api/push", `{"user":"42","data":1}`)),
		`{"id":"m1","seq":7,"epoch":"x","subscribers":3,"written":1,"queued":1,"dropped":1,`+
			`"devices":[{"conn":"c1","status":"acked"},{"conn":"c2","status":"queued"}],"duplicate":false}`)
	wantBody(t, do(h, post("/api/publish", `{"topic":"a","data":1,"wait":"none"}`)),
		`{"id":"m1","seq":7,"epoch":"x","subscribers":3,"duplicate":false}`)

	// That nobody acknowledged is not a failure that a proxy may repeat.
	b.receipt.Devices[0].Status = server.StatusWritten
	b.err = fmt.Errorf("push: %w", server.ErrNoAck)
	wantBody(t, do(h, post("/api/push", `{"user":"42","data":1,"wait":"ack"}`)),
		`{"id":"m1","seq":7,"epoch":"x","subscribers":3,"written":1,"queued":1,"dropped":1,"acked":0,`+
			`"devices":[{"conn":"c1","status":"written"},{"conn":"c2","status":"queued"}],"duplicate":false}`)
	b.receipt.Devices[0].Status, b.err = server.StatusAcked, nil
	if w := do(h, post("/api/push", `{"user":"42","data":1,"wait":"ack"}`)); !strings.Contains(w.Body.String(), `"acked":1,`) {
		t.Errorf("one acknowledged: %s", w.Body)
	}
}

// TestAProblemTellsTheReceipt: what is known of a message that failed late is
// in the problem.
func TestAProblemTellsTheReceipt(t *testing.T) {
	b := &backend{receipt: server.Receipt{ID: "m1", Subscribers: 1, Dropped: 1, Devices: []server.Device{{Conn: "c1", Status: server.StatusDropped}}}}
	b.err = fmt.Errorf("push: %w: every connection has ended", server.ErrNobody)
	w := do(New(b, Config{}), post("/api/push", `{"user":"42","data":1}`))
	wantProblem(t, w, http.StatusNotFound, "Nobody")
	var p struct {
		ID      string
		Devices []struct{ Conn, Status string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.ID != "m1" || len(p.Devices) != 1 || p.Devices[0].Status != "dropped" {
		t.Errorf("the problem does not tell the devices: %s", w.Body)
	}
}

func TestToNobodyIsAnAnswer(t *testing.T) {
	h := New(&backend{receipt: server.Receipt{ID: "m1"}}, Config{})
	const none = `{"id":"m1","subscribers":0,"written":0,"queued":0,"dropped":0,"duplicate":false}`
	wantBody(t, do(h, post("/api/publish", `{"topic":"a","data":1}`)), none)
	wantBody(t, do(h, post("/api/broadcast", `{"data":1}`)), none)
}

func TestDisconnect(t *testing.T) {
	b := &backend{conns: map[string][]string{"42": {"c1", "c2"}}}
	h := New(b, Config{})
	wantBody(t, do(h, post("/api/disconnect", `{"user":"42"}`)), `{"disconnected":2}`)
	if b.code != 0 || b.reason != "" { // the server has the defaults
		t.Errorf("closed with %d %q", b.code, b.reason)
	}
	wantBody(t, do(h, post("/api/disconnect", `{"user":"42","code":4001,"reason":"banned"}`)), `{"disconnected":2}`)
	if b.code != 4001 || b.reason != "banned" {
		t.Errorf("closed with %d %q", b.code, b.reason)
	}
	wantProblem(t, do(h, post("/api/disconnect", `{"user":"43"}`)), http.StatusNotFound)
}

func TestErrorsBecomeProblems(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		words  string
	}{
		{server.ErrNobody, 404, "Nobody"},
		{fmt.Errorf("%w: id has 129 bytes, the limit is 128", server.ErrBadMessage), 400, "id has 129 bytes"},
		{server.ErrTooBig, 413, "max-publish"},
		{server.ErrReused, 409, "idempotency_key"},
		{server.ErrBusy, 429, "publish-budget"},
		{server.ErrClosed, 503, "shutting down"},
	} {
		h := New(&backend{err: fmt.Errorf("%w", c.err), conns: map[string][]string{"a": {"c"}}}, Config{})
		for _, q := range slices.Concat(messages, others) {
			w := do(h, q)
			wantProblem(t, w, c.status, c.words)
			if got := w.Header().Get("Retry-After"); (got != "") != (c.status == 429) {
				t.Errorf("%v: Retry-After %q", c.err, got)
			}
		}
	}
}

// Requests that send a message, and others.
var (
	messages = []ask{post("/api/publish", `{"topic":"a","data":1}`), post("/api/push", `{"user":"a","data":1}`), post("/api/broadcast", `{"data":1}`)}
	others   = []ask{
		post("/api/disconnect", `{"user":"a"}`), post("/api/subscribe", `{"user":"a","topic":"t"}`),
		post("/api/unsubscribe", `{"user":"a","topic":"t"}`), get("/api/users/a"), get("/api/topics/news/sport/subscribers"),
	}
)

// An idempotency_key tells what became of a message. Other requests have none,
// and do the same when they come again.
func TestUnknownOutcome(t *testing.T) {
	for _, err := range []error{context.Canceled, context.DeadlineExceeded} {
		h := New(&backend{err: fmt.Errorf("%w", err), conns: map[string][]string{"a": {"c"}}}, Config{})
		for _, q := range messages {
			wantProblem(t, do(h, q), http.StatusGatewayTimeout, "idempotency_key")
		}
		for _, q := range others {
			w := do(h, q)
			wantProblem(t, w, http.StatusGatewayTimeout, "sent again")
			if strings.Contains(w.Body.String(), "idempotency_key") {
				t.Errorf("%s: %s", q.path, w.Body)
			}
		}
	}
}

// A topic that the bus does not give is no failure of the API.
func TestTopicIsUnavailable(t *testing.T) {
	h := New(&backend{err: fmt.Errorf("subscribe: %w", server.ErrTopicUnavailable)}, Config{})
	w := do(h, post("/api/subscribe", `{"user":"a","topic":"t"}`))
	wantProblem(t, w, http.StatusServiceUnavailable, "topic", "log")
	if got := w.Header().Get("Retry-After"); got != "1" || !strings.Contains(w.Body.String(), `"code":"topic_unavailable"`) {
		t.Errorf("Retry-After %q: %s", got, w.Body)
	}
}

// TestEveryErrorHasARow reads which words [server.Reason] has.
func TestEveryErrorHasARow(t *testing.T) {
	text, err := os.ReadFile("../server/errors.go")
	if err != nil {
		t.Fatal(err)
	}
	words := regexp.MustCompile(`(?m)^\t\{Err\w+, "(\w+)",`).FindAllSubmatch(text, -1)
	if len(words) == 0 {
		t.Fatal("server/errors.go has no words")
	}
	for _, w := range words {
		switch word := string(w[1]); word {
		case server.Reason(server.ErrBadMessage): // codeBadRequest
		case server.Reason(server.ErrNoAck): // a receipt
		default:
			if refusals[code(word)].detail == "" {
				t.Errorf("nothing is told of %s", word)
			}
		}
	}
}

func TestAnUnknownErrorIsLoggedAndNotTold(t *testing.T) {
	var log strings.Builder
	b := &backend{err: errors.New("disk 7 is on fire")}
	h := New(b, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	w := do(h, post("/api/broadcast", `{"data":1}`))
	wantProblem(t, w, http.StatusInternalServerError)
	if strings.Contains(w.Body.String(), "fire") || !strings.Contains(log.String(), "disk 7 is on fire") {
		t.Errorf("told %s, logged %s", w.Body, &log)
	}
}

var tooDeep = strings.Repeat("[", wire.MaxDepth) + strings.Repeat("]", wire.MaxDepth)

// badBodies, and words of the sentence that tells what is wrong.
var badBodies = []struct{ path, body, words string }{
	{"publish", `not json`, "not valid JSON"},
	{"publish", `{"topic":"a","data":1`, "not valid JSON"},
	{"publish", `{"topic":"a","data":1} x`, "not valid JSON"},
	{"publish", `{"topic":"a","data":1}{}`, "not valid JSON"},
	{"publish", `{"topic":"a","data":01}`, "not valid JSON"},
	{"publish", `{"topic":"a","data":NaN}`, "not valid JSON"},
	{"publish", `[{"topic":"a","data":1}]`, "object"},
	{"publish", `"a"`, "object"},
	{"publish", "{\"topic\":\"a\",\"data\":\"\xff\"}", "UTF-8"},
	{"publish", "\xef\xbb\xbf{\"topic\":\"a\",\"data\":1}", "not valid JSON"},
	{"publish", `{"topic":"a","data":` + tooDeep + `}`, "nested deeper than 32"},
	{"publish", `{"topic":` + tooDeep + `,"data":1}`, "nested deeper than 32"},
	{"publish", `{"topic":"a","data":1,"topic":"b"}`, `topic comes twice`},
	{"publish", `{"topic":"a","data":1,"\u0064ata":2}`, `data comes twice`},
	{"publish", `{"topic":"a"}`, "data is missing"},
	{"publish", `{"Topic":"a","data":1}`, `no field "Topic", did you mean topic?`},
	{"publish", `{"topic":"a","data":1,"tll":5}`, `no field "tll", did you mean ttl?`},
	{"publish", `{"topic":"a","data":1,"expires":5}`, `no field "expires" on this path`},
	{"push", `{"users":["a"],"data":1}`, "users does not belong"},
	{"publish", `{"data":1}`, "topic is missing"},
	{"publish", `{"topic":"","data":1}`, "topic is missing"},
	{"publish", `{"topic":7,"data":1}`, "topic must be a string"},
	{"publish", `{"topic":"$user","data":1}`, "reserved"},
	{"publish", `{"topic":"$x","data":1}`, "reserved"},
	{"publish", `{"topic":"a b","data":1}`, "space"},
	{"publish", `{"topic":"a\u0000","data":1}`, "control"},
	{"publish", `{"topic":"a\u0085b","data":1}`, "control"},
	{"publish", `{"topic":"` + strings.Repeat("a", 256) + `","data":1}`, "256 bytes"},
	{"publish", `{"topic":"a","user":"42","data":1}`, "user does not belong"},
	{"publish", `{"topic":"a","data":1,"rate":5}`, "rate does not belong"},
	{"publish", `{"topic":"a","data":1,"wait":"ack"}`, "wait must be"},
	{"publish", `{"topic":"a","data":1,"wait":"all"}`, "wait must be"},
	{"publish", `{"topic":"a","data":1,"wait":0}`, "wait must be"},
	{"publish", `{"topic":"a","data":1,"ttl":0}`, "ttl must be"},
	{"publish", `{"topic":"a","data":1,"ttl":-1}`, "ttl must be"},
	{"publish", `{"topic":"a","data":1,"ttl":1.5}`, "ttl must be"},
	{"publish", `{"topic":"a","data":1,"ttl":"60"}`, "ttl must be"},
	{"publish", `{"topic":"a","data":1,"ttl":99999999999999999999}`, "ttl must be"},
	{"publish", `{"topic":"a","data":1,"urgency":"urgent"}`, "very-low, low, normal or high"},
	{"publish", `{"topic":"a","data":1,"id":5}`, "id must be a string"},
	{"publish", `{"topic":"a","data":1,"collapse_key":[]}`, "collapse_key must be"},
	{"publish", `{"topic":"a","data":1,"idempotency_key":{}}`, "idempotency_key must be"},
	{"push", `{"data":1}`, "user and conn"},
	{"push", `{"user":"a","conn":"b","data":1}`, "user and conn"},
	{"push", `{"user":"a b","data":1}`, "user name"},
	{"push", `{"topic":"a","user":"a","data":1}`, "topic does not belong"},
	{"push", `{"user":"a","data":1,"timeout_ms":5}`, `timeout_ms needs "wait":"ack"`},
	{"push", `{"user":"a","data":1,"wait":"ack","timeout_ms":600001}`, "timeout_ms must be"},
	{"broadcast", `{"topic":"a","data":1}`, "topic does not belong"},
	{"broadcast", `{"data":1,"rate":0}`, "rate must be"},
	{"broadcast", `{"data":1,"wait":"ack"}`, "wait must be"},
	{"disconnect", `{}`, "user and conn"},
	{"disconnect", `{"user":"a","code":1005}`, "code must be"},
	{"disconnect", `{"user":"a","code":2000}`, "code must be"},
	{"disconnect", `{"user":"a","code":1001}`, "code must be"},
	{"disconnect", `{"user":"a","code":70000}`, "code must be"},
	{"disconnect", `{"user":"a","reason":"` + strings.Repeat("é", 62) + `"}`, "reason must be"},
	{"disconnect", `{"user":"a","data":1}`, "data does not belong"},
}

// TestBadBodiesAreRefused: each is refused with 400 and a sentence that names
// what is wrong, and none reaches the backend (docs/faults.md P2 and P8).
func TestBadBodiesAreRefused(t *testing.T) {
	for _, c := range badBodies {
		b := &backend{}
		w := do(New(b, Config{}), post("/api/"+c.path, c.body))
		wantProblem(t, w, http.StatusBadRequest, c.words)
		if t.Failed() || b.calls != 0 {
			t.Fatalf("%s: %d calls", c.body, b.calls)
		}
	}
}

func TestTopicsThatArePossible(t *testing.T) {
	for _, topic := range []string{"a", "a/b", "a.b:c-d", "日本", "a$", strings.Repeat("é", 127)} {
		b := &backend{}
		if w := do(New(b, Config{}), post("/api/publish", `{"topic":"`+topic+`","data":1}`)); w.Code != http.StatusOK || b.topic != topic {
			t.Errorf("%q: status %d, topic %q", topic, w.Code, b.topic)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	b := &backend{}
	h := New(b, Config{})
	q := post("/api/broadcast", `{"data":1}`)
	for _, accepted := range []string{"application/json", "Application/JSON; charset=utf-8"} {
		if w := do(h, q.with("Content-Type", accepted)); w.Code != http.StatusOK {
			t.Errorf("%s: status %d", accepted, w.Code)
		}
	}
	b.calls = 0
	for _, refused := range []string{"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", ";"} {
		wantProblem(t, do(h, q.with("Content-Type", refused)), http.StatusUnsupportedMediaType, "application/json")
	}
	for _, coding := range []string{"gzip", "br", "identity"} {
		wantProblem(t, do(h, q.with("Content-Encoding", coding)), http.StatusUnsupportedMediaType, "Content-Encoding")
	}
	if b.calls != 0 {
		t.Errorf("%d calls", b.calls)
	}
}

// zeros is a body without end that counts what is read of it.
type zeros struct{ read int64 }

func (z *zeros) Read(b []byte) (int, error) {
	clear(b)
	z.read += int64(len(b))
	return len(b), nil
}

// TestTooBigBodiesAreRefused before they are read to their end (docs/faults.md
// P2).
func TestTooBigBodiesAreRefused(t *testing.T) {
	const limit = 1 << 10
	b := &backend{}
	h := New(b, Config{MaxPublish: limit})
	fits := `{"topic":"a","data":"` + strings.Repeat("x", limit-2) + `","id":"` + strings.Repeat("i", 128) + `"}`
	if w := do(h, post("/api/publish", fits)); w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	over := `{"topic":"a","data":"` + strings.Repeat("x", limit-1) + `"}`
	wantProblem(t, do(h, post("/api/publish", over)), http.StatusRequestEntityTooLarge, "max-publish", "1024")

	for _, length := range []int64{-1, 1 << 30} {
		body := &zeros{}
		r := httptest.NewRequest(http.MethodPost, "/api/publish", io.LimitReader(body, 1<<30))
		r.ContentLength = length
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		wantProblem(t, w, http.StatusRequestEntityTooLarge, "max-publish")
		if most := int64(limit + envelope + 1); body.read > most || w.Header().Get("Connection") != "close" {
			t.Errorf("read %d bytes of a GiB, want at most %d", body.read, most)
		}
	}
	if b.calls != 1 {
		t.Errorf("%d calls", b.calls)
	}
}

// countedListener counts what a server reads from its sockets.
type countedListener struct {
	net.Listener
	read atomic.Int64
}

type countedConn struct {
	net.Conn
	read *atomic.Int64
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countedConn{c, &l.read}, err
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// TestAGibibyteIsNotRead goes through net/http, which reads on after a handler
// to keep a connection alive unless it is told not to (docs/faults.md P2).
func TestAGibibyteIsNotRead(t *testing.T) {
	srv := httptest.NewUnstartedServer(New(&backend{}, Config{}))
	ln := &countedListener{Listener: srv.Listener}
	srv.Listener = ln
	srv.Start()
	defer srv.Close()
	for _, length := range []int64{-1, 1 << 30} {
		r, err := http.NewRequest(http.MethodPost, srv.URL+"/api/broadcast", io.NopCloser(io.LimitReader(&zeros{}, 1<<30)))
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		r.Header.Set("Content-Type", "application/json")
		if resp, err := srv.Client().Do(r); err == nil { // an error: the connection ended while the client still wrote
			resp.Body.Close()
			if resp.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		if n := ln.read.Swap(0); n > 1<<20 {
			t.Errorf("read %d bytes of a GiB", n)
		}
	}
}

// TestSlowBodiesTimeOut: clients that never finish their body get 408, and keep
// nobody else from publishing (docs/faults.md P3).
func TestSlowBodiesTimeOut(t *testing.T) {
	_, address := listening(t, &backend{}, Config{BodyTimeout: time.Second})
	conns := make([]net.Conn, full(200, 2000))
	for i := range conns {
		conns[i] = dialed(t, address, "POST /api/broadcast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
	}
	for range 100 {
		resp, err := http.Post("http://"+address+"/api/broadcast", "application/json", strings.NewReader(`{"data":1}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	for _, c := range conns {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(body), "api-timeout") {
			t.Fatalf("status %d: %s %v", resp.StatusCode, body, err)
		}
	}
}

// waiting is a backend that takes its time, or until the request ends.
type waiting struct {
	*backend
	wait time.Duration
}

func (b waiting) Broadcast(ctx context.Context, _ server.Message) (server.Receipt, error) {
	select {
	case <-ctx.Done():
		return server.Receipt{}, ctx.Err()
	case <-time.After(b.wait):
		return server.Receipt{}, nil
	}
}

// TestKeysAreChecked: without the right key there is 401, whatever is asked for
// (docs/faults.md P1).
func TestKeysAreChecked(t *testing.T) {
	b := &backend{}
	h := New(b, Config{Keys: []string{"first", "second"}})
	guarded := []ask{
		post("/api/publish", `{"topic":"a","data":1}`), post("/api/push", `{"user":"a","data":1}`),
		post("/api/broadcast", `{"data":1}`), post("/api/disconnect", `{"user":"a"}`),
		get("/api/stats"), get("/api/users/a"), get("/api/topics/a"), get("/debug/pprof/"), get("/debug/pprof/heap"), get("/debug/pprof/profile"),
	}
	const tries = 1000
	for i := range tries {
		q := guarded[i%len(guarded)]
		switch i % 5 {
		case 0:
			q = q.with("X-API-Key", fmt.Sprintf("first%d", i))
		case 1:
			q = q.with("Authorization", "Bearer secon")
		case 2:
			q = q.with("Authorization", "Basic first")
		case 3:
			q = q.with("X-API-Key", "wrong").with("Authorization", "Bearer first")
		}
		w := do(h, q)
		wantProblem(t, w, http.StatusUnauthorized, "X-API-Key")
		if w.Header().Get("WWW-Authenticate") == "" || t.Failed() {
			t.Fatalf("try %d: no WWW-Authenticate", i)
		}
	}
	if b.calls != 0 {
		t.Fatalf("%d calls without a key", b.calls)
	}
	metrics := do(h, get("/metrics")).Body.String()
	for _, line := range []string{
		`tocsin_api_unauthorized_total{reason="missing"} 400`,
		`tocsin_api_unauthorized_total{reason="wrong"} 600`,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("metrics do not have %s", line)
		}
	}
	for _, q := range []ask{
		get("/api/stats").with("X-API-Key", "first"), get("/api/stats").with("X-API-Key", "second"),
		get("/api/stats").with("Authorization", "Bearer second"), get("/api/stats").with("Authorization", "bearer first"),
		get("/healthz"), get("/readyz"), get("/metrics"),
	} {
		if w := do(h, q); w.Code != http.StatusOK {
			t.Errorf("%s %v: status %d", q.path, q.header, w.Code)
		}
	}
}

// TestBrowsersAreRefused: nothing that a foreign page can make a browser send
// is accepted, and no cookie is ever set (docs/faults.md P10).
func TestBrowsersAreRefused(t *testing.T) {
	b := &backend{}
	h := New(b, Config{})
	q := post("/api/broadcast", `{"data":1}`)
	preflight := ask{method: http.MethodOptions, path: "/api/broadcast"}
	for _, c := range []struct {
		ask    ask
		status int
	}{
		{q.with("Origin", "https://evil.example"), http.StatusForbidden},
		{q.with("Origin", "null"), http.StatusForbidden},
		{q.with("Origin", "http://example.com"), http.StatusForbidden}, // its own host
		{q.with("Content-Type", "text/plain").with("Cookie", "session=1"), http.StatusUnsupportedMediaType},
		{preflight.with("Origin", "https://evil.example"), http.StatusForbidden},
		{preflight, http.StatusMethodNotAllowed},
	} {
		w := do(h, c.ask)
		wantProblem(t, w, c.status)
		if len(w.Result().Cookies()) != 0 || w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("headers %v", w.Header())
		}
	}
	if b.calls != 0 {
		t.Errorf("%d calls", b.calls)
	}
}

// TestReusedIDsConflict, as far as it is the API's: each of 1,000 pairs of one
// id and two bodies ends in 200 and 409 (docs/faults.md P6).
func TestReusedIDsConflict(t *testing.T) {
	b := &once{backend: &backend{}, seen: make(map[string]string)}
	h := New(b, Config{})
	for i := range 1000 {
		q := post("/api/broadcast", fmt.Sprintf(`{"id":"m%d","data":1}`, i))
		if w := do(h, q); w.Code != http.StatusOK {
			t.Fatalf("status %d", w.Code)
		}
		wantBody(t, do(h, q), fmt.Sprintf(`{"id":"m%d","subscribers":0,"written":0,"queued":0,"dropped":0,"duplicate":true}`, i))
		wantProblem(t, do(h, post("/api/broadcast", fmt.Sprintf(`{"id":"m%d","data":2}`, i))), http.StatusConflict)
		if t.Failed() {
			t.Fatalf("pair %d", i)
		}
	}
}

// once is a backend that knows the ids it had.
type once struct {
	*backend
	seen map[string]string
}

func (b *once) Broadcast(_ context.Context, m server.Message) (server.Receipt, error) {
	before, ok := b.seen[m.ID]
	b.seen[m.ID] = string(m.Data)
	if ok && before != string(m.Data) {
		return server.Receipt{}, fmt.Errorf("broadcast: %w", server.ErrReused)
	}
	return server.Receipt{ID: m.ID, Duplicate: ok}, nil
}

// TestRateOfAKeyIsLimited is the part of a publish flood that the API decides
// by itself (docs/faults.md P4).
func TestRateOfAKeyIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{}
		h := New(b, Config{Keys: []string{"a", "b"}, KeyRate: 10})
		q := post("/api/broadcast", `{"data":1}`)
		for range 10 {
			if w := do(h, q.with("X-API-Key", "a")); w.Code != http.StatusOK {
				t.Fatalf("status %d", w.Code)
			}
		}
		for range 50 {
			w := do(h, q.with("X-API-Key", "a"))
			wantProblem(t, w, http.StatusTooManyRequests, "api-rate")
			if got := w.Header().Get("Retry-After"); got != "1" {
				t.Fatalf("Retry-After %q", got)
			}
		}
		if w := do(h, q.with("X-API-Key", "b")); w.Code != http.StatusOK {
			t.Errorf("the other key: status %d", w.Code)
		}
		if w := do(h, get("/api/stats").with("X-API-Key", "a")); w.Code != http.StatusOK {
			t.Errorf("a GET: status %d", w.Code)
		}
		time.Sleep(time.Second) // of the bubble's clock
		if w := do(h, q.with("X-API-Key", "a")); w.Code != http.StatusOK || b.calls != 12 {
			t.Errorf("a second later: status %d, %d calls", w.Code, b.calls)
		}
	})
}

func TestInformation(t *testing.T) {
	b := &backend{conns: map[string][]string{"4/2": {"c1", "c2"}}}
	b.stats = server.Stats{
		Connections: 3, Accepted: 9, Drops: map[string]uint64{"expired": 2},
		Closes: map[server.CloseKind]uint64{{Code: 3008, By: "server"}: 4},
	}
	h := New(b, Config{})
	wantBody(t, do(h, get("/api/users/4%2F2")), `{"user":"4/2","connections":["c1","c2"],"topics":["news","sport"]}`)
	wantProblem(t, do(h, get("/api/users/43")), http.StatusNotFound)
	wantProblem(t, do(h, get("/api/users/")), http.StatusBadRequest, "empty")
	wantBody(t, do(h, get("/api/topics/news/sport")), `{"topic":"news/sport","seq":17,"epoch":"x","subscribers":3}`)
	wantProblem(t, do(h, get("/api/topics/none")), http.StatusNotFound)
	const who = `{"topic":"news/sport","total":3,"subscribers":[{"conn":"c1","user":"ann"},{"conn":"c2"}`
	wantBody(t, do(h, get("/api/topics/news/sport/subscribers")), who+`,{"conn":"c3","user":"bob"}]}`)
	wantBody(t, do(h, get("/api/topics/news/sport/subscribers?limit=2")), who+`]}`)
	for _, limit := range []string{"0", "1001", "-1", "x", "1.5"} {
		wantProblem(t, do(h, get("/api/topics/news/sport/subscribers?limit="+limit)), http.StatusBadRequest, "limit", "1000")
	}
	wantProblem(t, do(h, get("/api/topics/none/subscribers")), http.StatusNotFound)
	wantProblem(t, do(h, get("/api/topics//subscribers")), http.StatusBadRequest, "empty")
	wantProblem(t, do(h, get("/api/topics/news/sport%2Fsubscribers")), http.StatusNotFound) // a topic of that name
	wantBody(t, do(h, get("/api/topics/subscribers")), `{"topic":"subscribers","seq":17,"epoch":"x","subscribers":3}`)
	wantBody(t, do(h, get("/api/topics/subscribers/subscribers?limit=1")), `{"topic":"subscribers","total":3,"subscribers":[{"conn":"c1","user":"ann"}]}`)
	wantProblem(t, do(h, get("/api/topics/$all")), http.StatusBadRequest, "reserved")

	var stats struct {
		Connections, Accepted int
		Drops                 map[string]int
		Closes                map[string]map[string]int
	}
	w := do(h, get("/api/stats"))
	if err := json.Unmarshal(w.Body.Bytes(), &stats); err != nil {
		t.Fatal(err)
	}
	if stats.Connections != 3 || stats.Accepted != 9 || stats.Drops["expired"] != 2 || stats.Closes["3008"]["server"] != 4 {
		t.Errorf("%s", w.Body)
	}
}

func TestMethodsAndPaths(t *testing.T) {
	h := New(&backend{}, Config{})
	for _, path := range []string{"/api/publish", "/api/push", "/api/broadcast", "/api/disconnect"} {
		w := do(h, get(path))
		wantProblem(t, w, http.StatusMethodNotAllowed, "POST")
		if w.Header().Get("Allow") != "POST" {
			t.Errorf("Allow %q", w.Header().Get("Allow"))
		}
	}
	wantProblem(t, do(h, post("/api/stats", "{}")), http.StatusMethodNotAllowed, "GET")
	for _, path := range []string{"/", "/admin/", "/apis", "/api/nothing", "/favicon.ico", "/debug/pprof/cmdline"} {
		if w := do(h, get(path)); w.Code != http.StatusNotFound {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	if w := do(h, ask{method: http.MethodHead, path: "/healthz"}); w.Code != http.StatusOK {
		t.Errorf("HEAD: status %d", w.Code)
	}
}

func TestReadiness(t *testing.T) {
	ready := true
	b := &backend{}
	h := New(b, Config{Ready: func() bool { return ready }})
	wantBody(t, do(h, get("/readyz")), "ready")
	ready = false
	wantProblem(t, do(h, get("/readyz")), http.StatusServiceUnavailable)
	ready, b.stats.Draining = true, true
	wantProblem(t, do(h, get("/readyz")), http.StatusServiceUnavailable)
	wantBody(t, do(h, get("/healthz")), "ok")
}

func TestDemoPage(t *testing.T) {
	w := do(New(&backend{}, Config{Demo: `ws://127.0.0.1:8080/ws?"<`}), get("/"))
	body := w.Body.String()
	if w.Code != http.StatusOK || !strings.Contains(body, `data-ws="ws://127.0.0.1:8080/ws?&#34;&lt;"`) || strings.Contains(body, "{{") {
		t.Errorf("status %d: %s", w.Code, body)
	}
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
		t.Errorf("headers %v", w.Header())
	}
}

// TestNamesAreNotCleaned: a path is a name, and what is behind it is part of
// it, whatever it looks like.
func TestNamesAreNotCleaned(t *testing.T) {
	for path, want := range map[string]string{
		"a//b": "a//b", "a/../b": "a/../b", "./a": "./a", "a/": "a/", "/a": "/a", "a%2F%2Fb": "a//b", "a%20": "", "..": "..",
	} {
		seen := &names{backend: &backend{}}
		h := New(seen, Config{})
		do(h, get("/api/topics/"+path))
		do(h, get("/api/users/"+path))
		if seen.topic != want || seen.user != want {
			t.Errorf("%s is topic %q and user %q, want %q", path, seen.topic, seen.user, want)
		}
	}
}

// names is a backend that remembers what it was asked about.
type names struct {
	*backend
	topic, user string
}

func (b *names) Topic(name string) (server.Position, int, bool) {
	b.topic = name
	return server.Position{}, 0, true
}

func (b *names) User(name string) []string {
	b.user = name
	return []string{"c"}
}

func TestThePathsAreListed(t *testing.T) {
	h := New(&backend{}, Config{Keys: []string{"k"}})
	for _, path := range []string{"/api/", "/api"} {
		var got struct{ Paths map[string]string }
		w := do(h, get(path))
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Paths["POST /api/publish"] == "" || got.Paths["GET /api/users/{name}"] == "" {
			t.Errorf("%s: %s, %v", path, w.Body, err)
		}
	}
	wantProblem(t, do(h, get("/api/nothing")), http.StatusNotFound, "/openapi.yaml", "docs/api.md")
}

// TestAPushAllocatesLittle: no more than a handful of allocations for reading
// a body, and none for writing its receipt.
func TestAPushAllocatesLittle(t *testing.T) {
	body := []byte(`{"user":"u42","data":{"kind":"order","id":4711},"ttl":60,"id":"m1"}`)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := parse(body, onPush); err != nil {
			t.Fatal(err)
		}
	}); n > 4 { // the request, its user and id, and where the scanner tells of members
		t.Errorf("%v allocations to read a body", n)
	}
	r := &receipt{server.Receipt{ID: "m1", Subscribers: 1, Devices: []server.Device{{Conn: "c", Status: server.StatusWritten}}}, server.WaitSent}
	buf := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() { buf = r.appendTo(buf[:0]) }); n > 0 {
		t.Errorf("%v allocations to write a receipt", n)
	}
}

// TestSubscribe hands topic and target on, and answers how many.
func TestSubscribe(t *testing.T) {
	b := &backend{}
	h := New(b, Config{})
	wantBody(t, do(h, post("/api/subscribe", `{"user":"ann","topic":"news"}`)), `{"subscribed":2}`)
	if b.verb != "subscribe" || b.topic != "news" || b.to != (server.Target{User: "ann"}) {
		t.Errorf("%s %s %+v", b.verb, b.topic, b.to)
	}
	wantBody(t, do(h, post("/api/unsubscribe", `{"conn":"c1","topic":"news"}`)), `{"unsubscribed":1}`)
	if b.verb != "unsubscribe" || b.topic != "news" || b.to != (server.Target{Conn: "c1"}) {
		t.Errorf("%s %s %+v", b.verb, b.topic, b.to)
	}
	b.calls = 0
	for _, path := range []string{"/api/subscribe", "/api/unsubscribe"} {
		for body, word := range map[string]string{
			`{"user":"ann"}`:                             "topic is missing",
			`{"topic":"news"}`:                           "Exactly one",
			`{"topic":"news","user":"ann","conn":"c"}`:   "Exactly one",
			`{"topic":"$all","user":"ann"}`:              "reserved",
			`{"topic":"news","user":"a b"}`:              "user",
			`{"topic":"news","user":"ann","data":1}`:     "data",
			`{"topic":"news","user":"ann","topics":[1]}`: "did you mean topic?",
		} {
			wantProblem(t, do(h, post(path, body)), http.StatusBadRequest, word)
		}
	}
	if b.calls > 0 {
		t.Error("the backend was called")
	}
}
