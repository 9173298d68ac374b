package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/acidtib/jiji-node/cmd/jiji-node/settings"
	"github.com/acidtib/jiji-node/node/usage"
)

// What is typed wrong is the user's to mend: exit code 2 and one line that names it.
func TestWrongCommandLines(t *testing.T) {
	const interfaceHint = ": want 1 to 15 letters, digits, dots, dashes or underscores, and none of the names that the kernel keeps for itself"
	const statusHint = ": want one address of this server and a port, such as 127.0.0.1:9187, or off"
	for line, want := range map[string]string{
		"stauts":                                 "unknown command \"stauts\" (did you mean status?) (see `jiji-node --help`)",
		"serv":                                   "unknown command \"serv\" (did you mean server or service?) (see `jiji-node --help`)",
		"quite-something-else":                   "unknown command \"quite-something-else\" (see `jiji-node --help`)",
		"service lst":                            "unknown command \"lst\" (did you mean list?) (see `jiji-node service --help`)",
		"config shwo":                            "unknown command \"shwo\" (did you mean show?) (see `jiji-node config --help`)",
		"completion bahs":                        "unknown command \"bahs\" (did you mean bash?) (see `jiji-node completion --help`)",
		"help server ad":                         "unknown command \"ad\" (did you mean add?) (see `jiji-node server --help`)",
		"help nope":                              "unknown command \"nope\" (see `jiji-node --help`)",
		"run now":                                "argument \"now\" is one too many: want `jiji-node run`",
		"completion bash x":                      "argument \"x\" is one too many: want `jiji-node completion bash`",
		"ping":                                   "an argument is missing: want `jiji-node ping SERVER|NAME|ADDRESS`",
		"service health abc":                     "an argument is missing: want `jiji-node service health ID healthy|unhealthy|starting`",
		"server add":                             "an argument is missing: want `jiji-node server add FILE|-...`",
		"resolve a b":                            "argument \"b\" is one too many: want `jiji-node resolve NAME`",
		"run --stat-dir /x":                      "unknown flag: --stat-dir (did you mean --state-dir?) (see `jiji-node run --help`)",
		"run --mtu big":                          "--mtu: \"big\" is not a whole number (see `jiji-node run --help`)",
		"run --mtu 100":                          "--mtu: 100, want 1280 to 8921",
		"run --log-level loud":                   "--log-level: \"loud\": want debug, info, warn or error",
		"run --domain a..b":                      "--domain: service domain \"a..b\": want labels of 1 to 63 letters, digits and inner hyphens, such as jiji or mesh.example",
		"run --dns-upstream no":                  "--dns-upstream: \"no\": want IP or IP:PORT, such as 203.0.113.10 or [2001:db8::1]:53",
		"run --dns-order fast":                   "--dns-order: \"fast\": want nearest or rotate",
		"run --dns-host on":                      "--dns-host: \"on\": want auto or off",
		"run --status-listen 9187":               "--status-listen: \"9187\"" + statusHint,
		"run --status-listen :9187":              "--status-listen: \":9187\"" + statusHint,
		"run --status-listen 0.0.0.0:9187":       "--status-listen: \"0.0.0.0:9187\"" + statusHint,
		"run --status-listen [::ffff:0.0.0.0]:9": "--status-listen: \"[::ffff:0.0.0.0]:9\"" + statusHint,
		"run --status-listen 127.0.0.1:0":        "--status-listen: \"127.0.0.1:0\"" + statusHint,
		"run --status-listen [ff02::1]:9":        "--status-listen: \"[ff02::1]:9\"" + statusHint,
		"run --interface a/b":                    "--interface: \"a/b\"" + interfaceHint,
		"run --interface jiji+":                  "--interface: \"jiji+\"" + interfaceHint,
		"run --interface all":                    "--interface: \"all\"" + interfaceHint,
		"run --interface ..":                     "--interface: \"..\"" + interfaceHint,
		"run --interface 16-characters-xx":       "--interface: \"16-characters-xx\"" + interfaceHint,
		"queries a b":                            "argument \"b\" is one too many: want `jiji-node queries [NAME]`",
		"queries --every 0":                      "--every: 0: want at least 1",
		"queries --count -1":                     "--count: -1: want 1 or more, or 0 for no end",
		"queries --client web1":                  "--client: \"web1\": want an address or a prefix, such as 10.210.0.10 or 10.210.0.0/24",
		"service register api":                   "--ip is missing: want the container's address: `jiji-node service register api --ip ADDRESS`",
		"status --watch --interval":              "flag needs an argument: --interval (see `jiji-node status --help`)",
	} {
		a := &app{environ: []string{"JIJI_CONFIG="}}
		root := a.command()
		a.root = root
		root.SetArgs(append([]string{"--runtime-dir", t.TempDir(), "--state-dir", t.TempDir()}, strings.Fields(line)...))
		err := root.ExecuteContext(t.Context())
		if err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", line, err, want)
		} else if a.began && !usage.Is(err) {
			t.Errorf("%s: is not the user's error", line)
		}
	}
}

func TestWrongNamesTheOrigin(t *testing.T) {
	a := &app{values: []settings.Value{
		{Name: "mtu", Origin: "environment JIJI_MTU"},
		{Name: "cluster-cidr", Origin: "file /etc/jiji/node.yaml:3"},
		{Name: "endpoint", Origin: "flag"},
	}}
	_, cluster := a.parseCluster("10.1.2.3/16")
	_, endpoint := a.parseAddrs("endpoint", []string{"192.0.2.1", "web1:51820"}, 51820)
	for _, tc := range []struct {
		err  error
		want string
	}{
		{a.wrong("mtu", errors.New("100, want more")), "environment JIJI_MTU: 100, want more"},
		{cluster, "/etc/jiji/node.yaml:3: cluster-cidr: cluster CIDR \"10.1.2.3/16\": host bits are set, want 10.1.0.0/16"},
		{endpoint, "--endpoint: \"web1:51820\": want IP or IP:PORT, such as 203.0.113.10 or [2001:db8::1]:51820"},
	} {
		if tc.err == nil || tc.err.Error() != tc.want || !usage.Is(tc.err) {
			t.Errorf("got  %v\nwant %s", tc.err, tc.want)
		}
	}
}

func TestParseAddr(t *testing.T) {
	for text, want := range map[string]string{
		"203.0.113.10":        "203.0.113.10:51820",
		"203.0.113.10:1234":   "203.0.113.10:1234",
		"2001:db8::1":         "[2001:db8::1]:51820",
		"[2001:db8::1]:1234":  "[2001:db8::1]:1234",
		"203.0.113.10:":       "",
		"203.0.113.10:65536":  "",
		"[2001:db8::1]":       "",
		"203.0.113.010":       "",
		"web1.example:51820":  "",
		"":                    "",
		" 203.0.113.10":       "",
		"203.0.113.0/24":      "",
		"udp://203.0.113.1:1": "",
	} {
		got, err := parseAddr(text, 51820)
		if want == "" {
			if err == nil {
				t.Errorf("%q: %v, want an error", text, got)
			}
		} else if err != nil || got != netip.MustParseAddrPort(want) {
			t.Errorf("%q: %v, %v, want %s", text, got, err, want)
		}
	}
}
