package server

import "context"

// Bus gives every message its place in its topic and hands it to the nodes
// that have subscribers. The default bus is this process alone; a bus between
// nodes implements the same methods.
//
// No lock that the sink needs is held while a method is called. Any goroutine
// calls them, several at a time; but the calls of Subscribe and Unsubscribe for
// one topic come one after the other. A panic of one of these two or of Publish
// is logged, and is an error.
type Bus interface {
	// Start is called once, before everything else. From then on, until Close
	// has returned, the bus may call sink.
	Start(sink Sink) error

	// Publish numbers a message and has every node with subscribers of its
	// topic deliver it, this one included. It returns the message's position;
	// the zero Position is for a topic that has no numbering, because nobody is
	// subscribed. After an error the message has no place, as far as the bus
	// knows. It may block until ctx ends. The message may be delivered before
	// Publish returns, or later.
	Publish(ctx context.Context, p Publication) (Position, error)

	// Subscribe asks for the messages of a topic: its first subscriber on this
	// node wants to join. It does not block. The answer is a call of
	// [Sink.Ready], by any goroutine, before Subscribe returns or later; without
	// one within Config.AuthTimeout the subscribers are refused and Unsubscribe
	// is called; if it was asked for a topic that it had lost, and that has
	// subscribers, it is asked again. From Ready on the topic's messages are delivered, until
	// Unsubscribe: a bus that loses its connection gets it back, subscribes
	// again, and calls [Sink.Gap].
	Subscribe(topic string)

	// Unsubscribe ends what Subscribe began. It does not block. It is called
	// Config.TopicLinger after the last subscriber on this node has left, or
	// earlier for want of Config.LingerBudget; and soon after a Ready with an
	// error. For each topic Subscribe and Unsubscribe alternate, whatever Ready
	// said. What the bus still calls for the topic afterwards does no harm.
	Unsubscribe(topic string)

	// Close ends the bus and with it every subscription that is left, without an
	// Unsubscribe. A call that is under way ends then, and one that somebody was
	// about to make does nothing: Publish returns an error.
	Close() error
}

// Sink is what a [Bus] calls: a server. Its methods do not block and do not call
// the bus, so a bus may call them from within its own methods and with its own
// locks held. Calls for one topic come one at a time and in order; those for
// several topics may come at once. Nothing that is passed is changed, by
// anybody, nor kept by the sink after it returns.
type Sink interface {
	// Ready answers [Bus.Subscribe]: messages behind at will be delivered. An
	// error says that there is no such subscription. Those who wait for it are
	// refused; if there are subscribers already, the sink subscribes again within
	// a second. A Ready for a topic that was ready is a Gap up to at.
	Ready(topic string, at Position, err error)

	// Deliver hands over a message. Its seq is one more than that of the message
	// before it: what is missing between them, or all that came before it if its
	// epoch is a new one, is told to the subscribers as lost. One with a seq that
	// was delivered is ignored, and so is one for a topic that is not ready. p
	// may be the very Publication that was published here; if it was, or may have
	// been, it has its Origin.
	Deliver(p Publication, at Position)

	// Gap says that the messages up to at which were not delivered never will be,
	// for example because the connection was lost. Subscribers are told. If
	// nothing was lost it does nothing, so a bus whose connection came back may
	// call it for each topic.
	Gap(topic string, at Position)
}

// Immediate is what a [Bus] may also be: one whose Publish never blocks and
// keeps nothing of p.Message.Data after it has returned. The server then does
// without a copy of the data, and without a goroutine for a publish with a key.
type Immediate interface {
	Bus
	Immediate()
}

// History is what a [Bus] may also be: one that keeps messages. A client that
// subscribes and says where it was is then given what it missed, before what is
// published from now on.
type History interface {
	Bus

	// After returns the first of the messages of a topic that are kept behind a
	// position, in the order of their seq: as many as have together about so many
	// bytes, but at least one if there is one. It blocks until ctx ends at most,
	// which Config.AuthTimeout bounds; it is called in the hook pool.
	//
	// What was delivered to the sink before the call, or told by [Sink.Ready] or
	// [Sink.Gap], and is missing in front of a message that After returns, is told
	// to the client as lost; and so is all of it if After returns nothing. So what
	// After leaves out must be what will never come: it was not kept, or not for
	// longer than its TTL. Messages of another epoch than that of the position are
	// left out by the server, and so are those that it did not ask for, or that
	// have not been delivered yet; what is too much for the client now is asked
	// for again. The messages that were returned are not changed by anybody. After
	// an error, or a panic, the client is told to try again.
	After(ctx context.Context, topic string, behind Position, most int) ([]Stored, error)
}

// Stored is a message that a [History] has kept, and its place.
type Stored struct {
	Message Message
	At      Position
}

// Publication is a message on its way through a [Bus].
type Publication struct {
	Topic   string
	Message Message
	Origin  Origin
}

// Origin says which publish a [Publication] is of. A bus carries it to where the
// message is delivered, at least to the node where it was published: the
// publisher's [Receipt] is that of the delivery with its Origin. To others it
// means nothing.
type Origin struct {
	Node   uint64 // of the server that published it
	Number uint64 // among that server's publishes
}

// Position is a place in a topic: the seq of its last message, and the
// identity of that numbering.
type Position struct {
	Seq   uint64
	Epoch string
}
