package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// simLedger is every message that was ever sent, and what is known of it.
type simLedger struct {
	w        *world
	messages []*simMessage
	topics   map[string]*simTopic
}

// simMessage is one message, which may be sent more than once.
type simMessage struct {
	number  int
	a       address
	m       Message
	at      Position // once it is known
	got     int      // clients that it has reached
	began   time.Duration
	receipt *Receipt
	sent    bool // somebody was told that it was
	failed  bool // everybody was told that it was not
	from    *simClient
	tries   []*simTry // to publish it on a bus
	sends   int       // of a client's: how often it was sent and not refused
	unsure  bool      // one of them has failed, and was delivered perhaps
	step    int
	done    time.Duration   // when the receipt came
	acked   map[string]bool // by connections
	batch   simBatch
	index   int // in the batch
}

// simBatch is the messages of a batch that have the same target; the zero value
// is none.
type simBatch struct {
	number int
	to     Target
}

// simTopic is where the messages of a topic stand.
type simTopic struct {
	places map[Position]int // message numbers
	story  *simStory        // what the bus has told
}

// topic returns one.
func (l *simLedger) topic(name string) *simTopic {
	t := l.topics[name]
	if t == nil {
		t = &simTopic{places: map[Position]int{}}
		l.topics[name] = t
	}
	return t
}

// write makes a message for an address.
func (l *simLedger) write(a address, from *simClient) *simMessage {
	w := l.w
	s := &simMessage{number: len(l.messages), a: a, from: from, began: w.Time, step: w.step, acked: map[string]bool{}}
	s.m.Data = fmt.Appendf(nil, `{"n":%d,"x":"%s"}`, s.number, pad(w.Rng.IntN(400)))
	l.messages = append(l.messages, s)
	return s
}

// of returns the message whose payload that is.
func (l *simLedger) of(data []byte) *simMessage {
	const prefix = `{"n":`
	n := 0
	for i := len(prefix); i < len(data) && data[i] >= '0' && data[i] <= '9'; i++ {
		n = n*10 + int(data[i]-'0')
	}
	if len(data) < len(prefix) || n >= len(l.messages) || string(l.messages[n].m.Data) != string(data) {
		l.w.fail("nobody has sent %q", data)
	}
	return l.messages[n]
}

// received notes that c was sent m, which must be for it.
func (l *simLedger) received(c *simClient, m *wire.Message) (number int) {
	s := l.of(m.Data)
	ok := false
	switch s.a.verb {
	case verbPublish:
		ok = c.raw || m.Topic == s.a.topic
	case verbPush:
		ok = (c.raw || m.Topic == wire.UserTopic) && (s.a.to.User != "" && s.a.to.User == c.user || s.a.to.Conn != "" && s.a.to.Conn == c.name())
	case verbBroadcast:
		ok = c.raw || m.Topic == wire.AllTopic
	}
	if !ok || s.failed || s.from != nil && s.sends <= 0 {
		l.w.fail("client %d of user %q was sent %+v, which is for %+v (refused: %v)", c.id, c.user, *m, s.a, s.failed)
	}
	if s.m.ID != "" && !c.raw && s.m.ID != m.ID {
		l.w.fail("client %d was sent message %d with id %q, it has %q", c.id, s.number, m.ID, s.m.ID)
	}
	s.got++
	if most := int(float64(s.m.Rate)*(l.w.Time-s.began).Seconds()) + 1; s.m.Rate > 0 && s.got > most {
		l.w.fail("broadcast %d of rate %d has reached %d clients in %v", s.number, s.m.Rate, s.got, l.w.Time-s.began)
	}
	if late := c.empty - s.began - s.m.TTL; s.m.TTL > 0 && l.w.bus == nil && late > slack+100*l.w.Look && s.m.IdempotencyKey == "" && s.batch.number == 0 {
		l.w.fail("client %d was sent message %d later than %v after its TTL of %v", c.id, s.number, late, s.m.TTL)
	}
	if last, ok := c.order[s.batch]; s.batch.number > 0 && s.a.verb == verbPush {
		if ok && last > s.index {
			l.w.fail("client %d was sent item %d of a batch behind item %d", c.id, s.index, last)
		}
		c.order[s.batch] = s.index
	}
	return s.number
}

