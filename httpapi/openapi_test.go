package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/tocsin-push/tocsin/server"
)

// object is a node of openapi.yaml.
type object = map[string]any

// document is openapi.yaml, as it is served.
type document struct{ root object }

func theDocument(t *testing.T) document {
	t.Helper()
	w := do(New(&backend{}, Config{}), get("/openapi.yaml"))
	var d document
	if err := yaml.Unmarshal(w.Body.Bytes(), &d.root); err != nil {
		t.Fatal(err)
	}
	return d
}

// at returns what stands at a path of keys, with references followed.
func (d document) at(keys ...string) object {
	node := d.root
	for _, key := range keys {
		node = d.follow(node[key])
	}
	return node
}

func (d document) follow(x any) object {
	node, _ := x.(object)
	for node["$ref"] != nil {
		node = d.at(strings.Split(strings.TrimPrefix(node["$ref"].(string), "#/"), "/")...)
	}
	return node
}

// TestOpenAPIHasTheRoutes: paths, methods, sentences, and who needs a key.
func TestOpenAPIHasTheRoutes(t *testing.T) {
	d, a := theDocument(t), newAPI(&backend{}, Config{})
	for _, rt := range a.routes {
		method := strings.ToLower(rt.method)
		if methods := slices.Collect(maps.Keys(d.at("paths", rt.path))); !slices.Equal(methods, []string{method}) {
			t.Errorf("%s has the methods %q, want %s", rt.path, methods, method)
			continue
		}
		operation := d.at("paths", rt.path, method)
		if operation["summary"] != rt.summary {
			t.Errorf("%s: %q, the code says %q", rt.path, operation["summary"], rt.summary)
		}
		if _, open := operation["security"]; open == bool(rt.access) {
			t.Errorf("%s: security is wrong", rt.path)
		}
	}
	if got := len(d.at("paths")); got != len(a.routes) {
		t.Errorf("%d paths, want %d", got, len(a.routes))
	}
}

// TestOpenAPIHasTheFields: each body has the fields that it may have, and no other.
func TestOpenAPIHasTheFields(t *testing.T) {
	d := theDocument(t)
	for name, on := range map[string]routes{
		"Publish": onPublish, "Push": onPush, "Broadcast": onBroadcast, "Disconnect": onDisconnect, "Subscribe": onSubscribe, "Item": onItem,
	} {
		properties := d.at("components", "schemas", name, "properties")
		for _, w := range words {
			if _, has := properties[w.name]; has != (w.on&on != 0) {
				t.Errorf("%s: has %s is %v", name, w.name, has)
			}
			delete(properties, w.name)
		}
		if len(properties) > 0 {
			t.Errorf("%s: nobody reads %v", name, slices.Collect(maps.Keys(properties)))
		}
	}
	var full, problem map[string]any
	r := receipt{server.Receipt{Seq: 1, Epoch: "x", Devices: make([]server.Device, 1)}, server.WaitAck}
	if err := json.Unmarshal(append(r.appendTo([]byte("{")), '}'), &full); err != nil {
		t.Fatal(err)
	}
	w := do(New(&backend{}, Config{}), get("/nowhere"))
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]map[string]any{"Receipt": full, "Problem": problem} {
		got, want := slices.Sorted(maps.Keys(answer)), slices.Sorted(maps.Keys(d.at("components", "schemas", name, "properties")))
		if !slices.Equal(got, want) {
			t.Errorf("%s has %q, the document %q", name, got, want)
		}
	}
}

// told returns "status code" for each answer that the document tells of.
func (d document) told(path, method string) (answers []string) {
	for status := range d.at("paths", path, method, "responses") {
		schema := d.at("paths", path, method, "responses", status, "content", "application/problem+json", "schema")
		if schema == nil {
			answers = append(answers, status+" ")
			continue
		}
		all := schema["allOf"].([]any)
		for _, c := range d.follow(d.follow(all[1])["properties"])["code"].(object)["enum"].([]any) {
			answers = append(answers, fmt.Sprint(status, " ", c))
		}
	}
	slices.Sort(answers)
	return answers
}

// lateBody is a body that does not come in time.
type lateBody struct{}

