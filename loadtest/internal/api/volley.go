//go:build linux

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// Config says what a volley is.
type Config struct {
	Run      string // the name of the round, as the workers expect it
	User     string // of connection {n}
	Users    int
	Batch    int           // pushes a request, a line each; 0: one alone, for /api/push
	Size     int           // bytes of a payload
	Rate     float64       // pushes a second of all publishers; 0: each pushes when it has its answer
	Duration time.Duration // of the pushing
}

// Volley is one round of pushes. Each publisher has its own connection and its
// own users, and one request at a time, so that the pushes to a user have an
// order. Push x of publisher p has the number x*publishers+p+1.
type Volley struct {
	// Static after construction.
	run      string
	users    int
	user     []string // how JSON writes a user's name, cut at its number
	lines    bool     // to /api/batch, a push a line
	batch    int      // pushes a request
	size     int      // bytes of a payload
	duration time.Duration
	every    float64 // nanoseconds between two requests of all publishers; 0: no schedule
	requests int     // of the schedule

	// Static while it flies.
	start, end int64
	bells      []chan struct{} // by publisher: its next request is due

	mu     sync.Mutex
	pushed *Pushed
}

// NewVolley returns a volley that begins when it flies.
func NewVolley(c *Config) (*Volley, error) {
	name, err := json.Marshal(c.User)
	if err != nil {
		return nil, err
	}
	v := &Volley{
		run: c.Run, users: c.Users, user: strings.Split(string(name), "{n}"), lines: c.Batch > 0, batch: max(1, c.Batch), size: c.Size,
		duration: c.Duration, pushed: NewPushed(),
	}
	if c.Rate > 0 {
		v.every = 1e9 * float64(v.batch) / c.Rate
		v.requests = max(1, int(c.Rate*c.Duration.Seconds())/v.batch)
	}
	return v, nil
}

// Pushes returns how many it has, -1 if that depends on the server.
func (v *Volley) Pushes() int {
	if v.every == 0 {
		return -1
	}
	return v.requests * v.batch
}

// Fly sends the pushes, a publisher for each poster, until the time is over or
// ctx is, and returns what they came to. It is called once.
func (v *Volley) Fly(ctx context.Context, posters []*Poster) (*Pushed, Fates) {
	// The pacer keeps its place in Go's scheduler while it sleeps.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1))
	v.start = machine.Now()
	v.end = v.start + int64(v.duration)
	fates := make(Fates, len(posters))
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
	return v.pushed, fates
}

// due returns when request k is, counted over all publishers.
func (v *Volley) due(k int) int64 { return v.start + int64(float64(k)*v.every) }

// pace wakes each publisher when its next request is due, to the microsecond:
// Go's own timers are up to a millisecond late.
func (v *Volley) pace(ctx context.Context) {
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
func (v *Volley) wait(ctx context.Context, k int) bool {
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
func (v *Volley) publish(ctx context.Context, p int, to *Poster) (fates []fate) {
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
func (v *Volley) appendPush(dst []byte, p, x int, due int64) []byte {
	publishers := len(v.bells)
	to := p + publishers*rand.IntN((v.users-p+publishers-1)/publishers)
	dst = append(dst, `{"user":`...)
	for i, part := range v.user {
		if i > 0 {
			dst = strconv.AppendInt(dst, int64(to), 10)
		}
		dst = append(dst, part...)
	}
	dst = generator.AppendPush(append(dst, `,"data":`...), v.size, v.run, x*publishers+p+1, to, due)
	return append(dst, "}\n"...)
}

// note counts the answer to a request and adds the fates of its pushes.
func (v *Volley) note(fates []fate, status int, answer []byte, err error, due, free, began int64) []fate {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pushed.Seconds = float64(machine.Now()-v.start) / 1e9
	v.pushed.Sent += v.batch
	v.pushed.Posted++
	if err == nil {
		_ = v.pushed.HTTP.RecordValue(min(machine.Now()-due, int64(time.Hour))) // within its bounds by that
	}
	if v.every > 0 {
		_ = v.pushed.Lag.RecordValue(min(began-max(due, free), int64(time.Hour)))
		if free > due {
			v.pushed.Held++
		}
	}
	for _, got := range v.read(status, answer, err) {
		fates = append(fates, v.pushed.add(&got))
	}
	return fates
}

// read returns a receipt for each push of a request; of what has none the
// status is 0.
func (v *Volley) read(status int, answer []byte, err error) []receipt {
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
		v.pushed.Reasons["a receipt that belongs to no push"]++
		v.pushed.Untrue++
	}
	return list
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
