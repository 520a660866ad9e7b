//go:build linux

package scenario

import (
	"cmp"
	"io"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// Streams are where a scenario writes: its report to Out, how it is getting on
// to Err.
type Streams struct{ Out, Err io.Writer }

// common are the flags of every scenario.
type common struct {
	URL         string        `default:"ws://127.0.0.1:8080/ws" help:"WebSocket to connect to, ws:// or wss://; {n} in it stands for the number of the connection, from 0."`
	Servers     []string      `placeholder:"HOST:PORT" help:"Spread the connections over these servers instead of the URL's host."`
	N           int           `name:"n" short:"n" default:"1000" help:"Connections."`
	Rate        float64       `placeholder:"PER-SECOND" help:"Connects a second; 0 is as fast as --concurrency allows."`
	Concurrency int           `default:"100" help:"Handshakes at once."`
	Timeout     time.Duration `default:"30s" help:"Of one handshake."`
	Header      []string      `sep:"none" placeholder:"NAME:VALUE" help:"Send this header with every handshake; {n} as in the URL."`
	Source      []string      `placeholder:"IP" help:"Connect from these addresses. Towards 127.0.0.0/8 it takes as many of that as the ports make necessary."`
	Procs       int           `placeholder:"N" help:"Generator processes; at least what the descriptor limit makes necessary."`
	Insecure    bool          `help:"Take any certificate of a wss:// server. SSL_CERT_FILE in the environment adds authorities instead."`
	AllowRemote bool          `help:"Allow servers that are not on this machine."`
	Pid         []int         `help:"Process of the server, to tell its CPU and memory; of all --servers, their sum."`
	Floor       bool          `help:"Measure a bare loop of system calls beside the server, in turns, and tell the ratio of their CPU time; of times and rates too if --pid and --server-cpu bind both to a CPU."`
	ServerCPU   int           `default:"-1" placeholder:"CPU" help:"Bind the server (--pid) and the floor to this CPU. A Go server then wants GOMAXPROCS=2 in its environment."`
	GenCPU      int           `name:"generator-cpu" default:"-1" placeholder:"CPU" help:"Bind the generator to this CPU."`
	report.Output
}

// patience is how long something may take on n connections that only a limit
// ends: long enough for a machine that is emulated.
func patience(given time.Duration, n int) time.Duration {
	return cmp.Or(given, 30*time.Second+time.Duration(n)*2*time.Millisecond)
}
