//go:build linux

package machine

import "testing"

func TestCommandLineHidesKeys(t *testing.T) {
	got := CommandLine("loadtest", []string{"x", "--url", "ws://h/?a={n}", "--api-key", "secret", "--api-key=secret"})
	if want := "loadtest --url 'ws://h/?a={n}' --api-key … --api-key=…"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
