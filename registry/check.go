package registry

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxID    = 128
	maxLabel = 63 // RFC 1035, section 2.3.4
	maxName  = 255
	maxPorts = 256
	maxMilli = 253402300799999 // the end of the year 9999, where RFC 3339 ends too

	wantID     = "1 to 128 letters, digits, dots, hyphens and underscores"
	wantLabel  = "1 to 63 letters, digits, hyphens and underscores, no hyphen at either end"
	wantHealth = "healthy, unhealthy, starting, degraded or unknown"
)

// Normalize returns c as a store keeps it: times in UTC and to the millisecond,
// ports in order and each once. Its error is an *InvalidError.
func (c Container) Normalize() (Container, error) {
	switch {
	case !isID(c.ID):
		return c, &InvalidError{"id", c.ID, wantID}
	case !isID(c.ServerID):
		return c, &InvalidError{"server id", c.ServerID, wantID}
	case !isLabel(c.Service):
		return c, &InvalidError{"service", c.Service, wantLabel}
	case strings.EqualFold(c.Service, "node"):
		return c, &InvalidError{"service", c.Service, "another name: <server>.node is where servers are named"}
	case c.Project != "" && !isLabel(c.Project):
		return c, &InvalidError{"project", c.Project, wantLabel}
	case c.Instance != "" && !isLabel(c.Instance):
		return c, &InvalidError{"instance", c.Instance, wantLabel}
	case !isName(c.Name):
		return c, &InvalidError{"name", c.Name, "at most 255 bytes of printable UTF-8"}
	case !c.Health.valid():
		return c, &InvalidError{"health", string(c.Health), wantHealth}
	case c.Failures < 0 || c.Failures > math.MaxInt32:
		return c, &InvalidError{"failures", strconv.Itoa(c.Failures), "0 to 2147483647"}
	}
	if why := unfit(c.IP); why != "" {
		return c, &InvalidError{"ip", addrText(c.IP), why}
	}
	var err error
	if c.StartedAt, err = milli("started at", c.StartedAt); err != nil {
		return c, err
	}
	if c.LastCheck, err = milli("last check", c.LastCheck); err != nil {
		return c, err
	}
	if c.Ports, err = sortPorts(c.Ports); err != nil {
		return c, err
	}
	return c, nil
}

// CheckAddress reports whether a normalized c may have its address on the
// server that owns subnet: a container of the mesh lies in the subnet, whose
// first address is the server itself, an external one outside the cluster.
// It is apart from Normalize because the subnet may be learned, and lost to
// another server, while a store is open. Its error is an *InvalidError.
func CheckAddress(c Container, subnet, cluster netip.Prefix) error {
	ip := c.IP.String()
	if c.External {
		if cluster.Contains(c.IP) {
			return &InvalidError{"ip", ip, fmt.Sprintf("an address outside the cluster's %v for an external container", cluster)}
		}
		return nil
	}
	if !subnet.IsValid() || !subnet.Addr().Is4() {
		return &InvalidError{"ip", ip, "an external container's: server " + c.ServerID + " has no subnet yet"}
	}
	first, last := subnet.Masked().Addr().Next(), lastAddr(subnet).Prev()
	if c.IP.Less(first) || last.Less(c.IP) {
		return &InvalidError{"ip", ip, fmt.Sprintf("%v to %v, of server %s, or an external container", first, last, c.ServerID)}
	}
	return nil
}

// lastAddr returns the broadcast address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// unfit returns what is wanted instead of ip, or nothing if ip can be a container's.
func unfit(ip netip.Addr) string {
	switch {
	case !ip.IsValid():
		return "an IPv4 address"
	case ip.Is4In6():
		return "an IPv4 address in dotted form: " + ip.Unmap().String()
	case !ip.Is4():
		return "an IPv4 address: the mesh carries no IPv6 for containers"
	case ip.As4()[0] == 0:
		return "a unicast address, not an unspecified one (0.0.0.0/8)"
	case ip.IsLoopback():
		return "a unicast address, not loopback (127.0.0.0/8)"
	case ip.IsLinkLocalUnicast():
		return "a unicast address, not link-local (169.254.0.0/16)"
	case ip.IsMulticast():
		return "a unicast address, not multicast (224.0.0.0/4)"
	case ip.As4()[0] >= 240:
		return "a unicast address, not reserved or broadcast (240.0.0.0/4)"
	}
	return ""
}

func (h Health) valid() bool {
	switch h {
	case Healthy, Unhealthy, Starting, Degraded, Unknown:
		return true
	}
	return false
}

// CheckHealth returns the time of a check as a store keeps it, see Normalize,
// or an *InvalidError if that or the word is none.
func CheckHealth(h Health, at time.Time) (time.Time, error) {
	if !h.valid() {
		return at, &InvalidError{"health", string(h), wantHealth}
	}
	return milli("last check", at)
}

// CheckServerID returns an *InvalidError unless id can be a server's.
func CheckServerID(id string) error {
	if !isID(id) {
		return &InvalidError{"server id", id, wantID}
	}
	return nil
}

func milli(field string, t time.Time) (time.Time, error) {
	if t.IsZero() || t.UnixMilli() == 0 { // 0 is the tables' "unknown"
		return time.Time{}, nil
	}
	if t.UnixMilli() < 0 || t.UnixMilli() > maxMilli {
		return t, &InvalidError{field, t.UTC().Format(time.RFC3339), "a time from 1970 to 9999"}
	}
	return time.UnixMilli(t.UnixMilli()).UTC(), nil
}

func sortPorts(ports []Port) ([]Port, error) {
	for _, p := range ports {
		if p.Number == 0 || p.Proto != "tcp" && p.Proto != "udp" && p.Proto != "sctp" {
			return nil, &InvalidError{"port", p.String(), "1 to 65535, then /tcp, /udp or /sctp"}
		}
	}
	if len(ports) > maxPorts {
		return nil, &InvalidError{"ports", fmt.Sprint(len(ports)), fmt.Sprintf("at most %d", maxPorts)}
	}
	if len(ports) == 0 {
		return nil, nil
	}
	ports = slices.SortedFunc(slices.Values(ports), comparePorts)
	return slices.Compact(ports), nil
}

func comparePorts(a, b Port) int {
	if a.Number != b.Number {
		return int(a.Number) - int(b.Number)
	}
	return strings.Compare(a.Proto, b.Proto)
}

func isID(s string) bool {
	return len(s) >= 1 && len(s) <= maxID && strings.IndexFunc(s, func(r rune) bool { return !isWord(r) && r != '.' }) < 0
}

// isLabel refuses a hyphen at either end because resolvers do (RFC 952; res_hnok of glibc).
func isLabel(s string) bool {
	return len(s) >= 1 && len(s) <= maxLabel && s[0] != '-' && s[len(s)-1] != '-' &&
		strings.IndexFunc(s, func(r rune) bool { return !isWord(r) }) < 0
}

func isWord(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
}

func isName(s string) bool {
	return len(s) <= maxName && utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

func addrText(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}

// clip keeps what a stranger wrote from filling a line.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
