//go:build linux

package machine

import (
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

// CPU returns the CPU time that a process has used, all its threads that
// ever were, to the nanosecond: the clock that clock_getcpuclockid(3) names.
// /proc/PID/stat counts in hundredths of a second.
func CPU(pid int) (time.Duration, error) {
	const cpuClockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|cpuClockSched, &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Memory is what a process occupies.
type Memory struct {
	Resident int64 // bytes
	Peak     int64 // the most that Resident ever was
	Threads  int64
}

// ReadMemory returns what a process occupies, an error if there is no such
// process.
func ReadMemory(pid int) (m Memory, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, fmt.Errorf("memory of process %d: %w", pid, errors.Unwrap(err))
	}
	m.Resident = procField(status, "VmRSS:") << 10
	m.Peak = procField(status, "VmHWM:") << 10
	m.Threads = procField(status, "Threads:")
	return m, nil
}

// Processes are process ids; what they use is told as a sum, and an error when
// one of them is gone.
type Processes []int

// sum adds up what is known of each.
func sum[T int64 | time.Duration](p Processes, of func(pid int) (T, error)) (total T, err error) {
	for _, pid := range p {
		v, err := of(pid)
		if err != nil {
			return 0, err
		}
		total += v
	}
	return total, nil
}

// CPU returns the CPU time used so far.
func (p Processes) CPU() (time.Duration, error) { return sum(p, CPU) }

// Proportional returns the bytes of memory with shared pages divided among their users.
func (p Processes) Proportional() (int64, error) { return sum(p, readProportional) }

// Memory returns what is occupied. Peak is a sum of moments that may differ.
func (p Processes) Memory() (all Memory, err error) {
	for _, pid := range p {
		m, err := ReadMemory(pid)
		if err != nil {
			return Memory{}, err
		}
		all.Resident += m.Resident
		all.Peak += m.Peak
		all.Threads += m.Threads
	}
	return all, nil
}

// Commands returns how the processes were started, a line each, as far as
// that is known.
func (p Processes) Commands() string {
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
	return CommandLine(path.Base(args[0]), args)
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

// OwnCPU returns the CPU time that this process has used, all its threads.
func OwnCPU() time.Duration {
	var usage unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &usage) // its arguments are right
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// CommandLine returns how a program was called, for a shell, without keys:
// args[0] is taken for name.
func CommandLine(name string, args []string) string {
	quoted := []string{name}
	for k := 1; k < len(args); k++ {
		a := args[k]
		if hidden, ok := strings.CutPrefix(a, "--api-key="); ok && hidden != "" {
			a = "--api-key=…"
		} else if args[k-1] == "--api-key" {
			a = "…"
		}
		if a == "" || strings.ContainsAny(a, " \t\"'`$\\&|;<>(){}[]*?!#~") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted = append(quoted, a)
	}
	return strings.Join(quoted, " ")
}
