package firewall

import (
	"fmt"
	"slices"
	"strings"
)

// A family is iptables for one of IPv4 and IPv6, in one of its variants.
type family struct {
	tool          string // what its user would type: "ip6tables-legacy"
	v6            bool
	save, restore string // programs; "" if they are not installed
	rules         ruleset
}

func (f family) installed() bool { return f.save != "" && f.restore != "" }

// observed is what there is on a machine.
type observed struct {
	variants                     map[Backend][]family // installed variants of iptables; IPv4, which is there, then IPv6
	usual                        Backend              // what `iptables` is; 0: there is none
	ipv6                         bool                 // the kernel has IPv6
	nft                          kernelTable          // ours
	tables                       []string             // of nftables, all: "inet filter"
	noNFT                        error                // the kernel has no nftables, or hides it
	nftCommand, ufw, firewallCmd string               // programs; "" if they are not installed
	broken                       []error              // programs that are installed and do not work, whose variants are left out
}

// foreign counts the rules of a variant that are not ours.
func (o observed) foreign(b Backend) (n int) {
	for _, f := range o.variants[b] {
		n += f.rules.foreign()
	}
	return n
}

// choose says what the firewall of the machine is made of.
func (o observed) choose() (Backend, string, error) {
	nft, legacy := o.variants[IPTablesNFT] != nil, o.variants[IPTablesLegacy] != nil
	inNFT, inLegacy := o.foreign(IPTablesNFT), o.foreign(IPTablesLegacy)
	switch {
	case !nft && !legacy && o.noNFT == nil:
		return NFTables, "iptables is not installed", nil
	case !nft && !legacy:
		return 0, "", fmt.Errorf("firewall: iptables is not installed and the kernel's nftables cannot be used: %w: run `modprobe nf_tables` or install iptables", o.noNFT)
	case !legacy:
		return IPTablesNFT, "iptables-legacy is not installed", nil
	case !nft:
		return IPTablesLegacy, "iptables-nft is not installed", nil
	case inNFT > 0 && inLegacy == 0:
		return IPTablesNFT, "it holds the rules of others", nil
	case inLegacy > 0 && inNFT == 0:
		return IPTablesLegacy, "it holds the rules of others", nil
	case inLegacy > 0:
		return o.orNFT(), fmt.Sprintf("it is what `iptables` is here; %d rules are in iptables-nft and %d in iptables-legacy, and a packet has to pass both: ours go into both", inNFT, inLegacy), nil
	default:
		return o.orNFT(), "it is what `iptables` is here", nil
	}
}

func (o observed) orNFT() Backend {
	if o.usual == 0 {
		return IPTablesNFT
	}
	return o.usual
}

// uses reports whether our rules belong into a variant of iptables: a packet has to
// pass all that hold anybody's.
func (o observed) uses(b, chosen Backend) bool { return b == chosen || o.foreign(b) > 0 }

// unprotected says what cannot be done for want of something.
func (o observed) unprotected(b Backend) (out []string) {
	if o.noNFT != nil {
		out = append(out, fmt.Sprintf("the kernel's nftables cannot be used (%v): rules that others put ahead of ours in iptables have the last word until the next check", o.noNFT))
	}
	if o.noNFT == nil && o.nftCommand == "" {
		out = append(out, "nft is not installed: rules of others in nftables that stand in the way cannot be shown")
	}
	if !o.ipv6 || b == NFTables {
		return out
	}
	for _, variant := range []Backend{IPTablesNFT, IPTablesLegacy} {
		if o.variants[variant] == nil || !o.uses(variant, b) || o.variants[variant][1].installed() {
			continue
		}
		tool := o.variants[variant][1].tool
		if o.noNFT != nil {
			out = append(out, tool+" is not installed: IPv6 is not guarded: a neighbour on an uplink may reach the management addresses")
		} else {
			out = append(out, tool+" is not installed: IPv6 is guarded by nftables, but a DROP in ip6tables cannot be passed")
		}
	}
	return out
}

// transactions returns what brings iptables to w, nil for nothing of ours: for each
// program that has to be run, what it gets.
func (o observed) transactions(w *Wanted, chosen Backend) (out []transaction) {
	for _, b := range []Backend{IPTablesNFT, IPTablesLegacy} {
		for _, f := range o.variants[b] {
			if !f.installed() {
				continue
			}
			var wants []chainWant
			if w != nil && o.uses(b, chosen) {
				wants = wantIPTables(*w, f.v6, f.rules)
			}
			for _, r := range diffIPTables(f.tool, wants, f.rules) {
				out = append(out, transaction{f, r})
			}
		}
	}
	return out
}

// A transaction is one run of iptables-restore.
type transaction struct {
	family
	restore restore
}

func (o observed) hasTable(name string) bool { return slices.Contains(o.tables, name) }

// hasChain reports whether a chain is in iptables' filter table, in any variant.
func (o observed) hasChain(name string) bool {
	for _, families := range o.variants {
		for _, f := range families {
			if t := f.rules["filter"]; t != nil && t.policy[name] != "" {
				return true
			}
		}
	}
	return false
}

// version tells the variant of iptables from what `iptables --version` prints.
func version(text string) Backend {
	switch {
	case strings.Contains(text, "(nf_tables)"):
		return IPTablesNFT
	case strings.Contains(text, "iptables"): // before 1.8 it did not say
		return IPTablesLegacy
	}
	return 0
}
