//go:build linux

package generator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// Config says which connections a fleet has and how it makes them.
type Config struct {
	Conns       int           // at least 1
	Procs       int           // processes; more if the descriptor limit makes them necessary
	Targets     []*Target     // taken in turn, of one scheme
	Sources     []string      // addresses to connect from, taken in turn; none: the kernel's choice
	Insecure    bool          // take any certificate
	Concurrency int           // handshakes at once, of all processes
	Timeout     time.Duration // of one handshake
}

// Fleet is the workers that hold the connections to one server, and their
// coordinator's end of the pipes. Several goroutines may call it, but each kind
// of order runs once at a time. When the context of an order ends, the workers
// are told to stop, and what they did until then counts. An error says that a
// worker is gone or cannot go on, and every later order has it too.
type Fleet struct {
	workers []*worker
	conns   int // of all workers
	share   []int

	mu      sync.Mutex
	latest  []Counts
	answers map[int]chan tally // by order
	broken  error              // a worker ended before its time
	closing bool
	lastID  int
	done    sync.WaitGroup
}

// worker is one process.
type worker struct {
	in  io.WriteCloser
	enc *json.Encoder
	out io.ReadCloser
	cmd *exec.Cmd
}

// startWorker runs this program again, which calls [Work] for that. The worker is in a process group of
// its own, so that Ctrl-C leaves it to report; it ends with its input.
func startWorker() (*worker, error) {
	cmd := exec.Command("/proc/self/exe", "worker")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2") // with one, Go takes the loop's place away whenever it waits
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	return &worker{in: in, enc: json.NewEncoder(in), out: out, cmd: cmd}, nil
}

// capacity is how many connections one process can hold.
func capacity() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1000
	}
	return int(min(limit.Max, 1<<30)) - 128
}

// Processes returns how many worker processes hold conns connections: as many
// as the descriptor limit makes necessary, or procs if that is more.
func Processes(conns, procs int) int {
	one := capacity()
	return max(1, procs, (conns+one-1)/one)
}

// plan returns what a worker needs to know of its connections, but for which
// they are.
func (c *Config) plan() plan {
	p := plan{Sources: c.Sources, Timeout: c.Timeout, TLS: tlsOf(c.Targets, c.Insecure)}
	for _, t := range c.Targets {
		p.Servers = append(p.Servers, t.addr.String())
		p.Requests = append(p.Requests, t.request)
	}
	return p
}

// Muster starts the workers. They open no connection before [Fleet.Connect].
// The fleet must be closed.
func Muster(c *Config) (*Fleet, error) {
	conns, procs := c.Conns, Processes(c.Conns, c.Procs)
	f := &Fleet{conns: conns, latest: make([]Counts, procs), answers: map[int]chan tally{}}
	first := 0
	for k := range procs {
		n := conns / procs
		if k < conns%procs {
			n++
		}
		w, err := startWorker()
		if err != nil {
			f.Close()
			return nil, err
		}
		f.workers, f.share = append(f.workers, w), append(f.share, n)
		f.done.Add(1)
		go f.listen(k, w)
		mine := c.plan()
		mine.First = first
		mine.Concurrency = max(1, c.Concurrency/procs)
		if _, err := f.ask(k, &order{Do: doPlan, Plan: &mine}); err != nil {
			f.Close()
			return nil, err
		}
		first += n
	}
	return f, nil
}

// listen takes the tallies of one worker until its output ends.
func (f *Fleet) listen(k int, w *worker) {
	defer f.done.Done()
	for dec := json.NewDecoder(w.out); ; {
		var t tally
		err := dec.Decode(&t)
		f.mu.Lock()
		if err != nil {
			if !f.closing && f.broken == nil {
				f.broken = errors.New("a worker process of the generator ended unexpectedly")
			}
			f.fallLocked()
			f.mu.Unlock()
			return
		}
		if t.Error != "" && f.broken == nil {
			f.broken = fmt.Errorf("generator: %s", t.Error)
			f.fallLocked()
		}
		f.latest[k] = t.Counts
		if t.Anew {
			f.latest[k] = Counts{Open: t.Open, Pending: t.Pending}
		}
		if ch := f.answers[t.ID]; ch != nil && t.ID != 0 {
			delete(f.answers, t.ID)
			ch <- t
		}
		f.mu.Unlock()
	}
}

