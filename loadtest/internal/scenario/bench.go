//go:build linux

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// Bench starts tocsin and holds it against the bare loop, row by row.
type Bench struct {
	Tocsin    string        `required:"" type:"existingfile" placeholder:"FILE" help:"The tocsin program."`
	N         []int         `name:"n" short:"n" default:"1000,15000" help:"Connections; every row is measured for each."`
	Row       []string      `enum:"memory,own-topic,idle,delivery,saturated,rate,push,connect" default:"memory,own-topic,idle,delivery,saturated,rate,push,connect" help:"What to measure."`
	Rounds    int           `default:"7" help:"Of every CPU row, floor and tocsin in turns; the median counts."`
	Active    int           `default:"1000" help:"Connections that talk in the rows saturated and rate."`
	Settle    time.Duration `default:"10s" help:"Between the last connect and the reading of memory."`
	Duration  time.Duration `default:"2s" help:"Of one round of talk."`
	ServerCPU int           `default:"0" placeholder:"CPU" help:"Where tocsin and the floor run; -1 is anywhere."`
	GenCPU    int           `name:"generator-cpu" default:"1" placeholder:"CPU" help:"Where the generator runs; -1 is anywhere."`
	Env       []string      `placeholder:"NAME=VALUE" help:"More environment for tocsin."`
	JSON      bool          `name:"json" help:"Print the rows as JSON."`
	Trace     bool          `help:"Tell every round on standard error."`
}

// Run starts tocsin, measures the rows, and writes them. A bar that is missed is no
// error.
func (cmd *Bench) Run(ctx context.Context, std Streams) error {
	if cmd.Rounds < 1 || cmd.Active < 1 || cmd.Duration <= 0 || slices.Min(cmd.N) < 1 {
		return usage.Errorf("--n, --rounds, --active and --duration must be at least 1")
	}
	if max(cmd.ServerCPU, cmd.GenCPU) >= runtime.NumCPU() {
		return usage.Errorf("this machine has the CPUs 0 to %d: see --server-cpu and --generator-cpu", runtime.NumCPU()-1)
	}
	if cmd.GenCPU >= 0 {
		if err := machine.Pin(os.Getpid(), cmd.GenCPU); err != nil {
			return err
		}
	}
	b := &benchRun{Bench: cmd, progress: report.NewProgress(std.Err), status: std.Err}
	b.launch = launcher{file: cmd.Tocsin, env: cmd.Env, cpu: cmd.ServerCPU, progress: b.progress}
	var err error
	for _, n := range cmd.N {
		if err = b.size(ctx, n); err != nil {
			break
		}
	}
	b.progress.End()
	b.growth()
	if ctx.Err() != nil {
		err = errors.New("interrupted; the rows are what was measured until then")
	}
	told := report.Bench{Machine: machine.This(), Rows: b.rows}
	tell := told.WriteTable
	if b.JSON {
		tell = told.WriteJSON
	}
	return errors.Join(tell(std.Out), err)
}

// benchRun is one run of it.
type benchRun struct {
	*Bench
	progress *report.Progress
	status   io.Writer
	launch   launcher
	rows     []report.Row
}

func (b *benchRun) has(rows ...string) bool {
	return slices.ContainsFunc(rows, func(row string) bool { return slices.Contains(b.Row, row) })
}

// size measures the rows for n connections: memory on servers that nobody has
// talked to, then CPU on one more.
func (b *benchRun) size(ctx context.Context, n int) error {
	if b.has("memory", "idle") {
		if err := b.memory(ctx, n, "memory", "?user=user-{n}&topics=shared", 200); err != nil {
			return err
		}
	}
	if b.has("own-topic") {
		if err := b.memory(ctx, n, "own-topic", "?user=user-{n}&topics=shared,own-{n}", 320); err != nil {
			return err
		}
	}
	if b.has("delivery", "saturated", "rate", "push", "connect") {
		return b.work(ctx, n)
	}
	return nil
}

