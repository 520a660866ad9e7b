package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// The codecs, by their number in the engine: the one without ?format=, and raw.
const (
	codecTocsin = iota
	codecRaw
)

var codecs = []wire.Codec{codecTocsin: tocsin.Codec{}, codecRaw: tocsin.Raw{}}

// upgradeQuery is what the query of an upgrade request asks for. It points into
// buffers that the next handshake overwrites: clone it before it is handed to
// a hook.
type upgradeQuery struct {
	user   string
	topics []string
	codec  int
}

func (q upgradeQuery) clone() upgradeQuery {
	q.user = strings.Clone(q.user)
	topics := make([]string, len(q.topics))
	for i, topic := range q.topics {
		topics[i] = strings.Clone(topic)
	}
	q.topics = topics
	return q
}

// parseQuery reads ?user=, ?topics= and ?format=, of at most so many topics.
// Other words are left to Auth. bad says what is wrong, "" for nothing.
func (d *shardData) parseQuery(query []byte, most int) (q upgradeQuery, bad string) {
	d.topics = d.topics[:0]
	for pair := range strings.SplitSeq(peek(query), "&") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "user", "topics", "format":
		default:
			continue
		}
		value, err := url.QueryUnescape(value)
		if err != nil {
			return q, "query parameter " + name + " is not URL-encoded"
		}
		switch name {
		case "user":
			q.user = value
		case "topics":
			if bad := d.addTopics(value); bad != "" {
				return q, bad
			}
		case "format":
			switch value {
			case "raw":
				q.codec = codecRaw
			case "", "json", tocsin.Subprotocol:
			default:
				return q, "query parameter format must be raw or " + tocsin.Subprotocol
			}
		}
	}
	slices.Sort(d.topics)
	d.topics = slices.Compact(d.topics) // a name that comes twice is meant once
	if n := len(d.topics); n > most {
		return q, fmt.Sprintf("query parameter topics has %d names, the limit is %d", n, most)
	}
	q.topics = d.topics
	return q, ""
}

func (d *shardData) addTopics(list string) (bad string) {
	for topic := range strings.SplitSeq(list, ",") {
		if topic == "" {
			continue
		}
		if err := wire.CheckTopic(topic); err != nil {
			return "query parameter topics: " + err.Message
		}
		d.topics = append(d.topics, topic)
	}
	return ""
}

// app is the server as the engine knows it.
type app struct{ srv *Server }

// readQuery reads the query of an upgrade request. Without Auth it says who the
// user is.
func (srv *Server) readQuery(d *shardData, query []byte) (q upgradeQuery, bad string) {
	q, bad = d.parseQuery(query, srv.cfg.MaxTopics)
	if bad == "" && srv.cfg.Auth == nil && q.user != "" {
		if err := wire.CheckUser(q.user); err != nil {
			bad = "query parameter user: " + err.Message
		}
	}
	return q, bad
}

// asks reports whether a hook has a say in the upgrade.
func (srv *Server) asks(q *upgradeQuery) bool {
	return srv.cfg.Auth != nil || srv.cfg.Allow != nil && len(q.topics) > 0
}

// Request implements engine.App.
func (a app) Request(t *engine.Turn, c *engine.Conn, r engine.Request) {
	srv := a.srv
	q, bad := srv.readQuery(srv.data(t), r.Query)
	switch {
	case bad != "":
		t.Refuse(c, http.StatusBadRequest, engine.RejectHead, bad)
	case srv.asks(&q):
		t.Call(c, &authJob{
			// The peer is read in the turn: the job may outlive the descriptor (law 13).
			admission: admission{srv: srv, conn: Conn{srv: srv, ref: c.Ref(), peer: t.Peer(c)}, query: q.clone()},
			head:      bytes.Clone(r.Head),
			reply:     r.Handshake,
		})
	default:
		srv.upgrade(t, c, &r.Handshake, q, identity{user: q.user})
	}
}

// upgrade holds the topics of a handshake and opens c when the bus has said where
// they stand: the welcome tells it, so until then there is no answer. AuthTimeout
// bounds that, as everything between the head and the 101.
func (srv *Server) upgrade(t *engine.Turn, c *engine.Conn, h *engine.Handshake, q upgradeQuery, id identity) {
	d := srv.data(t)
	var ready bool
	if d.held, ready = srv.holdAll(d.held[:0], q.topics); ready {
		srv.open(t, c, h, q, id, d.held)
		return
	}
	id.user = strings.Clone(id.user)
	srv.waitFor(t, c, slices.Clone(d.held), &opening{srv, *h, q.clone(), id})
}

