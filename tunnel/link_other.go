//go:build !linux

package tunnel

import (
	"errors"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"
)

var errNotLinux = errors.New("the tunnel needs Linux")

func openTUN(string, int) (tun.Device, error) { return nil, errNotLinux }

func configureLink(string, int, []netip.Prefix) ([]string, error) { return nil, errNotLinux }

func enableIPv6(string) (bool, error) { return false, errNotLinux }
