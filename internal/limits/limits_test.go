package limits

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
)

// ample is a machine on which a million connections fit.
func ample() map[string]string {
	return map[string]string{
		"proc/sys/fs/nr_open":                            "2000000\n",
		"proc/sys/fs/file-max":                           "9223372036854775807\n",
		"proc/sys/fs/file-nr":                            "1056\t0\t9223372036854775807\n",
		"proc/sys/fs/epoll/max_user_watches":             "5000000\n",
		"proc/sys/net/ipv4/ip_local_port_range":          "1024\t65535\n",
		"proc/sys/net/ipv4/ip_local_reserved_ports":      "\n",
		"proc/sys/net/ipv4/tcp_mem":                      "1000000\t2000000\t3000000\n",
		"proc/sys/net/core/somaxconn":                    "4096\n",
		"proc/sys/net/netfilter/nf_conntrack_max":        "2000000\n",
		"proc/sys/net/netfilter/nf_conntrack_count":      "10\n",
		"proc/meminfo":                                   "MemTotal:       33554432 kB\nMemFree:         1 kB\nMemAvailable:   16777216 kB\n",
		"proc/self/cgroup":                               "1:name=systemd:/\n0::/user.slice/tocsin\n",
		"sys/fs/cgroup/user.slice/memory.max":            "17179869184\n",
		"sys/fs/cgroup/user.slice/memory.current":        "1048576\n",
		"sys/fs/cgroup/user.slice/tocsin/memory.max":     "max\n",
		"sys/fs/cgroup/user.slice/tocsin/memory.current": "4096\n",
	}
}

var million = Need{Connections: 1_000_000, Sources: 20, Side: Both}

func fake(files map[string]string) system {
	root := fstest.MapFS{}
	for name, text := range files {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return system{root: root, soft: 1_100_000, hard: 1_100_000, procs: 2}
}

func TestAmpleMachineHasNothingToRaise(t *testing.T) {
	found := fake(ample()).check(million)
	if len(found) != 12 {
		t.Errorf("%d findings, want 12", len(found))
	}
	for _, f := range found {
		if !f.OK || f.Allows < million.Connections {
			t.Errorf("not enough: %+v", f)
		}
	}
}

func TestEachLimitIsFound(t *testing.T) {
	for _, c := range []struct {
		name   string
		file   string
		text   string
		change func(*system)
		allows int
		fix    string
	}{
		{name: "fs.nr_open", file: "proc/sys/fs/nr_open", text: "20000", allows: 19_744, fix: "sudo sysctl -w fs.nr_open=1000256"},
		{name: "RLIMIT_NOFILE hard", change: func(s *system) { s.hard = 20_000 }, allows: 19_744, fix: "sudo prlimit --pid $$ --nofile=1000256:1000256"},
		{name: "RLIMIT_NOFILE soft", change: func(s *system) { s.soft = 1024 }, allows: 768, fix: "ulimit -Sn 1000256"},
		{name: "fs.file-max", file: "proc/sys/fs/file-max", text: "101312", allows: 50_000, fix: "sudo sysctl -w fs.file-max=2001312"},
		{name: "fs.epoll.max_user_watches", file: "proc/sys/fs/epoll/max_user_watches", text: "1000256", allows: 500_000, fix: "sudo sysctl -w fs.epoll.max_user_watches=2000256"},
		{name: "net.ipv4.ip_local_port_range", file: "proc/sys/net/ipv4/ip_local_port_range", text: "32768 60999", allows: 564_640, fix: `sudo sysctl -w net.ipv4.ip_local_port_range="1024 65535"`},
		{name: "net.ipv4.ip_local_port_range", file: "proc/sys/net/ipv4/ip_local_reserved_ports", text: "80,2000,1000-60000", allows: 20 * 5534, fix: `sudo sysctl -w net.ipv4.ip_local_port_range="1024 65535"`},
		{name: "net.netfilter.nf_conntrack_max", file: "proc/sys/net/netfilter/nf_conntrack_max", text: "262144", allows: 262_134, fix: "sudo sysctl -w net.netfilter.nf_conntrack_max=1000010"},
		{name: "MemAvailable", file: "proc/meminfo", text: "MemAvailable: 4300000 kB", allows: 512_000, fix: "no command does: stop other programs, or use a machine with more memory"},
		{name: "memory.max", file: "sys/fs/cgroup/user.slice/tocsin/memory.max", text: "4304096", allows: 500, fix: "echo 8600004096 | sudo tee /sys/fs/cgroup/user.slice/tocsin/memory.max"},
		{name: "memory.max", file: "sys/fs/cgroup/user.slice/memory.max", text: "1048576", allows: 0, fix: "echo 8601048576 | sudo tee /sys/fs/cgroup/user.slice/memory.max"},
		{name: "net.ipv4.tcp_mem", file: "proc/sys/net/ipv4/tcp_mem", text: "1 2 1999999", allows: Unbounded, fix: `sudo sysctl -w net.ipv4.tcp_mem="1000000 1500000 2000000"`},
		{name: "net.core.somaxconn", file: "proc/sys/net/core/somaxconn", text: "128", allows: Unbounded, fix: "sudo sysctl -w net.core.somaxconn=4096"},
		{name: "GOMAXPROCS", change: func(s *system) { s.procs = 1 }, allows: Unbounded, fix: "export GOMAXPROCS=2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := ample()
			if c.file != "" {
				files[c.file] = c.text
			}
			s := fake(files)
			if c.change != nil {
				c.change(&s)
			}
			for _, f := range s.check(million) {
				if f.OK != (f.Name != c.name) {
					t.Errorf("OK is wrong: %+v", f)
				}
				if f.Name == c.name && (f.Allows != c.allows || f.Fix != c.fix) {
					t.Errorf("allows %d by %q, want %d by %q", f.Allows, f.Fix, c.allows, c.fix)
				}
			}
		})
	}
}

