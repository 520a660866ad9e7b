package server

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
)

// simHooked is what a client of a server with hooks may insist on beside the
// rest, and what its hooks have done.
type simHooked struct {
	topics  []string // that its query asks for
	own     Identity // that Auth has given it
	inside  string   // the hook that runs for it
	verdict int      // what Auth and Allow have decided: a status; 0 for 101
	asked   bool     // Auth was

	said  []simSaid // the messages that it sends, in their order
	heard int       // of them OnMessage was given so many
	bye   int       // so many had been sent when it said goodbye; -1 before

	opened, closed int            // calls of OnOpen and OnClose
	code           int            // that OnClose was told
	gifts          []string       // what hooks have sent it and it has not got
	denied         map[string]int // what Allow has refused with a text, and nobody was told
	agreed         map[string]int // what Allow has allowed, by action and topic
	offs           map[string]int // hooks have unsubscribed it, and it has no cancel
	doomed         bool           // a hook has asked for its end
}

// simSaid is a message of a client's.
type simSaid struct {
	op      ws.OpCode
	payload string
	id      uint64 // of a command that wants an answer
}

// simHang is a hook, or somebody else, that does not return.
type simHang struct {
	what    string
	let     chan struct{} // closed when it may go on
	going   bool          // it may
	forever bool          // until all has to end
}

// hang has a goroutine that is not the main one do nothing until somebody lets
// it go, or done is closed.
func (w *world) hang(what string, done <-chan struct{}) {
	w.called++
	caller := w.called
	h := &simHang{what: what, let: make(chan struct{}), forever: w.Rng.IntN(3) == 0}
	w.hung = append(w.hung, h)
	select {
	case <-h.let:
	case <-done:
	case <-w.buried:
		runtime.Goexit()
	}
	w.Park(caller)
	select {
	case <-w.buried:
		runtime.Goexit()
	default:
	}
	w.hung = slices.DeleteFunc(w.hung, func(other *simHang) bool { return other == h })
}

// letGo lets go one that hangs.
func (w *world) letGo() bool {
	h := some(w, w.hung)
	if h == nil || h.forever || h.going {
		return false
	}
	h.release()
	return true
}

func (h *simHang) release() {
	if !h.going {
		h.going = true
		close(h.let)
		synctest.Wait()
	}
}

// letAllGo has nobody hang any more.
func (w *world) letAllGo() {
	for len(w.hung) > 0 {
		for _, h := range slices.Clone(w.hung) {
			h.release()
		}
		w.rest()
	}
}

// simHooks has a server with hooks, which do and refuse what they like. It judges
// whether they are called as Config says, and what comes of what they do.
func simHooks(w *world) feature {
	if w.Rng.IntN(5) < 2 {
		return feature{}
	}
	s := &hooks{w: w}
	w.hooks = s
	often := func(n int) int { return some(w, []int{0, n, n, 4 * n}) }
	s.panics, s.refuses, s.hangs, s.whims = often(30), often(6), often(20), often(6)
	cfg := &w.cfg
	cfg.Dev = w.Rng.IntN(3) > 0
	if !cfg.Dev || w.Rng.IntN(4) > 0 {
		cfg.Auth = s.auth
	}
	if w.Rng.IntN(2) == 0 {
		cfg.Allow = s.allow
	}
	if w.Rng.IntN(3) > 0 {
		cfg.OnMessage = s.onMessage
	}
	if w.Rng.IntN(4) > 0 {
		cfg.OnOpen = s.onOpen
	}
	if w.Rng.IntN(4) > 0 {
		cfg.OnClose = s.onClose
	}
	if w.Rng.IntN(4) == 0 {
		cfg.MaxUserConns = 2
	}
	return feature{
		events: []happening{
			{"a client sends a message to OnMessage", 80, s.talk},
			{"a hook that hangs goes on", 30, w.letGo},
		},
		ease:  s.ease,
		calm:  s.calm,
		ended: s.ended,
	}
}

