package dnsserver

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	ttl = 5 // seconds: of every record, and how long a negative answer may be kept (RFC 2308, section 5)

	// An RRset has to fit into 64 KiB, the most that TCP carries. 1024 AAAA
	// records take 28 KiB, 64 names at their longest 16 KiB.
	maxAddrs   = 1024 // the nearest; equals take turns, so that none is left out for ever
	maxTargets = 64
)

// A ZoneConfig is all that a Zone is made of.
type ZoneConfig struct {
	Apex    string // required: "jiji", in any case, with or without the final dot; one or more labels
	Server  string // required: this server's own name, relative to the apex ("web1.node"): MNAME and NS target
	Serial  uint32
	Names   []Name
	Reverse []netip.Prefix // the mesh: the reverse trees of these are ours as well
	Partial bool           // there may be more names: SERVFAIL for those that are not here, never NXDOMAIN
}

// A Name is an owner name and its addresses. A name that is given twice has
// the addresses of both.
type Name struct {
	Owner string // relative to the apex: "api", "web1.node"; letters, digits, "-" and "_"
	Addrs []Addr // may be empty: the name exists and has no records (NODATA)
	PTR   bool   // those of its addresses that lie in ZoneConfig.Reverse point back to it
}

// An Addr is an address of a name.
type Addr struct {
	IP   netip.Addr
	Rank int // lower ones are answered first, equals rotate
}

// A Zone is what the server is authoritative for: the names below one apex
// and the reverse trees of the mesh. It is immutable.
type Zone struct {
	server  string // canonical
	mailbox string
	serial  uint32
	apexes  map[string]struct{} // canonical: the zone's own and those of the reverse trees
	names   map[string]*node    // by canonical name, with the empty non-terminals (RFC 8020)
	partial bool                // names that are not here may exist: SERVFAIL for them
	unknown bool                // no names have been learned yet: SERVFAIL, for they may exist
}

// A node is what there is at one name. The zero value is an empty non-terminal.
type node struct {
	v4, v6  []Addr   // sorted by rank, then address
	targets []string // of PTR records, sorted
}

// NewZone checks c and builds its zone.
func NewZone(c ZoneConfig) (*Zone, error) {
	z, apex, err := newZone(c.Apex, c.Reverse)
	if err != nil {
		return nil, err
	}
	z.serial, z.partial = c.Serial, c.Partial
	z.mailbox = "hostmaster." + apex
	if z.server, err = join(c.Server, apex); err != nil {
		return nil, fmt.Errorf("name of this server: %w", err)
	}
	for _, n := range c.Names {
		if err := z.add(n, apex); err != nil {
			return nil, err
		}
	}
	for _, n := range z.names {
		n.v4, n.v6 = sorted(n.v4), sorted(n.v6)
		slices.Sort(n.targets)
		n.targets = slices.Compact(n.targets)
	}
	return z, nil
}

// newZone returns a zone without names, and its apex in canonical form.
func newZone(apexText string, reverse []netip.Prefix) (*Zone, string, error) {
	apex, err := join(strings.TrimSuffix(apexText, "."), "")
	if err != nil {
		return nil, "", fmt.Errorf("apex: %w", err)
	}
	z := &Zone{apexes: map[string]struct{}{apex: {}}, names: map[string]*node{apex: {}}}
	for _, p := range reverse {
		if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4In6() {
			return nil, "", fmt.Errorf("reverse tree of %v: want an IPv4 or IPv6 prefix of 1 bit or more", p)
		}
		for _, apex := range reverseApexes(p) {
			z.apexes[apex] = struct{}{}
			z.names[apex] = &node{}
		}
	}
	return z, apex, nil
}

func (z *Zone) add(n Name, apex string) error {
	owner, err := join(n.Owner, apex)
	if err != nil {
		return fmt.Errorf("owner name: %w", err)
	}
	at := z.node(owner)
	for _, a := range n.Addrs {
		a.IP = a.IP.Unmap()
		switch {
		case !a.IP.IsValid() || a.IP.Zone() != "":
			return fmt.Errorf("address %v of %s: want an IPv4 or IPv6 address without a zone", a.IP, owner)
		case a.IP.Is4():
			at.v4 = append(at.v4, a)
		default:
			at.v6 = append(at.v6, a)
		}
		if !n.PTR {
			continue
		}
		if r := reverseName(a.IP, a.IP.BitLen()); z.apexOf(r) >= 0 {
			ptr := z.node(r)
			ptr.targets = append(ptr.targets, owner)
		}
	}
	return nil
}

