package wire

import "github.com/gobwas/ws"

// Codec is a protocol that clients speak: how their messages become commands,
// and how what a server says becomes the payload of messages. It knows no
// connection and keeps nothing, so one value serves all of them.
//
// Its methods are called in a shard's turn and by publishers, at once. They do
// not block. They allocate nothing but what dst has to grow by, the text of an
// error, and a string with escapes.
//
// Each Append method appends the payload of one message to dst. It returns dst
// as it is if the protocol has no words for that; then nothing is sent.
type Codec interface {
	// Subprotocol is the name in Sec-WebSocket-Protocol, "" if there is none.
	Subprotocol() string

	// Op is the opcode of messages in both directions: text or binary.
	Op() ws.OpCode

	// Parse takes the first command off b, which is a message or the rest of
	// one, and returns what is behind it, nil at the end. The command's slices
	// point into b. Of one that is wrong, ID, Verb and Topic are set as far as
	// they could be read, for the reply; what is behind it may be right. A command
	// without a verb and without an error asks for nothing and is not answered: a
	// pong, or empty space.
	Parse(b []byte) (cmd Command, rest []byte, err *Error)

	// AppendReply appends the answer to a command.
	AppendReply(dst []byte, r Reply) []byte

	// AppendMissed appends the gap that is sent behind the reply to a subscribe
	// that was [NotRecovered].
	AppendMissed(dst []byte, g Gap) []byte

	// AppendWelcome appends what is sent behind the upgrade.
	AppendWelcome(dst []byte, g Greeting) []byte

	// AppendMessage appends a message of a topic. Its Data is one JSON value.
	AppendMessage(dst []byte, m Message) []byte

	// AppendGap appends the notice that stands in the place of messages which a
	// connection is not given.
	AppendGap(dst []byte, g Gap) []byte

	// TellsGaps reports whether AppendGap has words. If it has not, a reader that
	// is too slow is closed, whatever its topics' policies say.
	TellsGaps() bool

	// AppendSubscribed appends the notice that the server subscribed a connection to
	// a topic, whose next message is behind that position.
	AppendSubscribed(dst []byte, topic string, at Position) []byte

	// AppendCancel appends the notice that the server ended a subscription.
	AppendCancel(dst []byte, c Cancel) []byte

	// AppendGoodbye appends the notice before a close.
	AppendGoodbye(dst []byte, g Goodbye) []byte

	// Ping is the frame that asks a silent client for a sign of life. It is the
	// same for everybody; nobody changes its bytes.
	Ping() (op ws.OpCode, payload []byte)

	// CloseCode returns what the protocol calls one of our close codes. Where
	// its clients would come back after a code that means stay away, or the
	// other way round, it is another.
	CloseCode(c CloseCode) CloseCode
}
