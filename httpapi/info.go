package httpapi

import (
	_ "embed"
	"html"
	"io"
	"net/http"
	"strings"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

//go:embed demo.html
var demoPage string

// stats answers with the numbers of /metrics, histograms left out.
func (a *api) stats(w http.ResponseWriter, _ *http.Request) error {
	s := a.backend.Stats()
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
	writeJSON(w, http.StatusOK, "application/json", out)
	return nil
}

func (a *api) user(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	if bad := wire.CheckUser(name); bad != nil {
		return refusef(http.StatusBadRequest, "The %s.", bad.Message)
	}
	conns := a.backend.User(name)
	if len(conns) == 0 {
		return server.ErrNobody
	}
	writeJSON(w, http.StatusOK, "application/json", struct {
		User        string   `json:"user"`
		Connections []string `json:"connections"`
	}{name, conns})
	return nil
}

func (a *api) topic(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if bad := wire.CheckTopic(name); bad != nil {
		return refusef(http.StatusBadRequest, "The %s.", bad.Message)
	}
	at, subscribers, ok := a.backend.Topic(name)
	if !ok {
		return server.ErrNobody
	}
	writeJSON(w, http.StatusOK, "application/json", struct {
		Topic       string `json:"topic"`
		Seq         uint64 `json:"seq"`
		Epoch       string `json:"epoch"`
		Subscribers int    `json:"subscribers"`
	}{name, at.Seq, at.Epoch, subscribers})
	return nil
}

// healthz says that the process answers; a drain does not change that.
func (a *api) healthz(w http.ResponseWriter, _ *http.Request) error {
	_, _ = io.WriteString(w, "ok\n")
	return nil
}

// readyz says whether new connections should come here.
func (a *api) readyz(w http.ResponseWriter, _ *http.Request) error {
	if a.backend.Stats().Draining || a.cfg.Ready != nil && !a.cfg.Ready() {
		return server.ErrClosed
	}
	_, _ = io.WriteString(w, "ready\n")
	return nil
}

func (a *api) demo(w http.ResponseWriter, r *http.Request) error {
	if a.cfg.Demo == "" {
		return notFound(w, r)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy",
		"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src ws: wss:; frame-ancestors 'none'")
	_, _ = io.WriteString(w, strings.ReplaceAll(demoPage, "{{ws}}", html.EscapeString(a.cfg.Demo)))
	return nil
}
