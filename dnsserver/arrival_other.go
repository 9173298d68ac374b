//go:build !linux

package dnsserver

import (
	"net"
	"net/netip"
	"syscall"
)

// Other systems do not tell on which interface a query arrived: Config.Answer
// is asked about interface 0.

const pktinfoSize = 0

func wantArrival(string, string, syscall.RawConn) error { return nil }

func parseArrival([]byte) (ifindex int, local netip.Addr, ok bool) { return 0, netip.Addr{}, true }

func fromSource(netip.Addr, int) []byte { return nil }

func arrivalOf(*net.TCPConn, bool) (ifindex int, ok bool) { return 0, true }
