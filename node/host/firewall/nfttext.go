package firewall

import (
	"fmt"
	"slices"
	"strings"
)

// parseNFT reads the output of `nft list ruleset`: the tables that packets have to
// pass, but for skip. What it does not understand of a rule makes the rule obscure.
func parseNFT(text string, skip func(table string) bool) (out []ground) {
	var (
		g    *ground
		c    *chain
		name string
		deep int // blocks of no interest that are open
	)
	hooks := map[string]hook{"prerouting": prerouting, "input": input, "forward": forward}
	for text := range strings.Lines(text) {
		text = strings.TrimSpace(text)
		words := nftWords(text)
		switch {
		case deep > 0 || strings.HasPrefix(text, "#"):
		case g == nil && len(words) == 4 && words[0] == "table" && words[3] == "{":
			t := words[1] + " " + words[2]
			g = &ground{name: "nft " + t, v4: words[1] != "ip6", v6: words[1] != "ip", chains: map[string]*chain{}}
			if !slices.Contains([]string{"ip", "ip6", "inet"}, words[1]) || skip(t) {
				g.v4, g.v6 = false, false // nothing passes it
			}
			g.fix = func(chain string, let rule) string {
				return fmt.Sprintf("nft insert rule %s %s %s", t, chain, let.nft())
			}
			continue
		case g != nil && c == nil && len(words) == 3 && words[0] == "chain" && words[2] == "{":
			c, name = &chain{}, words[1]
			continue
		case c != nil && len(words) > 5 && words[0] == "type":
			c.hook, c.base = hooks[words[3]]
			c.base = c.base && words[1] == "filter"
			if strings.Contains(text, "policy drop") {
				c.policy = text
			}
			continue
		case c != nil && text == "}":
			g.chains[name] = c
			g.order = append(g.order, name)
			c = nil
			continue
		case c != nil && text != "":
			c.lines = append(c.lines, nftLine(text, words))
			continue
		case g != nil && text == "}":
			if g.v4 || g.v6 {
				out = append(out, *g)
			}
			g = nil
			continue
		case g != nil && text == "flags dormant":
			g.v4, g.v6 = false, false
		}
		deep = max(0, deep+strings.Count(text, "{")-strings.Count(text, "}"))
	}
	return out
}

// nftWords splits a line of nft(8): quoted text is one word, and so is each of
// { } and a comma.
func nftWords(text string) (out []string) {
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		n := strings.IndexAny(text, " \t,{}")
		switch {
		case text[0] == '"':
			if n = strings.IndexByte(text[1:], '"'); n >= 0 {
				out = append(out, text[1:n+1])
				text = text[n+2:]
				continue
			}
			n = len(text)
		case n == 0:
			n = 1
		case n < 0:
			n = len(text)
		}
		out = append(out, text[:n])
		text = text[n:]
	}
	return out
}

// nftLine understands a rule.
func nftLine(text string, words []string) line {
	l := line{text: text}
	next := func() string {
		if len(words) == 0 {
			return ""
		}
		w := words[0]
		words = words[1:]
		return w
	}
	// values reads what follows a selector: x, != x, x,y or { x, y }.
	values := func(what string) {
		c := condition{what: what}
		if len(words) > 0 && (words[0] == "!=" || words[0] == "==") {
			c.not = next() == "!="
		}
		if len(words) > 0 && words[0] == "{" {
			next()
			for v := next(); v != "}" && v != ""; v = next() {
				if v != "," {
					c.values = append(c.values, v)
				}
			}
		} else {
			c.values = []string{next()}
			for len(words) > 1 && words[0] == "," {
				next()
				c.values = append(c.values, next())
			}
		}
		for _, v := range c.values { // a set by name, a map, an expression
			if v == "vmap" || v == "map" || v == "&" || strings.HasPrefix(v, "@") {
				l.obscure = true
			}
		}
		l.conditions = append(l.conditions, c)
	}
	for len(words) > 0 && l.verdict == "" && !l.obscure {
		switch w := next(); w {
		case "meta":
		case "iifname", "iif":
			values("in")
		case "oifname", "oif":
			values("out")
		case "ip", "ip6":
			if w == "ip6" {
				l.conditions = append(l.conditions, condition{what: "family", values: []string{"ipv6"}})
			} else {
				l.conditions = append(l.conditions, condition{what: "family", values: []string{"ipv4"}})
			}
			switch next() {
			case "saddr":
				values("src")
			case "daddr":
				values("dst")
			case "protocol", "nexthdr":
				values("proto")
			default:
				l.obscure = true
			}
		case "l4proto":
			values("proto")
		case "nfproto":
			values("family")
		case "udp", "tcp":
			l.conditions = append(l.conditions, condition{what: "proto", values: []string{w}})
			if next() != "dport" {
				l.obscure = true
				break
			}
			values("port")
		case "th":
			if next() != "dport" {
				l.obscure = true
				break
			}
			values("port")
		case "ct":
			if next() != "state" {
				l.obscure = true
				break
			}
			values("state")
		case "counter":
			if len(words) > 3 && words[0] == "packets" {
				words = words[4:]
			}
		case "log":
			for len(words) > 1 && slices.Contains([]string{"prefix", "level", "group", "flags", "snaplen"}, words[0]) {
				words = words[2:]
			}
		case "accept", "return":
			l.verdict = w
		case "drop", "reject":
			l.verdict = "drop"
		case "jump", "goto":
			l.verdict, l.target = w, next()
		case "comment":
			return l
		default:
			l.obscure = true
		}
	}
	return l
}
