package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// simBus is a bus as one between nodes is: it takes every liberty that [Bus] and
// [Sink] give it, when chance has it do so. What is published where is its word
// alone, and it notes in the ledger what it tells the server.
type simBus struct {
	w      *world
	sink   Sink
	l      *simLedger
	topics map[string]*busTopic
	moods  []busMood
	waits  []*busWait // publishers that it keeps, in the order in which they came
	tries  []*simTry  // that were accepted, and whose delivery somebody may wait for
	calls  int        // of Publish
	epochs int
	down   bool          // it has lost its connection
	tame   bool          // it does at once what it is asked to
	ended  bool          // it was closed
	end    chan struct{} // the same
}

// busTopic is a topic of it.
type busTopic struct {
	name     string
	at       Position     // of the last message, whoever published it
	due      []busMessage // that it has not delivered here
	had      []busMessage // that it delivered last
	state    busState
	since    time.Duration // when it was asked for it
	failures int           // subscriptions that it has not given
}

// busState is what the server and the bus have made out for a topic.
type busState uint8

const (
	busIdle    busState = iota
	busAsked            // Subscribe was called
	busMute             // it was, and is never answered
	busReady            // messages are delivered
	busRefused          // the subscription is no more; Unsubscribe will be called
)

// busMessage is a message at its place.
type busMessage struct {
	p   Publication
	at  Position
	try *simTry // nil for one of another node
}

// simTry is one publish, as the bus sees it.
type simTry struct {
	m         *simMessage
	at        Position
	ok        bool // Publish has returned, and no error
	returned  time.Duration
	about     int  // subscribers when it had
	sooner    bool // it was delivered before that
	delivered bool
	subs      int           // subscribers when it was delivered
	when      time.Duration // that was
	alone     bool          // nothing was expected to come of it, at some moment
}

// busMood is what becomes of a publish.
type busMood uint8

const (
	busDelivers     busMood = iota // before Publish returns
	busSends                       // later
	busBlocks                      // until something happens; then it gets its place
	busBlocksBehind                // it has its place, and blocks then
	busNever                       // blocks until the ctx ends
	busFails
	busFailsBehind // it has its place, and the publisher is told an error
	busPanics
	busMoods
)

// busWait is a publisher that waits.
type busWait struct {
	mood busMood
	goOn chan struct{}
}

var errSimBus = errors.New("the bus of the simulation fails")

// simBuses has some worlds have such a bus.
func simBuses(w *world) feature {
	if w.Rng.IntN(2) == 0 {
		return feature{}
	}
	b := &simBus{w: w, l: &w.ledger, topics: map[string]*busTopic{}, end: make(chan struct{})}
	for mood := range busMoods {
		for range some(w, []int{0, 1, 1, 4}) {
			b.moods = append(b.moods, mood)
		}
	}
	b.moods = append(b.moods, busDelivers, busSends, busSends)
	w.cfg.Bus, w.bus, w.Timed = b, b, b.often // the wait is given up by a timer
	often := w.Interrupt
	w.Interrupt = func() {
		switch {
		case w.Rng.IntN(3) == 0:
			often()
		case w.Rng.IntN(2) == 0:
			b.deliverSome()
		default:
			b.answer()
		}
	}
	return feature{
		events: []happening{
			{"the bus delivers", 100, b.deliverSome},
			{"the bus answers", 40, b.answer},
			{"the bus lets a publisher go on", 40, b.letGo},
			{"the bus has a message of another node", 40, b.elsewhere},
			{"the bus delivers once more", 10, b.repeat},
			{"the bus loses messages", 6, b.lose},
			{"the bus tells of a gap where none is", 4, b.noGap},
			{"the bus loses its connection", 3, b.cut},
			{"the bus is connected again", 10, b.heal},
			{"the bus is ready once more", 4, b.readyAgain},
			{"the bus does not give a topic", 5, b.refuse},
			{"the bus begins a numbering anew", 3, b.renumberOne},
			{"the bus tells of what nobody asked for", 4, b.stray},
		},
		often: b.often,
		relax: b.relax,
		calm:  b.calm,
	}
}

