package wire

// Event is anything a server sends, as a client reads it; one of the pointers
// is set. ID belongs to OK and Error. An OK with a topic and without an ID tells
// that the server subscribed the connection.
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

// Welcome is the first thing that a client is told; over WebSocket it leaves
// with the 101. A server writes it as a [Greeting].
type Welcome struct {
	Conn   string              `json:"conn"`
	User   string              `json:"user,omitempty"`
	Ping   int                 `json:"ping"` // seconds of silence after which the server pings; 0: never
	Topics map[string]Position `json:"topics,omitempty"`
}

// Greeting is a [Welcome] as a server has it.
type Greeting struct {
	Conn   []byte
	User   string // "" if there is none
	Ping   int
	Topics []string
	At     []Position // of each of Topics
}

// Gap tells which range of a topic the client was not given.
type Gap struct {
	Topic  string `json:"topic"`
	Epoch  string `json:"epoch"`
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
	Reason string `json:"reason"` // at a resume: epoch, retention; later: overflow, collapsed, ttl, budget, bus, epoch
}

// Cancel tells that the server ended a subscription.
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