// opening is a handshake that waits for its topics.
type opening struct {
	srv       *Server
	handshake engine.Handshake
	query     upgradeQuery
	id        identity
}

// enter implements subscriber.
func (o *opening) enter(t *engine.Turn, c *engine.Conn, topics []*topic) {
	o.srv.open(t, c, &o.handshake, o.query, o.id, topics)
}

// fail implements subscriber.
func (o *opening) fail(t *engine.Turn, c *engine.Conn) {
	t.Refuse(c, http.StatusServiceUnavailable, engine.RejectBus, textNoTopic)
}

// textNoTopic is what a client is told whose handshake asks for a topic that the
// bus does not give.
const textNoTopic = "a topic cannot be subscribed to now"

// holdAll holds topics, appends them to dst, and reports whether all are ready.
func (srv *Server) holdAll(dst []*topic, names []string) (held []*topic, ready bool) {
	ready = true
	for _, name := range names {
		t, ok := srv.hub.hold(name)
		dst, ready = append(dst, t), ready && ok
	}
	return dst, ready
}

// open answers 101, unless h is nil, and in the same write the welcome; then c
// is open. It joins the topics of q, which are held.
func (srv *Server) open(t *engine.Turn, c *engine.Conn, h *engine.Handshake, q upgradeQuery, id identity, topics []*topic) {
	d := srv.data(t)
	t.Upgrade(c, h, q.codec)
	s := d.newSession(t.Index(c))
	s.user = strings.Clone(id.user)
	if id.own != nil {
		s.moreOf().own = id.own
	}
	if !id.expires.IsZero() {
		d.expiries.add(t, c.Ref(), id.expires)
	}
	admitted := s.user == "" || srv.hub.login(s, c.Ref())
	d.positions = d.positions[:0]
	if admitted {
		for _, topic := range topics {
			d.positions = append(d.positions, srv.enterEarly(t, c, s, topic))
		}
	} else {
		srv.hub.release(topics)
	}
	srv.logOpen(t, c, s)
	d.id = srv.ids.append(d.id[:0], c.Ref())
	d.reply = codecs[q.codec].AppendWelcome(d.reply[:0], wire.Greeting{
		Conn: d.id, User: s.user, Ping: int(max(srv.cfg.PingInterval, 0).Seconds()),
		Topics: q.topics[:len(d.positions)], At: d.positions,
	})
	t.Reply(c, d.reply)
	switch {
	case !admitted:
		t.Close(c, wire.CloseConnectionLimit, "too many connections of this user")
	case srv.cfg.OnOpen != nil:
		t.Call(c, &openJob{hook: srv.cfg.OnOpen, conn: srv.handle(t, c, s)})
	}
}

// admission decides on an upgrade: Auth says who the peer is, and Allow about
// the topics of its query.
type admission struct {
	srv   *Server
	conn  Conn // for Allow
	query upgradeQuery
	id    identity

	status int // to refuse with; 0 for an upgrade
	reason engine.Reject
	text   string
}

func (a *admission) refuse(status int, reason engine.Reject, text string) {
	a.status, a.reason, a.text = status, reason, text
}

// decide runs in the pool. r is nil without Auth.
func (a *admission) decide(r *http.Request) {
	a.id.user = a.query.user
	if a.srv.cfg.Auth != nil && !a.authenticate(r) {
		return
	}
	a.conn.user, a.conn.own = a.id.user, a.id.own
	for _, topic := range a.query.topics {
		var err error
		if bad := a.srv.mayNot(a.id.own, ActionSubscribe, topic); bad != nil {
			err = errors.New(bad.Message)
		} else if a.srv.cfg.Allow != nil {
			err = a.srv.cfg.Allow(a.conn, ActionSubscribe, topic)
		}
		if err != nil {
			a.refuse(http.StatusForbidden, engine.RejectForbidden, fmt.Sprintf("topic %q: %v", topic, err))
			return
		}
	}
}

