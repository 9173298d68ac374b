package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// Observe gathers what Check judges. It changes nothing: the ports that w needs
// are held for an instant.
func Observe(w Want) (Facts, error) {
	n, err := ReadNetwork()
	if err != nil {
		return Facts{}, err
	}
	admin, err := netAdmin()
	if err != nil {
		return Facts{}, fmt.Errorf("read capabilities: %w", err)
	}
	f := Facts{Network: n, TUN: openTUN(), NetAdmin: admin, IPv6Off: ipv6Off("/"), Binds: tryBinds(w)}
	if f.Sockets, err = holders(f.Binds); err != nil {
		return Facts{}, err
	}
	if l, ok := n.link(w.Link); ok && l.Kind == "tuntap" {
		f.LinkOwner = tunOwner(l.Name)
	}
	return f, nil
}

func openTUN() error {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func netAdmin() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, err
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0, nil
}

// tryBinds asks the kernel for each address that w needs, for the kernel alone
// knows: IPV6_V6ONLY and SO_REUSEPORT decide, and /proc shows neither.
func tryBinds(w Want) []Bind {
	var binds []Bind
	try := func(proto string, addr netip.Addr, port uint16) {
		b := Bind{Proto: proto, Local: netip.AddrPortFrom(addr, port)}
		b.Err = bind(b)
		binds = append(binds, b)
	}
	if w.ListenPort != 0 {
		try("udp", netip.IPv4Unspecified(), w.ListenPort)
		try("udp", netip.IPv6Unspecified(), w.ListenPort)
	}
	if w.DNSPort != 0 && w.WireGuardIP.IsValid() {
		try("udp", w.WireGuardIP, w.DNSPort)
		try("tcp", w.WireGuardIP, w.DNSPort)
	}
	return binds
}

// bind holds b's address for an instant, though no interface may have it yet.
func bind(b Bind) error {
	family := "4"
	if b.Local.Addr().Is6() {
		family = "6" // Go makes these IPV6_V6ONLY
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			if family == "4" {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			}
		})
		return errors.Join(cerr, err)
	}}
	if b.Proto == "udp" {
		c, err := lc.ListenPacket(context.Background(), "udp"+family, b.Local.String())
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := lc.Listen(context.Background(), "tcp"+family, b.Local.String())
	if err != nil {
		return err
	}
	return l.Close()
}

// holders lists the sockets on the ports of those binds that failed because
// somebody has them, with their owners where these can be known.
func holders(binds []Bind) ([]Socket, error) {
	busy := func(proto string, port uint16) bool {
		return slices.ContainsFunc(binds, func(b Bind) bool {
			return b.Proto == proto && b.Local.Port() == port && errors.Is(b.Err, syscall.EADDRINUSE)
		})
	}
	var sockets []Socket
	for _, table := range []string{"udp", "udp6", "tcp", "tcp6"} {
		proto := table[:3]
		if !slices.ContainsFunc(binds, func(b Bind) bool { return busy(proto, b.Local.Port()) }) {
			continue
		}
		b, err := os.ReadFile("/proc/thread-self/net/" + table)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("find who holds a port: %w", err)
		}
		all, err := parseSockets(proto, string(b))
		if err != nil {
			return nil, fmt.Errorf("find who holds a port: /proc/net/%s: %w", table, err)
		}
		for _, s := range all {
			if busy(proto, s.Local.Port()) {
				sockets = append(sockets, s)
			}
		}
	}
	nameOwners(sockets)
	return sockets, nil
}
