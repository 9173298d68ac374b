// Package ipplan computes who has which address: server subnets and WireGuard
// addresses from the cluster CIDR, management addresses from public keys, and
// server ids from hostnames. It does no I/O.
package ipplan

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// DefaultCluster is the cluster CIDR when none is configured.
const DefaultCluster = "10.210.0.0/16"

// ManagementPrefix holds every management address.
var ManagementPrefix = netip.MustParsePrefix("fdcc::/16")

// ErrFull is what LowestFree returns, wrapped, when no subnet is free.
var ErrFull = errors.New("no server subnet is free")

const (
	subnetBits  = 24
	minBits     = 8
	maxIDLength = 63      // a server id is a DNS label
	maxSuffix   = 1 << 17 // twice the servers that the widest cluster has
)

// ParseCluster reads a cluster CIDR: IPv4, prefix length 8 to 24, no host bits.
func ParseCluster(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("cluster CIDR %q: want an IPv4 network such as %s", text, DefaultCluster)
	}
	if err := CheckCluster(p); err != nil {
		return netip.Prefix{}, err
	}
	return p, nil
}

// CheckCluster reports why p cannot be a cluster CIDR, or nil.
func CheckCluster(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("cluster CIDR is missing")
	case !p.Addr().Is4():
		return fmt.Errorf("cluster CIDR %q: is IPv6, want an IPv4 network such as %s", p, DefaultCluster)
	case p.Bits() < minBits || p.Bits() > subnetBits:
		return fmt.Errorf("cluster CIDR %q: prefix length is %d, want %d to %d", p, p.Bits(), minBits, subnetBits)
	case p != p.Masked():
		return fmt.Errorf("cluster CIDR %q: host bits are set, want %s", p, p.Masked())
	}
	if first := p.Addr().As4()[0]; first == 0 || first == 127 || first >= 224 || p.Addr().IsLinkLocalUnicast() {
		return fmt.Errorf("cluster CIDR %q: is not usable for hosts, want a private network such as %s", p, DefaultCluster)
	}
	return nil
}

// Capacity returns how many server subnets cluster has, 0 if it is no cluster CIDR.
func Capacity(cluster netip.Prefix) int {
	if CheckCluster(cluster) != nil {
		return 0
	}
	return 1 << (subnetBits - cluster.Bits())
}

// Subnet returns the server subnet number n of cluster.
func Subnet(cluster netip.Prefix, n int) (netip.Prefix, error) {
	if err := CheckCluster(cluster); err != nil {
		return netip.Prefix{}, err
	}
	if n < 0 || n >= Capacity(cluster) {
		return netip.Prefix{}, fmt.Errorf("subnet number %d: cluster %s has the numbers 0 to %d", n, cluster, Capacity(cluster)-1)
	}
	return subnet(cluster, n), nil
}

func subnet(cluster netip.Prefix, n int) netip.Prefix {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], number(cluster.Addr())+uint32(n)<<8)
	return netip.PrefixFrom(netip.AddrFrom4(b), subnetBits)
}

// Index returns the number of subnet, which must be one of cluster's.
func Index(cluster, subnet netip.Prefix) (int, error) {
	if err := CheckCluster(cluster); err != nil {
		return 0, err
	}
	switch {
	case !subnet.IsValid() || !subnet.Addr().Is4() || subnet.Bits() != subnetBits:
		return 0, fmt.Errorf("server subnet %q: want an IPv4 /24 of cluster %s", subnet, cluster)
	case subnet != subnet.Masked():
		return 0, fmt.Errorf("server subnet %q: host bits are set, want %s", subnet, subnet.Masked())
	case !cluster.Contains(subnet.Addr()):
		return 0, fmt.Errorf("server subnet %q: lies outside cluster %s", subnet, cluster)
	}
	return int((number(subnet.Addr()) - number(cluster.Addr())) >> 8), nil
}

// LowestFree returns the subnet of cluster with the lowest number that overlaps
// none of taken, in any order. Its error wraps ErrFull when there is none.
func LowestFree(cluster netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	if err := CheckCluster(cluster); err != nil {
		return netip.Prefix{}, err
	}
	used := make([]bool, Capacity(cluster))
	for _, p := range taken {
		if !p.Overlaps(cluster) {
			continue
		}
		first, last := 0, len(used)-1
		if p.Bits() > cluster.Bits() {
			first = int((number(p.Addr()) - number(cluster.Addr())) >> 8)
			last = first
			if p.Bits() < subnetBits {
				first &^= 1<<(subnetBits-p.Bits()) - 1
				last = first + 1<<(subnetBits-p.Bits()) - 1
			}
		}
		for n := first; n <= last; n++ {
			used[n] = true
		}
	}
	for n, u := range used {
		if !u {
			return subnet(cluster, n), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("cluster %s: %w: all %d are taken", cluster, ErrFull, len(used))
}

// WireGuardIP returns the first address of a server subnet, or the zero value
// for the zero value.
func WireGuardIP(subnet netip.Prefix) netip.Addr {
	if !subnet.IsValid() {
		return netip.Addr{}
	}
	return subnet.Masked().Addr().Next()
}

// Management returns the management address that belongs to key: fdcc and the
// first 14 bytes of the SHA-256 of its 32 bytes.
func Management(key wgkey.Public) netip.Addr {
	sum := sha256.Sum256(key[:])
	b := [16]byte{0xfd, 0xcc}
	copy(b[2:], sum[:])
	return netip.AddrFrom16(b)
}

// ServerID turns a hostname into a server id: what is not a letter, a digit or
// a hyphen becomes a hyphen, runs of hyphens become one, those at the ends go,
// and 63 characters stay. While taken reports that the id is, -1, -2 … is added.
func ServerID(hostname string, taken func(id string) bool) (string, error) {
	var b strings.Builder
	for _, r := range hostname {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	base := strings.Trim(b.String(), "-")
	if base == "" {
		return "", fmt.Errorf("server name %q: has no letter or digit (A-Z, a-z, 0-9) to make an id from", hostname)
	}
	for n := range maxSuffix {
		suffix := ""
		if n > 0 {
			suffix = fmt.Sprintf("-%d", n)
		}
		id := strings.TrimRight(base[:min(len(base), maxIDLength-len(suffix))], "-") + suffix
		if !taken(id) {
			return id, nil
		}
	}
	return "", fmt.Errorf("server name %q: every id from %s to %s-%d is taken", hostname, base, base, maxSuffix-1)
}

// CheckID reports why id cannot be a server id, or nil.
func CheckID(id string) error {
	if id == "" {
		return errors.New("server id is missing")
	}
	clean, err := ServerID(id, func(string) bool { return false })
	if err != nil || clean != id {
		return fmt.Errorf("server id %q: want letters, digits and single hyphens between them, at most %d", id, maxIDLength)
	}
	return nil
}

func number(ip netip.Addr) uint32 {
	b := ip.As4()
	return binary.BigEndian.Uint32(b[:])
}
