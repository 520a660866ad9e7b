package wire

import (
	"encoding/json"
	"strconv"
)

// This is what package server still calls of tocsin.v1. It lives in
// wire/tocsin, and goes from here when server speaks through a [Codec].

// Subprotocol is tocsin.Subprotocol.
const Subprotocol = "tocsin.v1"

// maxCommandID bounds the raw JSON of a command's id, which the reply repeats.
const maxCommandID = 64

// ParseCommand reads one command from b into c, whose slices then point into
// b. It allocates only for errors and for strings with escapes. An error
// leaves c.ID set when the id could be read, so that the reply can carry it.
func ParseCommand(b []byte, c *Command) *Error {
	*c = Command{}
	var body []byte
	o := NewObject(b)
	for {
		key, val, done, err := o.Next()
		if err != nil {
			return Errorf(BadRequest, "%s", err)
		}
		if done {
			break
		}
		if string(key) == "id" {
			if len(val) > maxCommandID || (val[0] != '"' && val[0] != '-' && (val[0] < '0' || val[0] > '9')) {
				return Errorf(BadRequest, "id must be a number or a string of at most %d bytes", maxCommandID)
			}
			c.ID = val
			continue
		}
		for v := Subscribe; int(v) < len(verbs); v++ {
			if string(key) != verbs[v] {
				continue
			}
			if c.Verb != None {
				return Errorf(BadRequest, "a frame carries one command, this one has %s and %s", c.Verb, v)
			}
			c.Verb, body = v, val
		}
	}
	if len(o.Rest()) > 0 {
		return Errorf(BadRequest, "bytes behind the command object")
	}
	if c.Verb == None {
		return Errorf(UnknownCommand, "known commands are subscribe, unsubscribe, publish, ack and ping")
	}
	return c.parseBody(body)
}

// parseBody reads the object behind the verb, which has been checked as JSON.
func (c *Command) parseBody(body []byte) *Error {
	o := NewObject(body)
	if body[0] != '{' {
		return Errorf(BadRequest, "%s wants an object", c.Verb)
	}
	for {
		key, val, done, err := o.Next()
		if err != nil {
			return Errorf(BadRequest, "%s", err)
		}
		if done {
			break
		}
		ok := true
		switch string(key) {
		case "topic":
			c.Topic, ok = JSONString(val)
		case "epoch":
			c.Epoch, ok = JSONString(val)
		case "id":
			c.MessageID, ok = JSONString(val)
			ok = ok && len(c.MessageID) <= MaxID
		case "after":
			c.After, ok = JSONUint(val)
			c.HasAfter = ok
		case "data":
			c.Data = val
		}
		if !ok {
			return Errorf(BadRequest, "%s: field %s has the wrong type", c.Verb, key)
		}
	}
	return c.check()
}

// check wants the fields that the verb needs.
func (c *Command) check() *Error {
	switch c.Verb {
	case Subscribe, Unsubscribe:
		return CheckTopic(c.Topic)
	case Publish:
		if c.Data == nil {
			return Errorf(BadRequest, "publish: field data is missing")
		}
		return CheckTopic(c.Topic)
	case Ack:
		if len(c.MessageID) == 0 {
			return Errorf(BadRequest, "ack: field id is missing")
		}
	}
	return nil
}

// appendID begins a reply: `{` or `{"id":7,`.
func appendID(dst, id []byte) []byte {
	dst = append(dst, '{')
	if id == nil {
		return dst
	}
	dst = append(dst, `"id":`...)
	return append(append(dst, id...), ',')
}

// AppendOK appends an answer without fields.
func AppendOK(dst, id []byte) []byte { return append(appendID(dst, id), `"ok":{}}`...) }

// AppendSubscribed appends the answer to subscribe. recovered is the word for
// a client that said after: nil when it did not.
func AppendSubscribed[T ~string | ~[]byte](dst, id []byte, topic T, p Position, recovered *bool) []byte {
	dst = append(appendID(dst, id), `"ok":{"topic":`...)
	dst = appendPosition(append(AppendString(dst, topic), ','), p)
	if recovered != nil {
		dst = strconv.AppendBool(append(dst, `,"recovered":`...), *recovered)
	}
	return append(dst, "}}"...)
}

