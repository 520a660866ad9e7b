package server

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server/internal/engine"
	"github.com/tocsin-push/tocsin/server/internal/engine/enginetest"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// simClient is a client, and what it may insist on: it sends a head in parts,
// speaks frames, commands and nonsense, reads when it likes, and leaves.
type simClient struct {
	*enginetest.Peer
	w    *world
	id   int
	user string
	raw  bool

	head    []byte // that it has not sent
	upgrade bool   // it was answered 101
	status  int    // it was answered that instead
	wants   int    // the status that its head deserves; 0 for 101
	welcome *wire.Welcome

	nextID uint64
	asked  map[uint64]*simAsk       // commands without an answer
	late   string                   // the topic of an answer that came too late to matter
	last   map[string]uint64        // the last command that was answered, by topic
	at     map[string]*simPlace     // of the topics that it is on
	was    map[string]simPlace      // of those that it left, and of earlier connections of the same kind
	left   map[string]time.Duration // when it began to unsubscribe, if nothing else ended that
	got    map[int]bool             // messages, by number
	order  map[simBatch]int         // of the last one of each batch
	pings  []string                 // whose pong has not come
	passed []string                 // those of them that a later pong stands for

	bad      wire.CloseCode   // what it did deserves this; 0 for nothing
	may      []wire.CloseCode // these it may be closed with: somebody asked for it
	slow     bool             // its socket was full, or is
	asleep   bool             // it does not read
	trickles bool             // a few bytes now and then
	closed   bool             // it has sent Close, or says no more for another reason
	mute     bool             // it has stopped in the middle of a frame
	over     wire.CloseCode   // it was sent Close
	goodbye  bool             // it was told when to come back
	agreed   bool             // it has answered the Close
	opened   int              // the step in which it was answered 101
	empty    time.Duration    // when it had last read all there was
	said     int              // how often it has sent something
	prior    int              // the same, before it began to read
	pinged   int              // the same, before it was last pinged
	spoke    time.Duration    // when it last sent something
	before   time.Duration    // the same, when it began to read
	silent   time.Duration    // for so long it was, at most, before it spoke again
	came     time.Duration    // when it connected
	pingAt   time.Duration    // when the server last sent a ping alone
	closeAt  time.Duration    // and a Close frame
	full     bool             // it could not send what it wanted to
	aims     simAims
	hooked   *simHooked // of a server with hooks; else nil
	guest    *simGuest  // of who has come by ServeHTTP; else nil
}

// simAsk is a command on its way.
type simAsk struct {
	verb, topic string
	after       *simPlace // of a subscribe that resumes
	wrong       bool      // it deserves an error
	number      int       // of the message of a publish
	began       time.Duration
}

// simPlace is where a client stands in a topic.
type simPlace struct {
	epoch string
	seq   uint64
	gap   *wire.Gap // the notice that must come next
}

// talks reports whether the server can be expected to hear more of it.
func (c *simClient) talks() bool {
	return !c.Gone && !c.EOF && !c.Broken && !c.closed && c.status == 0
}

// open reports whether it is upgraded, and nothing has been said of an end.
func (c *simClient) open() bool { return c.talks() && c.upgrade && c.over == 0 && c.bad == 0 }

func (c *simClient) name() string { return c.w.srv.ids.name(c.Ref) }

func (c *simClient) speak(frames ...wstest.Frame) {
	c.say(wstest.Encode(frames...))
}

// say sends bytes, behind what is left of its head.
func (c *simClient) say(b []byte) {
	c.silent = max(c.silent, c.w.Time-c.spoke)
	c.spoke = c.w.Time
	c.said++
	c.Write(c.head)
	c.head = nil
	c.Write(b)
}

// command sends one, and expects an answer.
func (c *simClient) command(a *simAsk, format string, args ...any) {
	c.nextID++
	c.asked[c.nextID], a.began = a, c.w.Time
	text := fmt.Sprintf(`{"id":%d,%s}`, c.nextID, fmt.Sprintf(format, args...))
	c.message(ws.OpText, []byte(text), c.nextID)
	c.speak(wstest.Text(text))
}

// relax has it read whatever there is, from now on, and finish what it began.
func (c *simClient) relax() {
	if c.Gone {
		return
	}
	c.asleep = false
	c.Drain(-1)
	c.read()
	if len(c.head) > 0 && c.talks() {
		c.say(nil)
	}
}

// leave ends it from its side.
func (c *simClient) leave() {
	if !c.Gone && !c.EOF {
		c.asleep = false
		c.Drain(-1)
		c.HangUp()
	}
}

// read takes what has come.
func (c *simClient) read() {
	if c.asleep || c.guest != nil && !c.upgrade && !c.guest.entered() {
		return
	}
	if len(c.Out) == 0 {
		c.empty = c.w.Time
		return
	}
	if !c.upgrade && !c.answered() {
		return
	}
	c.before, c.prior = c.spoke, c.said
	for _, f := range c.Frames() {
		c.w.frames++
		if c.w.Show {
			fmt.Printf("    client %d gets %v\n", c.id, f)
		}
		c.w.Note(uint64(c.id)<<8|uint64(f.Op), f.Payload)
		c.frame(f)
	}
	if len(c.Out) == 0 {
		c.empty = c.w.Time
	}
}

