//go:build linux

package report

import "slices"

// figure is something that a scenario measures; its key is what --json calls
// it.
type figure struct {
	key, label, unit string
	ratio            ratio
}

// ratio says when a figure is told as a multiple of the floor's, which does
// the least work that is possible, and so has the least CPU time. Its
// latencies and rates are no such bound: they are the whole machine's.
type ratio uint8

const (
	noRatio     ratio = iota
	pinnedRatio       // where server and floor were bound to the same CPU
	cpuRatio          // always
)

// figures are all there are, in the order of the report.
var figures = slices.Concat(
	[]figure{
		{"connections", "connections open", "", noRatio},
		{"failed", "handshakes failed", "", noRatio},
		{"lost", "connections lost", "", noRatio},
		{"pings", "heartbeats answered", "", noRatio},
		{"connect_s", "time to open them", "s", noRatio},
		{"connects_per_s", "connects a second", "", noRatio},
	},
	percentileFigures("handshake", "handshake"),
	[]figure{
		{"cpu_us_per_connect", "server CPU a connect", "µs", cpuRatio},
		{"rounds", "messages published", "", noRatio},
		{"pushes", "pushes", "", noRatio},
		{"pushes_per_s", "pushes a second", "", noRatio},
		{"receipt_written", "receipts: written", "", noRatio},
		{"receipt_queued", "receipts: queued", "", noRatio},
		{"receipt_dropped", "receipts: dropped", "", noRatio},
		{"receipt_failed", "receipts: failed", "", noRatio},
		{"receipt_false", "receipts: false", "", noRatio},
		{"expected", "deliveries expected", "", noRatio},
		{"delivered", "delivered", "", noRatio},
		{"missing", "missing", "", noRatio},
		{"doubled", "doubled", "", noRatio},
		{"misordered", "out of order", "", noRatio},
		{"foreign", "foreign: came to another user", "", noRatio},
		{"late", "late", "", noRatio},
	},
	percentileFigures("delivery", "publish to delivery"),
	percentileFigures("http", "push to receipt, over HTTP"),
	percentileFigures("push", "push to client"),
	percentileFigures("fanout", "publish to last delivery"),
	[]figure{
		{"cpu_us_per_push", "server CPU a push", "µs", noRatio},
		{"deliveries_per_s", "deliveries a second", "", pinnedRatio},
		{"cpu_us_per_delivery", "server CPU a delivery", "µs", cpuRatio},
		{"active", "connections that talk", "", noRatio},
		{"sent", "messages sent", "", noRatio},
		{"replies", "replies", "", noRatio},
		{"unanswered", "unanswered", "", noRatio},
		{"messages_per_s", "replies a second", "", pinnedRatio},
	},
	percentileFigures("echo", "send to reply"),
	[]figure{
		{"cpu_us_per_message", "server CPU a message", "µs", cpuRatio},
		{"dropped", "connections dropped", "", noRatio},
		{"back", "connections back", "", noRatio},
		{"back_s", "time until all are back", "s", pinnedRatio},
		{"attempts", "attempts to come back", "", noRatio},
		{"goodbyes", "goodbyes received", "", noRatio},
		{"cpu_us_per_return", "server CPU a connection that comes back", "µs", cpuRatio},
	},
	percentileFigures("outage", "drop to back"),
	percentileFigures("before", "live clients before: send to reply"),
	percentileFigures("meanwhile", "live clients meanwhile: send to reply"),
	[]figure{
		{"idle_cpu_percent", "server CPU while idle", "%", noRatio},
		{"gc_pause_max_ms", "server's longest GC pause", "ms", noRatio},
		{"hold_bytes", "server memory after the hold, resident", "MiB", noRatio},
		{"resident_bytes", "server memory, resident", "MiB", noRatio},
		{"peak_bytes", "server memory, resident, at its most", "MiB", noRatio},
		{"proportional_bytes", "server memory, proportional", "MiB", noRatio},
		{"threads", "server threads", "", noRatio},
		{"user_bytes_per_connection", "memory a connection: user space", "B", noRatio},
		{"kernel_bytes_per_connection", "memory a connection: kernel, both ends", "B", noRatio},
		{"kernel_server_bytes_per_connection", "memory a connection: kernel, server side (estimate)", "B", noRatio},
		{"generator_cpu_us", "generator CPU for each of them", "µs", noRatio},
		{"generator_bytes_per_connection", "generator memory a connection", "B", noRatio},
		{"generator_busy_percent", "generator busy", "%", noRatio},
	},
)

// percentiles are told of samples that can carry them: above the 99th of
// fewer than a hundred there is nothing.
var percentiles = []struct {
	key, label string
	at         float64
	least      int64 // samples
}{
	{"min", "shortest", 0, 1},
	{"p50", "median", 50, 1},
	{"p90", "90 %", 90, 10},
	{"p99", "99 %", 99, 100},
	{"p999", "99.9 %", 99.9, 1000},
	{"max", "longest", 100, 1},
}

func percentileFigures(key, label string) (list []figure) {
	for _, p := range percentiles {
		list = append(list, figure{key + "_" + p.key + "_ms", label + ", " + p.label, "ms", pinnedRatio})
	}
	return list
}
