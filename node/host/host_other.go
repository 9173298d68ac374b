//go:build !linux

package host

import (
	"context"
	"errors"
)

var errLinux = errors.New("the network of this machine can be read and set only on Linux")

// ReadNetwork observes the machine's links and routes.
func ReadNetwork() (Network, error) { return Network{}, errLinux }

// Apply brings the machine to a wanted state.
func Apply(Wanted) ([]Change, error) { return nil, errLinux }

// Watch calls changed whenever interfaces, addresses or routes change.
func Watch(context.Context, func()) error { return errLinux }

// Observe gathers what Check judges.
func Observe(Want) (Facts, error) { return Facts{}, errLinux }