// node returns the node at name, which lies in the zone. It makes those that
// are missing between it and its apex.
func (z *Zone) node(name string) *node {
	n := z.names[name]
	if n == nil {
		n = &node{}
		z.names[name] = n
		i, _ := dns.NextLabel(name, 0)
		z.node(name[i:])
	}
	return n
}

// apexOf returns where in name, which is canonical, the nearest apex above it
// begins; -1 if it lies outside the zone.
func (z *Zone) apexOf(name string) int {
	for i, end := 0, false; !end; i, end = dns.NextLabel(name, i) {
		if _, ok := z.apexes[name[i:]]; ok {
			return i
		}
	}
	return -1
}

// An answer is what the zone says to one question.
type answer struct {
	ours          bool // the zone answers; otherwise the question is to be forwarded
	authoritative bool
	rcode         int
	records       []dns.RR
	soa           *dns.SOA // with negative answers
}

// answer answers a question of class IN for name, which is fully qualified;
// spin decides which of equal addresses comes first.
func (z *Zone) answer(name string, qtype uint16, spin uint32) answer {
	key := dns.CanonicalName(name)
	at := z.apexOf(key)
	switch {
	case at < 0 && dns.CountLabel(key) == 1:
		// Names of one label never leave the mesh. We are not authoritative for
		// the root, and NXDOMAIN with a SOA would deny all that is below the name
		// too (RFC 8020): without one nobody keeps the answer (RFC 2308, section 5).
		if z.unknown || z.partial {
			return answer{ours: true, rcode: dns.RcodeServerFailure}
		}
		return answer{ours: true, rcode: dns.RcodeNameError}
	case at < 0:
		return answer{}
	case z.unknown:
		return answer{ours: true, rcode: dns.RcodeServerFailure}
	}
	a := answer{ours: true, authoritative: true}
	n := z.names[key]
	if n == nil && z.partial {
		return answer{ours: true, rcode: dns.RcodeServerFailure}
	}
	if n == nil {
		a.rcode = dns.RcodeNameError
		a.soa = z.soa(name[at:])
		return a
	}
	header := dns.RR_Header{Name: name, Rrtype: qtype, Class: dns.ClassINET, Ttl: ttl}
	switch {
	case qtype == dns.TypeSOA && at == 0:
		a.records = []dns.RR{z.soa(name)}
	case qtype == dns.TypeNS && at == 0:
		a.records = []dns.RR{&dns.NS{Hdr: header, Ns: z.server}}
	case qtype == dns.TypeA:
		a.records = addressRecords(header, n.v4, spin)
	case qtype == dns.TypeAAAA:
		a.records = addressRecords(header, n.v6, spin)
	case qtype == dns.TypePTR:
		for _, t := range n.targets[:min(len(n.targets), maxTargets)] {
			a.records = append(a.records, &dns.PTR{Hdr: header, Ptr: t})
		}
	}
	if len(a.records) == 0 {
		a.soa = z.soa(name[at:])
	}
	return a
}

