package firewall

import (
	"bufio"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ours begins the names of our chains. Whatever jumps to such a chain is ours, too.
const ours = "JIJI-"

// A place is where iptables has a hook's rules.
type place struct {
	table, base string
	chain       string // ours
	also        string // a chain of others that gets our jumps where it exists
}

var places = map[hook]place{
	prerouting:  {table: "raw", base: "PREROUTING", chain: ours + "PREROUTING"},
	input:       {table: "filter", base: "INPUT", chain: ours + "INPUT"},
	forward:     {table: "filter", base: "FORWARD", chain: ours + "FORWARD", also: "DOCKER-USER"},
	leaving:     {table: "mangle", base: "POSTROUTING", chain: ours + "LEAVING"},
	postrouting: {table: "nat", base: "POSTROUTING", chain: ours + "POSTROUTING"},
}

// A ruleset is what iptables-save prints.
type ruleset map[string]*table

// A table is one of iptables' tables.
type table struct {
	order  []string          // the chains
	policy map[string]string // of each chain; "-" for those that are not built in
	rules  map[string][]string
}

func newTable() *table {
	return &table{policy: map[string]string{}, rules: map[string][]string{}}
}

// parseSave reads the output of iptables-save. It skips what it does not know.
func parseSave(text string) ruleset {
	set := ruleset{}
	var t *table
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "*"):
			t = newTable()
			set[line[1:]] = t
		case t == nil:
		case strings.HasPrefix(line, ":"):
			if name, rest, ok := strings.Cut(line[1:], " "); ok {
				policy, _, _ := strings.Cut(rest, " ")
				t.add(name, policy)
			}
		case strings.HasPrefix(line, "-A "):
			if name, args, _ := strings.Cut(line[3:], " "); name != "" {
				t.add(name, cmp.Or(t.policy[name], "-"))
				t.rules[name] = append(t.rules[name], args)
			}
		}
	}
	return set
}

func (t *table) add(chain, policy string) {
	if _, known := t.policy[chain]; !known {
		t.order = append(t.order, chain)
	}
	t.policy[chain] = policy
}

// foreign counts what is in s and not ours.
func (s ruleset) foreign() (n int) {
	for _, t := range s {
		for chain, policy := range t.policy {
			if strings.HasPrefix(chain, ours) {
				continue
			}
			if policy != "-" && policy != "ACCEPT" {
				n++
			}
			for _, r := range t.rules[chain] {
				if !isOurs(r) {
					n++
				}
			}
		}
	}
	return n
}

