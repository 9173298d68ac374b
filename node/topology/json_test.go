package topology

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	keyA = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	keyB = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
)

// The file as DESIGN has it, with what older and newer versions write.
const whole = `{
  "topology": {
    "clusterCidr": "10.210.0.0/16",
    "serviceDomain": "jiji",
    "discovery": "static",
    "servers": [
      {
        "id": "web1",
        "hostname": "203.0.113.10",
        "subnet": "10.210.0.0/24",
        "wireguardIp": "10.210.0.1",
        "wireguardPublicKey": "` + keyA + `",
        "managementIp": "fdcc:630d:cd29:66c4:3366:9112:5448:bbb2",
        "endpoints": ["203.0.113.10:51820", "[2001:db8::1]:51820", "203.0.113.10:51820", "[::ffff:203.0.113.10]:51820"],
        "publicIp": null,
        "newer": {"nested": [1, 2.5e3, true, "}\"]"]}
      },
      {
        "id": "web2",
        "wireguardPublicKey": "` + keyB + `",
        "subnet": "",
        "endpoints": [],
        "removedAt": "2026-01-31T13:00:00+01:00"
      }
    ],
    "createdAt": "2025-12-25T10:11:12.345Z"
  },
  "newer": []
}
`

func TestParse(t *testing.T) {
	got, err := Parse("network.json", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	a, err := wgkey.ParsePublic(keyA)
	if err != nil {
		t.Fatal(err)
	}
	b, err := wgkey.ParsePublic(keyB)
	if err != nil {
		t.Fatal(err)
	}
	want := Topology{
		Cluster: cluster, Domain: "jiji", Discovery: "static",
		CreatedAt: time.Date(2025, 12, 25, 10, 11, 12, 345e6, time.UTC),
		Servers: []Server{{
			ID: "web1", Hostname: "203.0.113.10", Key: a,
			Subnet: netip.MustParsePrefix("10.210.0.0/24"), WireGuardIP: netip.MustParseAddr("10.210.0.1"),
			ManagementIP: netip.MustParseAddr("fdcc:630d:cd29:66c4:3366:9112:5448:bbb2"),
			Endpoints:    []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:51820"), netip.MustParseAddrPort("[2001:db8::1]:51820")},
			rest:         `"publicIp":null,"newer":{"nested":[1,2.5e3,true,"}\"]"]}`,
		}, {
			ID: "web2", Key: b, ManagementIP: ipplan.Management(b), RemovedAt: noon,
		}},
		beside: `"newer":[]`,
	}
	if !got.Equal(want) || !got.CreatedAt.Equal(want.CreatedAt) || !got.UpdatedAt.IsZero() {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	gone := server(2)
	gone.RemovedAt = noon.Add(time.Hour)
	bare := derive(Server{ID: "bare", Key: wgkey.Public{9}})
	want := mesh(server(0), server(1), gone, bare)
	got, err := Parse("network.json", want.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) || !got.CreatedAt.Equal(want.CreatedAt) || !got.UpdatedAt.Equal(want.UpdatedAt) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if again := got.Marshal(); !bytes.Equal(again, want.Marshal()) {
		t.Errorf("written again:\n%s\nfirst:\n%s", again, want.Marshal())
	}
}

func TestMarshal(t *testing.T) {
	s := server(1)
	s.Key = wgkey.Public{1}
	s.ManagementIP = ipplan.Management(s.Key)
	bare := derive(Server{ID: "bare", Key: wgkey.Public{2}, RemovedAt: noon})
	want := `{
  "topology": {
    "clusterCidr": "10.210.0.0/16",
    "serviceDomain": "jiji",
    "discovery": "static",
    "servers": [
      {
        "id": "s1",
        "hostname": "s1.example.com",
        "subnet": "10.210.1.0/24",
        "wireguardIp": "10.210.1.1",
        "wireguardPublicKey": "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "managementIp": "` + s.ManagementIP.String() + `",
        "endpoints": [
          "203.0.113.10:51820"
        ]
      },
      {
        "id": "bare",
        "hostname": "",
        "subnet": "",
        "wireguardIp": "",
        "wireguardPublicKey": "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "managementIp": "` + bare.ManagementIP.String() + `",
        "endpoints": [],
        "removedAt": "2026-01-31T12:00:00Z"
      }
    ],
    "createdAt": "2026-01-31T12:00:00Z",
    "updatedAt": "2026-01-31T12:00:00Z"
  }
}
`
	if got := string(mesh(s, bare).Marshal()); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// at returns the line:column of the n-th (from 1) occurrence of mark in text.
func at(text, mark string, n int) string {
	i := -1
	for range n {
		next := strings.Index(text[i+1:], mark)
		if next < 0 {
			panic(mark)
		}
		i += 1 + next
	}
	before := text[:i]
	return fmt.Sprintf("%d:%d", strings.Count(before, "\n")+1, len(before)-strings.LastIndex(before, "\n"))
}

// placeOf returns the place of mark: "" is any, "LAST" that of the last character.
func placeOf(text, mark string) string {
	switch mark {
	case "":
		return ""
	case "LAST":
		return at(text[:len(text)-1]+"\x00", "\x00", 1) + ": "
	default:
		return at(text, mark, 1) + ": "
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		name     string
		old, new string // replacement in whole; an empty old: the whole text is new
		mark     string // what the error is at, after the replacement: see placeOf
		want     string
	}{
		{"empty", "", "", "", "unexpected end of JSON input"},
		{"blank", "", "\n \n", "", "unexpected end of JSON input"},
		{"no JSON", "", "cluster: 10.0.0.0/8\n", "", "invalid character 'c' looking for beginning of value"},
		{"byte order mark", "", "\ufeff{}", "", "invalid character"},
		{"array", "", "[]", "", "the file: want an object, have an array"},
		{"null", "", "null", "", "the file: want an object, have null"},
		{"number", "", "17", "", "the file: want an object, have a number"},
		{"other object", "", "{}", "", `has no "topology", want {"topology": {…}}`},
		{"an entry", "", `{"wireguardPublicKey": "x"}`, "", "this is one server's entry, which `jiji-node server add` takes"},
		{"topology is a list", "", `{"topology": []}`, "[]", "topology: want an object, have an array"},
		{"topology is null", "", `{"topology": null}`, "null", "topology: want an object, have null"},
		{"empty topology", "", `{"topology": {"serviceDomain": "jiji"}}`, `{"serviceDomain`, "cluster CIDR is missing"},
		{"comma missing", `"jiji",`, `"jiji"`, `"discovery"`, "invalid character '\"' after object key:value pair"},
		{"comma too many", "\n    ],", "\n    ,],", "],\n    \"created", "invalid character ']' looking for beginning of value"},
		{"something after it", "\n}\n", "\n} x\n", "x\n", "invalid character 'x' after top-level value"},
		{"a character at the end", "\n  },\n  \"newer\": []\n}\n", "\n  },~", "~", "invalid character '~' looking for beginning of object key string"},
		{"cut off", ",\n  \"newer\": []\n}\n", "\n", "LAST", "unexpected end of JSON input"},
		{"too deep", `{"nested": [1, 2.5e3, true, "}\"]"]}`, strings.Repeat("[", 20000), "", "exceeded max depth"},
		{"twice in topology", `"discovery": "static",`, `"discovery": "static", "discovery" : "x",`, `"discovery" :`, `topology: "discovery" is there twice`},
		{"twice in a server", `"hostname": "203.0.113.10",`, `"hostname": "a", "\u0068ostname": "b",`, `"\u0068`, `server number 1: "hostname" is there twice`},
		{"servers twice", `"createdAt"`, `"servers": [], "createdAt"`, `"servers": [], "createdAt"`, `topology: "servers" is there twice`},
		{"cluster type", `"10.210.0.0/16"`, `17`, `17`, `topology: "clusterCidr": want a string, have a number`},
		{"cluster host bits", `"10.210.0.0/16"`, `"10.210.5.7/16"`, `"10.210.5.7/16"`, "host bits are set, want 10.210.0.0/16"},
		{"other case is another name", `"clusterCidr"`, `"clusterCIDR"`, "{\n    \"clusterCIDR\"", "cluster CIDR is missing"},
		{"domain type", `"jiji"`, `true`, `true`, `topology: "serviceDomain": want a string, have a boolean`},
		{"domain", `"jiji"`, `"ji_ji"`, `"ji_ji"`, `service domain "ji_ji": want labels`},
		{"no domain", `"jiji"`, `""`, `""`, `service domain "": want labels`},
		{"discovery", `"static"`, `"a b"`, `"a b"`, `discovery "a b": want one word`},
		{"servers type", "", `{"topology": {"servers": {}}}`, `{}}}`, `topology: "servers": want an array, have an object`},
		{"server type", `"servers": [`, `"servers": ["web0", `, `"web0"`, "server number 1: want an object, have a string"},
		{"time", `"2025-12-25T10:11:12.345Z"`, `"yesterday"`, `"yesterday"`, `topology: "createdAt": "yesterday" is no time`},
		{"time without zone", `"2026-01-31T13:00:00+01:00"`, `"2026-01-31T13:00:00"`, `"2026-01-31T13:00:00"`, `server "web2": "removedAt": "2026-01-31T13:00:00" is no time`},
		{"time that means never", `"2026-01-31T13:00:00+01:00"`, `"0001-01-01T00:00:00Z"`, `"0001-01-01T00:00:00Z"`, `server "web2": "removedAt": "0001-01-01T00:00:00Z" is no time`},
		{"removed type", `"2026-01-31T13:00:00+01:00"`, `false`, `false`, `server "web2": "removedAt": want a string, have a boolean`},
		{"id type", `"web1"`, `1`, `1,`, `server number 1: "id": want a string, have a number`},
		{"id", `"web1"`, `"web.1"`, `"web.1"`, `server id "web.1": want letters, digits`},
		{"no id, no hostname", `"id": "web2",`, ``, "{\n        \n", "server number 2: server id is missing"},
		{"same id", `"web2"`, `"WEB1"`, `"WEB1"`, `server id "WEB1": is the id of two servers, number 1 (203.0.113.10) and number 2 ()`},
		{"hostname", `"hostname": "203.0.113.10"`, `"hostname": "a\u001bb"`, `"a\u001bb"`, `server "web1": hostname "a\x1bb": want at most 253 characters, printable ASCII`},
		{"long", `"hostname": "203.0.113.10"`, `"hostname": "` + strings.Repeat("a", 256) + `"`, `"aaa`, `server "web1": "hostname": has 256 bytes, want at most 255`},
		{"no key", `"wireguardPublicKey": "` + keyA + `",`, "", "{\n        \"id\": \"web1\"", `server "web1": has no public key`},
		{"bad key", keyA, "AAEC", `"AAEC"`, `server "web1": public key "AAEC": has 4 characters, want 44 of base64`},
		{"zero key", keyA, strings.Repeat("A", 43) + "=", `"AAAA`, `server "web1": has no public key`},
		{"same key", `"wireguardPublicKey": "` + keyB + `",`, `"wireguardPublicKey": "` + keyA + `" ,`, "", ""}, // of one that is removed
		{"subnet", `"10.210.0.0/24"`, `"10.210.0.0"`, `"10.210.0.0"`, `server "web1": subnet "10.210.0.0": want an IPv4 /24 such as 10.210.1.0/24`},
		{"subnet host bits", `"10.210.0.0/24"`, `"10.210.0.1/24"`, `"10.210.0.1/24"`, `server "web1": server subnet "10.210.0.1/24": host bits are set`},
		{"subnet outside", `"10.210.0.0/24"`, `"10.211.0.0/24"`, `"10.211.0.0/24"`, `server "web1": server subnet "10.211.0.0/24": lies outside cluster 10.210.0.0/16`},
		{"subnet length", `"10.210.0.0/24"`, `"10.210.0.0/25"`, `"10.210.0.0/25"`, `server "web1": server subnet "10.210.0.0/25": want an IPv4 /24 of cluster 10.210.0.0/16`},
		{"address of another", `"10.210.0.1"`, `"10.210.1.1"`, `"10.210.1.1"`, `server "web1": WireGuard address 10.210.1.1 is not the first of its subnet 10.210.0.0/24, want 10.210.0.1`},
		{"address without subnet", `"subnet": "10.210.0.0/24",`, ``, `"10.210.0.1"`, `server "web1": WireGuard address 10.210.0.1: there is no subnet that it belongs to`},
		{"no address", `"10.210.0.1"`, `"x"`, `"x"`, `server "web1": "wireguardIp": "x" is no IP address`},
		{"management address of another key", `bbb2"`, `bbb3"`, `"fdcc`, `server "web1": management address fdcc:630d:cd29:66c4:3366:9112:5448:bbb3 does not follow from its public key, want fdcc:630d:cd29:66c4:3366:9112:5448:bbb2`},
		{"endpoints type", `"endpoints": []`, `"endpoints": "203.0.113.10:51820"`, `"203.0.113.10:51820",
        "removedAt"`, `server "web2": "endpoints": want an array, have a string`},
		{"endpoint type", `"endpoints": []`, `"endpoints": [51820]`, `51820]`, `server "web2": "endpoints": want a string, have a number`},
		{"endpoint name", `"endpoints": []`, `"endpoints": ["vpn.example.com:51820"]`, `"vpn`, `server "web2": endpoint "vpn.example.com:51820": want ip:port such as 203.0.113.10:51820`},
		{"endpoint null", `"endpoints": []`, `"endpoints": [null]`, `null]`, `server "web2": "endpoints": want a string, have null`},
		{"endpoint without port", `"endpoints": []`, `"endpoints": ["203.0.113.10"]`, `"203.0.113.10"]`, `server "web2": endpoint "203.0.113.10": want ip:port`},
		{"endpoint port 0", `"endpoints": []`, `"endpoints": ["203.0.113.10:0"]`, `["203.0.113.10:0"]`, `server "web2": endpoint 203.0.113.10:0: port is 0`},
		{"many endpoints", `"endpoints": []`, `"endpoints": [""` + strings.Repeat(`, ""`, 64) + `]`, `["", `, `server "web2": has 65 endpoints, want at most 64`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := tt.new
			if tt.old != "" {
				if strings.Count(whole, tt.old) == 0 {
					t.Fatalf("%q is not in the text", tt.old)
				}
				text = strings.Replace(whole, tt.old, tt.new, 1)
			}
			_, err := Parse("network.json", []byte(text))
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			place := "network.json:" + placeOf(text, tt.mark)
			if err == nil || !strings.HasPrefix(err.Error(), place) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v\nwant %s… %s", err, place, tt.want)
			}
			var syn *SyntaxError
			if !errors.As(err, &syn) || syn.Source != "network.json" {
				t.Errorf("error is a %T", err)
			}
		})
	}
}

func TestColumnsAreCharacters(t *testing.T) {
	_, err := Parse("f", []byte("{\n  \"üü\": x}"))
	if err == nil || !strings.HasPrefix(err.Error(), "f:2:9: ") {
		t.Errorf("error is %v, want f:2:9", err)
	}
}

func TestParseReportsEveryFault(t *testing.T) {
	m := mesh(server(0), server(1), server(0), server(1))
	m.Servers[2].ID, m.Servers[3].ID = "copy0", "copy1"
	m.Servers[2].Subnet, m.Servers[2].WireGuardIP = server(5).Subnet, server(5).WireGuardIP
	text := string(m.Marshal())
	_, err := Parse("f", []byte(text))
	want := "f:" + at(text, `"`+m.Servers[2].Key.String(), 2) + `: server "copy0" has the public key of server "s0": ` + m.Servers[0].Key.String() + "\n" +
		"f:" + at(text, `"`+m.Servers[3].Key.String(), 2) + `: server "copy1" has the public key of server "s1": ` + m.Servers[1].Key.String() + "\n" +
		"f:" + at(text, `"10.210.1.0/24`, 2) + `: server "copy1" has the subnet of server "s1": 10.210.1.0/24`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}

	m = mesh()
	for range 100 {
		m.Servers = append(m.Servers, Server{})
	}
	for name, err := range map[string]error{"Check": Check(m), "Parse": second(Parse("f", m.Marshal()))} {
		if err == nil || strings.Count(err.Error(), "\n") != maxFaults || !strings.HasSuffix(err.Error(), "and 180 more faults") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestParseSizes(t *testing.T) {
	huge := bytes.Repeat([]byte{' '}, maxSize+1)
	want := "has more than 64 MiB"
	if _, err := Parse("f", huge); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Parse: %v", err)
	}
	if _, err := ParseEntries("f", bytes.NewReader(huge)); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("ParseEntries: %v", err)
	}
	path := filepath.Join(t.TempDir(), "network.json")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 100<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path+" has 104857600 bytes, want at most 67108864") {
		t.Errorf("Load: %v", err)
	}
}

