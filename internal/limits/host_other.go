//go:build !linux

package limits

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// host returns a system of which only the Go runtime's part is known.
func host() system {
	return system{root: os.DirFS("/"), soft: -1, hard: -1, procs: runtime.GOMAXPROCS(0)}
}

// Raise is for Linux.
func Raise() error {
	return fmt.Errorf("limits: raise RLIMIT_NOFILE: %w", errors.ErrUnsupported)
}
