//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/api"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// floorServerCmd is the floor's process: it says where it listens and serves
// until its input ends.
type floorServerCmd struct {
	Listen string `default:"127.0.0.1:0"`
	Reply  int    `default:"16"`
}

func (cmd *floorServerCmd) Run(ctx context.Context) error {
	defer endWith(ctx)()
	addr, err := netip.ParseAddrPort(cmd.Listen)
	if err != nil {
		return usage.Errorf("--listen %s is not an address and a port", cmd.Listen)
	}
	ln, at, err := floor.Listen(addr)
	if err != nil {
		return err
	}
	if _, err := fmt.Println(at); err != nil {
		return err
	}
	return floor.Serve(ln, int(os.Stdin.Fd()), cmd.Reply)
}

// startFloor starts the floor's process on a CPU, or on any if that is
// negative.
func startFloor(cpu int) (*subject, error) {
	cmd := exec.Command("/proc/self/exe", "floor-server")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "GODEBUG=asyncpreemptoff=1") // no signals into its waits
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not meant for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := machine.StartOn(cpu, cmd); err != nil {
		return nil, fmt.Errorf("start the floor: %w", err)
	}
	stop := func() {
		in.Close()
		_ = cmd.Wait() // its end was asked for
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return nil, errors.New("the floor did not start")
	}
	at := strings.TrimSpace(line)
	sub := &subject{Result: report.NewResult("floor", "ws://"+at+"/"), pids: machine.Processes{cmd.Process.Pid}, stop: stop}
	p := api.Publisher{Trigger: "http://" + at + "/", Size: generator.MinPayload, Late: time.Hour, Wait: time.Hour}
	if err := aim(&p, &session{}, sub, 1); err != nil {
		stop()
		return nil, err
	}
	return sub, nil
}

// floorCmd asks: what does the kernel charge for the same work?
type floorCmd struct {
	N        int           `name:"n" short:"n" default:"1000" help:"Connections."`
	Rounds   int           `default:"10" help:"Messages to all of them."`
	Active   int           `default:"100" help:"Connections that talk, each when it has its answer."`
	Duration time.Duration `default:"3s" help:"So long."`
	Size     int           `default:"128" help:"Bytes of a message to all."`

	ServerCPU int `default:"-1" placeholder:"CPU" help:"Bind the floor to this CPU."`
	GenCPU    int `name:"generator-cpu" default:"-1" placeholder:"CPU" help:"Bind the generator to this CPU."`
	report.Output
}

func (cmd *floorCmd) Run(ctx context.Context, std streams) error {
	sub, err := startFloor(cmd.ServerCPU)
	if err != nil {
		return err
	}
	c := common{
		URL: sub.URL, N: cmd.N, Pid: sub.pids, Concurrency: 100, Timeout: 30 * time.Second,
		ServerCPU: -1, GenCPU: cmd.GenCPU, Output: cmd.Output,
	}
	b := broadcastCmd{
		Publisher: api.Publisher{Trigger: "http" + strings.TrimPrefix(sub.URL, "ws"), Size: cmd.Size, Late: 250 * time.Millisecond},
		Rounds:    cmd.Rounds,
	}
	e := echoCmd{talk: talk{Active: min(cmd.Active, cmd.N), Duration: cmd.Duration, Message: "ping"}, Rounds: 1}
	return execute(ctx, "floor", c, std.out, std.err, func(s *session, first *subject) error {
		first.Name, first.stop = "floor", sub.stop
		if err := e.check(cmd.N); err != nil {
			return err
		}
		return aim(&b.Publisher, s, first, b.Rounds)
	}, func(ctx context.Context, s *session) error {
		return cmd.measure(ctx, s, &b, &e)
	})
}

// measure opens the connections once and does all three kinds of work on them.
func (cmd *floorCmd) measure(ctx context.Context, s *session, b *broadcastCmd, e *echoCmd) error {
	sub := s.subjects[0]
	if err := (&connectCmd{}).one(ctx, s, sub); err != nil {
		return err
	}
	if err := b.onOpen(ctx, s); err != nil {
		return err
	}
	return e.onOpen(ctx, s)
}
