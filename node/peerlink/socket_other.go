//go:build !linux

package peerlink

import "syscall"

// withoutAddress does nothing: other systems want the address to be there.
func withoutAddress(network, _ string, c syscall.RawConn) error { return nil }
