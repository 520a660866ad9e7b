// Package wire is what a Tocsin server and its clients say to each other:
// subprotocol tocsin.v1, JSON text frames over RFC 6455, one object a frame.
// Server, client and load generator share it; it knows none of them.
//
// The flow, C for client and S for server:
//
//	C: GET /ws?topics=news HTTP/1.1 …          the upgrade, RFC 6455 section 4
//	S: 101, and in the same write:
//	   {"welcome":{"conn":"…","user":"42","ping":25,"topics":{"news":{"seq":16,"epoch":"x"}}}}
//	C: {"id":1,"subscribe":{"topic":"sport"}}
//	S: {"id":1,"ok":{"topic":"sport","seq":3,"epoch":"x"}}
//	S: {"topic":"news","seq":17,"id":"…","data":…}
//	C: {"id":2,"ack":{"id":"…"}}               when the message said "ack":true
//	S: {"id":2,"ok":{}}
//	S: {"goodbye":{"code":3001,"reason":"shutdown","retry_after_ms":8125}}
//	S: Close 3001
//
// Every command is answered, by ok or by error, with the id it came with.
// Unknown fields are ignored; an unknown command gets an error and the
// connection lives. The whole of it is told in docs/protocol.md.
package wire

import "fmt"

// Subprotocol is the name in Sec-WebSocket-Protocol. A client that offers no
// subprotocol is spoken to in the same way.
const Subprotocol = "tocsin.v1"

// Limits of the protocol itself; they are not configurable.
const (
	MaxTopic   = 255 // bytes in a topic name
	MaxUser    = 255 // bytes in a user name
	MaxID      = 128 // bytes in a message id, as it stands in JSON
	MaxDepth   = 32  // nesting of a JSON value
	UserTopic  = "$user"
	AllTopic   = "$all"
	reservedAt = '$'
)

// Verb is what a command asks for.
type Verb uint8

// The commands of tocsin.v1.
const (
	None        Verb = iota
	Subscribe        // {"id":1,"subscribe":{"topic":"news","after":16,"epoch":"x"}}
	Unsubscribe      // {"id":1,"unsubscribe":{"topic":"news"}}
	Publish          // {"id":1,"publish":{"topic":"news","data":…}}
	Ack              // {"id":1,"ack":{"id":"…"}}
	Ping             // {"id":1,"ping":{}}
)

// verbs maps the key in a command object to its Verb.
var verbs = [...]string{Subscribe: "subscribe", Unsubscribe: "unsubscribe", Publish: "publish", Ack: "ack", Ping: "ping"}

// String returns the key that names the verb on the wire.
func (v Verb) String() string {
	if v == None || int(v) >= len(verbs) {
		return "none"
	}
	return verbs[v]
}

// Command is one parsed client command. Its slices point into the parsed
// frame and live as long as that does.
type Command struct {
	Verb      Verb
	ID        []byte // the id as raw JSON, a number or a string; nil when absent
	Topic     []byte
	Epoch     []byte
	Data      []byte // publish: the payload, raw JSON
	MessageID []byte // ack: the acknowledged message; publish: the wanted id
	After     uint64 // subscribe: the last seq the client has
	HasAfter  bool
}

// ErrorCode is the machine-readable part of an error reply.
type ErrorCode string

// The codes of {"error":{"code":…}}.
const (
	BadRequest     ErrorCode = "bad_request"     // not a command: bad JSON, wrong types
	UnknownCommand ErrorCode = "unknown_command" // an object without a known verb
	BadTopic       ErrorCode = "bad_topic"       // not a topic name, or a reserved one
	Forbidden      ErrorCode = "forbidden"       // the Allow hook said no
	TooManyTopics  ErrorCode = "too_many_topics" // the limit of topics a connection
	NotSubscribed  ErrorCode = "not_subscribed"
	NotFound       ErrorCode = "not_found" // ack of a message nobody waits for
	TooBig         ErrorCode = "too_big"
	Busy           ErrorCode = "busy" // too much on its way already; try again
	Internal       ErrorCode = "internal"
)

// Error is a reply that refuses a command. The connection lives.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

func errf(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Position is a place in a topic: the last message given out and the identity
// of the numbering. A seq says nothing under another epoch.
type Position struct {
	Seq   uint64 `json:"seq"`
	Epoch string `json:"epoch"`
}

// Event is anything a server sends, as a client reads it; one of the pointers
// is set, or Topic for a message. See [ParseEvent].
type Event struct {
	// A reply to a command.
	ID    uint64 `json:"id,omitempty"`
	OK    *OK    `json:"ok,omitempty"`
	Error *Error `json:"error,omitempty"`

	// A message, or a notice.
	Message *Message `json:"-"`
	Welcome *Welcome `json:"welcome,omitempty"`
	Gap     *Gap     `json:"gap,omitempty"`
	Cancel  *Cancel  `json:"cancel,omitempty"`
	Goodbye *Goodbye `json:"goodbye,omitempty"`
}

// OK answers a command; which fields are set depends on the command.
type OK struct {
	Topic     string `json:"topic,omitempty"`
	Seq       uint64 `json:"seq,omitempty"`
	Epoch     string `json:"epoch,omitempty"`
	MessageID string `json:"id,omitempty"`
	Recovered *bool  `json:"recovered,omitempty"` // subscribe with after: nothing was missed
}

// Message is one message of a topic. Pushes to a user arrive on topic $user,
// broadcasts on $all; those have no seq.
type Message struct {
	Topic   string `json:"topic"`
	Seq     uint64 `json:"seq,omitempty"`
	ID      string `json:"id,omitempty"`
	Urgency string `json:"urgency,omitempty"` // very-low, low or high, RFC 8030 section 5.3; normal is ""
	Ack     bool   `json:"ack,omitempty"`     // the publisher waits for {"ack":{"id":…}}
	Data    []byte `json:"-"`                 // raw JSON
}

// Welcome is the first frame of every connection; it leaves with the 101.
type Welcome struct {
	Conn   string              `json:"conn"`
	User   string              `json:"user,omitempty"`
	Ping   int                 `json:"ping"` // seconds of silence after which the server pings; 0: never
	Topics map[string]Position `json:"topics,omitempty"`
}

// Gap tells which range of a topic the client was not given.
type Gap struct {
	Topic  string `json:"topic"`
	Epoch  string `json:"epoch"`
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
	Reason string `json:"reason"` // at a resume: epoch, retention; later: overflow, collapsed, ttl, budget
}

// Cancel tells that the server ended a subscription. No server sends it yet.
type Cancel struct {
	Topic  string `json:"topic"`
	Reason string `json:"reason"`
}

// Goodbye comes before a close that the client should come back from.
type Goodbye struct {
	Code         CloseCode `json:"code"`
	Reason       string    `json:"reason"`
	RetryAfterMS int       `json:"retry_after_ms"`
}
