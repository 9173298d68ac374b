package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A Kind says what a Problem is about; a caller may choose an exit code by it.
type Kind string

const (
	KindTUN       Kind = "tun"       // no TUN device
	KindPrivilege Kind = "privilege" // a capability is missing
	KindInterface Kind = "interface" // the interface's name is taken
	KindPort      Kind = "port"      // a port is taken
	KindOverlap   Kind = "overlap"   // somebody else uses addresses of the mesh
	KindIPv6      Kind = "ipv6"      // no IPv6
)

// A Problem is one thing that stands in the way of a start.
type Problem struct {
	Kind     Kind
	Degraded bool   // the node can run without it
	Text     string // one line: thing, value, expected, what to do
}

func (p Problem) Error() string { return p.Text }

// A Want is what a start needs of the machine.
type Want struct {
	Link        string       // name of the interface that is to be made; required
	ListenPort  uint16       // WireGuard's, UDP, on every address; 0: any port
	WireGuardIP netip.Addr   // where DNSPort is needed; zero: not known yet
	DNSPort     uint16       // UDP and TCP; 0: none
	Cluster     netip.Prefix // zero: not known yet
	Subnet      netip.Prefix // this server's /24; zero: none yet
}

// Facts are what Check judges, as observed at one instant.
type Facts struct {
	Network
	TUN       error    // why /dev/net/tun does not open; nil if it does
	NetAdmin  bool     // CAP_NET_ADMIN is held
	IPv6Off   string   // why there is no IPv6: "net.ipv6.conf.all.disable_ipv6=1"; empty if there is
	LinkOwner string   // the process behind a TUN device named Want.Link; empty if unknown or none
	Binds     []Bind   // what Want needs, each tried
	Sockets   []Socket // that hold a port of a Bind which failed
}

// A Bind is an attempt to hold an address, given up at once.
type Bind struct {
	Proto string // "udp" or "tcp"
	Local netip.AddrPort
	Err   error // nil if it could be had
}

// Check returns all that stands in the way of w. It does no I/O.
func Check(f Facts, w Want) []Problem {
	var ps []Problem
	report := func(k Kind, format string, args ...any) {
		ps = append(ps, Problem{Kind: k, Degraded: k == KindIPv6, Text: fmt.Sprintf(format, args...)})
	}

	if !f.NetAdmin {
		report(KindPrivilege, "capability CAP_NET_ADMIN is missing, expected for setting up %s: run as root, or with --cap-add NET_ADMIN in a container", w.Link)
	}
	switch {
	case f.TUN == nil:
	case errors.Is(f.TUN, fs.ErrPermission):
		report(KindTUN, "%v: expected a TUN device that opens for reading and writing: run as root, or with --device /dev/net/tun in a container", f.TUN)
	default:
		report(KindTUN, "%v: expected a TUN device: run `modprobe tun`, or with --device /dev/net/tun in a container", f.TUN)
	}
	if l, ok := f.link(w.Link); ok {
		report(KindInterface, "%s", f.linkTaken(l))
	}
	f.checkBinds(w, report)
	f.checkOverlaps(w, report)
	if f.IPv6Off != "" {
		report(KindIPv6, "IPv6 is off (%s), expected on: the node runs without a management address", f.IPv6Off)
	}
	return ps
}

func (f Facts) linkTaken(l LinkInfo) string {
	switch {
	case l.Kind == "wireguard":
		return fmt.Sprintf("interface %s exists already, as a kernel WireGuard interface: expected none of this name: take it down (`wg-quick down %s`, or `ip link delete %s`) or choose another name with --interface", l.Name, l.Name, l.Name)
	case l.Kind == "tuntap" && f.LinkOwner != "":
		return fmt.Sprintf("interface %s exists already, as a TUN device of %s: expected none of this name: stop that process or choose another name with --interface", l.Name, f.LinkOwner)
	case l.Kind == "tuntap":
		return fmt.Sprintf("interface %s exists already, as a TUN device of an unknown process or of none: expected none of this name: stop that process, or run `ip link delete %s`, or choose another name with --interface", l.Name, l.Name)
	}
	return fmt.Sprintf("interface %s exists already, of type %s: expected none of this name: run `ip link delete %s` or choose another name with --interface", l.Name, l.Kind, l.Name)
}

