package tunnel

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func linkMTU(t *testing.T) int {
	t.Helper()
	link, err := netlink.LinkByName("jiji0")
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().MTU
}

func TestSetMTU(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		tun := mustOpen(t, realConfig())
		for _, mtu := range []int{1280, 8921, 1340} {
			if err := tun.SetMTU(mtu); err != nil {
				t.Fatal(err)
			}
			if got := linkMTU(t); got != mtu || tun.MTU() != mtu {
				t.Errorf("the interface has %d, MTU says %d, want %d", got, tun.MTU(), mtu)
			}
		}
		if err := tun.SetMTU(1279); err == nil || !strings.Contains(err.Error(), "set MTU 1279: want 1280 to") {
			t.Error(err)
		}
		link, err := netlink.LinkByName("jiji0")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetMTU(link, 1500); err != nil {
			t.Fatal(err)
		}
		if changed, err := tun.Restore(); err != nil || !slices.Equal(changed, []string{"mtu 1340"}) || linkMTU(t) != 1340 {
			t.Errorf("restored %q, %v, the interface has %d", changed, err, linkMTU(t))
		}
	})
}

// pathDiscovery returns IP_MTU_DISCOVER of the UDP sockets of IPv4 on port.
func pathDiscovery(t *testing.T, port uint16) (values []int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		fd, err := strconv.Atoi(filepath.Base(link))
		if target, e := os.Readlink(link); err != nil || e != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		sa, err := unix.Getsockname(fd)
		if sa, ok := sa.(*unix.SockaddrInet4); err != nil || !ok || sa.Port != int(port) {
			continue
		}
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	return values
}

// The sockets may be fragmented on their way from the beginning, and those of
// another port that somebody set, once it is put back.
func TestSocketsAreFragmentable(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		tun := mustOpen(t, realConfig())
		want := []int{unix.IP_PMTUDISC_DONT}
		if got := pathDiscovery(t, 51820); !slices.Equal(got, want) {
			t.Errorf("path MTU discovery is %d, want %d", got, want)
		}
		if err := tun.dev.IpcSet("listen_port=51999\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := tun.SetPeers(nil); err != nil {
			t.Fatal(err)
		}
		if got := pathDiscovery(t, 51820); !slices.Equal(got, want) {
			t.Errorf("path MTU discovery of the port that was put back is %d, want %d", got, want)
		}
	})
}
