package server

import (
	"context"
	"log/slog"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// What follows is written at debug level, for an operator who follows single
// clients. It is written in the turn, so a log that is slow slows the shard.

func (srv *Server) debugs() bool {
	return srv.cfg.Logger.Enabled(context.Background(), slog.LevelDebug)
}

func (srv *Server) logOpen(t *engine.Turn, c *engine.Conn, s *session) {
	if srv.debugs() {
		srv.cfg.Logger.Debug("open", "conn", srv.ids.name(c.Ref()), "user", s.user, "peer", t.Peer(c).String(), "topics", s.topics())
	}
}

func (srv *Server) logClose(c *engine.Conn, s *session, end engine.End) {
	if end.Cut != "" {
		srv.log.Info("a slow reader was closed with 3008, see "+end.Cut.Knob(), "reason", string(end.Cut), "user", s.user)
	}
	if srv.debugs() {
		srv.cfg.Logger.Debug("close", "conn", srv.ids.name(c.Ref()), "user", s.user, "code", int(end.Code), "by", string(end.By), "reason", end.Reason)
	}
}
