package server

import (
	"sync"

	"github.com/tocsin-push/tocsin/wire"
)

// inbox is what other goroutines have for a shard: first in, first out.
type inbox struct {
	mu       sync.Mutex
	items    []item
	accepted []int32 // descriptors of new connections
}

type itemKind uint8

const (
	itemAdopt   itemKind = iota // ref's descriptor is taken over from net/http; x is the head, a []byte
	itemJoin                    // ref has joined sub; x says how to answer, a *joining, or nil
	itemPublish                 // m for the members of sub, of whom there were device
	itemDirect                  // m for ref, the device-th of m.devices
	itemAll                     // m for every open connection
	itemSend                    // x for ref, a []byte of whole frames
	itemClose                   // close ref as x says, a closing
	itemHook                    // a hook of ref has returned, x a *hookCall
	itemDrain                   // close everything in the time that the server's drain says
)

// item is one entry of an inbox. The comment of its kind says which fields are
// set.
type item struct {
	kind   itemKind
	device int32
	ref    ref
	sub    *subset
	m      *message
	x      any
}

// closing is what a Close frame says.
type closing struct {
	code   wire.CloseCode
	reason string
}

// joining is how a subscription is answered once it takes effect.
type joining struct {
	id        []byte // of the command, raw JSON
	at        wire.Position
	recovered *bool
	gap       *wire.Gap
}

func (b *inbox) append(items ...item) {
	b.mu.Lock()
	b.items = append(b.items, items...)
	b.mu.Unlock()
}

// keepInbox is the capacity above which an emptied inbox is given back.
const keepInbox = 256

// take returns what is in the inbox and leaves the spare slices, which are
// empty, for what comes next.
func (b *inbox) take(items []item, accepted []int32) ([]item, []int32) {
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