// slack is what looks at the clock may add to the time of what happens at once.
// Where each look takes long, others that come between a look of a turn and its
// sends look often.
const slack = 100 * time.Millisecond

// all reports whether ok holds for all messages of a gap, as far as it is known
// which they are.
func (l *simLedger) all(g *wire.Gap, ok func(*simMessage) bool) bool {
	t := l.topics[g.Topic]
	if t == nil {
		return true
	}
	for seq := g.From; seq <= g.To && seq-g.From < 10_000; seq++ {
		if number, known := t.places[Position{seq, g.Epoch}]; known && !ok(l.messages[number]) {
			return false
		}
	}
	return true
}

// collapsed reports whether a newer message of m's topic has its collapse key.
func (l *simLedger) collapsed(m *simMessage) bool {
	return slices.ContainsFunc(l.messages, func(o *simMessage) bool {
		return o != m && !o.failed && o.a.topic == m.a.topic && o.m.CollapseKey == m.m.CollapseKey &&
			(o.at == (Position{}) || o.at.Epoch == m.at.Epoch && o.at.Seq > m.at.Seq)
	})
}

// placed notes that the sender of a message was told its place.
func (l *simLedger) placed(number int, topic string, at Position) {
	l.messages[number].sent = true
	if at != (Position{}) {
		l.stands(topic, at, number)
	}
}

// stands notes that a message stands somewhere: nothing else does, nor it
// elsewhere.
func (l *simLedger) stands(topic string, at Position, number int) {
	s, t := l.messages[number], l.topic(topic)
	other, known := t.places[at]
	if known && other != number || s.at != (Position{}) && s.at != at && !s.unsure {
		l.w.fail("message %d stands at %+v of %s, and at %+v; message %d stands there too", number, at, topic, s.at, other)
	}
	t.places[at], s.at = number, at
}

// simPublish has backends and clients publish, push and broadcast, and judges
// what they are told.
func simPublish(w *world) feature {
	cfg := &w.cfg
	cfg.Overflow = []OverflowRule{{"old/", DropOldest}, {"new/", Latest}}
	cfg.MaxOutbox = some(w, []int{3_000, 20_000})
	cfg.TopicLinger = some(w, []time.Duration{5 * time.Second, 2 * time.Minute, -1})
	if w.Rng.IntN(4) == 0 {
		cfg.OutboxBudget = 6_000
	}
	if w.Rng.IntN(4) == 0 {
		cfg.PublishBudget = 8_000
	}
	if w.Rng.IntN(8) == 0 {
		cfg.IdempotencyBudget = 8_000
	}
	s := &publishers{w: w, l: &w.ledger}
	w.Interrupt = func() {
		if !w.stopping {
			s.publish()
		}
	}
	return feature{
		events: []happening{
			{"a publish", 120, s.publish},
			{"a publish that is waited for", 30, s.publishAndWait},
			{"a publish that is tried again", 20, s.again},
			{"a publish by a client", 30, s.byClient},
			{"a push", 30, s.push},
			{"a push that is to be acknowledged", 15, s.pushAck},
			{"a broadcast", 10, s.broadcast},
			{"a batch", 10, s.batch},
			{"a requester that gives up", 10, s.giveUp},
		},
		often: s.often,
		calm:  s.calm,
		end:   s.end,
	}
}

type publishers struct {
	w     *world
	l     *simLedger
	keyed []*simMessage // that may be tried again

	batches int
}

