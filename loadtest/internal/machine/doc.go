// Package machine tells what the machine has and what its Processes use: CPU
// time, memory, kernel caches, thrown-away packets, the clock that processes
// share; and binds Processes to CPUs. It reads /proc and asks Linux, and is
// empty elsewhere.
//
// It knows nothing of connections, of servers, or of what a figure is for.
package machine
