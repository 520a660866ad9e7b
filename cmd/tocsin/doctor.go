package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/tocsin-push/tocsin/internal/limits"
)

// doctorCmd asks whether this machine can hold what a server is meant to.
type doctorCmd struct {
	Connections int `type:"count" min:"1" max:"1073741822" word:"auto" default:"auto" help:"Connections to hold. auto: max-connections if that is set, or else nine tenths of what fits now, as free memory comes and goes."`

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
	var low []limits.Finding
	for _, f := range found {
		if !f.OK {
			low = append(low, f)
		}
	}
	connections := limits.Group(int64(need.Connections))
	if len(low) == 0 {
		_, err := fmt.Fprintf(std.out, "everything is enough for %s connections\n", connections)
		return err
	}
	for _, f := range low {
		if err := printForServices(std.out, f); err != nil {
			return err
		}
	}
	return fmt.Errorf("%d of %d limits are too small for %s connections", len(low), len(found), connections)
}

// printForServices writes how a service gets more of f, for whom the command for
// this shell does nothing.
func printForServices(out io.Writer, f limits.Finding) error {
	var systemd, docker, kubernetes string
	switch f.Name {
	case "RLIMIT_NOFILE hard":
		systemd = fmt.Sprintf("LimitNOFILE=%d in its unit", f.Need)
		docker = fmt.Sprintf("--ulimit nofile=%[1]d:%[1]d", f.Need)
		kubernetes = fmt.Sprintf("no field of a pod does it; LimitNOFILE=%d in the unit of the node's container runtime", f.Need)
	case "memory.max":
		bytes := f.Need + 64<<20 // what a server has without connections
		systemd = fmt.Sprintf("MemoryMax=%d in its unit", bytes)
		docker = fmt.Sprintf("--memory=%d", bytes)
		kubernetes = fmt.Sprintf("resources.limits.memory: %d", bytes)
	default:
		return nil
	}
	_, err := fmt.Fprintf(out, "%s, for a service:\n  systemd     %s\n  docker run  %s\n  Kubernetes  %s\n", f.Name, systemd, docker, kubernetes)
	return err
}
