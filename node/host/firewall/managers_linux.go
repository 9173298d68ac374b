package firewall

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// mark is the comment of what is told to ufw.
const mark = "jiji-node"

// priority marks what is told to firewalld, whose rules have no comments: nobody
// else's have this one, and it lets a rule be ahead of others.
const priority = "-5182"

// A manager is a firewall program that would not know of us otherwise: it shows its
// users what is open, and some of them drop what they were not told of.
type manager interface {
	tell(Wanted, observed) ([]Change, error)
	forget(interfaces []string) ([]Change, error)
}

// managers returns those that are installed.
func (o observed) managers() (m []manager) {
	if o.ufw != "" {
		m = append(m, ufw{o.ufw, o.hasChain("ufw-user-input")})
	}
	if o.firewallCmd != "" {
		m = append(m, firewalld{o.firewallCmd, o.hasTable("inet firewalld") || o.hasChain("INPUT_direct")})
	}
	return m
}

// ufw is Debian's and Ubuntu's.
type ufw struct {
	program string
	runs    bool
}

// rules are what ufw is to have, as its command line and as `ufw show added` say it.
func (u ufw) rules(w Wanted) (rules []string) {
	if w.ListenPort != 0 {
		rules = append(rules, fmt.Sprintf("allow %d/udp", w.ListenPort))
	}
	if w.Bridge != "" {
		rules = append(rules,
			fmt.Sprintf("route allow in on %s out on %s", w.Link, w.Bridge),
			fmt.Sprintf("route allow in on %s out on %s", w.Bridge, w.Link))
	}
	return rules
}

func (u ufw) tell(w Wanted, o observed) (changes []Change, err error) {
	if !u.runs || u.knows(w, o) {
		return nil, nil
	}
	added, err := u.added()
	if err != nil {
		return nil, err
	}
	for _, r := range u.rules(w) {
		// Somebody's own rule to the same end stays as it is.
		if slices.ContainsFunc(added, func(a ufwRule) bool { return a.rule == r }) {
			continue
		}
		if _, err := run("", u.program, append(strings.Fields(r), "comment", mark)...); err != nil {
			return changes, fmt.Errorf("firewall: tell ufw: %w", err)
		}
		changes = append(changes, Change{"ufw: rule " + r, fmt.Sprintf("ufw: rule %s added", r)})
	}
	return changes, nil
}

// knows reports whether ufw has all it has to be told, as far as iptables shows it:
// ufw itself takes half a second to say so.
func (u ufw) knows(w Wanted, o observed) bool {
	has := func(chain, rule string) bool {
		for _, families := range o.variants {
			for _, f := range families {
				if t := f.rules["filter"]; t != nil && slices.ContainsFunc(t.rules[chain], func(r string) bool { return same(r, rule) }) {
					return true
				}
			}
		}
		return false
	}
	return (w.ListenPort == 0 || has("ufw-user-input", fmt.Sprintf("-p udp --dport %d -j ACCEPT", w.ListenPort))) &&
		(w.Bridge == "" || has("ufw-user-forward", fmt.Sprintf("-i %s -o %s -j ACCEPT", w.Link, w.Bridge)) &&
			has("ufw-user-forward", fmt.Sprintf("-i %s -o %s -j ACCEPT", w.Bridge, w.Link)))
}

// A ufwRule is a line of `ufw show added`.
type ufwRule struct {
	rule string
	ours bool
}

func (u ufw) added() ([]ufwRule, error) {
	text, err := run("", u.program, "show", "added")
	if err != nil {
		return nil, fmt.Errorf("firewall: ask ufw for its rules: %w", err)
	}
	return parseAdded(text), nil
}

func parseAdded(text string) (rules []ufwRule) {
	for line := range strings.Lines(text) {
		rule, ok := strings.CutPrefix(strings.TrimSpace(line), "ufw ")
		if !ok {
			continue
		}
		rule, comment, _ := strings.Cut(rule, " comment ")
		rules = append(rules, ufwRule{rule, strings.Trim(comment, "'") == mark})
	}
	return rules
}

func (u ufw) forget([]string) (changes []Change, err error) {
	added, err := u.added()
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, a := range added {
		if !a.ours {
			continue
		}
		args := []string{"delete"}
		rule := a.rule
		if rest, routed := strings.CutPrefix(rule, "route "); routed {
			args, rule = []string{"route", "delete"}, rest
		}
		if _, err := run("", u.program, append(args, strings.Fields(rule)...)...); err != nil {
			faults = append(faults, fmt.Errorf("firewall: take back what ufw was told: %w", err))
			continue
		}
		changes = append(changes, Change{"ufw: rule " + a.rule, fmt.Sprintf("ufw: rule %s removed", a.rule)})
	}
	return changes, errors.Join(faults...)
}

