package server

import (
	"errors"
	"strings"

	"github.com/tocsin-push/tocsin/wire"
)

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
	// ErrTopicUnavailable: the bus does not give the topic now. It may later.
	ErrTopicUnavailable = errors.New("server: the bus does not give this topic now")
	// ErrNoAck: no device acknowledged in time.
	ErrNoAck = errors.New("server: not acknowledged in time")
)

// Reason returns the word for err that metrics and the answers of package httpapi
// have: that of the first of this package's errors that it wraps, such as
// "nobody" for [ErrNobody], and "error" if it wraps none.
func Reason(err error) string { return failureOf(err).reason }

// failure is what is said of an error, and to whom.
type failure struct {
	err    error
	reason string     // see Reason
	client wire.Error // what a client is told whose publish it ends; none: what is told of an unknown error
}

// failures has a row for every error. Texts for clients do not name the fields
// of an operator's Config, as the errors do.
var failures = []failure{
	{ErrNobody, "nobody", wire.Error{}},
	{ErrClosed, "closed", wire.Error{Code: wire.Busy, Message: "the server is shutting down"}},
	{ErrBusy, "busy", wire.Error{Code: wire.Busy, Message: "too much is being published, try again later"}},
	{ErrBadMessage, "bad_message", wire.Error{Code: wire.BadRequest, Message: "publish: "}}, // and why
	{ErrTooBig, "too_big", wire.Error{Code: wire.TooBig, Message: "the message is too big"}},
	{ErrReused, "reused", wire.Error{Code: wire.BadRequest, Message: "publish: this id came before with another message"}},
	{ErrTooManyTopics, "too_many_topics", wire.Error{}},
	{ErrTopicUnavailable, "topic_unavailable", wire.Error{}},
	{ErrNoAck, "no_ack", wire.Error{}},
}

func failureOf(err error) failure {
	for _, f := range failures {
		if errors.Is(err, f.err) {
			return f
		}
	}
	return failure{err, "error", wire.Error{}}
}

// publishError is what a client is told of a publish that failed.
func publishError(err error) *wire.Error {
	f := failureOf(err)
	switch {
	case f.client.Code == "":
		return &wire.Error{Code: wire.Internal, Message: "the message could not be published"}
	case errors.Is(err, ErrBadMessage):
		_, why, _ := strings.Cut(err.Error(), ErrBadMessage.Error()+": ")
		f.client.Message += why
	}
	return &f.client
}
