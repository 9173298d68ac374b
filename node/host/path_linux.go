package host

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// PathMTU returns the MTU of the path to endpoint, in bytes, as far as the
// kernel knows it: of the interface that packets to it leave by or of their
// route, or less after a router on the way has said so. It sends nothing.
func PathMTU(endpoint netip.AddrPort) (int, error) {
	endpoint = netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port())
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(endpoint))
	if err != nil {
		return 0, fmt.Errorf("find the path to %v: %w", endpoint, err)
	}
	defer c.Close()
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if endpoint.Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read the MTU of the path to %v: %w", endpoint, err)
	}
	var mtu int
	if e := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) }); e != nil {
		err = e
	}
	if err != nil {
		return 0, fmt.Errorf("read the MTU of the path to %v: %w", endpoint, err)
	}
	return mtu, nil
}
