package tunnel

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// want is all that a device should be.
type want struct {
	key   wgkey.Private
	port  uint16
	peers []Peer
}

// check refuses what a device would accept and then hold differently.
func (w want) check() error {
	self := w.key.Public()
	seen := make(map[wgkey.Public]bool, len(w.peers))
	owner := make(map[netip.Prefix]wgkey.Public)
	for _, p := range w.peers {
		switch {
		case p.Key.IsZero():
			return fmt.Errorf("a peer has no key")
		case p.Key == self:
			return fmt.Errorf("peer %v has our own key", p.Key)
		case seen[p.Key]:
			return fmt.Errorf("peer %v is wanted twice", p.Key)
		case p.Keepalive < 0 || p.Keepalive > 65535*time.Second || p.Keepalive%time.Second != 0:
			return fmt.Errorf("peer %v: keepalive %v: want whole seconds, 0 to 65535", p.Key, p.Keepalive)
		case p.MTU != 0 && p.MTU < minPeerMTU:
			return fmt.Errorf("peer %v: MTU %d: want %d or more", p.Key, p.MTU, minPeerMTU)
		}
		seen[p.Key] = true
		for _, ip := range p.AllowedIPs {
			if !ip.IsValid() {
				return fmt.Errorf("peer %v: an allowed IP is not a prefix", p.Key)
			}
			if other, taken := owner[ip.Masked()]; taken && other != p.Key {
				return fmt.Errorf("allowed IP %v is wanted for peer %v and for peer %v", ip, other, p.Key)
			}
			owner[ip.Masked()] = p.Key
		}
	}
	return nil
}

// diff returns what to send to a device that has h, for it to be w: the lines
// for the device and, to be sent after them, those for its peers. They are apart
// because a port that cannot be had must not keep peers from being set. Both are
// empty when nothing differs. Endpoints are never among them.
func diff(h state, w want) (device, peers string, changes []Change) {
	var b strings.Builder
	did := func(key wgkey.Public, what string) { changes = append(changes, Change{key, what}) }

	if h.key != w.key { // first, for a device ignores a peer that has its own key
		secret := w.key.Bytes()
		fmt.Fprintf(&b, "private_key=%s\n", hex.EncodeToString(secret[:]))
		did(wgkey.Public{}, "private key")
	}
	if h.fwmark != 0 {
		b.WriteString("fwmark=0\n")
		did(wgkey.Public{}, "fwmark")
	}
	if h.port != w.port {
		fmt.Fprintf(&b, "listen_port=%d\n", w.port)
		did(wgkey.Public{}, "listen port")
	}
	device = b.String()
	b.Reset()

	has := make(map[wgkey.Public]peerState, len(h.peers))
	for _, p := range h.peers {
		has[p.Key] = p
	}
	wanted := make(map[netip.Prefix]bool) // by any peer
	for _, p := range w.peers {
		for _, ip := range p.AllowedIPs {
			wanted[ip.Masked()] = true
		}
	}

	for _, p := range w.peers {
		old, exists := has[p.Key]
		delete(has, p.Key)
		var lines strings.Builder
		if !exists {
			did(p.Key, "added")
		}
		if old.psk {
			fmt.Fprintf(&lines, "preshared_key=%064d\n", 0)
			did(p.Key, "preshared key")
		}
		if old.Keepalive != p.Keepalive {
			line := fmt.Sprintf("persistent_keepalive_interval=%d\n", p.Keepalive/time.Second)
			lines.WriteString(line)
			if !old.Endpoint.IsValid() {
				// Turning it on sends a keepalive at once. Without an endpoint that
				// would be a handshake sent to nowhere, and then none for 5 s. Said
				// twice it was on before, and starts with the first packet instead.
				lines.WriteString(line)
			}
			if exists {
				did(p.Key, "keepalive")
			}
		}
		differ := false
		for _, ip := range canonical(p.AllowedIPs) { // what another peer has moves over, without a gap
			if !slices.Contains(old.AllowedIPs, ip) {
				fmt.Fprintf(&lines, "allowed_ip=%v\n", ip)
				differ = true
			}
		}
		for _, ip := range old.AllowedIPs {
			if slices.Contains(canonical(p.AllowedIPs), ip) {
				continue
			}
			differ = true
			if !wanted[ip] { // else the peer that wants it takes it
				fmt.Fprintf(&lines, "allowed_ip=-%v\n", ip)
			}
		}
		if differ && exists {
			did(p.Key, "allowed ips")
		}
		switch {
		case !exists:
			fmt.Fprintf(&b, "public_key=%s\n%s", hex.EncodeToString(p.Key[:]), &lines)
		case lines.Len() > 0:
			fmt.Fprintf(&b, "public_key=%s\nupdate_only=true\n%s", hex.EncodeToString(p.Key[:]), &lines)
		}
	}
	for _, p := range h.peers { // last, when what they had has moved
		if _, left := has[p.Key]; left {
			fmt.Fprintf(&b, "public_key=%s\nupdate_only=true\nremove=true\n", hex.EncodeToString(p.Key[:]))
			did(p.Key, "removed")
		}
	}
	return device, b.String(), changes
}

// canonical returns the prefixes as a device would tell them, each one once.
func canonical(prefixes []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if p = p.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
