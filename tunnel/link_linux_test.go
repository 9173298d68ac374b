package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// inNamespace runs test in a process of its own, with a network namespace and a
// /var/run of its own. It skips without root.
func inNamespace(t *testing.T, test func(*testing.T)) {
	t.Helper()
	const marker = "TUNNEL_TEST_IN_NAMESPACE"
	if os.Getenv(marker) == t.Name() {
		if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", "/var/run", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		test(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	if _, err := os.Stat(cloneDevice); err != nil {
		t.Skip("needs a TUN: ", err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM):
		t.Skip("may not make a network namespace: ", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	default:
		t.Logf("%s", out)
	}
}

var (
	v4 = netip.MustParsePrefix("10.210.1.1/32")
	v6 = netip.MustParsePrefix("fdcc:1::1/128")
)

func realConfig() Config {
	return Config{
		Name:       "jiji0",
		Addresses:  []netip.Prefix{v4, v6},
		MTU:        1420,
		ListenPort: 51820,
		Key:        wgkey.NewPrivate(),
		Log:        slog.New(slog.DiscardHandler),
	}
}

func mustOpen(t *testing.T, cfg Config) *Tunnel {
	t.Helper()
	tun, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	return tun
}

// running starts Run, and returns what it will return.
func running(ctx context.Context, tun *Tunnel) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- tun.Run(ctx) }()
	return ended
}

func within(t *testing.T, what string, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing happened for 10 s", what)
		return nil
	}
}

func wg(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("wg")
	if err != nil {
		t.Skip("needs wg(8) of wireguard-tools")
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("wg %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestOpenMakesInterfaceAndCloseRemovesIt(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		cfg := realConfig()
		for range 2 { // nothing of the first is in the way of the second
			tun := mustOpen(t, cfg)
			link, err := netlink.LinkByName("jiji0")
			if err != nil {
				t.Fatal(err)
			}
			if a := link.Attrs(); a.MTU != 1420 || a.Flags&net.FlagUp == 0 {
				t.Errorf("mtu %d, flags %v; want 1420 and up", a.MTU, a.Flags)
			}
			got, err := addressesOf(link)
			if err != nil {
				t.Fatal(err)
			}
			if want := []netip.Prefix{v4, v6}; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
				t.Errorf("addresses %v, want %v", got, want)
			}
			fi, err := os.Lstat("/var/run/wireguard/jiji0.sock")
			if err != nil {
				t.Fatal(err)
			}
			if fi.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("socket has mode %v, want 0600", fi.Mode())
			}

			for range 2 {
				if err := tun.Close(); err != nil {
					t.Error(err)
				}
			}
			if _, err := netlink.LinkByName("jiji0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
				t.Errorf("after Close the interface is still there (%v)", err)
			}
			if _, err := os.Lstat("/var/run/wireguard/jiji0.sock"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after Close the socket is still there (%v)", err)
			}
		}
	})
}

// A route with the address as its source can be made at once: the kernel would
// not take a tentative one.
func TestAddressServesAtOnce(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		tun := mustOpen(t, realConfig())
		defer tun.Close()
		link, err := netlink.LinkByName("jiji0")
		if err != nil {
			t.Fatal(err)
		}
		list, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil || len(list) != 1 {
			t.Fatalf("addresses %v, %v, want one", list, err)
		}
		if list[0].Flags&unix.IFA_F_NODAD == 0 {
			t.Errorf("flags %#x of %v, want IFA_F_NODAD", list[0].Flags, v6)
		}
	})
}
