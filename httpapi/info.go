package httpapi

import (
	_ "embed"
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

//go:embed demo.html
var demoPage string

// stats answers with the numbers of /metrics, histograms left out.
func stats(x *exchange) error {
	s := x.api.backend.Stats()
	out := make(map[string]any)
	for _, m := range scalars {
		out[m.name] = m.get(&s)
	}
	for _, m := range vectors {
		counts := m.get(&s)
		if counts == nil {
			counts = map[string]uint64{}
		}
		out[m.name] = counts
	}
	closes := make(map[string]map[string]uint64)
	for kind, n := range boundedCloses(s.Closes) {
		if closes[kind.code] == nil {
			closes[kind.code] = make(map[string]uint64)
		}
		closes[kind.code][kind.by] = n
	}
	out["closes"] = closes
	x.answerJSON(out)
	return nil
}

func user(x *exchange) error {
	if err := named(wire.CheckUser(x.name)); err != nil {
		return err
	}
	conns := x.api.backend.User(x.name)
	if len(conns) == 0 {
		return server.ErrNobody
	}
	topics, err := x.api.backend.Topics(x.r.Context(), server.Target{User: x.name})
	if err != nil {
		return err
	}
	x.answerJSON(struct {
		User        string   `json:"user"`
		Connections []string `json:"connections"`
		Topics      []string `json:"topics"`
	}{x.name, conns, topics})
	return nil
}

// How many subscribers are listed, and how many at most.
const (
	someSubscribers = 100
	mostSubscribers = 1000
)

// subscribers lists who subscribes to a topic, up to ?limit=.
func subscribers(x *exchange) error {
	if err := named(wire.CheckTopic(x.name)); err != nil {
		return err
	}
	limit := someSubscribers
	if given := x.r.URL.Query().Get("limit"); given != "" {
		n, ok := number([]byte(given), mostSubscribers)
		if !ok {
			return refusef(codeBadRequest, "The parameter limit must be a whole number from 1 to %d.", mostSubscribers)
		}
		limit = int(n)
	}
	_, total, ok := x.api.backend.Topic(x.name)
	if !ok {
		return server.ErrNobody
	}
	type subscriber struct {
		Conn string `json:"conn"`
		User string `json:"user,omitempty"`
	}
	list := []subscriber{}
	for s, err := range x.api.backend.Subscribers(x.r.Context(), x.name) {
		if err != nil {
			return err
		}
		if list = append(list, subscriber(s)); len(list) == limit {
			break
		}
	}
	x.answerJSON(struct {
		Topic       string       `json:"topic"`
		Total       int          `json:"total"`
		Subscribers []subscriber `json:"subscribers"`
	}{x.name, total, list})
	return nil
}

func topic(x *exchange) error {
	if err := named(wire.CheckTopic(x.name)); err != nil {
		return err
	}
	at, subscribers, ok := x.api.backend.Topic(x.name)
	if !ok {
		return server.ErrNobody
	}
	x.answerJSON(struct {
		Topic       string `json:"topic"`
		Seq         uint64 `json:"seq"`
		Epoch       string `json:"epoch"`
		Subscribers int    `json:"subscribers"`
	}{x.name, at.Seq, at.Epoch, subscribers})
	return nil
}

// healthz says that the process answers; a drain does not change that.
func healthz(x *exchange) error {
	x.answer(http.StatusOK, typeText, []byte("ok\n"))
	return nil
}

// readyz says whether new connections should come here.
func readyz(x *exchange) error {
	ready := x.api.cfg.Ready
	if x.api.backend.Stats().Draining || ready != nil && !ready() {
		return server.ErrClosed
	}
	x.answer(http.StatusOK, typeText, []byte("ready\n"))
	return nil
}

func demo(x *exchange) error {
	if x.api.cfg.Demo == "" {
		return notFound(x)
	}
	x.w.Header().Set("Content-Security-Policy",
		"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src ws: wss:; frame-ancestors 'none'")
	page := strings.ReplaceAll(demoPage, "{{ws}}", html.EscapeString(x.api.cfg.Demo))
	x.answer(http.StatusOK, typeHTML, []byte(page))
	return nil
}

// maxProfile bounds the seconds that a profile may take.
const maxProfile = 600

// profile serves one of net/http/pprof's, which take as long as ?seconds=
// says, and so many without it or if they cannot read it.
func profile(h http.HandlerFunc, standard float64) handler {
	serve := plain(h)
	return func(x *exchange) error {
		var seconds float64
		if given := x.r.URL.Query().Get("seconds"); given != "" {
			var err error
			if seconds, err = strconv.ParseFloat(given, 64); err != nil || !(seconds >= 0 && seconds <= maxProfile) {
				return refusef(codeBadRequest, "The parameter seconds must be a number from 0 to %d.", maxProfile)
			}
		}
		if x.r.ContentLength == 0 { // else it is the deadline of a body
			_ = x.control.SetReadDeadline(time.Time{})
		}
		x.setWriteDeadline(x.start.Add(time.Duration(max(seconds, standard) * float64(time.Second))))
		return serve(x)
	}
}

// plain serves a handler that answers by itself.
func plain(h http.Handler) handler {
	return func(x *exchange) error {
		seen := &statusWriter{x.w, http.StatusOK}
		h.ServeHTTP(seen, x.r)
		x.ready = time.Now()
		if x.status = seen.status; x.status >= http.StatusBadRequest {
			x.code = "other"
		}
		return nil
	}
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements [http.ResponseWriter].
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
