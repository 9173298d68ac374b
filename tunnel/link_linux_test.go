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
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
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
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
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

// gone checks that a failed or closed Open left nothing behind.
func gone(t *testing.T, name string) {
	t.Helper()
	if _, err := netlink.LinkByName(name); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("interface %s is there (%v)", name, err)
	}
	if _, err := os.Lstat("/var/run/wireguard/" + name + ".sock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of %s is there (%v)", name, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		refused := func(t *testing.T, cfg Config, want string) error {
			t.Helper()
			tun, err := Open(cfg)
			if err == nil {
				tun.Close()
				t.Fatalf("opened, want %q", want)
			}
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line with %q", err, want)
			}
			return err
		}
		t.Run("an interface of that name", func(t *testing.T) {
			mustOpen(t, realConfig())
			cfg := realConfig()
			cfg.ListenPort = 51821
			refused(t, cfg, "interface jiji0 exists already (tuntap): run `ip link delete jiji0`")
		})
		t.Run("an interface of another kind", func(t *testing.T) {
			link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "jiji0"}, PeerName: "other"}
			if err := netlink.LinkAdd(link); err != nil {
				t.Fatal(err)
			}
			refused(t, realConfig(), "interface jiji0 exists already (veth)")
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
		})
		t.Run("a persistent TUN that nobody uses", func(t *testing.T) {
			link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "jiji0"}, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI}
			if err := netlink.LinkAdd(link); err != nil {
				t.Fatal(err)
			}
			refused(t, realConfig(), "interface jiji0 exists already (tuntap)")
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
		})
		t.Run("a port that is taken", func(t *testing.T) {
			c, err := net.ListenPacket("udp4", ":51820")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			err = refused(t, realConfig(), "listen on UDP port 51820: ")
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%v is not EADDRINUSE", err)
			}
			gone(t, "jiji0")
		})
		t.Run("a socket that is served", func(t *testing.T) {
			s := mustListen(t, "/var/run/wireguard/jiji0.sock")
			refused(t, realConfig(), "/var/run/wireguard/jiji0.sock is served by another process")
			if !s.inPlace() {
				t.Error("it was replaced")
			}
			s.Close()
			gone(t, "jiji0")
		})
		t.Run("IPv6 where there is none", func(t *testing.T) {
			for _, which := range []string{"all", "default"} {
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0); err != nil {
					t.Skip("cannot disable IPv6: ", err)
				}
			}
			cfg := realConfig()
			if err := refused(t, cfg, "add fdcc:1::1/128 to jiji0: IPv6 is disabled"); !errors.Is(err, ErrNoIPv6) {
				t.Errorf("%v is not ErrNoIPv6", err)
			}
			gone(t, "jiji0")
			cfg.Addresses = []netip.Prefix{v4} // as the caller may decide to
			mustOpen(t, cfg)
		})
		t.Run("without the privilege", func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestOpenUnprivileged$", "-test.v")
			cmd.Env = append(os.Environ(), "TUNNEL_TEST_UNPRIVILEGED=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	})
}

// TestOpenUnprivileged is run by TestOpenRefuses, as nobody.
func TestOpenUnprivileged(t *testing.T) {
	if os.Getenv("TUNNEL_TEST_UNPRIVILEGED") == "" {
		t.Skip("runs as part of TestOpenRefuses")
	}
	_, err := Open(realConfig())
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "run as root") {
		t.Errorf("got %v", err)
	}
}