// hooks is the state of simHooks.
type hooks struct {
	w   *world
	all []*simClient // also those that were forgotten

	panics, refuses, hangs, whims int // once in so many times
	count                         int // of what must be told apart
	subscribing                   bool
	calmed                        bool // nothing odd is done any more
}

// meet has a new client known, and returns what its query needs for that.
func (s *hooks) meet(c *simClient, topics []string) (query string) {
	c.hooked = &simHooked{topics: topics, bye: -1, denied: map[string]int{}, agreed: map[string]int{}, offs: map[string]int{}}
	s.all = append(s.all, c)
	return "&client=" + strconv.Itoa(c.id)
}

// of returns the client of a connection.
func (s *hooks) of(conn Conn) *simClient {
	for _, c := range slices.Backward(s.all) {
		if conn.ref != 0 && c.Ref == conn.ref || conn.ref == 0 && c.guest != nil && conn.RemoteAddr() == c.guest.addr() {
			return c
		}
	}
	s.w.fail("a hook is given the connection %q, of %q, which nobody has", conn.ID(), conn.User())
	return nil
}

func (s *hooks) happens(n int, what string) bool { return !s.calmed && s.w.Happens(n, what) }

// enter begins a hook of c's. There is one at a time.
func (s *hooks) enter(c *simClient, hook string) (leave func()) {
	h := c.hooked
	if h.inside != "" {
		s.w.fail("%s of client %d is called, and %s runs", hook, c.id, h.inside)
	}
	if s.w.Show {
		fmt.Printf("    %s of client %d\n", hook, c.id)
	}
	s.w.Note(uint64(c.id), []byte(hook))
	h.inside = hook
	return func() { h.inside = "" }
}

// auth is Config.Auth.
func (s *hooks) auth(r *http.Request) (Identity, error) {
	w := s.w
	query := r.URL.Query()
	n, _ := strconv.Atoi(query.Get("client"))
	i := slices.IndexFunc(s.all, func(c *simClient) bool { return c.id == n })
	if i < 0 || s.all[i].hooked.asked {
		w.fail("Auth is asked about %q, which nobody has asked for, or again", r.URL)
	}
	c, h := s.all[i], s.all[i].hooked
	h.asked = true
	defer s.enter(c, "Auth")()
	if s.happens(s.hangs, "Auth hangs") {
		done := r.Context().Done()
		if w.Rng.IntN(2) == 0 {
			done = nil
		}
		w.hang("Auth of "+strconv.Itoa(n), done)
	}
	id, status, err := s.identify(c, query.Get("user"))
	if h.verdict = status; err == nil && status == 0 {
		c.user, h.own = id.User, id
	}
	if w.Show {
		fmt.Printf("    Auth of client %d: %+v, %v\n", c.id, id.User, err)
	}
	if status == http.StatusInternalServerError {
		panic("an Auth that panics")
	}
	return id, err
}

// identify says who c is, and the status that comes of that, 0 for 101.
func (s *hooks) identify(c *simClient, user string) (id Identity, status int, err error) {
	w := s.w
	switch {
	case s.happens(s.panics, "Auth panics"):
		return id, http.StatusInternalServerError, nil
	case s.happens(s.refuses, "Auth refuses"):
		status := some(w, []int{200, 402, 403, 418, 429, 451, 599, 199, 1000, 0})
		err, told := error(&HTTPError{status, "for a reason"}), status
		if status == 0 {
			err = errors.New("not you")
		}
		if status < 200 || status > 999 {
			told = http.StatusUnauthorized
		}
		return id, told, fmt.Errorf("refused: %w", err)
	}
	id = Identity{User: user, Data: c}
	if s.happens(s.refuses, "a user's name that cannot be") {
		id.User = "a\nb"
		return id, http.StatusForbidden, nil
	}
	if w.Rng.IntN(6) == 0 {
		id.Expires = w.Date().Add(time.Duration(w.Rng.IntN(int(20*time.Second))) - time.Second)
		if id.Expires.UnixMilli() <= w.Date().UnixMilli() {
			return id, http.StatusUnauthorized, nil
		}
	}
	lists := [][]string{nil, nil, {"*"}, {"all/*"}, {"all/0", "old/0"}, {}}
	id.Subscribe, id.Publish = some(w, lists), some(w, lists)
	for _, topic := range c.hooked.topics {
		if !listed(id.Subscribe, topic) {
			status = http.StatusForbidden
		}
	}
	return id, status, nil
}