// answered reads the answer to the handshake, and reports whether it is a 101.
func (c *simClient) answered() bool {
	head, rest, whole := bytes.Cut(c.Out, []byte("\r\n\r\n"))
	if c.status != 0 { // the rest of the text
		if bytes.Contains(c.Out, []byte("HTTP/")) {
			c.w.fail("client %d was answered %d and then %q", c.id, c.status, c.Out)
		}
		return false
	}
	if !whole {
		return false
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 ")) {
		c.w.fail("client %d was sent %q for an answer", c.id, head)
	}
	status, _ := strconv.Atoi(string(bytes.Fields(head)[1]))
	wants := c.wants
	if wants == 0 && c.hooked != nil {
		wants = c.hooked.verdict
	}
	if status == 101 {
		if wants != 0 {
			c.w.fail("client %d was answered 101 to a head that deserves %d", c.id, wants)
		}
		c.upgrade, c.Out, c.opened = true, rest, c.w.step
		return true
	}
	c.status, c.Out = status, rest
	switch {
	case wants == status, status == 503:
	case status == 408 && c.w.Time-c.came >= c.w.cfg.HandshakeTimeout-engine.StampUnit && len(c.head)+len(c.In) > 0: // a part of it has not arrived
	default:
		c.w.fail("client %d was answered %d, its head deserves %d", c.id, status, wants)
	}
	_, length, _ := bytes.Cut(head, []byte("Content-Length: "))
	length, _, _ = bytes.Cut(length, []byte("\r\n"))
	if n, err := strconv.Atoi(string(length)); err == nil && len(rest) == n && !c.Ends && !c.Gone && !c.Broken {
		c.w.fail("client %d was answered %d, and there is no end of file behind it", c.id, status)
	}
	return false
}

// frame takes one frame of the server's.
func (c *simClient) frame(f wstest.Frame) {
	if c.over != 0 {
		c.w.fail("client %d was sent %v behind the Close frame", c.id, f)
	}
	if c.gift(f) {
		return
	}
	switch f.Op {
	case ws.OpPing:
		c.pinged = c.said
		if c.talks() && c.bad == 0 {
			c.speak(wstest.Pong(string(f.Payload)))
		}
	case ws.OpPong:
		c.pong(string(f.Payload))
	case ws.OpClose:
		c.ended(f)
	case ws.OpText:
		if c.raw {
			c.payload(wire.Message{Data: f.Payload})
			return
		}
		e, err := tocsin.ParseEvent(f.Payload)
		if err != nil {
			c.w.fail("client %d was sent %v: %v", c.id, f, err)
		}
		c.event(&e)
	default:
		c.w.fail("client %d was sent %v", c.id, f)
	}
}

// wire sees what leaves the server for c, long before c reads it perhaps.
func (c *simClient) wire(b []byte) {
	waited := c.full
	c.full = len(b) == 0
	switch {
	case len(b) == 0:
	case len(b) == 2 && b[0] == 0x80|byte(ws.OpPing):
		if c.pingAt = c.w.Time; waited { // nobody knows for how long
			c.pingAt = 0
		}
	case b[0] == 0x80|byte(ws.OpClose):
		c.closeAt = c.w.Time
	}
}

// pong takes a pong. One stands for all pings before its own, whose pongs may
// still come: RFC 6455 section 5.5.3.
func (c *simClient) pong(payload string) {
	if i := slices.Index(c.pings, payload); i >= 0 {
		c.passed = append(c.passed, c.pings[:i]...)
		c.pings = slices.Delete(c.pings, 0, i+1)
	} else if i := slices.Index(c.passed, payload); i >= 0 {
		c.passed = slices.Delete(c.passed, i, i+1)
	} else {
		c.w.fail("client %d was sent a pong %q, its pings were %q", c.id, payload, c.pings)
	}
}

// ended takes the server's Close frame.
func (c *simClient) ended(f wstest.Frame) {
	c.over = wire.CloseCode(1005)
	if len(f.Payload) > 0 {
		c.over = f.CloseCode()
	}
	if !c.mayEnd() {
		c.w.fail("client %d was closed with %v: it did nothing that deserves it (it deserves %d, may get %v, is silent for %v, %d bytes unread)", c.id, f, c.bad, c.may, c.w.Time-c.before, len(c.In))
	}
	if c.over == wire.CloseNoPong && c.talks() && !c.slow && !c.w.narrow && c.pinged < c.prior {
		c.w.fail("client %d was closed with %v, and was not pinged since it last said something", c.id, f)
	}
	if late := c.closeAt - c.pingAt; c.over == wire.CloseNoPong && c.pingAt > 0 && c.closeAt > 0 && late < c.w.cfg.PongTimeout-2*engine.StampUnit {
		c.w.fail("client %d was closed with %v only %v after its ping", c.id, f, late)
	}
	if c.over == wire.CloseShutdown && !c.raw && !c.goodbye {
		c.w.fail("client %d was closed with %v, and not told when to come back", c.id, f)
	}
	if c.talks() {
		c.closed, c.agreed = true, true
		c.speak(f)
	}
}

