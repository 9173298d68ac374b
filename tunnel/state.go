package tunnel

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// state is what a device has, as its "get" operation tells it.
type state struct {
	key    wgkey.Private // zero: none
	port   uint16        // zero: no socket is open
	fwmark uint32        // zero: none
	peers  []peerState   // sorted by key
}

type peerState struct {
	PeerStatus
	psk bool // whether there is a preshared key other than zero
}

// parseState reads the answer to "get" of
// https://www.wireguard.com/xplatform/#configuration-protocol, without the
// errno line. What it does not know is an error: a field that is not understood
// cannot be put back. No error quotes a value of private_key or preshared_key.
func parseState(text string) (state, error) {
	var s state
	seen := make(map[string]bool) // keys of this section, except allowed_ip
	n := 0
	for line := range strings.Lines(text) {
		n++
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return state{}, fmt.Errorf("line %d: want key=value", n)
		}
		if key == "public_key" {
			k, err := publicHex(value)
			if err != nil {
				return state{}, fmt.Errorf("line %d: public_key: %w", n, err)
			}
			s.peers = append(s.peers, peerState{PeerStatus: PeerStatus{Key: k}})
			clear(seen)
			continue
		}
		if seen[key] {
			return state{}, fmt.Errorf("line %d: %s repeated", n, key)
		}
		seen[key] = key != "allowed_ip"
		var known bool
		var err error
		if len(s.peers) == 0 {
			known, err = s.parse(key, value)
		} else {
			known, err = s.peers[len(s.peers)-1].parse(key, value)
		}
		switch {
		case !known:
			return state{}, fmt.Errorf("line %d: unknown key", n) // not quoted: it might be half a secret
		case err != nil:
			return state{}, fmt.Errorf("line %d: %s: %w", n, key, err)
		}
	}
	slices.SortFunc(s.peers, func(a, b peerState) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	for i := 1; i < len(s.peers); i++ {
		if s.peers[i].Key == s.peers[i-1].Key {
			return state{}, fmt.Errorf("peer %v appears twice", s.peers[i].Key)
		}
	}
	return s, nil
}

func (s *state) parse(key, value string) (known bool, err error) {
	switch key {
	case "private_key":
		var b [32]byte
		if b, err = keyHex(value); err == nil && b != [32]byte{} {
			s.key, err = wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(b[:]))
		}
	case "listen_port":
		var v uint64
		v, err = number(value, 1<<16-1)
		s.port = uint16(v)
	case "fwmark":
		var v uint64
		v, err = number(value, 1<<32-1)
		s.fwmark = uint32(v)
	default:
		return false, nil
	}
	return true, err
}

func (p *peerState) parse(key, value string) (known bool, err error) {
	var v uint64
	switch key {
	case "preshared_key":
		var b [32]byte
		b, err = keyHex(value)
		p.psk = b != [32]byte{}
	case "protocol_version":
		if value != "1" {
			err = fmt.Errorf("is %q, want 1", value)
		}
	case "endpoint":
		var ep netip.AddrPort
		if ep, err = netip.ParseAddrPort(value); err == nil {
			p.Endpoint = netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port())
		}
	case "last_handshake_time_sec":
		if v, err = number(value, 1<<40); v != 0 {
			p.LastHandshake = time.Unix(int64(v), int64(p.LastHandshake.Nanosecond()))
		}
	case "last_handshake_time_nsec":
		if v, err = number(value, 1e9-1); v != 0 {
			p.LastHandshake = time.Unix(p.LastHandshake.Unix(), int64(v))
		}
	case "tx_bytes":
		p.TxBytes, err = number(value, 1<<64-1)
	case "rx_bytes":
		p.RxBytes, err = number(value, 1<<64-1)
	case "persistent_keepalive_interval":
		v, err = number(value, 1<<16-1)
		p.Keepalive = time.Duration(v) * time.Second
	case "allowed_ip":
		var prefix netip.Prefix
		if prefix, err = netip.ParsePrefix(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, prefix.Masked())
		}
	default:
		return false, nil
	}
	return true, err
}

func publicHex(text string) (wgkey.Public, error) {
	b, err := keyHex(text)
	return wgkey.Public(b), err
}

var errKeyHex = errors.New("want 64 hexadecimal digits")

func keyHex(text string) (key [32]byte, err error) {
	if len(text) != 2*len(key) {
		return key, errKeyHex
	}
	if _, err := hex.Decode(key[:], []byte(text)); err != nil {
		return [32]byte{}, errKeyHex
	}
	return key, nil
}

// number reads decimal digits up to limit.
func number(text string, limit uint64) (uint64, error) {
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil || v > limit {
		return 0, fmt.Errorf("is %q, want a number from 0 to %d", text, limit)
	}
	return v, nil
}