// Start implements [Bus].
func (b *simBus) Start(sink Sink) error { b.sink = sink; return nil }

// Close implements [Bus]. Until it returns it may deliver.
func (b *simBus) Close() error {
	for !b.down && b.w.failure == nil && b.w.Rng.IntN(3) > 0 && b.deliverSome() {
	}
	b.ended = true
	close(b.end)
	return nil
}

func (b *simBus) topic(name string) *busTopic {
	t := b.topics[name]
	if t == nil {
		t = &busTopic{name: name, at: Position{Epoch: b.epoch()}}
		b.topics[name] = t
	}
	return t
}

func (b *simBus) epoch() string {
	b.epochs++
	return fmt.Sprint("bus", b.epochs)
}

// asked reports whether the topic is between a Subscribe and its Unsubscribe.
func (t *busTopic) asked() bool { return t.state != busIdle }

// Subscribe implements [Bus].
func (b *simBus) Subscribe(topic string) {
	t := b.topic(topic)
	switch {
	case b.ended || b.w.failure != nil:
		return
	case t.asked():
		b.w.Fatalf("the bus is asked for %s a second time", topic)
		return
	}
	t.state, t.since, t.due = busAsked, b.w.Time, nil
	switch n := b.w.Rng.IntN(16); {
	case b.tame || n < 6 && !b.down:
		b.ready(t)
	case n == 6 && !b.down:
		b.fail(t)
	case n == 7:
		t.state = busMute
		t.failures++
	case n == 8 && len(b.moods) > 6:
		t.state = busRefused // a panic says so
		t.failures++
		b.panics("Subscribe")
	}
}

// Unsubscribe implements [Bus].
func (b *simBus) Unsubscribe(topic string) {
	t := b.topic(topic)
	switch {
	case b.ended || b.w.failure != nil:
		return
	case !t.asked():
		b.w.Fatalf("the bus is told to leave %s, for which it was not asked", topic)
		return
	}
	t.state, t.due, t.had = busIdle, nil, nil
	if !b.tame && b.w.Rng.IntN(16) == 0 {
		b.panics("Unsubscribe")
	}
}

func (b *simBus) panics(what string) {
	b.w.Seen.Faults["a bus that panics"]++
	panic(what + " of the bus of the simulation panics")
}

// ready answers a Subscribe. What was published since may come behind that, or be
// a part of it.
func (b *simBus) ready(t *busTopic) {
	at := t.at
	if b.w.Rng.IntN(2) == 0 && len(t.due) > 0 && t.due[0].at.Epoch == t.at.Epoch {
		at.Seq = t.due[0].at.Seq - 1
	}
	t.state = busReady
	b.tellLost(t, at)
	b.sink.Ready(t.name, at, nil)
}

// fail answers that there is no such subscription.
func (b *simBus) fail(t *busTopic) {
	t.state, t.due = busRefused, nil
	t.failures++
	b.sink.Ready(t.name, Position{}, errSimBus)
}

// tellLost notes that the server is told that it has had all up to a position.
func (b *simBus) tellLost(t *busTopic, at Position) {
	b.l.story(t.name).lost(at)
	t.due = slices.DeleteFunc(t.due, func(m busMessage) bool {
		return m.at.Epoch != t.at.Epoch || m.at.Epoch == at.Epoch && m.at.Seq <= at.Seq
	})
}

