package host

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DropAddress takes an address from an interface. Neither of them need be there.
func DropAddress(link string, a netip.Addr) error {
	l, err := netlink.LinkByName(link)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", link, err)
	}
	p := netip.PrefixFrom(a, a.BitLen())
	at, err := netlink.ParseIPNet(p.String())
	if err != nil { // impossible: it is one
		return err
	}
	if err := netlink.AddrDel(l, &netlink.Addr{IPNet: at}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("take %v from %s: %w", p, link, err)
	}
	return nil
}