// mayEnd reports whether the server had a reason for its close code.
func (c *simClient) mayEnd() bool {
	cfg := &c.w.cfg
	silent := max(c.silent, c.w.Time-c.before)
	switch c.over {
	case c.bad:
		return c.bad != 0
	case wire.ClosePolicy: // a part of its message has not arrived
		return (len(c.In) > 0 || c.w.deafened) && c.w.Chance.Cut > 0 || c.closed || slices.Contains(c.may, c.over)
	case wire.CloseSlow:
		return c.slow || c.w.narrow
	case wire.CloseNoPong:
		return silent >= cfg.PingInterval+cfg.PongTimeout-2*engine.StampUnit
	case wire.CloseShutdown:
		return c.w.stopping && (c.goodbye || c.raw)
	case wire.CloseExpired:
		return c.mayExpire()
	case wire.CloseConnectionLimit:
		return c.overLimit()
	}
	return c.closed || slices.Contains(c.may, c.over)
}

// event takes a message, a notice or an answer.
func (c *simClient) event(e *wire.Event) {
	switch {
	case e.Welcome != nil:
		c.welcomed(e.Welcome)
	case e.ID != 0:
		c.reply(e)
	case e.OK != nil && e.OK.Topic != "": // a backend has subscribed it
		c.enrolled(e.OK)
		if p := c.at[e.OK.Topic]; p != nil && !c.mayBeOff(e.OK.Topic) {
			c.w.fail("client %d was told that it is subscribed to %s, where it is at %+v", c.id, e.OK.Topic, *p)
		}
		c.at[e.OK.Topic] = c.joins(e.OK.Topic, e.OK.Epoch, e.OK.Seq)
	case e.Message != nil:
		c.payload(*e.Message)
	case e.Gap != nil:
		c.gap(e.Gap)
	case e.Cancel != nil:
		// A subscription by a backend that ends before it takes effect is not told
		// by an ok, but by this.
		if topic := e.Cancel.Topic; !c.aims.off[topic] || c.at[topic] == nil && !c.aims.on[topic] {
			c.w.fail("client %d is told %+v, it is at %+v", c.id, *e.Cancel, c.at[e.Cancel.Topic])
		}
		c.off(e.Cancel.Topic)
		if c.hooked != nil && c.hooked.offs[e.Cancel.Topic] > 0 {
			c.hooked.offs[e.Cancel.Topic]--
		}
	case e.Goodbye != nil:
		if after := time.Duration(e.Goodbye.RetryAfterMS) * time.Millisecond; !c.w.stopping || c.goodbye || e.Goodbye.Code != wire.CloseShutdown || after < 500*time.Millisecond || after > 500*time.Millisecond+c.w.srv.cfg.ReturnWindow {
			c.w.fail("client %d was sent %+v", c.id, *e.Goodbye)
		}
		c.goodbye = true
	case e.OK == nil && e.Error == nil: // these answer a command without an id
		c.w.fail("client %d was sent an event without meaning", c.id)
	}
}

func (c *simClient) welcomed(e *wire.Welcome) {
	if c.welcome != nil || e.Conn != c.name() || e.User != c.user {
		c.w.fail("client %d, %s of user %q, was welcomed as %+v", c.id, c.name(), c.user, *e)
	}
	c.welcome = e
	for topic, at := range e.Topics {
		c.at[topic] = c.joins(topic, at.Epoch, at.Seq)
	}
}

// reply takes the answer to a command.
func (c *simClient) reply(e *wire.Event) {
	a := c.asked[e.ID]
	if a == nil {
		c.w.fail("client %d was answered what it has not asked, or again: %+v", c.id, *e)
	}
	delete(c.asked, e.ID)
	if e.Error != nil {
		c.refused(a, e.Error)
		return
	}
	if a.wrong {
		c.w.fail("client %d was answered ok to a wrong %s", c.id, a.verb)
	}
	c.mayHave(a)
	switch a.verb {
	case "subscribe":
		if e.ID > c.last[a.topic] {
			c.subscribed(a, e.OK)
		} else if e.OK.Recovered != nil && !*e.OK.Recovered {
			c.late = a.topic // it has unsubscribed since, and is told of the gap all the same
		}
	case "unsubscribe":
		if e.ID > c.last[a.topic] && c.at[a.topic] != nil {
			c.off(a.topic)
			c.left[a.topic] = a.began
		}
	case "publish":
		c.w.ledger.placed(a.number, a.topic, Position{Seq: e.OK.Seq, Epoch: e.OK.Epoch})
	}
	if e.ID > c.last[a.topic] {
		c.last[a.topic] = e.ID
	}
}

// refused takes an error for an answer.
func (c *simClient) refused(a *simAsk, e *wire.Error) {
	switch {
	case a.wrong:
	case e.Code == wire.NotFound && a.verb == "ack": // it was too late
	case e.Code == wire.NotSubscribed && a.verb == "unsubscribe": // it may know better
	case e.Code == wire.TooManyTopics && a.verb == "subscribe":
	case e.Code == wire.Busy && a.verb == "publish":
	case e.Code == wire.Forbidden && c.forbidden(a, e.Message):
	case e.Code == wire.Internal && c.w.cfg.Bus != nil:
	case a.verb == "subscribe" && e.Code == tooLate.Code && e.Message == tooLate.Message:
	default:
		c.w.fail("client %d was refused a %s of %q: %+v", c.id, a.verb, a.topic, *e)
	}
}

