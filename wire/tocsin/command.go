package tocsin

import "github.com/tocsin-push/tocsin/wire"

// maxCommandID bounds the raw JSON of a command's id, which the reply repeats.
const maxCommandID = 64

// Parse implements [wire.Codec]. A message is one command.
func (Codec) Parse(b []byte) (c wire.Command, rest []byte, err *wire.Error) {
	err = parse(b, &c)
	return c, nil, err
}

func parse(b []byte, c *wire.Command) *wire.Error {
	var body []byte
	o := wire.NewObject(b)
	for {
		key, val, done, err := o.Next()
		if err != nil {
			return wire.Errorf(wire.BadRequest, "%s", err)
		}
		if done {
			break
		}
		if string(key) == "id" {
			if len(val) > maxCommandID || (val[0] != '"' && val[0] != '-' && (val[0] < '0' || val[0] > '9')) {
				return wire.Errorf(wire.BadRequest, "id must be a number or a string of at most %d bytes", maxCommandID)
			}
			c.ID = val
			continue
		}
		for v := wire.Subscribe; v <= wire.Ping; v++ { // the key is the verb's word
			if string(key) != v.String() {
				continue
			}
			if c.Verb != wire.None {
				return wire.Errorf(wire.BadRequest, "a frame carries one command, this one has %s and %s", c.Verb, v)
			}
			c.Verb, body = v, val
		}
	}
	if len(o.Rest()) > 0 {
		return wire.Errorf(wire.BadRequest, "bytes behind the command object")
	}
	if c.Verb == wire.None {
		return wire.Errorf(wire.UnknownCommand, "known commands are subscribe, unsubscribe, publish, ack and ping")
	}
	return parseBody(body, c)
}

// parseBody reads the object behind the verb, which has been checked as JSON.
func parseBody(body []byte, c *wire.Command) *wire.Error {
	o := wire.NewObject(body)
	if body[0] != '{' {
		return wire.Errorf(wire.BadRequest, "%s wants an object", c.Verb)
	}
	for {
		key, val, done, err := o.Next()
		if err != nil {
			return wire.Errorf(wire.BadRequest, "%s", err)
		}
		if done {
			break
		}
		ok := true
		switch string(key) {
		case "topic":
			c.Topic, ok = wire.JSONString(val)
		case "epoch":
			c.Epoch, ok = wire.JSONString(val)
		case "id":
			c.MessageID, ok = wire.JSONString(val)
			ok = ok && len(c.MessageID) <= wire.MaxID
		case "after":
			c.After, ok = wire.JSONUint(val)
			c.HasAfter = ok
		case "data":
			c.Data = val
		}
		if !ok {
			return wire.Errorf(wire.BadRequest, "%s: field %s has the wrong type", c.Verb, key)
		}
	}
	return check(c)
}

// check wants the fields that the verb needs.
func check(c *wire.Command) *wire.Error {
	switch c.Verb {
	case wire.Subscribe, wire.Unsubscribe:
		return wire.CheckTopic(c.Topic)
	case wire.Publish:
		if c.Data == nil {
			return wire.Errorf(wire.BadRequest, "publish: field data is missing")
		}
		return wire.CheckTopic(c.Topic)
	case wire.Ack:
		if len(c.MessageID) == 0 {
			return wire.Errorf(wire.BadRequest, "ack: field id is missing")
		}
	}
	return nil
}