// authenticate asks Auth who the peer is, and reports whether it may be that.
func (a *admission) authenticate(r *http.Request) bool {
	// In real time, not the kernel's: what Auth calls compares a context's deadline with time.Now.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), a.srv.cfg.AuthTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = http.NoBody
	id, err := a.srv.cfg.Auth(r)
	if err != nil {
		a.srv.log.Info("a client was refused by Auth", "error", err)
		status := http.StatusUnauthorized
		if own, ok := errors.AsType[*HTTPError](err); ok && own.Status >= 200 && own.Status <= 999 {
			status = own.Status
		}
		a.refuse(status, engine.RejectAuth, err.Error())
		return false
	}
	a.id = id.kept()
	if a.srv.expired(a.id) {
		a.refuse(http.StatusUnauthorized, engine.RejectAuth, "what you identify with has expired")
		return false
	}
	if a.id.user != "" {
		if err := wire.CheckUser(a.id.user); err != nil {
			a.refuse(http.StatusForbidden, engine.RejectAuth, err.Message)
			return false
		}
	}
	return true
}

// authJob is the admission of a connection that Serve accepted.
type authJob struct {
	admission
	head  []byte
	reply engine.Handshake
}

// Run implements engine.Job.
func (j *authJob) Run() {
	var r *http.Request
	if j.srv.cfg.Auth != nil {
		var err error
		if r, err = http.ReadRequest(bufio.NewReader(bytes.NewReader(j.head))); err != nil {
			j.refuse(http.StatusBadRequest, engine.RejectHead, "malformed request head")
			return
		}
		r.RemoteAddr = j.conn.peer.String()
	}
	j.decide(r)
}

// Done implements engine.Job.
func (j *authJob) Done(t *engine.Turn, c *engine.Conn) {
	if j.status != 0 {
		t.Refuse(c, j.status, j.reason, j.text)
		return
	}
	j.srv.upgrade(t, c, &j.reply, j.query, j.id)
}

// Serve accepts connections on ln until [Server.Shutdown] and then returns an
// error that wraps [ErrClosed]. It takes a descriptor of ln, which must be a
// TCP or Unix listener, and closes ln when it returns. Several listeners may be
// served at once.
func (srv *Server) Serve(ln net.Listener) error {
	err := srv.engine.Serve(ln)
	if err == nil {
		err = ErrClosed
	}
	return fmt.Errorf("serve %s: %w", ln.Addr(), err)
}

// ServeHTTP upgrades a request that an http.Server has read, and takes over its
// connection; from then on it is like one that Serve accepted. Every answer goes
// through rw, the 101 too, so a middleware sees its status and can add headers.
// It needs HTTP/1.1 over plain TCP, and waits for Config.Auth. What is behind
// the request and not a frame ends the connection with 1002; Serve, which sees
// it in time, answers 400.
func (srv *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.TLS != nil {
		http.Error(rw, "TLS connections cannot be taken over; let a proxy end TLS", http.StatusNotImplemented)
		return
	}
	g := srv.engine.Admit(rw, r)
	if g == nil {
		return
	}
	defer g.Leave() // should rw panic
	q, bad := srv.readQuery(&shardData{}, g.Query)
	if bad != "" {
		g.Refuse(http.StatusBadRequest, engine.RejectHead, bad)
		return
	}
	a := &admission{srv: srv, conn: Conn{srv: srv}, query: q, id: identity{user: q.user}}
	if srv.asks(&q) {
		a.conn.peer, _ = netip.ParseAddrPort(r.RemoteAddr)
		if !g.Run(func() { a.decide(r) }) {
			return
		}
	}
	if a.status != 0 {
		g.Refuse(a.status, a.reason, a.text)
		return
	}
	held, ready := srv.holdAll(nil, a.query.topics)
	if !ready && !srv.awaitAll(g, held) {
		return
	}
	g.Enter(&entrance{a, held})
}

// awaitAll waits until held topics are ready. If they do not become it, g was
// refused, and they are not held any more.
func (srv *Server) awaitAll(g *engine.Guest, held []*topic) (ready bool) {
	defer func() { // also if the ResponseWriter panics
		if !ready {
			srv.hub.release(held)
		}
	}()
	waited, err := srv.hub.awaitAll(held, g.Wait)
	if err != nil {
		g.Refuse(http.StatusServiceUnavailable, engine.RejectBus, textNoTopic)
	}
	return waited && err == nil
}

// entrance is an admission to a connection that came by ServeHTTP.
// Its topics are ready and held.
type entrance struct {
	a      *admission
	topics []*topic
}

// Done implements [engine.Wait].
func (e *entrance) Done(t *engine.Turn, c *engine.Conn) {
	e.a.srv.open(t, c, nil, e.a.query, e.a.id, e.topics)
}

// Gone implements [engine.Wait].
func (e *entrance) Gone() { e.a.srv.hub.release(e.topics) }