func TestLargestFits(t *testing.T) {
	if size := len(large(65536).Marshal()); size > maxSize {
		t.Errorf("65,536 servers have %d bytes, more than %d", size, maxSize)
	}
}

// Sixteen times the servers take about sixteen times the work, not 256 times.
func TestParseIsLinear(t *testing.T) {
	work := func(servers, times int) time.Duration {
		m := large(servers)
		text := m.Marshal()
		start := cpuTime(t)
		for range times {
			if got, err := Parse("f", text); err != nil || len(got.Servers) != servers {
				t.Fatal(err)
			}
		}
		return cpuTime(t) - start
	}
	small, big := work(1024, 8), work(16384, 1) // twice the work, if it is linear
	if big > 16*small {
		t.Errorf("16,384 servers took %v, 1,024 took %v for 8 times", big, small)
	}
}

func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func large(servers int) Topology {
	m := mesh()
	m.Cluster = netip.MustParsePrefix("10.0.0.0/8")
	for n := range servers {
		s := server(n - 210*256)
		s.ID, s.Hostname = fmt.Sprintf("web-%d-fra1-example-com", n), fmt.Sprintf("web-%d.fra1.example.com", n)
		s.Endpoints = append(s.Endpoints, netip.MustParseAddrPort("[2001:db8:1:2:3:4:5:6]:51820"), netip.MustParseAddrPort("192.168.100.100:51820"))
		m.Servers = append(m.Servers, s)
	}
	return m
}

