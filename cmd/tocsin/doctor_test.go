package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestDoctor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("limits are known on Linux")
	}
	file := filepath.Join(t.TempDir(), "tocsin.yaml")
	if err := os.WriteFile(file, []byte("max-connections: 1000000001\nmax-topics: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args     string
		status   int
		out, err string // words of the last lines
	}{
		{"doctor --connections 1", 0, "everything is enough for 1 connections", ""},
		{"doctor --connections 1000000000", 1, " decides", "too small for 1,000,000,000 connections"},
		{"doctor --config " + file, 1, " decides", "too small for 1,000,000,001 connections"},
		{"doctor --connections 1 --config " + file, 0, "everything is enough for 1 connections", ""},
		{"doctor --connections 0", 2, "", "connections is"},
	} {
		got := tocsin(t, "", strings.Fields(c.args)...)
		if got.status != c.status || !strings.Contains(got.out, c.out) || !strings.Contains(got.err, c.err) {
			t.Errorf("%s: status %d, printed %q and %q", c.args, got.status, got.out, got.err)
		}
	}
}

// TestDoctorNamesTheCommand wants a line for each limit, and in one that is too
// small what it allows and what raises it.
func TestDoctorNamesTheCommand(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("limits are known on Linux")
	}
	got := tocsin(t, "", "doctor", "--connections", "1073741822")
	for _, want := range []string{"LimitNOFILE=1073742078", "--ulimit nofile=1073742078:1073742078", "Kubernetes  no field of a pod"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("no %q in %q", want, got.out)
		}
	}
	for line := range strings.Lines(got.out) {
		if strings.HasPrefix(line, "LOW  RLIMIT_NOFILE hard") {
			for _, want := range []string{"of 1,073,742,078 needed", "enough for ", "prlimit --pid $$ --nofile=1073742078:1073742078"} {
				if !strings.Contains(line, want) {
					t.Errorf("no %q in %q", want, line)
				}
			}
			return
		}
	}
	t.Errorf("no line for the hard descriptor limit in %q", got.out)
}
