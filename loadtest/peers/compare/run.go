package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// servers are who is compared, in the order of the table's columns.
var servers = []string{tocsin, "gnet", "nbio", "article", "gws", "gorilla", "coder"}

const (
	tocsin = "tocsin"
	floor  = "bare loop" // the column of what loadtest calls the floor
	apiKey = "compare"
)

// scenario is a run of loadtest.
type scenario struct {
	name, title string
	args        []string
}

var scenarios = []scenario{
	{"connect", "connect", []string{"connect", "--hold=5s"}},
	{"broadcast", "broadcast", []string{"broadcast", "--rounds=20"}},
	{"saturated", "echo, saturated", []string{"echo", "--active=1000", "--message-rate=0", "--duration=5s"}},
	{"echo", "echo at 10,000 a second", []string{"echo", "--active=1000", "--message-rate=10000", "--duration=5s"}},
}

// report is what this program reads of loadtest's.
type report struct {
	Machine machine `json:"machine"`
	Results []struct {
		Values map[string]float64 `json:"values"`
	} `json:"results"` // of the server, then of the floor
}

// machine is where loadtest ran.
type machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Memory int64  `json:"memory_bytes"`
	Kernel string `json:"kernel"`
}

func (m machine) String() string {
	return fmt.Sprintf("%d × %s, %.0f GiB, Linux %s", m.CPUs, m.CPU, float64(m.Memory)/(1<<30), m.Kernel)
}

// run starts a server, loads it once, and ends it.
func (s *settings) run(ctx context.Context, bin, name string, sc scenario) (*report, error) {
	listen, side, err := twoAddresses()
	if err != nil {
		return nil, err
	}
	server := exec.CommandContext(ctx, "taskset", serverArgs(s.serverCPU, bin, name, listen, side)...)
	server.Env = append(os.Environ(), "GOMAXPROCS=2")
	server.Cancel = func() error { return server.Process.Signal(syscall.SIGTERM) }
	server.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = server.Wait() // it is ended by a signal
		close(ended)
	}()
	defer func() {
		_ = server.Cancel() // it may have ended by itself
		select {
		case <-ended:
		case <-time.After(server.WaitDelay):
			_ = server.Process.Kill()
			<-ended
		}
	}()
	if err := reachable(ctx, listen, ended); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s.load(ctx, bin, name, sc, listen, side, server.Process.Pid)
}

func (s *settings) load(ctx context.Context, bin, name string, sc scenario, listen, side string, pid int) (*report, error) {
	args := append(s.loadArgs(name, sc, listen, side), "--pid="+strconv.Itoa(pid))
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "loadtest"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return nil, fmt.Errorf("loadtest: %w: %s", err, lines[len(lines)-1])
	}
	r := new(report)
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		return nil, fmt.Errorf("read loadtest's report: %w", err)
	}
	if len(r.Results) == 0 {
		return nil, fmt.Errorf("loadtest reports no result")
	}
	return r, nil
}

// serverArgs are taskset's: the CPU and the server's command line.
func serverArgs(cpu int, bin, name, listen, side string) []string {
	args := []string{"--cpu-list", strconv.Itoa(cpu)}
	if name == tocsin {
		return append(args, filepath.Join(bin, "tocsin"), "serve", "--dev", "--listen="+listen, "--api-listen="+side, "--api-key="+apiKey)
	}
	return append(args, filepath.Join(bin, "peer"), name, "--listen="+listen, "--trigger-listen="+side)
}

// loadArgs is loadtest's command line, but for the server's process.
func (s *settings) loadArgs(name string, sc scenario, listen, side string) []string {
	url := "ws://" + listen + "/ws"
	if name == tocsin {
		url += "?user=u{n}&topics=all" // more than the peers do: each has a user and a topic
	}
	args := append([]string{}, sc.args...)
	args = append(args, "--n="+strconv.Itoa(s.n), "--url="+url, "--floor",
		"--server-cpu="+strconv.Itoa(s.serverCPU), "--generator-cpu="+strconv.Itoa(s.genCPU), "--json")
	switch {
	case sc.name != "broadcast":
		return args
	case name == tocsin:
		return append(args, "--topic=all", "--api=http://"+side, "--api-key="+apiKey)
	}
	return append(args, "--trigger=http://"+side+"/")
}

// twoAddresses returns addresses that nobody listens on.
func twoAddresses() (string, string, error) {
	var found [2]string
	for i := range found {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = ln.Close() }()
		found[i] = ln.Addr().String()
	}
	return found[0], found[1], nil
}

// reachable returns when addr accepts.
func reachable(ctx context.Context, addr string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("it ended at once: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("it does not listen: %w", err)
		case <-tick.C:
		}
	}
}