// AppendPublished appends the answer to publish. A topic without a numbering
// has no position: the zero one is left out.
func AppendPublished(dst, id []byte, messageID string, p Position) []byte {
	dst = append(appendID(dst, id), `"ok":{"id":`...)
	dst = AppendString(dst, messageID)
	if p != (Position{}) {
		dst = appendPosition(append(dst, ','), p)
	}
	return append(dst, "}}"...)
}

func appendPosition(dst []byte, p Position) []byte {
	dst = strconv.AppendUint(append(dst, `"seq":`...), p.Seq, 10)
	return AppendString(append(dst, `,"epoch":`...), p.Epoch)
}

// AppendError appends an answer that refuses a command.
func AppendError(dst, id []byte, e *Error) []byte {
	dst = append(appendID(dst, id), `"error":{"code":`...)
	dst = AppendString(dst, string(e.Code))
	dst = AppendString(append(dst, `,"message":`...), e.Message)
	return append(dst, "}}"...)
}

// AppendMessage appends the envelope of m. Its Data must be valid JSON.
func AppendMessage(dst []byte, m *Message) []byte {
	dst = AppendString(append(dst, `{"topic":`...), m.Topic)
	if m.Seq != 0 {
		dst = strconv.AppendUint(append(dst, `,"seq":`...), m.Seq, 10)
	}
	if m.ID != "" {
		dst = AppendString(append(dst, `,"id":`...), m.ID)
	}
	if m.Urgency != "" {
		dst = AppendString(append(dst, `,"urgency":`...), m.Urgency)
	}
	if m.Ack {
		dst = append(dst, `,"ack":true`...)
	}
	dst = append(append(dst, `,"data":`...), m.Data...)
	return append(dst, '}')
}

// AppendWelcome appends the first frame's payload.
func AppendWelcome(dst []byte, conn []byte, user string, ping int, topics []string, at []Position) []byte {
	dst = AppendString(append(dst, `{"welcome":{"conn":`...), conn)
	if user != "" {
		dst = AppendString(append(dst, `,"user":`...), user)
	}
	dst = strconv.AppendInt(append(dst, `,"ping":`...), int64(ping), 10)
	for i, topic := range topics {
		if i == 0 {
			dst = append(dst, `,"topics":{`...)
		} else {
			dst = append(dst, ',')
		}
		dst = append(AppendString(dst, topic), ":{"...)
		dst = append(appendPosition(dst, at[i]), '}')
	}
	if len(topics) > 0 {
		dst = append(dst, '}')
	}
	return append(dst, "}}"...)
}

// AppendGoodbye appends the notice before a close.
func AppendGoodbye(dst []byte, g Goodbye) []byte {
	dst = strconv.AppendUint(append(dst, `{"goodbye":{"code":`...), uint64(g.Code), 10)
	dst = AppendString(append(dst, `,"reason":`...), g.Reason)
	dst = strconv.AppendInt(append(dst, `,"retry_after_ms":`...), int64(g.RetryAfterMS), 10)
	return append(dst, "}}"...)
}

// AppendGap appends the notice of a missed range.
func AppendGap(dst []byte, g Gap) []byte {
	dst = AppendString(append(dst, `{"gap":{"topic":`...), g.Topic)
	dst = AppendString(append(dst, `,"epoch":`...), g.Epoch)
	dst = strconv.AppendUint(append(dst, `,"from":`...), g.From, 10)
	dst = strconv.AppendUint(append(dst, `,"to":`...), g.To, 10)
	dst = AppendString(append(dst, `,"reason":`...), g.Reason)
	return append(dst, "}}"...)
}

// ParseEvent reads one frame from a server. Nothing in the event points into b.
func ParseEvent(b []byte) (Event, error) {
	var e struct {
		Event
		Topic   string          `json:"topic"`
		Seq     uint64          `json:"seq"`
		Urgency string          `json:"urgency"`
		Ack     bool            `json:"ack"`
		MsgID   json.RawMessage `json:"id"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return Event{}, err
	}
	if e.Topic == "" {
		if len(e.MsgID) > 0 {
			// A reply: the id is the number that this client chose.
			if err := json.Unmarshal(e.MsgID, &e.ID); err != nil {
				return Event{}, err
			}
		}
		return e.Event, nil
	}
	m := &Message{Topic: e.Topic, Seq: e.Seq, Urgency: e.Urgency, Ack: e.Ack, Data: e.Data}
	if len(e.MsgID) > 0 {
		if err := json.Unmarshal(e.MsgID, &m.ID); err != nil {
			return Event{}, err
		}
	}
	return Event{Message: m}, nil
}
