package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A WGQuick is what the [Interface] of a wg-quick file says; the zero value of
// a field means that it says nothing.
type WGQuick struct {
	PrivateKey wgkey.Private
	Address    []netip.Prefix // an address without a length has that of a host
	ListenPort uint16
	MTU        int
}

// ParseWGQuick reads a wg-quick file, see wg-quick(8), whose name is source. As
// wg-quick does, it takes names in any case and ignores spaces and what follows
// a #. Settings that WGQuick lacks are passed over. A private key is required.
// Errors give the line but quote nothing of it.
func ParseWGQuick(source string, data []byte) (WGQuick, error) {
	var conf WGQuick
	keyLine := 0
	inInterface := false
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(string(data), "\ufeff")) {
		number++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			inInterface = strings.EqualFold(line, "[Interface]")
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if !found || !inInterface {
			continue
		}
		name, value = strings.ToLower(strings.TrimSpace(name)), withoutSpace(value)
		if name == "privatekey" {
			if keyLine != 0 {
				return WGQuick{}, fmt.Errorf("%s:%d: PrivateKey is set again, it was on line %d", source, number, keyLine)
			}
			keyLine = number
		}
		if err := conf.set(name, value); err != nil {
			return WGQuick{}, fmt.Errorf("%s:%d: %w", source, number, err)
		}
	}
	if keyLine == 0 {
		return WGQuick{}, fmt.Errorf("%s: has no PrivateKey in an [Interface] section", source)
	}
	return conf, nil
}

func (c *WGQuick) set(name, value string) (err error) {
	switch name {
	case "privatekey":
		if c.PrivateKey, err = wgkey.ParsePrivate(value); err != nil {
			return fmt.Errorf("PrivateKey: %w", err)
		}
	case "address":
		for text := range strings.SplitSeq(value, ",") {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				var ip netip.Addr
				if ip, err = netip.ParseAddr(text); err != nil || ip.Zone() != "" {
					return errors.New("Address: want IP addresses such as 10.210.0.1/24, with commas between them")
				}
				p = netip.PrefixFrom(ip, ip.BitLen())
			}
			c.Address = append(c.Address, p)
		}
	case "listenport":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return errors.New("ListenPort: want a number from 0 to 65535")
		}
		c.ListenPort = uint16(n)
	case "mtu":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return errors.New("MTU: want a number from 0 to 65535")
		}
		c.MTU = int(n)
	}
	return nil
}

func withoutSpace(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, s)
}
