package httpapi

import (
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"
)

// processCollector tells what proc(5) knows of this process, under the names
// that Prometheus' clients agree on. Theirs counts descriptors by listing them
// where the kernel is older than Linux 6.2: with a million connections that is
// 96 MB of garbage a scrape, and a kernel that is busy for seconds.
type processCollector struct {
	cpu, resident, virtual, start, maxFDs, openFDs *prometheus.Desc
}

func newProcessCollector() *processCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("process_"+name, help, nil, nil)
	}
	return &processCollector{
		cpu:      desc("cpu_seconds_total", "Total user and system CPU time spent in seconds."),
		resident: desc("resident_memory_bytes", "Resident memory size in bytes."),
		virtual:  desc("virtual_memory_bytes", "Virtual memory size in bytes."),
		start:    desc("start_time_seconds", "Start time of the process since unix epoch in seconds."),
		maxFDs:   desc("max_fds", "Maximum number of open file descriptors."),
		openFDs:  desc("open_fds", "Number of open file descriptors; not told before Linux 6.2."),
	}
}

// Describe implements [prometheus.Collector].
func (c *processCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.cpu, c.resident, c.virtual, c.start, c.maxFDs, c.openFDs} {
		out <- d
	}
}

// Collect implements [prometheus.Collector]. It leaves out what it cannot read.
func (c *processCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	self, err := procfs.Self()
	if err != nil {
		return
	}
	if stat, err := self.Stat(); err == nil {
		out <- prometheus.MustNewConstMetric(c.cpu, prometheus.CounterValue, stat.CPUTime())
		gauge(c.resident, float64(stat.ResidentMemory()))
		gauge(c.virtual, float64(stat.VirtualMemory()))
		if start, err := stat.StartTime(); err == nil {
			gauge(c.start, start)
		}
	}
	if limits, err := self.Limits(); err == nil {
		gauge(c.maxFDs, float64(limits.OpenFiles))
	}
	// Since Linux 6.2 the size of this directory is how many there are.
	if dir, err := os.Stat("/proc/self/fd"); err == nil && dir.Size() > 0 {
		gauge(c.openFDs, float64(dir.Size()))
	}
}