// fallLocked ends every wait.
func (f *Fleet) fallLocked() {
	for id, ch := range f.answers {
		close(ch)
		delete(f.answers, id)
	}
}

// ask gives worker k an order and returns where its answer comes.
func (f *Fleet) ask(k int, o *order) (<-chan tally, error) {
	ch := make(chan tally, 1)
	f.mu.Lock()
	if f.broken != nil {
		f.mu.Unlock()
		return nil, f.broken
	}
	f.lastID++
	o.ID = f.lastID
	f.answers[o.ID] = ch
	f.mu.Unlock()
	if err := f.workers[k].enc.Encode(o); err != nil {
		return nil, fmt.Errorf("a worker process of the generator is gone: %w", err)
	}
	return ch, nil
}

// grace is how long workers may take to stop; where a CPU is emulated, each
// connection takes its time.
func (f *Fleet) grace() time.Duration {
	return 15*time.Second + time.Duration(f.conns)*200*time.Microsecond
}

// do gives every worker an order, made by build for each, and waits until all
// are done.
func (f *Fleet) do(ctx context.Context, build func(k int) order) ([]tally, error) {
	waits, err := f.start(build)
	if err != nil {
		return nil, err
	}
	return f.wait(ctx, waits)
}

// start gives every worker an order, and returns what to wait for.
func (f *Fleet) start(build func(k int) order) (waits []<-chan tally, err error) {
	for k := range f.workers {
		o := build(k)
		ch, err := f.ask(k, &o)
		if err != nil {
			return nil, err
		}
		waits = append(waits, ch)
	}
	return waits, nil
}

// wait waits until all workers are done. When ctx ends they are told to stop,
// and what they did is still returned.
func (f *Fleet) wait(ctx context.Context, waits []<-chan tally) ([]tally, error) {
	var tallies []tally
	var grace <-chan time.Time
	stopped := ctx.Done()
	for len(waits) > 0 {
		select {
		case t, ok := <-waits[0]:
			if !ok {
				f.mu.Lock()
				defer f.mu.Unlock()
				return nil, f.broken
			}
			tallies, waits = append(tallies, t), waits[1:]
		case <-stopped:
			stopped = nil
			grace = time.After(f.grace())
			for k := range f.workers {
				if _, err := f.ask(k, &order{Do: doStop}); err != nil {
					return nil, err
				}
			}
		case <-grace:
			return nil, errors.New("a worker process of the generator does not answer")
		}
	}
	return tallies, nil
}

// spread returns worker k's part of n when every worker has one in proportion.
func (f *Fleet) spread(n, k int) int {
	before := 0
	for _, share := range f.share[:k] {
		before += share
	}
	return n*(before+f.share[k])/f.conns - n*before/f.conns
}

// Now sums what the workers told last, about ten times a second.
func (f *Fleet) Now() (sum Counts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.latest {
		sum.Add(&f.latest[i])
	}
	return sum
}

// Count returns the sums and the merged histograms, by the Hist names, of which
// those without samples are missing; and has the workers count anew. With an
// error the sums are those of [Fleet.Now].
func (f *Fleet) Count() (sum Counts, hists map[string]*hdrhistogram.Histogram, err error) {
	tallies, err := f.do(context.Background(), func(int) order { return order{Do: doTally} })
	if err != nil {
		return f.Now(), map[string]*hdrhistogram.Histogram{}, err
	}
	hists = map[string]*hdrhistogram.Histogram{}
	for i := range tallies {
		sum.Add(&tallies[i].Counts)
		for name, text := range tallies[i].Hists {
			h, err := hdrhistogram.Decode([]byte(text))
			if err != nil {
				return sum, hists, fmt.Errorf("histogram %s of a worker: %w", name, err)
			}
			if hists[name] == nil {
				hists[name] = NewHistogram()
			}
			hists[name].Merge(h)
		}
	}
	return sum, hists, nil
}

// Close ends the workers and their connections.
func (f *Fleet) Close() {
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	for _, w := range f.workers {
		w.in.Close()
	}
	f.done.Wait()
	for _, w := range f.workers {
		_ = w.cmd.Wait() // its end was asked for
	}
}