// listed reports whether a list of an Identity has topic.
func listed(list []string, topic string) bool {
	return list == nil || slices.ContainsFunc(list, func(p string) bool {
		return p == topic || strings.HasSuffix(p, "*") && strings.HasPrefix(topic, strings.TrimSuffix(p, "*"))
	})
}

// permitted reports whether c may do that as far as its Identity and Config go.
func (c *simClient) permitted(verb, topic string) bool {
	cfg := &c.w.cfg
	if c.hooked == nil {
		return true
	}
	if verb == "subscribe" {
		return listed(c.hooked.own.Subscribe, topic)
	}
	list := c.hooked.own.Publish
	return listed(list, topic) && (list != nil || cfg.Allow != nil || cfg.Dev)
}

// allow is Config.Allow.
func (s *hooks) allow(conn Conn, action Action, topic string) error {
	c := s.of(conn)
	h := c.hooked
	handshake := !c.upgrade // who is open has commands, and only then
	defer s.enter(c, "Allow")()
	if !c.permitted(string(action), topic) || handshake && (action != ActionSubscribe || !slices.Contains(h.topics, topic)) {
		s.w.fail("Allow is asked whether client %d may %s to %s", c.id, action, topic)
	}
	s.know(c, conn)
	verdict := h.verdict // for another topic, it may be 403 already
	if handshake {
		h.verdict = http.StatusInternalServerError // should it panic
	}
	s.whim(c, conn, !handshake)
	if h.verdict = verdict; !s.happens(s.refuses, "Allow refuses") {
		h.agreed[string(action)+topic]++
		return nil
	}
	if handshake {
		h.verdict = http.StatusForbidden
	}
	s.count++
	text := "not this, for reason " + strconv.Itoa(s.count)
	h.denied[text]++
	return errors.New(text)
}

// know looks whether a handle is that of c.
func (s *hooks) know(c *simClient, conn Conn) {
	id, addr := c.name(), netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(c.FD))
	if conn.ref == 0 { // it is no connection yet: see Conn.ID
		id, addr = "", c.guest.addr()
	}
	if conn.User() != c.user || s.w.cfg.Auth != nil && conn.Data() != any(c) || conn.RemoteAddr() != addr || conn.ID() != id {
		s.w.fail("a hook of client %d, %s of user %q, is given %s of %q at %v", c.id, c.name(), c.user, conn.ID(), conn.User(), conn.RemoteAddr())
	}
}

// onOpen is Config.OnOpen.
func (s *hooks) onOpen(conn Conn) {
	c := s.of(conn)
	h := c.hooked
	defer s.enter(c, "OnOpen")()
	if h.opened++; h.opened != 1 || h.heard > 0 || h.closed > 0 || h.verdict != 0 {
		s.w.fail("OnOpen of client %d is called again or too late: %+v", c.id, *h)
	}
	s.know(c, conn)
	s.whim(c, conn, true)
}

