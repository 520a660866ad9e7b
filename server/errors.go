package server

import "errors"

// Errors of publishing and of what is done to connections. They come wrapped; test with [errors.Is].
var (
	// ErrNobody: no connection is logged in as that user, or open under that
	// id. A topic or a broadcast that nobody gets is no error.
	ErrNobody = errors.New("server: nobody there")
	// ErrClosed: the server is shutting down or has shut down.
	ErrClosed = errors.New("server: closed")
	// ErrBusy: Config.PublishBudget is used up by messages on their way.
	ErrBusy = errors.New("server: too much published and not yet delivered, see Config.PublishBudget")
	// ErrBadMessage: the message or its address is not one; the text says why.
	ErrBadMessage = errors.New("server: bad message")
	// ErrTooBig: the payload is over Config.MaxPublish.
	ErrTooBig = errors.New("server: message too big, see Config.MaxPublish")
	// ErrReused: the idempotency key or id came before, with another message.
	ErrReused = errors.New("server: id reused for another message")
	// ErrTooManyTopics: a connection is subscribed to Config.MaxTopics topics.
	ErrTooManyTopics = errors.New("server: too many topics on a connection, see Config.MaxTopics")
	// ErrNoAck: no device acknowledged in time.
	ErrNoAck = errors.New("server: not acknowledged in time")
)
