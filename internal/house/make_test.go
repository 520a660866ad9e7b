package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// withCommands returns a directory for PATH that has these commands alone.
func withCommands(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestMakeWithoutGoBlamesGo, and nothing else.
func TestMakeWithoutGoBlamesGo(t *testing.T) {
	path := withCommands(t, "make", "bash")
	for _, target := range []string{"run", "build", "test"} {
		cmd := exec.Command(filepath.Join(path, "make"), "SHELL="+filepath.Join(path, "bash"), target)
		cmd.Dir, cmd.Env = root, []string{"PATH=" + path}
		out, err := cmd.CombinedOutput()
		if first, _, _ := strings.Cut(string(out), "\n"); err == nil || !strings.Contains(first, "Go is missing") || strings.Contains(string(out), "compiler") {
			t.Errorf("make %s: %v, %s", target, err, out)
		}
	}
}

// TestMillionAsksBeforeItInstalls: without a terminal and without YES=1 nothing
// is installed.
func TestMillionAsksBeforeItInstalls(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root could install")
	}
	path := withCommands(t, "sh", "dirname", "mkdir", "id", "uname")
	installed := filepath.Join(t.TempDir(), "installed")
	apt := "#!/bin/sh\n: >" + installed + "\n"
	if err := os.WriteFile(filepath.Join(path, "apt-get"), []byte(apt), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(path, "sh"), "loadtest/vm/build.sh")
	cmd.Dir, cmd.Env = root, []string{"PATH=" + path, "CACHE=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "YES=1") {
		t.Errorf("%v, %s", err, out)
	}
	if _, err := os.Stat(installed); err == nil {
		t.Error("it ran apt-get")
	}
}
