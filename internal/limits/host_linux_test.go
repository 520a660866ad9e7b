package limits

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestRaise(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	if s := host(); s.soft != 256 || s.hard != int64(min(before.Max, maxLimit)) {
		t.Fatalf("the limits are read as %d and %d, want 256 and %d", s.soft, s.hard, before.Max)
	}
	if err := Raise(); err != nil {
		t.Fatal(err)
	}
	if s := host(); s.soft != s.hard {
		t.Errorf("raised to %d, want %d", s.soft, s.hard)
	}
}

func TestThisMachineIsRead(t *testing.T) {
	found := Check(Need{Connections: 1, Side: Both})
	for _, name := range []string{"fs.nr_open", "RLIMIT_NOFILE hard", "fs.file-max", "MemAvailable", "net.ipv4.ip_local_port_range"} {
		if f := finding(t, found, name); !f.OK {
			t.Errorf("one connection does not fit: %s", f)
		}
	}
}
