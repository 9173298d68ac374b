package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/acidtib/jiji-node/node/host/journal"
	"github.com/acidtib/jiji-node/node/statefile"
)

const (
	ipForward       = "net/ipv4/ip_forward" // below /proc/sys, as all names of sysctls here
	acceptRedirects = "net/ipv4/conf/all/accept_redirects"

	sysctlFile = "/etc/sysctl.d/90-jiji.conf"
	sysctlText = "# Written by jiji-node: containers reach those of other servers through this one.\nnet.ipv4.ip_forward = 1\n"
	maxText    = 1 << 20 // bytes of a file that is replaced
)

// forward lets IPv4 packets pass through the machine, now and after a boot, and
// stops redirects on link, if there is one.
func (a *apply) forward(link string) {
	before := len(a.changes)
	if err := a.sysctl(ipForward, "1", a.switching); err != nil {
		a.fault(err)
		return
	}
	switch err := a.file(sysctlFile, sysctlText); {
	case readOnly(err): // the live value is what counts; a start sets it again
		if len(a.changes) > before {
			a.changes = append(a.changes, Change{What: fmt.Sprintf("%s=1 lasts until the next boot: %v", sysctlName(ipForward), err)})
		}
	case err != nil:
		a.fault(fmt.Errorf("keep %s=1 after a boot: %w", sysctlName(ipForward), err))
	}
	if link == "" {
		return
	}
	noNote := func(string) ([]journal.Change, error) { return nil, nil } // it ends with link
	// Where it may not be written: a redirect into the tunnel harms nothing.
	if err := a.sysctl("net/ipv4/conf/"+link+"/send_redirects", "0", noNote); !readOnly(err) {
		a.fault(err)
	}
	a.fault(a.sysctl("net/ipv4/conf/"+link+"/forwarding", "1", noNote))
}

// switching is what changes when ip_forward is set to 1. The kernel then
// switches forwarding on for every interface, and redirects off; when it is set
// to 0 the other way round, whatever they were before (inet_forward_change of
// net/ipv4/devinet.c).
func (a *apply) switching(was string) ([]journal.Change, error) {
	changes := []journal.Change{sysctlChange(ipForward, was, "1")}
	redirects, err := a.readSysctl(acceptRedirects)
	if err != nil {
		return nil, err
	}
	changes = append(changes, sysctlChange(acceptRedirects, redirects, "0"))
	links, err := os.ReadDir(filepath.Join(a.root, "proc/sys/net/ipv4/conf"))
	if err != nil {
		return nil, fmt.Errorf("read sysctls: %w", err)
	}
	for _, l := range links {
		name := "net/ipv4/conf/" + l.Name() + "/forwarding"
		if v, err := a.readSysctl(name); err == nil && v == "1" && l.Name() != "all" { // one that just went has none
			changes = append(changes, sysctlChange(name, "1", "1"))
		}
	}
	return changes, nil
}

func sysctlChange(name, was, set string) journal.Change {
	return journal.Change{Kind: journal.Sysctl, Name: name, Was: &journal.Value{Text: was}, Set: []journal.Value{{Text: set}}}
}

// sysctl gives name this value, unless it has it. note is what the journal is
// to know of that, given the value it had.
func (a *apply) sysctl(name, value string, note func(was string) ([]journal.Change, error)) error {
	was, err := a.readSysctl(name)
	if err != nil {
		return err
	}
	if was == value {
		a.settled[name] = true
		return nil
	}
	changes, err := note(was)
	if err != nil {
		return err
	}
	return a.put(name, changes, func(bool) (string, error) {
		if err := a.writeSysctl(name, value); err != nil {
			dotted := sysctlName(name)
			return "", fmt.Errorf("%s is %s, expected %s, and cannot be set here (run `sysctl -w %[1]s=%[3]s` on the host): %[4]w", dotted, was, value, err)
		}
		return fmt.Sprintf("%s set to %s, was %s", sysctlName(name), value, was), nil
	})
}

// sysctlName is how sysctl(8) calls it.
func sysctlName(name string) string { return strings.ReplaceAll(name, "/", ".") }

func (k *Keeper) readSysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(k.root, "proc/sys", name))
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (k *Keeper) writeSysctl(name, value string) error {
	f, err := os.OpenFile(filepath.Join(k.root, "proc/sys", name), os.O_WRONLY, 0) // never created
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// file gives the file at path this text, if it has another or is absent.
func (a *apply) file(path, text string) error {
	want := journal.Value{Text: text, Mode: 0o644}
	was, err := a.readText(path)
	if err != nil {
		return err
	}
	if was != nil && was.Text == text {
		a.settled[path] = true
		return nil
	}
	var note []journal.Change
	dir := filepath.Dir(path)
	if _, err := os.Stat(filepath.Join(a.root, dir)); errors.Is(err, fs.ErrNotExist) { // its parent is there: /etc
		note = append(note, journal.Change{Kind: journal.Directory, Name: dir})
	}
	note = append(note, journal.Change{Kind: journal.File, Name: path, Was: was, Set: []journal.Value{want}})
	return a.put(path, note, func(repair bool) (string, error) {
		if err := os.Mkdir(filepath.Join(a.root, dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if err := statefile.Write(filepath.Join(a.root, path), []byte(text), want.Mode); err != nil {
			return "", err
		}
		switch {
		case was == nil && repair:
			return path + " was gone, written again", nil
		case was == nil:
			return path + " written", nil
		}
		return path + " written in place of another", nil
	})
}

// readText returns the content and mode of a file, nil if there is none.
func (k *Keeper) readText(path string) (*journal.Value, error) {
	data, mode, err := statefile.Read(filepath.Join(k.root, path), maxText)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &journal.Value{Text: string(data), Mode: mode.Perm()}, nil
}

// readOnly reports whether err means that this process may not write there.
func readOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}
