package ipplan

import (
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

func TestParseCluster(t *testing.T) {
	for text, capacity := range map[string]int{
		"10.210.0.0/16": 256, "10.0.0.0/8": 65536, "172.16.0.0/12": 4096, "192.168.4.0/22": 4, "192.168.4.0/24": 1, "100.64.0.0/10": 16384,
	} {
		p, err := ParseCluster(text)
		if err != nil || p.String() != text {
			t.Errorf("ParseCluster(%q) = %v, %v", text, p, err)
		}
		if got := Capacity(p); got != capacity {
			t.Errorf("Capacity(%s) = %d, want %d", p, got, capacity)
		}
	}
	for text, want := range map[string]string{
		"":                      "such as 10.210.0.0/16",
		"10.210.0.0":            "such as 10.210.0.0/16",
		"10.210.0.0/":           "such as 10.210.0.0/16",
		"10.210.0.0/016":        "such as 10.210.0.0/16",
		"10.210.0.0/33":         "such as 10.210.0.0/16",
		"10.210.0/16":           "such as 10.210.0.0/16",
		"ten":                   "such as 10.210.0.0/16",
		"10.210.5.7/16":         "want 10.210.0.0/16",
		"10.210.0.1/24":         "want 10.210.0.0/24",
		"10.0.0.0/7":            "prefix length is 7, want 8 to 24",
		"0.0.0.0/0":             "prefix length is 0, want 8 to 24",
		"10.210.0.0/25":         "prefix length is 25, want 8 to 24",
		"10.210.0.1/32":         "prefix length is 32, want 8 to 24",
		"fdcc::/16":             "is IPv6",
		"::ffff:10.210.0.0/112": "is IPv6",
		"0.0.0.0/8":             "not usable for hosts",
		"127.0.0.0/8":           "not usable for hosts",
		"169.254.0.0/16":        "not usable for hosts",
		"224.0.0.0/8":           "not usable for hosts",
		"240.0.0.0/8":           "not usable for hosts",
	} {
		p, err := ParseCluster(text)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), fmt.Sprintf("%q", text)) {
			t.Errorf("ParseCluster(%q) = %v, %v; want an error with %q", text, p, err, want)
		}
	}
}

func TestSubnet(t *testing.T) {
	tests := []struct {
		cluster string
		n       int
		subnet  string // "": an error
		ip      string
	}{
		{"10.210.0.0/16", 0, "10.210.0.0/24", "10.210.0.1"},
		{"10.210.0.0/16", 1, "10.210.1.0/24", "10.210.1.1"},
		{"10.210.0.0/16", 128, "10.210.128.0/24", "10.210.128.1"}, // B3: no ceiling at 128
		{"10.210.0.0/16", 255, "10.210.255.0/24", "10.210.255.1"},
		{"10.210.0.0/16", 256, "", ""},
		{"10.210.0.0/16", -1, "", ""},
		{"10.0.0.0/8", 256, "10.1.0.0/24", "10.1.0.1"},
		{"10.0.0.0/8", 65535, "10.255.255.0/24", "10.255.255.1"},
		{"10.0.0.0/8", 65536, "", ""},
		{"10.210.16.0/20", 15, "10.210.31.0/24", "10.210.31.1"},
		{"10.210.16.0/20", 16, "", ""},
		{"192.168.4.0/24", 0, "192.168.4.0/24", "192.168.4.1"},
		{"192.168.4.0/24", 1, "", ""},
		{"223.0.0.0/8", 65535, "223.255.255.0/24", "223.255.255.1"},
	}
	for _, tt := range tests {
		cluster := netip.MustParsePrefix(tt.cluster)
		got, err := Subnet(cluster, tt.n)
		if tt.subnet == "" {
			if err == nil {
				t.Errorf("Subnet(%s, %d) = %s, want an error", cluster, tt.n, got)
			}
			continue
		}
		if err != nil || got.String() != tt.subnet {
			t.Errorf("Subnet(%s, %d) = %s, %v, want %s", cluster, tt.n, got, err, tt.subnet)
		}
		if ip := WireGuardIP(got); ip.String() != tt.ip {
			t.Errorf("WireGuardIP(%s) = %s, want %s", got, ip, tt.ip)
		}
		if n, err := Index(cluster, got); err != nil || n != tt.n {
			t.Errorf("Index(%s, %s) = %d, %v, want %d", cluster, got, n, err, tt.n)
		}
	}
	if ip := WireGuardIP(netip.Prefix{}); ip.IsValid() {
		t.Errorf("WireGuardIP of nothing = %s", ip)
	}
}

