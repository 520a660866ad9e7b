//go:build linux

package api

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
)

// Pushed is what pushes came to.
type Pushed struct {
	Receipts
	Sent    int                     // pushes
	Posted  int                     // requests
	Held    int                     // requests that were due while their connection waited for an answer
	HTTP    *hdrhistogram.Histogram // of a request, in nanoseconds, from when it was due if there is a schedule
	Lag     *hdrhistogram.Histogram // how late the generator itself was in sending one, in nanoseconds
	Seconds float64                 // until the last answer
}

// Receipts is what the server said became of the pushes.
type Receipts struct {
	Written, Queued, Dropped, Failed int
	Untrue                           int               // claim more than the user's one connection, or answer no push
	Reasons                          map[string]uint64 // why some failed
}

// NewPushed returns what no push came to.
func NewPushed() *Pushed {
	return &Pushed{HTTP: generator.NewHistogram(), Lag: generator.NewHistogram(), Receipts: Receipts{Reasons: map[string]uint64{}}}
}

// Add sums b into a.
func (a *Pushed) Add(b *Pushed) {
	a.Written += b.Written
	a.Queued += b.Queued
	a.Dropped += b.Dropped
	a.Failed += b.Failed
	a.Untrue += b.Untrue
	a.Reasons = generator.AddReasons(a.Reasons, b.Reasons)
	a.Sent += b.Sent
	a.Posted += b.Posted
	a.Held += b.Held
	a.HTTP.Merge(b.HTTP)
	a.Lag.Merge(b.Lag)
	a.Seconds += b.Seconds
}

// fate is what the receipt of a push says.
type fate uint8

const (
	unknown  fate = iota // nothing
	promised             // it was written or queued
	denied               // it was not sent
)

// receipt is what counts of the answer to one push.
type receipt struct {
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Written *int   `json:"written"`
	Queued  int    `json:"queued"`
	Dropped int    `json:"dropped"`
}

// add counts one receipt.
func (r *Receipts) add(got *receipt) fate {
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
		r.Written += *got.Written
		r.Queued += got.Queued
		r.Dropped += got.Dropped
		sent := *got.Written + got.Queued
		if sent > 1 {
			r.Untrue++
		}
		if sent == 0 {
			return denied
		}
		return promised
	}
	r.Failed++
	r.Reasons[reason]++
	if got.Status >= 500 || got.Written == nil && got.Status < 400 {
		return unknown
	}
	return denied
}

// Fates are those of the pushes of a volley, by publisher, in the order of
// their numbers.
type Fates [][]fate

// Found is what receipts come to when they are held against what came.
type Found struct {
	Promised int // pushes that must come
	Missing  int // of these
	Denied   int // pushes that came and must not
}

// Compare holds the fates against what came.
func (list Fates) Compare(came func(n int) bool) (f Found) {
	for p, fates := range list {
		for x, fate := range fates {
			came := came(x*len(list) + p + 1)
			switch {
			case fate == promised && !came:
				f.Missing++
			case fate == denied && came:
				f.Denied++
			}
			if fate == promised {
				f.Promised++
			}
		}
	}
	return f
}
