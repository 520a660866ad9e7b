package server

import (
	"slices"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
)

// Identity says who a connection is and what it may do. [Config.Auth] returns it.
type Identity struct {
	// User is the name under which the connection is reached by [Server.Push];
	// "" is a connection without a user.
	User string
	// Expires is when the connection is closed with 3005, so that its client
	// comes back with fresh credentials. The zero value is never. It is compared
	// with the wall clock twice a second, as who checks a token does: a clock
	// that is set forward ends more connections, one that is set back fewer.
	Expires time.Time
	// Subscribe and Publish are the topics that the connection may subscribe
	// and publish to: each is a name, or the beginning of names with a * behind
	// it. Nil leaves it to [Config.Allow] alone. Otherwise one must match and
	// Allow, if there is one, must agree; an empty list matches nothing.
	Subscribe, Publish []string
	// Data is what [Conn.Data] returns.
	Data any
}

// identity is an [Identity] as it is kept.
type identity struct {
	user    string
	expires time.Time
	own     *personal
}

// personal is what few identities have. It is static.
type personal struct {
	subscribe, publish []string
	data               any
}

func (id *Identity) kept() identity {
	kept := identity{user: id.User, expires: id.Expires}
	if id.Subscribe != nil || id.Publish != nil || id.Data != nil {
		kept.own = &personal{slices.Clone(id.Subscribe), slices.Clone(id.Publish), id.Data}
	}
	return kept
}

// expired reports whether Expires has passed.
func (srv *Server) expired(id identity) bool {
	return !id.expires.IsZero() && srv.engine.Date().UnixMilli() >= id.expires.UnixMilli()
}

// mayNot returns why a connection may not do action on topic, as far as that
// can be said without asking Allow.
func (srv *Server) mayNot(own *personal, action Action, topic string) *wire.Error {
	var patterns []string
	switch {
	case own == nil:
	case action == ActionSubscribe:
		patterns = own.subscribe
	default:
		patterns = own.publish
	}
	switch {
	case patterns != nil && !slices.ContainsFunc(patterns, func(p string) bool { return matches(p, topic) }):
		return wire.Errorf(wire.Forbidden, "you may not %s to this topic", action)
	case patterns == nil && srv.cfg.Allow == nil && action == ActionPublish && !srv.cfg.Dev:
		return &wire.Error{Code: wire.Forbidden, Message: "clients may not publish here"}
	}
	return nil
}

// matches reports whether pattern is topic or, with a * at its end, how it
// begins.
func matches(pattern, topic string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	return pattern == topic || open && strings.HasPrefix(topic, prefix)
}

// expiries are the connections of a shard that expire. Others cost nothing.
type expiries struct {
	list    []expiry
	soonest int64 // of list, or earlier
	tidyAt  int   // length of list at which those that have ended are taken out
}

// expiry is 16 bytes. It stays on the list for a while when its connection ends.
type expiry struct {
	at  int64 // Unix time in milliseconds
	ref engine.Ref
}

const leastTidy = 64

// add notes that c expires.
func (x *expiries) add(t *engine.Turn, r engine.Ref, expires time.Time) {
	if len(x.list) >= max(x.tidyAt, leastTidy) {
		x.tidy(t)
	}
	e := expiry{expires.UnixMilli(), r}
	if len(x.list) == 0 || e.at < x.soonest {
		x.soonest = e.at
	}
	x.list = append(x.list, e)
}

// tidy forgets connections that have ended.
func (x *expiries) tidy(t *engine.Turn) {
	live := x.list[:0]
	for _, e := range x.list {
		if t.Has(e.ref) {
			live = append(live, e)
		}
	}
	x.list = slices.Clone(live) // of its own size
	x.tidyAt = 2 * len(live)
}

// Sweep implements engine.App: it has those closed that have expired. They are
// closed one by one from the shard's inbox, so that many at once do not hold
// up the others.
func (a app) Sweep(t *engine.Turn) {
	srv := a.srv
	x := &srv.data(t).expiries
	if len(x.list) == 0 {
		return
	}
	now := srv.engine.Date().UnixMilli()
	if now < x.soonest {
		return
	}
	x.soonest = 1<<63 - 1
	x.list = slices.DeleteFunc(x.list, func(e expiry) bool {
		if e.at > now {
			x.soonest = min(x.soonest, e.at)
			return false
		}
		srv.engine.Close(e.ref, wire.CloseExpired, wire.CloseExpired.String())
		return true
	})
	if len(x.list) == 0 {
		x.list = nil // its room is that of the most there were
	}
}
