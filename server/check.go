package server

import (
	"fmt"
	"time"

	"github.com/tocsin-push/tocsin/wire"
)

// check refuses what cannot be sent and fills in defaults. valid says that the
// data is known to be JSON.
func (srv *Server) check(m *Message, valid bool) error {
	switch {
	case len(m.Data) == 0:
		return fmt.Errorf("%w: data is missing", ErrBadMessage)
	case len(m.Data) > srv.cfg.MaxPublish:
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooBig, len(m.Data), srv.cfg.MaxPublish)
	case len(m.ID) > wire.MaxID:
		return fmt.Errorf("%w: id has %d bytes, the limit is %d", ErrBadMessage, len(m.ID), wire.MaxID)
	case len(m.IdempotencyKey) > wire.MaxID:
		return fmt.Errorf("%w: idempotency_key has %d bytes, the limit is %d", ErrBadMessage, len(m.IdempotencyKey), wire.MaxID)
	case len(m.CollapseKey) > wire.MaxID:
		return fmt.Errorf("%w: collapse_key has %d bytes, the limit is %d", ErrBadMessage, len(m.CollapseKey), wire.MaxID)
	case m.TTL < 0 || m.Rate < 0 || m.AckTimeout < 0:
		return fmt.Errorf("%w: ttl, rate and timeout cannot be negative", ErrBadMessage)
	}
	switch m.Urgency {
	case "", "very-low", "low", "high":
	case "normal":
		m.Urgency = "" // the same, RFC 8030 section 5.3
	default:
		return fmt.Errorf("%w: urgency is %q, it must be very-low, low, normal or high", ErrBadMessage, m.Urgency)
	}
	if !valid {
		if err := wire.CheckJSON(m.Data); err != nil {
			return fmt.Errorf("%w: data: %w", ErrBadMessage, err)
		}
	}
	setDefault(&m.AckTimeout, 10*time.Second)
	return nil
}
