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
	KindNode      Kind = "node"      // another node runs on this machine
	KindUnit      Kind = "unit"      // a unit does, or will do, what is the node's
	KindInterface Kind = "interface" // the interface's name is taken
	KindPort      Kind = "port"      // a port is taken
	KindOverlap   Kind = "overlap"   // somebody else uses addresses of the mesh
	KindRPFilter  Kind = "rp_filter" // what comes in by an uplink is dropped
	KindIPv6      Kind = "ipv6"      // no IPv6
)

// A Problem is one thing that stands in the way of a start.
type Problem struct {
	Kind     Kind   `json:"kind"`
	Degraded bool   `json:"degraded"` // the node can run without it
	Text     string `json:"text"`     // one line: thing, value, expected, what to do
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
	Network     string       // that the containers' network is called in the engine; "": not known
	Ports       []Port       // what else should be free; the node runs without, until it is
	Socket      string       // path of the control socket; "": none
	Own         int          // process of this very node, which runs already: what it and its children hold is no obstacle; 0: none
}

// A Port is one that should be free, on an address that need not be there yet.
type Port struct {
	Proto string // "udp" or "tcp"
	Addr  netip.AddrPort
	What  string // what it is for, in an operator's words: "node-to-node control"
	Flag  string // that chooses another port: "--api-port"; "": none does
}

// Facts are what Check judges, as observed at one instant.
type Facts struct {
	Network
	TUN          error             // why /dev/net/tun does not open; nil if it does
	Capabilities uint64            // in effect, as bits of their numbers in capabilities(7)
	IPv6Off      string            // why there is no IPv6: "net.ipv6.conf.all.disable_ipv6=1"; empty if there is
	RPFilter     map[string]int    // net.ipv4.conf.*.rp_filter, by interface or "all"
	TUNOwners    map[string]string // processes behind the TUN devices that are named Want.Link or have mesh addresses; empty if unknown or none
	Binds        []Bind            // what Want needs, each tried
	Sockets      []Socket          // that hold a port of a Bind which failed
	SocketOwner  string            // the process that answers on Want.Socket; empty if none does
	Own          string            // Want.Own, in the words of the other owners; empty if none
	OwnChildren  []string          // its child processes, likewise
	Units        []Unit            // those of rivals that are active or enabled
	Engines      []EngineNetwork   // the networks that container engines know
}

// A Bind is an attempt to hold an address, given up at once.
type Bind struct {
	Proto string // "udp" or "tcp"
	Local netip.AddrPort
	Err   error // nil if it could be had
}

// Of include/uapi/linux/capability.h.
const (
	capNetBindService = 10
	capNetAdmin       = 12
	capNetRaw         = 13
)

func (f Facts) can(capability int) bool { return f.Capabilities>>capability&1 != 0 }

// Check returns all that stands in the way of w. It does no I/O. What one
// remedy ends is one problem: who stops another node has its ports, too.
func Check(f Facts, w Want) []Problem {
	c := checker{Facts: f, Want: w, nodes: map[string][]string{}}
	c.checkPrivileges()
	c.checkNodes()
	c.checkUnits()
	c.checkLink()
	c.checkBinds()
	c.checkOverlaps()
	c.checkRPFilter()
	if f.IPv6Off != "" {
		c.warn(KindIPv6, "IPv6 is off (%s), expected on: the node runs without a management address", f.IPv6Off)
	}
	return c.problems
}

// A checker is one Check under way.
type checker struct {
	Facts
	Want     Want
	nodes    map[string][]string // other nodes, by process, and what each holds
	problems []Problem
}

