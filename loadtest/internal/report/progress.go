//go:build linux

package report

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Progress tells how a run is getting on: a bar on a terminal, a line every
// few seconds elsewhere, later every half minute. One goroutine calls it at a
// time.
type Progress struct {
	w     io.Writer
	live  bool
	bar   *progressbar.ProgressBar
	what  string
	total int
	began time.Time
	next  time.Time
}

const lineEvery = 5 * time.Second

// NewProgress returns one that tells it to w.
func NewProgress(w io.Writer) *Progress {
	f, isFile := w.(*os.File)
	return &Progress{w: w, live: isFile && term.IsTerminal(int(f.Fd()))}
}

// Begin starts a phase; total is what [Progress.At] counts up to, -1 if nobody knows.
func (p *Progress) Begin(what string, total int) {
	p.End()
	p.what, p.total, p.began = what, total, time.Now()
	if !p.live {
		fmt.Fprintln(p.w, what)
		p.next = time.Now().Add(lineEvery)
		return
	}
	p.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(p.w), progressbar.OptionSetDescription(what),
		progressbar.OptionSetWidth(24), progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false),
		progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
}

// At tells how far the phase is; text says more.
func (p *Progress) At(n int, text string) {
	switch {
	case p.bar != nil:
		_ = p.bar.Set(n) // over the total is no harm
		p.bar.Describe(p.line(n, text))
	case p.what != "" && time.Now().After(p.next):
		fmt.Fprintln(p.w, p.line(n, text))
		p.next = time.Now().Add(min(max(lineEvery, time.Since(p.began)/20), 30*time.Second))
	}
}

// line says how far the phase is.
func (p *Progress) line(n int, text string) string {
	return fmt.Sprintf("%s: %s%s (%s)", p.what, Thousands(float64(n)), p.outlook(n), text)
}

// outlook tells how far n is, and how long the rest takes at the speed so far.
func (p *Progress) outlook(n int) string {
	if p.total <= 0 || n <= 0 || n > p.total {
		return ""
	}
	left := time.Duration(float64(time.Since(p.began)) * float64(p.total-n) / float64(n))
	of := " of " + Thousands(float64(p.total))
	if left < time.Second {
		return of
	}
	return of + fmt.Sprintf(", about %s left", left.Round(time.Second))
}

// End finishes a phase.
func (p *Progress) End() {
	if p.bar != nil {
		_ = p.bar.Finish() // it only fails with its writer
		p.bar = nil
	}
	p.what = ""
}
