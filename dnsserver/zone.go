package dnsserver

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A ZoneConfig is all that a Zone is made of.
type ZoneConfig struct {
	Apex     string // required: "jiji", in any case, with or without the final dot; one or more labels
	Server   string // required: this server's id; "<id>.node" is MNAME and NS target
	Serial   uint32
	Nodes    []Node
	Services []Service
	Reverse  []netip.Prefix // the mesh: the reverse trees of these are ours as well
	Partial  bool           // there may be more names: SERVFAIL for those that are not here, never NXDOMAIN
}

// A Node is a server of the mesh: its names, and the order of its containers.
type Node struct {
	ID    string       // letters, digits, "-", "_" and "."; compared without case
	Addrs []netip.Addr // of <ID>.node
	Rank  int          // lower ones are answered first, equals rotate
	Down  bool         // it cannot be reached: its containers are answered only if all owners of a name are down
}

// A Service is the containers that share a name. One whose name, or whose
// container's name, is no label of DNS is never asked for.
type Service struct {
	Name       string
	Containers []Container // none: there is no such service
}

// A Container is one address of a service.
type Container struct {
	ID       string // its first 12 characters make its own name
	Server   string // id
	Project  string // may be empty, like Instance
	Instance string
	IP       netip.Addr // IPv4
	Unfit    string     // why it is not answered, in a word: "unhealthy"; it keeps its names
	Ports    []Port     // that SRV records tell of
}

// A Port is one that a container listens on.
type Port struct {
	Number uint16
	Proto  string // "tcp", "udp" or "sctp"
}

// A Zone is what the server is authoritative for: the names below one apex
// and the reverse trees of the mesh. It is immutable, and shares with those that
// were made of it what is the same in both.
type Zone struct {
	apex    string // canonical, see parseName
	wire    []byte // apex as a message has it
	soa     []byte // MNAME and RNAME relative to the apex, without the final root
	serial  uint32
	apexes  map[string]struct{} // canonical: the zone's own and those of the reverse trees
	within  []netip.Prefix      // the mesh
	nodes   *nodes
	parts   names
	reverse reverse
	count   int  // owner names of parts
	partial bool // names that are not here may exist: SERVFAIL for them
	unknown bool // no names have been learned yet: SERVFAIL, for they may exist
}

// NewZone checks c and builds its zone.
func NewZone(c ZoneConfig) (*Zone, error) {
	z, err := emptyZone(c.Apex, c.Reverse)
	if err != nil {
		return nil, err
	}
	if z.soa, err = appendLabels(nil, c.Server+".node"); err != nil {
		return nil, fmt.Errorf("name of this server: %w", err)
	}
	if len(z.soa)+len(z.wire) > maxName {
		return nil, fmt.Errorf("name of this server: %q and the apex are longer than a name can be", c.Server)
	}
	z.nodes = newNodes(c.Nodes)
	return z.With(c.Serial, c.Partial, c.Services...), nil
}

// emptyZone returns a zone without names.
func emptyZone(apex string, mesh []netip.Prefix) (*Zone, error) {
	z := &Zone{apex: strings.ToLower(strings.TrimSuffix(apex, ".")), within: mesh, apexes: map[string]struct{}{}, nodes: newNodes(nil)}
	wire, err := appendLabels(nil, z.apex)
	if err != nil {
		return nil, fmt.Errorf("apex: %w", err)
	}
	z.wire = append(wire, 0)
	if len(z.wire)+len("\x0ahostmaster") > maxName {
		return nil, fmt.Errorf("apex: %q has %d characters, want room for names below it", z.apex, len(z.apex))
	}
	z.apexes[z.apex] = struct{}{}
	for _, p := range mesh {
		if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4In6() {
			return nil, fmt.Errorf("reverse tree of %v: want an IPv4 or IPv6 prefix of 1 bit or more", p)
		}
		for _, apex := range reverseApexes(p) {
			z.apexes[apex] = struct{}{}
		}
	}
	return z, nil
}

// With returns a zone in which each of services takes the place of the one of
// its name. It costs what these and their predecessors have, whatever else is in z.
func (z *Zone) With(serial uint32, partial bool, services ...Service) *Zone {
	next := *z
	next.serial, next.partial = serial, partial
	e := &edit{}
	for _, s := range services {
		name := strings.ToLower(s.Name)
		was, now := next.parts.get([]byte(name)), newPart(name, s.Containers)
		if was != nil {
			next.count -= was.count
		}
		if now != nil {
			next.count += now.count
		}
		next.parts.set(e, name, now)
		next.reverse.replace(e, name, was.addresses(z.within), now.addresses(z.within))
	}
	return &next
}

// WithNodes returns a zone with other nodes, which costs what they have.
func (z *Zone) WithNodes(serial uint32, list []Node) *Zone {
	next := *z
	next.serial = serial
	next.nodes = newNodes(list)
	return &next
}

// Len returns how many owner names the zone has, without its reverse trees.
func (z *Zone) Len() int { return z.count + len(z.nodes.byID) }

