package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	cloneDevice     = "/dev/net/tun"
	addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
)

// openTUN makes the TUN device name. An interface of that name, of whatever
// kind, is an error.
func openTUN(name string, mtu int) (tun.Device, error) {
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("there is no %s (%w): run `modprobe tun`, and start a container with --device %[1]s", cloneDevice, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("open %s: %w: run as root, and start a container with --device %[1]s", cloneDevice, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", cloneDevice, err)
	}
	// As tun.CreateTUN does, except for IFF_TUN_EXCL: without it the kernel hands
	// out an existing persistent device of that name.
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST), errors.Is(err, unix.EINVAL):
			if link, e := netlink.LinkByName(name); e == nil {
				return nil, fmt.Errorf("interface %s exists already (%s): run `ip link delete %[1]s` if nothing uses it, or choose another name", name, link.Type())
			}
		case errors.Is(err, unix.EPERM):
			return nil, fmt.Errorf("create interface %s: %w: it takes CAP_NET_ADMIN: run as root, and start a container with --cap-add NET_ADMIN", name, err)
		}
		return nil, fmt.Errorf("create interface %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), cloneDevice)
	dev, err := tun.CreateTUNFromFile(file, mtu)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("create interface %s: %w", name, err)
	}
	return dev, nil
}

// configureLink gives the interface its MTU and addresses and brings it up.
// It returns what it had to change.
func configureLink(name string, mtu int, addresses []netip.Prefix) (changed []string, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return changed, fmt.Errorf("set MTU %d of %s: %w", mtu, name, err)
		}
		changed = append(changed, fmt.Sprintf("mtu %d", mtu))
	}
	have, err := addressesOf(link)
	if err != nil {
		return changed, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addresses {
		if slices.Contains(have, a) {
			continue
		}
		add := netlink.Addr{IPNet: &net.IPNet{
			IP:   a.Addr().AsSlice(),
			Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen()),
		}}
		if a.Addr().Is6() { // else it is tentative at first, and no route can have it as its source
			add.Flags = unix.IFA_F_NODAD
		}
		err := netlink.AddrAdd(link, &add)
		switch {
		case err == nil:
			changed = append(changed, "address "+a.String())
		case a.Addr().Is6() && (errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EAFNOSUPPORT)):
			return changed, fmt.Errorf("add %v to %s: %w (%w): `sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0` enables it, unless the kernel runs with ipv6.disable=1", a, name, ErrNoIPv6, err)
		default:
			return changed, fmt.Errorf("add %v to %s: %w", a, name, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		// No link-local address, as on kernel WireGuard's interfaces: router
		// solicitations and multicast reports would only be dropped. It fails on a
		// machine without IPv6, which makes none.
		_ = netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone)
		if err := netlink.LinkSetUp(link); err != nil {
			return changed, fmt.Errorf("bring %s up: %w", name, err)
		}
		changed = append(changed, "up")
	}
	return changed, nil
}

// enableIPv6 has the interface take IPv6 addresses again, where somebody has forbidden
// that to it alone, and reports whether that was so. What is forbidden to all
// interfaces stays so.
func enableIPv6(name string) (bool, error) {
	file := func(which string) string { return "/proc/sys/net/ipv6/conf/" + which + "/disable_ipv6" }
	off := func(which string) bool {
		text, err := os.ReadFile(file(which))
		return err == nil && strings.TrimSpace(string(text)) == "1" // without IPv6 there is no such file
	}
	if !off(name) || off("all") {
		return false, nil
	}
	if err := os.WriteFile(file(name), []byte("0\n"), 0); err != nil {
		return false, fmt.Errorf("enable IPv6 on %s: %w", name, err)
	}
	return true, nil
}

func addressesOf(link netlink.Link) ([]netip.Prefix, error) {
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		addr, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		out = append(out, netip.PrefixFrom(addr.Unmap(), bits))
	}
	return out, nil
}
