package wire

import "fmt"

// Verb is what a command asks for.
type Verb uint8

// The verbs.
const (
	None Verb = iota
	Subscribe
	Unsubscribe
	Publish
	Ack
	Ping
)

var verbs = [...]string{Subscribe: "subscribe", Unsubscribe: "unsubscribe", Publish: "publish", Ack: "ack", Ping: "ping"}

// String returns the verb's word.
func (v Verb) String() string {
	if v == None || int(v) >= len(verbs) {
		return "none"
	}
	return verbs[v]
}

// Command is one command of a client. Which fields are set depends on the verb.
type Command struct {
	Verb      Verb
	ID        []byte // what the reply repeats, as it stood in the command; nil if the client gave none
	Topic     []byte
	Epoch     []byte
	Data      []byte // publish: the payload, JSON
	MessageID []byte // ack: the acknowledged message; publish: the wanted id
	After     uint64 // subscribe: the last seq the client has
	HasAfter  bool
}

// Reply answers a command. Which fields are set depends on the verb.
type Reply struct {
	ID        []byte // the command's
	Verb      Verb   // the command's; None if it could not be read
	Err       Error  // why the command was refused; no Code: it was not
	Topic     string // the command's; subscribe: a topic name
	At        Position
	Recovered Recovery // subscribe
	MessageID string   // publish: the message's id
}

// Recovery tells a subscriber whether it goes on where it was.
type Recovery uint8

// The recoveries.
const (
	FromNow      Recovery = iota // it did not say where it was
	Recovered                    // everything since then follows
	NotRecovered                 // it does not, and a gap tells what is missing
)

// ErrorCode is the machine-readable part of an error reply.
type ErrorCode string

// The codes, as docs/protocol.md has them.
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

// Errorf returns an Error with a formatted message.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
