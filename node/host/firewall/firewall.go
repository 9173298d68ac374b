// Package firewall lets a node's packets through a machine's firewall and keeps
// everybody else's out of the mesh.
//
// What it wants is one list of rules, written down twice: in chains JIJI-… of
// iptables, reached by a jump at the head of the machine's own chains, because only
// there can a packet be accepted ahead of somebody else's drop; and in the nftables
// table inet jiji, because what is dropped there stays dropped whatever other tables
// say, and because a source address that is settled there is out of reach of every
// masquerade. Either is complete by itself: a machine with one of them is guarded.
//
// All of it carries our name, and nothing else is ever changed or removed.
package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// A Backend is what a machine's firewall is made of.
type Backend uint8

const (
	IPTablesNFT    Backend = iota + 1 // iptables(8) on top of nftables, and our table
	IPTablesLegacy                    // iptables(8) of old, and our table where the kernel can have it
	NFTables                          // our table alone: there is no iptables(8)
)

func (b Backend) String() string {
	switch b {
	case IPTablesNFT:
		return "iptables-nft"
	case IPTablesLegacy:
		return "iptables-legacy"
	case NFTables:
		return "nftables"
	}
	return fmt.Sprintf("backend %d", b)
}

// EngineMark is the bit of a packet's mark by which an engine can be told to let in
// what the mesh may send to its containers: the drops of Docker's nftables cannot be
// got ahead of. It is set once the packet's way is found, so that no routing rule
// looks at it, and is none that Kubernetes, CNI or other overlays have a use for.
const EngineMark = 0x1000

// Wanted is the mesh as the firewall has to know it.
type Wanted struct {
	Link        string       // the tunnel's interface; required
	Cluster     netip.Prefix // IPv4 addresses of the mesh; required
	Management  netip.Prefix // IPv6 addresses of the mesh; required
	Subnet      netip.Prefix // this server's part of Cluster; required
	WireGuardIP netip.Addr   // this server's address in Subnet; required
	Bridge      string       // the containers' interface, which may come and go; "": none
	ForwardFrom []string     // interfaces that may forward into the mesh and out of it
	Masquerade  bool         // other servers see WireGuardIP in place of the containers' addresses
	ListenPort  uint16       // WireGuard's, open to everybody; 0: none
	DNSPort     uint16       // on WireGuardIP, closed on Uplinks; 0: none
	Uplinks     []string     // interfaces that lead to the underlay; those that iptables cannot name are nftables' alone
	Control     []uint16     // between servers, on addresses of Management; never from Bridge
}

// A Change is one thing that Apply or Remove did.
type Change struct {
	Object string // what it was done to, in the same words each time: a key to count a fight by
	What   string // for one log line
}

// An Obstacle is somebody else's rule that drops packets of the mesh and that no
// rule of ours can be ahead of.
type Obstacle struct {
	Rule   string // as `iptables -S` or `nft list ruleset` prints it, after its table and chain
	Blocks string // the packets it drops
	Fix    string // the command that lets them through
}

// A Detection says what a machine's firewall is made of.
type Detection struct {
	Backend     Backend
	Why         string   // the reason for Backend
	Unprotected []string // what is left open or closed for want of a program or of the kernel's help
}

// plainName reports whether iptables' rules can name an interface: a trailing + is
// its wildcard, the rest would end a word.
func plainName(name string) bool {
	return len(name) <= 15 && !strings.HasSuffix(name, "+") && !strings.ContainsAny(name, " \t\n\v\f\r\"'\\/!")
}

// check reports what makes w unusable.
func (w Wanted) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("firewall: "+format, args...)) }
	if w.Link == "" {
		fault("no tunnel interface is given")
	}
	for _, name := range append([]string{w.Link, w.Bridge}, w.ForwardFrom...) {
		if !plainName(name) {
			fault("interface name %q: expected at most 15 characters without spaces, quotes, slashes and a trailing +", name)
		}
	}
	for _, name := range w.ForwardFrom {
		switch name {
		case "", "lo", w.Link, w.Bridge:
			fault("forward from %q: expected an interface other than lo, the tunnel's and the containers'", name)
		}
	}
	if !w.Cluster.IsValid() || !w.Cluster.Addr().Is4() || w.Cluster != w.Cluster.Masked() {
		fault("cluster CIDR %v: expected an IPv4 prefix whose host bits are zero", w.Cluster)
	}
	if !w.Management.IsValid() || !w.Management.Addr().Is6() || w.Management != w.Management.Masked() {
		fault("management prefix %v: expected an IPv6 prefix whose host bits are zero", w.Management)
	}
	if !w.Subnet.IsValid() || w.Subnet != w.Subnet.Masked() || !w.Cluster.Contains(w.Subnet.Addr()) || w.Subnet.Bits() < w.Cluster.Bits() {
		fault("subnet %v: expected a part of %v", w.Subnet, w.Cluster)
	}
	if !w.Subnet.Contains(w.WireGuardIP) {
		fault("WireGuard IP %v: expected an address of %v", w.WireGuardIP, w.Subnet)
	}
	return errors.Join(faults...)
}