// Publish implements [Bus].
func (b *simBus) Publish(ctx context.Context, p Publication) (at Position, err error) {
	if b.ended || b.w.failure != nil {
		return Position{}, errSimBus
	}
	try := &simTry{m: b.l.of(p.Message.Data)}
	b.enter(try, &p)
	mood := some(b.w, b.moods)
	switch {
	case b.tame:
		mood = some(b.w, []busMood{busDelivers, busSends})
	case b.down:
		mood = some(b.w, []busMood{busBlocks, busNever, busFails})
	}
	panics := false
	defer func() {
		if try.ok = err == nil && !panics; !try.ok {
			try.m.unsure = try.m.unsure || try.at != Position{}
		}
		b.leave(try)
	}()
	b.calls++
	caller := 1<<20 + b.calls
	if mood == busBlocks || mood == busNever {
		if err := b.wait(ctx, mood, caller); err != nil {
			if try.m.m.ID != "" && errors.Is(err, context.Canceled) {
				b.w.Fatalf("message %d has a key, and ends with its first requester", try.m.number)
			}
			return Position{}, err
		}
	}
	switch {
	case mood == busFails:
		return Position{}, errSimBus
	case mood == busPanics && b.w.Rng.IntN(2) == 0:
		panics = true
		b.panics("Publish")
	}
	at = b.place(p, try)
	switch mood {
	case busDelivers:
		b.flush(b.topic(p.Topic))
	case busBlocksBehind:
		if err := b.wait(ctx, mood, caller); err != nil {
			return Position{}, err
		}
	case busFailsBehind:
		return Position{}, errSimBus
	case busPanics:
		panics = true
		b.panics("Publish")
	}
	return at, nil
}

// wait has a publisher wait. Whoever wakes it, it goes on when its turn comes.
func (b *simBus) wait(ctx context.Context, mood busMood, caller int) error {
	p := &busWait{mood, make(chan struct{})}
	b.waits = append(b.waits, p)
	b.w.Seen.Faults["a bus that blocks"]++
	var err error
	select {
	case <-p.goOn:
	case <-ctx.Done():
		err = ctx.Err()
	case <-b.end:
		err = errSimBus
	case <-b.w.srv.ended: // the world has failed
		return errSimBus
	}
	b.w.Park(caller)
	if b.w.failure != nil {
		return errSimBus
	}
	b.waits = slices.DeleteFunc(b.waits, func(other *busWait) bool { return other == p })
	if err == nil && b.ended {
		err = errSimBus
	}
	return err
}

// enter judges a publish that begins.
func (b *simBus) enter(try *simTry, p *Publication) {
	m := try.m
	if p.Topic != m.a.topic || p.Message.ID == "" || p.Origin.Node != b.w.srv.flight.node {
		b.w.Fatalf("message %d of %s is published as %+v", m.number, m.a.topic, *p)
	}
	for _, other := range m.tries {
		if other.ok || other.returned == 0 {
			b.w.Fatalf("message %d is published again, it has a place at %+v or is about to get one", m.number, other.at)
		}
	}
	m.tries = append(m.tries, try)
}

// leave notes how a publish ends.
func (b *simBus) leave(try *simTry) {
	if b.w.failure != nil {
		return
	}
	try.returned, try.about, try.sooner = b.w.Time, b.w.srv.hub.subscribers(try.m.a.topic), try.delivered
	if try.ok && !try.delivered && try.at != (Position{}) {
		b.tries = append(b.tries, try)
		b.expect(try)
	}
}

// expect notes whether the server need not wait for a delivery.
func (b *simBus) expect(try *simTry) {
	if !b.w.srv.hub.comes(try.m.a.topic, try.at) {
		try.alone = true
	}
}

// place gives a message the next place of its topic. A topic that nobody wants
// may have none.
func (b *simBus) place(p Publication, try *simTry) Position {
	t := b.topic(p.Topic)
	if !t.asked() && b.w.Rng.IntN(2) == 0 {
		return Position{}
	}
	if t.at.Seq == math.MaxUint64 {
		b.renumber(t, 0)
	}
	t.at.Seq++
	b.l.stands(p.Topic, t.at, b.l.of(p.Message.Data).number)
	if try != nil {
		try.at = t.at
	}
	if t.asked() && t.state != busRefused {
		t.due = append(t.due, busMessage{p, t.at, try})
	}
	return t.at
}

// deliver hands over the next message of a topic.
func (b *simBus) deliver(t *busTopic) {
	m := t.due[0]
	t.due = t.due[1:]
	if t.had = append(t.had, m); len(t.had) > 4 {
		t.had = t.had[1:]
	}
	if b.l.story(t.name).delivered(m.at, b.l.of(m.p.Message.Data).number) && m.try != nil {
		m.try.delivered, m.try.subs, m.try.when = true, b.w.srv.hub.subscribers(t.name), b.w.Time
	}
	b.hand(m)
}

