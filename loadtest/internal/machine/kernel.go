//go:build linux

package machine

import (
	"bufio"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Slab is what a kernel cache holds: objects in use, and the bytes of all its
// pages.
type Slab struct {
	Objects int64
	Bytes   int64
}

// ReadSlabs returns the kernel's caches by name. It reads /proc/slabinfo, which
// only root may.
func ReadSlabs() (map[string]Slab, error) {
	f, err := os.Open("/proc/slabinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	slabs := map[string]Slab{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// name active_objs num_objs objsize objperslab pagesperslab : …
		// : slabdata active_slabs num_slabs sharedavail
		f := strings.Fields(lines.Text())
		if len(f) < 16 {
			continue
		}
		var n [16]int64
		for i := range n {
			n[i], _ = strconv.ParseInt(f[i], 10, 64)
		}
		slabs[f[0]] = Slab{Objects: n[1], Bytes: n[14] * n[5] * int64(os.Getpagesize())}
	}
	return slabs, nil
}

// PacketsDropped returns how many packets this machine's kernel has thrown
// away because a CPU's queue was full: loopback has no flow control, so that
// thousands of connections that send at the same moment lose some.
func PacketsDropped() (n int64) {
	b, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) { // a line a CPU, in hexadecimal: processed dropped …
		if f := strings.Fields(line); len(f) > 1 {
			dropped, _ := strconv.ParseInt(f[1], 16, 64)
			n += dropped
		}
	}
	return n
}

// ErrnoName returns the name of the errno that a system call failed with, as
// ECONNRESET, or the error's text if it is of another kind.
func ErrnoName(err error) string {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
	}
	return err.Error()
}
