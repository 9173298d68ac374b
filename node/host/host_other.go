//go:build !linux

package host

import (
	"context"
	"errors"
	"net/netip"
)

var errLinux = errors.New("the network of this machine can be read and set only on Linux")

// ReadNetwork observes the machine's links and routes.
func ReadNetwork() (Network, error) { return Network{}, errLinux }

func (step) do() error { return errLinux }

func (Network) steered(Wanted) error { return errLinux }

// Watch calls changed whenever interfaces, addresses, routes, rules of routing or
// forwarding change.
func Watch(context.Context, []netip.Prefix, func()) error { return errLinux }

// Observe gathers what Check judges.
func Observe(Want) (Facts, error) { return Facts{}, errLinux }

// PathMTU returns the MTU of the path to an endpoint, in bytes.
func PathMTU(netip.AddrPort) (int, error) { return 0, errLinux }

// Holder names who keeps others from a local address; empty if nobody is found.
func Holder(string, netip.AddrPort) string { return "" }

// Listener returns what reports whether a process still accepts TCP connections to
// a local address. Here it cannot be told, and is believed.
func Listener(int, netip.AddrPort) (func() bool, error) { return func() bool { return true }, nil }

// DropAddress takes an address from an interface.
func DropAddress(string, netip.Addr) error { return errLinux }