func BenchmarkParseLargest(b *testing.B) {
	text := large(65536).Marshal()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse("f", text); err != nil {
			b.Fatal(err)
		}
	}
}

func TestParseEntries(t *testing.T) {
	m := mesh(server(0), server(1))
	stream := append(Entry(m, m.Servers[0]), Entry(m, m.Servers[1])...)
	got, err := ParseEntries("-", bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d entries", len(got))
	}
	for i, e := range got {
		if !e.Server.Equal(m.Servers[i]) || e.Cluster != m.Cluster || e.Domain != m.Domain {
			t.Errorf("entry %d is %+v", i, e)
		}
	}

	// What follows from the rest may be left out.
	got, err = ParseEntries("-", strings.NewReader(`{"hostname": "web1.example.com", "wireguardPublicKey": "`+keyA+`"}`))
	if err != nil || len(got) != 1 || got[0].ID != "web1-example-com" || got[0].ManagementIP.String() != "fdcc:630d:cd29:66c4:3366:9112:5448:bbb2" || got[0].Subnet.IsValid() || got[0].Cluster.IsValid() {
		t.Errorf("short entry: %+v, %v", got, err)
	}
}

func TestEntry(t *testing.T) {
	want := `{
  "id": "s1",
  "hostname": "s1.example.com",
  "subnet": "10.210.1.0/24",
  "wireguardIp": "10.210.1.1",
  "wireguardPublicKey": "AQEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
  "managementIp": "` + server(1).ManagementIP.String() + `",
  "endpoints": [
    "203.0.113.10:51820"
  ],
  "clusterCidr": "10.210.0.0/16",
  "serviceDomain": "jiji"
}
`
	if got := string(Entry(mesh(), server(1))); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestParseEntriesRefuses(t *testing.T) {
	good := `{"id": "web1", "wireguardPublicKey": "` + keyA + `"}`
	tests := []struct{ name, text, mark, want string }{
		{"empty", " \n", "", "e.json: is empty, want the entry that `jiji-node init` prints"},
		{"whole file", whole, `"topology"`, "this is a whole network file, not a server's entry: start the node with `--network e.json`"},
		{"cut off", good + "\n" + good[:30], "LAST", "unexpected end of JSON input"},
		{"second is wrong", good + "\n\n  {?", "?", "invalid character '?' looking for beginning of object key string"},
		{"third is wrong", good + good + "\n" + `{"id": "a" "b"}`, `"b"`, `invalid character '"' after object key:value pair`},
		{"comma between", good + "\n," + good, ",{", "invalid character ',' looking for beginning of value"},
		{"array", "[" + good + "]", "[", "server number 1: want an object, have an array"},
		{"unknown field", good + "\n" + `{"id": "web2", "endpoint": ["x"]}`, `"endpoint"`, `server number 2: unknown field "endpoint"`},
		{"field of the file", `{"createdAt": ""}`, `"createdAt"`, `server number 1: unknown field "createdAt"`},
		{"type", `{"id": 7}`, `7`, `server number 1: "id": want a string, have a number`},
		{"value", good + "\n" + `{"id": "web2", "wireguardPublicKey": "x"}`, `"x"`, `server "web2": public key "x": has 1 characters`},
		{"cluster", `{"id": "web2", "clusterCidr": "10.0.0.0/4"}`, `"10.`, `prefix length is 4`},
		{"subnet outside its cluster", `{"id": "a", "wireguardPublicKey": "` + keyA + `", "subnet": "10.9.0.0/24", "clusterCidr": "10.210.0.0/16"}`, `"10.9.`, "lies outside cluster 10.210.0.0/16"},
		{"subnet without cluster", `{"id": "a", "wireguardPublicKey": "` + keyA + `", "subnet": "10.9.0.0/16"}`, `"10.9.`, `server subnet "10.9.0.0/16": want an IPv4 /24`},
		{"no key", `{"id": "a"}`, `{`, `server "a": has no public key`},
		{"removed", `{"id": "a", "wireguardPublicKey": "` + keyA + `", "removedAt": "2026-01-31T12:00:00Z"}`, `"2026`, `server "a": was removed at 2026-01-31T12:00:00Z, only a member can be added`},
		{"endpoint in the mesh", `{"id": "a", "wireguardPublicKey": "` + keyA + `", "endpoints": ["[fdcc::1]:1"]}`, `["[fdcc`, "endpoint [fdcc::1]:1: lies inside the mesh"},
	}
	for _, tt := range tests {
		_, err := ParseEntries("e.json", strings.NewReader(tt.text))
		place := "e.json:" + placeOf(tt.text, tt.mark)
		if err == nil || !strings.HasPrefix(err.Error(), place) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v\nwant %s… %s", tt.name, err, place, tt.want)
		}
	}
}