// options gives a message what it may have.
func (s *publishers) options(m *simMessage) {
	w := s.w
	if w.Rng.IntN(10) == 0 {
		m.m.TTL = time.Duration(1 + w.Rng.IntN(int(time.Second)))
	}
	if w.Rng.IntN(2) == 0 {
		m.m.CollapseKey = strconv.Itoa(w.Rng.IntN(2))
	}
	if w.Rng.IntN(5) == 0 {
		m.m.Urgency = "high"
	}
}

// topicMessage makes one for a topic.
func (s *publishers) topicMessage() *simMessage {
	m := s.l.write(address{verb: verbPublish, topic: some(s.w, simTopics)}, nil)
	s.options(m)
	return m
}

// send has a backend send m, and judges what it is told.
func (s *publishers) send(m *simMessage) {
	s.w.call(fmt.Sprintf("the %s of message %d", m.a.verb, m.number), func(ctx context.Context) func() {
		a, own := m.a, m.m
		r, err := s.w.srv.send(ctx, &a, &own)
		return func() { s.told(ctx, m, own.Wait, r, err) }
	})
}

// told judges a receipt.
func (s *publishers) told(ctx context.Context, m *simMessage, wait Wait, r Receipt, err error) {
	w := s.w
	switch {
	case err == nil:
	case errors.Is(err, ErrNoAck) && wait == WaitAck, errors.Is(err, ErrNobody) && m.a.verb == verbPush:
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return
	case errors.Is(err, ErrBusy) && w.cfg.PublishBudget < 1<<20, errors.Is(err, ErrClosed) && w.stopping:
		if m.m.IdempotencyKey == "" && m.from == nil {
			m.failed = m.got == 0
		}
		return
	case w.bus != nil && m.a.verb == verbPublish && (errors.Is(err, errSimBus) || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "panicked")):
		return
	default:
		w.fail("message %d, %+v: %v", m.number, m.a, err)
	}
	if err == nil && r.ID == "" || m.m.ID != "" && err == nil && r.ID != m.m.ID {
		w.fail("the receipt of message %d is %+v", m.number, r)
	}
	s.toldDevices(m, wait, &r, err)
	if r.ID != "" {
		s.l.placed(m.number, m.a.topic, Position{r.Seq, r.Epoch})
	}
	if wait > WaitNone && r.Subscribers != r.Written+r.Queued+r.Dropped && !errors.Is(err, ErrNobody) {
		w.fail("the receipt of message %d does not add up: %+v", m.number, r)
	}
	if wait > WaitNone && err == nil && m.got > r.Written+r.Queued && (w.bus == nil || m.a.verb != verbPublish || r.Subscribers > 0 && !m.unsure) {
		w.fail("message %d has reached %d clients, its receipt says %+v", m.number, m.got, r)
	}
	if w.bus != nil && m.a.verb == verbPublish && err == nil {
		w.bus.receipt(m, wait, r)
	}
	if wait > WaitNone && err == nil {
		m.receipt, m.done = &r, w.Time
	}
}

// toldDevices judges what a receipt says of acknowledgements.
func (s *publishers) toldDevices(m *simMessage, wait Wait, r *Receipt, err error) {
	if wait != WaitAck {
		return
	}
	left := false
	for _, d := range r.Devices {
		if d.Status == StatusAcked && !m.acked[d.Conn] {
			s.w.fail("the receipt of message %d says that %s has acknowledged it: %+v", m.number, d.Conn, *r)
		}
		left = left || d.Status != StatusDropped
	}
	if took := s.w.Time - m.began; errors.Is(err, ErrNoAck) && left && took < m.m.AckTimeout {
		s.w.fail("message %d was not acknowledged, after %v: %+v", m.number, took, *r)
	}
}

func (s *publishers) publish() bool {
	m := s.topicMessage()
	if s.w.bus != nil { // which may block
		s.send(m)
		return true
	}
	own := m.m
	r, err := s.w.srv.Publish(context.Background(), m.a.topic, own)
	s.told(context.Background(), m, WaitNone, r, err)
	return true
}