func (f Facts) checkBinds(w Want, report func(Kind, string, ...any)) {
	said := map[string]bool{} // IPv4 and IPv6 of one port are one problem, if of one owner
	for _, b := range f.Binds {
		port, setting := fmt.Sprintf("port %d/%s", b.Local.Port(), b.Proto), "--listen-port"
		if !b.Local.Addr().IsUnspecified() {
			port, setting = port+" on "+b.Local.Addr().String(), "--dns-port"
		}
		switch {
		case b.Err == nil:
		case errors.Is(b.Err, syscall.EADDRINUSE):
			owner, at := "somebody who cannot be named from here", ""
			if s, ok := holder(b, f.Sockets); ok {
				owner, at = f.owner(s), fmt.Sprintf(" (%s)", s.Local)
			}
			if owner == f.LinkOwner { // another node, which was named for its interface
				continue
			}
			if text := port + owner; !said[text] {
				said[text] = true
				report(KindPort, "%s is taken by %s%s, expected free: stop what holds it, or choose another port with %s", port, owner, at, setting)
			}
		case errors.Is(b.Err, fs.ErrPermission):
			if !said[port] {
				said[port] = true
				report(KindPrivilege, "%s cannot be listened on: %v: expected capability CAP_NET_BIND_SERVICE: run as root, or with --cap-add NET_BIND_SERVICE in a container", port, b.Err)
			}
		}
	}
}

// holder returns which of sockets keeps b from its address. That one does is
// known, so the likeliest is it: the same address, before the same family's
// wildcard, before the other's (an IPv6 wildcard takes IPv4 too, unless it is
// IPV6_V6ONLY, which /proc does not say), before any other.
func holder(b Bind, sockets []Socket) (Socket, bool) {
	want := b.Local.Addr()
	rank := func(s Socket) int {
		have := s.Local.Addr()
		switch {
		case have == want:
			return 0
		case have.IsUnspecified() && have.Is4() == want.Is4():
			return 1
		case have.IsUnspecified():
			return 2
		case want.IsUnspecified() && have.Is4() == want.Is4():
			return 3
		}
		return 4 // on another address: no obstacle
	}
	var best Socket
	least := 4
	for _, s := range sockets {
		if r := rank(s); s.Proto == b.Proto && s.Local.Port() == b.Local.Port() && r < least {
			best, least = s, r
		}
	}
	return best, least < 4
}

// owner names who holds s.
func (f Facts) owner(s Socket) string {
	if s.Owner != "" {
		return s.Owner
	}
	if s.Inode != 0 {
		return fmt.Sprintf("a process of uid %d", s.UID)
	}
	var names []string
	for _, l := range f.Links {
		if l.Kind == "wireguard" {
			names = append(names, l.Name)
		}
	}
	if len(names) == 0 || s.Proto != "udp" {
		return "the kernel"
	}
	return "kernel WireGuard interface " + strings.Join(names, " or ")
}

func (f Facts) checkOverlaps(w Want, report func(Kind, string, ...any)) {
	if w.Cluster.IsValid() {
		if found := f.overlaps(w, w.Cluster); len(found) > 0 {
			free := "one that nothing here uses"
			if p := FreeCluster(f.used()); p.IsValid() {
				free = p.String()
			}
			report(KindOverlap, "cluster CIDR %v overlaps %s, which is not ours: expected a range of its own: choose another with --cluster-cidr or JIJI_CLUSTER_CIDR, such as %s",
				w.Cluster, list(found), free)
		}
	}
	if found := f.overlaps(w, management); len(found) > 0 {
		report(KindOverlap, "%v, which holds the management addresses, overlaps %s, which is not ours: expected a range of its own: take that address or route away", management, list(found))
	}
}