// subscribed takes the answer to a subscribe: it tells where the topic stands.
func (c *simClient) subscribed(a *simAsk, ok *wire.OK) {
	now := c.joins(a.topic, ok.Epoch, ok.Seq)
	before := c.at[a.topic]
	switch {
	case before != nil && before.gap == nil && !c.mayBeOff(a.topic) && (before.epoch != ok.Epoch || before.seq != ok.Seq):
		c.w.fail("client %d, which is at %+v of %s, is told that it stands at %+v", c.id, *before, a.topic, *ok)
	case (a.after != nil) != (ok.Recovered != nil):
		c.w.fail("client %d resumes %s after %+v and is told %+v", c.id, a.topic, a.after, *ok)
	case c.lingers(a.topic) && c.was[a.topic].epoch != ok.Epoch:
		c.w.fail("client %d, which left %s at %+v, is told after %v that it stands at %+v", c.id, a.topic, c.was[a.topic], c.w.Time-c.left[a.topic], *ok)
	case a.after == nil:
	case *ok.Recovered != (a.after.epoch == ok.Epoch && a.after.seq == ok.Seq):
		c.w.fail("client %d resumes %s after %+v and is told that it recovered: %v, it stands at %+v", c.id, a.topic, *a.after, *ok.Recovered, *now)
	case !*ok.Recovered:
		from := a.after.seq + 1
		if a.after.epoch != ok.Epoch || a.after.seq > ok.Seq {
			from = 1
		}
		now.gap = &wire.Gap{Topic: a.topic, Epoch: ok.Epoch, From: from, To: ok.Seq}
	}
	c.at[a.topic] = now
}

// joins takes the place at which it joins a topic.
func (c *simClient) joins(topic, epoch string, seq uint64) *simPlace {
	p := &simPlace{epoch: epoch, seq: seq}
	if c.w.bus != nil && !c.w.ledger.story(topic).stood(*p) {
		c.w.fail("client %d joins %s at %+v, where it has never stood", c.id, topic, *p)
	}
	return p
}

// lingers reports whether a topic that c has left must have its place still.
func (c *simClient) lingers(topic string) bool {
	left, ok := c.left[topic]
	return ok && c.w.cfg.Bus == nil && c.w.Time-left < c.w.cfg.TopicLinger
}

// mayBeOff reports whether the server may have ended a subscription of which c
// knows: it is not told if it has been subscribed again meanwhile.
func (c *simClient) mayBeOff(topic string) bool { return c.hooked != nil && c.hooked.offs[topic] > 0 }

// off takes the end of a subscription.
func (c *simClient) off(topic string) {
	if p := c.at[topic]; p != nil {
		c.was[topic] = *p
		delete(c.at, topic)
		delete(c.left, topic)
	}
}

// payload takes a message.
func (c *simClient) payload(m wire.Message) {
	number := c.w.ledger.received(c, &m)
	if c.got[number] && !c.w.ledger.messages[number].unsure {
		c.w.fail("client %d was sent message %d of %q again", c.id, number, m.Topic)
	}
	c.got[number] = true
	if m.Ack && c.talks() && c.w.Rng.IntN(4) > 0 {
		c.w.ledger.messages[number].acked[c.name()] = true
		c.command(&simAsk{verb: "ack", wrong: false}, `"ack":{"id":%q}`, m.ID)
	}
	if c.raw || m.Topic == wire.UserTopic || m.Topic == wire.AllTopic {
		return
	}
	p := c.at[m.Topic]
	if p == nil || p.gap != nil || m.Seq != p.seq+1 { // holes are told
		c.w.fail("client %d was sent message %d of %s, where it is at %+v", c.id, m.Seq, m.Topic, p)
	}
	p.seq = m.Seq
	if b := c.w.bus; b == nil {
		c.w.ledger.stands(m.Topic, Position{Seq: m.Seq, Epoch: p.epoch}, number)
	} else if n, ok := b.l.story(m.Topic).epochs[p.epoch].given[m.Seq]; !ok || n != number {
		c.w.fail("client %d was sent message %d as %d of %s, where the bus has %d (%v)", c.id, number, m.Seq, m.Topic, n, ok)
	}
}

// gap takes the notice that some messages will not come.
func (c *simClient) gap(g *wire.Gap) {
	p := c.at[g.Topic]
	switch {
	case c.late == g.Topic: // it belongs to that answer, whatever c has asked for since
		c.late = ""
		return
	case p == nil:
		c.w.fail("client %d was sent %+v of a topic that it is not on", c.id, *g)
	case p.gap != nil:
		if want := *p.gap; g.From != want.From || g.To != want.To || g.Epoch != want.Epoch {
			c.w.fail("client %d was sent %+v, want %+v", c.id, *g, want)
		}
		p.gap = nil
	case c.w.bus != nil && !c.w.ledger.story(g.Topic).gap(p, g):
		c.w.fail("client %d was sent %+v, it is at %+v: the bus has told something else", c.id, *g, *p)
	case g.Epoch != p.epoch:
		if c.w.bus == nil {
			c.w.fail("client %d was sent %+v, it is at %+v", c.id, *g, *p)
		}
		p.epoch = g.Epoch
	case g.From != p.seq+1 || g.To < g.From || !c.mayMiss(g):
		c.w.fail("client %d was sent %+v, it is at %+v", c.id, *g, *p)
	}
	p.seq = g.To
}

