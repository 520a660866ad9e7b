package limits

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

const (
	// reserve is how many descriptors a process needs beside its connections:
	// listeners, epoll sets, files, the API's clients.
	reserve = 256
	// endBytes is the memory of one end of an idle connection: 3.9 KB in the
	// kernel and what the process keeps.
	endBytes = 4300
	// backlog is how many connects may arrive between two turns of the
	// acceptor.
	backlog = 4096
	// maxLimit is the most a limit is read as, so that it may be added to and
	// multiplied; from unlimited on, people are told no number.
	maxLimit  = 1 << 40
	unlimited = maxLimit / 2
)

// Check holds every limit that bounds the number of connections against need,
// in the order in which they should be raised. A limit that this system does
// not have, or does not show, is left out. It opens nothing and changes nothing.
func Check(need Need) []Finding {
	return host().check(need)
}

// system is what Check reads, apart so that a test can make one up.
type system struct {
	root       fs.FS // the directory /
	soft, hard int64 // RLIMIT_NOFILE; negative where there is none
	procs      int   // GOMAXPROCS
}

func (s system) check(n Need) []Finding {
	n.Processes = max(n.Processes, 1)
	n.Sources = max(n.Sources, 1)
	n.Side = cmp.Or(n.Side, Server)
	var found []Finding
	for _, limit := range []func(system, Need) (Finding, bool){
		system.nrOpen, system.hardFiles, system.softFiles, system.fileMax, system.watches,
		system.ports, system.conntrack, system.memory, system.cgroup,
		system.tcpMem, system.somaxconn, system.cpus,
	} {
		if f, ok := limit(s, n); ok {
			found = append(found, f)
		}
	}
	return found
}

// ends returns how many sockets of this machine a connection is.
func (n Need) ends() int64 {
	if n.Side == Both {
		return 2
	}
	return 1
}

// sockets returns how many sockets of this machine the connections are.
func (n Need) sockets() int64 { return int64(n.Connections) * n.ends() }

// perProcess returns the descriptors of the fullest process.
func (n Need) perProcess() int64 {
	return int64((n.Connections+n.Processes-1)/n.Processes) + reserve
}

// judge fills in what follows from f.Have and f.Need, when left of the limit
// is for connections and one connection takes each of it.
func (f Finding) judge(left, each int64) Finding {
	f.Allows = Unbounded
	if left < unlimited {
		f.Allows = int(max(left, 0) / each)
	}
	f.OK = f.Have >= f.Need
	return f
}

// descriptors is a limit on the descriptors of one process.
func descriptors(name, fix string, have int64, n Need) (Finding, bool) {
	f := Finding{Name: name, Unit: "descriptors", Have: have, Need: n.perProcess(), Effect: "accept and connect answer EMFILE"}
	f.Fix = fmt.Sprintf(fix, f.Need)
	f = f.judge(have-reserve, 1)
	if f.Allows != Unbounded {
		f.Allows *= n.Processes
	}
	return f, have >= 0
}

func (s system) nrOpen(n Need) (Finding, bool) {
	have, ok := s.number("proc/sys/fs/nr_open", 0)
	f, _ := descriptors("fs.nr_open", "sudo sysctl -w fs.nr_open=%d", have, n)
	return f, ok
}

func (s system) hardFiles(n Need) (Finding, bool) {
	return descriptors("RLIMIT_NOFILE hard", "sudo prlimit --pid $$ --nofile=%[1]d:%[1]d", s.hard, n)
}

func (s system) softFiles(n Need) (Finding, bool) {
	return descriptors("RLIMIT_NOFILE soft", "ulimit -Sn %d", s.soft, n)
}

func (s system) fileMax(n Need) (Finding, bool) {
	limit, ok := s.number("proc/sys/fs/file-max", 0)
	used, _ := s.number("proc/sys/fs/file-nr", 0)
	f := Finding{
		Name: "fs.file-max", Unit: "files", Have: limit - used, Need: n.sockets() + int64(n.Processes)*reserve,
		Effect: "accept and connect answer ENFILE",
	}
	f.Fix = fmt.Sprintf("sudo sysctl -w fs.file-max=%d", used+f.Need)
	return f.judge(f.Have-int64(n.Processes)*reserve, n.ends()), ok
}

func (s system) watches(n Need) (Finding, bool) {
	have, ok := s.number("proc/sys/fs/epoll/max_user_watches", 0)
	f := Finding{
		Name: "fs.epoll.max_user_watches", Unit: "watches", Have: have, Need: n.sockets() + reserve,
		Effect: "epoll_ctl answers ENOSPC",
	}
	f.Fix = fmt.Sprintf("sudo sysctl -w fs.epoll.max_user_watches=%d", f.Need)
	return f.judge(have-reserve, n.ends()), ok
}

// ports is the range of local ports, of which every pair of source and
// destination address has one.
func (s system) ports(n Need) (Finding, bool) {
	const file = "proc/sys/net/ipv4/ip_local_port_range"
	low, ok := s.number(file, 0)
	high, _ := s.number(file, 1)
	sources := int64(n.Sources)
	f := Finding{
		Name: "net.ipv4.ip_local_port_range", Unit: "ports", Need: int64(n.Connections),
		Have: (high - low + 1 - s.reserved(low, high)) * sources, Effect: "connect answers EADDRNOTAVAIL",
	}
	f.Fix = `sudo sysctl -w net.ipv4.ip_local_port_range="1024 65535"`
	if widest := int64(65535 - 1024 + 1); f.Need > widest*sources {
		f.Fix += fmt.Sprintf(", and connect from %d addresses", (f.Need+widest-1)/widest)
	}
	return f.judge(f.Have, 1), ok && n.Side&Client != 0
}

