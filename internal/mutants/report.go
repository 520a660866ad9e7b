package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// line is a verdict for the terminal.
func (v *verdict) line() string {
	if !v.found {
		return fmt.Sprintf("MISSED  %-60s %d seeds: %s", v.bug.name, v.seeds, v.said)
	}
	return fmt.Sprintf("found   %-60s seed %d, %.1f s: %s", v.bug.name, v.seed, v.after.Seconds(), brief(v.said))
}

// brief is what a judge said, for a table.
func brief(said string) string {
	said = strings.NewReplacer("|", "/", "`", "'", "\n", " ").Replace(said)
	const most = 110
	if r := []rune(said); len(r) > most {
		return string(r[:most]) + " …"
	}
	return said
}

const head = `# Planted bugs

Each row is a bug that was planted in the production code, alone, and what the simulation of package server said of it.
` + "`make sim-mutants`" + ` writes this page; [simulation.md](simulation.md) says what it proves. Row is that of [faults.md](faults.md), where the
bug was found before by other means. Seed is the first that failed, from 0 on, and seconds is how long that took %d processes.

`

// writeTable writes docs/mutants.md.
func (l *lab) writeTable(all []verdict) error {
	var b strings.Builder
	fmt.Fprintf(&b, head, l.processes)
	found := 0
	b.WriteString("| planted bug | row | file | seed | seconds | what the judge said |\n|---|---|---|---|---|---|\n")
	for _, v := range all {
		seed, after := "–", "–"
		if v.found {
			found++
			seed, after = strconv.FormatUint(v.seed, 10), strconv.FormatFloat(v.after.Seconds(), 'f', 1, 64)
		}
		fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s | `%s` |\n", v.bug.name, v.bug.row, v.bug.file, seed, after, brief(v.said))
	}
	fmt.Fprintf(&b, "\n%d of %d were found within %s each.\n", found, len(all), l.limit)
	return os.WriteFile(filepath.Join(l.root, "docs/mutants.md"), []byte(b.String()), 0o644)
}

// totals is what happened in the seeds of a process, as -stats prints it.
type totals struct {
	seeds, events int
	parts         map[string]map[string]int // faults, and happenings
}

var (
	totalsLine = regexp.MustCompile(`(?m)^(\d+) seeds, (\d+) events, \d+ a second$`)
	partLine   = regexp.MustCompile(`^(\w+), and how many of them in a million events:$`)
	countLine  = regexp.MustCompile(`^  (.*?) +(\d+) +\d+$`)
)

// readTotals reads what -stats has printed. Without it there are none.
func readTotals(out string) totals {
	t := totals{parts: map[string]map[string]int{}}
	m := totalsLine.FindStringSubmatch(out)
	if m == nil {
		return t
	}
	t.seeds, _ = strconv.Atoi(m[1])
	t.events, _ = strconv.Atoi(m[2])
	part := ""
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if m := partLine.FindStringSubmatch(line); m != nil {
			part = m[1]
			t.parts[part] = map[string]int{}
		} else if m := countLine.FindStringSubmatch(line); m != nil && part != "" {
			t.parts[part][m[1]], _ = strconv.Atoi(m[2])
		}
	}
	return t
}

func (t *totals) add(other totals) {
	t.seeds += other.seeds
	t.events += other.events
	for part, counts := range other.parts {
		if t.parts[part] == nil {
			t.parts[part] = map[string]int{}
		}
		for name, n := range counts {
			t.parts[part][name] += n
		}
	}
}

// text is the totals, which took so much of the processors.
func (t *totals) text(cpu time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds, %d events, %.0f events per CPU second\n", t.seeds, t.events, float64(t.events)/max(cpu.Seconds(), 1e-9))
	for _, part := range slices.Sorted(maps.Keys(t.parts)) {
		fmt.Fprintf(&b, "%s, and how many of them in a million events:\n", part)
		for _, name := range slices.Sorted(maps.Keys(t.parts[part])) {
			n := t.parts[part][name]
			fmt.Fprintf(&b, "  %-46s %9d %8d\n", name, n, n*1_000_000/max(t.events, 1))
		}
	}
	return b.String()
}

// runAll runs seeds of the code as it is, in several processes, and says what
// happened in them.
func (l *lab) runAll(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu   sync.Mutex
		sum  = totals{parts: map[string]map[string]int{}}
		cpu  time.Duration
		next = l.from
		end  = l.from + l.seeds
		all  sync.WaitGroup
	)
	for range l.processes {
		all.Go(func() {
			for {
				mu.Lock()
				s := span{next, min(chunk, end-next)}
				next += s.n
				mu.Unlock()
				if s.n == 0 || ctx.Err() != nil {
					return
				}
				r := l.simulate(ctx, l.clean, s)
				mu.Lock()
				switch {
				case ctx.Err() != nil:
				case r.failed:
					cancel(fmt.Errorf("seed %d fails: %s\nreplay it with: go test -run 'TestSim$' ./server -seed=%d -show", r.seed, r.judge+r.crash, r.seed))
				case r.totals.seeds == 0:
					cancel(fmt.Errorf("TestSim has printed no totals for seeds %d to %d", s.from, s.from+s.n-1))
				}
				sum.add(r.totals)
				cpu += r.cpu
				mu.Unlock()
			}
		})
	}
	all.Wait()
	fmt.Print(sum.text(cpu))
	return context.Cause(ctx)
}
