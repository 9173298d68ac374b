package identity

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	privateA = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
	publicA  = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
)

func TestParseWGQuick(t *testing.T) {
	tests := []struct {
		name, text string
		address    string
		port       uint16
		mtu        int
	}{
		{"as the predecessor wrote it", `[Interface]
PrivateKey = ` + privateA + `
Address = 10.210.0.1/24
Address = fdcc:630d:cd29:66c4:3366:9112:5448:bbb2/128
ListenPort = 51820
MTU = 1420

[Peer]
PublicKey = ` + publicA + `
AllowedIPs = 10.210.1.0/24
AllowedIPs = fdcc::1/128
Endpoint = 203.0.113.10:51820
PersistentKeepalive = 25
`, "10.210.0.1/24 fdcc:630d:cd29:66c4:3366:9112:5448:bbb2/128", 51820, 1420},
		{"only a key", "[Interface]\nPrivateKey=" + privateA, "", 0, 0},
		{"case, spaces, comments", "\ufeff# mine\r\n\r\n  [INTERFACE]  # here\r\n\tprivatekey\t=  " + privateA + " # secret = x\r\nADDRESS=10.0.0.1/8 , fd00::1/64,10.0.0.2\r\nlistenport = 1 # PrivateKey = x\r\n",
			"10.0.0.1/8 fd00::1/64 10.0.0.2/32", 1, 0},
		{"other settings", "[Interface]\nDNS = 1.1.1.1, jiji\nPostUp = iptables -A FORWARD -i %i -j ACCEPT; echo a=b\nTable = off\nSaveConfig = true\nFwMark = 0x10\nno sense\nPrivateKey = " + privateA + "\n", "", 0, 0},
		{"key of a peer is none of ours", "PrivateKey = x\n[Peer]\nPrivateKey = x\nAddress = x\nMTU = x\n[Interface]\nPrivateKey = " + privateA, "", 0, 0},
		{"two sections", "[Interface]\nPrivateKey = " + privateA + "\n[Peer]\n[Interface]\nMTU = 1280", "", 0, 1280},
	}
	for _, tt := range tests {
		conf, err := ParseWGQuick("jiji0.conf", []byte(tt.text))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var address []netip.Prefix
		for _, a := range strings.Fields(tt.address) {
			address = append(address, netip.MustParsePrefix(a))
		}
		if conf.PrivateKey.Public().String() != publicA || !slices.Equal(conf.Address, address) || conf.ListenPort != tt.port || conf.MTU != tt.mtu {
			t.Errorf("%s: %+v", tt.name, conf)
		}
	}
}

func TestParseWGQuickRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "jiji0.conf: has no PrivateKey",
		"[Interface]\nMTU = 1420\n": "jiji0.conf: has no PrivateKey",
		"PrivateKey = " + privateA:  "jiji0.conf: has no PrivateKey",
		"[Interface]\nPrivateKey =": "jiji0.conf:2: PrivateKey: private key: has 0 characters",
		"[Interface]\n\nPrivateKey = " + privateA[:40]:                           "jiji0.conf:3: PrivateKey: private key: has 40 characters",
		"[Interface]\nPrivateKey = #" + privateA:                                 "jiji0.conf:2: PrivateKey: private key: has 0 characters",
		"[Interface]\nPrivateKey = " + privateA + "\nPrivateKey = " + privateA:   "jiji0.conf:3: PrivateKey is set again, it was on line 2",
		"[Interface]\nPrivateKey = " + privateA + "\nListenPort = 65536":         "jiji0.conf:3: ListenPort: want a number",
		"[Interface]\nPrivateKey = " + privateA + "\nListenPort = -1":            "jiji0.conf:3: ListenPort: want a number",
		"[Interface]\nPrivateKey = " + privateA + "\nMTU =":                      "jiji0.conf:3: MTU: want a number",
		"[Interface]\nPrivateKey = " + privateA + "\nMTU = " + privateA:          "jiji0.conf:3: MTU: want a number",
		"[Interface]\nPrivateKey = " + privateA + "\nAddress = " + privateA:      "jiji0.conf:3: Address: want IP addresses",
		"[Interface]\nPrivateKey = " + privateA + "\nAddress = 10.0.0.1/33":      "jiji0.conf:3: Address: want IP addresses",
		"[Interface]\nPrivateKey = " + privateA + "\nAddress = fe80::1%eth0":     "jiji0.conf:3: Address: want IP addresses",
		"[Interface]\nPrivateKey = " + privateA + "\nAddress = 10.0.0.1/24,":     "jiji0.conf:3: Address: want IP addresses",
		"[Interface]\nPrivateKey = " + strings.Replace(privateA, "d", "\x00", 1): "jiji0.conf:2: PrivateKey: private key: is not base64",
		"[Interface]\nPrivateKey = " + strings.Repeat("A", 43) + "=":             "jiji0.conf:2: PrivateKey: private key: all zero",
	} {
		conf, err := ParseWGQuick("jiji0.conf", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %s", text, conf, err, want)
		} else if strings.Contains(err.Error(), privateA[:8]) {
			t.Errorf("%q: the error quotes the key: %v", text, err)
		}
	}
}

func FuzzParseWGQuick(f *testing.F) {
	f.Add([]byte("[Interface]\nPrivateKey = " + privateA + "\nAddress = 10.0.0.1/8, fd00::1\nListenPort=1\nMTU=1420\n[Peer]\nPublicKey=x"))
	f.Add([]byte("\ufeff[interface]\r\nprivatekey=" + privateA + "#\r\naddress=" + privateA))
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, err := ParseWGQuick("f", data)
		switch {
		case err != nil && conf.PrivateKey != wgkey.Private{}:
			t.Error("a key in spite of an error")
		case err != nil && strings.Contains(err.Error(), privateA[:16]):
			t.Errorf("the error quotes the key: %v", err)
		case err == nil && conf.PrivateKey.IsZero():
			t.Error("neither a key nor an error")
		}
		for _, a := range conf.Address {
			if err == nil && !a.IsValid() {
				t.Errorf("address %v", a)
			}
		}
	})
}