func (s *publishers) publishAndWait() bool {
	m := s.topicMessage()
	m.m.Wait = WaitSent
	s.send(m)
	return true
}

// again publishes with a key: a new message, or one that was sent before.
func (s *publishers) again() bool {
	if len(s.keyed) > 0 && s.w.Rng.IntN(2) == 0 && s.w.cfg.IdempotencyBudget == 0 { // else keys go early
		if m := some(s.w, s.keyed); s.w.Time-m.began < onceWindow/2 {
			s.send(m)
			return true
		}
	}
	m := s.topicMessage()
	m.m.IdempotencyKey = "key" + strconv.Itoa(m.number)
	m.m.Wait = some(s.w, []Wait{WaitNone, WaitSent})
	m.m.ID = "id" + strconv.Itoa(m.number)
	s.keyed = append(s.keyed, m)
	s.send(m)
	return true
}

func (s *publishers) byClient() bool {
	c := (&clientele{w: s.w}).one(commands)
	if c == nil {
		return false
	}
	topic := some(s.w, simTopics)
	var m *simMessage
	if n := len(s.l.messages); n > 0 && s.w.Rng.IntN(3) == 0 && s.l.messages[n-1].from == c && s.w.cfg.IdempotencyBudget == 0 {
		m = s.l.messages[n-1] // once more
		topic = m.a.topic
	} else {
		m = s.l.write(address{verb: verbPublish, topic: topic}, c)
		m.m.ID = fmt.Sprintf("of client %d, %d", c.id, m.number)
		if s.w.Rng.IntN(2) == 0 { // a backend may choose the same
			m.m.ID = "key" + strconv.Itoa(m.number+1)
		}
	}
	if len(m.m.Data)+100 > s.w.cfg.MaxMessage {
		return false
	}
	m.sends++
	c.command(&simAsk{verb: "publish", topic: topic, number: m.number}, `"publish":{"topic":%q,"id":%q,"data":%s}`, topic, m.m.ID, m.m.Data)
	return true
}

// target is a user or a connection, living or dead.
func (s *publishers) target() (to Target, ok bool) {
	w := s.w
	c := (&clientele{w: w}).one(func(c *simClient) bool { return c.Ref != 0 })
	switch {
	case c == nil:
		return to, false
	case w.Rng.IntN(8) == 0:
		return Target{Conn: w.srv.ids.name(c.Ref + 1<<32)}, true // the next of this descriptor
	case w.Rng.IntN(2) == 0 || c.user == "":
		return Target{Conn: c.name()}, true
	}
	return Target{User: c.user}, true
}

func (s *publishers) push() bool {
	to, ok := s.target()
	if !ok {
		return false
	}
	m := s.l.write(address{verb: verbPush, to: to}, nil)
	m.m.Wait = some(s.w, []Wait{WaitNone, WaitSent})
	s.send(m)
	return true
}

func (s *publishers) pushAck() bool {
	to, ok := s.target()
	if !ok {
		return false
	}
	m := s.l.write(address{verb: verbPush, to: to}, nil)
	m.m.Wait, m.m.AckTimeout = WaitAck, time.Duration(1+s.w.Rng.IntN(3000))*time.Millisecond
	s.send(m)
	return true
}

func (s *publishers) broadcast() bool {
	m := s.l.write(address{verb: verbBroadcast}, nil)
	m.m.Wait = some(s.w, []Wait{WaitNone, WaitSent})
	if s.w.Rng.IntN(4) == 0 {
		m.m.Rate, m.m.TTL = 1+s.w.Rng.IntN(50), time.Duration(s.w.Rng.IntN(int(2*time.Second)))
	}
	s.send(m)
	return true
}

