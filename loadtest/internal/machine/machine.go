//go:build linux

package machine

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine says where a run takes place, and which of its limits matter.
type Machine struct {
	CPU         string `json:"cpu"`
	CPUs        int    `json:"cpus"`
	Memory      int64  `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
	Descriptors uint64 `json:"descriptors"` // the hard limit of one process
	PortRange   string `json:"port_range"`
	Somaxconn   string `json:"somaxconn"`
}

// This returns the machine that the program runs on; what /proc does not tell
// is left empty.
func This() (m Machine) {
	m.CPUs = runtime.NumCPU()
	m.CPU = runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(b) {
			if name, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(name)) == "model name" {
				m.CPU = string(bytes.TrimSpace(value))
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		m.Memory = procField(b, "MemTotal:") << 10
	}
	m.Kernel = setting("/proc/sys/kernel/osrelease")
	m.PortRange = setting("/proc/sys/net/ipv4/ip_local_port_range")
	m.Somaxconn = setting("/proc/sys/net/core/somaxconn")
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		m.Descriptors = limit.Max
	}
	return m
}

func setting(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(b)), "–")
}

// Limits are those that a run depends on, in a line.
func (m Machine) Limits() string {
	return fmt.Sprintf("%d descriptors a process, local ports %s, somaxconn %s", m.Descriptors, m.PortRange, m.Somaxconn)
}

// String is the machine in a line.
func (m Machine) String() string {
	return fmt.Sprintf("%d × %s, %d GiB, Linux %s", m.CPUs, m.CPU, (m.Memory+1<<29)>>30, m.Kernel)
}
