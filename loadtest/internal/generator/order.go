//go:build linux

package generator

import (
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
	Counts
	Anew  bool              `json:"anew,omitempty"`  // the next tally counts from nothing
	Round *Round            `json:"round,omitempty"` // await
	Hists map[string]string `json:"hists,omitempty"` // tally
	Came  []byte            `json:"came,omitempty"`  // came: bit n%8 of byte n/8 stands for push n
}
