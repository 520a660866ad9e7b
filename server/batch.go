package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// BatchItem is one message of a batch: a publish to Topic, or a push to To.
// Exactly one of the two is set.
type BatchItem struct {
	Topic   string
	To      Target
	Message Message
}

func (it *BatchItem) verb() verb {
	if it.Topic != "" {
		return verbPublish
	}
	return verbPush
}

// BatchResult is what became of a [BatchItem]: what [Server.Publish] or
// [Server.Push] would have returned for it.
type BatchResult struct {
	Receipt Receipt
	Err     error
}

// Batch sends many messages for much less than a call each, and waits for each
// as its Message.Wait says. Messages for one topic, user or connection keep the
// order of items, as do the results. An item that fails does not stop the
// others; once ctx has ended no further item is sent.
//
// A batch has about a quarter of Config.PublishBudget on its way at a time, and
// waits when that is reached or others have the rest: it fails with [ErrBusy]
// only for an item that is over the budget alone. Items may share their Message.Data, which is then
// checked once. Any goroutine may call it; items are not changed.
func (srv *Server) Batch(ctx context.Context, items []BatchItem) []BatchResult {
	b := &batch{srv: srv, items: items, mail: srv.engine.NewMail(), results: make([]BatchResult, len(items))}
	for i := range items {
		it := &items[i]
		if err := b.add(ctx, i, it); err != nil {
			b.results[i].Err = srv.refused(it.verb(), err)
		}
	}
	b.settle(ctx, false)
	return b.results
}

// batch is a call of Batch.
type batch struct {
	srv     *Server
	items   []BatchItem
	valid   []byte       // Message.Data that was found to be JSON
	mail    *engine.Mail // pushes that no shard has yet
	results []BatchResult

	// What was placed since the last settle.
	sent  []batchSending
	bytes int64
}

type batchSending struct {
	sending
	at int // of its item
}

// add places an item. When too much is on its way it first waits for what the
// batch placed before.
func (b *batch) add(ctx context.Context, i int, it *BatchItem) error {
	if it.Topic != "" && it.To != (Target{}) {
		return fmt.Errorf("%w: give either topic or a target", ErrBadMessage)
	}
	if b.bytes > b.srv.cfg.PublishBudget/4 {
		b.settle(ctx, true)
	}
	s, err := b.begin(ctx, it)
	if errors.Is(err, ErrBusy) && costOf(&it.Message) <= b.srv.cfg.PublishBudget {
		b.settle(ctx, true)
		s, err = b.beginWhenFree(ctx, it)
	}
	if err == nil {
		b.sent = append(b.sent, batchSending{s, i})
		b.bytes += costOf(&it.Message)
	}
	return err
}

func (b *batch) begin(ctx context.Context, it *BatchItem) (sending, error) {
	if err := ctx.Err(); err != nil {
		return sending{}, err
	}
	m := it.Message // begin gives it an id
	return b.srv.begin(ctx, &address{verb: it.verb(), topic: it.Topic, to: it.To}, &m, b)
}

// beginWhenFree is begin that waits while others have the publish budget. What
// they have is given back message by message, and each time one batch tries.
func (b *batch) beginWhenFree(ctx context.Context, it *BatchItem) (sending, error) {
	srv := b.srv
	srv.batchesWaiting.Add(1)
	defer srv.batchesWaiting.Add(-1)
	for {
		s, err := b.begin(ctx, it)
		if !errors.Is(err, ErrBusy) {
			srv.wakeBatch() // there may be room for another
			return s, err
		}
		if err := srv.wait(ctx, srv.budgetFree); err != nil {
			return sending{}, err
		}
	}
}

// known reports whether data is that of the last item that passed the check.
func (b *batch) known(data []byte) bool {
	return b != nil && len(data) == len(b.valid) && unsafe.SliceData(data) == unsafe.SliceData(b.valid)
}

// delivered waits until s takes nothing of the publish budget any more, or ctx
// ends.
func (b *batch) delivered(ctx context.Context, s *sending) {
	if s.entry != nil {
		if s, _, _ = s.entry.in.result(s.entry); s == nil {
			return
		}
	}
	if s.out.done != nil { // nil: it was not this batch that sent it
		_ = b.srv.wait(ctx, s.out.done)
	}
}

// settle waits for what was placed, as each message asks or, with delivered
// set, at least until it takes nothing of the publish budget any more. It
// begins with the last: when that is delivered its shard has delivered the
// others too, and no time is lost in waiting for each.
func (b *batch) settle(ctx context.Context, delivered bool) {
	b.mail.Flush()
	for i := range slices.Backward(b.sent) {
		s := &b.sent[i]
		if delivered {
			b.delivered(ctx, &s.sending)
		}
		r := &b.results[s.at]
		r.Receipt, r.Err = b.srv.await(ctx, &s.sending)
		r.Err = b.srv.refused(b.items[s.at].verb(), r.Err)
	}
	clear(b.sent)
	b.sent, b.bytes = b.sent[:0], 0
}
