//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// volley is one round of pushes. Each publisher has its own connection and its
// own users, and one request at a time, so that the pushes to a user have an
// order. Push x of publisher p has the number x*publishers+p+1.
type volley struct {
	// Static after construction.
	run        string
	users      int
	user       []string // how JSON writes a user's name, cut at its number
	lines      bool     // to /api/batch, a push a line
	batch      int      // pushes a request
	size       int      // bytes of a payload
	duration   time.Duration
	every      float64 // nanoseconds between two requests of all publishers; 0: no schedule
	requests   int     // of the schedule
	start, end int64
	bells      []chan struct{} // by publisher: its next request is due

	mu sync.Mutex
	pushed
}

// pushed is what pushes came to.
type pushed struct {
	receipts
	sent    int
	posted  int                     // requests
	held    int                     // requests that were due while their connection waited for an answer
	http    *hdrhistogram.Histogram // of a request, from when it was due if there is a schedule
	lag     *hdrhistogram.Histogram // how late the generator itself was in sending one
	seconds float64                 // until the last answer

	promised, missing int // of the receipts, held against what came
}

// receipts is what the server said became of the pushes.
type receipts struct {
	written, queued, dropped, failed int
	untrue                           int               // claim more than the user's one connection, answer no push, or deny one that came
	reasons                          map[string]uint64 // why some failed
}

func newPushed() *pushed {
	return &pushed{http: generator.NewHistogram(), lag: generator.NewHistogram(), receipts: receipts{reasons: map[string]uint64{}}}
}

// add sums b into a.
func (a *pushed) add(b *pushed) {
	a.written += b.written
	a.queued += b.queued
	a.dropped += b.dropped
	a.failed += b.failed
	a.untrue += b.untrue
	a.reasons = generator.AddReasons(a.reasons, b.reasons)
	a.sent += b.sent
	a.posted += b.posted
	a.held += b.held
	a.http.Merge(b.http)
	a.lag.Merge(b.lag)
	a.seconds += b.seconds
	a.promised += b.promised
	a.missing += b.missing
}

// fate is what the receipt of a push says.
type fate uint8

const (
	unknown  fate = iota // nothing
	promised             // it was written or queued
	denied               // it was not sent
)

// fly sends the pushes and returns the fates, by publisher.
func (v *volley) fly(ctx context.Context, posters []*poster) [][]fate {
	// The pacer keeps its place in Go's scheduler while it sleeps.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1))
	v.start = machine.Now()
	v.end = v.start + int64(v.duration)
	fates := make([][]fate, len(posters))
	var all sync.WaitGroup
	v.bells = make([]chan struct{}, len(posters))
	for p := range posters {
		v.bells[p] = make(chan struct{}, 1)
		all.Go(func() { fates[p] = v.publish(ctx, p, posters[p]) })
	}
	if v.every > 0 {
		all.Go(func() { v.pace(ctx) })
	}
	all.Wait()
	return fates
}

// due returns when request k is, counted over all publishers.
func (v *volley) due(k int) int64 { return v.start + int64(float64(k)*v.every) }

// pace wakes each publisher when its next request is due, to the microsecond:
// Go's own timers are up to a millisecond late.
func (v *volley) pace(ctx context.Context) {
	runtime.LockOSThread()                             // for good: the thread ends with this function
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // without it waits are 50 µs longer, and that is all
	for k := range v.requests {
		for due := v.due(k); ctx.Err() == nil && machine.Now() < due; {
			ts := unix.NsecToTimespec(min(due, machine.Now()+int64(longestNap)))
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) // a signal ends it, and then it is repeated
		}
		select {
		case v.bells[k%len(v.bells)] <- struct{}{}:
		default: // rung already
		}
	}
}

// longestNap is how long the pacer does not look whether it is over.
const longestNap = 100 * time.Millisecond