// firewalld is Fedora's and Red Hat's.
type firewalld struct {
	program string
	runs    bool
}

const trusted = "trusted" // the zone whose packets may be forwarded

func (f firewalld) tell(w Wanted, _ observed) (changes []Change, err error) {
	if !f.runs || firewalldKnows(w) {
		return nil, nil
	}
	var faults []error
	// Now and for ever: to reload it would lose what others have told it for now.
	set := func(object, query, add, zone string) {
		for _, lasting := range []string{"", "--permanent"} {
			args := slices.DeleteFunc([]string{lasting, "--zone=" + zone, query}, func(s string) bool { return s == "" })
			if out, err := run("", f.program, args...); err == nil && strings.TrimSpace(out) == "yes" {
				continue
			}
			args[len(args)-1] = add
			if _, err := run("", f.program, args...); err != nil {
				faults = append(faults, fmt.Errorf("firewall: tell firewalld: %w", err))
				continue
			}
			changes = append(changes, Change{"firewalld: " + object, fmt.Sprintf("firewalld: %s added to zone %s%s", object, zone, strings.Replace(lasting, "--", ", ", 1))})
		}
	}
	for _, name := range []string{w.Link, w.Bridge} {
		if name == "" {
			continue
		}
		if zone := f.zone(name); zone == "" || zone == trusted { // Docker gives its bridges one of its own
			set("interface "+name, "--query-interface="+name, "--add-interface="+name, trusted)
		}
	}
	if w.ListenPort == 0 {
		return changes, errors.Join(faults...)
	}
	usual, err := run("", f.program, "--get-default-zone")
	if err != nil {
		return changes, errors.Join(append(faults, fmt.Errorf("firewall: ask firewalld: %w", err))...)
	}
	zones := []string{strings.TrimSpace(usual)}
	for _, u := range w.Uplinks {
		if zone := f.zone(u); zone != "" && zone != trusted && !slices.Contains(zones, zone) {
			zones = append(zones, zone)
		}
	}
	rule := fmt.Sprintf(`rule priority="%s" port port="%d" protocol="udp" accept`, priority, w.ListenPort)
	for _, zone := range zones {
		set(fmt.Sprintf("port %d/udp", w.ListenPort), "--query-rich-rule="+rule, "--add-rich-rule="+rule, zone)
	}
	return changes, errors.Join(faults...)
}

// zone returns the zone of an interface, "" if it is in none of its own.
func (f firewalld) zone(name string) string {
	out, err := run("", f.program, "--get-zone-of-interface="+name)
	if err != nil { // "no zone" is an error to it
		return ""
	}
	return strings.TrimSpace(out)
}

func (f firewalld) forget(interfaces []string) (changes []Change, err error) {
	if !f.runs { // firewall-cmd cannot speak to it
		return nil, nil
	}
	var faults []error
	for _, lasting := range []string{"", "--permanent"} {
		call := func(args ...string) (string, error) {
			return run("", f.program, slices.DeleteFunc(append([]string{lasting}, args...), func(s string) bool { return s == "" })...)
		}
		remove := func(object, zone, arg string) {
			if _, err := call("--zone="+zone, arg); err != nil {
				faults = append(faults, fmt.Errorf("firewall: take back what firewalld was told: %w", err))
				return
			}
			changes = append(changes, Change{"firewalld: " + object, fmt.Sprintf("firewalld: %s removed from zone %s%s", object, zone, strings.Replace(lasting, "--", ", ", 1))})
		}
		for _, name := range interfaces {
			if out, err := call("--zone="+trusted, "--query-interface="+name); err == nil && strings.TrimSpace(out) == "yes" {
				remove("interface "+name, trusted, "--remove-interface="+name)
			}
		}
		zones, err := call("--get-zones")
		if err != nil {
			faults = append(faults, fmt.Errorf("firewall: ask firewalld: %w", err))
			continue
		}
		for _, zone := range strings.Fields(zones) {
			rules, err := call("--zone="+zone, "--list-rich-rules")
			if err != nil {
				faults = append(faults, fmt.Errorf("firewall: ask firewalld: %w", err))
				continue
			}
			for rule := range strings.Lines(rules) {
				if rule = strings.TrimSpace(rule); strings.HasPrefix(rule, `rule priority="`+priority+`" `) {
					remove(rule, zone, "--remove-rich-rule="+rule)
				}
			}
		}
	}
	return changes, errors.Join(faults...)
}