// hand calls Deliver, with the very publication or with one like it.
func (b *simBus) hand(m busMessage) {
	p := m.p
	if b.w.Rng.IntN(2) == 0 {
		p.Message.Data = bytes.Clone(p.Message.Data)
	}
	b.sink.Deliver(p, m.at)
}

// flush delivers what is due of a topic.
func (b *simBus) flush(t *busTopic) {
	for !b.down && t.state == busReady && len(t.due) > 0 {
		b.deliver(t)
	}
}

// one returns a topic for which ok holds, nil if there is none.
func (b *simBus) one(ok func(*busTopic) bool) *busTopic {
	var all []*busTopic
	for _, name := range sorted(b.topics) {
		if t := b.topics[name]; ok(t) {
			all = append(all, t)
		}
	}
	if b.ended {
		return nil
	}
	return some(b.w, all)
}

func (t *busTopic) delivers() bool { return t.state == busReady && len(t.due) > 0 }

func (b *simBus) deliverSome() bool {
	t := b.one((*busTopic).delivers)
	if t == nil || b.down {
		return false
	}
	for n := 1 + b.w.Rng.IntN(4); n > 0 && len(t.due) > 0; n-- {
		b.deliver(t)
	}
	return true
}

func (b *simBus) answer() bool {
	t := b.one(func(t *busTopic) bool { return t.state == busAsked })
	if t == nil || b.down {
		return false
	}
	b.ready(t)
	return true
}

// refuse gives or leaves a topic no more.
func (b *simBus) refuse() bool {
	t := b.one(func(t *busTopic) bool { return t.state == busAsked || t.state == busReady })
	if t == nil || b.down {
		return false
	}
	b.w.Seen.Faults["a bus that does not give a topic"]++
	b.fail(t)
	return true
}

func (b *simBus) letGo() bool {
	i := slices.IndexFunc(b.waits, func(p *busWait) bool { return (p.mood != busNever || b.tame) && p.goOn != nil })
	if i < 0 || b.down {
		return false
	}
	close(b.waits[i].goOn)
	b.waits[i].goOn = nil
	return true
}

// elsewhere has somebody publish on another node.
func (b *simBus) elsewhere() bool {
	if b.ended {
		return false
	}
	m := b.l.write(address{verb: verbPublish, topic: some(b.w, simTopics)}, nil)
	m.m.ID = fmt.Sprint("elsewhere", m.number)
	p := Publication{Topic: m.a.topic, Message: m.m}
	if b.w.Rng.IntN(2) == 0 { // the number may be one of ours
		p.Origin = Origin{Node: b.w.srv.flight.node + 1, Number: b.w.srv.flight.next.Load()}
	}
	b.place(p, nil)
	return true
}

// repeat delivers again what was delivered.
func (b *simBus) repeat() bool {
	t := b.one(func(t *busTopic) bool { return t.state == busReady && len(t.had) > 0 })
	if t == nil || b.down {
		return false
	}
	b.w.Seen.Faults["a bus that delivers again"]++
	m := some(b.w, t.had)
	if m.at.Epoch != b.l.story(t.name).now.Epoch {
		return false // of a numbering that has ended
	}
	b.hand(m)
	return true
}

// lose has messages not come: a gap tells so, or the place of the next.
func (b *simBus) lose() bool {
	t := b.one((*busTopic).delivers)
	if t == nil {
		return false
	}
	b.w.Seen.Faults["a bus that loses messages"]++
	n := 1 + b.w.Rng.IntN(len(t.due))
	last := t.due[n-1].at
	t.due = t.due[n:]
	if b.w.Rng.IntN(2) == 0 && !b.down {
		b.gap(t, last)
	}
	return true
}

func (b *simBus) gap(t *busTopic, at Position) {
	b.tellLost(t, at)
	b.sink.Gap(t.name, at)
}

func (b *simBus) noGap() bool {
	t := b.one(func(t *busTopic) bool { return t.state == busReady })
	if t == nil || b.down {
		return false
	}
	at := b.l.story(t.name).now
	if b.w.Rng.IntN(2) == 0 {
		at.Seq /= 2
	}
	b.gap(t, at)
	return true
}

