package limits

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// host returns the machine and the process this runs on.
func host() system {
	s := system{root: os.DirFS("/"), soft: -1, hard: -1, procs: runtime.GOMAXPROCS(0)}
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
		s.soft, s.hard = int64(min(r.Cur, maxLimit)), int64(min(r.Max, maxLimit))
	}
	return s
}

// Raise raises the soft descriptor limit of this process, and of the children
// it starts from now on, to the hard one.
func Raise() error {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("limits: read RLIMIT_NOFILE: %w", err)
	}
	r.Cur = r.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("limits: raise RLIMIT_NOFILE to %d: %w", r.Max, err)
	}
	return nil
}
