package server

import (
	"fmt"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// simTime lets time pass: a little, much, or at once while nobody runs. Where the
// server has its share of the time, busy or not, nobody stays longer than he may.
func simTime(w *world) feature {
	cfg := &w.cfg
	cfg.HandshakeTimeout = 3 * time.Second
	cfg.AuthTimeout = 3 * time.Second
	cfg.MessageTimeout = 3 * time.Second
	cfg.PingInterval, cfg.PongTimeout = 5*time.Second, 2*time.Second
	cfg.WriteTimeout, cfg.OutboxAge, cfg.CloseTimeout = 6*time.Second, 9*time.Second, 2*time.Second
	cfg.Drain = 2 * time.Second
	s := &lateness{w: w, waits: map[*simClient]simWait{}}
	busy := 0
	if w.Rng.IntN(3) == 0 {
		busy = 1
	}
	return feature{events: []happening{
		{"a moment passes", 100, func() bool { w.jump(time.Duration(w.Rng.IntN(int(5 * time.Millisecond)))); return true }},
		{"the next timer is due", 60, w.toTimer},
		{"the process is stopped for a while", 2, s.stop},
		{"the clock of the day is set", 2, s.setClock},
		{"the poller is given no time", 1, s.deafen},
		{"seconds pass", 2, s.idle},
		{"seconds pass in which there is much to do", busy, s.busy},
	}}
}

// lateness is the state of simTime.
type lateness struct {
	w        *world
	waits    map[*simClient]simWait
	inside   bool   // seconds pass in which there is much to do
	frames   []byte // more than is read at once
	flooding string // the message that they are, so many times
	inFlood  int
}

// simWait is for how long something has been as it is.
type simWait struct {
	what  string
	since time.Duration // of the engine's clock
}

// toTimer lets time pass until the next timer is due.
func (w *world) toTimer() bool {
	due, ok := w.NextTimer()
	if !ok || due <= w.Time {
		return false
	}
	w.jump(due - w.Time)
	return true
}

// stop has the process stop. What a client has sent meanwhile, no more of it than it
// may, comes at once.
func (s *lateness) stop() bool {
	w := s.w
	if s.inside {
		return false
	}
	d := time.Duration(w.Rng.IntN(int(20 * time.Second)))
	w.jump(d)
	w.Seen.Faults["the process stops"]++
	c := (&clientele{w: w}).one(whole)
	if c == nil || w.Rng.IntN(2) == 0 || len(c.pings) > 50 || w.hooks != nil || !c.upgrade || w.probe.Slot(c.FD).Conn.Calling() {
		return true
	}
	for i := range int(min(d.Seconds(), 8) * float64(w.cfg.MaxControl) / 2) {
		payload := fmt.Sprint("meanwhile ", w.step, i)
		c.pings = append(c.pings, payload)
		c.speak(wstest.Ping(payload))
	}
	w.rest()
	return true
}

// deafen has seconds pass in which everything runs but the poller: what clients
// have sent stands in their sockets, and counts.
func (s *lateness) deafen() bool {
	if s.inside {
		return false
	}
	s.w.Deaf, s.w.deafened = true, true
	for range 8 + s.w.Rng.IntN(40) {
		s.w.pass(250 * time.Millisecond)
	}
	s.w.Deaf = false
	s.w.Seen.Faults["the poller is given no time"]++
	return true
}

func (s *lateness) setClock() bool {
	s.w.Ahead += time.Duration(s.w.Rng.IntN(int(2*time.Hour))) - time.Hour
	s.w.Seen.Faults["the clock of the day is set"]++
	return true
}

// idle lets seconds pass. Whatever there is to do is done at once.
func (s *lateness) idle() bool {
	if s.inside {
		return false
	}
	clear(s.waits)
	var slow *simClient
	if s.w.Rng.IntN(2) == 0 {
		slow = s.slow()
	}
	rest := 28 + s.w.Rng.IntN(20) // then its socket takes all that is left, and it still does not look
	upload := s.upload()
	for i := range 5 + s.w.Rng.IntN(60) {
		upload(false)
		switch {
		case slow == nil || slow.Gone:
		case i < rest:
			slow.Drain(1 + s.w.Rng.IntN(3))
		case i == rest:
			slow.Drain(-1)
		}
		s.w.pass(250 * time.Millisecond)
		s.judge()
	}
	upload(true)
	return true
}

// upload has a client send one message after the other, and with the end of each
// the beginning of the next: none takes long. The last time it ends.
func (s *lateness) upload() (more func(last bool)) {
	c := (&clientele{w: s.w}).one(commands)
	if c == nil || s.w.Rng.IntN(3) > 0 || s.w.cfg.OnMessage != nil {
		return func(bool) {}
	}
	frame := wstest.Encode(wstest.Text(`{"ping":{},"pad":"` + pad(100) + `"}`))
	const half = 40
	c.asleep, c.slow = true, true // else it would answer in the middle of a frame
	c.say(frame[:half])
	return func(last bool) {
		switch {
		case last:
			c.asleep = false
			c.Drain(-1)
			if c.talks() {
				c.say(frame[half:])
			}
		case c.talks():
			c.say(frame[half:])
			c.say(frame[:half])
		}
	}
}

// slow has a client read a few bytes now and then, of what it is sent.
func (s *lateness) slow() *simClient {
	w := s.w
	c := (&clientele{w: w}).one(commands)
	if c == nil || w.stopping {
		return nil
	}
	c.asleep, c.slow, c.trickles = true, true, true
	c.Drain(0)
	p := publishers{w: w, l: &w.ledger}
	for range 3 {
		p.send(w.ledger.write(address{verb: verbPush, to: Target{Conn: c.name()}}, nil))
	}
	return c
}

// busy lets seconds pass. Some clients send more than the server can read, and a
// turn is over before it has read it: each look at the clock takes long.
func (s *lateness) busy() bool {
	w := s.w
	if s.inside {
		return false
	}
	s.inside = true
	defer func() { s.inside = false }()
	clear(s.waits)
	look := w.Look
	w.Look = 3 * engine.SliceBudget // a turn is over after one round
	var floods []*simClient
	for range 1 + w.Rng.IntN(3) {
		if c := (&clientele{w: w}).one(commands); c != nil {
			floods = append(floods, c)
		}
	}
	for range 10 + w.Rng.IntN(30) {
		for range 3 * (w.cfg.Shards + 2) {
			for _, c := range floods {
				s.flood(c)
			}
			w.Step()
		}
		for range w.Rng.IntN(6) {
			w.one()
		}
		w.jump(50 * time.Millisecond)
		w.look(false)
		s.judge()
	}
	w.Look = look
	return true
}

// flood has c send as much as fills a few reads.
func (s *lateness) flood(c *simClient) {
	if !commands(c) {
		return
	}
	if s.frames == nil {
		s.flooding = `{"ping":{},"pad":"` + pad(min(20_000, s.w.cfg.MaxMessage-40)) + `"}`
		for len(s.frames) <= engine.ReadSize {
			s.frames = wstest.Text(s.flooding).Append(s.frames)
			s.inFlood++
		}
	}
	c.asleep = false
	c.Drain(-1)
	if len(c.In) <= engine.ReadSize {
		for range s.inFlood {
			c.message(ws.OpText, []byte(s.flooding), 0)
		}
		c.say(s.frames)
	}
}

// deadlineSlack is how much later than its deadline something may happen: ticks
// and sweeps are half a second apart, stamps and looks take their part.
const deadlineSlack = 2 * time.Second

// judge wants nobody to wait for longer than the configuration says.
func (s *lateness) judge() {
	own := s.w.srv.engine.Ticked() - s.w.srv.engine.Stalled()
	for _, c := range s.w.clients {
		if c.Gone || !c.Accepted() || c.Ref == 0 {
			delete(s.waits, c)
			continue
		}
		what, limit := s.waiting(c)
		if s.waits[c].what != what {
			s.waits[c] = simWait{what, own}
		}
		if waited := own - s.waits[c].since; limit > 0 && waited > limit+deadlineSlack {
			s.w.fail("client %d has been %s for %v, the limit is %v", c.id, what, waited, limit)
		}
	}
}

// waiting says what the server waits for, and for how long it may; it has one name
// for as long as it is the same wait.
func (s *lateness) waiting(c *simClient) (what string, limit time.Duration) {
	cfg := &s.w.cfg
	slot := s.w.probe.Slot(c.FD)
	switch slot.State {
	case "head":
		if s.w.stopping {
			return "sending a head to a server that is shut down", time.Millisecond
		}
		return "sending a head", cfg.HandshakeTimeout
	case "closing":
		return "closing", cfg.CloseTimeout
	case "open":
	default:
		return slot.State, 0
	}
	switch {
	case slot.Conn.Calling(): // nothing is read meanwhile
		return "in a call", 0
	case len(slot.Queue) > 0 && c.trickles:
		return fmt.Sprintf("reading slowly since %p came", &slot.Queue[0].Bytes[0]), cfg.OutboxAge
	case len(slot.Queue) > 0 && c.Room == 0:
		return fmt.Sprint("taking nothing of what waits for it since it had ", len(c.Out)), cfg.WriteTimeout
	case c.mute:
		return "in the middle of a message", cfg.MessageTimeout
	case c.bad != 0 && len(c.In) == 0:
		return "not closed for what it did", time.Millisecond
	case len(slot.Queue) > 0 || len(c.In) > 0:
		return "busy", 0
	}
	return fmt.Sprint("silent since ", c.spoke), cfg.PingInterval + cfg.PongTimeout
}
