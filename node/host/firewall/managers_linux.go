package firewall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mark is the comment of what is told to ufw.
const mark = "jiji-node"

// ruleMark begins what is told to firewalld, whose rules have no comments: nobody
// else's have this priority.
const ruleMark = `rule priority="-5182"`

// A manager is a firewall program that would not know of us otherwise: it shows its
// users what is open, and some of them drop what they were not told of.
type manager interface {
	tell(Wanted, observed) ([]Change, error)
	forget(interfaces []string) ([]Change, error)
}

// managers returns those that are installed.
func (o observed) managers() (m []manager) {
	if o.ufw != "" {
		m = append(m, ufw{o.ufw, o.hasChain("ufw-user-input"), ufwRules()})
	}
	if o.firewallCmd != "" {
		m = append(m, firewalld{o.firewallCmd, o.hasTable("inet firewalld") || o.hasChain("INPUT_direct"), "/etc/firewalld/zones"})
	}
	return m
}

// ufw is Debian's and Ubuntu's.
type ufw struct {
	program string
	runs    bool
	files   []string // that it keeps its rules in
}

// ufwRules are those of IPv4 and IPv6, each with all that it was told of its family.
func ufwRules() []string { return []string{"/etc/ufw/user.rules", "/etc/ufw/user6.rules"} }

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

// told reports whether ufw has rules of ours, by the comments in its files: it cannot
// be asked where it was never set up, or iptables is not installed.
func (u ufw) told() (bool, error) {
	for _, file := range u.files {
		text, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return false, fmt.Errorf("firewall: read ufw's rules: %w", err)
		case strings.Contains(string(text), fmt.Sprintf(" comment=%x\n", mark)):
			return true, nil
		}
	}
	return false, nil
}

func (u ufw) forget([]string) (changes []Change, err error) {
	if told, err := u.told(); !told {
		return nil, err
	}
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
	dir     string // of the files of its zones, as they are after its next start
}

const trusted = "trusted" // the zone whose packets may be forwarded

// A zone is one of firewalld's.
type zone struct {
	name       string
	interfaces []string
	rules      []string // rich ones
}

func parseZones(text string) (zones []zone) {
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name == "":
		case line[0] != ' ' && line[0] != '\t':
			zones = append(zones, zone{name: name})
		case len(zones) == 0:
		case name == "interfaces:":
			zones[len(zones)-1].interfaces = strings.Fields(line)[1:]
		case name == "rule":
			zones[len(zones)-1].rules = append(zones[len(zones)-1].rules, strings.TrimSpace(line))
		}
	}
	return zones
}

// run speaks to firewalld, which takes half a second. What it is told to add and has,
// or to remove and has not, is no error to it.
func (f firewalld) run(lasting bool, args ...string) (string, error) {
	if lasting {
		args = append([]string{"--permanent"}, args...)
	}
	return run("", f.program, args...)
}

// set tells firewalld the same for now and for ever: to reload it would lose what
// others have told it for now.
func (f firewalld) set(zone, option string) error {
	for _, lasting := range []bool{false, true} {
		if _, err := f.run(lasting, "--zone="+zone, option); err != nil {
			return fmt.Errorf("firewall: tell firewalld: %w", err)
		}
	}
	return nil
}

// firewalldKnows reports whether iptables shows that firewalld was told of the
// interfaces and the port of w, as far as anybody asks that does not ask firewalld.
func (o observed) firewalldKnows(w Wanted) bool {
	has := func(is func(chain string, options []option) bool) bool {
		for _, families := range o.variants {
			if t := families[0].rules["filter"]; t != nil {
				for _, chain := range t.order {
					if slices.ContainsFunc(t.rules[chain], func(r string) bool { return is(chain, options(r)) }) {
						return true
					}
				}
			}
		}
		return false
	}
	for _, name := range []string{w.Link, w.Bridge} {
		if name != "" && !has(func(chain string, o []option) bool {
			return strings.HasSuffix(chain, "_ZONES") && slices.Contains(o, option{name: "-i", value: name})
		}) {
			return false
		}
	}
	return w.ListenPort == 0 || has(func(chain string, o []option) bool {
		return strings.HasPrefix(chain, "IN_") && slices.Contains(o, option{name: "--dport", value: fmt.Sprint(w.ListenPort)}) && slices.Contains(o, option{name: "-j", value: "ACCEPT"})
	})
}

