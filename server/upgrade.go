package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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

// Request implements engine.App.
func (a app) Request(t *engine.Turn, c *engine.Conn, r *engine.Request) {
	srv := a.srv
	q, bad := srv.data(t).parseQuery(r.Query, srv.cfg.MaxTopics)
	if bad != "" {
		t.Refuse(c, http.StatusBadRequest, engine.RejectHead, bad)
		return
	}
	if srv.cfg.Auth != nil || srv.cfg.Allow != nil && len(q.topics) > 0 {
		t.Call(c, &authJob{
			srv:   srv,
			conn:  Conn{srv: srv, ref: c.Ref()},
			peer:  t.Peer(c).String(), // in the turn: the job may outlive the descriptor (law 13)
			head:  bytes.Clone(r.Head),
			reply: r.Handshake,
			query: q.clone(),
		})
		return
	}
	if q.user != "" {
		if err := wire.CheckUser(q.user); err != nil {
			t.Refuse(c, http.StatusBadRequest, engine.RejectHead, "query parameter user: "+err.Message)
			return
		}
	}
	srv.open(t, c, &r.Handshake, q)
}

// open answers 101 and, in the same write, the welcome; then c is open.
func (srv *Server) open(t *engine.Turn, c *engine.Conn, h *engine.Handshake, q upgradeQuery) {
	d := srv.data(t)
	t.Upgrade(c, h, q.codec)
	s := d.newSession(t.Index(c))
	s.user = strings.Clone(q.user)
	admitted := q.user == "" || srv.hub.login(s, c.Ref())
	d.positions = d.positions[:0]
	if admitted {
		for _, topic := range q.topics {
			d.positions = append(d.positions, srv.subscribeEarly(t, c, s, topic))
		}
	}
	srv.logOpen(t, c, s)
	d.id = srv.ids.append(d.id[:0], c.Ref())
	d.reply = codecs[q.codec].AppendWelcome(d.reply[:0], wire.Greeting{
		Conn: d.id, User: q.user, Ping: int(max(srv.cfg.PingInterval, 0).Seconds()),
		Topics: q.topics[:len(d.positions)], At: d.positions,
	})
	t.Reply(c, d.reply)
	switch {
	case !admitted:
		t.Close(c, wire.CloseConnectionLimit, "too many connections of this user")
	case srv.cfg.OnOpen != nil:
		t.Call(c, &openJob{hook: srv.cfg.OnOpen, conn: srv.handle(c, s)})
	}
}

// authJob asks Auth who the peer is and Allow about the topics of its query,
// then upgrades or refuses.
type authJob struct {
	srv   *Server
	conn  Conn
	peer  string
	head  []byte
	reply engine.Handshake
	query upgradeQuery

	status int // to refuse with; 0 for an upgrade
	reason engine.Reject
	text   string
}

func (j *authJob) refuse(status int, reason engine.Reject, text string) {
	j.status, j.reason, j.text = status, reason, text
}

// Run implements engine.Job.
func (j *authJob) Run() {
	cfg := &j.srv.cfg
	if cfg.Auth != nil && !j.authenticate() {
		return
	}
	j.conn.user = j.query.user
	if j.query.user != "" {
		if err := wire.CheckUser(j.query.user); err != nil {
			j.refuse(http.StatusForbidden, engine.RejectAuth, err.Message)
			return
		}
	}
	if cfg.Allow == nil {
		return
	}
	for _, topic := range j.query.topics {
		if err := cfg.Allow(j.conn, ActionSubscribe, topic); err != nil {
			j.refuse(http.StatusForbidden, engine.RejectForbidden, fmt.Sprintf("topic %q: %v", topic, err))
			return
		}
	}
}

// authenticate asks Auth for the user and reports whether there is one to go on
// with.
func (j *authJob) authenticate() bool {
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(j.head)))
	if err != nil {
		j.refuse(http.StatusBadRequest, engine.RejectHead, "malformed request head")
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.srv.cfg.AuthTimeout)
	defer cancel()
	req.RemoteAddr = j.peer
	j.query.user, err = j.srv.cfg.Auth(req.WithContext(ctx))
	if err == nil {
		return true
	}
	j.srv.log.Info("a client was refused by Auth", "error", err)
	status := http.StatusUnauthorized
	var own *HTTPError
	if errors.As(err, &own) {
		status = own.Status
	}
	j.refuse(status, engine.RejectAuth, err.Error())
	return false
}

// Done implements engine.Job.
func (j *authJob) Done(t *engine.Turn, c *engine.Conn) {
	if j.status != 0 {
		t.Refuse(c, j.status, j.reason, j.text)
		return
	}
	j.srv.open(t, c, &j.reply, j.query)
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

// ServeHTTP takes over the connection of an upgrade request from net/http,
// before anything has been answered; from then on it is like one that Serve
// accepted. It needs HTTP/1.1 over plain TCP.
func (srv *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if srv.engine.Draining() {
		http.Error(rw, engine.TextDraining, http.StatusServiceUnavailable)
		return
	}
	if r.TLS != nil {
		http.Error(rw, "TLS connections cannot be taken over; let a proxy end TLS", http.StatusNotImplemented)
		return
	}
	conn, buf, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		http.Error(rw, "this connection cannot be upgraded: "+err.Error(), http.StatusHTTPVersionNotSupported)
		return
	}
	early, _ := buf.Peek(buf.Reader.Buffered())
	_ = srv.engine.Adopt(conn, append(engine.RebuildHead(r, srv.cfg.Path), early...), nil) // it has answered and counted
}
