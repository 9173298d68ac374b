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

// Watch calls changed whenever interfaces, addresses or routes change.
func Watch(context.Context, func()) error { return errLinux }

// Observe gathers what Check judges.
func Observe(Want) (Facts, error) { return Facts{}, errLinux }

// PathMTU returns the MTU of the path to an endpoint, in bytes.
func PathMTU(netip.AddrPort) (int, error) { return 0, errLinux }
