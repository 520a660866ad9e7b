//go:build linux

// Command loadtest loads WebSocket servers and tells what they do: how many
// connections, how fast, at what memory each; how long a message takes to the
// last of them; what a push to one of them costs; how long an answer takes; how long until all are back after
// they were dropped. It opens raw sockets from its own epoll loops, sends when
// a message is due and not when the server is ready for it, and says what it
// does not know. Every scenario can be told as a multiple of a bare loop of
// system calls that does the same work (--floor).
//
// The program coordinates; the sockets are held by worker processes that it
// starts, and that speak JSON lines with it (order.go). A worker is one epoll
// loop: engine.go, then in the order of a connection's life dial.go, tls.go
// where the server speaks it, read.go, deliver.go, unicast.go, talk.go,
// return.go. Pushes to single users are sent by the program itself: push.go,
// volley.go, post.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// cli is the command line.
type cli struct {
	Connect   connectCmd   `cmd:"" help:"Open connections: how many, how fast, at what memory each?"`
	Broadcast broadcastCmd `cmd:"" help:"Publish messages: how long until the last connection has one?"`
	Push      pushCmd      `cmd:"" help:"Push to single users over HTTP: what does one cost, and how long until the user has it?"`
	Echo      echoCmd      `cmd:"" help:"Some connections talk, the others are idle: how long does an answer take?"`
	Herd      herdCmd      `cmd:"" help:"All connections are dropped and come back: how long does that take?"`
	Soak      soakCmd      `cmd:"" help:"All of it in one run, for a million: connect, hold, broadcast, a herd, broadcast again; nothing may be lost."`
	Floor     floorCmd     `cmd:"" help:"What this machine's kernel charges for the same work done by a bare loop."`
	Bench     benchCmd     `cmd:"" help:"Start tocsin and hold its memory and CPU against the bare loop."`

	Worker      workerCmd      `cmd:"" hidden:""`
	FloorServer floorServerCmd `cmd:"" hidden:""`
}

// streams are where a command writes.
type streams struct{ out, err io.Writer }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	os.Exit(run(ctx, os.Args[1:], streams{os.Stdout, os.Stderr}))
}

// run runs one command and returns the exit status: 1 if what was wanted did
// not happen, 2 if it cannot be wanted so.
func run(ctx context.Context, args []string, std streams) int {
	var c cli
	exit := -1
	parser, err := kong.New(&c, kong.Name("loadtest"), kong.Writers(std.out, std.err),
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
		fmt.Fprintf(std.err, "loadtest: %s; see loadtest --help\n", err)
		return 2
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(std)
	if err == nil {
		return 0
	}
	fmt.Fprintf(std.err, "loadtest: %s\n", err)
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

// endWith ends the process when ctx ends: one that is asked to end itself has
// nobody to report to.
func endWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { os.Exit(1) })
}
