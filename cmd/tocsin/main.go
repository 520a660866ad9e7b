// Command tocsin is the push server and what belongs to it on the command line.
//
// A usage or configuration error ends it with status 2, everything else that
// goes wrong with 1, each with one sentence on standard error.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/tocsin-push/tocsin/server"
)

// cli is the whole command line. kong reads it from this declaration, help and
// defaults included, and asks one resolver for what is not on the command line,
// which is how a flag, its variable and its key in the file cannot differ.
type cli struct {
	Serve     serveCmd     `cmd:"" help:"Run the push server."`
	Publish   publishCmd   `cmd:"" help:"Send a message to the subscribers of a topic."`
	Push      pushCmd      `cmd:"" help:"Send a message to every device of a user, or to one connection."`
	Broadcast broadcastCmd `cmd:"" help:"Send a message to every connection."`

	Listen     listenCmd     `cmd:"" help:"Connect as a client and print the messages of topics."`
	Disconnect disconnectCmd `cmd:"" help:"Close the connections of a user, or one connection."`
	Doctor     doctorCmd     `cmd:"" help:"Check the limits of this machine: what is too small, and the command that raises it."`
	Token      tokenCmd      `cmd:"" help:"Print a token that lets a client in."`
	Version    versionCmd    `cmd:"" help:"Print the version."`

	ShowVersion kong.VersionFlag `name:"version" help:"Print the version."`

	Config string `help:"YAML file with settings, under the names that the flags have ($$TOCSIN_CONFIG)." placeholder:"FILE"`
}

// streams are the process's own, or a test's.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// usageError is a wrong flag, variable, file or argument: exit status 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	err := run(os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "tocsin: %s\n", strings.TrimSpace(err.Error()))
	if _, ok := errors.AsType[usageError](err); ok {
		os.Exit(2)
	}
	os.Exit(1)
}

func run(args []string, std streams) error {
	if len(args) == 0 {
		args = []string{"--help"}
	}
	var c cli
	from := newSources()
	parser, err := newParser(&c, from, std)
	if err != nil {
		return err
	}
	ctx, err := parser.Parse(args)
	if err != nil {
		return usageError{from.explain(err)}
	}
	return ctx.Run(std)
}

func newParser(c *cli, from *sources, std streams) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("tocsin"),
		kong.Description("A push server: it keeps a million mostly idle WebSocket connections on one machine and delivers messages to them."),
		kong.Writers(std.out, std.err),
		kong.Vars{"version": version()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.KindMapper(reflect.String, mapper(parseText)),
		kong.NamedMapper("count", mapper(parseCount)),
		kong.NamedMapper("size", mapper(parseSize)),
		kong.NamedMapper("duration", mapper(parseDuration)),
		kong.NamedMapper("choice", mapper(parseChoice)),
		kong.NamedMapper("address", mapper(parseAddress)),
		kong.NamedMapper("urlpath", mapper(parsePath)),
		kong.NamedMapper("url", mapper(parseURL)),
		kong.TypeMapper(reflect.TypeFor[server.OverflowRule](), mapper(parseOverflow)),
		kong.ExplicitGroups(settingGroups),
		kong.Resolvers(from),
	)
}

type versionCmd struct{}

// Run prints what the binary was built from.
func (versionCmd) Run(std streams) error {
	_, err := fmt.Fprintln(std.out, version())
	return err
}

func version() string {
	version, revision := "(devel)", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = " " + s.Value
			}
		}
	}
	return fmt.Sprintf("tocsin %s%s %s %s/%s", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
