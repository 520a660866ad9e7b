package server

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/tocsin-push/tocsin/wire"
)

// Every error has a row, and a word of its own.
func TestEveryErrorHasARow(t *testing.T) {
	text, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t(Err\w+) = errors\.New\(("[^"]+")\)$`).FindAllSubmatch(text, -1)
	if len(declared) != len(failures) {
		t.Errorf("%d errors, %d rows", len(declared), len(failures))
	}
	for _, d := range declared {
		if !regexp.MustCompile(`(?m)^\t\{` + string(d[1]) + `, "`).Match(text) {
			t.Errorf("%s has no row", d[1])
		}
	}
	words := map[string]bool{"error": true}
	for _, f := range failures {
		if words[f.reason] {
			t.Errorf("%q is the word of %v, and of another", f.reason, f.err)
		}
		words[f.reason] = true
	}
}

// Programs rely on the words and codes.
func TestWordsOfErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason string
		client wire.Error
	}{
		{ErrNobody, "nobody", wire.Error{Code: wire.Internal, Message: "the message could not be published"}},
		{ErrClosed, "closed", wire.Error{Code: wire.Busy, Message: "the server is shutting down"}},
		{ErrBusy, "busy", wire.Error{Code: wire.Busy, Message: "too much is being published, try again later"}},
		{fmt.Errorf("%w: the id is long", ErrBadMessage), "bad_message", wire.Error{Code: wire.BadRequest, Message: "publish: the id is long"}},
		{ErrTooBig, "too_big", wire.Error{Code: wire.TooBig, Message: "the message is too big"}},
		{ErrReused, "reused", wire.Error{Code: wire.BadRequest, Message: "publish: this id came before with another message"}},
		{ErrNoAck, "no_ack", wire.Error{Code: wire.Internal, Message: "the message could not be published"}},
		{errors.New("no route"), "error", wire.Error{Code: wire.Internal, Message: "the message could not be published"}},
	} {
		err := fmt.Errorf("publish: %w", c.err)
		if reason, client := Reason(err), *publishError(err); reason != c.reason || client != c.client {
			t.Errorf("%v: %q and %+v, want %q and %+v", c.err, reason, client, c.reason, c.client)
		}
	}
}
