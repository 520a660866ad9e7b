//go:build linux

package scenario

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/api"
	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// startFloor starts the floor's process on a CPU, or on any if that is
// negative: this program, with the argument "floor-server".
func startFloor(cpu int) (*subject, error) {
	cmd := exec.Command("/proc/self/exe", "floor-server")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "GODEBUG=asyncpreemptoff=1") // no signals into its waits
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not meant for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := machine.StartOn(cpu, cmd); err != nil {
		return nil, fmt.Errorf("start the floor: %w", err)
	}
	stop := func() {
		in.Close()
		_ = cmd.Wait() // its end was asked for
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return nil, errors.New("the floor did not start")
	}
	at := strings.TrimSpace(line)
	sub := &subject{Result: report.NewResult("floor", "ws://"+at+"/"), pids: machine.Processes{cmd.Process.Pid}, stop: stop}
	p := api.Publisher{Trigger: "http://" + at + "/", Wait: time.Hour}
	if sub.publish, err = p.Open(false); err != nil {
		stop()
		return nil, err
	}
	return sub, nil
}
