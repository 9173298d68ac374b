//go:build linux

package lab

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Network is a segment of the underlay: a bridge in the world. Servers on it have
// its addresses 1, 2, 3 and so on; the world has the last one and routes to the other
// networks.
type Network struct {
	Name     string
	Prefixes []netip.Prefix

	lab    *Lab
	bridge netlink.Link
	links  []*Link // guarded by lab.mu
	next   int     // number of the next server address, from 1; guarded by lab.mu
	paths  int     // addresses taken from the top for paths; guarded by lab.mu
	cuts   map[[2]*Link]*Block
}

// Network makes a segment with one or more prefixes, of IPv4 or IPv6.
func (l *Lab) Network(name string, prefixes ...string) *Network {
	l.tb.Helper()
	n := &Network{Name: name, lab: l, next: 1, cuts: make(map[[2]*Link]*Block)}
	for _, text := range prefixes {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			l.tb.Fatalf("network %s: %v", name, err)
		}
		if host := p.Addr().BitLen() - p.Bits(); host < 4 {
			l.tb.Fatalf("network %s: %v has room for %d addresses, want 16 or more", name, p, 1<<host)
		}
		n.Prefixes = append(n.Prefixes, p.Masked())
	}
	if len(n.Prefixes) == 0 {
		l.tb.Fatalf("network %s: has no prefix, want one or more", name)
	}
	var gateways []netip.Prefix
	for _, p := range n.Prefixes {
		gateways = append(gateways, netip.PrefixFrom(nth(p, top(p)), p.Bits()))
	}
	var err error
	if n.bridge, err = l.world.addBridge(name, gateways); err != nil {
		l.tb.Fatalf("network %s: %v", name, err)
	}
	track(l, &l.networks, n)
	return n
}

// Gateway returns the world's address on the network, of the first prefix.
func (n *Network) Gateway() netip.Addr { return nth(n.Prefixes[0], top(n.Prefixes[0])) }

// top is the number of the last address of p that servers do not get: the gateway's.
func top(p netip.Prefix) int {
	return 1<<min(p.Addr().BitLen()-p.Bits(), 16) - 2
}

// nth returns address number i of p.
func nth(p netip.Prefix, i int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for at := len(b) - 1; i > 0 && at >= 0; at-- {
		i += int(b[at])
		b[at] = byte(i)
		i >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// addBridge makes a bridge on the host, with addresses.
func (h *Host) addBridge(name string, addrs []netip.Prefix) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.HardwareAddr = hardwareAddr(h.Name, name) // else it changes with each port
	snoop := false                                  // nobody queries, so it would only lose packets
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
	if err := h.nl.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("add bridge %s on %s: %w", name, h.Name, err)
	}
	for _, a := range addrs {
		if err := h.addAddr(bridge, a); err != nil {
			return nil, err
		}
	}
	return bridge, h.nl.LinkSetUp(bridge)
}

// hardwareAddr returns a locally administered unicast address for an interface.
func hardwareAddr(host, name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(host + "\x00" + name))
	return net.HardwareAddr(append([]byte{0x02}, sum[:5]...))
}

func (h *Host) addAddr(link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add %v to %s on %s: %w", p, link.Attrs().Name, h.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// plug makes a cable: interface inner of h, whose other end, outer, is a port of
// bridge on the host far.
func (h *Host) plug(inner string, far *Host, outer string, bridge netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = outer
	veth := &netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      inner,
		PeerNamespace: netlink.NsPid(h.Pid()),
	}
	if err := far.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add veth %s on %s to %s on %s: %w", inner, h.Name, outer, far.Name, err)
	}
	if err := far.nl.LinkSetMaster(veth, bridge); err != nil {
		return nil, fmt.Errorf("add %s to bridge %s: %w", outer, bridge.Attrs().Name, err)
	}
	if err := far.nl.LinkSetUp(veth); err != nil {
		return nil, fmt.Errorf("set %s up: %w", outer, err)
	}
	link, err := h.nl.LinkByName(inner)
	if err != nil {
		return nil, fmt.Errorf("find %s on %s: %w", inner, h.Name, err)
	}
	return link, h.nl.LinkSetUp(link)
}

// interfaceName returns name, or something short and unique where name is too long.
func interfaceName(name string) string {
	if len(name) < unix.IFNAMSIZ {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("v%x", sum[:6])
}

// A Link is a server's connection to a network.
type Link struct {
	Server  *Server
	Network *Network
	Name    string // of the server's interface: eth0, eth1, ...

	outer  string // of the world's end
	number int
	addrs  []netip.Prefix // guarded by lab.mu
}

// connect makes a link between a server and a network.
func (n *Network) connect(s *Server, number int) (*Link, error) {
	k := &Link{Server: s, Network: n, Name: "eth" + strconv.Itoa(number), number: number}
	k.outer = interfaceName(s.Name + "." + k.Name)
	link, err := s.plug(k.Name, n.lab.world, k.outer, n.bridge)
	if err != nil {
		return nil, err
	}
	n.lab.mu.Lock()
	for _, p := range n.Prefixes {
		k.addrs = append(k.addrs, netip.PrefixFrom(nth(p, n.next), p.Bits()))
	}
	n.next++
	n.links = append(n.links, k)
	n.lab.mu.Unlock()
	for _, a := range k.addrs {
		if err := s.addAddr(link, a); err != nil {
			return nil, err
		}
	}
	return k, k.addRoutes(link)
}

// addRoutes makes the network's gateways default routes. A server's first link is
// preferred to the second, and so on.
func (k *Link) addRoutes(link netlink.Link) error {
	for _, p := range k.Network.Prefixes {
		gateway := nth(p, top(p))
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Priority: 100 * (k.number + 1)}
		if err := k.Server.nl.RouteReplace(route); err != nil {
			return fmt.Errorf("add default route by %v to %s: %w", gateway, k.Server.Name, err)
		}
	}
	return nil
}

