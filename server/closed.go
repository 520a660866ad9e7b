package server

import "github.com/tocsin-push/tocsin/server/internal/engine"

// Closed implements engine.App: the connection leaves its topics and its user,
// and OnClose is told.
func (a app) Closed(t *engine.Turn, c *engine.Conn, end engine.End) {
	srv := a.srv
	s := srv.session(t, c)
	srv.logClose(c, s, end)
	for sub := range s.each {
		sub.group.Remove(t, c)
		srv.hub.leave(sub)
	}
	if s.ref != 0 {
		srv.hub.logout(s)
	}
	if srv.cfg.OnClose != nil {
		t.CallLast(c, &closeJob{hook: srv.cfg.OnClose, conn: srv.handle(t, c, s), code: int(end.Code)})
	}
	*s = session{}
}
