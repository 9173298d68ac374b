package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// tableName is our table's in nftables, of family inet.
const tableName = "jiji"

// A base is one of our table's chains.
type base struct {
	hook     hook
	name     string
	kind     string // nftables' chain type
	priority int32
}

// Drops are final wherever they stand. Packets for containers are marked ahead of an
// engine's chain, which has filter, that is 0. Source addresses are settled by the chain of
// the lowest priority; many of others' have 0 or -100 in place of srcnat, which is
// 100, and -199 is the first that the kernel lets a chain of type nat have.
var bases = []base{
	{prerouting, "prerouting", "filter", -300},
	{input, "input", "filter", 0},
	{forward, "forward", "filter", -1},
	{leaving, "leaving", "filter", 0},
	{postrouting, "postrouting", "nat", -199},
}

// A chainState is one of our chains as the kernel has it.
type chainState struct {
	base
	policyDrop bool
	rules      []string // what the kernel has, in a form that can be compared
}

// A kernelTable is our table as the kernel has it.
type kernelTable struct {
	chains  []chainState // nil: there is no table
	dormant bool
}

// nft writes r as nft(8) does.
func (r rule) nft() string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	address := func(p netip.Prefix) string {
		if p.IsSingleIP() {
			return p.Addr().String()
		}
		return p.String()
	}
	family := "ip"
	switch {
	case r.v6 && !r.v4:
		family = "ip6"
		if !r.src.IsValid() && !r.dst.IsValid() {
			add("meta nfproto ipv6")
		}
	case r.v4 && !r.v6 && !r.src.IsValid() && !r.dst.IsValid():
		add("meta nfproto ipv4")
	}
	if r.in != "" {
		add("iifname %q", r.in)
	}
	if r.out != "" {
		add("oifname %q", r.out)
	}
	if r.src.IsValid() {
		add("%s saddr %s", family, address(r.src))
	}
	if r.dst.IsValid() {
		add("%s daddr %s", family, address(r.dst))
	}
	if r.proto != "" {
		add("%s dport %d", r.proto, r.port)
	}
	switch r.state {
	case established:
		add("ct state established,related")
	case redirected:
		add("ct status dnat")
	}
	switch r.do {
	case accept:
		if r.mark {
			add("meta mark set meta mark | %#x", EngineMark)
		}
		add("accept")
	case leave:
		add("return")
	case drop:
		add("counter drop")
	case keep:
		add("snat ip to ip saddr")
	case rewrite:
		add("snat ip to %v", r.to)
	}
	return strings.Join(parts, " ")
}

// diffNFT reports what has to change for have to be want: nothing, or the whole
// table, which is one transaction. key brings a rule into the form that chainState has.
func diffNFT(want []rule, have kernelTable, key func(rule) string) (changes []Change) {
	object := "nftables: table inet " + tableName
	changed := func(object, format string, args ...any) {
		changes = append(changes, Change{object, object + " " + fmt.Sprintf(format, args...)})
	}
	if have.chains == nil {
		changed(object, "was not there: added")
		return changes
	}
	if have.dormant {
		changed(object, "was dormant: put back to work")
	}
	for _, b := range bases {
		object := object + ", chain " + b.name
		i := slices.IndexFunc(have.chains, func(c chainState) bool { return c.name == b.name })
		if i < 0 {
			changed(object, "was not there: added")
			continue
		}
		c := have.chains[i]
		if c.base != b || c.policyDrop {
			changed(object, "had another hook, priority or policy: put back")
		}
		var rules []rule
		for _, r := range want {
			if r.hook == b.hook {
				rules = append(rules, r)
			}
		}
		if len(c.rules) == 0 && len(rules) > 0 {
			changed(object, "was empty: its %d rules put back", len(rules))
			continue
		}
		before := len(changes)
		left := slices.Clone(c.rules)
		inOrder := len(left) == len(rules)
		for n, r := range rules {
			k := key(r)
			inOrder = inOrder && c.rules[n] == k
			if at := slices.Index(left, k); at >= 0 {
				left = slices.Delete(left, at, at+1)
				continue
			}
			changed(object+": rule "+r.nft(), "was not there: added")
		}
		if len(left) > 0 {
			changed(object, "had %d rules that are not wanted: removed", len(left))
		}
		if len(changes) == before && !inOrder {
			changed(object, "had its rules in another order: put back")
		}
	}
	for _, c := range have.chains {
		if !slices.ContainsFunc(bases, func(b base) bool { return b.name == c.name }) {
			changed(object+", chain "+c.name, "removed")
		}
	}
	return changes
}
