//go:build linux

package main

import (
	"maps"
	"time"
)

// The coordinator talks to its workers in lines of JSON: orders down a
// worker's standard input, tallies up its standard output. An order is
// answered by exactly one tally with its ID when it is done; tallies without
// an ID come about ten times a second in between. All times are nanoseconds of
// CLOCK_MONOTONIC, which every process of the machine shares.

// order is what a worker is told to do. Orders that take time (connect,
// await, echo, herd) run beside each other, one of each kind at a time.
type order struct {
	ID int    `json:"id"`
	Do string `json:"do"`

	Plan *plan `json:"plan,omitempty"` // plan: the first order

	// connect: open N more connections, Rate a second or as fast as the plan's
	// Concurrency allows.
	N    int     `json:"n,omitempty"`
	Rate float64 `json:"rate,omitempty"` // also of echo: messages a second, 0 for saturated

	// arm: expect messages of Run, numbered 1 to Rounds.
	Run    string        `json:"run,omitempty"`
	Rounds int           `json:"rounds,omitempty"`
	Late   time.Duration `json:"late,omitempty"`

	// await: message Seq, on every connection, for Timeout. Also of herd.
	Seq     int           `json:"seq,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`

	// echo: the first Active connections send Message for Duration.
	Active   int           `json:"active,omitempty"`
	Message  string        `json:"message,omitempty"`
	Duration time.Duration `json:"duration,omitempty"`

	// herd: connections from Keep on come back when they end; Drop ends them.
	Keep int  `json:"keep,omitempty"`
	Drop bool `json:"drop,omitempty"`
	Obey bool `json:"obey,omitempty"` // wait as goodbye says
}

// The kinds of orders.
const (
	doPlan    = "plan"
	doConnect = "connect"
	doArm     = "arm"
	doAwait   = "await"
	doEcho    = "echo"
	doHerd    = "herd"
	doTally   = "tally"  // the only one that is answered with histograms; the worker then counts anew
	doPushes  = "pushes" // expect the pushes of Run, and count them anew
	doCame    = "came"   // answered at once: which of them have come
	doSync    = "sync"   // answered at once: all orders before it have begun
	doStop    = "stop"   // end what runs now, as if its time were over
)

// plan is what a worker needs to know of its connections.
type plan struct {
	Servers     []string      `json:"servers"` // ip:port, taken in turn
	Requests    []string      `json:"requests"`
	TLS         *tlsPlan      `json:"tls,omitempty"`
	Sources     []string      `json:"sources,omitempty"` // addresses to connect from, taken in turn; none: the kernel's choice
	First       int           `json:"first"`             // the number of this worker's first connection
	Concurrency int           `json:"concurrency"`       // handshakes at once
	Timeout     time.Duration `json:"timeout"`           // of a handshake
}

// tally is what a worker has counted since it began or was last told to tally.
type tally struct {
	ID    int    `json:"id,omitempty"`
	Error string `json:"error,omitempty"` // the worker cannot go on
	counts
	Anew  bool              `json:"anew,omitempty"`  // the next tally counts from nothing
	Round *round            `json:"round,omitempty"` // await
	Hists map[string]string `json:"hists,omitempty"` // tally
	Came  []byte            `json:"came,omitempty"`  // came: bit n%8 of byte n/8 stands for push n
}

// counts are summed over the workers.
type counts struct {
	Open    int `json:"open"`    // connections that are open now
	Pending int `json:"pending"` // connections that are wanted and not open yet

	Attempts uint64            `json:"attempts"`
	Opened   uint64            `json:"opened"`
	Failures map[string]uint64 `json:"failures,omitempty"` // of handshakes, by errno or status
	Lost     map[string]uint64 `json:"lost,omitempty"`     // connections that ended after the handshake, by how

	Messages uint64 `json:"messages"` // data frames received
	Pings    uint64 `json:"pings"`    // answered
	Goodbyes uint64 `json:"goodbyes"`

	Delivered  uint64 `json:"delivered"` // distinct messages of the run
	Doubled    uint64 `json:"doubled"`
	Misordered uint64 `json:"misordered"` // came after a later one
	Late       uint64 `json:"late"`
	Foreign    uint64 `json:"foreign"` // pushes for another connection

	Sent    uint64 `json:"sent"` // echo
	Replies uint64 `json:"replies"`

	Busy  float64       `json:"busy"`   // the largest share of a measured phase that the loop did not wait
	SelfC time.Duration `json:"self_c"` // CPU of the worker since it began
	SelfM int64         `json:"self_m"` // its resident memory, bytes
}

// round is what became of one message of a run.
type round struct {
	Expected int   `json:"expected"` // connections open when it was awaited
	Got      int   `json:"got"`
	Last     int64 `json:"last"` // when the last of Got came
}

// add sums b into a.
func (a *counts) add(b *counts) {
	a.Open += b.Open
	a.Pending += b.Pending
	a.Attempts += b.Attempts
	a.Opened += b.Opened
	a.Failures = addReasons(a.Failures, b.Failures)
	a.Lost = addReasons(a.Lost, b.Lost)
	a.Messages += b.Messages
	a.Pings += b.Pings
	a.Goodbyes += b.Goodbyes
	a.Delivered += b.Delivered
	a.Doubled += b.Doubled
	a.Misordered += b.Misordered
	a.Late += b.Late
	a.Foreign += b.Foreign
	a.Sent += b.Sent
	a.Replies += b.Replies
	a.Busy = max(a.Busy, b.Busy)
	a.SelfC += b.SelfC
	a.SelfM += b.SelfM
}

func addReasons(a, b map[string]uint64) map[string]uint64 {
	if len(b) == 0 {
		return a
	}
	sum := maps.Clone(a)
	if sum == nil {
		sum = map[string]uint64{}
	}
	for reason, n := range b {
		sum[reason] += n
	}
	return sum
}

func sumReasons(reasons map[string]uint64) (n uint64) {
	for _, v := range reasons {
		n += v
	}
	return n
}
