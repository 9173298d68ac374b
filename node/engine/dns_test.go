package engine

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

var ours = DNS{Server: netip.MustParseAddr("10.210.0.1"), Search: "jiji"}

func TestMergeDaemon(t *testing.T) {
	for _, tc := range []struct {
		name, text, want, dropped, err string
	}{
		{name: "none", want: "{\n  \"dns\": [\n    \"10.210.0.1\"\n  ],\n  \"dns-search\": [\n    \"jiji\"\n  ],\n  \"dns-opts\": [\n    \"ndots:1\"\n  ]\n}\n"},
		{name: "others stay, in order", text: "{\"log-driver\":\"journald\",\n\n \"bip\": \"192.168.9.1/24\", \"a\":{\"b\":[1,2.50]}}",
			want: "{\n  \"log-driver\": \"journald\",\n  \"bip\": \"192.168.9.1/24\",\n  \"a\": {\n    \"b\": [\n      1,\n      2.50\n    ]\n  },\n  \"dns\": [\n    \"10.210.0.1\"\n  ],\n  \"dns-search\": [\n    \"jiji\"\n  ],\n  \"dns-opts\": [\n    \"ndots:1\"\n  ]\n}\n"},
		{name: "merged", text: `{"dns":["192.0.2.53","8.8.8.8"],"dns-search":["example.org","JIJI"],"dns-opts":["ndots:5","timeout:1"]}`, dropped: "192.0.2.53 8.8.8.8",
			want: "{\n  \"dns\": [\n    \"10.210.0.1\"\n  ],\n  \"dns-search\": [\n    \"jiji\",\n    \"example.org\"\n  ],\n  \"dns-opts\": [\n    \"timeout:1\",\n    \"ndots:1\"\n  ]\n}\n"},
		{name: "so already", text: `{ "dns":["10.210.0.1"], "dns-search":["jiji"],"dns-opts":["ndots:1"] }`, want: `{ "dns":["10.210.0.1"], "dns-search":["jiji"],"dns-opts":["ndots:1"] }`},
		{name: "comment", text: "{\n  // mine\n  \"a\": 1\n}", err: "line 2: invalid character '/' looking for beginning of object key string (JSON has no comments)"},
		{name: "comma", text: "{\n  \"a\": 1,\n}", err: "line 3: invalid character '}' looking for beginning of object key string"},
		{name: "garbage", text: "dns = 1", err: "line 1: invalid character 'd' looking for beginning of value"},
		{name: "cut", text: "{\n\"a\": [", err: "line 2: unexpected end of JSON input"},
		{name: "list", text: "[]", err: "line 1: is a JSON array, want an object"},
		{name: "null", text: "null", err: "line 1: is null, want a JSON object"},
		{name: "twice", text: "{\"a\":1,\n\"a\":2}", err: `line 2: has "a" twice`},
		{name: "type", text: `{"dns":"8.8.8.8"}`, err: `"dns" is "8.8.8.8", want a list of texts`},
		{name: "two", text: "{}\n{}", err: "line 2: invalid character '{' after top-level value"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, dropped, err := MergeDaemon([]byte(tc.text), ours)
			if tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Errorf("got  %v\nwant %s", err, tc.err)
				}
				return
			}
			if err != nil || string(got) != tc.want || strings.Join(dropped, " ") != tc.dropped {
				t.Errorf("got  %s\n%v, %v\nwant %s\n%s", got, dropped, err, tc.want, tc.dropped)
			}
		})
	}
}

// Docker is told of the mesh's mark where its firewall is nftables.
func TestMergeDaemonMark(t *testing.T) {
	d := ours
	d.Mark = "0x1000/0x1000"
	merged, _, err := MergeDaemon(nil, d)
	if err != nil || !strings.Contains(string(merged), "\"bridge-accept-fwmark\": \"0x1000/0x1000\"") {
		t.Errorf("%s, %v", merged, err)
	}
	if again, _, err := MergeDaemon(merged, d); err != nil || !bytes.Equal(again, merged) {
		t.Errorf("%s, %v", again, err)
	}
	if back, err := UnmergeDaemon(merged, nil); err != nil || back != nil {
		t.Errorf("%s, %v", back, err)
	}
	_, _, err = MergeDaemon([]byte(`{"bridge-accept-fwmark":"1"}`), d)
	if want := `"bridge-accept-fwmark" is "1", want "0x1000/0x1000": Docker's nftables drop what the mesh sends`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestUnmergeDaemon(t *testing.T) {
	for _, tc := range []struct{ name, was, added, want string }{
		{"nothing was there", "", "", ""},
		{"nothing was there, something is", "", `"debug":true`, "{\n  \"debug\": true\n}\n"},
		{"as it was", `{"dns":["192.0.2.53"],"dns-opts":["timeout:1"]}`, `"debug":true`, "{\n  \"dns\": [\n    \"192.0.2.53\"\n  ],\n  \"dns-opts\": [\n    \"timeout:1\"\n  ],\n  \"debug\": true\n}\n"},
	} {
		was := []byte(tc.was)
		if tc.was == "" {
			was = nil
		}
		merged, _, err := MergeDaemon(was, ours)
		if err != nil {
			t.Fatal(err)
		}
		if tc.added != "" {
			merged = append(bytes.TrimSuffix(merged, []byte("\n}\n")), []byte(",\n"+tc.added+"}")...)
		}
		got, err := UnmergeDaemon(merged, was)
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: got %s, %v\nwant %s", tc.name, got, err, tc.want)
		}
	}
}

func TestPodmanDNS(t *testing.T) {
	var v struct {
		Containers map[string][]string
	}
	if err := toml.Unmarshal(PodmanDNS(ours), &v); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"dns_servers": {"10.210.0.1"}, "dns_searches": {"jiji"}, "dns_options": {"ndots:1"}}
	if !reflect.DeepEqual(v.Containers, want) {
		t.Errorf("%v", v.Containers)
	}
}

// What somebody wrote stays, whatever it is; merging twice changes nothing more; and
// taking it back leaves what was there.
func FuzzMergeDaemon(f *testing.F) {
	for _, s := range []string{"", "{}", `{"dns":["8.8.8.8"],"a":{"b":null}}`, "{//x\n}", `{"dns-opts":["ndots:2"],"dns-search":[]}`, `{"\u0000":1e400,"é":"\ud800"}`, "\ufeff{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		merged, _, err := MergeDaemon(text, ours)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q", err)
			}
			return
		}
		again, dropped, err := MergeDaemon(merged, ours)
		if err != nil || !bytes.Equal(again, merged) || len(dropped) != 0 {
			t.Errorf("%q merged once more is %q, %v, %v", merged, again, dropped, err)
		}
		back, err := UnmergeDaemon(merged, text)
		if err != nil {
			t.Fatalf("%q: %v", merged, err)
		}
		before, err1 := parseDaemon(text)
		after, err2 := parseDaemon(back)
		if err1 != nil || err2 != nil || !slices.Equal(values(t, before), values(t, after)) {
			t.Errorf("%q came back as %q: %v, %v", text, back, err1, err2)
		}
	})
}

// values are the members in order of key, compacted.
func values(t *testing.T, list []member) []string {
	var out []string
	for _, m := range list {
		var b bytes.Buffer
		if err := json.Compact(&b, m.value); err != nil {
			t.Fatal(err)
		}
		out = append(out, m.key+" "+b.String())
	}
	slices.Sort(out)
	return out
}