func (b *simBus) cut() bool {
	if b.down || b.ended {
		return false
	}
	b.w.Seen.Faults["a bus that loses its connection"]++
	b.down = true
	return true
}

// heal gives it its connection back. Each topic is told of by a gap, or is ready
// once more, or goes on as if nothing had been; some are renumbered.
func (b *simBus) heal() bool {
	if !b.down || b.ended {
		return false
	}
	b.down = false
	for _, name := range sorted(b.topics) {
		t := b.topics[name]
		switch {
		case t.state == busAsked && b.w.Rng.IntN(2) == 0:
			b.ready(t)
		case t.state == busReady:
			b.again(t)
		}
	}
	return true
}

func (b *simBus) again(t *busTopic) {
	if !b.tame && b.w.Rng.IntN(4) == 0 {
		b.renumber(t, b.number())
	}
	switch b.w.Rng.IntN(3) {
	case 0:
		b.gap(t, t.at)
	case 1:
		b.tellLost(t, t.at)
		b.sink.Ready(t.name, t.at, nil)
	}
}

func (b *simBus) readyAgain() bool {
	t := b.one(func(t *busTopic) bool { return t.state == busReady })
	if t == nil || b.down {
		return false
	}
	b.tellLost(t, t.at)
	b.sink.Ready(t.name, t.at, nil)
	return true
}

// number is one that a numbering may have reached.
func (b *simBus) number() uint64 {
	return some(b.w, []uint64{0, 0, 1, 1000, 1<<63 - 2, math.MaxUint64 - 3, math.MaxUint64 - 1, 9_999_999_999_999_999_998})
}

// renumber begins a numbering anew. What was on its way is lost with the old one.
func (b *simBus) renumber(t *busTopic, seq uint64) {
	b.w.Seen.Faults["a bus that begins anew"]++
	t.at = Position{Seq: seq, Epoch: b.epoch()}
	t.due = nil
}

func (b *simBus) renumberOne() bool {
	t := b.one(func(*busTopic) bool { return true })
	if t == nil {
		return false
	}
	b.renumber(t, b.number())
	if t.state == busReady && !b.down && b.w.Rng.IntN(2) == 0 {
		b.gap(t, t.at)
	}
	return true
}

// stray tells of a topic that the server has left, or has not entered yet.
func (b *simBus) stray() bool {
	t := b.one(func(t *busTopic) bool { return t.state != busReady })
	if t == nil {
		return false
	}
	if _, _, there := b.w.srv.Topic(t.name); there {
		return false // it waits for its subscription to be renewed
	}
	if b.w.Rng.IntN(2) == 0 {
		b.sink.Gap(t.name, t.at)
		return true
	}
	m := b.l.write(address{verb: verbPublish, topic: t.name}, nil)
	b.sink.Deliver(Publication{Topic: t.name, Message: m.m}, Position{Seq: t.at.Seq + 1, Epoch: t.at.Epoch})
	return true
}

// often notes for which messages nobody need wait any more.
func (b *simBus) often() {
	b.tries = slices.DeleteFunc(b.tries, func(try *simTry) bool {
		if !try.delivered {
			b.expect(try)
		}
		return try.delivered || try.alone
	})
}

// relax does what it was asked for.
func (b *simBus) relax() {
	b.tame = true
	b.heal()
	for b.letGo() {
	}
	for _, name := range sorted(b.topics) {
		t := b.topics[name]
		if t.state == busAsked && !b.ended {
			b.ready(t)
		}
		if !b.ended {
			b.flush(t)
		}
	}
}

// calm wants the server to be on the topics that it has asked for.
func (b *simBus) calm() {
	if b.w.stopping {
		return // it is closed, or will be
	}
	for _, name := range sorted(b.topics) {
		t, at := b.topics[name], b.l.story(name).now
		here, n, there := b.w.srv.Topic(name)
		switch {
		case there != (t.state == busReady):
			b.w.fail("the bus has %s in state %d, the server has it: %v", name, t.state, there)
		case t.asked() != there:
			b.w.fail("the bus was asked for %s, it is in state %d, and %d are subscribed", name, t.state, n)
		case there && here != at:
			b.w.fail("%s is at %+v, the bus has told %+v", name, here, at)
		}
	}
}

