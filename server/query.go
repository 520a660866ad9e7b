package server

import (
	"context"
	"fmt"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// String describes the target for an error message.
func (t Target) String() string {
	if t.User != "" {
		return fmt.Sprintf("user %q", t.User)
	}
	return fmt.Sprintf("conn %q", t.Conn)
}

func (t Target) check() error {
	if (t.User == "") == (t.Conn == "") {
		return fmt.Errorf("%w: give either user or conn", ErrBadMessage)
	}
	if t.User != "" {
		if err := wire.CheckUser(t.User); err != nil {
			return fmt.Errorf("%w: %s", ErrBadMessage, err.Message)
		}
	}
	return nil
}

// resolve appends the connections that t names to dst. Some of them may have
// ended meanwhile.
func (srv *Server) resolve(dst []engine.Ref, t Target) []engine.Ref {
	if t.User != "" {
		return srv.hub.devices(dst, t.User)
	}
	if r, ok := srv.ids.parse(t.Conn); ok {
		dst = append(dst, r)
	}
	return dst
}

// Disconnect closes the connections of a target and returns how many it asked
// to close. Code must be 1000 or 3000 to 4999; 0 means 3503, which tells clients
// to stay away. An empty reason means the code's own words. Errors wrap
// [ErrNobody] or [ErrBadMessage].
func (srv *Server) Disconnect(_ context.Context, to Target, code wire.CloseCode, reason string) (int, error) {
	setDefault(&code, wire.CloseForceDisconnect)
	if !code.ForApps() {
		return 0, fmt.Errorf("disconnect: %w: code is %d, it must be 1000 or 3000 to 4999", ErrBadMessage, code)
	}
	if reason == "" {
		reason = code.String()
	}
	if err := to.check(); err != nil {
		return 0, fmt.Errorf("disconnect: %w", err)
	}
	refs := srv.resolve(nil, to)
	if len(refs) == 0 {
		return 0, fmt.Errorf("disconnect: %w: %s has no connection", ErrNobody, to)
	}
	for _, r := range refs {
		srv.engine.Close(r, code, reason)
	}
	return len(refs), nil
}

// User returns the ids of the user's connections, none if there are none.
func (srv *Server) User(name string) []string {
	var conns []string
	for _, r := range srv.hub.devices(nil, name) {
		conns = append(conns, srv.ids.name(r))
	}
	return conns
}

// Topic returns where a topic stands and how many connections are subscribed
// to it; ok is false if none is, nor was for Config.TopicLinger.
func (srv *Server) Topic(name string) (at Position, subscribers int, ok bool) {
	st := srv.hub.topics.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	t := srv.hub.findLocked(st, name)
	if t == nil {
		return Position{}, 0, false
	}
	return Position(srv.hub.position(t)), int(t.n), true
}