// What a newer version adds stays when this one changes the file.
func TestUnknownFieldsAreKept(t *testing.T) {
	text := string(mesh(server(0), server(1)).Marshal())
	for _, c := range [][2]string{
		{`"endpoints": [`, `"region": "<eu> & \u00e4", "endpoints": [`},
		{`"discovery":`, `"policy": {"id": [1, {}], "a": null}, "discovery":`},
		{`"topology":`, `"format": 2.50, "topology":`},
	} {
		text = strings.ReplaceAll(text, c[0], c[1])
	}
	m, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	e := EntryDoc{Server: server(1)}
	e.Endpoints = append(e.Endpoints, netip.MustParseAddrPort("192.0.2.77:1"))
	changed, s, err := Add(m, e, noon)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err = Remove(changed, server(0).ID, noon); err != nil {
		t.Fatal(err)
	}
	out := changed.Marshal()
	var compact bytes.Buffer
	if err := json.Compact(&compact, out); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for want, n := range map[string]int{`"region":"<eu> & \u00e4"`: 2, `"policy":{"id":[1,{}],"a":null}`: 1, `"format":2.50`: 1, `192.0.2.77:1`: 1} {
		if got := strings.Count(compact.String(), want); got != n {
			t.Errorf("%s is there %d times, want %d:\n%s", want, got, n, out)
		}
	}
	if entry := string(Entry(changed, s)); strings.Contains(entry, "region") {
		t.Errorf("an entry, which takes no unknown field, has one: %s", entry)
	}
	if m.Equal(mesh(server(0), server(1))) {
		t.Error("a topology with further fields equals one without")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add(mesh(server(0), server(1)).Marshal())
	f.Add([]byte(`{"x": {"<": "\u2028"}, "topology":{"y": [1, 2], "clusterCidr":"10.0.0.0/8","servers":[{"z\u00e4": 1e9, "hostname":"a","wireguardPublicKey":"` + keyA + `"}]}}`))
	f.Add([]byte(`{"topology":{"clusterCidr":"10.0.0.0/8","serviceDomain":"a.b","servers":[{"hostname":"\u0061","wireguardPublicKey":"` + keyA + `","endpoints":["1.1.1.1:1",null]}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse("f", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("error without a place: %v", err)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatal("invalid JSON was accepted")
		}
		if err := Check(m); err != nil {
			t.Fatalf("Check of what Parse returned: %v", err)
		}
		again, err := Parse("again", m.Marshal())
		if err != nil || !again.Equal(m) || !again.CreatedAt.Equal(m.CreatedAt) {
			t.Fatalf("written and read again: %v\n%+v\n%+v", err, again, m)
		}
	})
}

func FuzzParseEntries(f *testing.F) {
	m := mesh(server(0))
	f.Add(append(Entry(m, server(1)), Entry(m, server(2))...))
	f.Add([]byte(`{"hostname": "a", "wireguardPublicKey": "` + keyA + `"} {}`))
	f.Add([]byte(whole))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := ParseEntries("f", bytes.NewReader(data))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("error without a place: %v", err)
			}
			return
		}
		m := m
		for _, e := range entries {
			next, s, err := Add(m, e, noon)
			if err != nil {
				continue
			}
			if err := Check(next); err != nil {
				t.Fatalf("after Add of %+v: %v", e, err)
			}
			if known, ok := next.Self(e.Key); !ok || !known.Equal(s) || !s.RemovedAt.IsZero() || !s.Subnet.IsValid() {
				t.Fatalf("Add returned %+v, the topology has %+v", s, known)
			}
			m = next
		}
	})
}
