package host

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const strict = 1 // of rp_filter: a packet has to come in by the interface that leads back to its source

// checkRPFilter judges the uplinks only. On the mesh's interface and on the
// container bridge every source has its route by the same interface, and an
// uplink that is the only one, or the preferred one, leads back to everybody.
func (c *checker) checkRPFilter() {
	metrics := map[string]int{} // the least of an IPv4 default route, by uplink
	best, preferred := math.MaxInt, ""
	for _, r := range c.Routes {
		l, ok := c.byIndex(r.Link)
		if !ok || r.Dst.Bits() != 0 || !r.Dst.Addr().Is4() || r.Type != typeUnicast || r.Table != tableMain || !leadsToUnderlay(l, c.Links) {
			continue
		}
		if least, known := metrics[l.Name]; !known || r.Metric < least {
			metrics[l.Name] = r.Metric
		}
		if r.Metric < best {
			best, preferred = r.Metric, l.Name
		}
	}
	for _, l := range c.Links {
		metric, uplink := metrics[l.Name]
		if !uplink || metric == best || c.rpFilter(l.Name) != strict {
			continue
		}
		at := l.Name
		if c.RPFilter[at] != strict {
			at = "all"
		}
		c.warn(KindRPFilter, "%s=1 (strict), expected 2 (loose) or 0 for uplink %s: what comes in by it is dropped where the way back leaves by %s, so that peers may not reach this server by %s: run `sysctl -w %s=2`",
			rpFilterKey(at), l.Name, preferred, l.Name, rpFilterKey(l.Name))
	}
}

// rpFilterKey is the sysctl as sysctl(8) takes it: a dot in an interface's name
// is written as a slash.
func rpFilterKey(link string) string {
	return "net.ipv4.conf." + strings.ReplaceAll(link, ".", "/") + ".rp_filter"
}

// rpFilter is what counts for an interface: the larger of its own and all's
// (ip-sysctl.rst).
func (f Facts) rpFilter(link string) int { return max(f.RPFilter["all"], f.RPFilter[link]) }

// readRPFilter reads net.ipv4.conf.*.rp_filter; root is "/" except in tests.
// What cannot be read counts as off.
func readRPFilter(root string) map[string]int {
	dir := filepath.Join(root, "proc/sys/net/ipv4/conf")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	out := map[string]int{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), "rp_filter"))
		if err != nil {
			continue // an interface that went
		}
		if v, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			out[e.Name()] = v
		}
	}
	return out
}
