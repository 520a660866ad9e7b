//go:build !linux

// Command loadtest loads WebSocket servers from epoll loops, and so runs on
// Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "loadtest: needs Linux, for epoll and /proc")
	os.Exit(1)
}
