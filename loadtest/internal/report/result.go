//go:build linux

package report

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what was measured of one subject: a server, or the floor.
type Result struct {
	Name     string             `json:"name"`
	URL      string             `json:"url"`
	Values   map[string]float64 `json:"values"`                  // by the keys of figures
	Failures map[string]uint64  `json:"failures,omitempty"`      // handshakes that failed, by reason
	Lost     map[string]uint64  `json:"lost,omitempty"`          // connections that ended, by how
	Refused  map[string]uint64  `json:"pushes_failed,omitempty"` // by status and code
	Caches   []Cache            `json:"kernel_caches,omitempty"`

	hists   map[string]*hdrhistogram.Histogram
	samples []sample
}

// Cache is how much a cache of the kernel grew for each connection.
type Cache struct {
	Name    string  `json:"cache"`
	Objects float64 `json:"objects_per_connection"`
	Bytes   float64 `json:"bytes_per_connection"`
}

// sample is one moment of a run.
type sample struct {
	at       time.Duration // since the run began
	open     int
	resident int64
}

// NewResult returns a result without figures.
func NewResult(name, url string) Result {
	return Result{Name: name, URL: url, Values: map[string]float64{}, hists: map[string]*hdrhistogram.Histogram{}}
}

// Put notes a figure. One whose key is not among those of the report is told
// in JSON alone.
func (r *Result) Put(key string, v float64) { r.Values[key] = v }

// Sample notes a moment for the plots over time: since when the run goes on,
// how many connections are open, and the server's resident bytes, 0 if nobody
// knows.
func (r *Result) Sample(at time.Duration, open int, resident int64) {
	r.samples = append(r.samples, sample{at, open, resident})
}

// Draw notes a histogram of nanoseconds for its plot alone.
func (r *Result) Draw(key string, h *hdrhistogram.Histogram) { r.hists[key] = h }

// PutHist notes a histogram of nanoseconds and those of its percentiles that
// it has samples for. Without a sample it notes nothing.
func (r *Result) PutHist(key string, h *hdrhistogram.Histogram) {
	if h == nil || h.TotalCount() == 0 {
		return
	}
	r.Draw(key, h)
	for _, p := range percentiles {
		if h.TotalCount() >= p.least {
			r.Put(key+"_"+p.key+"_ms", float64(h.ValueAtQuantile(p.at))/1e6)
		}
	}
}
