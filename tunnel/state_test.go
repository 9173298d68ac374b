package tunnel

import (
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// The example of https://www.wireguard.com/xplatform/#example-dialog, as this
// device would tell it.
const example = `private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
listen_port=12912
fwmark=7
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
protocol_version=1
endpoint=[abcd:23::33%2]:51820
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
allowed_ip=192.168.4.4/32
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
preshared_key=0000000000000000000000000000000000000000000000000000000000000000
protocol_version=1
endpoint=182.122.22.19:3233
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
tx_bytes=38333
rx_bytes=2224
persistent_keepalive_interval=111
allowed_ip=192.168.4.6/32
allowed_ip=fdcc:1::/64
`

func publicOf(t testing.TB, text string) wgkey.Public {
	t.Helper()
	k, err := publicHex(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func prefixes(text ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range text {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestParseState(t *testing.T) {
	secret, err := hex.DecodeString("e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a")
	if err != nil {
		t.Fatal(err)
	}
	key, err := wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(secret))
	if err != nil {
		t.Fatal(err)
	}
	want := state{
		key:    key,
		port:   12912,
		fwmark: 7,
		peers: []peerState{
			{PeerStatus: PeerStatus{
				Key:           publicOf(t, "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376"),
				Endpoint:      netip.MustParseAddrPort("182.122.22.19:3233"),
				AllowedIPs:    prefixes("192.168.4.6/32", "fdcc:1::/64"),
				Keepalive:     111 * time.Second,
				LastHandshake: time.Unix(1700000000, 5),
				RxBytes:       2224,
				TxBytes:       38333,
			}},
			{psk: true, PeerStatus: PeerStatus{
				Key:        publicOf(t, "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33"),
				Endpoint:   netip.MustParseAddrPort("[abcd:23::33%2]:51820"),
				AllowedIPs: prefixes("192.168.4.4/32"),
			}},
		},
	}
	got, err := parseState(example)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}

	if got, err := parseState(""); err != nil || !reflect.DeepEqual(got, state{}) {
		t.Errorf("nothing: %+v, %v", got, err)
	}
}

func TestParseStateRefuses(t *testing.T) {
	const (
		zeros = "0000000000000000000000000000000000000000000000000000000000000000"
		peer  = "public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n"
	)
	for _, c := range []struct{ name, text, want string }{
		{"no equals sign", "listen_port\n", "line 1: want key=value"},
		{"empty line", "listen_port=1\n\n", "line 2: want key=value"},
		{"unknown key", "errno=0\n", "line 1: unknown key"},
		{"key of a peer without one", "allowed_ip=10.0.0.0/8\n", "line 1: unknown key"},
		{"key of the device after a peer", peer + "fwmark=1\n", "line 2: unknown key"},
		{"repeated", "fwmark=1\nfwmark=1\n", "line 2: fwmark repeated"},
		{"peer repeated", peer + peer, "appears twice"},
		{"short private key", "private_key=" + zeros[1:] + "\n", "private_key: want 64 hexadecimal digits"},
		{"private key not hex", "private_key=" + zeros[1:] + "x\n", "private_key: want 64 hexadecimal digits"},
		{"public key not hex", "public_key=" + zeros[1:] + "x\n", "public_key: want 64 hexadecimal digits"},
		{"port too high", "listen_port=65536\n", `listen_port: is "65536", want a number from 0 to 65535`},
		{"port signed", "listen_port=+1\n", `listen_port: is "+1"`},
		{"version", peer + "protocol_version=2\n", `protocol_version: is "2", want 1`},
		{"endpoint", peer + "endpoint=example.com:1\n", "endpoint: "},
		{"nanoseconds", peer + "last_handshake_time_nsec=1000000000\n", "last_handshake_time_nsec: is"},
		{"keepalive", peer + "persistent_keepalive_interval=65536\n", "persistent_keepalive_interval: is"},
		{"allowed ip", peer + "allowed_ip=10.0.0.0/33\n", "allowed_ip: "},
		{"negative bytes", peer + "rx_bytes=-1\n", "rx_bytes: is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseState(c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzParseState(f *testing.F) {
	f.Add(example)
	f.Add("private_key=\nlisten_port=-1\n")
	f.Add("public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\npreshared_key=0\n")
	const secret = "5ec2e75ec2e75ec2e7"
	keys := regexp.MustCompile(`(?m)^(private|preshared)_key=.*$`)
	f.Fuzz(func(t *testing.T, text string) {
		parseState(text)
		if strings.Contains(text, secret) {
			t.Skip()
		}
		_, err := parseState(keys.ReplaceAllString(text, "${0}"+secret))
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error quotes a key: %v", err)
		}
	})
}