// mayMiss reports whether a gap has a reason.
func (c *simClient) mayMiss(g *wire.Gap) bool {
	l := &c.w.ledger
	switch g.Reason {
	case "overflow":
		return c.w.cfg.overflow(g.Topic) != Disconnect
	case "collapsed":
		return c.w.cfg.overflow(g.Topic) == Latest && (c.w.bus != nil || l.all(g, l.collapsed)) // of other nodes' messages little is known
	case "bus":
		return c.w.cfg.Bus != nil
	case "budget":
		return c.w.cfg.OutboxBudget < 1<<20
	case "ttl":
		return l.all(g, func(m *simMessage) bool { return m.m.TTL > 0 && c.w.Time >= m.began+m.m.TTL })
	}
	return false
}

// simClients has clients come, talk, read, and leave.
func simClients(w *world) feature {
	cfg := &w.cfg
	cfg.Dev = true
	cfg.MaxTopics, cfg.MaxControl = 3, 100
	cfg.MaxMessage = some(w, []int{200, 5_000, 100_000})
	cfg.MaxFrames = some(w, []int{4, 128})
	cfg.MaxPublish = 1000
	s := &clientele{w: w, most: 2 + w.Rng.IntN(10)}
	w.people = s
	switch w.Rng.IntN(8) {
	case 0:
		s.most = 150 // more than a batch of events
	case 1:
		cfg.MaxConnections = 1 + s.most/2
	case 2:
		cfg.MaxUserConns = 2
	}
	return feature{
		events: []happening{
			{"a client connects", 60, s.connect},
			{"a client sends a part of its head", 60, s.sendHead},
			{"a client subscribes", 60, s.subscribe},
			{"a client unsubscribes", 25, s.unsubscribe},
			{"a client comes back to a topic", 25, s.resume},
			{"a client asks for something wrong", 10, s.askWrong},
			{"a client pings", 20, s.ping},
			{"a client pings with a command", 15, s.pingCommand},
			{"a client sends half a frame", 15, s.half},
			{"a client breaks the protocol", 4, s.sin},
			{"a client reads a little", 60, s.drain},
			{"a client reads on", 80, s.readOn},
			{"a client does not read", 10, s.sleep},
			{"a client closes", 5, s.close},
			{"a client hangs up", 5, s.hangUp},
			{"a client hangs up behind a backlog", 4, s.hangUpBehind},
			{"a client vanishes", 5, s.vanish},
			{"many connect and say nothing", 2, s.flood},
		},
		often: s.forget,
		still: s.still,
		calm:  s.calm,
		end:   s.end,
	}
}

// clientele is the state of simClients.
type clientele struct {
	w     *world
	most  int // clients at once
	begun int
}

// simTopics, with their policies by prefix: see simPublish.
var simTopics = []string{"all/0", "all/1", "old/0", "new/0"}

// connect has a client come.
func (s *clientele) connect() bool {
	w := s.w
	if w.stopping || s.living() >= s.most {
		return false
	}
	p := w.listener.Connect()
	if p == nil {
		return false
	}
	c := s.newcomer(p)
	c.head = s.request(c)
	if w.Rng.IntN(8) == 0 { // it has no room for the answer
		c.slow = true
		c.Drain(w.Rng.IntN(100) * w.Rng.IntN(2))
	}
	if w.Rng.IntN(3) > 0 { // TCP_DEFER_ACCEPT
		c.say(nil)
	}
	return true
}

// newcomer returns the client of a new connection.
func (s *clientele) newcomer(p *enginetest.Peer) *simClient {
	w := s.w
	s.begun++
	c := &simClient{
		Peer: p, w: w, id: s.begun, came: w.Time, spoke: w.Time,
		aims: newAims(), asked: map[uint64]*simAsk{}, last: map[string]uint64{}, at: map[string]*simPlace{}, was: map[string]simPlace{},
		left: map[string]time.Duration{}, got: map[int]bool{}, order: map[simBatch]int{},
	}
	if w.Rng.IntN(4) > 0 {
		c.user = "user" + strconv.Itoa(w.Rng.IntN(3))
	}
	c.raw = w.Rng.IntN(8) == 0
	if len(w.clients) > 0 { // it may know where another stood
		for topic, at := range some(w, w.clients).at {
			c.was[topic] = simPlace{epoch: at.epoch, seq: at.seq}
		}
	}
	c.Sent = c.wire
	w.clients = append(w.clients, c)
	return c
}

// target is that of c's request.
func (s *clientele) target(c *simClient) string {
	w := s.w
	query := "?user=" + c.user
	if c.raw {
		query += "&format=raw"
	}
	var topics []string
	if n := w.Rng.IntN(4); n > 1 || c.raw {
		topics = simTopics[:max(n, 1)]
		query += "&topics=" + strings.Join(topics, ",")
		if w.Rng.IntN(4) == 0 { // meant once
			query += "," + simTopics[0]
		}
	}
	if w.hooks != nil {
		query += w.hooks.meet(c, topics)
	}
	return w.path() + query
}

// request makes a head, which may be a wrong one.
func (s *clientele) request(c *simClient) []byte {
	w := s.w
	head := []byte(wstest.Request("tocsin.test", s.target(c), "dGhlIHNhbXBsZSBub25jZQ=="))
	switch w.Rng.IntN(20) {
	case 0:
		c.wants, head = 405, bytes.Replace(head, []byte("GET"), []byte("PUT"), 1)
	case 1:
		c.wants, head = 400, bytes.Replace(head, []byte("\r\n"), []byte("\r\nHost: two\r\n"), 1)
	case 2:
		c.wants, head = 431, bytes.Replace(head, []byte("\r\n"), []byte("\r\nX: "+pad(9<<10)+"\r\n"), 1)
	case 3, 4, 5: // frames that do not wait for the answer
		c.pings = append(c.pings, "early")
		c.may = append(c.may, wire.ClosePolicy) // it may stop in the middle of the frame
		head = append(head, wstest.Encode(wstest.Ping("early"))...)
	}
	return head
}