// overlaps describes the routes and addresses within mesh that are not ours.
func (f Facts) overlaps(w Want, mesh netip.Prefix) []string {
	ours := func(link int, p netip.Prefix) bool {
		l, ok := f.byIndex(link)
		if !ok || l.Name == w.Link {
			return ok
		}
		gateway := netip.PrefixFrom(w.Subnet.Addr().Next(), w.Subnet.Bits())
		return l.Kind == "bridge" && p.Masked() == w.Subnet && slices.ContainsFunc(l.Addrs, func(a AddrInfo) bool { return a.Prefix == gateway })
	}
	var found []string
	connected := map[RouteInfo]bool{} // by link and prefix: routes that came with an address which was named
	for _, l := range f.Links {
		for _, a := range l.Addrs {
			if counts(a.Prefix, mesh) && !ours(l.Index, a.Prefix) {
				found = append(found, fmt.Sprintf("address %v of %s", a.Prefix, l.Name))
				connected[RouteInfo{Link: l.Index, Dst: a.Prefix.Masked()}] = true
			}
		}
	}
	for _, r := range f.Routes {
		switch {
		case r.Type != typeUnicast || !counts(r.Dst, mesh):
		case r.Protocol == Protocol || ours(r.Link, r.Dst):
		case r.Protocol == protoKernel && connected[RouteInfo{Link: r.Link, Dst: r.Dst}]:
		default:
			found = append(found, "route "+f.describe(r))
		}
	}
	return found
}

// counts reports whether the use of p by others disturbs mesh. A default route
// does not, nor do the two halves (0.0.0.0/1) that VPNs put in its place. Of IPv6
// a wider route does not either: ours are /128, and fdcc::/16 is nobody's choice.
func counts(p, mesh netip.Prefix) bool {
	return p.Bits() > 1 && p.Overlaps(mesh) && (p.Addr().Is4() || p.Bits() >= mesh.Bits())
}

// used returns the IPv4 ranges that a cluster CIDR had better avoid.
func (f Facts) used() []netip.Prefix {
	var out []netip.Prefix
	for _, l := range f.Links {
		for _, a := range l.Addrs {
			out = append(out, a.Prefix.Masked())
		}
	}
	for _, r := range f.Routes {
		if r.Type == typeUnicast {
			out = append(out, r.Dst)
		}
	}
	return out
}

// FreeCluster returns a private /16 that overlaps none of used but default
// routes, 10.210.0.0/16 if it can; zero if there is none. What engines take
// their networks from comes last.
func FreeCluster(used []netip.Prefix) netip.Prefix {
	for _, block := range []struct{ base, from, to byte }{
		{10, 210, 255}, {10, 1, 209}, {172, 16, 16}, {100, 64, 127}, {172, 17, 31},
	} {
		for b := int(block.from); b <= int(block.to); b++ {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{block.base, byte(b)}), 16)
			if !slices.ContainsFunc(used, func(u netip.Prefix) bool { return counts(u, p) }) {
				return p
			}
		}
	}
	return netip.Prefix{}
}

// list joins the first few of many.
func list(items []string) string {
	const most = 3
	if more := len(items) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(items[:most], ", "), more)
	}
	return strings.Join(items, ", ")
}

// ipv6Off says why interfaces get no IPv6; root is "/" except in tests.
func ipv6Off(root string) string {
	dir := filepath.Join(root, "proc/sys/net/ipv6")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return "the kernel has none: /proc/sys/net/ipv6 is absent"
	}
	for _, conf := range []string{"all", "default"} { // a new interface takes default's
		b, err := os.ReadFile(filepath.Join(dir, "conf", conf, "disable_ipv6"))
		if err == nil && strings.TrimSpace(string(b)) == "1" {
			return "net.ipv6.conf." + conf + ".disable_ipv6=1"
		}
	}
	return ""
}
