package main

import (
	"cmp"
	"fmt"

	"github.com/tocsin-push/tocsin/internal/limits"
)

// doctorCmd asks whether this machine can hold what a server is meant to.
type doctorCmd struct {
	Connections int `type:"count" min:"1" max:"1073741822" word:"auto" default:"auto" help:"Connections to hold. auto: max-connections if that is set, or else nine tenths of what fits now."`

	MaxConnections int `hidden:"" group:"clients" type:"count" min:"1" max:"1073741822" word:"auto" default:"auto"`
}

// Help is shown below the usage of doctor.
func (doctorCmd) Help() string {
	return "Prints a line for each limit of this machine: what there is, how many connections that allows and, where that is too few, " +
		"the command that raises it. Exit status 0: everything is enough; 1: something is too small."
}

// Run prints the findings. It changes nothing but this process, as serve does.
func (c *doctorCmd) Run(std streams) error {
	useMachine()
	need := limits.Need{Connections: cmp.Or(c.Connections, c.MaxConnections), Side: limits.Server}
	if need.Connections == 0 {
		need.Connections = 1
		if fit := limits.Tightest(limits.Check(need)); fit.Name != "" {
			need.Connections = max(1, fit.Allows/10*9)
		}
	}
	found := limits.Check(need)
	if err := limits.Report(std.out, found); err != nil {
		return err
	}
	low := 0
	for _, f := range found {
		if !f.OK {
			low++
		}
	}
	if low > 0 {
		return fmt.Errorf("%d of %d limits are too small for %d connections", low, len(found), need.Connections)
	}
	_, err := fmt.Fprintf(std.out, "everything is enough for %d connections\n", need.Connections)
	return err
}