// onMessage is Config.OnMessage.
func (s *hooks) onMessage(conn Conn, op ws.OpCode, payload []byte) (handled bool) {
	c := s.of(conn)
	h := c.hooked
	defer s.enter(c, "OnMessage")()
	if h.opened == 0 && s.w.cfg.OnOpen != nil || h.closed > 0 {
		s.w.fail("OnMessage of client %d is called too early or too late", c.id)
	}
	s.know(c, conn)
	if h.heard == len(h.said) || h.said[h.heard].op != op || h.said[h.heard].payload != string(payload) {
		s.w.fail("OnMessage of client %d is given %v of %d bytes, %.40q, which is not number %d of the %d that it has sent", c.id, op, len(payload), payload, h.heard, len(h.said))
	}
	said := h.said[h.heard]
	h.heard++
	s.whim(c, conn, true)
	handled = said.op == ws.OpText && (c.raw || said.id == 0 && s.w.Rng.IntN(2) == 0) || said.op == ws.OpBinary && c.bad == 0 && !s.happens(s.refuses, "OnMessage does not handle a message")
	switch {
	case handled:
	case said.op == ws.OpBinary:
		s.doom(c, wire.CloseUnsupported)
	case said.id != 0 && s.happens(s.refuses, "OnMessage handles a command"):
		delete(c.asked, said.id)
		handled = true
	}
	if handled {
		clear(payload) // it is ours
	}
	return handled
}

// onClose is Config.OnClose.
func (s *hooks) onClose(conn Conn, code int) {
	c := s.of(conn)
	h := c.hooked
	defer s.enter(c, "OnClose")()
	if h.closed++; h.closed != 1 || h.opened == 0 && s.w.cfg.OnOpen != nil {
		s.w.fail("OnClose of client %d is called %d times, OnOpen %d times", c.id, h.closed, h.opened)
	}
	s.know(c, conn)
	h.code = code
	if code == int(wire.CloseNormal) && s.w.cfg.OnMessage != nil && h.bye > h.heard {
		s.w.fail("client %d has closed behind %d messages, OnMessage was given %d", c.id, h.bye, h.heard)
	}
	s.whim(c, conn, false)
}

// doom notes that the server is asked to close c.
func (s *hooks) doom(c *simClient, code wire.CloseCode) {
	c.may = append(c.may, code)
	c.hooked.doomed = true
}

// whim is what a hook does beside its work. open is for a connection that may
// be open.
func (s *hooks) whim(c *simClient, conn Conn, open bool) {
	w, h := s.w, c.hooked
	if s.happens(s.hangs, "a hook hangs") {
		w.hang(h.inside+" of "+strconv.Itoa(c.id), nil)
	}
	if s.happens(s.whims, "a hook sends") {
		s.give(c, conn, open)
	}
	if s.happens(s.whims, "a hook subscribes") {
		topic := some(w, simTopics)
		c.aims.on[topic] = true
		s.subscribe(conn, topic)
	}
	if s.happens(s.whims, "a hook unsubscribes") {
		topic := some(w, simTopics)
		if open {
			h.offs[topic]++
		}
		c.aims.off[topic] = true
		c.leaves(topic)
		conn.Unsubscribe(topic)
	}
	if s.happens(s.panics, "a hook closes") {
		code := some(w, []wire.CloseCode{wire.CloseForceDisconnect, 4000})
		conn.Close(code, "a whim")
		if open {
			s.doom(c, code)
		}
	}
	if s.happens(s.panics, "a hook panics") {
		if open {
			s.doom(c, wire.CloseInternal)
		}
		panic("a hook that panics")
	}
}

// give sends c something, which it gets if it is open.
func (s *hooks) give(c *simClient, conn Conn, open bool) {
	s.count++
	gift := fmt.Sprintf("%s%d %s", simGift, s.count, pad(s.w.Rng.IntN(200)))
	if open {
		c.hooked.gifts = append(c.hooked.gifts, gift)
	}
	b := []byte(gift)
	conn.Send(some(s.w, []ws.OpCode{ws.OpText, ws.OpBinary}), b)
	clear(b) // it was copied
}

// simGift begins what hooks send.
const simGift = "gift "