func (lateBody) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// failures are the errors of a server's methods, by path.
var failures = map[string][]error{
	"/api/publish":    {server.ErrBadMessage, server.ErrTooBig, server.ErrReused, server.ErrBusy, server.ErrClosed, context.Canceled, errors.New("?")},
	"/api/push":       {server.ErrNobody, server.ErrBadMessage, server.ErrTooBig, server.ErrReused, server.ErrBusy, server.ErrClosed, context.Canceled, server.ErrNoAck, errors.New("?")},
	"/api/broadcast":  {server.ErrBadMessage, server.ErrTooBig, server.ErrReused, server.ErrBusy, server.ErrClosed, context.Canceled, errors.New("?")},
	"/api/disconnect": {server.ErrNobody, server.ErrBadMessage, errors.New("?")},
	"/api/subscribe": {
		server.ErrNobody, server.ErrBadMessage, server.ErrTooManyTopics, server.ErrTopicUnavailable, server.ErrClosed, context.Canceled, errors.New("?"),
	},
	"/api/unsubscribe":               {server.ErrNobody, server.ErrBadMessage, server.ErrClosed, context.Canceled, errors.New("?")},
	"/api/users/{name}":              {server.ErrNobody, server.ErrClosed, context.Canceled},
	"/api/topics/{name}/subscribers": {server.ErrClosed, context.Canceled},
	"/readyz":                        {server.ErrClosed},
}

var bodies = map[string]string{
	"/api/publish": `{"topic":"a","data":1}`, "/api/push": `{"user":"a","data":1}`, "/api/broadcast": `{"data":1}`,
	"/api/batch": `[{"user":"a","data":1},{"user":"a","data":1}]`, "/api/disconnect": `{"user":"a"}`,
	"/api/subscribe": `{"user":"a","topic":"t"}`, "/api/unsubscribe": `{"conn":"c","topic":"t"}`,
}

// provoker asks a route what it can refuse, and notes "status code" of each answer.
type provoker struct {
	rt   *route
	good ask
	seen map[string]bool
}

var there = &backend{conns: map[string][]string{"a": {"c"}}}

func (p *provoker) try(b *backend, cfg Config, q ask) {
	cfg.Keys, cfg.MaxBatchItems = []string{"k"}, 2
	h := New(b, cfg)
	for range 1 + cfg.KeyRate { // the last one is over the rate
		w := do(h, q)
		var problem struct{ Code string }
		_ = json.Unmarshal(w.Body.Bytes(), &problem)
		p.seen[fmt.Sprint(w.Code, " ", problem.Code)] = true
	}
}

// provoke asks a route everything that it can refuse, and returns "status
// code" for each answer.
func provoke(t *testing.T, rt *route) []string {
	t.Helper()
	path := map[string]string{
		"/api/users/{name}": "/api/users/a", "/api/topics/{name}": "/api/topics/news/sport",
		"/api/topics/{name}/subscribers": "/api/topics/news/sport/subscribers", "/debug/pprof/{name}": "/debug/pprof/heap",
		"/debug/pprof/profile": "/debug/pprof/profile?seconds=1", "/debug/pprof/trace": "/debug/pprof/trace?seconds=0.01",
	}[rt.path]
	if path == "" {
		path = rt.path
	}
	good := ask{method: rt.method, path: path, body: bodies[rt.path]}.with("X-API-Key", "k")
	p := &provoker{rt, good, make(map[string]bool)}
	p.try(there, Config{Demo: "ws://x"}, good)
	p.try(there, Config{}, good.with("Origin", "http://x"))
	p.try(there, Config{Demo: "ws://x"}, good.with("X-API-Key", "wrong"))
	p.try(there, Config{}, ask{method: http.MethodPut, path: path}.with("X-API-Key", "k"))
	for _, err := range failures[rt.path] {
		b := &backend{conns: there.conns, err: fmt.Errorf("verb: %w: why", err), stats: server.Stats{Draining: true}}
		p.try(b, Config{}, good)
	}
	switch {
	case rt.path == "/":
		p.try(there, Config{}, good)
	case strings.HasPrefix(rt.path, "/api/users/"), strings.HasPrefix(rt.path, "/api/topics/"):
		p.names("none", "a%20b")
	case strings.HasPrefix(rt.path, "/debug/pprof/") && rt.path != "/debug/pprof/symbol":
		q := good
		q.path = strings.Split(path, "?")[0] + "?seconds=x"
		p.try(there, Config{}, q)
		if rt.prefix != "" {
			p.names("nothing")
		}
	case rt.method == http.MethodPost:
		p.post(t)
	}
	return slices.Sorted(maps.Keys(p.seen))
}