func (f firewalld) tell(w Wanted, o observed) (changes []Change, err error) {
	if !f.runs || nftShowsFirewalldKnows(w) || o.firewalldKnows(w) {
		return nil, nil
	}
	text, err := f.run(false, "--list-all-zones")
	if err != nil {
		return nil, fmt.Errorf("firewall: ask firewalld for its zones: %w", err)
	}
	zones := parseZones(text)
	in := func(name string) string { // the zone of an interface
		for _, z := range zones {
			if slices.Contains(z.interfaces, name) {
				return z.name
			}
		}
		return ""
	}
	var faults []error
	set := func(object, option, zone string) {
		if err := f.set(zone, option); err != nil {
			faults = append(faults, err)
			return
		}
		changes = append(changes, Change{"firewalld: " + object, fmt.Sprintf("firewalld: %s added to zone %s", object, zone)})
	}
	for _, name := range []string{w.Link, w.Bridge} {
		if name != "" && in(name) == "" { // Docker gives its bridges a zone of its own
			set("interface "+name, "--add-interface="+name, trusted)
		}
	}
	if w.ListenPort == 0 {
		return changes, errors.Join(faults...)
	}
	usual, err := f.run(false, "--get-default-zone")
	if err != nil {
		return changes, errors.Join(append(faults, fmt.Errorf("firewall: ask firewalld for its default zone: %w", err))...)
	}
	open := []string{strings.TrimSpace(usual)}
	for _, u := range w.Uplinks {
		if z := in(u); z != "" && z != trusted && !slices.Contains(open, z) {
			open = append(open, z)
		}
	}
	rule := fmt.Sprintf(`%s port port="%d" protocol="udp" accept`, ruleMark, w.ListenPort)
	for _, z := range zones {
		if slices.Contains(open, z.name) && !slices.Contains(z.rules, rule) {
			set(fmt.Sprintf("port %d/udp", w.ListenPort), "--add-rich-rule="+rule, z.name)
		}
	}
	return changes, errors.Join(faults...)
}

// told reports whether firewalld keeps something of ours, by its files.
func (f firewalld) told(interfaces []string) (bool, error) {
	marks := []string{fmt.Sprintf(" priority=%q", strings.Split(ruleMark, `"`)[1])}
	for _, name := range interfaces {
		marks = append(marks, fmt.Sprintf("<interface name=%q", name))
	}
	files, err := filepath.Glob(filepath.Join(f.dir, "*.xml"))
	if err != nil {
		return false, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("firewall: read firewalld's zones: %w", err)
		}
		if slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(string(text), m) }) {
			return true, nil
		}
	}
	return false, nil
}

func (f firewalld) forget(interfaces []string) (changes []Change, err error) {
	if f.runs {
		for _, lasting := range []bool{false, true} {
			c, cerr := f.forgetIn(interfaces, func(args ...string) (string, error) { return f.run(lasting, args...) }, lasting)
			changes, err = append(changes, c...), errors.Join(err, cerr)
		}
		return changes, err
	}
	// It cannot be spoken to, but what it keeps would be there again with it.
	if told, err := f.told(interfaces); !told {
		return nil, err
	}
	offline := find("firewall-offline-cmd")
	if offline == "" {
		return nil, errors.New("firewall: firewalld does not run, and firewall-offline-cmd is not installed: start it, and run this again, which takes back what it was told")
	}
	return f.forgetIn(interfaces, func(args ...string) (string, error) { return run("", offline, args...) }, true)
}

// forgetIn takes back what firewalld has, by what asks and tells it that.
func (f firewalld) forgetIn(interfaces []string, ask func(...string) (string, error), lasting bool) (changes []Change, err error) {
	text, err := ask("--list-all-zones")
	if err != nil {
		return nil, fmt.Errorf("firewall: ask firewalld for its zones: %w", err)
	}
	remove := func(object, option, zone string) {
		if _, rerr := ask("--zone="+zone, option); rerr != nil {
			err = errors.Join(err, fmt.Errorf("firewall: take back what firewalld was told: %w", rerr))
			return
		}
		when := ""
		if lasting {
			when = " for good"
		}
		changes = append(changes, Change{"firewalld: " + object, fmt.Sprintf("firewalld: %s removed from zone %s%s", object, zone, when)})
	}
	for _, z := range parseZones(text) {
		for _, name := range interfaces {
			if z.name == trusted && slices.Contains(z.interfaces, name) {
				remove("interface "+name, "--remove-interface="+name, z.name)
			}
		}
		for _, rule := range z.rules {
			if strings.HasPrefix(rule, ruleMark+" ") {
				remove(rule, "--remove-rich-rule="+rule, z.name)
			}
		}
	}
	return changes, err
}
