package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A Peer is a peer as wanted. Its endpoint is not part of that: see Move.
type Peer struct {
	Key        wgkey.Public
	AllowedIPs []netip.Prefix // in any order; no two peers may want the same one
	Keepalive  time.Duration  // whole seconds up to 65535; zero: off
	MTU        int            // bytes in a packet that the path to it carries; zero: the interface's
}

// A Change is one thing that SetPeers had to do.
type Change struct {
	Key  wgkey.Public // zero for a change of the device itself
	What string       // of a peer: added, removed, allowed ips, keepalive, preshared key; of the device: private key, listen port, fwmark
}

// A PeerStatus is a peer as the device has it.
type PeerStatus struct {
	Key           wgkey.Public
	Endpoint      netip.AddrPort // in use; zero: none yet
	AllowedIPs    []netip.Prefix
	Keepalive     time.Duration // zero: off
	LastHandshake time.Time     // completed; zero: never
	RxBytes       uint64        // including WireGuard's own, since the peer was added
	TxBytes       uint64
}

// Peers returns the peers that the device has, sorted by key.
func (t *Tunnel) Peers() ([]PeerStatus, error) {
	s, err := t.read()
	if err != nil {
		return nil, err
	}
	peers := make([]PeerStatus, len(s.peers))
	for i, p := range s.peers {
		peers[i] = p.PeerStatus
	}
	return peers, nil
}

// SetPeers makes the wanted peers, and no others, be on the device, and the
// device have its key and port, whatever it has now and whoever set that. It
// returns what it had to change. Where nothing differs nothing is sent; in no
// case is the endpoint of a peer that stays.
//
// A new peer has no endpoint. It sends no handshake before Move gave it one, or
// the peer's own handshake did, unless there are packets for it.
func (t *Tunnel) SetPeers(peers []Peer) ([]Change, error) {
	w := want{key: t.cfg.Key, port: t.cfg.ListenPort, peers: peers}
	if err := w.check(); err != nil {
		return nil, fmt.Errorf("set peers: %w", err)
	}
	t.setting.Lock()
	defer t.setting.Unlock()
	s, err := t.read()
	if err != nil {
		return nil, err
	}
	device, lines, changes := diff(s, w)
	if device != "" {
		err = t.dev.IpcSet(device)
	}
	if lines != "" {
		err = errors.Join(err, t.dev.IpcSet(lines))
	}
	if err != nil {
		return nil, fmt.Errorf("set peers: %w", err)
	}
	t.tun.limits.Store(newLimits(t.MTU(), peers))
	return changes, nil
}

// Move makes the peer use endpoint and asks it at once for a new handshake
// there. What the peer is sent meanwhile waits for that. If the peer asked from
// there itself less than a second ago, and is answered, nothing is done: there is a
// session, which moving would end. If the handshake cannot be sent, as when there is
// no route, it returns why; endpoint is in use all the same. Two calls for one peer
// have to be more than 20 ms apart, or the second handshake is not answered:
// WireGuard takes it for a flood.
func (t *Tunnel) Move(key wgkey.Public, endpoint netip.AddrPort) error {
	err := t.move(key, endpoint)
	if err != nil {
		return fmt.Errorf("move peer %v to %v: %w", key, endpoint, err)
	}
	return nil
}

func (t *Tunnel) move(key wgkey.Public, endpoint netip.AddrPort) error {
	if !endpoint.Addr().IsValid() || endpoint.Port() == 0 {
		return errors.New("want an address and a port")
	}
	if _, err := t.lookup(key); err != nil {
		return err
	}
	ep, err := t.bind.ParseEndpoint(netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port()).String())
	if err != nil {
		return err
	}
	// Not through the device's "set": that one would start a handshake of its own
	// when packets are waiting, just before the keys expire here, and of two
	// within 20 ms the peer answers the first, which has expired. Nor may the keys
	// expire first: a packet in between starts a handshake on the old endpoint,
	// and WireGuard allows the next one only 5 s later.
	return t.bind.move(key, ep, func(since time.Time) error {
		if !since.IsZero() {
			if heard, err := t.shookHands(key, since); heard || err != nil {
				return err
			}
		}
		peer, err := t.lookup(key)
		if err != nil {
			return err
		}
		peer.SetEndpointFromPacket(ep)
		peer.ExpireCurrentKeypairs() // forgets when the last handshake was sent, too
		return peer.SendHandshakeInitiation(false)
	})
}

// shookHands reports whether the peer has a session that began after since.
func (t *Tunnel) shookHands(key wgkey.Public, since time.Time) (bool, error) {
	s, err := t.read()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(s.peers, func(p peerState) bool { return p.Key == key && p.LastHandshake.After(since) }), nil
}

// Ask asks the peer for a new handshake, on the endpoint in use. The keys in use
// stay valid meanwhile. If a handshake was sent or answered in the last 5 s it
// does nothing, as WireGuard has it. A peer without an endpoint cannot be asked, and
// one that it is given within 5 s after that only by Move.
func (t *Tunnel) Ask(key wgkey.Public) error {
	err := t.ask(key)
	if err != nil {
		return fmt.Errorf("ask peer %v: %w", key, err)
	}
	return nil
}

func (t *Tunnel) ask(key wgkey.Public) error {
	peer, err := t.lookup(key)
	if err != nil {
		return err
	}
	return peer.SendHandshakeInitiation(false)
}

// Discard drops the packets that wait for a session with the peer, each of which
// holds 64 KiB: a device gives up on them after 90 s. Without such a peer it does
// nothing.
func (t *Tunnel) Discard(key wgkey.Public) {
	if peer, err := t.lookup(key); err == nil {
		peer.FlushStagedPackets()
	}
}

func (t *Tunnel) lookup(key wgkey.Public) (*device.Peer, error) {
	if t.isClosed() {
		return nil, ErrClosed
	}
	peer := t.dev.LookupPeer(device.NoisePublicKey(key))
	if peer == nil {
		return nil, errors.New("there is no such peer")
	}
	return peer, nil
}

// read returns what the device has.
func (t *Tunnel) read() (state, error) {
	if t.isClosed() {
		return state{}, ErrClosed
	}
	text, err := t.dev.IpcGet()
	if err != nil {
		return state{}, fmt.Errorf("read the device: %w", err)
	}
	s, err := parseState(text)
	if err != nil {
		return state{}, fmt.Errorf("read the device: %w", err)
	}
	return s, nil
}