// names asks for what does not exist, or cannot.
func (p *provoker) names(names ...string) {
	for _, name := range names {
		q := p.good
		q.path = p.rt.prefix + name + p.rt.suffix
		p.try(there, Config{}, q)
	}
}

// post sends bodies that are refused, and too many.
func (p *provoker) post(t *testing.T) {
	t.Helper()
	p.try(there, Config{KeyRate: 1}, p.good)
	p.try(there, Config{}, p.good.with("Content-Type", "text/plain"))
	bad, long := p.good, p.good
	bad.body, long.body = "{", strings.Repeat(" ", 200)
	p.try(there, Config{}, bad)
	p.try(there, Config{MaxPublish: 100 - envelope, MaxBatch: 100}, long)
	if p.rt.path == "/api/batch" {
		bad.body = `[{"users":["a","b","c"],"data":1}]`
		p.try(there, Config{}, bad)
	}
	r := httptest.NewRequest(p.rt.method, p.good.path, lateBody{})
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	New(there, Config{}).ServeHTTP(w, r)
	wantProblem(t, w, http.StatusRequestTimeout)
	p.seen["408 body_timeout"] = true
}

// TestOpenAPIHasTheAnswers: every answer that a route was seen to give is in
// the document, and the document has no other.
func TestOpenAPIHasTheAnswers(t *testing.T) {
	d, a := theDocument(t), newAPI(&backend{}, Config{})
	all := make(map[string]bool)
	for _, rt := range a.routes {
		got, want := provoke(t, rt), d.told(rt.path, strings.ToLower(rt.method))
		if !slices.Equal(got, want) {
			t.Errorf("%s\nanswers  %q\ndocument %q", rt.path, got, want)
		}
		for _, answer := range got {
			_, code, _ := strings.Cut(answer, " ")
			all[code] = true
		}
	}
	for code := range refusals {
		if !all[string(code)] {
			t.Errorf("no route answers %s", code)
		}
	}
}

// TestOpenAPIHasTheLines: a line of a batch has the codes of a push.
func TestOpenAPIHasTheLines(t *testing.T) {
	line := theDocument(t).at("components", "schemas", "Line", "properties")
	var codes, statuses []string
	for _, err := range append(failures["/api/push"], nil) {
		w := do(New(&backend{err: err}, Config{}), lines(bodies["/api/push"]))
		var got struct {
			Status int
			Code   string
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if statuses = append(statuses, fmt.Sprint(got.Status)); got.Code != "" {
			codes = append(codes, got.Code)
		}
	}
	for key, got := range map[string][]string{"code": codes, "status": statuses} {
		var want []string
		for _, x := range line[key].(object)["enum"].([]any) {
			want = append(want, fmt.Sprint(x))
		}
		slices.Sort(got)
		slices.Sort(want)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s: lines have %q, the document %q", key, got, want)
		}
	}
}

// TestTheAPIIsDocumented: docs/api.md has each path, field and code, and no
// other code.
func TestTheAPIIsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	for _, rt := range newAPI(&backend{}, Config{}).routes {
		if want := "`" + rt.method + " " + rt.path + "`"; !strings.Contains(doc, want) {
			t.Errorf("docs/api.md has no %s", want)
		}
	}
	for _, w := range words {
		if !strings.Contains(doc, "| `"+w.name+"` |") {
			t.Errorf("docs/api.md has no field %s", w.name)
		}
	}
	table := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| (\\d{3}) \\| `([a-z_]+)` \\|").FindAllStringSubmatch(doc, -1) {
		table[row[1]+" "+row[2]] = true
	}
	for code, r := range refusals {
		row := fmt.Sprint(r.status, " ", code)
		if !table[row] {
			t.Errorf("docs/api.md has no row %s", row)
		}
		delete(table, row)
	}
	if len(table) > 0 {
		t.Errorf("docs/api.md has %v, which nothing answers", slices.Collect(maps.Keys(table)))
	}
}