func (w *world) path() string {
	if w.cfg.Path != "" {
		return w.cfg.Path
	}
	return "/ws"
}

// living counts the clients that the server has not closed.
func (s *clientele) living() (n int) {
	for _, c := range s.w.clients {
		if !c.Gone {
			n++
		}
	}
	return n
}

// forget lets go of most that have ended: the rest may be named once more.
func (s *clientele) forget() {
	dead := len(s.w.clients) - s.living()
	s.w.clients = slices.DeleteFunc(s.w.clients, func(c *simClient) bool {
		if !c.Gone || dead <= 3 || len(c.Out) > 0 && !c.Broken && !c.asleep {
			return false
		}
		dead--
		return true
	})
}

// one returns a client for which ok holds, nil if there is none.
func (s *clientele) one(ok func(*simClient) bool) *simClient {
	if len(s.w.clients) == 0 {
		return nil
	}
	for i, n := s.w.Rng.IntN(len(s.w.clients)), 0; n < len(s.w.clients); n++ {
		if c := s.w.clients[(i+n)%len(s.w.clients)]; ok(c) {
			return c
		}
	}
	return nil
}

// whole reports whether c can send a frame: it has sent its head, and no part of
// another frame.
func whole(c *simClient) bool { return c.talks() && c.bad == 0 && len(c.head) == 0 && c.wants == 0 }

// speaks is whole for who waits for the answer before it sends commands.
func speaks(c *simClient) bool { return whole(c) && c.upgrade && c.over == 0 }

// commands is speaks for tocsin.v1.
func commands(c *simClient) bool { return speaks(c) && !c.raw }

func (s *clientele) sendHead() bool {
	c := s.one(func(c *simClient) bool { return c.talks() && len(c.head) > 0 })
	if c == nil {
		return false
	}
	n := 1 + s.w.Rng.IntN(len(c.head))
	first, rest := c.head[:n], c.head[n:]
	c.head = first
	c.say(nil)
	c.head = rest
	return true
}

func (s *clientele) subscribe() bool {
	c, topic := s.one(commands), some(s.w, simTopics)
	if c == nil {
		return false
	}
	c.command(&simAsk{verb: "subscribe", topic: topic}, `"subscribe":{"topic":%q}`, topic)
	return true
}

func (s *clientele) unsubscribe() bool {
	c, topic := s.one(commands), some(s.w, simTopics)
	if c == nil {
		return false
	}
	c.leaves(topic)
	c.command(&simAsk{verb: "unsubscribe", topic: topic}, `"unsubscribe":{"topic":%q}`, topic)
	return true
}

// resume subscribes after a position that was true once, or never.
func (s *clientele) resume() bool {
	c := s.one(func(c *simClient) bool { return commands(c) && len(c.was) > 0 })
	if c == nil {
		return false
	}
	topic := some(s.w, sorted(c.was))
	after := c.was[topic]
	switch s.w.Rng.IntN(12) {
	case 0:
		after.seq = math.MaxUint64
	case 1:
		after.seq = 1 << 63
	case 2:
		after.seq++
	}
	c.command(&simAsk{verb: "subscribe", topic: topic, after: &simPlace{epoch: after.epoch, seq: after.seq}},
		`"subscribe":{"topic":%q,"after":%d,"epoch":%q}`, topic, after.seq, after.epoch)
	return true
}

func (s *clientele) askWrong() bool {
	c := s.one(commands)
	if c == nil {
		return false
	}
	c.command(&simAsk{verb: "something", wrong: true}, "%s", some(s.w, []string{
		`"subscribe":{"topic":"a b"}`, `"subscribe":{"topic":"$user"}`, `"subscribe":{}`, `"dance":{}`, `"ack":{"id":"nobody"}`,
		`"publish":{"topic":"all/0"}`, `"subscribe":{"topic":"all/0","after":-1}`, `"subscribe":{"topic":"all/0","after":18446744073709551616}`,
	}))
	return true
}

func (s *clientele) ping() bool {
	c := s.one(whole)
	if c == nil || len(c.pings) > 50 {
		return false
	}
	s.begun++
	payload := "ping" + strconv.Itoa(s.begun)
	c.pings = append(c.pings, payload)
	c.speak(wstest.Ping(payload))
	return true
}

func (s *clientele) pingCommand() bool {
	c := s.one(commands)
	if c == nil {
		return false
	}
	c.command(&simAsk{verb: "ping"}, `"ping":{}`)
	return true
}

