package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/tocsin-push/tocsin/netpoll"
	"github.com/tocsin-push/tocsin/wire"
)

// limitedLog logs a message at most once a minute for each text, and says how
// often it was left out since. Any goroutine may use it.
type limitedLog struct {
	logger *slog.Logger // static

	mu   sync.Mutex
	last map[string]*limitedLine
}

type limitedLine struct {
	at      time.Time
	leftOut int
}

// sometimes logs an error.
func (l *limitedLog) sometimes(msg string, args ...any) { l.limited(slog.LevelError, msg, args) }

// sometimesInfo logs what an operator may want to know and need not act on.
func (l *limitedLog) sometimesInfo(msg string, args ...any) { l.limited(slog.LevelInfo, msg, args) }

func (l *limitedLog) limited(level slog.Level, msg string, args []any) {
	now := time.Now()
	l.mu.Lock()
	line := l.last[msg]
	if line == nil {
		line = &limitedLine{}
		l.last[msg] = line
	}
	if !line.at.IsZero() && now.Sub(line.at) < time.Minute {
		line.leftOut++
		l.mu.Unlock()
		return
	}
	if line.leftOut > 0 {
		args = append(args, "left-out", line.leftOut)
	}
	*line = limitedLine{at: now}
	l.mu.Unlock()
	l.logger.Log(context.Background(), level, msg, args...)
}

// What follows is written at debug level, for an operator who follows single
// clients. It is written in the turn, so a log that is slow slows the shard.

func (srv *Server) debugs() bool {
	return srv.cfg.Logger.Enabled(context.Background(), slog.LevelDebug)
}

func (w *worker) connID(c *conn) string { return string(w.srv.ids.append(nil, c.ref())) }

func (w *worker) logOpen(c *conn) {
	if w.srv.debugs() {
		w.srv.cfg.Logger.Debug("open", "conn", w.connID(c), "user", c.user, "peer", netpoll.Peer(int(c.fd)).String(), "topics", c.countSubs())
	}
}

func (w *worker) logClose(c *conn, code wire.CloseCode, by, reason string) {
	if w.srv.debugs() {
		w.srv.cfg.Logger.Debug("close", "conn", w.connID(c), "user", c.user, "code", int(code), "by", by, "reason", reason)
	}
}

// logRefusal never says what was asked for: a query may have a token.
func (w *worker) logRefusal(c *conn, no *refusal) {
	if w.srv.debugs() {
		w.srv.cfg.Logger.Debug("refused", "conn", w.connID(c), "peer", netpoll.Peer(int(c.fd)).String(), "status", no.status, "reason", rejectNames[no.reject], "text", no.text)
	}
}
