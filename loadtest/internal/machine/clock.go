//go:build linux

package machine

import (
	"time"

	"golang.org/x/sys/unix"
)

// clockBase ties Go's monotonic reading, which costs no system call, to the
// clock that other Processes read.
var clockBase, clockStart = func() (int64, time.Time) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // the kernel has no clock
	}
	return ts.Nano(), time.Now()
}()

// Now returns CLOCK_MONOTONIC in nanoseconds, which every process of the
// machine reads alike.
func Now() int64 { return clockBase + int64(time.Since(clockStart)) }