// receipt judges one of a publish.
func (b *simBus) receipt(m *simMessage, wait Wait, r Receipt) {
	at := Position{r.Seq, r.Epoch}
	i := slices.IndexFunc(m.tries, func(try *simTry) bool { return try.ok && try.at == at })
	if i < 0 {
		b.w.fail("message %d got no such place as in %+v", m.number, r)
	}
	try := m.tries[i]
	want := 0
	switch {
	case wait == WaitNone && try.sooner && try.subs > 0:
		want = try.subs
	case wait == WaitNone && at != Position{}:
		want = try.about
	case wait > WaitNone && try.delivered:
		want = try.subs
	}
	if r.Subscribers == want || r.Subscribers == 0 && wait > WaitNone && (try.alone || try.when-try.returned >= expectTimeout) && !try.sooner {
		return
	}
	b.w.fail("the receipt of message %d says %+v, it should say %d (%+v)", m.number, r, want, *try)
}

// simStory is what the server was told of a topic by its bus: what it may tell
// its subscribers.
type simStory struct {
	now    Position
	epochs map[string]*simEpoch
}

// simEpoch is a numbering.
type simEpoch struct {
	lost   uint64          // up to there nothing was given of it to those who were there before it
	next   string          // the numbering behind it
	last   uint64          // of it
	stands map[uint64]bool // places that it has stood at: who joins is told one
	given  map[uint64]int  // the messages of those that were delivered
	seqs   []uint64        // the same in their order
}

// story returns that of a topic.
func (l *simLedger) story(topic string) *simStory {
	t := l.topic(topic)
	if t.story == nil {
		t.story = &simStory{epochs: map[string]*simEpoch{}}
	}
	return t.story
}

// lost notes that the server has no reason to wait for what stands up to at.
func (s *simStory) lost(at Position) {
	e := s.epochs[at.Epoch]
	switch {
	case e == nil:
		e = &simEpoch{lost: at.Seq, stands: map[uint64]bool{}, given: map[uint64]int{}}
		s.epochs[at.Epoch] = e
		if old := s.epochs[s.now.Epoch]; old != nil {
			old.next = at.Epoch
		}
	case at.Seq <= s.now.Seq:
		return
	}
	s.now, e.last = at, at.Seq
	e.stands[at.Seq] = true
}

// delivered notes a message that the server is given, and reports whether it is a
// new one.
func (s *simStory) delivered(at Position, number int) bool {
	s.lost(Position{at.Seq - 1, at.Epoch})
	if at.Seq <= s.now.Seq {
		return false
	}
	e := s.epochs[at.Epoch]
	s.now, e.last = at, at.Seq
	e.stands[at.Seq], e.given[at.Seq] = true, number
	e.seqs = append(e.seqs, at.Seq)
	return true
}

// stood reports whether the topic has stood at a place, as who joins it is told.
func (s *simStory) stood(at simPlace) bool {
	e := s.epochs[at.epoch]
	return e != nil && e.stands[at.seq]
}

// given counts the messages of a numbering that were delivered, from one place to
// another.
func (e *simEpoch) count(from, to uint64) uint64 {
	i, _ := slices.BinarySearch(e.seqs, from)
	j, found := slices.BinarySearch(e.seqs, to)
	if found {
		j++
	}
	return uint64(max(j-i, 0))
}

// gap judges a notice to a client that stands at a place.
func (s *simStory) gap(p *simPlace, g *wire.Gap) bool {
	e := s.epochs[p.epoch]
	switch {
	case g.Epoch != p.epoch:
		next := s.epochs[e.next]
		return next != nil && e.next == g.Epoch && p.seq == e.last && g.From == 1 && g.To == next.lost && g.Reason == "epoch"
	case g.Reason == "bus": // nothing of that was delivered, and all that is known to be lost
		return g.To <= e.last && e.count(g.From, g.To) == 0 && (e.stands[g.To])
	}
	return e.count(g.From, g.To) == g.To-g.From+1
}