// half sends a command in frames, these in parts, and not always the last.
func (s *clientele) half() bool {
	c := s.one(commands)
	if c == nil {
		return false
	}
	c.nextID++
	text := fmt.Sprintf(`{"id":%d,"ping":{},"pad":"ü€😀%s"}`, c.nextID, pad(s.w.Rng.IntN(max(s.w.cfg.MaxMessage-80, 1))))
	frames := wstest.Fragments(ws.OpText, []byte(text), max(len(text)/s.w.cfg.MaxFrames+1, 1+s.w.Rng.IntN(len(text))))
	between := len(frames) > 1 && len(c.pings) < 50 && s.w.Rng.IntN(2) == 0
	if between { // RFC 6455 section 5.4
		s.begun++
		frames = slices.Insert(frames, 1+s.w.Rng.IntN(len(frames)-1), wstest.Ping("between"+strconv.Itoa(s.begun)))
	}
	b := wstest.Encode(frames...)
	if n := 1 + s.w.Rng.IntN(3*len(b)); n < len(b) { // the rest never comes
		c.say(b[:n])
		c.closed, c.mute = true, true // it says no more
		if between {                  // perhaps its pong comes
			c.passed = append(c.passed, "between"+strconv.Itoa(s.begun))
		}
		c.may = append(c.may, wire.ClosePolicy)
		return true
	}
	c.asked[c.nextID] = &simAsk{verb: "ping"}
	if between {
		c.pings = append(c.pings, "between"+strconv.Itoa(s.begun))
	}
	c.message(ws.OpText, []byte(text), c.nextID)
	for len(b) > 0 {
		n := 1 + s.w.Rng.IntN(len(b))
		c.say(b[:n])
		b = b[n:]
		s.w.Step()
	}
	return true
}

// simSins are what breaks RFC 6455 or a limit, and what it deserves.
var simSins = []struct {
	code  wire.CloseCode
	frame func(*world) []byte
}{
	{wire.CloseProtocolError, func(*world) []byte { return []byte{0x81, 0x01, 'x'} }},                                           // unmasked
	{wire.CloseProtocolError, func(*world) []byte { return []byte{0xC1, 0x80, 0, 0, 0, 0} }},                                    // RSV1
	{wire.CloseProtocolError, func(*world) []byte { return []byte{0x83, 0x80, 0, 0, 0, 0} }},                                    // a reserved opcode
	{wire.CloseProtocolError, func(*world) []byte { return []byte{0x80, 0x80, 0, 0, 0, 0} }},                                    // a continuation of nothing
	{wire.CloseProtocolError, func(*world) []byte { return []byte{0x09, 0x80, 0, 0, 0, 0} }},                                    // a ping in fragments
	{wire.CloseProtocolError, func(*world) []byte { return append([]byte{0x81, 0xFF}, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) }}, // 2^63 bytes
	{wire.CloseTooBig, func(*world) []byte {
		return append([]byte{0x81, 0xFF}, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0)
	}}, // 2^63-1 bytes
	{wire.CloseTooBig, func(w *world) []byte {
		return wstest.Encode(wstest.Frame{Op: ws.OpText, Payload: []byte(pad(w.cfg.MaxMessage + 1))})
	}},
	{wire.CloseTooBig, func(w *world) []byte { // each is small enough, and the sum overflows
		return append(wstest.Encode(wstest.Frame{Op: ws.OpText, Payload: []byte("{"), More: true}), 0x00, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0)
	}},
	{wire.ClosePolicy, func(w *world) []byte { // one fragment too many
		frames := wstest.Fragments(ws.OpText, []byte(pad(w.cfg.MaxFrames+1)), 1)
		return wstest.Encode(frames...)
	}},
	{wire.CloseInvalidData, func(*world) []byte { return wstest.Encode(wstest.Frame{Op: ws.OpText, Payload: []byte("\xff")}) }},
	{wire.CloseInvalidData, func(*world) []byte { // it ends within a character
		return wstest.Encode(wstest.Fragments(ws.OpText, []byte("{}\xe2\x82"), 3)...)
	}},
	{wire.CloseUnsupported, func(*world) []byte { return wstest.Encode(wstest.Binary([]byte("x"))) }},
	{wire.CloseProtocolError, func(*world) []byte { return wstest.Encode(wstest.Frame{Op: ws.OpClose, Payload: []byte{3}}) }},
	{wire.CloseProtocolError, func(*world) []byte { return wstest.Encode(wstest.Close(1005, "")) }},
}

func (s *clientele) sin() bool {
	c := s.one(commands)
	if c == nil {
		return false
	}
	sin := some(s.w, simSins)
	c.bad = sin.code
	if sin.code == wire.CloseUnsupported {
		c.message(ws.OpBinary, []byte("x"), 0)
	}
	c.say(sin.frame(s.w))
	return true
}

func (s *clientele) drain() bool {
	c := s.one(func(c *simClient) bool { return !c.Gone })
	if c == nil {
		return false
	}
	c.slow = true
	c.Drain(s.w.Rng.IntN(2000))
	return true
}

func (s *clientele) readOn() bool {
	c := s.one(func(c *simClient) bool { return !c.Gone })
	if c == nil {
		return false
	}
	c.asleep = false
	c.Drain(-1)
	return true
}

func (s *clientele) sleep() bool {
	c := s.one(func(c *simClient) bool { return !c.Gone && c.upgrade })
	if c == nil {
		return false
	}
	c.asleep, c.slow = true, true
	c.Drain(s.w.Rng.IntN(3))
	return true
}

func (s *clientele) close() bool {
	c := s.one(speaks)
	if c == nil {
		return false
	}
	c.closed = true
	c.may = append(c.may, wire.CloseNormal)
	if c.hooked != nil {
		c.hooked.bye = len(c.hooked.said)
	}
	c.speak(wstest.Close(wire.CloseNormal, ""))
	return true
}

