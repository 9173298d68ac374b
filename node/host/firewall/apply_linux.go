package firewall

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	patience = 20 * time.Second // bounds one run of a program: firewalld's and ufw's are slow

	// For the lock of legacy iptables, which anybody may hold for a moment.
	applyWait  = 5 * time.Second
	removeWait = 15 * time.Second // nobody tries again
)

// errLocked is wrapped by the error of a transaction that did not get the lock.
var errLocked = errors.New("another program holds the lock of iptables")

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
		return nil, errors.Join(append(o.broken, err)...)
	}

	var changes []Change
	faults := o.broken
	done := func(c []Change, err error) {
		changes, faults = append(changes, c...), append(faults, err)
	}
	if o.noNFT == nil { // first: it guards both families
		rules := plan(w)
		key := func(r rule) string { print, _ := fingerprint(r.exprs()); return print }
		if c := diffNFT(rules, o.nft, key); len(c) > 0 {
			if err := writeNFT(rules, o.nft.chains != nil); err != nil {
				done(nil, err)
			} else {
				done(c, nil)
			}
		}
	}
	done(transact(o.transactions(&w, chosen), applyWait))
	for _, m := range o.managers() {
		done(m.tell(w, o))
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
	var changes []Change
	faults := o.broken
	for _, m := range o.managers() {
		c, err := m.forget(interfaces)
		changes, faults = append(changes, c...), append(faults, err)
	}
	c, err := transact(o.transactions(nil, 0), removeWait)
	changes, faults = append(changes, c...), append(faults, err)
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
			o.broken = append(o.broken, fmt.Errorf("firewall: %w", err))
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
			if err != nil { // the others guard the mesh as well as they can
				o.broken = append(o.broken, fmt.Errorf("firewall: %w", err))
				families[0].save = ""
				break
			}
			f.rules = parseSave(text)
		}
		if families[0].installed() {
			o.variants[b] = families
		}
	}
	return o, nil
}

// transact runs the transactions, and returns the changes of those that succeeded.
func transact(list []transaction, wait time.Duration) (changes []Change, err error) {
	for _, t := range list {
		switch terr := t.run(wait); {
		case errors.Is(terr, errLocked): // the rest would wait as long, each of them
			return changes, errors.Join(err, terr)
		case terr != nil:
			err = errors.Join(err, terr)
		default:
			changes = append(changes, t.restore.changes...)
		}
	}
	return changes, err
}

// run hands the transaction to iptables-restore.
func (t transaction) run(wait time.Duration) error {
	_, err := run(t.restore.text, t.family.restore, "--noflush", "-w", fmt.Sprint(int(wait.Seconds())))
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "xtables lock"):
		return fmt.Errorf("firewall: change %s's tables: %w for more than %v: end the one that `fuser -v /run/xtables.lock` shows", t.tool, errLocked, wait)
	}
	return fmt.Errorf("firewall: change %s's table %s: %w", t.tool, t.restore.table, err)
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
	var stdout, stderr limited
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("still running after %v", patience)
	case stdout.over || stderr.over:
		err = fmt.Errorf("it printed more than %d MB", maxOutput>>20)
	}
	if err != nil {
		said := strings.Join(strings.Fields(stderr.buf.String()), " ")
		return "", fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, cmp.Or(said, "it printed no reason"))
	}
	return stdout.buf.String(), nil
}

// maxOutput is what a program may print, in bytes: a hundred thousand rules are 10 MB.
const maxOutput = 64 << 20

// limited keeps what is written to it, and refuses what is too much.
type limited struct {
	buf  bytes.Buffer
	over bool
}

func (l *limited) Write(b []byte) (int, error) {
	if l.over = l.over || l.buf.Len()+len(b) > maxOutput; l.over {
		return 0, io.ErrShortBuffer
	}
	return l.buf.Write(b)
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
