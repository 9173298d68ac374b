//go:build !linux

package arrival

import (
	"net"
	"net/netip"
	"syscall"
)

// Other systems do not tell: it is interface 0.

const Size = 0

func Want(string, string, syscall.RawConn) error { return nil }

func Parse([]byte) (ifindex int, local netip.Addr, ok bool) { return 0, netip.Addr{}, true }

func From(netip.Addr, int) []byte { return nil }

func Of(*net.TCPConn, bool) (ifindex int, ok bool) { return 0, true }
