//go:build linux

package generator

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The histograms that a fleet keeps, in nanoseconds.
const (
	HistHandshake = "handshake" // from when it began, or was due if connects have a rate, to the 101
	HistDelivery  = "delivery"  // from the stamp in a message to its arrival
	HistPush      = "push"      // from when a push was due to its arrival
	HistEcho      = "echo"      // from when a message was sent, or due if they have a rate, to its answer
	HistOutage    = "outage"    // from the end of a connection until it is back
	HistLag       = "lag"       // how late the generator itself was in sending
)

var workerHists = []string{HistHandshake, HistDelivery, HistPush, HistEcho, HistOutage, HistLag}

// NewHistogram returns a histogram that counts nanoseconds up to an hour,
// within 0.1 %.
func NewHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1000, int64(time.Hour), 3)
}
