//go:build !linux

package firewall

import (
	"context"
	"errors"
)

var errLinux = errors.New("firewall: can be read and set only on Linux")

// Detect says what the machine's firewall is made of.
func Detect() (Detection, error) { return Detection{}, errLinux }

// Apply brings the machine's firewall to a wanted state.
func Apply(Wanted) ([]Change, error) { return nil, errLinux }

// Remove takes away what is ours.
func Remove(...string) ([]Change, error) { return nil, errLinux }

// Obstacles returns the rules of others that stand in the way.
func Obstacles(Wanted) ([]Obstacle, error) { return nil, errLinux }

// Watch calls changed when the firewall changes.
func Watch(context.Context, func()) error { return errLinux }
