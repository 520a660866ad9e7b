//go:build !linux

package netpoll

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Errno is a system call's error number; 0 is none.
type Errno = syscall.Errno

// Poller is not supported here.
type Poller struct{}

// NewPoller returns errors.ErrUnsupported.
func NewPoller(func(error)) (*Poller, error) { return nil, errors.ErrUnsupported }

// Add returns errors.ErrUnsupported.
func (*Poller) Add(int, func()) error { return errors.ErrUnsupported }

// Rearm returns errors.ErrUnsupported.
func (*Poller) Rearm(int) error { return errors.ErrUnsupported }

// Del returns errors.ErrUnsupported.
func (*Poller) Del(int) error { return errors.ErrUnsupported }

// Close returns errors.ErrUnsupported.
func (*Poller) Close() error { return errors.ErrUnsupported }

// Set is not supported here.
type Set struct{}

// NewSet returns errors.ErrUnsupported.
func NewSet() (*Set, error) { return nil, errors.ErrUnsupported }

// FD returns -1.
func (*Set) FD() int { return -1 }

// Add returns ENOTSUP.
func (*Set) Add(int, uint64) Errno { return syscall.ENOTSUP }

// Wait returns ENOTSUP.
func (*Set) Wait([]Event) (int, Errno) { return 0, syscall.ENOTSUP }

// Close returns errors.ErrUnsupported.
func (*Set) Close() error { return errors.ErrUnsupported }

// Recv returns ENOTSUP.
func Recv(int, []byte) (int, Errno) { return 0, syscall.ENOTSUP }

// Send returns ENOTSUP.
func Send(int, []byte) (int, Errno) { return 0, syscall.ENOTSUP }

// Accept returns ENOTSUP.
func Accept(int) (int, Errno) { return -1, syscall.ENOTSUP }

// Close returns ENOTSUP.
func Close(int) Errno { return syscall.ENOTSUP }

// CloseWrite returns ENOTSUP.
func CloseWrite(int) Errno { return syscall.ENOTSUP }

// Peer returns no address.
func Peer(int) netip.AddrPort { return netip.AddrPort{} }

// TakeListener returns errors.ErrUnsupported.
func TakeListener(net.Listener, time.Duration) (int, error) { return -1, errors.ErrUnsupported }

// TakeConn returns errors.ErrUnsupported.
func TakeConn(net.Conn, time.Duration) (int, error) { return -1, errors.ErrUnsupported }

// RaiseDescriptorLimit returns errors.ErrUnsupported.
func RaiseDescriptorLimit() (soft, hard uint64, err error) { return 0, 0, errors.ErrUnsupported }

// PhysicalMemory returns 0.
func PhysicalMemory() int64 { return 0 }