func (c *checker) refuse(k Kind, format string, args ...any) {
	c.problems = append(c.problems, Problem{Kind: k, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) warn(k Kind, format string, args ...any) {
	c.problems = append(c.problems, Problem{Kind: k, Degraded: true, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) checkPrivileges() {
	if !c.can(capNetAdmin) {
		c.refuse(KindPrivilege, "capability CAP_NET_ADMIN is missing, expected for setting up %s: run as root, or with --cap-add NET_ADMIN in a container", c.Want.Link)
	}
	if !c.can(capNetRaw) {
		c.warn(KindPrivilege, "capability CAP_NET_RAW is missing, expected for `jiji-node ping` and for the round-trip times that order names, neither of which works without it: run as root, or with --cap-add NET_RAW in a container")
	}
	switch {
	case c.TUN == nil:
	case errors.Is(c.TUN, fs.ErrPermission):
		c.refuse(KindTUN, "%v: expected a TUN device that opens for reading and writing: run as root, or with --device /dev/net/tun in a container", c.TUN)
	default:
		c.refuse(KindTUN, "%v: expected a TUN device: run `modprobe tun`, or with --device /dev/net/tun in a container", c.TUN)
	}
}

// checkNodes finds other nodes by what they hold of Want.
func (c *checker) checkNodes() {
	var found []string
	holds := func(owner, what string) {
		if owner == c.Own || owner != c.SocketOwner && !strings.HasPrefix(owner, "jiji-node (pid ") {
			return
		}
		if _, known := c.nodes[owner]; !known {
			found = append(found, owner)
		}
		if !slices.Contains(c.nodes[owner], what) {
			c.nodes[owner] = append(c.nodes[owner], what)
		}
	}
	if c.SocketOwner != "" {
		holds(c.SocketOwner, "control socket "+c.Want.Socket)
	}
	for _, l := range c.Links {
		if owner := c.TUNOwners[l.Name]; owner != "" {
			holds(owner, "interface "+l.Name)
		}
	}
	for _, b := range c.Binds {
		if s, ok := holder(b, c.Sockets); ok && errors.Is(b.Err, syscall.EADDRINUSE) {
			holds(c.owner(s), b.port())
		}
	}
	for _, owner := range found {
		c.refuse(KindNode, "%s is another node on this machine and holds %s, expected none beside this one, whose state directory is another: stop that process", owner, strings.Join(c.nodes[owner], ", "))
	}
}

// accounted reports whether what owner holds needs no problem of its own.
func (c *checker) accounted(owner string) bool {
	if owner == "" {
		return false
	}
	_, node := c.nodes[owner]
	return node || owner == c.Own || slices.Contains(c.OwnChildren, owner) || slices.ContainsFunc(c.Units, func(u Unit) bool {
		return u.Active && (strings.Contains(owner, u.Name) || u.Name == wgQuick(c.Want.Link) && owner == kernelWireGuard+c.Want.Link)
	})
}

func (c *checker) checkLink() {
	l, ok := c.link(c.Want.Link)
	owner := c.TUNOwners[l.Name]
	switch {
	case !ok, c.accounted(owner), l.Kind == "wireguard" && c.accounted(kernelWireGuard+l.Name):
	case l.Kind == "wireguard":
		c.refuse(KindInterface, "interface %s exists already, as a kernel WireGuard interface: expected none of this name: take it down (`wg-quick down %s`, or `ip link delete %s`) or choose another name with --interface", l.Name, l.Name, l.Name)
	case l.Kind == "tuntap" && owner != "":
		c.refuse(KindInterface, "interface %s exists already, as a TUN device of %s: expected none of this name: stop that process or choose another name with --interface", l.Name, owner)
	case l.Kind == "tuntap":
		c.refuse(KindInterface, "interface %s exists already, as a TUN device of an unknown process or of none: expected none of this name: stop that process, or run `ip link delete %s`, or choose another name with --interface", l.Name, l.Name)
	default:
		c.refuse(KindInterface, "interface %s exists already, of type %s: expected none of this name: run `ip link delete %s` or choose another name with --interface", l.Name, l.Kind, l.Name)
	}
}

// port names what b is for: "port 53/udp on 10.210.0.1".
func (b Bind) port() string {
	if b.Local.Addr().IsUnspecified() {
		return fmt.Sprintf("port %d/%s", b.Local.Port(), b.Proto)
	}
	return fmt.Sprintf("port %d/%s on %s", b.Local.Port(), b.Proto, b.Local.Addr())
}

// purpose names b with what it is for, where that is not plain, and says how to
// choose another port.
func (c *checker) purpose(b Bind) (name, choose string) {
	for _, p := range c.Want.Ports {
		if p.Proto != b.Proto || p.Addr != b.Local {
			continue
		}
		if p.Flag != "" {
			choose = ", or choose another port with " + p.Flag
		}
		return fmt.Sprintf("%s (%s)", b.port(), p.What), choose
	}
	if b.Local.Addr().IsUnspecified() {
		return b.port(), ", or choose another port with --listen-port"
	}
	return b.port(), ", or choose another port with --dns-port"
}

// portProblem is how to say that b cannot be had. A node runs without the other
// ports, and takes them as soon as they are free.
func (c *checker) portProblem(b Bind) func(k Kind, format string, args ...any) {
	if slices.ContainsFunc(c.Want.Ports, func(p Port) bool { return p.Proto == b.Proto && p.Addr == b.Local }) {
		return c.warn
	}
	return c.refuse
}

func (c *checker) checkBinds() {
	said := map[string]bool{} // IPv4 and IPv6 of one port are one problem, if of one owner
	var denied []string
	for _, b := range c.Binds {
		name, choose := c.purpose(b)
		switch {
		case b.Err == nil:
		case errors.Is(b.Err, syscall.EADDRINUSE):
			owner, at := "somebody who cannot be named from here", ""
			if s, ok := holder(b, c.Sockets); ok {
				owner, at = c.owner(s), fmt.Sprintf(" (%s)", s.Local)
			}
			if text := b.port() + owner; !said[text] && !c.accounted(owner) {
				said[text] = true
				c.portProblem(b)(KindPort, "%s is taken by %s%s, expected free: stop what holds it%s", name, owner, at, choose)
			}
		case errors.Is(b.Err, fs.ErrPermission) && c.can(capNetBindService):
			if !said[b.port()] {
				said[b.port()] = true
				c.portProblem(b)(KindPort, "%s cannot be listened on though CAP_NET_BIND_SERVICE is there: %v: expected that nothing forbids it: look for a rule of SELinux or AppArmor%s", name, b.Err, choose)
			}
		case errors.Is(b.Err, fs.ErrPermission):
			if !slices.Contains(denied, name) {
				denied = append(denied, name)
			}
		}
	}
	if len(denied) > 0 {
		c.refuse(KindPrivilege, "capability CAP_NET_BIND_SERVICE is missing, expected for listening on %s: run as root, or with --cap-add NET_BIND_SERVICE in a container, or choose ports from 1024 up", strings.Join(denied, ", "))
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

const kernelWireGuard = "kernel WireGuard interface " // and its name: an owner that is no process

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
	return kernelWireGuard + strings.Join(names, " or ")
}

func (c *checker) checkOverlaps() {
	if cluster := c.Want.Cluster; cluster.IsValid() {
		found, remove := c.overlaps(cluster)
		free := "one that nothing here uses"
		if p := FreeCluster(c.used()); p.IsValid() {
			free = p.String()
		}
		switch {
		case len(found) == 0:
		case len(remove) > 0:
			c.refuse(KindOverlap, "cluster CIDR %v overlaps %s, which is not ours: expected a range of its own: remove that network (`%s`), or choose another range with --cluster-cidr or JIJI_CLUSTER_CIDR, such as %s",
				cluster, list(found), strings.Join(remove, "; "), free)
		default:
			c.refuse(KindOverlap, "cluster CIDR %v overlaps %s, which is not ours: expected a range of its own: choose another with --cluster-cidr or JIJI_CLUSTER_CIDR, such as %s",
				cluster, list(found), free)
		}
	}
	if found, _ := c.overlaps(management); len(found) > 0 {
		c.refuse(KindOverlap, "%v, which holds the management addresses, overlaps %s, which is not ours: expected a range of its own: take that away", management, list(found))
	}
}

// overlaps describes the routes, addresses and engines' networks within mesh
// that are not ours; remove are commands that end the last.
func (c *checker) overlaps(mesh netip.Prefix) (found, remove []string) {
	ours := func(link int, p netip.Prefix) bool {
		l, ok := c.byIndex(link)
		if !ok || l.Name == c.Want.Link || c.accounted(c.TUNOwners[l.Name]) {
			return ok
		}
		return l.Kind == "bridge" && p.Masked() == c.Want.Subnet && c.hasGateway(l)
	}
	connected := map[RouteInfo]bool{}       // by link and prefix: routes that came with an address which was named
	networks := map[netip.Prefix]struct{}{} // that an address on a bridge has named
	for _, l := range c.Links {
		for _, a := range l.Addrs {
			if !counts(a.Prefix, mesh) || ours(l.Index, a.Prefix) {
				continue
			}
			text := fmt.Sprintf("address %v of %s", a.Prefix, l.Name)
			for _, n := range c.Engines {
				if n.Subnet == a.Prefix.Masked() && l.Kind == "bridge" {
					text += ", which is " + n.String()
					remove = append(remove, n.remove())
					networks[n.Subnet] = struct{}{}
					break
				}
			}
			found = append(found, text)
			connected[RouteInfo{Link: l.Index, Dst: a.Prefix.Masked()}] = true
		}
	}
	for _, r := range c.Routes {
		switch {
		case r.Type != typeUnicast || !counts(r.Dst, mesh):
		case r.Protocol == Protocol || ours(r.Link, r.Dst):
		case r.Protocol == protoKernel && connected[RouteInfo{Link: r.Link, Dst: r.Dst}]:
		default:
			found = append(found, "route "+c.describe(r))
		}
	}
	for _, n := range c.Engines {
		if _, named := networks[n.Subnet]; named || !counts(n.Subnet, mesh) || c.isOurs(n) {
			continue
		}
		found = append(found, n.String())
		remove = append(remove, n.remove())
	}
	return found, remove
}

// hasGateway reports whether l is the bridge of our containers.
func (c *checker) hasGateway(l LinkInfo) bool {
	gateway := netip.PrefixFrom(c.Want.Subnet.Addr().Next(), c.Want.Subnet.Bits())
	return slices.ContainsFunc(l.Addrs, func(a AddrInfo) bool { return a.Prefix == gateway })
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
	for _, n := range f.Engines {
		out = append(out, n.Subnet)
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