// subscribe waits, under a name that is its own.
func (s *hooks) subscribe(conn Conn, topic string) {
	if s.subscribing {
		return
	}
	s.subscribing = true // Conn.Subscribe has no context that tells who waits
	err := conn.Subscribe(topic)
	s.subscribing = false
	if err != nil && !errors.Is(err, ErrNobody) && !errors.Is(err, ErrTooManyTopics) && !errors.Is(err, ErrClosed) && s.w.cfg.Bus == nil {
		s.w.fail("Conn.Subscribe: %v", err)
	}
}

// talk has a client send a message that is unlike all others, in frames and parts.
func (s *hooks) talk() bool {
	w := s.w
	c := (&clientele{w: w}).one(whole)
	if c == nil || w.cfg.OnMessage == nil {
		return false
	}
	s.count++
	text := strconv.Itoa(s.count) + " "
	size := some(w, []int{0, len(text), w.Rng.IntN(126), 125, 126, 127, 65535, 65536, w.Rng.IntN(w.cfg.MaxMessage + 1), w.cfg.MaxMessage})
	b := []byte(text)
	for range size {
		b = append(b, byte(w.Rng.Uint32()))
	}
	b = b[:min(size, w.cfg.MaxMessage)]
	op := ws.OpBinary
	if w.Rng.IntN(2) == 0 {
		op = ws.OpText
		for i := range b {
			b[i] = ' ' + b[i]%95
		}
	}
	c.message(op, b, 0)
	c.may = append(c.may, wire.ClosePolicy) // it may stop in the middle
	c.head = s.frames(c, op, b)
	if w.Rng.IntN(2) == 0 {
		c.say(nil)
	}
	return true
}

// frames cuts a message, with pings between the frames.
func (s *hooks) frames(c *simClient, op ws.OpCode, payload []byte) (b []byte) {
	w := s.w
	size := max(len(payload), 1)
	if w.Rng.IntN(2) == 0 {
		size = max(len(payload)/w.cfg.MaxFrames+1, 1+w.Rng.IntN(size))
	}
	for i, f := range wstest.Fragments(op, payload, size) {
		if i > 0 && w.Rng.IntN(4) == 0 && len(c.pings) < 50 {
			s.count++
			ping := "between frames" + strconv.Itoa(s.count)
			c.pings = append(c.pings, ping)
			b = wstest.Ping(ping).Append(b)
		}
		for j := range f.Mask {
			f.Mask[j] = byte(w.Rng.Uint32())
		}
		b = f.Append(b)
	}
	return b
}

// message notes that c sends one.
func (c *simClient) message(op ws.OpCode, payload []byte, id uint64) {
	if c.hooked != nil {
		c.hooked.said = append(c.hooked.said, simSaid{op, string(payload), id})
	}
}

// gift takes what a hook has sent. It reports whether that is what f is.
func (c *simClient) gift(f wstest.Frame) bool {
	if c.hooked == nil || !bytes.HasPrefix(f.Payload, []byte(simGift)) {
		return false
	}
	h := c.hooked
	if len(h.gifts) == 0 || h.gifts[0] != string(f.Payload) {
		c.w.fail("client %d was sent %v; hooks have sent it %q", c.id, f, h.gifts)
	}
	h.gifts = h.gifts[1:]
	return true
}

// forbidden takes an error of that kind.
func (c *simClient) forbidden(a *simAsk, text string) bool {
	h := c.hooked
	switch {
	case h == nil:
		return false
	case a.verb == "publish":
		c.w.ledger.messages[a.number].sends--
	}
	if !c.permitted(a.verb, a.topic) {
		return true
	}
	h.denied[text]--
	return h.denied[text] == 0
}

// mayHave wants that c was allowed what it was answered ok to.
func (c *simClient) mayHave(a *simAsk) {
	if c.hooked == nil || a.verb != "subscribe" && a.verb != "publish" {
		return
	}
	key := a.verb + a.topic
	if c.hooked.agreed[key]--; !c.permitted(a.verb, a.topic) || c.w.cfg.Allow != nil && c.hooked.agreed[key] < 0 {
		c.w.fail("client %d was answered ok to a %s of %s, which it may not", c.id, a.verb, a.topic)
	}
}

