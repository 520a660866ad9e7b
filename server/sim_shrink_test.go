package server

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
)

// shrink leaves out steps of a seed that fails, as many as it can, so that it
// still fails. Each attempt is a process of its own: one that hangs or crashes
// takes nothing with it.
func shrink(seed uint64) string {
	var first string
	fails := func(skip map[int]bool, steps int) bool {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSim$", "-test.timeout=20s", "-shrink=false",
			"-seed="+strconv.FormatUint(seed, 10), "-skip="+formatSkip(skip), "-steps="+strconv.Itoa(steps))
		out, err := cmd.CombinedOutput()
		what := verdict(out)
		if first == "" {
			first = what
		}
		return err != nil && what != "" && what == first
	}
	if !fails(nil, simLength) {
		return "it does not fail again in a process of its own"
	}
	last := simLength
	for n := last / 2; n > 0; n /= 2 { // what comes behind the failure is not needed
		for last > n && fails(nil, last-n) {
			last -= n
		}
	}
	skip := map[int]bool{}
	for size := max(last/2, 1); size > 0; size /= 2 {
		for from := 0; from < last; from += size {
			more := map[int]bool{}
			for step := range skip {
				more[step] = true
			}
			for step := from; step < min(from+size, last); step++ {
				more[step] = true
			}
			if len(more) > len(skip) && fails(more, last) {
				skip = more
			}
		}
		if size == 1 {
			break
		}
	}
	return fmt.Sprintf("%d of %d steps are enough: go test -run 'TestSim$' ./server -seed=%d -steps=%d -skip=%s -show", last-len(skip), simLength, seed, last, formatSkip(skip))
}

// verdict returns the beginning of what a judge has said in the output of a test,
// without its numbers: a shorter seed that fails for another reason is another
// failure.
func verdict(out []byte) string {
	m := said.FindSubmatch(out)
	if m == nil {
		return ""
	}
	what := digits.ReplaceAll(m[1], nil)
	return string(what[:min(len(what), 40)])
}

var (
	said   = regexp.MustCompile(`seed \d+, step \d+, [^:]*: (.*)`)
	digits = regexp.MustCompile(`[0-9]+`)
)
