package tocsin

import (
	"strconv"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// Codec is the [wire.Codec] of tocsin.v1.
type Codec struct{}

// Subprotocol implements [wire.Codec].
func (Codec) Subprotocol() string { return Subprotocol }

// Op implements [wire.Codec].
func (Codec) Op() ws.OpCode { return ws.OpText }

// Ping implements [wire.Codec]: it is an empty one of WebSocket's own.
func (Codec) Ping() (ws.OpCode, []byte) { return ws.OpPing, nil }

// CloseCode implements [wire.Codec]: the close codes are ours.
func (Codec) CloseCode(c wire.CloseCode) wire.CloseCode { return c }

// AppendReply implements [wire.Codec].
func (Codec) AppendReply(dst []byte, r wire.Reply) []byte {
	dst = append(dst, '{')
	if r.ID != nil {
		dst = append(append(dst, `"id":`...), r.ID...)
		dst = append(dst, ',')
	}
	switch {
	case r.Err.Code != "":
		dst = wire.AppendString(append(dst, `"error":{"code":`...), string(r.Err.Code))
		dst = wire.AppendString(append(dst, `,"message":`...), r.Err.Message)
	case r.Verb == wire.Subscribe:
		dst = wire.AppendString(append(dst, `"ok":{"topic":`...), r.Topic)
		dst = appendPosition(append(dst, ','), r.At)
		if r.Recovered != wire.FromNow {
			dst = strconv.AppendBool(append(dst, `,"recovered":`...), r.Recovered == wire.Recovered)
		}
	case r.Verb == wire.Publish:
		dst = wire.AppendString(append(dst, `"ok":{"id":`...), r.MessageID)
		if r.At != (wire.Position{}) { // else the topic has no numbering
			dst = appendPosition(append(dst, ','), r.At)
		}
	default:
		dst = append(dst, `"ok":{`...)
	}
	return append(dst, "}}"...)
}

func appendPosition(dst []byte, p wire.Position) []byte {
	dst = strconv.AppendUint(append(dst, `"seq":`...), p.Seq, 10)
	return wire.AppendString(append(dst, `,"epoch":`...), p.Epoch)
}

// AppendMissed implements [wire.Codec]: it is a gap as any other.
func (c Codec) AppendMissed(dst []byte, g wire.Gap) []byte { return c.AppendGap(dst, g) }

// AppendWelcome implements [wire.Codec].
func (Codec) AppendWelcome(dst []byte, g wire.Greeting) []byte {
	dst = wire.AppendString(append(dst, `{"welcome":{"conn":`...), g.Conn)
	if g.User != "" {
		dst = wire.AppendString(append(dst, `,"user":`...), g.User)
	}
	dst = strconv.AppendInt(append(dst, `,"ping":`...), int64(g.Ping), 10)
	for i, topic := range g.Topics {
		if i == 0 {
			dst = append(dst, `,"topics":{`...)
		} else {
			dst = append(dst, ',')
		}
		dst = append(wire.AppendString(dst, topic), ":{"...)
		dst = append(appendPosition(dst, g.At[i]), '}')
	}
	if len(g.Topics) > 0 {
		dst = append(dst, '}')
	}
	return append(dst, "}}"...)
}

// AppendMessage implements [wire.Codec].
func (Codec) AppendMessage(dst []byte, m wire.Message) []byte {
	dst = wire.AppendString(append(dst, `{"topic":`...), m.Topic)
	if m.Seq != 0 {
		dst = strconv.AppendUint(append(dst, `,"seq":`...), m.Seq, 10)
	}
	if m.ID != "" {
		dst = wire.AppendString(append(dst, `,"id":`...), m.ID)
	}
	if m.Urgency != "" {
		dst = wire.AppendString(append(dst, `,"urgency":`...), m.Urgency)
	}
	if m.Ack {
		dst = append(dst, `,"ack":true`...)
	}
	dst = append(append(dst, `,"data":`...), m.Data...)
	return append(dst, '}')
}

// AppendGap implements [wire.Codec].
func (Codec) AppendGap(dst []byte, g wire.Gap) []byte {
	dst = wire.AppendString(append(dst, `{"gap":{"topic":`...), g.Topic)
	dst = wire.AppendString(append(dst, `,"epoch":`...), g.Epoch)
	dst = strconv.AppendUint(append(dst, `,"from":`...), g.From, 10)
	dst = strconv.AppendUint(append(dst, `,"to":`...), g.To, 10)
	dst = wire.AppendString(append(dst, `,"reason":`...), g.Reason)
	return append(dst, "}}"...)
}

// TellsGaps implements [wire.Codec].
func (Codec) TellsGaps() bool { return true }

// AppendSubscribed implements [wire.Codec]: it is the answer to a subscribe that
// had no id.
func (c Codec) AppendSubscribed(dst []byte, topic string, at wire.Position) []byte {
	return c.AppendReply(dst, wire.Reply{Verb: wire.Subscribe, Topic: topic, At: at})
}

// AppendCancel implements [wire.Codec].
func (Codec) AppendCancel(dst []byte, c wire.Cancel) []byte {
	dst = wire.AppendString(append(dst, `{"cancel":{"topic":`...), c.Topic)
	dst = wire.AppendString(append(dst, `,"reason":`...), c.Reason)
	return append(dst, "}}"...)
}

// AppendGoodbye implements [wire.Codec].
func (Codec) AppendGoodbye(dst []byte, g wire.Goodbye) []byte {
	dst = strconv.AppendUint(append(dst, `{"goodbye":{"code":`...), uint64(g.Code), 10)
	dst = wire.AppendString(append(dst, `,"reason":`...), g.Reason)
	dst = strconv.AppendInt(append(dst, `,"retry_after_ms":`...), int64(g.RetryAfterMS), 10)
	return append(dst, "}}"...)
}
