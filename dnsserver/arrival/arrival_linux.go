// Package arrival tells on which interface a datagram or a connection arrived.
package arrival

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Size is for how many bytes of control messages a datagram needs room: enough for
// either family's packet information.
const Size = 64

// Want is for net.ListenConfig.Control: datagrams and connections that
// the socket takes tell on which interface they arrived.
func Want(network, _ string, c syscall.RawConn) error {
	level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
	if strings.HasSuffix(network, "6") {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}

// Parse returns the interface and the address of ours that the control
// messages of a datagram name. It reports whether they name an interface.
func Parse(oob []byte) (ifindex int, local netip.Addr, ok bool) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0, netip.Addr{}, false
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: interface, local address, destination of the header
			ifindex = int(binary.NativeEndian.Uint32(data))
			return ifindex, netip.AddrFrom4([4]byte(data[4:8])), ifindex > 0
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			ifindex = int(binary.NativeEndian.Uint32(data[16:]))
			return ifindex, netip.AddrFrom16([16]byte(data[:16])), ifindex > 0
		}
		oob = rest
	}
	return 0, netip.Addr{}, false
}

// From returns the control message that sends a datagram from local,
// over whichever interface routing picks. Link-local ones know only ifindex.
func From(local netip.Addr, ifindex int) []byte {
	switch {
	case local.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
	case local.IsLinkLocalUnicast():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16(), Ifindex: uint32(ifindex)})
	case local.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16()})
	}
	return nil
}

// Of returns the interface on which the peer's handshake arrived. The
// kernel keeps it with the connection, for IP_PKTOPTIONS to read (ip(7) does
// not tell; net/ipv4/ip_sockglue.c and net/ipv6/ipv6_sockglue.c do).
func Of(c *net.TCPConn, v6 bool) (ifindex int, ok bool) {
	level, option := unix.IPPROTO_IP, unix.IP_PKTOPTIONS
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_2292PKTOPTIONS
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false
	}
	var oob [Size]byte
	size := uint32(len(oob))
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(option),
			uintptr(unsafe.Pointer(&oob)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err != nil || errno != 0 {
		return 0, false
	}
	ifindex, _, ok = Parse(oob[:size])
	return ifindex, ok
}
