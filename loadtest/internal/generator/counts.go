//go:build linux

package generator

import (
	"maps"
	"time"
)

// Counts are what the workers of a fleet counted, summed.
type Counts struct {
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

	Busy     float64       `json:"busy"`     // the largest share of a measured phase that the loop did not wait
	CPU      time.Duration `json:"cpu"`      // of the workers since they began
	Resident int64         `json:"resident"` // their memory, bytes
}

// Add sums b into a.
func (a *Counts) Add(b *Counts) {
	a.Open += b.Open
	a.Pending += b.Pending
	a.Attempts += b.Attempts
	a.Opened += b.Opened
	a.Failures = AddReasons(a.Failures, b.Failures)
	a.Lost = AddReasons(a.Lost, b.Lost)
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
	a.CPU += b.CPU
	a.Resident += b.Resident
}

// AddReasons returns what two counts by reason add up to. It changes neither.
func AddReasons(a, b map[string]uint64) map[string]uint64 {
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

// SumReasons returns how many there are of any reason.
func SumReasons(reasons map[string]uint64) (n uint64) {
	for _, v := range reasons {
		n += v
	}
	return n
}

// Round is what became of one message of a run, or of a herd.
type Round struct {
	Expected int   `json:"expected"` // connections that were open when it was awaited, or were dropped
	Got      int   `json:"got"`      // of these, that have it, or are back
	Last     int64 `json:"last"`     // when the last of Got came, by machine.Now
}

// add sums b into r: the last of both is the later one.
func (r *Round) add(b *Round) {
	r.Expected += b.Expected
	r.Got += b.Got
	r.Last = max(r.Last, b.Last)
}