func TestWG(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		cfg := realConfig()
		tun := mustOpen(t, cfg)
		ctx, stop := context.WithCancel(t.Context())
		ended := running(ctx, tun)
		peer := Peer{Key: wgkey.NewPrivate().Public(), AllowedIPs: prefixes("10.210.2.0/24", "fdcc:2::1/128"), Keepalive: 25 * time.Second}
		set := func(want ...Change) {
			t.Helper()
			got, err := tun.SetPeers([]Peer{peer})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
				t.Errorf("changes %v, want %v", got, want)
			}
		}
		set(Change{peer.Key, "added"})
		endpoint := netip.MustParseAddrPort("127.0.0.1:9")
		if err := tun.Move(peer.Key, endpoint); err != nil {
			t.Fatal(err)
		}
		key := peer.Key.String()

		show := wg(t, "show", "jiji0")
		for _, want := range []string{
			"public key: " + cfg.Key.Public().String(), "listening port: 51820",
			"peer: " + key, "endpoint: 127.0.0.1:9", "allowed ips: 10.210.2.0/24, fdcc:2::1/128", "persistent keepalive: every 25 seconds",
		} {
			if !strings.Contains(show, want) {
				t.Errorf("wg show has no %q:\n%s", want, show)
			}
		}
		if got, want := wg(t, "show", "jiji0", "endpoints"), key+"\t127.0.0.1:9\n"; got != want {
			t.Errorf("wg show endpoints: %q, want %q", got, want)
		}
		dump := strings.Split(wg(t, "show", "jiji0", "dump"), "\n")
		if want := cfg.Key.Base64() + "\t" + cfg.Key.Public().String() + "\t51820\toff"; dump[0] != want {
			t.Error("wg show dump: the first line is another")
		}

		wg(t, "set", "jiji0", "peer", key, "allowed-ips", "10.9.9.0/24")
		set(Change{peer.Key, "allowed ips"})
		wg(t, "set", "jiji0", "listen-port", "4444")
		set(Change{What: "listen port"})
		wg(t, "set", "jiji0", "peer", key, "remove")
		set(Change{peer.Key, "added"})
		set()
		if got := tun.ListenPort(); got != 51820 {
			t.Errorf("port %d, want 51820", got)
		}

		t.Run("the socket file is deleted", func(t *testing.T) {
			const path = "/var/run/wireguard/jiji0.sock"
			if err := os.Chmod(path, 0o600); err != nil { // the module's own listener ends here
				t.Fatal(err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(5 * socketCheck); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Lstat(path); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("it does not come back")
				}
			}
			if got := wg(t, "show", "jiji0", "peers"); got != key+"\n" {
				t.Errorf("wg show peers: %q", got)
			}
		})

		// A client that says nothing does not keep Run.
		c, err := net.Dial("unix", "/var/run/wireguard/jiji0.sock")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		stop()
		if err := within(t, "Run", ended); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestRunAfterKill(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		const path = "/var/run/wireguard/jiji0.sock"
		if err := os.MkdirAll("/var/run/wireguard", 0o755); err != nil {
			t.Fatal(err)
		}
		stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		stale.SetUnlinkOnClose(false) // as after kill -9
		stale.Close()
		tun := mustOpen(t, realConfig())
		running(t.Context(), tun)
		if got := wg(t, "show", "jiji0", "listen-port"); got != "51820\n" {
			t.Errorf("wg show: %q", got)
		}
	})
}

func TestInterfaceIsDeleted(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		tun := mustOpen(t, realConfig())
		ended := running(t.Context(), tun)
		link, err := netlink.LinkByName("jiji0")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		if err := within(t, "Run", ended); err != ErrClosed {
			t.Errorf("Run: %v, want ErrClosed", err)
		}
		if err := tun.Close(); err != nil {
			t.Error(err)
		}
		gone(t, "jiji0")
		mustOpen(t, realConfig())
	})
}

func TestRestore(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		tun := mustOpen(t, realConfig())
		restored := func(want ...string) {
			t.Helper()
			got, err := tun.Restore()
			if err != nil {
				t.Fatal(err)
			}
			if strings.Join(got, ", ") != strings.Join(want, ", ") {
				t.Errorf("restored %q, want %q", got, want)
			}
		}
		link, err := netlink.LinkByName("jiji0")
		if err != nil {
			t.Fatal(err)
		}
		restored()
		if err := netlink.LinkSetMTU(link, 1300); err != nil {
			t.Fatal(err)
		}
		restored("mtu 1420")
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: v4.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
			t.Fatal(err)
		}
		restored("address 10.210.1.1/32")
		if err := netlink.LinkSetDown(link); err != nil { // and the kernel takes the IPv6 address
			t.Fatal(err)
		}
		if got := tun.ListenPort(); got != 51820 {
			t.Errorf("port %d while down, want 51820", got)
		}
		restored("address fdcc:1::1/128", "up")
		restored()

		forbid := func(which string) {
			t.Helper()
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0); err != nil {
				t.Skip("cannot disable IPv6: ", err)
			}
		}
		forbid("jiji0")
		restored("IPv6", "address fdcc:1::1/128")
		restored()
		forbid("all")
		if got, err := tun.Restore(); !errors.Is(err, ErrNoIPv6) || len(got) > 0 {
			t.Errorf("where no interface may have IPv6: %q, %v", got, err)
		}
	})
}