func TestIndexRefuses(t *testing.T) {
	cluster := netip.MustParsePrefix("10.210.0.0/16")
	for _, p := range []netip.Prefix{
		{},
		netip.MustParsePrefix("10.211.0.0/24"),
		netip.MustParsePrefix("10.209.255.0/24"),
		netip.MustParsePrefix("10.210.1.0/23"),
		netip.MustParsePrefix("10.210.1.0/25"),
		netip.MustParsePrefix("10.210.1.1/24"),
		netip.MustParsePrefix("fdcc::/24"),
	} {
		if n, err := Index(cluster, p); err == nil {
			t.Errorf("Index(%s) = %d, want an error", p, n)
		}
	}
}

// Nothing accepts, or trips over, what is not a cluster CIDR.
func TestNoCluster(t *testing.T) {
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("10.210.5.7/16"), netip.MustParsePrefix("10.0.0.0/25"), netip.MustParsePrefix("fdcc::/16")} {
		if n := Capacity(p); n != 0 {
			t.Errorf("Capacity(%s) = %d", p, n)
		}
		if s, err := Subnet(p, 0); err == nil {
			t.Errorf("Subnet(%s) = %s", p, s)
		}
		if n, err := Index(p, netip.MustParsePrefix("10.210.1.0/24")); err == nil {
			t.Errorf("Index(%s) = %d", p, n)
		}
		if s, err := LowestFree(p, nil); err == nil {
			t.Errorf("LowestFree(%s) = %s", p, s)
		}
	}
}

func TestLowestFree(t *testing.T) {
	all := func(cluster string, but ...int) (taken []netip.Prefix) {
		c := netip.MustParsePrefix(cluster)
		for n := range Capacity(c) {
			taken = append(taken, subnet(c, n))
		}
		for _, n := range but {
			taken[n] = netip.Prefix{}
		}
		rand.Shuffle(len(taken), func(i, j int) { taken[i], taken[j] = taken[j], taken[i] })
		return taken
	}
	prefixes := func(text ...string) (p []netip.Prefix) {
		for _, s := range text {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	tests := []struct {
		name    string
		cluster string
		taken   []netip.Prefix
		want    string // "": ErrFull
	}{
		{"empty", "10.210.0.0/16", nil, "10.210.0.0/24"},
		{"first", "10.210.0.0/16", prefixes("10.210.0.0/24"), "10.210.1.0/24"},
		// B2: the count is 2, and 2 is taken.
		{"gap", "10.210.0.0/16", prefixes("10.210.0.0/24", "10.210.2.0/24"), "10.210.1.0/24"},
		{"gap at zero", "10.210.0.0/16", prefixes("10.210.1.0/24", "10.210.2.0/24"), "10.210.0.0/24"},
		{"others' addresses", "10.210.0.0/16", prefixes("10.211.0.0/24", "192.168.0.0/24", "fdcc::/16"), "10.210.0.0/24"},
		{"host bits", "10.210.0.0/16", prefixes("10.210.0.77/24"), "10.210.1.0/24"},
		{"a smaller one", "10.210.0.0/16", prefixes("10.210.0.128/25", "10.210.1.9/32"), "10.210.2.0/24"},
		{"a wider one", "10.210.0.0/16", prefixes("10.210.0.0/22", "10.210.6.1/23", "10.210.4.0/24"), "10.210.5.0/24"},
		{"all of it", "10.210.0.0/16", prefixes("10.0.0.0/8"), ""},
		{"last", "10.210.0.0/16", all("10.210.0.0/16", 255), "10.210.255.0/24"},
		{"full", "10.210.0.0/16", all("10.210.0.0/16"), ""},
		{"full at one", "10.210.7.0/24", prefixes("10.210.7.0/24"), ""},
		{"last of the widest", "10.0.0.0/8", all("10.0.0.0/8", 65535), "10.255.255.0/24"},
		{"full widest", "10.0.0.0/8", all("10.0.0.0/8"), ""},
	}
	for _, tt := range tests {
		got, err := LowestFree(netip.MustParsePrefix(tt.cluster), tt.taken)
		if tt.want == "" {
			if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), tt.cluster) {
				t.Errorf("%s: %v, %v, want ErrFull that names %s", tt.name, got, err, tt.cluster)
			}
		} else if err != nil || got.String() != tt.want {
			t.Errorf("%s: %v, %v, want %s", tt.name, got, err, tt.want)
		}
	}
}

