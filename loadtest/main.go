//go:build linux

// Command loadtest loads WebSocket servers and tells what they do: how many
// connections, how fast, at what memory each; how long a message takes to the
// last of them; what a push to one of them costs; how long an answer takes; how
// long until all are back after they were dropped. It opens raw sockets from
// its own epoll loops, sends when a message is due and not when the server is
// ready for it, and says what it does not know. Every scenario can be told as a
// multiple of a bare loop of system calls that does the same work (--floor).
//
// Here are the commands, signals, exit statuses, and the two processes that the
// rooms in loadtest/internal start this program for:
//
//	scenario   the questions with their flags, and a run of one of them
//	api        messages and pushes that are sent over HTTP
//	generator  the connections, in worker processes
//	report     what is told, and how
//	machine    what the machine and its processes are and use
//	usage      the error of a command line that cannot be obeyed
//
// A room imports those below it alone, and none imports Tocsin's server.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/tocsin-push/tocsin/internal/floor"
	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/scenario"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// cli is the command line.
type cli struct {
	Connect   scenario.Connect   `cmd:"" help:"Open connections: how many, how fast, at what memory each?"`
	Broadcast scenario.Broadcast `cmd:"" help:"Publish messages: how long until the last connection has one?"`
	Push      scenario.Push      `cmd:"" help:"Push to single users over HTTP: what does one cost, and how long until the user has it?"`
	Echo      scenario.Echo      `cmd:"" help:"Some connections talk, the others are idle: how long does an answer take?"`
	Herd      scenario.Herd      `cmd:"" help:"All connections are dropped and come back: how long does that take?"`
	Soak      scenario.Soak      `cmd:"" help:"All of it in one run, for a million: connect, hold, broadcast, a herd, broadcast again; nothing may be lost."`
	Floor     scenario.Floor     `cmd:"" help:"What this machine's kernel charges for the same work done by a bare loop."`
	Bench     scenario.Bench     `cmd:"" help:"Start tocsin and hold its memory and CPU against the bare loop."`

	Worker      workerCmd      `cmd:"" hidden:""`
	FloorServer floorServerCmd `cmd:"" hidden:""`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	os.Exit(run(ctx, os.Args[1:], scenario.Streams{Out: os.Stdout, Err: os.Stderr}))
}

// run runs one command and returns the exit status: 1 if what was wanted did
// not happen, 2 if it cannot be wanted so.
func run(ctx context.Context, args []string, std scenario.Streams) int {
	var c cli
	exit := -1
	parser, err := kong.New(&c, kong.Name("loadtest"), kong.Writers(std.Out, std.Err),
		kong.Description("Loads WebSocket servers, and tells what they do."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Exit(func(code int) { exit = code }))
	if err != nil {
		panic(err) // the tags above are wrong
	}
	parsed, err := parser.Parse(args)
	if exit >= 0 { // --help
		return exit
	}
	if err != nil {
		fmt.Fprintf(std.Err, "loadtest: %s; see loadtest --help\n", err)
		return 2
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(std)
	if err == nil {
		return 0
	}
	fmt.Fprintf(std.Err, "loadtest: %s\n", err)
	if _, usage := errors.AsType[usage.Error](err); usage {
		return 2
	}
	return 1
}

// workerCmd is a worker process.
type workerCmd struct{}

func (*workerCmd) Run(ctx context.Context) error {
	defer endWith(ctx)()
	return generator.Work(os.Stdin, os.Stdout)
}

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

// endWith ends the process when ctx ends: one that is asked to end itself has
// nobody to report to.
func endWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { os.Exit(1) })
}