// Addr returns the server's address on the network, of the network's first prefix.
func (k *Link) Addr() netip.Addr { return k.Addrs()[0] }

// Addrs returns the server's addresses on the network, one of each of its prefixes.
func (k *Link) Addrs() []netip.Addr {
	k.Network.lab.mu.Lock()
	defer k.Network.lab.mu.Unlock()
	var addrs []netip.Addr
	for _, p := range k.addrs {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// Renumber gives the link another address of the network, in place of the one of the
// same prefix, as a provider does that hands out a new lease.
func (k *Link) Renumber(to string) {
	l := k.Network.lab
	l.tb.Helper()
	addr, err := netip.ParseAddr(to)
	i := slices.IndexFunc(k.Network.Prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
	if err != nil || i < 0 {
		l.tb.Fatalf("renumber %s on %s: %q is no address of %v", k.Name, k.Server.Name, to, k.Network.Prefixes)
	}
	l.mu.Lock()
	old := k.addrs[i]
	k.addrs[i] = netip.PrefixFrom(addr, old.Bits())
	l.mu.Unlock()
	k.change("renumber", func(link netlink.Link) error {
		if err := k.Server.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(old)}); err != nil {
			return err
		}
		if err := k.Server.addAddr(link, netip.PrefixFrom(addr, old.Bits())); err != nil {
			return err
		}
		return k.addRoutes(link)
	})
}

// change calls do with the server's interface.
func (k *Link) change(what string, do func(netlink.Link) error) {
	tb := k.Network.lab.tb
	tb.Helper()
	link, err := k.Server.nl.LinkByName(k.Name)
	if err == nil {
		err = do(link)
	}
	if err != nil {
		tb.Fatalf("%s %s on %s: %v", what, k.Name, k.Server.Name, err)
	}
}

// changeOuter calls do with the world's end of the link.
func (k *Link) changeOuter(what string, do func(netlink.Link) error) {
	tb := k.Network.lab.tb
	tb.Helper()
	link, err := k.Network.lab.world.nl.LinkByName(k.outer)
	if err == nil {
		err = do(link)
	}
	if err != nil {
		tb.Fatalf("%s %s on %s: %v", what, k.Name, k.Server.Name, err)
	}
}

// SetMTU sets the MTU of both ends. The network's bridge drops what does not fit
// its way out and says nothing, as a switch does; its gateway says so.
func (k *Link) SetMTU(bytes int) {
	k.Network.lab.tb.Helper()
	nl := k.Network.lab.world.nl
	k.changeOuter("set MTU of", func(link netlink.Link) error { return nl.LinkSetMTU(link, bytes) })
	k.change("set MTU of", func(link netlink.Link) error { return k.Server.nl.LinkSetMTU(link, bytes) })
}

// Down disables the server's interface, as its administrator would.
func (k *Link) Down() {
	k.Network.lab.tb.Helper()
	k.change("set down", k.Server.nl.LinkSetDown)
}

// Up enables the server's interface again, with its IPv6 addresses and default routes,
// which it lost.
func (k *Link) Up() {
	k.Network.lab.tb.Helper()
	k.change("set up", func(link netlink.Link) error {
		if err := k.Server.nl.LinkSetUp(link); err != nil {
			return err
		}
		k.Network.lab.mu.Lock()
		addrs := slices.Clone(k.addrs)
		k.Network.lab.mu.Unlock()
		for _, a := range addrs {
			addr := &netlink.Addr{IPNet: ipNet(a)}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := k.Server.nl.AddrReplace(link, addr); err != nil {
				return err
			}
		}
		return k.addRoutes(link)
	})
}

// Unplug takes the carrier from the server's interface.
func (k *Link) Unplug() {
	k.Network.lab.tb.Helper()
	k.changeOuter("unplug", k.Network.lab.world.nl.LinkSetDown)
}

// Plug undoes Unplug.
func (k *Link) Plug() {
	k.Network.lab.tb.Helper()
	k.changeOuter("plug", k.Network.lab.world.nl.LinkSetUp)
}

// Counters are what a link has carried, as its server sees it.
type Counters struct {
	RxPackets, RxBytes, RxDropped uint64
	TxPackets, TxBytes, TxDropped uint64
}

// Counters returns what the link has carried so far.
func (k *Link) Counters() Counters {
	k.Network.lab.tb.Helper()
	var c Counters
	k.changeOuter("read counters of", func(link netlink.Link) error {
		// The world's end: it is there whatever the server does to its own.
		s := link.Attrs().Statistics
		c = Counters{
			RxPackets: s.TxPackets, RxBytes: s.TxBytes, RxDropped: s.TxDropped,
			TxPackets: s.RxPackets, TxBytes: s.RxBytes, TxDropped: s.RxDropped,
		}
		return nil
	})
	return c
}

// Capture records what passes the link and matches a filter of tcpdump, "" for all.
func (k *Link) Capture(filter string) *Capture {
	k.Network.lab.tb.Helper()
	return k.Network.lab.world.capture(k.outer, k.Server.Name+"-"+k.Name, filter)
}

// linkTable shows what each interface of each host has carried.
func (l *Lab) linkTable() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "host\tlink\tstate\trx packets\tbytes\tdropped\ttx packets\tbytes\tdropped\t")
	for _, h := range l.hosts {
		links, err := h.nl.LinkList()
		if err != nil {
			fmt.Fprintf(w, "%s\t%v\t\n", h.Name, err)
			continue
		}
		for _, link := range links {
			a := link.Attrs()
			s := a.Statistics
			if s == nil || link.Type() == "device" && a.Name == "lo" {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%v\t%d\t%d\t%d\t%d\t%d\t%d\t\n", h.Name, a.Name, a.OperState,
				s.RxPackets, s.RxBytes, s.RxDropped, s.TxPackets, s.TxBytes, s.TxDropped)
		}
	}
	w.Flush()
	return text.String()
}