func TestManagement(t *testing.T) {
	count := wgkey.Public{}
	for i := range count {
		count[i] = byte(i)
	}
	ones := wgkey.Public{}
	for i := range ones {
		ones[i] = 0xff
	}
	zeroGroup := wgkey.Public(big.NewInt(142688).FillBytes(make([]byte, 32)))
	for _, tt := range []struct {
		key  wgkey.Public
		want string
	}{
		{count, "fdcc:630d:cd29:66c4:3366:9112:5448:bbb2"},
		{wgkey.Public{}, "fdcc:6668:7aad:f862:bd77:6c8f:c18b:8e9f"},
		{ones, "fdcc:af96:1376:f72:635f:bdb4:4a5a:a63"},
		{zeroGroup, "fdcc:d7d2:0:9644:2a0c:28b7:6b28:1d95"}, // one group of zeros is no "::"
	} {
		got := Management(tt.key)
		if got.String() != tt.want || !ManagementPrefix.Contains(got) {
			t.Errorf("Management(%s) = %s, want %s", tt.key, got, tt.want)
		}
	}

	// By mistake: the hash of the base64 text, 16 bytes of digest of which the
	// first two are overwritten, the key itself.
	for _, wrong := range []string{"fdcc:905f:28de:f18e:aac0:5ae6:f12b:2c34", "fdcc:cd29:66c4:3366:9112:5448:bbb2:5b4f", "fdcc:1:203:405:607:809:a0b:c0d"} {
		if got := Management(count); got.String() == wrong {
			t.Errorf("Management(%s) = %s", count, got)
		}
	}
}

func TestServerID(t *testing.T) {
	long := strings.Repeat("a", 62)
	tests := []struct {
		hostname string
		taken    string // ids, separated by spaces
		want     string // "": an error
	}{
		{"web1.example.com", "", "web1-example-com"},
		{"203.0.113.10", "", "203-0-113-10"},
		{"2001:db8::1", "", "2001-db8-1"},
		{"Web_1", "", "Web-1"},
		{"..web..1..", "", "web-1"},
		{"a.-.b", "", "a-b"},
		{"deploy@web 1", "", "deploy-web-1"},
		{"münchen", "", "m-nchen"},
		{"\xff\xfeweb", "", "web"},
		{"web", "web", "web-1"},
		{"web", "web web-1", "web-2"},
		{"web-1", "web-1", "web-1-1"},
		{long + ".example.com", "", long},
		{long + "b.example.com", "", long + "b"},
		{long + "b", long + "b", long[:61] + "-1"},
		{"", "", ""},
		{"...", "", ""},
		{"ü", "", ""},
	}
	for _, tt := range tests {
		ids := strings.Fields(tt.taken)
		got, err := ServerID(tt.hostname, func(id string) bool { return slices.Contains(ids, id) })
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("ServerID(%q), taken %q = %q, %v, want %q", tt.hostname, tt.taken, got, err, tt.want)
		}
		if err == nil && CheckID(got) != nil {
			t.Errorf("CheckID(%q) = %v", got, CheckID(got))
		}
	}
	if id, err := ServerID("web", func(string) bool { return true }); err == nil {
		t.Errorf("where all are taken: %q", id)
	}
}

func TestCheckIDRefuses(t *testing.T) {
	for _, id := range []string{"", "-", "a-", "-a", "a--b", "a.b", "a b", "ü", strings.Repeat("a", 64)} {
		if CheckID(id) == nil {
			t.Errorf("CheckID(%q) = nil", id)
		}
	}
}
