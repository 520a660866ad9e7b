// Package limits tells how many connections this machine and this process
// allow, which limit decides that, and the command that raises it. It is asked
// before the first connection is opened, because a limit that is met in the
// middle shows as a refused connect far away from its cause.
//
// Only Linux is read; elsewhere [Check] tells what the Go runtime knows.
package limits

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// Side is which ends of the connections live on this machine.
type Side int

// The sides of a connection.
const (
	Server Side = 1
	Client Side = 2
	Both        = Server | Client
)

// Need is what somebody is about to open.
type Need struct {
	Connections int // all together
	// Processes is how many processes of one side share the connections. Zero
	// means one.
	Processes int
	// Sources is how many pairs of a client's address and a server's address
	// and port there are; each pair has a port range of its own. Zero means one.
	Sources int
	Side    Side // zero means Server
}

// Unbounded is [Finding.Allows] of a limit that costs speed, not connections.
const Unbounded = math.MaxInt

// Finding is one limit held against a [Need].
type Finding struct {
	Name   string `json:"name"`   // as the system calls it: fs.nr_open
	Unit   string `json:"unit"`   // of Have and Need
	Have   int64  `json:"have"`   // what is left of the limit
	Need   int64  `json:"need"`   // what the connections take of it
	Allows int    `json:"allows"` // how many connections it allows, or Unbounded
	Effect string `json:"effect"` // what happens beyond it
	Fix    string `json:"fix"`    // the command that raises it to Need
	OK     bool   `json:"ok"`
}

// String returns the finding in one line for people.
func (f Finding) String() string {
	have := f.amount(f.Have)
	if f.Unit != "bytes" {
		have += " " + f.Unit
	}
	switch {
	case f.OK && f.Allows == Unbounded:
		return fmt.Sprintf("%s: %s, enough", f.Name, have)
	case f.OK:
		return fmt.Sprintf("%s: %s, enough for %s connections", f.Name, have, Group(int64(f.Allows)))
	case f.Allows == Unbounded:
		return fmt.Sprintf("%s: %s where %s would do: %s; raise it: %s", f.Name, have, f.amount(f.Need), f.Effect, f.Fix)
	}
	return fmt.Sprintf("%s: %s of %s needed, enough for %s connections, then %s; raise it: %s",
		f.Name, have, f.amount(f.Need), Group(int64(f.Allows)), f.Effect, f.Fix)
}

func (f Finding) amount(n int64) string {
	switch {
	case n >= unlimited:
		return "unlimited"
	case f.Unit == "bytes":
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return Group(n)
}

// Tightest returns the finding that allows the fewest connections, the one
// that decides. It is the zero Finding if no limit could be read.
func Tightest(findings []Finding) Finding {
	var least Finding
	for _, f := range findings {
		if f.Allows != Unbounded && (least.Name == "" || f.Allows < least.Allows) {
			least = f
		}
	}
	return least
}

// Report writes one line for each finding, and one that says which decides.
func Report(w io.Writer, findings []Finding) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		mark := "ok"
		if !f.OK {
			mark = "LOW"
		}
		name, rest, _ := strings.Cut(f.String(), ": ")
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\n", mark, name, rest) // Flush tells
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("limits: write report: %w", err)
	}
	if least := Tightest(findings); least.Name != "" {
		if _, err := fmt.Fprintf(w, "%s connections are possible; %s decides\n", Group(int64(least.Allows)), least.Name); err != nil {
			return fmt.Errorf("limits: write report: %w", err)
		}
	}
	return nil
}

// Group returns n with a comma between thousands.
func Group(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
