//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A StockConfig is what StartStockWireGuard sets up, by wg(8) and ip(8).
type StockConfig struct {
	Device     string // the interface's name; wg0 when empty
	Key        wgkey.Private
	ListenPort uint16 // 51820 when 0
	Addresses  []netip.Prefix
	MTU        int // 1420 when 0
	Peers      []StockPeer
}

// A StockPeer is a peer of a stock WireGuard. Its allowed IPs become routes, too.
type StockPeer struct {
	Key        wgkey.Public
	Endpoint   netip.AddrPort // zero: none, the peer has to begin
	AllowedIPs []netip.Prefix
	Keepalive  time.Duration // 0: off
}

// StartStockWireGuard runs wireguard-go as its authors publish it on the host, and sets
// it up: `wg show` works there.
func (h *Host) StartStockWireGuard(c StockConfig) *Process {
	tb := h.lab.tb
	tb.Helper()
	if c.Device == "" {
		c.Device = "wg0"
	}
	if c.ListenPort == 0 {
		c.ListenPort = wireGuardPort
	}
	if c.MTU == 0 {
		c.MTU = 1420
	}
	p := h.Spawn(StockWireGuard(tb), "-f", c.Device)
	Eventually(tb, readyLimit, p.Name+" makes "+c.Device, func() error {
		if p.Ended() {
			tb.Fatalf("%s: ended before it made %s: %v%s", p.Name, c.Device, p.cmd.ProcessState, p.tail())
		}
		_, err := h.Try("wg", "show", c.Device)
		return err
	})
	h.RunInput(c.wgConf(), "wg", "setconf", c.Device, "/dev/stdin")
	for _, a := range c.Addresses {
		h.Run("ip", "address", "add", a.String(), "dev", c.Device)
	}
	h.Run("ip", "link", "set", c.Device, "mtu", fmt.Sprint(c.MTU), "up")
	for _, peer := range c.Peers {
		for _, a := range peer.AllowedIPs {
			h.Run("ip", "route", "replace", a.String(), "dev", c.Device)
		}
	}
	return p
}

// wgConf returns the configuration in the format of wg(8).
func (c StockConfig) wgConf() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Interface]\nPrivateKey = %s\nListenPort = %d\n", c.Key.Base64(), c.ListenPort)
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "\n[Peer]\nPublicKey = %v\n", p.Key)
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, "Endpoint = %v\n", p.Endpoint)
		}
		var allowed []string
		for _, a := range p.AllowedIPs {
			allowed = append(allowed, a.String())
		}
		fmt.Fprintf(&b, "AllowedIPs = %s\n", strings.Join(allowed, ", "))
		fmt.Fprintf(&b, "PersistentKeepalive = %d\n", int(p.Keepalive.Seconds()))
	}
	return b.String()
}
