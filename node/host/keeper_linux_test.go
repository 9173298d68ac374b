package host

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/node/host/journal"
)

// hostState is what a node may touch of the thread's host, as text.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(ip(t, "route show table all", "-6 route show table all", "-o addr show")) {
		if !strings.HasPrefix(line, "multicast") { // comes with the carrier
			b.WriteString(line)
		}
	}
	for _, name := range []string{"ip_forward", "conf/all/accept_redirects", "conf/all/forwarding", "conf/default/forwarding", "conf/eth1/forwarding", "conf/eth2/forwarding"} {
		v, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s", name, v)
	}
	err := filepath.WalkDir("/etc", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := []byte(nil)
		if info.Mode().IsRegular() {
			text, err = os.ReadFile(path)
		}
		fmt.Fprintf(&b, "%s %v %q\n", path, info.Mode(), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func set(t *testing.T, sysctl, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/"+sysctl, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, sysctl string) string {
	t.Helper()
	v, err := os.ReadFile("/proc/sys/net/ipv4/" + sysctl)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(v))
}

func noEngines() []string { return nil }

func mustUndo(t *testing.T, k *Keeper, engines func() []string) Undone {
	t.Helper()
	u, err := k.Undo(engines)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// undoLab is a host with two uplinks, of which one forwards already, that
// takes no redirects.
func undoLab(t *testing.T) Wanted {
	t.Helper()
	namespace(t)
	for _, pair := range []string{"1", "2"} {
		ip(t, "link add eth"+pair+" type veth peer name far"+pair)
		for _, link := range []string{"eth" + pair, "far" + pair} {
			ip(t, "link set "+link+" addrgenmode none", "link set "+link+" up")
		}
	}
	ip(t, "addr add 192.168.7.1/24 dev eth1")
	set(t, "conf/all/accept_redirects", "0")
	set(t, "conf/eth2/forwarding", "1")
	return Wanted{Closed: []netip.Prefix{pfx("10.210.0.0/16"), pfx("fdcc::/16")}, Subnet: pfx("10.210.1.0/24"), Forwarding: true}
}

func TestUndoGivesBackTheHostAsItWas(t *testing.T) {
	for name, prepare := range map[string]func(){
		"nothing there": func() {},
		"the directory is there": func() {
			if err := os.Mkdir("/etc/sysctl.d", 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"the file is there": func() {
			if err := os.Mkdir("/etc/sysctl.d", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(sysctlFile, []byte("net.ipv4.tcp_ecn = 1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := undoLab(t)
			prepare()
			before := hostState(t)
			k := newKeeper(t)
			if _, err := k.Apply(w, true); err != nil {
				t.Fatal(err)
			}
			if out := ip(t, "route show", "-6 route show"); !strings.Contains(out, "unreachable 10.210.0.0/16 proto 86") || !strings.Contains(out, "unreachable fdcc::/16 dev lo proto 86") {
				t.Errorf("routes:\n%s", out)
			}
			if get(t, "ip_forward") != "1" || get(t, "conf/eth1/forwarding") != "1" {
				t.Error("it does not forward")
			}
			mustApply(t, k, w)
			u := mustUndo(t, k, noEngines)
			if after := hostState(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if len(u.Kept) != 0 || len(u.Undone) < 4 || !strings.Contains(u.Undone[len(u.Undone)-1], "route unreachable") {
				t.Errorf("undone %q, kept %q", u.Undone, u.Kept)
			}
			if again := mustUndo(t, k, noEngines); len(again.Undone)+len(again.Kept) != 0 {
				t.Errorf("the second time %+v", again)
			}
		})
	}
}

// Another process with the same journal, or none, takes back the same.
func TestUndoByAnother(t *testing.T) {
	w := undoLab(t)
	before := hostState(t)
	path := filepath.Join(t.TempDir(), journal.FileName)
	for range 3 { // each the start of another process that is killed
		j, err := journal.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewKeeper(j).Apply(w, true); err != nil {
			t.Fatal(err)
		}
	}
	j, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	mustUndo(t, NewKeeper(j), noEngines)
	if after := hostState(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	if _, err := newKeeper(t).Apply(w, true); err != nil {
		t.Fatal(err)
	}
	u := mustUndo(t, NewKeeper(nil), noEngines)
	if len(u.Undone) != 3 || len(u.Kept) != 1 || !strings.Contains(u.Kept[0], "net.ipv4.ip_forward stays 1: what it was before is not known") {
		t.Errorf("without a journal %+v", u)
	}
}

func TestUndoKeepsWhatSomebodyElseChanged(t *testing.T) {
	w := undoLab(t)
	k := newKeeper(t)
	if _, err := k.Apply(w, true); err != nil {
		t.Fatal(err)
	}
	set(t, "ip_forward", "0")
	set(t, "conf/all/accept_redirects", "1")
	if err := os.WriteFile(sysctlFile, []byte("net.ipv4.ip_forward = 1\nnet.ipv4.tcp_ecn = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ip(t, "route add 10.99.0.0/16 dev eth1")
	before := hostState(t)
	u := mustUndo(t, k, noEngines)
	after := hostState(t)
	for line := range strings.Lines(before) {
		if !strings.Contains(line, "unreachable") && !strings.Contains(after, line) {
			t.Errorf("lost: %s", line)
		}
	}
	if !slices.ContainsFunc(u.Kept, func(s string) bool { return strings.Contains(s, sysctlFile+" was changed by somebody else") }) {
		t.Errorf("kept %q", u.Kept)
	}
}

func TestUndoLeavesForwardingToEngines(t *testing.T) {
	w := undoLab(t)
	k := newKeeper(t)
	if _, err := k.Apply(w, true); err != nil {
		t.Fatal(err)
	}
	u := mustUndo(t, k, func() []string { return []string{"docker"} })
	if get(t, "ip_forward") != "1" || len(u.Kept) != 1 || u.Kept[0] != "net.ipv4.ip_forward stays 1: docker may need it" {
		t.Errorf("ip_forward %s, kept %q", get(t, "ip_forward"), u.Kept)
	}
	if again := mustUndo(t, k, noEngines); get(t, "ip_forward") != "1" || len(again.Undone)+len(again.Kept) != 0 {
		t.Errorf("once it was left it was taken: %+v", again)
	}
}

func TestUndoNamesWhatItDoesNotKnow(t *testing.T) {
	w := undoLab(t)
	path := filepath.Join(t.TempDir(), journal.FileName)
	if err := os.WriteFile(path, []byte(`{"changes":[{"kind":"bpf","name":"program 7"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	before := hostState(t)
	k := NewKeeper(j)
	if _, err := k.Apply(w, true); err != nil {
		t.Fatal(err)
	}
	_, err = k.Undo(noEngines)
	if err == nil || err.Error() != "undo bpf program 7: this version does not know how: run `jiji-node down` of the newer one that changed it" {
		t.Errorf("error %v", err)
	}
	if after := hostState(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	data, err := os.ReadFile(path)
	var doc struct{ Changes []journal.Change }
	if err != nil || json.Unmarshal(data, &doc) != nil || len(doc.Changes) != 1 || doc.Changes[0].Name != "program 7" {
		t.Errorf("journal %s, %v", data, err)
	}
}

// The note is on the disk before the change, so no change is made without one.
func TestNothingIsChangedWithoutANote(t *testing.T) {
	w := undoLab(t)
	dir := t.TempDir()
	j, err := journal.Open(filepath.Join(dir, journal.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, 0)
	before := hostState(t)
	changes, err := NewKeeper(j).Apply(w, true)
	if err == nil || len(changes) != 0 {
		t.Errorf("changes %v, error %v", changes, err)
	}
	if after := hostState(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestRepairsAndFights(t *testing.T) {
	w := undoLab(t)
	k := newKeeper(t)
	apply := func(regular bool) []Change {
		t.Helper()
		c, err := k.Apply(w, regular)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range apply(false) {
		if c.Reason != News {
			t.Errorf("at the start: %+v", c)
		}
	}
	for i := range fightRepairs {
		ip(t, "route del unreachable 10.210.0.0/16")
		want := Change{"route unreachable 10.210.0.0/16 was gone, added again", Repair}
		if i == fightRepairs-1 {
			want.Reason = FightBegins
		}
		if got := apply(false); len(got) != 1 || got[0] != want {
			t.Fatalf("repair %d: %+v, want %+v", i+1, got, want)
		}
	}
	ip(t, "route del unreachable 10.210.0.0/16")
	if got := apply(false); len(got) != 0 {
		t.Errorf("it fights on: %+v", got)
	}
	if lines := k.Fights.Warnings(); len(lines) != 1 || !strings.Contains(lines[0], "route unreachable 10.210.0.0/16") {
		t.Errorf("warnings %q", lines)
	}
	set(t, "ip_forward", "0")
	if got := apply(false); len(got) != 1 || got[0] != (Change{"net.ipv4.ip_forward set to 1, was 0", Repair}) {
		t.Errorf("what nobody fights over: %+v", got)
	}
	if got := apply(true); len(got) != 1 || got[0].Reason != Fighting {
		t.Errorf("at the regular check: %+v", got)
	}
}