func (s *clientele) hangUp() bool {
	c := s.one(func(c *simClient) bool { return !c.Gone && !c.EOF && !c.Broken })
	if c == nil {
		return false
	}
	c.HangUp()
	return true
}

// hangUpBehind hangs up behind more than a turn reads at once.
func (s *clientele) hangUpBehind() bool {
	c := s.one(commands)
	if c == nil {
		return false
	}
	var b []byte
	for n := s.w.Rng.IntN(3 * engine.ReadSize); len(b) < n; {
		text := `{"ping":{},"pad":"` + pad(min(4000, s.w.cfg.MaxMessage-40)) + `"}`
		c.message(ws.OpText, []byte(text), 0)
		b = wstest.Text(text).Append(b)
	}
	c.asleep, c.slow = false, true
	c.Drain(-1)
	c.say(b)
	c.HangUp()
	return true
}

func (s *clientele) vanish() bool {
	c := s.one(func(c *simClient) bool { return !c.Gone && !c.Broken })
	if c == nil {
		return false
	}
	c.Reset()
	if s.w.Rng.IntN(2) == 0 && c.Ref != 0 {
		c.Edge.Readable, c.Edge.Writable, c.Edge.HangUp = false, false, false // which is late, or never comes
	}
	return true
}

// flood connects more than are accepted at once, who then say nothing.
func (s *clientele) flood() bool {
	if s.w.stopping || s.w.listener.Down {
		return false
	}
	for range 2*engine.AcceptBatch + s.w.Rng.IntN(engine.AcceptBatch) {
		s.w.listener.Connect()
	}
	return true
}

// still wants whoever has answered a Close frame to be closed at once, when
// everything has been done that can be at this moment: RFC 6455 section 7.1.1.
func (s *clientele) still() {
	for _, c := range s.w.clients {
		if c.agreed && !c.Gone && !c.Broken && c.bad == 0 {
			s.w.fail("client %d (descriptor %d) has answered the Close frame, and its connection is open", c.id, c.FD)
		}
	}
}

// calm wants every client to know what is true, when nothing is left to do.
func (s *clientele) calm() {
	w := s.w
	users, subs := map[string][]string{}, map[string]int{}
	for _, c := range w.clients {
		switch {
		case c.bad != 0 && !c.Gone && !c.EOF && c.over == 0 && c.status == 0:
			w.fail("client %d is not closed, it deserves %d", c.id, c.bad)
		case !c.Gone && (c.EOF || c.Broken && c.Heard):
			w.fail("client %d has hung up and is not closed", c.id)
		case len(c.In) > 0 && !c.Gone && c.open():
			w.fail("client %d has sent %d bytes that the server does not read", c.id, len(c.In))
		case c.mute && !c.Gone && !c.Broken:
			w.fail("client %d has sent half a message, and is not closed", c.id)
		case !c.upgrade && c.talks() && !c.Broken:
			w.fail("client %d has no answer to its head", c.id)
		}
		if !c.open() || c.Broken {
			continue
		}
		if len(c.asked) > 0 || len(c.pings) > 0 {
			w.fail("client %d (descriptor %d) has no answer to %d commands and the pings %q", c.id, c.FD, len(c.asked), c.pings)
		}
		if c.user != "" {
			users[c.user] = append(users[c.user], c.name())
		}
		if c.raw {
			continue
		}
		if c.welcome == nil {
			w.fail("client %d was not welcomed", c.id)
		}
		if len(c.at) > w.cfg.MaxTopics {
			w.fail("client %d is subscribed to %q, the limit is %d", c.id, sorted(c.at), w.cfg.MaxTopics)
		}
		for _, topic := range sorted(c.at) {
			p := c.at[topic]
			subs[topic]++
			at, _, ok := w.srv.Topic(topic)
			if !ok || at.Epoch != p.epoch || at.Seq != p.seq || p.gap != nil {
				w.fail("client %d is at %+v of %s, which is at %+v", c.id, *p, topic, at)
			}
		}
	}
	s.lists(users, subs)
}

// lists compares the server's lists with what clients know.
func (s *clientele) lists(users map[string][]string, subs map[string]int) {
	w := s.w
	for _, user := range sorted(users) {
		have := w.srv.User(user)
		slices.Sort(have)
		slices.Sort(users[user])
		if most := w.srv.cfg.MaxUserConns; len(have) > most {
			w.fail("user %s has %d connections, the limit is %d", user, len(have), most)
		}
		if !slices.Equal(have, users[user]) && !s.unsure() {
			w.fail("user %s has the connections %q, the server says %q", user, users[user], have)
		}
	}
	for _, topic := range sorted(subs) {
		if _, n, _ := w.srv.Topic(topic); n < subs[topic] {
			w.fail("%d clients are subscribed to %s, the server says %d", subs[topic], topic, n)
		}
	}
}

// unsure reports whether there is a connection of which it is not known whether
// the server has it.
func (s *clientele) unsure() bool {
	return slices.ContainsFunc(s.w.clients, func(c *simClient) bool { return !c.Gone && (!c.open() || c.Broken) })
}

// end wants everybody to be gone.
func (s *clientele) end() {
	for _, c := range s.w.clients {
		if !c.Gone && c.EOF {
			s.w.fail("client %d has left, and its connection is open", c.id)
		}
	}
}
