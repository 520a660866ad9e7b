package server

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

// patience bounds every wait for something that has to happen.
const patience = 30 * time.Second

// full is the long run, TOCSIN_FULL=1.
var full = os.Getenv("TOCSIN_FULL") != ""

// size returns n in the long run and a tenth of it otherwise.
func size(n int) int {
	if full {
		return n
	}
	return (n + 9) / 10
}

// pairs is size for connections that have both ends in this process, whose
// descriptors are 20,000 where the limit is low.
func pairs(n int) int { return min(size(n), 9000) }

// parallel lets the test run beside others, unless it is one of the long run:
// two of those would need too many descriptors.
func parallel(t *testing.T) {
	if !full {
		t.Parallel()
	}
}

// TestMain runs the tests and then wants everything back that servers took:
// goroutines, but for the two that ants starts at import, and descriptors.
func TestMain(m *testing.M) {
	if role := os.Getenv("TOCSIN_TEST_CHILD"); role != "" {
		children[role]()
		os.Exit(0)
	}
	// The runtime's own poller takes descriptors with the first socket.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ln.Close()
	goroutines, fds := runtime.NumGoroutine(), openFDs()
	code := m.Run()
	if fuzz := flag.Lookup("test.fuzz"); code == 0 && fuzz.Value.String() == "" {
		code = leaked(goroutines, fds)
	}
	os.Exit(code)
}

// children are what this binary does when a test starts it again.
var children = map[string]func(){}

func leaked(goroutines, fds int) (code int) {
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > goroutines || openFDs() > fds {
		if time.Now().After(deadline) {
			fmt.Printf("left behind: %d goroutines, there were %d; %d descriptors, there were %d\n",
				runtime.NumGoroutine(), goroutines, openFDs(), fds)
			_ = pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
			return 1
		}
		runtime.Gosched()
	}
	return 0
}

// openFDs counts this process's descriptors.
func openFDs() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

var silent = slog.New(slog.NewTextHandler(io.Discard, nil))

// eventually polls until ok, or fails the test.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-poll.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}
