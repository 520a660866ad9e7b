// Package wire is what all protocols of a Tocsin server share. It has the bytes
// of RFC 6455: frames, the [Reader] that puts them together, close codes. It has
// what is said in them: a [Command] that a client gives, the [Reply] to it, the
// [Message] of a topic, notices such as a [Gap]. And it has the [Codec], which
// turns those into bytes: one for each protocol, each in a package below this
// one. wire/tocsin is our own.
//
// Server, client and load generator use it; it knows none of them.
package wire

// Limits that hold in every protocol; they are not configurable.
const (
	MaxTopic = 255 // bytes in a topic name
	MaxUser  = 255 // bytes in a user name
	MaxID    = 128 // bytes in a message id, as it stands in JSON
	MaxDepth = 32  // nesting of a JSON value
)

// The topics that belong to the server. What arrives there has no seq.
const (
	UserTopic  = "$user" // what is pushed to a user or to one connection
	AllTopic   = "$all"  // what is sent to everybody
	reservedAt = '$'
)

// Position is a place in a topic: the last message given out and the identity
// of the numbering. A seq says nothing under another epoch.
type Position struct {
	Seq   uint64 `json:"seq"`
	Epoch string `json:"epoch"`
}
