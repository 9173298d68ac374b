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
	"time"

	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// patience is for what may be absent or busy: container engines and systemd.
const patience = time.Second

// Observe gathers what Check judges. It changes nothing: the ports that w needs
// are held for an instant.
func Observe(w Want) (Facts, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	units, engines := make(chan []Unit, 1), make(chan []EngineNetwork, 1)
	go func() { units <- readUnits(ctx, rivalUnits(w.Link)) }()
	go func() { engines <- readEngines(ctx) }()

	n, err := ReadNetwork()
	if err != nil {
		return Facts{}, err
	}
	capabilities, err := readCapabilities()
	if err != nil {
		return Facts{}, fmt.Errorf("read capabilities: %w", err)
	}
	f := Facts{
		Network: n, TUN: openTUN(), Capabilities: capabilities, IPv6Off: ipv6Off("/"), RPFilter: readRPFilter("/"),
		TUNOwners: tunOwners(n, w), Binds: tryBinds(w), SocketOwner: socketOwner(w.Socket),
	}
	if w.Own != 0 {
		f.Own, f.OwnChildren = process(w.Own), children(w.Own)
	}
	if f.Sockets, err = holders(f.Binds); err != nil {
		return Facts{}, err
	}
	f.Units, f.Engines = <-units, <-engines
	return f, nil
}

// tunOwners names the processes behind the TUN devices that stand in w's way.
func tunOwners(n Network, w Want) map[string]string {
	owners := map[string]string{}
	for _, l := range n.Links {
		inMesh := func(a AddrInfo) bool {
			return counts(a.Prefix, management) || w.Cluster.IsValid() && counts(a.Prefix, w.Cluster)
		}
		if l.Kind != "tuntap" || l.Name != w.Link && !slices.ContainsFunc(l.Addrs, inMesh) {
			continue
		}
		if owner := tunOwner(l.Name); owner != "" {
			owners[l.Name] = owner
		}
	}
	return owners
}

// socketOwner names the process that answers on a Unix socket; empty if none does.
func socketOwner(path string) string {
	if path == "" {
		return ""
	}
	c, err := net.DialTimeout("unix", path, patience)
	if err != nil {
		return ""
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	if err != nil || pid == 0 { // of another pid namespace
		return "a process that cannot be named from here"
	}
	return process(pid)
}

func openTUN() error {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// readCapabilities returns those in effect; it fills Facts.Capabilities.
func readCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
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
	for _, p := range w.Ports {
		try(p.Proto, p.Addr.Addr(), p.Addr.Port())
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

// Holder names who keeps others from a local address, as "named (pid 812,
// named.service)"; empty if nobody is found.
func Holder(proto string, at netip.AddrPort) string {
	b := Bind{Proto: proto, Local: at, Err: syscall.EADDRINUSE}
	sockets, err := holders([]Bind{b})
	if err != nil {
		return ""
	}
	s, ok := holder(b, sockets)
	if !ok {
		return ""
	}
	return Facts{}.owner(s)
}

// Listener returns what reports, in no time, whether a process still has the
// socket that accepts TCP connections to a local address of its network namespace;
// nil if it is not the one that has it.
func Listener(pid int, at netip.AddrPort) (still func() bool, err error) {
	table := "tcp"
	if at.Addr().Is6() {
		table = "tcp6"
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
	if err != nil {
		return nil, err
	}
	sockets, err := parseSockets("tcp", string(b))
	if err != nil {
		return nil, fmt.Errorf("/proc/%d/net/%s: %w", pid, table, err)
	}
	i := slices.IndexFunc(sockets, func(s Socket) bool { return s.Local == at })
	if i < 0 {
		return nil, nil
	}
	dir, want := fmt.Sprintf("/proc/%d/fd/", pid), fmt.Sprintf("socket:[%d]", sockets[i].Inode)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		still := func() bool {
			target, err := os.Readlink(dir + fd.Name())
			return err == nil && target == want
		}
		if still() {
			return still, nil
		}
	}
	return nil, nil
}
