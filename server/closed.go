package server

import "github.com/tocsin-push/tocsin/server/internal/engine"

// Closed implements engine.App: the connection leaves its topics and its user,
// and OnClose is told, unless OnOpen was not.
func (a app) Closed(t *engine.Turn, c *engine.Conn, end engine.End) {
	srv := a.srv
	s := srv.session(t, c)
	defer func() { *s = session{} }() // also if the log panics
	if j, ok := t.Job(c).(*publishJob); ok {
		j.gone.Store(true)
	}
	admitted := s.admitted()
	srv.leaveAll(t, c, s)
	if admitted && srv.cfg.OnClose != nil {
		t.CallLast(c, &closeJob{hook: srv.cfg.OnClose, conn: srv.handle(t, c, s), code: int(end.Code)})
	}
	srv.logClose(c, s, end)
}

// leaveAll takes c out of its topics and its user's devices.
func (srv *Server) leaveAll(t *engine.Turn, c *engine.Conn, s *session) {
	if s.ref != 0 {
		srv.hub.logout(s)
	}
	if s.more != nil {
		for _, k := range s.more.catching {
			defer srv.letGo(s, k)
		}
	}
	for sub := range s.each {
		sub.group.Remove(t, c)
	}
	if s.more != nil {
		defer srv.hub.leaveEach(s.more.subs)
	}
	srv.hub.leaveEach(s.subs[:])
}

// leaveEach is leave of each of subs that is not nil, whatever becomes of one. It
// calls itself, as a defer in a loop allocates.
func (h *hub) leaveEach(subs []*subset) {
	if len(subs) == 0 {
		return
	}
	defer h.leaveEach(subs[1:])
	if subs[0] != nil {
		h.leave(subs[0])
	}
}