// memory opens n connections and reads what the server grew by, a while after
// the last. A few connections come and go before that: what the first ones
// make a server load and build is not a connection's.
func (b *benchRun) memory(ctx context.Context, n int, row, query string, bar float64) error {
	t, err := b.launch.start(ctx, query, min(n, 64))
	if err != nil {
		return err
	}
	defer t.stop()
	s := newSession(b.progress, n, t.subject)
	defer s.close()
	s.subjects[0].stop = nil
	if _, err := s.open(ctx, t.subject); err != nil {
		return t.blame(err)
	}
	s.hold(ctx, t.subject, b.Settle)
	after, err := t.pids.Memory()
	if err = errors.Join(err, ctx.Err(), t.alive(), t.complete(n)); err != nil {
		return t.blame(err)
	}
	if b.has(row) {
		what := map[string]string{"memory": "memory a connection: user and shared topic", "own-topic": "memory a connection: a topic of its own too"}[row]
		b.add(report.Row{Row: row, N: n, What: what, Unit: "B", Measured: float64(after.Resident-t.idle.Resident) / float64(n), Bar: bar})
	}
	if row != "memory" || !b.has("idle") {
		return nil
	}
	// Under a tenth of a percent, a server has nothing to do; its runtime looks
	// around now and then.
	b.add(report.Row{Row: "idle", N: n, What: "CPU while idle, pings off", Unit: "%", Measured: t.Values["idle_cpu_percent"], Bar: 0.1})
	routines, err := t.publisher.Metric(ctx, goroutines)
	if err != nil {
		return err
	}
	b.add(report.Row{Row: "idle", N: n, What: "goroutines more than with none open", Unit: "", Measured: routines - t.routines, Bar: 4})
	return nil
}

// work measures CPU, server and floor in turns on the same generator.
func (b *benchRun) work(ctx context.Context, n int) error {
	t, err := b.launch.start(ctx, "?user=user-{n}&topics=shared", 64)
	if err != nil {
		return err
	}
	defer t.stop()
	floor, err := startFloor(b.ServerCPU)
	if err != nil {
		return err
	}
	defer floor.stop()
	if err := newSession(b.progress, n, floor).aim(ctx, floor); err != nil {
		return err
	}
	if b.has("connect") {
		if err := b.connects(ctx, n, t, floor); err != nil {
			return t.blame(err)
		}
	}
	if !b.has("delivery", "saturated", "rate", "push") {
		return nil
	}
	s := newSession(b.progress, n, t.subject, floor)
	defer s.close()
	for _, sub := range s.subjects {
		sub.stop = nil // it has its own end above
		if _, err := s.open(ctx, sub); err != nil {
			return t.blame(err)
		}
	}
	if b.has("delivery") {
		if err := b.deliver(ctx, s, n, t); err != nil {
			return t.blame(err)
		}
	}
	if err := b.talk(ctx, s, n); err != nil {
		return t.blame(err)
	}
	if b.has("push") {
		return t.blame(b.push(ctx, s, n, t))
	}
	return nil
}

// deliver measures messages to all.
func (b *benchRun) deliver(ctx context.Context, s *session, n int, t *tocsin) error {
	cmd := Broadcast{Publisher: t.publisher, Rounds: 2 * b.Rounds}
	if err := b.measured(ctx, s, n, "delivery", "CPU of a delivery, 128 bytes to all", 1.10, cmd.onOpen); err != nil {
		return err
	}
	v := t.Values
	b.add(report.Row{
		Row: "delivery", N: n, What: "deliveries missing, doubled or out of order", Unit: "",
		Measured: v["missing"] + v["doubled"] + v["misordered"], Bar: 0,
	})
	return nil
}

// talk measures questions and answers, as fast as they go and at a rate.
func (b *benchRun) talk(ctx context.Context, s *session, n int) error {
	active := min(b.Active, n)
	for _, m := range []struct {
		row, what string
		rate, bar float64
	}{
		{"saturated", fmt.Sprintf("CPU of a message answered, %d active, saturated", active), 0, 1.20},
		{"rate", fmt.Sprintf("CPU of a message answered, %d active, 10,000 a second", active), 10000, 1.25},
	} {
		if !b.has(m.row) {
			continue
		}
		cmd := Echo{talk: talk{Active: active, MessageRate: m.rate, Duration: b.Duration, Message: `{"id":1,"ping":{}}`}, Rounds: b.Rounds}
		if err := b.measured(ctx, s, n, m.row, m.what, m.bar, cmd.onOpen); err != nil {
			return err
		}
	}
	return nil
}

