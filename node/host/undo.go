package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/host/firewall"
	"github.com/acidtib/jiji-node/node/host/journal"
	"github.com/acidtib/jiji-node/node/statefile"
)

// An Undone says what became of what was ours, one line each.
type Undone struct {
	Undone []string // taken back
	Kept   []string // left as it is, and why
}

// Undo takes back what any version of the program changed on the machine, and
// nothing that somebody else changed since. What packets for the mesh end at
// goes last. It goes on after a fault and reports all of them; what it could
// not take back stays in the journal for the next call. engines names the
// container engines in use, which need ip_forward; links are interfaces that
// the firewall may have been told of, besides those in the journal.
func (k *Keeper) Undo(engines func() []string, links ...string) (Undone, error) {
	u := undo{Keeper: k, engines: engines, links: links}
	var changes []journal.Change
	if k.journal != nil {
		changes = k.journal.Changes()
	}
	u.firewall(changes)
	u.forwarding(changes)
	for _, c := range slices.Backward(changes) {
		u.change(c)
	}
	u.leftovers()
	u.closed()
	return u.Undone, u.err
}

// An undo is one call of Undo.
type undo struct {
	*Keeper
	Undone
	engines func() []string
	links   []string
	err     error
}

func (u *undo) did(format string, args ...any) {
	u.Undone.Undone = append(u.Undone.Undone, fmt.Sprintf(format, args...))
}

func (u *undo) kept(format string, args ...any) {
	u.Undone.Kept = append(u.Undone.Kept, fmt.Sprintf(format, args...))
}

func (u *undo) fault(err error) { u.err = errors.Join(u.err, err) }

// forget takes changes out of the journal once err is nil.
func (u *undo) forget(err error, changes ...journal.Change) {
	u.fault(err)
	if err != nil {
		return
	}
	for _, c := range changes {
		u.fault(u.journal.Forget(c))
	}
}

// change takes back one change; those of the firewall, sysctls and routes have
// their own turn, and what engines have is for who knows them.
func (u *undo) change(c journal.Change) {
	switch c.Kind {
	case journal.Firewall, journal.Sysctl, journal.Route, journal.Network, journal.Daemon:
	case journal.File:
		u.forget(u.file(c), c)
	case journal.Directory:
		u.forget(u.directory(c), c)
	case journal.Socket:
		u.forget(u.socket(c), c)
	default:
		u.fault(fmt.Errorf("undo %s %s: this version does not know how: run `jiji-node down` of the newer one that changed it", c.Kind, c.Name))
	}
}

// firewall takes back the rules, which are known by their names: all of them,
// whatever the journal says.
func (u *undo) firewall(changes []journal.Change) {
	changes = slices.DeleteFunc(slices.Clone(changes), func(c journal.Change) bool { return c.Kind != journal.Firewall })
	links := slices.Clone(u.links)
	for _, c := range changes {
		for _, v := range c.Set {
			links = append(links, v.Text)
		}
	}
	slices.Sort(links)
	done, err := firewall.Remove(slices.Compact(links)...)
	for _, c := range done {
		u.did("%s", c.What)
	}
	u.forget(err, changes...)
}