// A Block drops packets on their way through a network.
type Block struct {
	lab  *Lab
	name string
	rule string
}

// Block drops the IP packets that go through the network from one server to another
// and match an expression of nftables, such as "udp dport 51820"; "" matches all.
// ARP and neighbour discovery pass, so nothing tells the sender.
func (n *Network) Block(from, to *Server, match string) *Block {
	n.lab.tb.Helper()
	source, target := n.link(from), n.link(to)
	l := n.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &Block{lab: l, name: "b" + strconv.Itoa(len(l.blocks))}
	if match == "" {
		match = "ether type { ip, ip6 }"
	}
	b.rule = fmt.Sprintf("iifname %q oifname %q %s counter name %s drop", source.outer, target.outer, match, b.name)
	l.blocks = append(l.blocks, b)
	if err := l.applyBlocks(); err != nil {
		b.rule = ""
		l.tb.Fatalf("block %q from %s to %s: %v", match, from.Name, to.Name, err)
	}
	return b
}

// Lift ends the block. Its count stays.
func (b *Block) Lift() {
	b.lab.tb.Helper()
	b.lab.mu.Lock()
	defer b.lab.mu.Unlock()
	b.rule = ""
	if err := b.lab.applyBlocks(); err != nil {
		b.lab.tb.Fatalf("lift block: %v", err)
	}
}

// Packets returns how many packets the block has dropped.
func (b *Block) Packets() int {
	b.lab.tb.Helper()
	out := b.lab.world.Run("nft", "list", "counter", "bridge", "lab", b.name)
	_, rest, _ := strings.Cut(out, "packets ")
	digits, _, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(digits)
	if err != nil {
		b.lab.tb.Fatalf("read block counter: no count in %q", out)
	}
	return n
}

// applyBlocks makes the world's rules those of all blocks at once. The caller holds l.mu.
func (l *Lab) applyBlocks() error {
	script := `add table bridge lab
add chain bridge lab forward { type filter hook forward priority 0; policy accept; }
flush chain bridge lab forward
add rule bridge lab forward icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
`
	for _, b := range l.blocks {
		script += "add counter bridge lab " + b.name + "\n"
		if b.rule != "" {
			script += "add rule bridge lab forward " + b.rule + "\n"
		}
	}
	_, err := l.world.TryInput(script, "nft", "-f", "-")
	return err
}

// Cut drops all IP packets between two servers, in both directions.
func (n *Network) Cut(a, b *Server) {
	n.lab.tb.Helper()
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// CutOneWay drops all IP packets from one server to another.
func (n *Network) CutOneWay(from, to *Server) {
	n.lab.tb.Helper()
	way := [2]*Link{n.link(from), n.link(to)}
	if n.cuts[way] == nil {
		n.cuts[way] = n.Block(from, to, "")
	}
}

// Heal undoes the cuts between two servers.
func (n *Network) Heal(a, b *Server) {
	n.lab.tb.Helper()
	for _, way := range [][2]*Link{{n.link(a), n.link(b)}, {n.link(b), n.link(a)}} {
		if block := n.cuts[way]; block != nil {
			block.Lift()
			delete(n.cuts, way)
		}
	}
}

// link returns the link of s on n.
func (n *Network) link(s *Server) *Link {
	n.lab.tb.Helper()
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	for _, k := range n.links {
		if k.Server == s {
			return k
		}
	}
	n.lab.tb.Fatalf("%s is not on network %s", s.Name, n.Name)
	return nil
}