// push measures single pushes over HTTP. There is no floor for them.
func (b *benchRun) push(ctx context.Context, s *session, n int, t *tocsin) error {
	cmd := Push{Rounds: b.Rounds, pushing: pushing{
		Address: t.publisher.Address, User: "user-{n}", Publishers: min(32, n), Size: 128, Duration: b.Duration, Wait: time.Minute,
	}}
	if err := errors.Join(cmd.onOpen(ctx, s, t.subject), ctx.Err(), t.complete(n)); err != nil {
		return err
	}
	if err := t.pushVerdict(); err != nil {
		return err
	}
	b.add(report.Row{
		Row: "push", N: n, What: fmt.Sprintf("CPU of a push over HTTP, %d keep-alive connections", cmd.Publishers), Unit: "µs",
		Measured: median(t.cpu), Bar: 45, Rounds: t.cpu,
	})
	t.cpu = nil
	return nil
}

// connects opens and closes all connections, of one after the other.
func (b *benchRun) connects(ctx context.Context, n int, t *tocsin, floor *subject) error {
	both := []*subject{t.subject, floor}
	for range b.Rounds {
		for _, sub := range both {
			s := newSession(b.progress, n, sub)
			spent := sub.meter()
			_, err := s.open(ctx, sub)
			sub.spend(spent(), sub.first.Opened)
			if err == nil {
				err = sub.complete(n)
			}
			sub.fleet.Close()
			sub.fleet = nil
			if err != nil {
				return err
			}
			if sub == t.subject {
				err = t.empty(ctx)
			}
			if err = errors.Join(err, sub.quiet(ctx)); err != nil { // the closes are not the next connect's
				return err
			}
		}
	}
	return b.compare("connect", "CPU of an accept to welcome", n, 1.80, both)
}

// measured runs a scenario on open connections and adds its row.
func (b *benchRun) measured(ctx context.Context, s *session, n int, row, what string, bar float64, scenario func(context.Context, *session) error) error {
	if err := errors.Join(scenario(ctx, s), ctx.Err()); err != nil {
		return err
	}
	for _, sub := range s.subjects {
		if err := sub.complete(n); err != nil {
			return err
		}
	}
	return b.compare(row, what, n, bar, s.subjects)
}

// compare adds a row from the rounds of the server and the floor.
func (b *benchRun) compare(row, what string, n int, bar float64, both []*subject) error {
	r := report.Row{Row: row, N: n, What: what, Unit: "µs", Bar: bar, Rounds: both[0].cpu, Floors: both[1].cpu}
	both[0].cpu, both[1].cpu = nil, nil
	if len(r.Rounds) < b.Rounds || len(r.Floors) < b.Rounds {
		return fmt.Errorf("row %s, %s connections: too short to measure: raise --duration, %s", row, report.Thousands(float64(n)), b.Duration)
	}
	r.Measured, r.Floor = median(r.Rounds), median(r.Floors)
	var ratios []float64 // of neighbours, so that a machine that slows down does not count
	for k := range min(len(r.Rounds), len(r.Floors)) {
		ratios = append(ratios, r.Rounds[k]/r.Floors[k])
	}
	r.Ratio = median(ratios)
	b.add(r)
	return nil
}

func (b *benchRun) add(r report.Row) {
	r.Met = r.Measured <= r.Bar
	if r.Floor > 0 {
		r.Met = r.Ratio <= r.Bar
	}
	b.rows = append(b.rows, r)
	if b.Trace {
		fmt.Fprintf(b.status, "%s, %d: %.2f %s, rounds %.2f, floors %.2f\n", r.What, r.N, r.Measured, r.Unit, r.Rounds, r.Floors)
	}
}

// growth adds how the ratios changed from the first to the last number of
// connections.
func (b *benchRun) growth() {
	first, last := b.N[0], b.N[len(b.N)-1]
	for _, r := range slices.Clone(b.rows) {
		for _, big := range slices.Clone(b.rows) {
			if r.Floor > 0 && big.Floor > 0 && r.N == first && big.N == last && big.N > r.N && big.Row == r.Row {
				b.add(report.Row{Row: "growth", N: last, What: "growth of the ratio of " + r.Row + " from " + report.Thousands(float64(first)), Unit: "×", Measured: big.Ratio / r.Ratio, Bar: 1.15})
			}
		}
	}
}
