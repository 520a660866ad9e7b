package tocsin

import (
	"encoding/json"
	"strconv"

	"github.com/tocsin-push/tocsin/wire"
)

// AppendCommand appends one command to a server. Its ID is raw JSON, a number or
// a string, and its Data valid JSON.
func AppendCommand(dst []byte, c wire.Command) []byte {
	dst = append(dst, '{')
	if c.ID != nil {
		dst = append(append(append(dst, `"id":`...), c.ID...), ',')
	}
	dst = append(append(append(dst, '"'), c.Verb.String()...), `":{`...)
	switch c.Verb {
	case wire.Subscribe:
		dst = wire.AppendString(append(dst, `"topic":`...), c.Topic)
		if c.HasAfter {
			dst = strconv.AppendUint(append(dst, `,"after":`...), c.After, 10)
		}
		if len(c.Epoch) > 0 {
			dst = wire.AppendString(append(dst, `,"epoch":`...), c.Epoch)
		}
	case wire.Unsubscribe:
		dst = wire.AppendString(append(dst, `"topic":`...), c.Topic)
	case wire.Publish:
		dst = wire.AppendString(append(dst, `"topic":`...), c.Topic)
		if len(c.MessageID) > 0 {
			dst = wire.AppendString(append(dst, `,"id":`...), c.MessageID)
		}
		dst = append(append(dst, `,"data":`...), c.Data...)
	case wire.Ack:
		dst = wire.AppendString(append(dst, `"id":`...), c.MessageID)
	}
	return append(dst, "}}"...)
}

// ParseEvent reads one frame from a server. Nothing in the event points into b.
func ParseEvent(b []byte) (wire.Event, error) {
	var e struct {
		wire.Event
		Topic   string          `json:"topic"`
		Seq     uint64          `json:"seq"`
		Urgency string          `json:"urgency"`
		Ack     bool            `json:"ack"`
		MsgID   json.RawMessage `json:"id"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return wire.Event{}, err
	}
	if e.Topic == "" {
		if len(e.MsgID) > 0 {
			// A reply: the id is the number that this client chose.
			if err := json.Unmarshal(e.MsgID, &e.ID); err != nil {
				return wire.Event{}, err
			}
		}
		return e.Event, nil
	}
	m := &wire.Message{Topic: e.Topic, Seq: e.Seq, Urgency: e.Urgency, Ack: e.Ack, Data: e.Data}
	if len(e.MsgID) > 0 {
		if err := json.Unmarshal(e.MsgID, &m.ID); err != nil {
			return wire.Event{}, err
		}
	}
	return wire.Event{Message: m}, nil
}
