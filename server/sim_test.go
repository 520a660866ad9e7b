package server

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The simulation: a server as production makes it, on a simulated kernel, with
// clients, backends, hooks and a bus that do what comes to their minds. One seed
// decides everything. docs/simulation.md says how to replay a seed, how to make
// it shorter, and how to add to it.
//
//	go test -run TestSim ./server -seed=17

var (
	simSeed   = flag.Int64("seed", -1, "run this seed of TestSim alone")
	simFrom   = flag.Uint64("from", 0, "the first seed of TestSim")
	simSeeds  = flag.Uint64("seeds", 0, "how many seeds TestSim runs; 0 is for 200, or 20 with -short")
	simSkip   = flag.String("skip", "", "steps of the seed that are left out, as 3-7,12")
	simSteps  = flag.Int("steps", 0, "run a seed only so far; 0 is for to its end")
	simShow   = flag.Bool("show", false, "print every step of the seed")
	simShrink = flag.Bool("shrink", true, "make a seed that fails shorter")
	simStats  = flag.Bool("stats", false, "print how many events there were, and the share of each fault")
)

// TestSim runs seeds. The first that fails is made shorter, and is printed with
// the command that replays it.
func TestSim(t *testing.T) {
	first, n := *simFrom, *simSeeds
	if n == 0 {
		if n = 200; testing.Short() {
			n = 20
		}
	}
	if *simSeed >= 0 {
		first, n = uint64(*simSeed), 1
	}
	began, total := cpuTime(), simTotals{faults: map[string]int{}, steps: map[string]int{}}
	for seed := first; seed < first+n; seed++ {
		ok := t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			w := runSeed(t, seed, parseSkip(*simSkip), *simSteps)
			total.add(w)
			if w.failure != nil {
				t.Errorf("%v", w.report())
			}
		})
		if !ok {
			if *simShrink && *simSkip == "" {
				t.Log(shrink(seed))
			}
			return
		}
	}
	if *simStats {
		fmt.Print(total.String(cpuTime() - began))
	}
}

// runSeed runs one seed in a bubble of its own.
func runSeed(t *testing.T, seed uint64, skip map[int]bool, steps int) (w *world) {
	synctest.Test(t, func(*testing.T) {
		w = newWorld(seed)
		w.skip, w.steps = skip, steps
		w.Show = *simShow
		w.live()
	})
	return w
}

// TestSimIsTheSameEverywhere compares the traces of some seeds with those of the
// machine on which they were first run. They change with the server and with the
// simulation: -update writes them anew.
func TestSimIsTheSameEverywhere(t *testing.T) {
	const file = "testdata/sim_traces.txt"
	var got strings.Builder
	for seed := range uint64(10) {
		w := runSeed(t, seed, nil, 0)
		fmt.Fprintf(&got, "%d %016x\n", seed, w.Trace)
	}
	if *updateTraces {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the traces are\n%snot\n%sIf the server or the simulation has changed: go test -run TestSimIsTheSameEverywhere ./server -update", got.String(), want)
	}
}

var updateTraces = flag.Bool("update", false, "write testdata/sim_traces.txt")

// simTotals is what all seeds together were.
type simTotals struct {
	seeds, events int
	faults, steps map[string]int
}

func (s *simTotals) add(w *world) {
	s.seeds++
	s.events += w.events()
	for name, n := range w.Seen.Faults {
		s.faults[name] += n
	}
	for name, n := range w.happened {
		s.steps[name] += n
	}
}

// cpuTime is what this process has had of all cores.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// String tells of all seeds, which took d of one core.
func (s *simTotals) String(d time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds, %d events, %.0f a second and core\n", s.seeds, s.events, float64(s.events)/d.Seconds())
	for _, part := range []struct {
		name string
		of   map[string]int
	}{{"faults", s.faults}, {"happenings", s.steps}} {
		fmt.Fprintf(&b, "%s, and how many of them in a million events:\n", part.name)
		for _, name := range slices.Sorted(maps.Keys(part.of)) {
			fmt.Fprintf(&b, "  %-46s %9d %8d\n", name, part.of[name], part.of[name]*1_000_000/max(s.events, 1))
		}
	}
	return b.String()
}

// parseSkip reads -skip.
func parseSkip(list string) map[int]bool {
	skip := map[int]bool{}
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		b := a
		if isRange {
			b, _ = strconv.Atoi(to)
		}
		for ; a <= b; a++ {
			skip[a] = true
		}
	}
	return skip
}

// formatSkip is the reverse of parseSkip.
func formatSkip(skip map[int]bool) string {
	var parts []string
	all := slices.Sorted(maps.Keys(skip))
	for i := 0; i < len(all); {
		j := i
		for j+1 < len(all) && all[j+1] == all[j]+1 {
			j++
		}
		if j > i {
			parts = append(parts, fmt.Sprintf("%d-%d", all[i], all[j]))
		} else {
			parts = append(parts, strconv.Itoa(all[i]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}
