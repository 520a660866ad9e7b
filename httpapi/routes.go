package httpapi

import (
	_ "embed"
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// route is one path of the API.
type route struct {
	path    string // as openapi.yaml has it; slashes may be in {name}
	method  string // empty: any
	access  access
	summary string
	serve   handler

	// Set by addRoutes.
	prefix string // the path before {name}; empty if it has none
	suffix string // and behind it
	ok     prometheus.Observer
}

// handler answers a request, or returns why it is refused: a *[problem], or an
// error of package server.
type handler func(x *exchange) error

// access says whether a route asks for an API key.
type access bool

const (
	public access = false
	keyed  access = true
)

func (a *api) addRoutes() {
	const get, post = http.MethodGet, http.MethodPost
	a.routes = []*route{
		{path: "/api/publish", method: post, access: keyed, summary: "Send a message to the subscribers of a topic", serve: publish},
		{path: "/api/push", method: post, access: keyed, summary: "Send a message to the devices of a user, or to one connection", serve: push},
		{path: "/api/broadcast", method: post, access: keyed, summary: "Send a message to every connection", serve: broadcast},
		{path: "/api/batch", method: post, access: keyed, summary: "Publish and push many messages", serve: batch},
		{path: "/api/subscribe", method: post, access: keyed, summary: "Subscribe the connections of a user, or one connection, to a topic", serve: subscribe},
		{path: "/api/unsubscribe", method: post, access: keyed, summary: "End the subscriptions of a user, or of one connection, to a topic", serve: unsubscribe},
		{path: "/api/disconnect", method: post, access: keyed, summary: "Close the connections of a user, or one connection", serve: disconnect},
		{path: "/api/stats", method: get, access: keyed, summary: "The numbers of /metrics, as JSON", serve: stats},
		{path: "/api/users/{name}", method: get, access: keyed, summary: "The connections and topics of a user", serve: user},
		{path: "/api/topics/{name}/subscribers", method: get, access: keyed, summary: "Who subscribes to a topic", serve: subscribers},
		{path: "/api/topics/{name}", method: get, access: keyed, summary: "Where a topic stands, and how many subscribe to it", serve: topic},
		{path: "/api/", method: get, access: public, summary: "This list", serve: index},
		{path: "/openapi.yaml", method: get, access: public, summary: "This API as OpenAPI 3.1", serve: openAPI},
		{path: "/metrics", method: get, access: public, summary: "Metrics for Prometheus", serve: plain(a.metrics.handler())},
		{path: "/healthz", method: get, access: public, summary: "Whether the process answers", serve: healthz},
		{path: "/readyz", method: get, access: public, summary: "Whether new connections should come here", serve: readyz},
		// Not cmdline, which shows keys that were given as flags.
		{path: "/debug/pprof/profile", method: get, access: keyed, summary: "A CPU profile of ?seconds=30", serve: profile(pprof.Profile, 30)},
		{path: "/debug/pprof/trace", method: get, access: keyed, summary: "A trace of ?seconds=1", serve: profile(pprof.Trace, 1)},
		{path: "/debug/pprof/symbol", method: get, access: keyed, summary: "Names of program counters", serve: plain(http.HandlerFunc(pprof.Symbol))},
		{path: "/debug/pprof/{name}", method: get, access: keyed, summary: "Profiles of Go's net/http/pprof", serve: profile(pprof.Index, 0)},
		{path: "/", method: get, access: public, summary: "A page to try it with, where there is one", serve: demo},
	}
	a.nowhere = &route{path: "other", access: public, serve: notFound}
	a.exact = make(map[string]*route)
	for _, rt := range append(a.routes, a.nowhere) {
		if prefix, rest, ok := strings.Cut(rt.path, "{name}"); ok {
			rt.prefix, rt.suffix = prefix, rest
			a.prefixes = append(a.prefixes, rt)
		} else {
			a.exact[rt.path] = rt
		}
		rt.ok = a.metrics.requests.WithLabelValues(rt.path, "200", "ok")
	}
	a.exact["/api"] = a.exact["/api/"]
	a.index = a.listRoutes()
}

// listRoutes returns the answer to GET /api/.
func (a *api) listRoutes() []byte {
	paths := make(map[string]string)
	for _, rt := range a.routes {
		paths[rt.method+" "+rt.path] = rt.summary
	}
	list, err := json.MarshalIndent(map[string]any{"paths": paths, "see": "/openapi.yaml or docs/api.md"}, "", "  ")
	if err != nil {
		panic(err)
	}
	return append(list, '\n')
}

//go:embed openapi.yaml
var openAPIDocument []byte

func index(x *exchange) error {
	x.answer(http.StatusOK, typeJSON, x.api.index)
	return nil
}

func openAPI(x *exchange) error {
	x.answer(http.StatusOK, typeYAML, openAPIDocument)
	return nil
}

func notFound(x *exchange) error {
	return refusef(codeNotFound, "There is no %s here, see /openapi.yaml or docs/api.md for the paths.", x.r.URL.Path)
}
