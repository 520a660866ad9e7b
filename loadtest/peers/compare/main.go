// Compare holds Tocsin against the peers: it builds them all, runs loadtest's
// connect, broadcast and echo against each in turns, and writes a page with
// the medians.
//
//	go run ./compare --root ../.. --out docs/comparison.md
//
// Every run has a server process of its own, bound to one CPU, and the
// generator on another. Rounds are interleaved, each starting with another
// server, so that a slow minute of the machine meets all of them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings is what the command line says.
type settings struct {
	root      string
	out       string
	n         int
	rounds    int
	serverCPU int
	genCPU    int
	only      string
	force     bool
}

// published is the page of the repository.
const published = "docs/comparison.md"

func main() {
	log.SetFlags(0)
	log.SetPrefix("compare: ")
	var s settings
	flag.StringVar(&s.root, "root", "../..", "the repository")
	flag.StringVar(&s.out, "out", published, "the page to write, from the root if it is not absolute")
	flag.IntVar(&s.n, "n", 9000, "connections; the article's design takes two descriptors for each")
	flag.IntVar(&s.rounds, "rounds", 3, "runs of each scenario against each server")
	flag.IntVar(&s.serverCPU, "server-cpu", 0, "where the servers run")
	flag.IntVar(&s.genCPU, "generator-cpu", 1, "where the generator runs")
	flag.StringVar(&s.only, "only", "", "servers to compare, with commas; empty means all")
	flag.BoolVar(&s.force, "force", false, "write "+published+" from one round too")
	flag.Parse()
	if err := s.check(); err != nil {
		log.Print(err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.compare(ctx); err != nil {
		log.Print(err)
		stop()
		os.Exit(1)
	}
}

func (s *settings) check() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case s.n < 1000:
		return fmt.Errorf("-n is %d, it must be at least 1000: that many talk", s.n)
	case s.rounds < 1:
		return fmt.Errorf("-rounds is %d, it must be at least 1", s.rounds)
	case s.rounds == 1 && s.out == published && !s.force:
		return fmt.Errorf("one round cannot tell a disturbance from a difference: %s wants -rounds 2 or more, or -force; or write another page with -out", published)
	case s.serverCPU == s.genCPU || min(s.serverCPU, s.genCPU) < 0 || max(s.serverCPU, s.genCPU) >= runtime.NumCPU():
		return fmt.Errorf("-server-cpu and -generator-cpu are %d and %d, they must be two different ones of the CPUs 0 to %d",
			s.serverCPU, s.genCPU, runtime.NumCPU()-1)
	}
	for _, name := range s.names() {
		if !slices.Contains(servers, name) {
			return fmt.Errorf("-only has %q, it may have %s", name, strings.Join(servers, ", "))
		}
	}
	return nil
}

func (s *settings) names() []string {
	if s.only == "" {
		return servers
	}
	return strings.Split(s.only, ",")
}

// compare runs everything and writes the page. When ctx ends it stops without
// a page: half a comparison is none.
func (s *settings) compare(ctx context.Context) error {
	bin, err := s.build(ctx)
	if err != nil {
		return err
	}
	file := s.out
	if !filepath.IsAbs(file) {
		file = filepath.Join(s.root, file)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { // better now than after all the work
		return err
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p := page{settings: s, date: time.Now(), took: make(measurements)}
	names := s.names()
	for round := range s.rounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			for _, sc := range scenarios {
				log.Printf("round %d of %d: %s, %s", round+1, s.rounds, name, sc.title)
				r, err := s.run(ctx, bin, name, sc)
				if ctx.Err() != nil {
					return errors.New("interrupted, nothing is written")
				}
				if err != nil {
					p.fail(name, sc, err)
					continue
				}
				p.machine = r.Machine
				p.took.add(name, sc.name, r)
			}
		}
	}
	if len(p.took) == 0 {
		return errors.New("no run succeeded: " + strings.Join(p.failures, "; "))
	}
	if err := os.WriteFile(file, []byte(p.render(string(old))), 0o644); err != nil {
		return err
	}
	log.Printf("wrote %s", file)
	return nil
}

// build returns the directory that has tocsin, loadtest and peer.
func (s *settings) build(ctx context.Context) (string, error) {
	bin, err := filepath.Abs(filepath.Join(s.root, "bin", "compare"))
	if err != nil {
		return "", err
	}
	for _, b := range []struct{ dir, pkg, name string }{
		{s.root, "./cmd/tocsin", "tocsin"},
		{s.root, "./loadtest", "loadtest"},
		{filepath.Join(s.root, "loadtest", "peers"), ".", "peer"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, b.name), b.pkg)
		cmd.Dir, cmd.Stderr = b.dir, os.Stderr
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("build %s: %w", b.name, err)
		}
	}
	return bin, nil
}
