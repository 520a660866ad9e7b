package server

import (
	"sync"

	"github.com/tocsin-push/tocsin/wire"
)

// inbox is what other goroutines have for a shard: first in, first out.
type inbox struct {
	mu    sync.Mutex
	items []item
}

type itemKind uint8

const (
	itemAccept  itemKind = iota // a new connection; ref holds its descriptor alone
	itemAdopt                   // the same, taken over from net/http with bytes of a request
	itemJoin                    // ref has joined sub; j says how to answer
	itemPublish                 // m for the members of sub
	itemDirect                  // m for ref, the device-th of m.devices
	itemAll                     // m for every open connection
	itemSend                    // bytes, framed, for ref
	itemClose                   // close ref with code and reason
	itemHook                    // a hook of ref has returned
	itemDrain                   // close everything in the time that the server's drain says
)

// item is one entry of an inbox; which fields count depends on its kind.
type item struct {
	kind   itemKind
	code   wire.CloseCode
	device int32
	ref    ref
	sub    *subset
	m      *message
	call   *hookCall
	j      *joining
	bytes  []byte
	reason string
}

// joining is how a subscription is answered once it takes effect.
type joining struct {
	id        []byte // of the command, raw JSON; nil for one of the handshake
	silent    bool   // of the handshake: the welcome has told
	at        wire.Position
	recovered *bool
	gap       *wire.Gap
}

func (b *inbox) append(it item) {
	b.mu.Lock()
	b.items = append(b.items, it)
	b.mu.Unlock()
}

func (b *inbox) appendAll(its []item) {
	b.mu.Lock()
	b.items = append(b.items, its...)
	b.mu.Unlock()
}

// keepInbox is the capacity above which an emptied inbox is given back.
const keepInbox = 1024

// take returns what is in the inbox and leaves spare, which is empty, for what
// comes next.
func (b *inbox) take(spare []item) []item {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.items) == 0 {
		return nil
	}
	items := b.items
	b.items = spare[:0]
	return items
}
