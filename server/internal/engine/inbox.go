package engine

import (
	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/internal/lockorder"
	"github.com/tocsin-push/tocsin/wire"
)

// inbox is what other goroutines have for a shard: first in, first out. The
// order of what is sent is decided here, by who appends first.
type inbox struct {
	mu       lockorder.Mutex[lockorder.Inbox]
	items    []item
	accepted []int32 // descriptors of new connections
}

type itemKind uint8

const (
	itemGroup  itemKind = iota // parcel for the members of group, of whom there were n
	itemOne                    // parcel for parcel.To[n]
	itemAll                    // parcel for every open connection
	itemBehind                 // task for ref, behind what is on its way to group
	itemTask                   // task for ref
	itemAsk                    // task for ref, or without it if that has ended
	itemShard                  // task for the shard itself
)

// item is one entry of an inbox. The comment of its kind says which fields are
// set.
type item struct {
	kind   itemKind
	n      int32
	ref    Ref
	group  *Group
	parcel *Parcel
	task   Task
}

func (b *inbox) append(items ...item) {
	b.mu.Lock()
	b.items = append(b.items, items...)
	b.mu.Unlock()
}

// keepInbox is the capacity above which an emptied inbox is given back.
const keepInbox = 256

// swap returns what is in the inbox and leaves the spare slices, which are
// empty, for what comes next.
func (b *inbox) swap(items []item, accepted []int32) ([]item, []int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.items) > 0 {
		b.items, items = items, b.items
	}
	if len(b.accepted) > 0 {
		b.accepted, accepted = accepted, b.accepted
	}
	return items, accepted
}

// leave appends it to the shard's inbox and wakes the shard.
func (s *shard) leave(it item) {
	s.inbox.append(it)
	s.wake()
}

func (e *Engine) shardOf(r Ref) *shard { return e.shards[shardOf(r.fd(), len(e.shards))] }

// Send sends p to the members of g, a group of the given shard, when its turn
// comes: of whom there are n, those included that a task of Behind will add.
// Order is that of the calls. The caller has called [Parcel.Share].
func (e *Engine) Send(shard int, g *Group, n int, p *Parcel) {
	e.shards[shard].leave(item{kind: itemGroup, group: g, n: int32(n), parcel: p})
}

// SendOne sends p to p.To[i].
func (e *Engine) SendOne(p *Parcel, i int) {
	e.shardOf(p.To[i].Ref).leave(item{kind: itemOne, parcel: p, n: int32(i)})
}

// SendAll sends p to every open connection.
func (e *Engine) SendAll(p *Parcel) {
	p.pending.Store(int32(len(e.shards)))
	for _, s := range e.shards {
		s.leave(item{kind: itemAll, parcel: p})
	}
}

// Post has task done in the turn of r's shard, unless r has ended by then. It
// keeps its place among what is sent.
func (e *Engine) Post(r Ref, task Task) {
	e.shardOf(r).leave(item{kind: itemTask, ref: r, task: task})
}

// Ask is Post of a task that is done in any case: without a connection if r has
// ended. Nothing is done any more once the engine has stopped.
func (e *Engine) Ask(r Ref, task Task) {
	e.shardOf(r).leave(item{kind: itemAsk, ref: r, task: task})
}

// AskShard has task done, without a connection, in the turn of a shard.
func (e *Engine) AskShard(shard int, task Task) {
	e.shards[shard].leave(item{kind: itemShard, task: task})
}

// Behind is Post of a task that waits until what was sent to g before has left
// the walk. r is a connection of g's shard.
func (e *Engine) Behind(g *Group, r Ref, task Task) {
	e.shardOf(r).leave(item{kind: itemBehind, group: g, ref: r, task: task})
}

// Mail collects parcels for single connections, so that many of them cost each
// shard one lock and one wake-up. One goroutine uses it.
type Mail struct {
	e       *Engine
	byShard [][]item
	n       int
}

// NewMail returns an empty Mail.
func (e *Engine) NewMail() *Mail { return &Mail{e: e, byShard: make([][]item, len(e.shards))} }

// mailSize is how many parcels are collected before their shards are woken: so
// few that shards begin while the rest is being collected.
const mailSize = 256

// SendOne is [Engine.SendOne], at the latest when Flush is called.
func (m *Mail) SendOne(p *Parcel, i int) {
	s := shardOf(p.To[i].Ref.fd(), len(m.byShard))
	m.byShard[s] = append(m.byShard[s], item{kind: itemOne, parcel: p, n: int32(i)})
	if m.n++; m.n >= mailSize {
		m.Flush()
	}
}

// Flush hands the shards what was collected.
func (m *Mail) Flush() {
	if m.n == 0 {
		return
	}
	for i, items := range m.byShard {
		if len(items) > 0 {
			s := m.e.shards[i]
			s.inbox.append(items...)
			s.wake()
			clear(items)
			m.byShard[i] = items[:0]
		}
	}
	m.n = 0
}

// SendFrame sends r one message of its own, in its order among what is sent.
// payload is copied.
func (e *Engine) SendFrame(r Ref, op ws.OpCode, payload []byte) {
	e.Post(r, frameTask(wire.AppendFrame(make([]byte, 0, len(payload)+10), op, payload)))
}

// frameTask is whole frames to send to one connection.
type frameTask []byte

// Do implements Task.
func (f frameTask) Do(t *Turn, c *Conn) {
	if c.state == stateOpen {
		t.send(c, f)
	}
}

// Close starts the closing handshake of r; see [Turn.Close].
func (e *Engine) Close(r Ref, code wire.CloseCode, reason string) {
	e.Post(r, closeTask{code, reason})
}

type closeTask struct {
	code   wire.CloseCode
	reason string
}

// Do implements Task.
func (ct closeTask) Do(t *Turn, c *Conn) { t.Close(c, ct.code, ct.reason) }
