package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// span is a range of seeds.
type span struct{ from, n uint64 }

// outcome is what one process of the simulation has said.
type outcome struct {
	failed bool
	seed   uint64 // that failed, or was running at the end
	judge  string // what the judge said of it, "" if it did not come to that
	crash  string // the first line of a crash
	totals totals
	cpu    time.Duration
}

var (
	seedBegins = regexp.MustCompile(`(?m)^=== RUN +TestSim/(\d+)$`)
	judged     = regexp.MustCompile(`seed (\d+), step \d+, [^:]*: (.*)`)
	crashed    = regexp.MustCompile(`(?m)^(?:panic|fatal error|unexpected fault|SIG[A-Z]+): .*|^\s*panic: .*`)
)

// read reads what a process has said.
func read(out string) *outcome {
	r := &outcome{totals: readTotals(out)}
	if all := seedBegins.FindAllStringSubmatch(out, -1); len(all) > 0 {
		r.seed, _ = strconv.ParseUint(all[len(all)-1][1], 10, 64)
	}
	if m := judged.FindStringSubmatch(out); m != nil {
		r.seed, _ = strconv.ParseUint(m[1], 10, 64)
		r.judge = m[2]
	}
	r.crash = strings.TrimSpace(crashed.FindString(out))
	return r
}

// verdict is what became of a planted bug.
type verdict struct {
	bug     *bug
	found   bool
	seed    uint64
	after   time.Duration
	said    string // by the judge or, if it was not found, why not
	crashes int    // seeds that ended otherwise than by a judge
	seeds   uint64 // that were run
}

// chunk is how many seeds a process runs before it is asked for more.
const chunk = 40

// hunt has the simulation look for a bug: several processes run seeds, the lowest
// first, until one fails. A crash does not count: it goes on behind that seed.
func (l *lab) hunt(ctx context.Context, b *bug, binary string) (v verdict, err error) {
	h := &hunter{lab: l, binary: binary, began: time.Now(), next: l.from, v: verdict{bug: b}}
	limited, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	var all sync.WaitGroup
	for range l.processes {
		all.Go(func() { h.work(limited) })
	}
	all.Wait()
	v = h.v
	v.seeds = h.next - l.from
	switch {
	case ctx.Err() != nil:
		return v, context.Cause(ctx)
	case v.found:
		// It is the bug's failure only if the seed passes without the bug.
		if clean := l.simulate(ctx, l.clean, span{v.seed, 1}); clean.failed {
			return v, fmt.Errorf("seed %d fails without a bug: %s", v.seed, clean.judge)
		}
	case v.crashes > 0:
		v.said = "only crashes: " + v.said
	default:
		v.said = "not found"
	}
	return v, nil
}

// hunter is what the processes of a hunt share.
type hunter struct {
	*lab
	binary string
	began  time.Time

	mu   sync.Mutex
	next uint64 // the first seed that nobody has
	v    verdict
}

// work runs chunks of seeds until there is no need.
func (h *hunter) work(ctx context.Context) {
	for {
		h.mu.Lock()
		s := span{h.next, chunk}
		if h.v.found || ctx.Err() != nil {
			h.mu.Unlock()
			return
		}
		h.next += chunk
		h.mu.Unlock()
		h.run(ctx, s)
	}
}

// run runs one chunk to its end, or its first failure that a judge has told of.
func (h *hunter) run(ctx context.Context, s span) {
	for s.n > 0 {
		r := h.simulate(ctx, h.binary, s)
		if !r.failed || ctx.Err() != nil {
			return
		}
		h.mu.Lock()
		if r.judge == "" {
			h.v.crashes++
			if !h.v.found {
				h.v.said = r.crash
			}
			h.mu.Unlock()
			s = span{r.seed + 1, s.from + s.n - min(r.seed+1, s.from+s.n)}
			continue
		}
		if !h.v.found || r.seed < h.v.seed { // of two the lower, whichever was sooner
			h.v.found, h.v.seed, h.v.said, h.v.after = true, r.seed, r.judge, time.Since(h.began)
		}
		h.mu.Unlock()
		return
	}
}

// plantAll plants one bug after the other.
func (l *lab) plantAll(ctx context.Context) error {
	var all []verdict
	missed := 0
	for i := range bugs {
		b := &bugs[i]
		if !l.only.MatchString(b.name + "\n" + b.row + "\n" + b.file) {
			continue
		}
		v, err := l.plantOne(ctx, b)
		if err != nil {
			return err
		}
		if all = append(all, v); !v.found {
			missed++
		}
		fmt.Println(v.line())
	}
	if len(all) == 0 {
		return errors.New("no bug matches")
	}
	fmt.Printf("%d of %d found\n", len(all)-missed, len(all))
	if len(all) == len(bugs) {
		if err := l.writeTable(all); err != nil {
			return err
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d planted bugs were not found", missed)
	}
	return nil
}

// plantOne plants a bug and looks for it.
func (l *lab) plantOne(ctx context.Context, b *bug) (verdict, error) {
	binary, err := l.build(ctx, b)
	if ctx.Err() != nil {
		return verdict{}, context.Cause(ctx)
	}
	if err != nil {
		return verdict{bug: b, said: "does not build: " + err.Error()}, nil
	}
	return l.hunt(ctx, b, binary)
}
