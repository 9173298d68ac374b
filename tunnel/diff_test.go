package tunnel

import (
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

func hexOf(k wgkey.Public) string { return hex.EncodeToString(k[:]) }

func TestDiff(t *testing.T) {
	var (
		key     = wgkey.NewPrivate()
		secret  = key.Bytes()
		a, b, c = wgkey.Public{1}, wgkey.Public{2}, wgkey.Public{3}
		ep      = netip.MustParseAddrPort("192.0.2.1:51820")
		none    wgkey.Public
	)
	// has is a peer with an endpoint and a keepalive of 25 s, wants the same wanted.
	has := func(k wgkey.Public, ips ...string) peerState {
		return peerState{PeerStatus: PeerStatus{Key: k, Endpoint: ep, Keepalive: 25 * time.Second, AllowedIPs: prefixes(ips...)}}
	}
	wants := func(k wgkey.Public, ips ...string) Peer {
		return Peer{Key: k, Keepalive: 25 * time.Second, AllowedIPs: prefixes(ips...)}
	}
	with := func(p peerState, change func(*peerState)) peerState { change(&p); return p }

	for _, tt := range []struct {
		name    string
		have    []peerState
		want    []Peer
		lines   []string
		changes []Change
	}{
		{name: "nothing"},
		{
			name:  "a new peer, whose keepalive must not start a handshake",
			want:  []Peer{wants(a, "10.210.1.0/24", "fdcc::1/128")},
			lines: []string{"public_key=" + hexOf(a), "persistent_keepalive_interval=25", "persistent_keepalive_interval=25", "allowed_ip=10.210.1.0/24", "allowed_ip=fdcc::1/128"},
			changes: []Change{
				{a, "added"},
			},
		},
		{
			name:    "a new peer without anything",
			want:    []Peer{{Key: a}},
			lines:   []string{"public_key=" + hexOf(a)},
			changes: []Change{{a, "added"}},
		},
		{
			name: "the same, in another order and not masked",
			have: []peerState{has(a, "10.210.1.0/24", "fdcc::1/128")},
			want: []Peer{wants(a, "fdcc:0:0:0:0:0:0:1/128", "10.210.1.7/24", "10.210.1.0/24")},
		},
		{
			name:    "one address more",
			have:    []peerState{has(a, "10.210.1.0/24")},
			want:    []Peer{wants(a, "10.210.1.0/24", "fdcc::1/128")},
			lines:   []string{"public_key=" + hexOf(a), "update_only=true", "allowed_ip=fdcc::1/128"},
			changes: []Change{{a, "allowed ips"}},
		},
		{
			name:    "one address less",
			have:    []peerState{has(a, "10.210.1.0/24", "fdcc::1/128")},
			want:    []Peer{wants(a, "10.210.1.0/24")},
			lines:   []string{"public_key=" + hexOf(a), "update_only=true", "allowed_ip=-fdcc::1/128"},
			changes: []Change{{a, "allowed ips"}},
		},
		{
			name:    "an address moves from one to the other",
			have:    []peerState{has(a, "10.210.1.0/24"), has(b)},
			want:    []Peer{wants(a), wants(b, "10.210.1.0/24")},
			lines:   []string{"public_key=" + hexOf(b), "update_only=true", "allowed_ip=10.210.1.0/24"},
			changes: []Change{{a, "allowed ips"}, {b, "allowed ips"}},
		},
		{
			name: "two swap, with no moment without",
			have: []peerState{has(a, "10.210.1.0/24"), has(b, "10.210.2.0/24")},
			want: []Peer{wants(a, "10.210.2.0/24"), wants(b, "10.210.1.0/24")},
			lines: []string{
				"public_key=" + hexOf(a), "update_only=true", "allowed_ip=10.210.2.0/24",
				"public_key=" + hexOf(b), "update_only=true", "allowed_ip=10.210.1.0/24",
			},
			changes: []Change{{a, "allowed ips"}, {b, "allowed ips"}},
		},
		{
			name: "a peer goes, another takes its addresses before that",
			have: []peerState{has(a, "10.210.1.0/24"), has(b)},
			want: []Peer{wants(b), wants(c, "10.210.1.0/24")},
			lines: []string{
				"public_key=" + hexOf(c), "persistent_keepalive_interval=25", "persistent_keepalive_interval=25", "allowed_ip=10.210.1.0/24",
				"public_key=" + hexOf(a), "update_only=true", "remove=true",
			},
			changes: []Change{{c, "added"}, {a, "removed"}},
		},
		{
			name:    "keepalive on, with an endpoint",
			have:    []peerState{with(has(a), func(p *peerState) { p.Keepalive = 0 })},
			want:    []Peer{wants(a)},
			lines:   []string{"public_key=" + hexOf(a), "update_only=true", "persistent_keepalive_interval=25"},
			changes: []Change{{a, "keepalive"}},
		},
		{
			name:    "keepalive on, without one",
			have:    []peerState{with(has(a), func(p *peerState) { p.Keepalive = 0; p.Endpoint = netip.AddrPort{} })},
			want:    []Peer{wants(a)},
			lines:   []string{"public_key=" + hexOf(a), "update_only=true", "persistent_keepalive_interval=25", "persistent_keepalive_interval=25"},
			changes: []Change{{a, "keepalive"}},
		},
		{
			name:    "a preshared key",
			have:    []peerState{with(has(a), func(p *peerState) { p.psk = true })},
			want:    []Peer{wants(a)},
			lines:   []string{"public_key=" + hexOf(a), "update_only=true", "preshared_key=" + strings.Repeat("0", 64)},
			changes: []Change{{a, "preshared key"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			device, peers, changes := diff(state{key: key, port: 51820, peers: tt.have}, want{key: key, port: 51820, peers: tt.want})
			if device != "" {
				t.Errorf("lines for the device: %q", device)
			}
			var lines []string
			for l := range strings.Lines(peers) {
				lines = append(lines, strings.TrimSuffix(l, "\n"))
			}
			if !reflect.DeepEqual(lines, tt.lines) {
				t.Errorf("lines\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(tt.lines, "\n"))
			}
			if !reflect.DeepEqual(changes, tt.changes) {
				t.Errorf("changes %v, want %v", changes, tt.changes)
			}
		})
	}

	t.Run("the device itself", func(t *testing.T) {
		device, peers, changes := diff(state{key: wgkey.NewPrivate(), port: 1, fwmark: 5}, want{key: key, port: 51820})
		if want := "private_key=" + hex.EncodeToString(secret[:]) + "\nfwmark=0\nlisten_port=51820\n"; device != want {
			t.Errorf("wrong lines for the device") // without the key
		}
		if peers != "" {
			t.Errorf("lines for peers: %q", peers)
		}
		if want := []Change{{none, "private key"}, {none, "fwmark"}, {none, "listen port"}}; !reflect.DeepEqual(changes, want) {
			t.Errorf("changes %v, want %v", changes, want)
		}
	})
}

func TestWantCheck(t *testing.T) {
	var (
		key  = wgkey.NewPrivate()
		a, b = wgkey.Public{1}, wgkey.Public{2}
	)
	for _, tt := range []struct {
		name  string
		peers []Peer
		err   string // empty: none
	}{
		{"none", nil, ""},
		{"fine", []Peer{{Key: a, AllowedIPs: prefixes("10.0.0.0/24", "10.0.0.1/24"), Keepalive: 65535 * time.Second}, {Key: b, AllowedIPs: prefixes("10.0.0.0/25")}}, ""},
		{"no key", []Peer{{}}, "a peer has no key"},
		{"our key", []Peer{{Key: key.Public()}}, "has our own key"},
		{"twice", []Peer{{Key: a}, {Key: a}}, "wanted twice"},
		{"half a second", []Peer{{Key: a, Keepalive: 1500 * time.Millisecond}}, "keepalive 1.5s: want whole seconds, 0 to 65535"},
		{"negative", []Peer{{Key: a, Keepalive: -time.Second}}, "keepalive -1s"},
		{"too long", []Peer{{Key: a, Keepalive: 65536 * time.Second}}, "keepalive 18h12m16s"},
		{"no prefix", []Peer{{Key: a, AllowedIPs: []netip.Prefix{{}}}}, "is not a prefix"},
		{"contested", []Peer{{Key: a, AllowedIPs: prefixes("10.0.0.0/24")}, {Key: b, AllowedIPs: prefixes("10.0.0.9/24")}},
			"allowed IP 10.0.0.9/24 is wanted for peer " + a.String() + " and for peer " + b.String()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := want{key: key, peers: tt.peers}.check()
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}