func TestFixIsEnough(t *testing.T) {
	for _, name := range []string{"fs/file-max", "fs/nr_open", "fs/epoll/max_user_watches", "net/netfilter/nf_conntrack_max"} {
		files := ample()
		files["proc/sys/"+name] = "1000"
		key := strings.ReplaceAll(name, "/", ".")
		before := finding(t, fake(files).check(million), key)
		_, raised, _ := strings.Cut(before.Fix, "=")
		files["proc/sys/"+name] = raised
		if after := finding(t, fake(files).check(million), key); before.OK || !after.OK || after.Allows != million.Connections {
			t.Errorf("after %q: %+v", before.Fix, after)
		}
	}
}

func TestSidesAndProcesses(t *testing.T) {
	files := ample()
	files["proc/sys/fs/file-max"] = "101312" // 100,256 left
	s := fake(files)
	s.hard, s.soft = 20_000, 20_000
	for _, c := range []struct {
		need           Need
		fileMax, own   int
		ports, accepts bool
	}{
		{Need{Connections: 60_000}, 100_000, 19_744, false, true},
		{Need{Connections: 60_000, Side: Client, Processes: 4}, 99_232, 78_976, true, false},
		{Need{Connections: 60_000, Side: Both}, 50_000, 19_744, true, true},
	} {
		found := s.check(c.need)
		if got := finding(t, found, "fs.file-max").Allows; got != c.fileMax {
			t.Errorf("%+v: fs.file-max allows %d, want %d", c.need, got, c.fileMax)
		}
		if got := finding(t, found, "RLIMIT_NOFILE soft"); got.Allows != c.own || got.OK != (c.own >= c.need.Connections) {
			t.Errorf("%+v: %+v, want %d allowed", c.need, got, c.own)
		}
		var report bytes.Buffer
		if err := Report(&report, found); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(report.String(), "port_range"); got != c.ports {
			t.Errorf("%+v: ports are looked at: %t, want %t", c.need, got, c.ports)
		}
		if got := strings.Contains(report.String(), "somaxconn"); got != c.accepts {
			t.Errorf("%+v: somaxconn is looked at: %t, want %t", c.need, got, c.accepts)
		}
	}
}

func TestMoreSourcesWhenPortsCannotBeEnough(t *testing.T) {
	n := million
	n.Sources = 1
	f := finding(t, fake(ample()).check(n), "net.ipv4.ip_local_port_range")
	if want := "and connect from 16 addresses"; f.OK || !strings.HasSuffix(f.Fix, want) {
		t.Errorf("%+v, want a fix that ends in %q", f, want)
	}
}

func TestWhatCannotBeReadIsLeftOut(t *testing.T) {
	files := map[string]string{
		"proc/sys/fs/nr_open":                   "many\n",
		"proc/sys/net/ipv4/ip_local_port_range": "\n",
		"proc/meminfo":                          "MemTotal: 5 kB\n",
		"proc/self/cgroup":                      "0::/../../../escape",
	}
	s := fake(files)
	s.soft, s.hard = -1, -1
	if found := s.check(million); len(found) != 1 || found[0].Name != "GOMAXPROCS" {
		t.Errorf("found %+v", found)
	}
	if least := Tightest(nil); least != (Finding{}) {
		t.Errorf("tightest of nothing is %+v", least)
	}
}

func TestReport(t *testing.T) {
	s := fake(ample())
	s.soft, s.hard, s.procs = 1024, 4096, 1
	var report bytes.Buffer
	if err := Report(&report, s.check(Need{Connections: 10_000})); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ok   fs.nr_open                      2,000,000 descriptors, enough for 1,999,744 connections\n",
		"LOW  RLIMIT_NOFILE soft              1,024 descriptors of 10,256 needed, enough for 768 connections, then accept and connect answer EMFILE; raise it: ulimit -Sn 10256\n",
		"ok   fs.file-max                     unlimited files, enough\n",
		"ok   MemAvailable                    16.0 GiB, enough for 3,995,318 connections\n",
		"LOW  GOMAXPROCS                      1 threads where 2 would do: a lone message costs half as much again; raise it: export GOMAXPROCS=2\n",
		"\n768 connections are possible; RLIMIT_NOFILE soft decides\n",
	} {
		if !strings.Contains(report.String(), want) {
			t.Errorf("no line %q in\n%s", want, report.String())
		}
	}
	if err := Report(failingWriter{}, s.check(million)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Report to a closed file: %v", err)
	}
}

func TestFindingsAreJSON(t *testing.T) {
	var back []Finding
	found := fake(ample()).check(million)
	text, err := json.Marshal(found)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if len(back) != len(found) || back[0] != found[0] {
		t.Errorf("came back as %+v", back)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, fs.ErrClosed }

func finding(t *testing.T, found []Finding, name string) Finding {
	t.Helper()
	for _, f := range found {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding about %s in %+v", name, found)
	return Finding{}
}
