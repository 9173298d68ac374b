package upstream

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
)

// Parse returns the name servers of a resolv.conf in its order, each once. It
// reads lines as glibc does: a keyword counts only at the beginning of its
// line, an address ends at a blank, "#" or ";". What is no address to ask is
// left out and named in problems.
func Parse(data []byte) (servers []netip.Addr, problems []error) {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		rest, ok := bytes.CutPrefix(line, []byte("nameserver"))
		if !ok || len(rest) == 0 || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		rest = bytes.TrimLeft(rest, " \t")
		if end := bytes.IndexAny(rest, "#; \t\r\n"); end >= 0 {
			rest = rest[:end]
		}
		ip, err := netip.ParseAddr(string(rest))
		ip = ip.Unmap()
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("line %d: nameserver %.100q: want an IPv4 or IPv6 address", n, rest))
		case ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			problems = append(problems, fmt.Errorf("line %d: nameserver %v: want the address of one machine", n, ip))
		case !slices.Contains(servers, ip):
			servers = append(servers, ip)
		}
	}
	return servers, problems
}