// forwarding takes back the sysctls, of which ip_forward moves the others.
func (u *undo) forwarding(changes []journal.Change) {
	changes = slices.DeleteFunc(slices.Clone(changes), func(c journal.Change) bool { return c.Kind != journal.Sysctl })
	i := slices.IndexFunc(changes, func(c journal.Change) bool { return c.Name == ipForward })
	if i < 0 {
		return
	}
	now := map[string]string{}
	for _, c := range changes {
		v, err := u.readSysctl(c.Name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // of an interface that went
			u.fault(err)
			return
		}
		now[c.Name] = v
	}
	switch c := changes[i]; {
	case now[ipForward] == c.Was.Text:
	case !wasSet(c, now[ipForward]):
		u.kept("%s is %s, which somebody else set", sysctlName(ipForward), now[ipForward])
	default:
		if users := u.engines(); len(users) > 0 {
			u.kept("%s stays %s: %s may need it", sysctlName(ipForward), now[ipForward], strings.Join(users, ", "))
			break
		}
		if err := u.writeSysctl(ipForward, c.Was.Text); err != nil {
			u.fault(fmt.Errorf("set %s to %s again: %w", sysctlName(ipForward), c.Was.Text, err))
			return
		}
		u.did("%s set to %s again, was %s", sysctlName(ipForward), c.Was.Text, now[ipForward])
		for _, c := range changes { // what the kernel has moved with it
			want := c.Was.Text
			if !wasSet(c, now[c.Name]) {
				want = now[c.Name]
			}
			if v, err := u.readSysctl(c.Name); c.Name == ipForward || err != nil || v == want {
				continue
			}
			if err := u.writeSysctl(c.Name, want); err != nil {
				u.fault(fmt.Errorf("set %s to %s again: %w", sysctlName(c.Name), want, err))
				return
			}
		}
	}
	u.forget(nil, changes...)
}

// wasSet reports whether text is a value that we gave to what c changed.
func wasSet(c journal.Change, text string) bool {
	return slices.ContainsFunc(c.Set, func(v journal.Value) bool { return v.Text == text })
}

func (u *undo) file(c journal.Change) error {
	now, err := u.readText(c.Name)
	path := filepath.Join(u.root, c.Name)
	switch {
	case err != nil:
		return err
	case now == nil && c.Was == nil:
		if err := statefile.Remove(path); !readOnly(err) { // what a killed writer left
			return err
		}
		return nil // it was never written, either
	case now != nil && c.Was != nil && *now == *c.Was:
		return nil
	case now == nil:
		u.kept("%s is gone, which somebody else did", c.Name)
		return nil
	case !wasSet(c, now.Text):
		u.kept("%s was changed by somebody else", c.Name)
		return nil
	case c.Was == nil:
		if err := statefile.Remove(path); err != nil {
			return err
		}
		u.did("%s removed", c.Name)
		return nil
	}
	if err := statefile.Write(path, []byte(c.Was.Text), c.Was.Mode); err != nil {
		return err
	}
	u.did("%s written as it was", c.Name)
	return nil
}

// directory removes one that we made and nobody else uses.
func (u *undo) directory(c journal.Change) error {
	path := filepath.Join(u.root, c.Name)
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		u.kept("%s stays: somebody else has files there", c.Name)
		return nil
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	u.did("%s removed", c.Name)
	return nil
}

// socket removes one that nobody listens on any more.
func (u *undo) socket(c journal.Change) error {
	path := filepath.Join(u.root, c.Name)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	u.did("%s removed", c.Name)
	return nil
}

// leftovers takes back what is known to be ours by its content, where a version
// without a journal wrote it, or the journal is lost.
func (u *undo) leftovers() {
	now, err := u.readText(sysctlFile)
	if err != nil {
		u.fault(err)
		return
	}
	if now == nil || now.Text != sysctlText {
		return
	}
	if err := statefile.Remove(filepath.Join(u.root, sysctlFile)); err != nil {
		u.fault(err)
		return
	}
	u.did("%s removed", sysctlFile)
	if live, err := u.readSysctl(ipForward); err == nil && live == "1" {
		u.kept("%s stays 1: what it was before is not known", sysctlName(ipForward))
	}
}

// closed removes the routes that packets for the mesh ended at.
func (u *undo) closed() {
	n, err := ReadNetwork()
	if err != nil {
		u.fault(err)
		return
	}
	failed := false
	for _, r := range n.Routes {
		if r.Protocol != Protocol || r.Type != typeUnreachable || r.Table != tableMain {
			continue
		}
		r.Link = 0
		s := step{verb: remove, route: r}
		if err := s.do(); err != nil {
			u.fault(fmt.Errorf("%s route %s: %w", s.verb, n.describe(r), err))
			failed = true
			continue
		}
		u.did("%s", n.done(s, false))
	}
	if failed || u.journal == nil {
		return
	}
	for _, c := range u.journal.Changes() {
		if c.Kind == journal.Route {
			u.forget(nil, c)
		}
	}
}
