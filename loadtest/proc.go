//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuOf returns the CPU time that a process has used, all its threads that
// ever were, to the nanosecond: the clock that clock_getcpuclockid(3) names.
// /proc/PID/stat counts in hundredths of a second.
func cpuOf(pid int) (time.Duration, error) {
	const cpuClockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|cpuClockSched, &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory is what a process occupies, in bytes.
type memory struct {
	Resident int64
	Peak     int64 // the most that Resident ever was
	Threads  int64
}

func readMemory(pid int) (m memory, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, fmt.Errorf("memory of process %d: %w", pid, errors.Unwrap(err))
	}
	m.Resident = procField(status, "VmRSS:") << 10
	m.Peak = procField(status, "VmHWM:") << 10
	m.Threads = procField(status, "Threads:")
	return m, nil
}

// processes are those of one subject; what they use is told as a sum.
type processes []int

// sum adds up what is known of each.
func sum[T int64 | time.Duration](p processes, of func(pid int) (T, error)) (total T, err error) {
	for _, pid := range p {
		v, err := of(pid)
		if err != nil {
			return 0, err
		}
		total += v
	}
	return total, nil
}

// cpu returns the CPU time used so far.
func (p processes) cpu() (time.Duration, error) { return sum(p, cpuOf) }

// proportional returns the memory with shared pages divided among their users.
func (p processes) proportional() (int64, error) { return sum(p, readProportional) }

// memory returns what is occupied. Peak is a sum of moments that may differ.
func (p processes) memory() (all memory, err error) {
	for _, pid := range p {
		m, err := readMemory(pid)
		if err != nil {
			return memory{}, err
		}
		all.Resident += m.Resident
		all.Peak += m.Peak
		all.Threads += m.Threads
	}
	return all, nil
}

// commands returns how the processes were started, a line each, as far as
// that is known.
func (p processes) commands() string {
	var lines []string
	for _, pid := range p {
		if c := commandOf(pid); c != "" {
			lines = append(lines, c)
		}
	}
	return strings.Join(lines, "\n")
}

// readProportional returns a process's memory with shared pages divided among
// their users; the kernel walks all of it for that.
func readProportional(pid int) (int64, error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	return procField(rollup, "Pss:") << 10, err
}

// commandOf returns how a process was started, nothing if that is not known.
func commandOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return ""
	}
	args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	return commandLine(path.Base(args[0]), args)
}

// procField returns the number behind a name at the start of a line.
func procField(b []byte, name string) int64 {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			f := bytes.Fields(rest)
			if len(f) == 0 {
				return 0
			}
			n, _ := strconv.ParseInt(string(f[0]), 10, 64)
			return n
		}
	}
	return 0
}

// slab is what a kernel cache holds.
type slab struct {
	Objects int64
	Bytes   int64
}

// readSlabs reads /proc/slabinfo, which only root may.
func readSlabs() (map[string]slab, error) {
	f, err := os.Open("/proc/slabinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	slabs := map[string]slab{}
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
		slabs[f[0]] = slab{Objects: n[1], Bytes: n[14] * n[5] * int64(os.Getpagesize())}
	}
	return slabs, nil
}

// slabDelta is how much a cache grew for n connections.
type slabDelta struct {
	Cache   string  `json:"cache"`
	Objects float64 `json:"objects_per_connection"`
	Bytes   float64 `json:"bytes_per_connection"`
}

// growth lists the caches that grew by a byte a connection or more, and by an
// object for every hundred: others hold nothing of the connections'. Nor does
// that of /proc, which grows when somebody looks at descriptors.
func growth(before, after map[string]slab, n int) (deltas []slabDelta) {
	for name, a := range after {
		d := slabDelta{name, float64(a.Objects-before[name].Objects) / float64(n), float64(a.Bytes-before[name].Bytes) / float64(n)}
		if d.Bytes >= 1 && d.Objects >= 0.01 && name != "proc_inode_cache" {
			deltas = append(deltas, d)
		}
	}
	return deltas
}

// packetsDropped returns how many packets this machine's kernel has thrown
// away because a CPU's queue was full: loopback has no flow control, so that
// thousands of connections that send at the same moment lose some.
func packetsDropped() (n int64) {
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
