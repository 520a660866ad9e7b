package server

import "github.com/tocsin-push/tocsin/server/internal/engine"

// tail is the parcels that were sent last to a topic, up to where it stands.
// There is one while somebody catches up.
type tail struct {
	readers int
	parcels []*engine.Parcel
	size    int
}

// page is how many bytes a page has, and a tail.
func (h *hub) page() int { return h.srv.cfg.MaxOutbox / 2 }

// tailLocked returns the tail of t, or nil. The caller holds the stripe.
func (h *hub) tailLocked(t *topic) *tail {
	if h.history == nil {
		return nil
	}
	return h.busSide(t.flow.Name).tails[t]
}

func (tl *tail) keep(p *engine.Parcel, most int) {
	tl.parcels = append(tl.parcels, p)
	for tl.size += p.Size(); tl.size > most; tl.parcels = tl.parcels[1:] {
		tl.size -= tl.parcels[0].Size()
		tl.parcels[0] = nil
	}
}

func (tl *tail) clear() { tl.parcels, tl.size = nil, 0 }

// needTail counts k as one who needs the tail of its topic.
func (b *busSide) needTail(k *catching) {
	if k.tailed {
		return
	}
	k.tailed = true
	if b.tails == nil {
		b.tails = map[*topic]*tail{}
	}
	if b.tails[k.topic] == nil {
		b.tails[k.topic] = &tail{}
	}
	b.tails[k.topic].readers++
}

// dropTail undoes a needTail.
func (b *busSide) dropTail(k *catching) {
	if !k.tailed {
		return
	}
	k.tailed = false
	if b.tails[k.topic].readers--; b.tails[k.topic].readers == 0 {
		delete(b.tails, k.topic)
	}
}