// nodes are those of a zone.
type nodes struct {
	made   *edit            // tells them from others
	byID   map[string]*Node // in lower case
	byAddr map[netip.Addr][]string
	addrs  []netip.Addr        // sorted
	above  map[string]struct{} // ids, and what follows the dots in them: names above others
}

func newNodes(list []Node) *nodes {
	s := &nodes{made: &edit{}, byID: make(map[string]*Node, len(list)), byAddr: make(map[netip.Addr][]string, 2*len(list)), above: make(map[string]struct{}, len(list))}
	for _, v := range list {
		v.ID = strings.ToLower(v.ID)
		s.byID[v.ID] = &v
		for _, a := range v.Addrs {
			s.byAddr[a] = append(s.byAddr[a], v.ID)
			s.addrs = append(s.addrs, a)
		}
		for rest, more := v.ID, true; more; _, rest, more = strings.Cut(rest, ".") {
			s.above[rest] = struct{}{}
		}
	}
	slices.SortFunc(s.addrs, netip.Addr.Compare)
	return s
}

// within reports whether a node has an address in p.
func (s *nodes) within(p netip.Prefix) bool {
	i, _ := slices.BinarySearchFunc(s.addrs, p.Masked().Addr(), netip.Addr.Compare)
	return i < len(s.addrs) && p.Contains(s.addrs[i])
}

// appendLabels appends the labels of name to b as a message has them.
func appendLabels(b []byte, name string) ([]byte, error) {
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > maxLabel {
			return nil, fmt.Errorf("%q has a label of %d characters, want 1 to %d", name, len(label), maxLabel)
		}
		if i := strings.IndexFunc(label, func(c rune) bool { return !isWord(c) }); i >= 0 {
			return nil, fmt.Errorf("%q contains %q, want letters, digits, \"-\" and \"_\"", name, []rune(label[i:])[0])
		}
		b = append(append(b, byte(len(label))), strings.ToLower(label)...)
	}
	if len(b)+1 > maxName {
		return nil, fmt.Errorf("%q has %d characters, want at most %d", name, len(name), maxName-2)
	}
	return b, nil
}

func isWord(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// reverseApexes returns the reverse names that cover p and nothing else: those
// of the next whole octets (IPv4) or nibbles (IPv6), so 16 of them for a /12.
func reverseApexes(p netip.Prefix) []string {
	p = p.Masked()
	step := 8
	if p.Addr().Is6() {
		step = 4
	}
	bits := (p.Bits() + step - 1) / step * step
	var apexes []string
	for i := range 1 << (bits - p.Bits()) {
		b := p.Addr().AsSlice()
		b[(bits-1)/8] |= byte(i << ((8 - bits%8) % 8))
		ip, _ := netip.AddrFromSlice(b)
		apexes = append(apexes, reverseName(ip, bits))
	}
	return apexes
}

// reverseName returns the reverse name of the first bits of ip, which are
// whole octets (IPv4) or nibbles (IPv6), in canonical form.
func reverseName(ip netip.Addr, bits int) string {
	var b strings.Builder
	if ip.Is4() {
		a := ip.As4()
		for i := bits/8 - 1; i >= 0; i-- {
			b.WriteString(strconv.Itoa(int(a[i])))
			b.WriteByte('.')
		}
		b.WriteString(inAddr)
		return b.String()
	}
	a := ip.As16()
	digits := hex.EncodeToString(a[:])
	for i := bits/4 - 1; i >= 0; i-- {
		b.WriteByte(digits[i])
		b.WriteByte('.')
	}
	b.WriteString(ip6)
	return b.String()
}

const (
	inAddr = "in-addr.arpa"
	ip6    = "ip6.arpa"
)

// parseReverse returns the prefix that a canonical name below in-addr.arpa or
// ip6.arpa stands for.
func parseReverse(name []byte) (netip.Prefix, bool) {
	text := string(name)
	if digits, ok := strings.CutSuffix(text, "."+ip6); ok {
		var a [16]byte
		n := (len(digits) + 1) / 2
		if n > 32 || len(digits)%2 == 0 {
			return netip.Prefix{}, false
		}
		for i := range n {
			c := digits[2*i]
			d := strings.IndexByte("0123456789abcdef", c)
			if d < 0 || 2*i+1 < len(digits) && digits[2*i+1] != '.' {
				return netip.Prefix{}, false
			}
			at := n - 1 - i
			a[at/2] |= byte(d) << (4 * (1 - at%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(a), 4*n), true
	}
	octets, ok := strings.CutSuffix(text, "."+inAddr)
	if !ok || strings.Count(octets, ".") > 3 {
		return netip.Prefix{}, false
	}
	var a [4]byte
	n := strings.Count(octets, ".") + 1
	i := n
	for label := range strings.SplitSeq(octets, ".") {
		v, err := strconv.ParseUint(label, 10, 8)
		if err != nil || len(label) > 1 && label[0] == '0' || label[0] == '+' {
			return netip.Prefix{}, false
		}
		i--
		a[i] = byte(v)
	}
	return netip.PrefixFrom(netip.AddrFrom4(a), 8*n), true
}
