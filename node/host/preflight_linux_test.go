package host

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// A systemd answers for units as the real one does, as far as it is asked.
type systemd struct{ units map[string][3]string } // load state, active state, unit file state

func (s systemd) ListUnitsByNames(names []string) ([]unitStatus, *dbus.Error) {
	var list []unitStatus
	for _, name := range names {
		u, ok := s.units[name]
		if !ok {
			u = [3]string{"not-found", "inactive", ""}
		}
		list = append(list, unitStatus{Name: name, Description: name, LoadState: u[0], ActiveState: u[1], SubState: "x", Path: "/x", JobPath: "/"})
	}
	return list, nil
}

// A unitStatus is a(ssssssouso) of org.freedesktop.systemd1(5).
type unitStatus struct {
	Name, Description, LoadState, ActiveState, SubState, Followed string
	Path                                                          dbus.ObjectPath
	JobID                                                         uint32
	JobType                                                       string
	JobPath                                                       dbus.ObjectPath
}

// unitFile answers for the properties of one unit.
type unitFile string

func (u unitFile) Get(iface, property string) (dbus.Variant, *dbus.Error) {
	if iface != "org.freedesktop.systemd1.Unit" || property != "UnitFileState" {
		return dbus.Variant{}, dbus.MakeFailedError(fmt.Errorf("unexpected %s.%s", iface, property))
	}
	return dbus.MakeVariant(string(u)), nil
}

// systemBus starts a bus that this test's programs take for the system's.
func systemBus(t *testing.T) (address string) {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("needs dbus-daemon")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><listen>unix:path=%s/bus</listen><policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>`, dir)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if address, err = bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("dbus-daemon gave no address: %v", err)
	}
	return strings.TrimSpace(address)
}

func TestUnitsByBus(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	address := systemBus(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	if units, err := unitsByBus(ctx, rivalUnits("jiji0")); err == nil {
		t.Errorf("a bus without systemd: units %v", units)
	}

	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := systemd{map[string][3]string{
		"wg-quick@jiji0.service":     {"loaded", "active", "enabled"}, // has no process, and no control group
		"jiji-dns.service":           {"loaded", "inactive", "enabled"},
		"jiji-coredns.service":       {"loaded", "inactive", "disabled"},
		"jiji-peer-monitor.service":  {"loaded", "failed", "disabled"},
		"jiji-control-loop.service":  {"loaded", "activating", "static"},
		"jiji-daemon.service":        {"masked", "inactive", "masked"},
		"jiji-corrosion.service":     {"not-found", "active", ""}, // its file was removed while it runs
		"nobody-asks-for-it.service": {"loaded", "active", "enabled"},
	}}
	if err := conn.Export(s, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"); err != nil {
		t.Fatal(err)
	}
	for name, u := range s.units {
		path := dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + busEscape(name))
		if err := conn.Export(unitFile(u[2]), path, "org.freedesktop.DBus.Properties"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.RequestName("org.freedesktop.systemd1", 0); err != nil {
		t.Fatal(err)
	}
	want := []Unit{
		{"wg-quick@jiji0.service", true, true},
		{"jiji-control-loop.service", true, false},
		{"jiji-dns.service", false, true},
		{"jiji-corrosion.service", true, false},
	}
	if got, err := unitsByBus(ctx, rivalUnits("jiji0")); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("units %v, %v\nwant  %v", got, err, want)
	}
}

// busEscape is how systemd names a unit's object.
func busEscape(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

// A bus that accepts and then says nothing holds no start up.
func TestReadUnitsOfSilentBus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	readUnits(ctx, rivalUnits("jiji0"))
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestSocketOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.sock")
	for _, p := range []string{"", path} {
		if got := socketOwner(p); got != "" {
			t.Errorf("socketOwner(%q) = %q where nobody answers", p, got)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := socketOwner(path), fmt.Sprintf("(pid %d", os.Getpid()); !strings.Contains(got, want) {
		t.Errorf("socketOwner = %q, want %s", got, want)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if got := socketOwner(path); got != "" {
		t.Errorf("socketOwner = %q of a socket that was left behind", got)
	}
}