func (s *publishers) batch() bool {
	s.batches++
	all := make([]*simMessage, 1+s.w.Rng.IntN(20))
	items := make([]BatchItem, len(all))
	for i := range all {
		m := s.topicMessage()
		if to, ok := s.target(); ok && s.w.Rng.IntN(2) == 0 {
			m.a, m.m.CollapseKey = address{verb: verbPush, to: to}, ""
		}
		m.m.Wait = some(s.w, []Wait{WaitNone, WaitSent})
		m.batch, m.index = simBatch{s.batches, m.a.to}, i
		all[i], items[i] = m, BatchItem{Topic: m.a.topic, To: m.a.to, Message: m.m}
	}
	s.w.call("a batch", func(ctx context.Context) func() {
		results := s.w.srv.Batch(ctx, items)
		return func() {
			for i, r := range results {
				s.told(ctx, all[i], all[i].m.Wait, r.Receipt, r.Err)
			}
		}
	})
	return true
}

// giveUp ends the context of somebody who waits.
func (s *publishers) giveUp() bool {
	c := some(s.w, slices.DeleteFunc(slices.Clone(s.w.callers), func(c *caller) bool { return c.what == "serve" }))
	if c == nil || s.w.stopping {
		return false
	}
	c.cancel()
	return true
}

func (s *publishers) often() {
	cfg := &s.w.srv.cfg
	if n := s.w.srv.publishBytes.Load(); n < 0 || n > cfg.PublishBudget && cfg.Bus == nil {
		s.w.fail("%d bytes are on their way, the budget is %d", n, cfg.PublishBudget)
	}
	// Notices, pongs and Close frames go in whatever there is.
	if n := s.w.srv.Stats().OutboxBytes; n > cfg.OutboxBudget+2_000+int64(s.w.Alive())*500 {
		s.w.fail("%d bytes wait in outboxes, the budget is %d", n, cfg.OutboxBudget)
	}
	if n, _ := s.w.srv.once.usage(); n > cfg.IdempotencyBudget {
		s.w.fail("idempotency keys take %d bytes, the budget is %d", n, cfg.IdempotencyBudget)
	}
}

// calm wants every message to be where its receipt says, and nothing to be on its
// way.
func (s *publishers) calm() {
	w := s.w
	if n := w.srv.publishBytes.Load(); n != 0 && !w.stopping { // what no shard has a turn for stays
		w.fail("%d bytes are still on their way", n)
	}
	for _, c := range w.callers {
		if c.what != "serve" {
			w.fail("%s has not returned, it began in step %d", c.what, c.started)
		}
	}
	s.pushed()
	s.broadcasts()
}

// end wants nothing to be kept for those who have gone.
func (s *publishers) end() {
	if n := s.w.srv.publishBytes.Load(); n != 0 {
		s.w.fail("%d bytes are still on their way", n)
	}
}

// broadcasts wants each to have reached everybody who was there before it and
// still is, unless its TTL was over.
func (s *publishers) broadcasts() {
	for _, m := range s.l.messages {
		if m.a.verb != verbBroadcast || !m.sent || m.m.TTL > 0 && (m.receipt == nil || m.receipt.Queued > 0 || m.done >= m.began+m.m.TTL) {
			continue
		}
		for _, c := range s.w.clients {
			if c.open() && !c.Broken && c.opened < m.step && !c.got[m.number] {
				s.w.fail("client %d, which was there before broadcast %d, has not got it", c.id, m.number)
			}
		}
	}
}

// pushed wants what was written to a connection that is open to have arrived.
func (s *publishers) pushed() {
	w := s.w
	open := map[string]*simClient{}
	for _, c := range w.clients {
		if c.open() && !c.Broken {
			open[c.name()] = c
		}
	}
	for _, m := range w.ledger.messages {
		if m.receipt == nil || m.a.verb != verbPush {
			continue
		}
		for _, d := range m.receipt.Devices {
			if c := open[d.Conn]; c != nil && (d.Status == StatusWritten || d.Status == StatusAcked) && !c.got[m.number] {
				w.fail("message %d was written to client %d, which has not got it", m.number, c.id)
			}
		}
	}
}