// reserved returns how many ports from low to high connect must not choose.
func (s system) reserved(low, high int64) int64 {
	text, _ := s.text("proc/sys/net/ipv4/ip_local_reserved_ports")
	var count int64
	for span := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(span, "-")
		first, err := strconv.ParseInt(from, 10, 64)
		if err != nil {
			continue
		}
		last := first
		if ranged {
			last, _ = strconv.ParseInt(to, 10, 64)
		}
		count += max(min(last, high)-max(first, low)+1, 0)
	}
	return count
}

func (s system) conntrack(n Need) (Finding, bool) {
	limit, ok := s.number("proc/sys/net/netfilter/nf_conntrack_max", 0)
	used, _ := s.number("proc/sys/net/netfilter/nf_conntrack_count", 0)
	f := Finding{
		Name: "net.netfilter.nf_conntrack_max", Unit: "entries", Have: limit - used, Need: int64(n.Connections),
		Effect: "new connections are dropped without an answer",
	}
	f.Fix = fmt.Sprintf("sudo sysctl -w net.netfilter.nf_conntrack_max=%d", used+f.Need)
	return f.judge(f.Have, 1), ok
}

func (s system) memory(n Need) (Finding, bool) {
	text, ok := s.text("proc/meminfo")
	var kib int64
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(line, "MemAvailable:"); found {
			kib, _ = strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		}
	}
	f := Finding{
		Name: "MemAvailable", Unit: "bytes", Have: kib << 10, Need: n.sockets() * endBytes,
		Effect: "the kernel kills a process",
	}
	f.Fix = "no command does: stop other programs, or use a machine with more memory"
	return f.judge(f.Have, n.ends()*endBytes), ok && kib > 0
}

// cgroup is the tightest memory limit of the control groups (version 2) around
// this process; a socket's kernel memory counts towards it.
func (s system) cgroup(n Need) (Finding, bool) {
	f := Finding{
		Name: "memory.max", Unit: "bytes", Have: maxLimit, Need: n.sockets() * endBytes,
		Effect: "the kernel kills a process",
	}
	text, _ := s.text("proc/self/cgroup")
	_, group, ok := strings.Cut(text, "0::/")
	if !ok {
		return f, false
	}
	group, _, _ = strings.Cut(group, "\n")
	bounded := false
	for dir := path.Clean("sys/fs/cgroup/" + group); strings.HasPrefix(dir, "sys/fs/cgroup"); dir = path.Dir(dir) {
		limit, ok := s.number(dir+"/memory.max", 0)
		if !ok {
			continue // "max", or the root group
		}
		bounded = true
		used, _ := s.number(dir+"/memory.current", 0)
		if left := limit - used; left < f.Have {
			f.Have = left
			f.Fix = fmt.Sprintf("echo %d | sudo tee /%s/memory.max", used+f.Need, dir)
		}
	}
	return f.judge(f.Have, n.ends()*endBytes), bounded
}

// tcpMem is what all sockets may keep in their queues, in pages; a socket with
// one byte waiting holds one page.
func (s system) tcpMem(n Need) (Finding, bool) {
	have, ok := s.number("proc/sys/net/ipv4/tcp_mem", 2)
	need := n.sockets()
	return Finding{
		Name: "net.ipv4.tcp_mem", Unit: "pages", Have: have, Need: need, Allows: Unbounded,
		Effect: "a message to all at once is held up while the kernel drops and resends",
		Fix:    fmt.Sprintf(`sudo sysctl -w net.ipv4.tcp_mem="%d %d %d"`, need/2, need*3/4, need),
		OK:     have >= need,
	}, ok
}

func (s system) somaxconn(n Need) (Finding, bool) {
	have, ok := s.number("proc/sys/net/core/somaxconn", 0)
	need := int64(min(n.Connections, backlog))
	return Finding{
		Name: "net.core.somaxconn", Unit: "waiting connects", Have: have, Need: need, Allows: Unbounded,
		Effect: "a burst of connects waits a second for its next try",
		Fix:    fmt.Sprintf("sudo sysctl -w net.core.somaxconn=%d", backlog),
		OK:     have >= need,
	}, ok && n.Side&Server != 0
}

func (s system) cpus(Need) (Finding, bool) {
	return Finding{
		Name: "GOMAXPROCS", Unit: "threads", Have: int64(s.procs), Need: 2, Allows: Unbounded,
		Effect: "a lone message costs half as much again",
		Fix:    "export GOMAXPROCS=2",
		OK:     s.procs >= 2,
	}, true
}

// text returns the contents of a small file, and whether it could be read.
func (s system) text(name string) (string, bool) {
	b, err := fs.ReadFile(s.root, name)
	return string(bytes.TrimSpace(b)), err == nil
}

// number returns the field'th number of a file, bounded by maxLimit so that it
// may be added to, and whether it is there.
func (s system) number(name string, field int) (int64, bool) {
	text, _ := s.text(name)
	fields := strings.Fields(text)
	if field >= len(fields) {
		return 0, false
	}
	n, err := strconv.ParseUint(fields[field], 10, 64)
	if err != nil {
		return 0, false
	}
	return int64(min(n, maxLimit)), true
}
