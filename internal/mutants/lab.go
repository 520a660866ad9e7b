package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// bug is one that is planted: in a file the old text, which stands there once,
// becomes the new one.
type bug struct {
	name     string // what it breaks
	row      string // of docs/faults.md, if it stands there
	file     string
	old, new string
}

// plant returns the text of the bug's file with the bug in it.
func (b *bug) plant(text string) (string, error) {
	if n := strings.Count(text, b.old); n != 1 {
		return "", fmt.Errorf("%q: its old text stands %d times in %s, not once", b.name, n, b.file)
	}
	return strings.Replace(text, b.old, b.new, 1), nil
}

// lab is where bugs are planted and looked for.
type lab struct {
	options
	root  string // of the module
	tmp   string
	clean string // the test binary without a bug
}

// build builds the tests of package server, with a bug unless it is nil.
func (l *lab) build(ctx context.Context, b *bug) (binary string, err error) {
	binary = filepath.Join(l.tmp, "clean.test")
	args := []string{"test", "-c", "-vet=off", "-ldflags=-w", "-o", binary}
	if b != nil {
		overlay, err := l.overlay(b)
		if err != nil {
			return "", err
		}
		binary = filepath.Join(l.tmp, "bug.test")
		args = append(args[:len(args)-1], binary, "-overlay", overlay)
	}
	cmd := command(ctx, "go", append(args, "./server")...)
	cmd.Dir = l.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", cmp.Or(context.Cause(ctx), fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out))
	}
	return binary, nil
}

// overlay writes the bug's file, and what has the go command take it.
func (l *lab) overlay(b *bug) (file string, err error) {
	path := filepath.Join(l.root, b.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	planted, err := b.plant(string(text))
	if err != nil {
		return "", err
	}
	changed := filepath.Join(l.tmp, "bug.go")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		return "", err
	}
	file = filepath.Join(l.tmp, "overlay.json")
	return file, errors.Join(os.WriteFile(changed, []byte(planted), 0o600), os.WriteFile(file, list, 0o600))
}

// command is exec.CommandContext, whose end is that of its children too.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// simulate runs seeds of a binary, up to the first that fails.
func (l *lab) simulate(ctx context.Context, binary string, s span) *outcome {
	var out bytes.Buffer
	cmd := command(ctx, binary, "-test.run=^TestSim$", "-test.v", "-shrink=false", "-stats",
		fmt.Sprintf("-test.timeout=%ds", 20+s.n), fmt.Sprintf("-from=%d", s.from), fmt.Sprintf("-seeds=%d", s.n))
	cmd.Dir = filepath.Join(l.root, "server") // where go test runs it
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	r := read(out.String())
	r.failed = err != nil
	if cmd.ProcessState != nil {
		r.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	return r
}
