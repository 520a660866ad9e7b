//go:build linux

package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/api"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// tocsin is a server that the bench started.
type tocsin struct {
	*subject
	publisher api.Publisher
	idle      machine.Memory // before the first connection
	routines  float64        // and its goroutines then
	said      *lastLine
	ended     chan string // how, when it did
}

// goroutines is what tocsin's metrics call them.
const goroutines = "go_goroutines"

// lastLine keeps the last whole line that is written to it.
type lastLine struct {
	mu         sync.Mutex
	half, line []byte
}

func (l *lastLine) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.half = append(l.half, b...)
	if end := bytes.LastIndexByte(l.half, '\n'); end >= 0 {
		start := bytes.LastIndexByte(l.half[:end], '\n') + 1
		l.line = append(l.line[:0], l.half[start:end]...)
		l.half = append(l.half[:0], l.half[end+1:]...)
	}
	return len(b), nil
}

// blame adds to an error what tocsin said last, and how it ended if it did.
func (t *tocsin) blame(err error) error {
	if err == nil {
		return nil
	}
	select {
	case end := <-t.ended:
		t.ended <- end
		err = fmt.Errorf("%w; tocsin ended: %s", err, end)
	case <-time.After(time.Second): // a process that dies takes its time with its sockets
	}
	t.said.mu.Lock()
	defer t.said.mu.Unlock()
	if len(t.said.line) == 0 {
		return err
	}
	return fmt.Errorf("%w; it said last: %s", err, t.said.line)
}

// launcher starts tocsin.
type launcher struct {
	file     string
	env      []string
	cpu      int // -1 is anywhere
	progress *report.Progress
}

// start starts tocsin on free ports, and opens and closes a few connections.
func (l *launcher) start(ctx context.Context, query string, warm int) (*tocsin, error) {
	listen, err := freeAddr()
	if err != nil {
		return nil, err
	}
	at, err := freeAddr()
	if err != nil {
		return nil, err
	}
	t := &tocsin{said: &lastLine{}, ended: make(chan string, 1), publisher: api.Publisher{
		Address: api.Address{API: "http://" + at, APIKey: "bench"}, Topic: "shared", Size: 128, Late: time.Minute,
	}}
	cmd := exec.Command(l.file, "serve", "--listen", listen, "--api-listen", at, "--api-key", "bench", "--dev", "--ping-interval", "0s")
	cmd.Env = append(append(os.Environ(), "GOMAXPROCS=2"), l.env...) // bound to one CPU, Go would take 1
	cmd.Stdout, cmd.Stderr = t.said, t.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not meant for it
	if err := machine.StartOn(l.cpu, cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.file, err)
	}
	t.subject = &subject{Result: report.NewResult("tocsin", "ws://"+listen+"/ws"+query), pids: machine.Processes{cmd.Process.Pid}}
	t.stop = func() {
		_ = cmd.Process.Kill() // a drain would take half a minute
		<-t.ended
	}
	go func() {
		_ = cmd.Wait() // ProcessState tells
		t.ended <- cmd.ProcessState.String()
	}()
	if err := errors.Join(l.ready(ctx, t, warm), ctx.Err()); err != nil {
		t.stop()
		return nil, t.blame(err)
	}
	return t, nil
}

// ready waits for tocsin to listen and warms it up.
func (l *launcher) ready(ctx context.Context, t *tocsin, warm int) error {
	s := newSession(l.progress, warm, t.subject)
	if err := s.aim(ctx, t.subject); err != nil {
		return err
	}
	if err := aim(&t.publisher, s, t.subject, 1); err != nil {
		return err
	}
	if err := until(ctx, 10*time.Second, func() error { return t.targets[0].Probe(ctx, false) }); err != nil {
		return fmt.Errorf("tocsin does not serve: %w", err)
	}
	if _, err := s.open(ctx, t.subject); err != nil {
		return err
	}
	t.fleet.Close()
	t.fleet = nil
	err := errors.Join(t.empty(ctx), t.quiet(ctx))
	if err != nil {
		return err
	}
	if t.routines, err = t.publisher.Metric(ctx, goroutines); err != nil {
		return err
	}
	t.idle, err = t.pids.Memory()
	return err
}

// empty waits until the last connection is gone at tocsin too.
func (t *tocsin) empty(ctx context.Context) error {
	return until(ctx, time.Minute, func() error {
		open, err := t.publisher.Metric(ctx, "tocsin_connections")
		if err == nil && open > 0 {
			return fmt.Errorf("tocsin still has %s connections after their clients closed them", report.Thousands(open))
		}
		return err
	})
}

// until tries something again and again, and returns why it still fails after
// limit.
func until(ctx context.Context, limit time.Duration, try func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
