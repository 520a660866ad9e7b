//go:build linux

package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/loadtest/internal/scenario"
)

// TestDefaultsFitFewConnections runs a scenario with less connections than
// talk by default.
func TestDefaultsFitFewConnections(t *testing.T) {
	f := newFake(t)
	f.message = (*fakeConn).say
	o := loadtest(t, "echo", "--url", f.url, "-n", "3", "--duration", "50ms", "--message-rate", "100")
	o.want(t, map[string]float64{"active": 3})
	if o.status != 0 {
		t.Errorf("echo: status %d: %s", o.status, o.err)
	}
}

// TestHelpNamesItsValues wants words in the place of Go's types.
func TestHelpNamesItsValues(t *testing.T) {
	for _, command := range []string{"connect", "broadcast", "push", "echo", "herd", "soak", "floor", "bench"} {
		var out, errs strings.Builder
		if status := run(t.Context(), []string{command, "--help"}, scenario.Streams{Out: &out, Err: &errs}); status != 0 {
			t.Errorf("%s: status %d, %s", command, status, errs.String())
		}
		if bad := regexp.MustCompile(`--\S+=(FLOAT-64|INT|STRING)\b`).FindString(out.String()); bad != "" {
			t.Errorf("%s has %s", command, bad)
		}
	}
}
