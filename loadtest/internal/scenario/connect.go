//go:build linux

package scenario

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// Connect asks: how many, how fast, at what memory each?
type Connect struct {
	common
	Hold time.Duration `default:"2s" help:"Keep the connections open so long before memory is read."`
}

// Run opens the connections, holds them, and writes the report.
func (cmd *Connect) Run(ctx context.Context, std Streams) error {
	return execute(ctx, "connect", cmd.common, std.Out, std.Err, nil, cmd.measure)
}

func (cmd *Connect) measure(ctx context.Context, s *session) error {
	for _, sub := range s.subjects {
		// One after the other: they would meet in the kernel's caches otherwise.
		if err := cmd.one(ctx, s, sub); err != nil {
			return err
		}
		if len(s.subjects) > 1 && sub == s.subjects[0] {
			s.closing(sub)
			sub.fleet.Close()
			sub.fleet = nil
		}
	}
	return nil
}

func (cmd *Connect) one(ctx context.Context, s *session, sub *subject) error {
	empty, err := s.connect(ctx, sub)
	if err != nil {
		return err
	}
	return s.settle(ctx, sub, empty, cmd.Hold)
}

// footprint is the memory that a subject and the kernel have in use.
type footprint struct {
	machine.Memory
	slabs map[string]machine.Slab // nil if the kernel does not tell
	err   error                   // why
}

func (sub *subject) footprint() (f footprint, err error) {
	if f.Memory, err = sub.pids.Memory(); err != nil {
		return f, err
	}
	f.slabs, f.err = machine.ReadSlabs()
	return f, nil
}

// connect opens the connections, and returns the footprint before the first.
func (s *session) connect(ctx context.Context, sub *subject) (empty footprint, err error) {
	if empty, err = sub.footprint(); err != nil {
		return empty, err
	}
	spent := sub.meter()
	took, err := s.open(ctx, sub)
	used := spent()
	if sub.fleet == nil {
		return empty, err
	}
	sub.Put("connect_s", took.Seconds())
	sub.Put("connects_per_s", float64(sub.first.Opened)/took.Seconds())
	if sub.first.Opened > 0 && !math.IsNaN(used) {
		sub.Put("cpu_us_per_connect", used/float64(sub.first.Opened))
	}
	sub.PutHist(generator.HistHandshake, sub.handshakes)
	sub.Put("generator_cpu_us", float64(sub.first.CPU.Microseconds())/float64(max(1, sub.first.Attempts)))
	return empty, err
}

// settle holds the connections, and tells what the memory in use grew by.
func (s *session) settle(ctx context.Context, sub *subject, empty footprint, d time.Duration) error {
	s.hold(ctx, sub, d)
	n := sub.fleet.Now().Open
	if n == 0 {
		return fmt.Errorf("%s: every connection was lost during the hold: did the server die?", sub.Name)
	}
	full, err := sub.footprint()
	if err != nil {
		return err
	}
	if len(sub.pids) > 0 {
		sub.Put("hold_bytes", float64(full.Resident))
		sub.Put("user_bytes_per_connection", float64(full.Resident-empty.Resident)/float64(n))
	}
	if err := cmp.Or(empty.err, full.err); err != nil {
		s.report.Note("kernel memory is not told: %v", err)
		return nil
	}
	sub.kernel(growth(empty.slabs, full.slabs, n))
	return ctx.Err()
}

// kernel notes what the kernel's caches grew by. Both ends are on this
// machine, so that the server's half is an estimate; nothing of it is the
// server's if the server is elsewhere.
func (sub *subject) kernel(deltas []report.Cache) {
	slices.SortFunc(deltas, func(a, b report.Cache) int { return cmp.Compare(b.Bytes, a.Bytes) })
	sub.Caches = deltas
	var all float64
	for _, d := range deltas {
		all += d.Bytes
	}
	sub.Put("kernel_bytes_per_connection", all)
	if sub.targets[0].Local() {
		sub.Put("kernel_server_bytes_per_connection", all/2)
	}
}

// growth lists the caches that grew by a byte a connection or more, and by an
// object for every hundred: others hold nothing of the connections'. Nor does
// that of /proc, which grows when somebody looks at descriptors.
func growth(before, after map[string]machine.Slab, n int) (deltas []report.Cache) {
	for name, a := range after {
		d := report.Cache{
			Name:    name,
			Objects: float64(a.Objects-before[name].Objects) / float64(n),
			Bytes:   float64(a.Bytes-before[name].Bytes) / float64(n),
		}
		if d.Bytes >= 1 && d.Objects >= 0.01 && name != "proc_inode_cache" {
			deltas = append(deltas, d)
		}
	}
	return deltas
}