// wait returns when request k is due, false when there is none.
func (v *volley) wait(ctx context.Context, k int) bool {
	if v.every == 0 {
		return ctx.Err() == nil && machine.Now() < v.end
	}
	if k >= v.requests {
		return false
	}
	for machine.Now() < v.due(k) {
		select {
		case <-v.bells[k%len(v.bells)]:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// publish sends the requests of publisher p, and returns what became of each
// push.
func (v *volley) publish(ctx context.Context, p int, to *poster) (fates []fate) {
	var body []byte
	for k := p; ; k += len(v.bells) {
		free := machine.Now()
		if !v.wait(ctx, k) {
			return fates
		}
		began := machine.Now()
		due := began
		if v.every > 0 {
			due = v.due(k)
		}
		body = body[:0]
		for x := range v.batch {
			body = v.appendPush(body, p, len(fates)+x, due)
		}
		status, answer, err := to.post(ctx, body)
		fates = v.note(fates, status, answer, err, due, free, began)
	}
}

// appendPush appends push x of publisher p, to a user of its own at random.
func (v *volley) appendPush(dst []byte, p, x int, due int64) []byte {
	publishers := len(v.bells)
	to := p + publishers*rand.IntN((v.users-p+publishers-1)/publishers)
	dst = append(dst, `{"user":`...)
	for i, part := range v.user {
		if i > 0 {
			dst = strconv.AppendInt(dst, int64(to), 10)
		}
		dst = append(dst, part...)
	}
	dst = generator.AppendPayload(append(dst, `,"data":`...), v.size, v.run, x*publishers+p+1, int64(to), due)
	return append(dst, "}\n"...)
}

// note counts the answer to a request and adds the fates of its pushes.
func (v *volley) note(fates []fate, status int, answer []byte, err error, due, free, began int64) []fate {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seconds = float64(machine.Now()-v.start) / 1e9
	v.sent += v.batch
	v.posted++
	if err == nil {
		_ = v.http.RecordValue(min(machine.Now()-due, int64(time.Hour))) // within its bounds by that
	}
	if v.every > 0 {
		_ = v.lag.RecordValue(min(began-max(due, free), int64(time.Hour)))
		if free > due {
			v.held++
		}
	}
	for _, got := range v.read(status, answer, err) {
		fates = append(fates, v.receipts.add(&got))
	}
	return fates
}

// read returns a receipt for each push of a request; of what has none the
// status is 0.
func (v *volley) read(status int, answer []byte, err error) []receipt {
	if err != nil {
		return slices.Repeat([]receipt{{Code: "connection: " + why(err)}}, v.batch)
	}
	lines := json.NewDecoder(bytes.NewReader(answer))
	if !v.lines || status != http.StatusOK { // one answer for all of them
		var one receipt
		if lines.Decode(&one) != nil && status == http.StatusOK {
			status = 0
		}
		one.Status = status
		return slices.Repeat([]receipt{one}, v.batch)
	}
	list := make([]receipt, v.batch)
	for i := range list {
		if lines.Decode(&list[i]) != nil {
			list[i] = receipt{}
			break
		}
	}
	if lines.More() {
		v.reasons["a receipt that belongs to no push"]++
		v.untrue++
	}
	return list
}

// receipt is what counts of the answer to one push.
type receipt struct {
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Written *int   `json:"written"`
	Queued  int    `json:"queued"`
	Dropped int    `json:"dropped"`
}

// add counts one receipt.
func (r *receipts) add(got *receipt) fate {
	reason := ""
	switch {
	case got.Status == 0:
		reason = cmp.Or(got.Code, "no receipt")
	case got.Status != http.StatusOK:
		reason = strings.TrimSpace(fmt.Sprintf("%d %s", got.Status, got.Code))
	case got.Written == nil:
		reason = "200 without an outcome"
	case *got.Written+got.Queued+got.Dropped == 0:
		reason = "200 for nobody"
	default:
		r.written += *got.Written
		r.queued += got.Queued
		r.dropped += got.Dropped
		sent := *got.Written + got.Queued
		if sent > 1 {
			r.untrue++
		}
		if sent == 0 {
			return denied
		}
		return promised
	}
	r.failed++
	r.reasons[reason]++
	if got.Status >= 500 || got.Written == nil && got.Status < 400 {
		return unknown
	}
	return denied
}

// why returns what is wrong with a connection, in few words that do not name
// its ports.
func why(err error) string {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed without an answer"
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return machine.ErrnoName(err)
}