// soa returns the SOA record of an apex, which is spelled as in the question.
func (z *Zone) soa(apex string) *dns.SOA {
	return &dns.SOA{
		Hdr:     dns.RR_Header{Name: apex, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:      z.server,
		Mbox:    z.mailbox,
		Serial:  z.serial,
		Refresh: 3600, Retry: 600, Expire: 86400, // nobody transfers this zone
		Minttl: ttl,
	}
}

// addressRecords returns the A or AAAA records of addrs, which are sorted by
// rank: each run of equals is rotated by spin.
func addressRecords(header dns.RR_Header, addrs []Addr, spin uint32) []dns.RR {
	if len(addrs) == 0 {
		return nil
	}
	n := min(len(addrs), maxAddrs)
	rrs := make([]dns.RR, 0, n)
	raw := make([]byte, 0, n*addrs[0].IP.BitLen()/8)
	var v4 []dns.A
	var v6 []dns.AAAA
	if header.Rrtype == dns.TypeA {
		v4 = make([]dns.A, n)
	} else {
		v6 = make([]dns.AAAA, n)
	}
	for len(rrs) < n {
		equals := 1
		for equals < len(addrs) && addrs[equals].Rank == addrs[0].Rank {
			equals++
		}
		first := int(spin % uint32(equals))
		for i := 0; i < equals && len(rrs) < n; i++ {
			from := len(raw)
			raw, _ = addrs[(first+i)%equals].IP.AppendBinary(raw)
			if v4 != nil {
				rr := &v4[len(rrs)]
				rr.Hdr, rr.A = header, raw[from:]
				rrs = append(rrs, rr)
			} else {
				rr := &v6[len(rrs)]
				rr.Hdr, rr.AAAA = header, raw[from:]
				rrs = append(rrs, rr)
			}
		}
		addrs = addrs[equals:]
	}
	return rrs
}

// A Result is what a question is answered with, for people to read.
type Result struct {
	Ours          bool           // the zone answered, or refused to have it forwarded; else it goes to an upstream
	Authoritative bool           // AA
	Rcode         string         // "NOERROR", "NXDOMAIN", "SERVFAIL"; empty if there is no answer
	Records       []string       // zone-file text, in the order of the answer
	TTL           time.Duration  // of the records, the least; without records how long that may be believed, 0: not at all
	Upstream      netip.AddrPort // that answered; zero if none did
}

// Lookup returns what the zone answers to a question for name, which need not
// end in a dot. A Result that is not Ours is to be asked of an upstream.
func (z *Zone) Lookup(name string, qtype uint16) Result {
	a := z.answer(dns.Fqdn(name), qtype, 0)
	if !a.ours {
		return Result{}
	}
	m := &dns.Msg{Answer: a.records}
	m.Authoritative, m.Rcode = a.authoritative, a.rcode
	if a.soa != nil {
		m.Ns = []dns.RR{a.soa}
	}
	r := result(m)
	r.Ours = true
	return r
}

// result returns what is of interest in m.
func result(m *dns.Msg) Result {
	r := Result{Authoritative: m.Authoritative, Rcode: dns.RcodeToString[m.Rcode]}
	least := uint32(0)
	for i, rr := range m.Answer {
		r.Records = append(r.Records, rr.String())
		if t := rr.Header().Ttl; i == 0 || t < least {
			least = t
		}
	}
	if len(m.Answer) == 0 {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				least = min(soa.Hdr.Ttl, soa.Minttl)
			}
		}
	}
	r.TTL = time.Duration(least) * time.Second
	return r
}

// sorted returns addrs by rank and address; of those that are there twice it
// keeps the one with the lower rank.
func sorted(addrs []Addr) []Addr {
	if len(addrs) < 2 {
		return addrs
	}
	slices.SortFunc(addrs, func(a, b Addr) int {
		return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.Rank, b.Rank))
	})
	addrs = slices.CompactFunc(addrs, func(a, b Addr) bool { return a.IP == b.IP })
	slices.SortStableFunc(addrs, func(a, b Addr) int { return cmp.Compare(a.Rank, b.Rank) })
	return addrs
}

// join returns the canonical name of owner, which is relative to apex; an
// empty apex is the root.
func join(owner, apex string) (string, error) {
	name := strings.ToLower(owner) + "." + apex
	if len(name) > 254 { // 255 on the wire
		return "", fmt.Errorf("%q has %d characters, want at most 253", name, len(name)-1)
	}
	for label := range strings.SplitSeq(strings.ToLower(owner), ".") {
		if len(label) == 0 || len(label) > 63 {
			return "", fmt.Errorf("%q has a label of %d characters, want 1 to 63", owner, len(label))
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", fmt.Errorf("%q contains %q, want letters, digits, \"-\" and \"_\"", owner, c)
			}
		}
	}
	return name, nil
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
// whole octets (IPv4) or nibbles (IPv6).
func reverseName(ip netip.Addr, bits int) string {
	var b strings.Builder
	if ip.Is4() {
		a := ip.As4()
		for i := bits/8 - 1; i >= 0; i-- {
			b.WriteString(strconv.Itoa(int(a[i])))
			b.WriteByte('.')
		}
		b.WriteString("in-addr.arpa.")
		return b.String()
	}
	a := ip.As16()
	digits := hex.EncodeToString(a[:])
	for i := bits/4 - 1; i >= 0; i-- {
		b.WriteByte(digits[i])
		b.WriteByte('.')
	}
	b.WriteString("ip6.arpa.")
	return b.String()
}
