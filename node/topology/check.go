package topology

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/acidtib/jiji-node/node/ipplan"
)

const (
	maxFaults    = 20 // that are reported at once
	maxEndpoints = 64 // of one server
	maxHostname  = 253
)

// A fault is one reason why a topology is refused. It belongs to a field of a
// server, or of the topology (server -1).
type fault struct {
	server int
	field  field
	err    error
}

// Check reports everything that is wrong with t, one line for each fault, up to
// twenty of them. Removed servers are checked each for itself, and their ids
// stay taken; their keys and subnets are free for members.
func Check(t Topology) error {
	c := check(t)
	errs := make([]error, 0, len(c.faults)+1)
	for _, f := range c.faults {
		errs = append(errs, f.err)
	}
	if c.more > 0 {
		errs = append(errs, fmt.Errorf("and %d more faults", c.more))
	}
	return errors.Join(errs...)
}

func check(t Topology) checker {
	var c checker
	if err := ipplan.CheckCluster(t.Cluster); err != nil {
		c.add(-1, fieldCluster, err)
	}
	if domain, err := ParseDomain(t.Domain); err != nil {
		c.add(-1, fieldDomain, err)
	} else if domain != t.Domain {
		c.add(-1, fieldDomain, fmt.Errorf("service domain %q: want %q", t.Domain, domain))
	}
	if t.Discovery != "" && !isLabel(t.Discovery) {
		c.add(-1, fieldDiscovery, fmt.Errorf("discovery %q: want one word", t.Discovery))
	}
	cluster := t.Cluster
	if len(c.faults) > 0 {
		cluster = netip.Prefix{}
	}
	ids := make(map[string]int, len(t.Servers))
	keys := make(map[[32]byte]int, len(t.Servers))
	subnets := make(map[netip.Prefix]int, len(t.Servers))
	for i, s := range t.Servers {
		c.server(i, s, cluster)
		if s.ID != "" {
			id := strings.ToLower(s.ID)
			if first, dup := ids[id]; dup {
				c.add(i, fieldID, fmt.Errorf("server id %q: is the id of two servers, number %d (%s) and number %d (%s)",
					s.ID, first+1, t.Servers[first].Hostname, i+1, s.Hostname))
			} else {
				ids[id] = i
			}
		}
		if !s.RemovedAt.IsZero() {
			continue
		}
		if first, dup := keys[s.Key]; dup && !s.Key.IsZero() {
			c.add(i, fieldKey, fmt.Errorf("%s has the public key of %s: %s", nameOf(i, s), nameOf(first, t.Servers[first]), s.Key))
		} else {
			keys[s.Key] = i
		}
		if first, dup := subnets[s.Subnet]; dup && s.Subnet.IsValid() {
			c.add(i, fieldSubnet, fmt.Errorf("%s has the subnet of %s: %s", nameOf(i, s), nameOf(first, t.Servers[first]), s.Subnet))
		} else {
			subnets[s.Subnet] = i
		}
	}
	return c
}

// A checker collects what is wrong with a topology.
type checker struct {
	faults []fault
	more   int // faults after maxFaults, only counted
}

func (c *checker) add(server int, f field, err error) {
	if len(c.faults) == maxFaults {
		c.more++
		return
	}
	c.faults = append(c.faults, fault{server, f, err})
}

// server checks one server for itself; a cluster that is zero contains everything.
func (c *checker) server(i int, s Server, cluster netip.Prefix) {
	bad := func(f field, format string, args ...any) {
		c.add(i, f, fmt.Errorf("%s: %w", nameOf(i, s), fmt.Errorf(format, args...)))
	}
	if err := ipplan.CheckID(s.ID); err != nil {
		bad(fieldID, "%w", err)
	}
	if len(s.Hostname) > maxHostname || strings.ContainsFunc(s.Hostname, func(r rune) bool { return r <= ' ' || r > '~' }) {
		bad(fieldHostname, "hostname %.*q: want at most %d characters, printable ASCII without spaces", maxHostname, s.Hostname, maxHostname)
	}
	if s.Key.IsZero() {
		bad(fieldKey, "has no public key")
	} else if want := ipplan.Management(s.Key); s.ManagementIP != want {
		bad(fieldManagementIP, "management address %s does not follow from its public key, want %s", s.ManagementIP, want)
	}
	if !s.Subnet.IsValid() {
		if s.WireGuardIP.IsValid() {
			bad(fieldWireGuardIP, "WireGuard address %s: there is no subnet that it belongs to", s.WireGuardIP)
		}
	} else if err := checkSubnet(s.Subnet, cluster); err != nil {
		bad(fieldSubnet, "%w", err)
	} else if want := ipplan.WireGuardIP(s.Subnet); s.WireGuardIP != want {
		bad(fieldWireGuardIP, "WireGuard address %s is not the first of its subnet %s, want %s", s.WireGuardIP, s.Subnet, want)
	}
	if len(s.Endpoints) > maxEndpoints {
		bad(fieldEndpoints, "has %d endpoints, want at most %d", len(s.Endpoints), maxEndpoints)
		return
	}
	for _, ep := range s.Endpoints {
		if reason := implausible(ep, cluster); reason != "" {
			bad(fieldEndpoints, "endpoint %s: %s", ep, reason)
		}
	}
}

func checkSubnet(subnet, cluster netip.Prefix) error {
	if cluster.IsValid() {
		_, err := ipplan.Index(cluster, subnet)
		return err
	}
	if !subnet.Addr().Is4() || subnet.Bits() != 24 || subnet != subnet.Masked() {
		return fmt.Errorf("server subnet %q: want an IPv4 /24", subnet)
	}
	return nil
}

// implausible says why no server can be reached at ep from another, or nothing.
func implausible(ep netip.AddrPort, cluster netip.Prefix) string {
	ip := ep.Addr().Unmap()
	switch {
	case !ip.IsValid() || ip.IsUnspecified():
		return "want an address and a port"
	case ep.Port() == 0:
		return "port is 0"
	case ip.Zone() != "" || ip.Is6() && ip.IsLinkLocalUnicast():
		return "is link-local: its interface means nothing on another server"
	case ip.IsLoopback():
		return "is a loopback address"
	case ip.IsMulticast(), ip.Is4() && (ip.As4()[0] == 0 || ip.As4()[0] >= 240):
		return "is not a unicast address"
	case cluster.IsValid() && cluster.Contains(ip), ipplan.ManagementPrefix.Contains(ip):
		return "lies inside the mesh that is to be reached through it"
	}
	return ""
}

func nameOf(i int, s Server) string {
	switch {
	case s.ID != "":
		return fmt.Sprintf("server %q", s.ID)
	case s.Hostname != "":
		return fmt.Sprintf("server of host %q", s.Hostname)
	default:
		return fmt.Sprintf("server number %d", i+1)
	}
}

// CheckServer reports what is wrong with one server of a cluster for itself.
func CheckServer(s Server, cluster netip.Prefix) error {
	var c checker
	c.server(0, s, cluster)
	errs := make([]error, 0, len(c.faults))
	for _, f := range c.faults {
		errs = append(errs, f.err)
	}
	return errors.Join(errs...)
}
