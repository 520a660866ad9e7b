package server

import "context"

// Bus gives every message its place in its topic and hands it to the nodes
// that have subscribers. The default bus is this process alone; a bus between
// nodes implements the same methods.
type Bus interface {
	// Publish numbers a message and has every node with subscribers of its
	// topic deliver it. The zero Position is for a topic that has no numbering,
	// because nobody is subscribed. Any goroutine calls it; it may block until
	// ctx ends.
	Publish(ctx context.Context, p Publication) (Position, error)
	// Subscribe is called when the first subscriber of topic on this node
	// joins, unless the topic lingers. From then on deliver is called for the
	// topic's messages, one at a time and in the order of their seq, until
	// Unsubscribe has returned. deliver does not block and does not call the
	// bus; it is the same function for every topic.
	Subscribe(topic string, deliver func(p Publication, at Position)) error
	// Unsubscribe is called Config.TopicLinger after the last subscriber on this
	// node has left, or earlier for want of Config.LingerBudget; once for each
	// Subscribe that returned nil.
	Unsubscribe(topic string)
	// Close ends the bus and with it every subscription that is left, without an
	// Unsubscribe. deliver is not called after it has returned.
	Close() error
}

// Publication is a message on its way through a [Bus]. Its fields are not
// changed by anybody once it was published.
type Publication struct {
	Topic   string
	Message Message
	out     *message // what a publisher in this process waits on; nil from elsewhere
}

// Position is a place in a topic: the seq of its last message, and the
// identity of that numbering.
type Position struct {
	Seq   uint64
	Epoch string
}
