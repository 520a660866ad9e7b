package server

import "github.com/tocsin-push/tocsin/server/internal/engine"

func (s *session) indexName() string { return s.user }

// admitted reports whether the connection, which is open, is within the limit of
// its user's.
func (s *session) admitted() bool { return s.user == "" || s.ref != 0 }

// login lists the session of connection r under its user name. It refuses, and
// returns false, one over the limit of a user's connections.
func (h *hub) login(s *session, r engine.Ref) bool {
	st := h.users.stripe(s.user)
	st.mu.Lock()
	defer st.mu.Unlock()
	at := st.find(s.user)
	if at == nil {
		s.ref = r
		st.insert(s)
		return true
	}
	n := 0
	for d := *at; d != nil; d = d.next {
		n++
	}
	if n >= h.srv.cfg.MaxUserConns {
		return false
	}
	s.ref = r
	s.next = (*at).next
	(*at).next = s
	return true
}

// logout takes a session off the list of its user.
func (h *hub) logout(s *session) {
	st := h.users.stripe(s.user)
	st.mu.Lock()
	defer st.mu.Unlock()
	at := st.find(s.user)
	switch {
	case *at != s:
		d := *at
		for d.next != s {
			d = d.next
		}
		d.next = s.next
	case s.next == nil:
		st.remove(s.user)
	default:
		*at = s.next
	}
	s.next, s.ref = nil, 0
}

// devices appends the refs of a user's connections to dst.
func (h *hub) devices(dst []engine.Ref, user string) []engine.Ref {
	st := h.users.stripe(user)
	st.mu.Lock()
	defer st.mu.Unlock()
	if at := st.find(user); at != nil {
		for d := *at; d != nil; d = d.next {
			dst = append(dst, d.ref)
		}
	}
	return dst
}
