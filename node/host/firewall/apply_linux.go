package firewall

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds one run of a program: firewalld's and ufw's are slow.
const patience = 20 * time.Second

// Detect says what the machine's firewall is made of.
func Detect() (Detection, error) {
	o, err := observe()
	if err != nil {
		return Detection{}, err
	}
	b, why, err := o.choose()
	return Detection{Backend: b, Why: why, Unprotected: o.unprotected(b)}, err
}

// Apply brings the machine's firewall to w and returns what it had to change:
// nothing, if it was so already. Each program's rules change at once, never leaving
// a moment without them. It goes on after a fault and reports all of them; the next
// call tries again.
func Apply(w Wanted) ([]Change, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	o, err := observe()
	if err != nil {
		return nil, err
	}
	chosen, _, err := o.choose()
	if err != nil {
		return nil, err
	}

	var (
		changes []Change
		faults  []error
	)
	done := func(c []Change, err error) {
		if err != nil {
			faults = append(faults, err)
		} else {
			changes = append(changes, c...)
		}
	}
	if o.noNFT == nil { // first: it guards both families
		rules := plan(w)
		key := func(r rule) string { print, _ := fingerprint(r.exprs()); return print }
		if c := diffNFT(rules, o.nft, key); len(c) > 0 {
			done(c, writeNFT(rules, o.nft.chains != nil))
		}
	}
	for _, t := range o.transactions(&w, chosen) {
		done(t.restore.changes, t.run())
	}
	for _, m := range o.managers() {
		c, err := m.tell(w, o)
		changes, faults = append(changes, c...), append(faults, err)
	}
	return changes, errors.Join(faults...)
}

// Remove takes away exactly what is ours, whatever version of this program and
// whichever variant of iptables it was written by. Interfaces are those that
// firewalld may have been told of: the tunnel's and the containers'.
func Remove(interfaces ...string) ([]Change, error) {
	o, err := observe()
	if err != nil {
		return nil, err
	}
	var (
		changes []Change
		faults  []error
	)
	for _, m := range o.managers() {
		c, err := m.forget(interfaces)
		changes, faults = append(changes, c...), append(faults, err)
	}
	for _, t := range o.transactions(nil, 0) {
		if err := t.run(); err != nil {
			faults = append(faults, err)
			continue
		}
		changes = append(changes, t.restore.changes...)
	}
	if o.nft.chains != nil {
		if err := deleteNFT(); err != nil {
			faults = append(faults, err)
		} else {
			object := "nftables: table inet " + tableName
			changes = append(changes, Change{object, object + " removed"})
		}
	}
	return changes, errors.Join(faults...)
}

// observe reads the machine's firewall. It changes nothing and loads no modules.
func observe() (observed, error) {
	_, err := os.Stat("/proc/sys/net/ipv6")
	o := observed{variants: map[Backend][]family{}, ipv6: err == nil}
	o.nft, o.tables, o.noNFT = readNFT()
	if errors.Is(o.noNFT, unix.EPERM) {
		return o, errors.New("firewall: may not be read or changed by this process: expected the capability CAP_NET_ADMIN")
	}
	o.nftCommand, o.ufw, o.firewallCmd = find("nft"), find("ufw"), find("firewall-cmd")

	usual := find("iptables")
	if usual != "" {
		out, err := run("", usual, "--version")
		if err != nil {
			return o, fmt.Errorf("firewall: %w", err)
		}
		o.usual = version(out)
	}
	for _, b := range []Backend{IPTablesNFT, IPTablesLegacy} {
		if b == IPTablesNFT && o.noNFT != nil {
			continue // it cannot work, either
		}
		families := []family{{tool: "iptables"}, {tool: "ip6tables", v6: true}}
		for i := range families {
			f := &families[i]
			name := f.tool
			f.tool = strings.Replace(b.String(), "iptables", name, 1)
			f.save, f.restore = find(f.tool+"-save"), find(f.tool+"-restore")
			if b == o.usual {
				f.save = cmp.Or(f.save, find(name+"-save"))
				f.restore = cmp.Or(f.restore, find(name+"-restore"))
				f.tool = name
			}
			if f.v6 && !o.ipv6 {
				f.save, f.restore = "", ""
			}
			if !f.installed() {
				continue
			}
			text, err := run("", f.save)
			if err != nil {
				return o, fmt.Errorf("firewall: %w", err)
			}
			f.rules = parseSave(text)
		}
		if families[0].installed() {
			o.variants[b] = families
		}
	}
	return o, nil
}

// run hands the transaction to iptables-restore.
func (t transaction) run() error {
	// The lock of xtables may be held for a moment by anybody.
	if _, err := run(t.restore.text, t.family.restore, "--noflush", "-w", "5"); err != nil {
		return fmt.Errorf("firewall: change %s's table %s: %w", t.tool, t.restore.table, err)
	}
	return nil
}

// find returns the path of a program, "" if it is not installed.
func find(name string) string {
	for _, name := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// run runs a program to its end and returns what it printed.
func run(input, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "LC_ALL=C")
	c.Stdin = strings.NewReader(input)
	c.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("still running after %v", patience)
	}
	if err != nil {
		said := strings.Join(strings.Fields(stderr.String()), " ")
		return "", fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, cmp.Or(said, "it printed no reason"))
	}
	return stdout.String(), nil
}

// Obstacles returns the rules of others that drop what the mesh needs to get
// through and that none of ours can be ahead of: those of other tables, and those
// that somebody put ahead of ours since the last Apply. It can read nftables' only
// where nft(8) is installed.
func Obstacles(w Wanted) ([]Obstacle, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	o, err := observe()
	if err != nil {
		return nil, err
	}
	grounds := o.grounds()
	if o.nftCommand != "" && o.noNFT == nil {
		text, err := run("", o.nftCommand, "list", "ruleset")
		if err != nil {
			return nil, fmt.Errorf("firewall: %w", err)
		}
		grounds = append(grounds, parseNFT(text, o.isRead)...)
	}
	return obstacles(grounds, w.flows()), nil
}
