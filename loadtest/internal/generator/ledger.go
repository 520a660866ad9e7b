//go:build linux

package generator

import (
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// ledger is what a worker counts and measures.
type ledger struct {
	total Counts
	hists map[string]*hdrhistogram.Histogram
	idle  int64 // time spent waiting
}

func newLedger() ledger {
	l := ledger{hists: map[string]*hdrhistogram.Histogram{}}
	for _, name := range workerHists {
		l.hists[name] = NewHistogram()
	}
	return l
}

func (l *ledger) record(name string, d int64) {
	_ = l.hists[name].RecordValue(min(max(d, 0), int64(time.Hour))) // within its bounds by that
}

// phase measures how busy the loop is.
type phase struct{ began, idle int64 }

func (l *ledger) begin() phase { return phase{machine.Now(), l.idle} }

// end notes the busy share of the phase; one of less than 10 ms says nothing.
func (l *ledger) end(p phase) {
	if d := machine.Now() - p.began; d > int64(10*time.Millisecond) {
		l.total.Busy = max(l.total.Busy, 1-float64(l.idle-p.idle)/float64(d))
	}
}

// follow counts a delivery that comes behind a later one of its connection.
func (l *ledger) follow(c *conn, number int64) {
	if uint32(number) < c.high {
		l.total.Misordered++
	} else {
		c.high = uint32(number)
	}
}

// encode returns the histograms that have samples, as lines of text.
func (l *ledger) encode() (map[string]string, error) {
	texts := map[string]string{}
	for name, h := range l.hists {
		if h.TotalCount() == 0 {
			continue
		}
		b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			return nil, fmt.Errorf("histogram %s: %w", name, err)
		}
		texts[name] = string(b)
	}
	return texts, nil
}

// anew begins to count from nothing, but for the connections that are open.
func (l *ledger) anew() {
	l.total = Counts{Open: l.total.Open}
	for _, h := range l.hists {
		h.Reset()
	}
}

func count(reasons *map[string]uint64, reason string) {
	if *reasons == nil {
		*reasons = map[string]uint64{}
	}
	(*reasons)[reason]++
}

// never is when that is due which nobody waits for.
const never = math.MaxInt64
