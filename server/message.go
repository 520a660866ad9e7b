package server

import "time"

// Message is what is published: a payload and how to deliver it. The words
// are those of FCM, APNs and RFC 8030.
type Message struct {
	// Data is the payload: JSON, sent as it stands. It is copied.
	Data []byte
	// ID names the message to clients. Default: a new one.
	ID string
	// IdempotencyKey makes a repeated publish, within two minutes and with the
	// same content and address, deliver once: the repetition gets the first's
	// Receipt, and waits for it while the message is on its way, whether the
	// first caller still waits or not. What was not sent may be tried again.
	// Keys of clients are apart. Default: ID, if that is given.
	IdempotencyKey string
	// CollapseKey: of waiting messages with the same key on a topic whose
	// policy is [Latest], only the newest is kept.
	CollapseKey string
	// Urgency is told to the clients: very-low, low, normal or high, RFC 8030
	// section 5.3. Normal is the default and not told. It changes nothing in
	// how the message is delivered.
	Urgency string
	// TTL: the message is not sent once this old. 0: no limit.
	TTL time.Duration
	// Rate bounds a broadcast to so many deliveries a second. 0: no limit.
	// Other messages have none.
	Rate int
	// Wait says what the call waits for, and so what the Receipt can tell.
	Wait Wait
	// AckTimeout bounds WaitAck, from the publish on. Default 10 s.
	AckTimeout time.Duration
}

// Wait is what a publish waits for.
type Wait uint8

// The waits, each more than the one before it.
const (
	// WaitNone: the message has its place; Receipt tells ID, Position and Subscribers.
	WaitNone Wait = iota
	// WaitSent: every subscriber's copy was written, queued or dropped.
	WaitSent
	// WaitAck: every device of a push acknowledged or was dropped, or AckTimeout passed.
	WaitAck
)

// Receipt says who got a message: of the connections of this server, whatever the
// [Bus]. With a bus that delivers later, Subscribers is with WaitNone how many
// there were when the message had its place; the other waits are for the delivery
// here. If nobody is subscribed here there is none, and if it is lost on its way
// the wait ends when that is known, or after ten seconds: then all counts are 0.
type Receipt struct {
	ID          string
	Seq         uint64
	Epoch       string
	Subscribers int // connections it was for
	Written     int // handed to the kernel whole
	Queued      int // waiting in an outbox
	Dropped     int // not sent: expired, over the outbox with such a policy, or the connection ended
	Devices     []Device
	Duplicate   bool // the answer of an earlier publish with the same key
}

// Device is one connection that a push was for.
type Device struct {
	Conn   string
	Status DeviceStatus
}

// DeviceStatus is what became of one device's copy.
type DeviceStatus string

// The statuses of a device.
const (
	StatusPending DeviceStatus = "pending" // not known when the answer was given
	StatusWritten DeviceStatus = "written"
	StatusQueued  DeviceStatus = "queued"
	StatusDropped DeviceStatus = "dropped"
	StatusAcked   DeviceStatus = "acked"
)

// Target addresses connections: every device of a user, or one connection.
// Exactly one field is set.
type Target struct {
	User string
	Conn string
}
