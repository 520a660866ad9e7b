package httpapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// part is one message of a batch, and one line of its answer.
type part struct {
	index int    // of its item
	user  string // of the item's users; empty if it lists none
	wait  server.Wait
	err   error // why it is not among the items for the backend
}

// parts are a batch as the backend and the answer need it.
type parts struct {
	cfg   *Config
	count int // items read
	list  []part
	items []server.BatchItem // of the parts without err, in their order
}

// batch places many messages in order and answers with a line for each. All of
// the body is read and checked before the first of them is placed.
func batch(x *exchange) error {
	body, err := x.readBody(bodyRule{[]string{jsonType, linesType}, x.api.cfg.MaxBatch, "send several batches or see api-max-batch"})
	if err != nil {
		return err
	}
	b := &parts{cfg: &x.api.cfg}
	if x.mediaType == linesType {
		err = b.readLines(body)
	} else {
		err = b.readArray(body)
	}
	if err != nil {
		return err
	}
	x.key.owe(len(b.list) - 1) // one was taken with the body
	x.answerBatch(b, x.api.backend.Batch(x.r.Context(), b.items))
	return nil
}

// readLines reads an item from each line that is not empty. What is wrong with
// one is that one's alone.
func (b *parts) readLines(body []byte) error {
	for line := range bytes.Lines(body) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if err := b.add(line); err != nil {
			return err
		}
	}
	return nil
}

// readArray reads the items of a JSON array. One that is not JSON is wrong as
// a whole.
func (b *parts) readArray(body []byte) error {
	var elements [][]byte
	err := wire.Elements(body, func(val []byte) error {
		if len(elements) == b.cfg.MaxBatchItems {
			return b.tooMany()
		}
		elements = append(elements, val)
		return nil
	})
	if err != nil {
		return unreadable(err)
	}
	for _, val := range elements {
		if err := b.add(val); err != nil {
			return err
		}
	}
	return nil
}

// add takes one item in, as one part, or as one for each of its users. Its
// error is that of the whole batch.
func (b *parts) add(raw []byte) error {
	p := part{index: b.count}
	b.count++
	q, err := parse(raw, onItem)
	if err == nil && len(q.message.Data) > b.cfg.MaxPublish {
		err = tooBig(b.cfg.MaxPublish)
	}
	if err != nil {
		p.err = err
		q = &request{}
	}
	if len(b.list)+max(1, len(q.users)) > b.cfg.MaxBatchItems {
		return b.tooMany()
	}
	p.wait = q.message.Wait
	if q.users == nil {
		b.place(p, server.BatchItem{Topic: q.topic, To: q.to, Message: q.message})
		return nil
	}
	for _, user := range q.users {
		p.user, p.err = user, named(wire.CheckUser(user))
		m := q.message
		m.IdempotencyKey = keyOf(&m, user)
		b.place(p, server.BatchItem{To: server.Target{User: user}, Message: m})
	}
	return nil
}

func (b *parts) tooMany() error {
	return refusef(codeTooMany, "The batch has more than %d messages, send several batches or see api-max-batch-items.", b.cfg.MaxBatchItems)
}

func (b *parts) place(p part, item server.BatchItem) {
	b.list = append(b.list, p)
	if p.err == nil {
		b.items = append(b.items, item)
	}
}

// keyOf returns the idempotency key of a message for one of several users.
// Under the key that they share, the second would be another message.
func keyOf(m *server.Message, user string) string {
	key := m.IdempotencyKey
	if key == "" {
		key = m.ID
	}
	if key == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(key + "\x00" + user))
	return hex.EncodeToString(sum[:])
}

// answerBatch sends one line for each part. It keeps no more than some of them:
// the receipts of users with many devices are long.
func (x *exchange) answerBatch(b *parts, results []server.BatchResult) {
	const piece = 32 << 10 // bytes
	x.answerHead(http.StatusOK, typeLines)
	buf := make([]byte, 0, piece+4<<10)
	for i := range b.list {
		p := &b.list[i]
		var got server.BatchResult
		if got.Err = p.err; p.err == nil {
			got, results = results[0], results[1:]
		}
		buf = x.appendLine(buf, p, got)
		if len(buf) >= piece {
			_, _ = x.w.Write(buf) // an error means that nobody is there to be told
			buf = buf[:0]
		}
	}
	_, _ = x.w.Write(buf)
}

func (x *exchange) appendLine(b []byte, p *part, got server.BatchResult) []byte {
	b = appendInt(b, `{"index":`, p.index)
	if p.user != "" {
		b = wire.AppendString(append(b, `,"user":`...), p.user)
	}
	r, err := x.outcome(got.Receipt, got.Err, p.wait)
	if err == nil {
		b = r.appendTo(append(b, `,"status":200,`...))
		return append(b, "}\n"...)
	}
	refused, _ := errors.AsType[*problem](err)
	b = appendInt(b, `,"status":`, refused.code.status())
	return append(refused.appendTo(append(b, ',')), "}\n"...)
}
