// Mutants shows what the simulation of package server (TestSim) is worth: it
// plants bugs in the production code, one at a time, and has the simulation find
// each. docs/simulation.md says what that proves, and what not.
//
//	go run ./internal/mutants              all bugs, and write docs/mutants.md
//	go run ./internal/mutants -run pong    those whose name or file matches
//	go run ./internal/mutants -none        no bug: run seeds of the code as it is
//
// It does not touch the tree: the go command is shown the changed file by an
// overlay.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

// options are those of the command line.
type options struct {
	only      *regexp.Regexp
	none      bool
	seeds     uint64
	from      uint64
	processes int
	limit     time.Duration
}

func main() {
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2) // it has been told
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = start(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("mutants", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "mutants plants bugs in package server, one at a time, and has its simulation find each: docs/simulation.md")
		f.PrintDefaults()
	}
	run := f.String("run", "", "plant only the bugs whose name, row or file matches this `regexp`, and write no table")
	f.BoolVar(&o.none, "none", false, "plant no bug: run -seeds seeds and say what happened in them")
	f.Uint64Var(&o.seeds, "seeds", 10_000, "how many seeds -none runs")
	f.Uint64Var(&o.from, "from", 0, "the first seed")
	f.IntVar(&o.processes, "n", 2, "`processes` at once; with -none, 0 is for one a core")
	f.DurationVar(&o.limit, "time", time.Minute, "how long each bug is looked for")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.only, err = regexp.Compile("(?i)" + *run); err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unexpected %q: see -h", f.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if o.processes <= 0 {
		o.processes = runtime.GOMAXPROCS(0)
	}
	return o, err
}

// start does what the options say.
func start(ctx context.Context, o options) error {
	tmp, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	l := &lab{root: root, tmp: tmp, options: o}
	if l.clean, err = l.build(ctx, nil); err != nil {
		return err
	}
	if o.none {
		return l.runAll(ctx)
	}
	return l.plantAll(ctx)
}

// moduleRoot returns the directory of go.mod, at or above the current one.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod here or above: run it in the repository")
		}
		dir = filepath.Dir(dir)
	}
}