// overLimit reports whether c may be one too many of its user's connections, who
// has neither OnOpen nor OnClose.
func (c *simClient) overLimit() bool {
	return c.user != "" && c.w.cfg.MaxUserConns < 10
}

// mayExpire reports whether c may be closed for that.
func (c *simClient) mayExpire() bool {
	return c.hooked != nil && !c.hooked.own.Expires.IsZero() && c.w.newest.UnixMilli() >= c.hooked.own.Expires.UnixMilli()
}

// ease lets go all that hangs. Before, who waits for an Auth that hangs must have
// been answered.
func (s *hooks) ease() {
	w := s.w
	s.calmed = true
	if !slices.ContainsFunc(s.all, func(c *simClient) bool { return strings.HasPrefix(c.hooked.inside, "Auth") }) {
		w.letAllGo()
		return
	}
	w.passes(w.cfg.AuthTimeout + time.Second)
	for _, c := range s.all {
		if c.hooked.inside == "Auth" && c.status == 0 && !c.Gone && !c.Broken && !c.EOF {
			w.fail("client %d waits for an Auth that hangs, and was not answered", c.id)
		}
	}
	w.letAllGo()
}

// calm wants of every connection that its hooks know what is true.
func (s *hooks) calm() {
	w := s.w
	for _, c := range s.all {
		h := c.hooked
		if h.inside != "" {
			w.fail("%s of client %d has not returned", h.inside, c.id)
		}
		s.balance(c)
		if !c.open() || c.Broken {
			continue
		}
		switch {
		case h.closed > 0 || h.opened == 0 && w.cfg.OnOpen != nil:
			w.fail("client %d is open; OnOpen was called %d times, OnClose %d times", c.id, h.opened, h.closed)
		case w.cfg.OnMessage != nil && h.heard != len(h.said):
			w.fail("client %d has sent %d messages, OnMessage was given %d", c.id, len(h.said), h.heard)
		case len(h.gifts) > 0:
			w.fail("client %d was not sent %q", c.id, h.gifts)
		case h.doomed:
			w.fail("client %d is open, a hook has asked for its end: %v", c.id, c.may)
		case !h.own.Expires.IsZero() && w.Date().Sub(h.own.Expires) > 2*time.Second:
			w.fail("client %d has expired %v ago, and is open", c.id, w.Date().Sub(h.own.Expires))
		}
	}
}

// balance wants the hooks of an end to be called for whom it has come.
func (s *hooks) balance(c *simClient) {
	cfg, h := &s.w.cfg, c.hooked
	if h.inside != "" || cfg.OnClose == nil || s.w.hasty {
		return
	}
	if c.upgrade && c.Gone && h.closed != 1 && !c.overLimit() || cfg.OnOpen != nil && h.opened == 1 && c.Gone && h.closed != 1 {
		s.w.fail("client %d has ended, OnOpen was called %d times, OnClose %d times", c.id, h.opened, h.closed)
	}
	if c.over == wire.CloseConnectionLimit && h.opened+h.closed > 0 {
		s.w.fail("client %d is one too many, and OnOpen was called %d times, OnClose %d times", c.id, h.opened, h.closed)
	}
	if h.closed == 1 && c.over != 0 && h.code != int(c.over) {
		s.w.fail("client %d was closed with %d, OnClose was told %d", c.id, c.over, h.code)
	}
}

// ended wants all hooks to have returned when the server has ended.
func (s *hooks) ended() {
	if s.w.hasty {
		return
	}
	for _, c := range s.all {
		if c.hooked.inside != "" {
			s.w.fail("%s of client %d has not returned", c.hooked.inside, c.id)
		}
		s.balance(c)
	}
}