// words splits the arguments of a rule as iptables-restore does.
func words(args string) (out []string) {
	var (
		word           strings.Builder
		in, quoted, on bool // in a word, in quotes, after a backslash
	)
	for _, c := range []byte(args) {
		switch {
		case on:
			word.WriteByte(c)
			on = false
		case quoted && c == '\\':
			on = true
		case c == '"':
			quoted, in = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if in {
				out = append(out, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if in {
		out = append(out, word.String())
	}
	return out
}

// An option is one condition or the target of a rule: "! -s 10.0.0.0/8".
type option struct {
	not   bool
	name  string
	value string
}

// options reads the arguments of a rule.
func options(args string) (out []option) {
	not := false
	for _, w := range words(args) {
		switch last := len(out) - 1; {
		case w == "!":
			not = true
		case len(w) > 1 && w[0] == '-' && (w[1] < '0' || w[1] > '9'):
			out = append(out, option{not: not, name: w})
			not = false
		case last >= 0:
			out[last].value = strings.TrimSpace(out[last].value + " " + w)
		}
	}
	return out
}

// normal brings a rule's arguments into one form: versions of iptables print the
// same rule with its options in another order and with or without "-m udp".
func normal(args string) string {
	var parts []string
	for _, o := range options(args) {
		switch o.name {
		case "-m":
			continue
		case "-s", "-d":
			if a, err := netip.ParseAddr(o.value); err == nil {
				o.value = host(a).String()
			}
		case "--ctstate":
			states := strings.Split(o.value, ",")
			slices.Sort(states)
			o.value = strings.Join(states, ",")
		}
		part := o.name + " " + o.value
		if o.not {
			part = "! " + part
		}
		parts = append(parts, part)
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

// target returns the chain or target that a rule leads to, "" for none.
func target(args string) string {
	for _, o := range options(args) {
		if o.name == "-j" || o.name == "-g" {
			name, _, _ := strings.Cut(o.value, " ")
			return name
		}
	}
	return ""
}

func isOurs(args string) bool { return strings.HasPrefix(target(args), ours) }

// iptables writes r as iptables-save does, with another target than its own if one
// is given.
func (r rule) iptables(cluster netip.Prefix, jump string) string {
	var b strings.Builder
	add := func(format string, args ...any) { fmt.Fprintf(&b, " "+format, args...) }
	if r.src.IsValid() {
		add("-s %v", r.src)
	}
	if r.dst.IsValid() {
		add("-d %v", r.dst)
	}
	if r.in != "" {
		add("-i %s", r.in)
	}
	if r.out != "" {
		add("-o %s", r.out)
	}
	if r.proto != "" {
		add("-p %s -m %s --dport %d", r.proto, r.proto, r.port)
	}
	switch r.state {
	case established:
		add("-m conntrack --ctstate RELATED,ESTABLISHED")
	case redirected:
		add("-m conntrack --ctstate DNAT")
	}
	switch {
	case jump != "":
		add("-j %s", jump)
	case r.do == accept:
		add("-j ACCEPT")
	case r.do == leave:
		add("-j RETURN")
	case r.do == drop:
		add("-j DROP")
	case r.do == keep:
		add("-j NETMAP --to %v", cluster)
	case r.do == rewrite:
		add("-j SNAT --to-source %v", r.to)
	}
	return b.String()[1:]
}

// A chainWant is what a chain has to hold: one of ours all of it, one of others at
// its head.
type chainWant struct {
	table, chain string
	rules        []string
}

// wantIPTables returns our chains and jumps of one family, given what is there.
func wantIPTables(w Wanted, v6 bool, have ruleset) (wants []chainWant) {
	for _, h := range []hook{prerouting, input, forward, leaving, postrouting} {
		p := places[h]
		var rules, jumps []string
		for _, r := range plan(w) {
			if r.hook == h && (r.v6 && v6 || r.v4 && !v6) && plainName(r.in) && plainName(r.out) {
				rules = append(rules, r.iptables(w.Cluster, ""))
			}
		}
		if len(rules) == 0 {
			continue
		}
		for _, j := range w.jumps(h) {
			jumps = append(jumps, j.iptables(w.Cluster, p.chain))
		}
		wants = append(wants, chainWant{p.table, p.chain, rules}, chainWant{p.table, p.base, jumps})
		if t := have[p.table]; p.also != "" && t != nil && t.policy[p.also] != "" {
			wants = append(wants, chainWant{p.table, p.also, jumps})
		}
	}
	return wants
}

// A restore is the input of one iptables-restore, which does all of it or nothing.
type restore struct {
	table   string
	text    string
	changes []Change
}

// diffIPTables returns what brings have to wants, a transaction for each table that
// needs one. Whatever is ours and not wanted goes. tool is for the log lines.
func diffIPTables(tool string, wants []chainWant, have ruleset) (out []restore) {
	for _, name := range []string{"raw", "filter", "mangle", "nat", "security"} {
		t := have[name]
		if t == nil {
			t = newTable()
		}
		d := tableDiff{what: tool + " " + name, have: t, want: map[string][]string{}}
		chains := slices.Clone(t.order)
		for _, w := range wants {
			if w.table == name {
				d.want[w.chain] = w.rules
				if !slices.Contains(chains, w.chain) {
					chains = append(chains, w.chain)
				}
			}
		}
		for _, chain := range chains {
			if strings.HasPrefix(chain, ours) {
				d.own(chain)
			}
		}
		for _, chain := range chains {
			if !strings.HasPrefix(chain, ours) {
				d.others(chain)
			}
		}
		if len(d.changes) > 0 {
			text := strings.Join(slices.Concat([]string{"*" + name}, d.lines, d.last, []string{"COMMIT", ""}), "\n")
			out = append(out, restore{name, text, d.changes})
		}
	}
	return out
}

// A tableDiff gathers what has to be done to a table.
type tableDiff struct {
	what    string
	have    *table
	want    map[string][]string
	lines   []string // for iptables-restore --noflush
	last    []string // to be done when nothing leads to what they delete
	changes []Change
}

func (d *tableDiff) changed(object, format string, args ...any) {
	d.changes = append(d.changes, Change{object, object + " " + fmt.Sprintf(format, args...)})
}

// own brings a chain of ours to what is wanted of it.
func (d *tableDiff) own(chain string) {
	object := d.what + ": chain " + chain
	policy, there := d.have.policy[chain], d.have.policy[chain] != ""
	want, wanted := d.want[chain]
	have := d.have.rules[chain]
	switch {
	case !wanted:
		d.lines = append(d.lines, "-F "+chain)
		d.last = append(d.last, "-X "+chain)
		d.changed(object, "removed")
		return
	case there && policy == "-" && slices.EqualFunc(have, want, same):
		return
	case !there:
		d.changed(object, "was not there: added")
	case len(have) == 0:
		d.changed(object, "was empty: its %d rules put back", len(want))
	default:
		d.rules(chain, want, have)
	}
	// This line makes the chain, or empties it.
	d.lines = append(d.lines, ":"+chain+" - [0:0]")
	for _, r := range want {
		d.lines = append(d.lines, "-A "+chain+" "+r)
	}
}

// others brings our jumps to the head of a chain that is not ours, and takes away
// those that are not wanted.
func (d *tableDiff) others(chain string) {
	want := d.want[chain]
	all := d.have.rules[chain]
	var have []string
	first, before := -1, "" // the place of our first rule, and what is before it that matters
	contiguous := true
	for i, r := range all {
		switch {
		case isOurs(r):
			if first < 0 {
				first = i
			}
			contiguous = contiguous && i == first+len(have)
			have = append(have, r)
		case first < 0 && before == "" && !d.harmless(r):
			before = r
		}
	}
	if slices.EqualFunc(have, want, same) {
		if before == "" && contiguous || len(want) == 0 {
			return
		}
		d.changed(d.what+": our rules in chain "+chain, "moved to its head, where there was %s", cmp.Or(before, "a rule between them"))
	} else if !d.follows(want, have) {
		d.rules(chain, want, have)
	}
	for _, r := range have {
		d.lines = append(d.lines, "-D "+chain+" "+r)
	}
	for i, r := range want {
		d.lines = append(d.lines, fmt.Sprintf("-I %s %d %s", chain, i+1, r))
	}
}

// follows reports whether the jumps of a chain come or go with the chain they lead
// to, so that saying that of the chain says it all.
func (d *tableDiff) follows(want, have []string) bool {
	for _, r := range have {
		if _, wanted := d.want[target(r)]; wanted {
			return false
		}
	}
	for _, r := range want {
		if d.have.policy[target(r)] != "" {
			return false
		}
	}
	return true
}

// harmless reports whether a rule of others may stay ahead of ours: a jump to a
// chain at whose head ours are, where Docker puts its own at every start.
func (d *tableDiff) harmless(args string) bool {
	o := options(args)
	return len(o) == 1 && o[0].name == "-j" && len(d.want[o[0].value]) > 0 && !strings.HasPrefix(o[0].value, ours)
}

// rules reports the difference between two lists of rules of a chain.
func (d *tableDiff) rules(chain string, want, have []string) {
	count := map[string]int{}
	for _, r := range have {
		count[normal(r)]++
	}
	n := len(d.changes)
	for _, r := range want {
		if count[normal(r)]--; count[normal(r)] < 0 {
			d.changed(fmt.Sprintf("%s: rule -A %s %s", d.what, chain, r), "was not there: added")
		}
	}
	for _, r := range have {
		if count[normal(r)] > 0 {
			count[normal(r)]--
			d.changed(fmt.Sprintf("%s: rule -A %s %s", d.what, chain, r), "removed")
		}
	}
	if len(d.changes) == n {
		d.changed(d.what+": our rules in chain "+chain, "put back in order")
	}
}

func same(a, b string) bool { return normal(a) == normal(b) }
