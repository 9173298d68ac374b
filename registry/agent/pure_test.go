package agent

import (
	"bytes"
	"encoding/binary"

	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/acidtib/jiji-node/registry"
)

func TestCheckConfig(t *testing.T) {
	good := Config{
		Bin: "corrosion", Dir: "/d", Socket: "/s", Log: slog.New(slog.DiscardHandler),
		Gossip: netip.MustParseAddrPort("[fdcc::1]:8787"), API: netip.MustParseAddrPort("127.0.0.1:8080"),
		Schema: map[string]string{"a.sql": ""},
	}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Log = nil }, "Log: required"},
		{func(c *Config) { c.Bin = "" }, "Bin: required"},
		{func(c *Config) { c.Dir = "d" }, `Dir "d": want an absolute path`},
		{func(c *Config) { c.Dir = "/a\x00b" }, `path "/a\x00b": want UTF-8`},
		{func(c *Config) { c.Dir = "/\xff" }, `path "/\xff": want UTF-8`},
		{func(c *Config) { c.Socket = "" }, `Socket "": want an absolute path`},
		{func(c *Config) { c.Socket = "/" + strings.Repeat("x", 100) }, "has 101 bytes, a path of a Unix socket has at most 100"},
		{func(c *Config) { c.Gossip = netip.AddrPort{} }, "Gossip invalid AddrPort: want an address and a port that peers reach"},
		{func(c *Config) { c.Gossip = netip.MustParseAddrPort("[::]:8787") }, "Gossip [::]:8787: want"},
		{func(c *Config) { c.API = netip.MustParseAddrPort("127.0.0.1:0") }, "API 127.0.0.1:0: want an address and a port"},
		{func(c *Config) { c.Metrics = netip.MustParseAddrPort("127.0.0.1:0") }, "Metrics 127.0.0.1:0: want an address and a port, or nothing"},
		{func(c *Config) { c.Schema = map[string]string{"../a.sql": ""} }, `Schema: file name "../a.sql": want a name that ends in .sql`},
		{func(c *Config) { c.Schema = map[string]string{"a.txt": ""} }, `file name "a.txt"`},
		{func(c *Config) { c.Schema = map[string]string{".a.sql": ""} }, `file name ".a.sql"`},
		{func(c *Config) { c.Schema = map[string]string{"a.sql": "\xff"} }, "Schema: a.sql: want at most 1048576 bytes of UTF-8"},
	} {
		bad := good
		c.change(&bad)
		if err := bad.check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("check: %v, want %q", err, c.want)
		}
	}
}

func TestRender(t *testing.T) {
	c := Config{
		Dir: "/a \"b\"\\\n\u00e9\x7f", Socket: "/s", Metrics: netip.MustParseAddrPort("[fdcc::1]:8787"),
		Gossip: netip.MustParseAddrPort("[fdcc::1]:8787"), API: netip.MustParseAddrPort("127.0.0.1:8080"),
	}
	peers := []netip.AddrPort{netip.MustParseAddrPort("[fdcc::2]:8787"), netip.MustParseAddrPort("[fdcc::3]:8787")}
	text := render(c, "secret", peers)
	var got struct {
		DB struct {
			Path   string
			Schema []string `toml:"schema_paths"`
			Cache  int      `toml:"cache_size_kib"`
		}
		Gossip struct {
			Addr       string
			ClientAddr string `toml:"client_addr"`
			Bootstrap  []string
			Plaintext  bool
			MTU        int `toml:"max_mtu"`
		}
		API struct {
			Addr  string
			Authz map[string]string
		}
		Admin     struct{ Path string }
		Telemetry struct{ Prometheus struct{ Addr string } }
		Perf      struct {
			WAL  int `toml:"wal_threshold_mb"`
			Sync int `toml:"max_sync_backoff"`
		}
		Log struct{ Format string }
	}
	meta, err := toml.Decode(string(text), &got)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if un := meta.Undecoded(); len(un) > 0 {
		t.Errorf("keys not looked at: %v", un)
	}
	want := fmt.Sprintf("%q", []any{c.Dir + "/state.db", []string{c.Dir + "/schema"}, "[fdcc::1]:8787", "[fdcc::1]:0",
		[]string{"[fdcc::2]:8787", "[fdcc::3]:8787"}, "127.0.0.1:8080", "secret", "/s", "[fdcc::1]:8787", "json"})
	is := fmt.Sprintf("%q", []any{got.DB.Path, got.DB.Schema, got.Gossip.Addr, got.Gossip.ClientAddr,
		got.Gossip.Bootstrap, got.API.Addr, got.API.Authz["bearer-token"], got.Admin.Path, got.Telemetry.Prometheus.Addr, got.Log.Format})
	if is != want {
		t.Errorf("got  %s\nwant %s", is, want)
	}
	if got.DB.Cache != -8192 || !got.Gossip.Plaintext || got.Gossip.MTU != 1232 || got.Perf.WAL != 64 || got.Perf.Sync != 3 {
		t.Errorf("got %+v", got)
	}
	c.Metrics = netip.AddrPort{}
	if strings.Contains(string(render(c, "secret", nil)), "telemetry") {
		t.Error("telemetry without an address")
	}
}

func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", `a"b\c`, "\x00\n\t\x1f\x7f", "\u00e9\U0001F600", "'''"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "?")
		var got struct{ A string }
		if _, err := toml.Decode("a = "+quote(s), &got); err != nil || got.A != s {
			t.Errorf("quote(%q) = %s, read as %q, %v", s, quote(s), got.A, err)
		}
	})
}

func TestNextDelay(t *testing.T) {
	var got []time.Duration
	var d time.Duration
	for range 11 {
		d = nextDelay(d, time.Second)
		got = append(got, d)
	}
	got = append(got, nextDelay(d, time.Minute))
	want := []time.Duration{1e8, 2e8, 4e8, 8e8, 16e8, 32e8, 5e9, 5e9, 5e9, 5e9, 5e9, 1e8}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRestartFor(t *testing.T) {
	var p time.Duration
	var got []time.Duration
	for range 7 {
		var restart bool
		if restart, p = restartFor(0, p); !restart {
			t.Error("an agent without members goes on")
		}
		got = append(got, p)
	}
	if want := []time.Duration{20e9, 40e9, 80e9, 160e9, 300e9, 300e9, 300e9}; !slices.Equal(got, want) {
		t.Errorf("patience %v, want %v", got, want)
	}
	if restart, p := restartFor(1, p); restart || p != 0 {
		t.Errorf("an agent with members: %v, %v", restart, p)
	}
}

func TestSchemaTables(t *testing.T) {
	got := schemaTables(map[string]string{
		"a.sql": registry.SharedSchema,
		"b.sql": registry.OwnSchema,
		"c.sql": "-- CREATE TABLE no1 (\n/* CREATE TABLE\nno2 */ create\ntable \"quoted\" (id TEXT); CREATE INDEX i ON quoted (id); CREATE TABLE[b](id)",
	})
	want := []string{"b", "cluster_metadata", "containers", "jiji_containers", "jiji_meta", "quoted", "servers", "services"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What klukai 0.1.4 wrote, and what might be.
func TestReason(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{nil, ""},
		{[]string{`invalid type: string "x", expected struct LogConfig for key ` + "`log`"}, `invalid type: string "x", expected struct LogConfig for key ` + "`log`"},
		{[]string{
			"thread 'main' (24478) panicked at /root/klukai-0.1.4/src/command/agent.rs:30:37:",
			"could not setup prometheus: failed to create HTTP listener: Cannot assign requested address (os error 99)",
			"Location:", "/root/klukai-0.1.4/src/command/agent.rs:118:5",
			"note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
		}, "panic: could not setup prometheus: failed to create HTTP listener: Cannot assign requested address (os error 99)"},
		{[]string{ // with a database of upstream's v1.0.0
			"thread 'main' (3706) panicked at /root/klukai-0.1.4/src/command/agent.rs:69:14:", "could not start agent: error during initialization:",
			"Caused by:", "Error code 1: SQL error or missing database", "Location:", "/root/klukai-agent-0.1.4/src/agent/setup.rs:84:20",
		}, "panic: could not start agent: error during initialization: Error code 1: SQL error or missing database"},
		{[]string{"thread 'main' panicked at x:", "no:", "Caused by:", "0: first: of it", "1: second", "note: more"}, "panic: no: first: of it: second"},
		{[]string{"thread 'main' panicked at x:", "no", "Caused by:"}, "panic: no"},
		{[]string{"first", "thread 'main' panicked at x"}, "thread 'main' panicked at x"},
	} {
		if got := reason(c.lines); got != c.want {
			t.Errorf("reason(%q) = %q, want %q", c.lines, got, c.want)
		}
	}
}

func TestParseLock(t *testing.T) {
	for text, want := range map[string]string{
		"12 34\n":    "12 34 <nil>",
		"12 34   \n": "12 34 <nil>",
		"0 34\n":     `0 0 is locked by a process that it does not name, it says "0 34": end what runs in its directory`,
		"1 34\n":     `0 0 is locked by a process that it does not name, it says "1 34": end what runs in its directory`,
		"":           `0 0 is locked by a process that it does not name, it says "": end what runs in its directory`,
		"a b":        `0 0 is locked by a process that it does not name, it says "a b": end what runs in its directory`,
		"1 2 3":      `0 0 is locked by a process that it does not name, it says "1 2 3": end what runs in its directory`,
		"-5 3":       `0 0 is locked by a process that it does not name, it says "-5 3": end what runs in its directory`,
	} {
		pid, node, err := parseLock(text)
		if got := fmt.Sprint(pid, " ", node, " ", err); strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("parseLock(%q) = %s, want %s", text, got, want)
		}
	}
}

func frames(texts ...string) []byte {
	var b []byte
	for _, text := range texts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
	}
	return b
}

func TestReadAnswer(t *testing.T) {
	for _, c := range []struct {
		in   []byte
		want string
	}{
		{frames(`{"Log":{"level":"info","msg":"x","ts":[1]}}`, `{"Json":{"id":1}}`, `{"Json":null}`, `"Success"`), `["{\"id\":1}" "null"] <nil>`},
		{frames(`{"Error":{"msg":"unknown variant"}}`), `[] unknown variant`},
		{frames(`{"Log":{}}`), `[] answer without end: EOF`},
		{frames(`"Success"`)[:6], `[] answer without end: unexpected EOF`},
		{frames(`{}`), `[] answer "{}": want Log, Json, Error or Success`},
		{[]byte("\xff\xff\xff\xff"), `[] answer has more than 1048576 bytes`},
		{frames("x"), `[] answer "x": invalid character 'x' looking for beginning of value`},
	} {
		out, err := readAnswer(bytes.NewReader(c.in))
		if got := fmt.Sprintf("%q %v", out, err); got != c.want {
			t.Errorf("readAnswer(%q) = %s, want %s", c.in, got, c.want)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(frames(`{"Log":{"level":"info"}}`, `{"Json":{"id":1}}`, `"Success"`))
	f.Add(frames(`{"Error":{"msg":"no"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := readAnswer(bytes.NewReader(b)); err != nil && out != nil {
			t.Errorf("%q with %v", out, err)
		}
	})
}

func TestBuildInfo(t *testing.T) {
	for in, want := range map[string]string{
		"# TYPE corro_build_info gauge\ncorro_build_info{version=\"0.2.0-beta.0\",rustc_version=\"1.95.0\",git_commit=\"11edb1e\",git_branch=\"HEAD\"} 1\n": "11edb1e",
		`corro_build_info{version="0.1.4",ts="x",git_commit="unknown",git_branch="unknown"} 1`:                                                              "", // klukai 0.1.4
		`corro_build_info{git_commit="11EDB1E"} 1`:                             "",
		`corro_build_info{git_commit="11edb1e;rm"} 1`:                          "",
		`corro_build_info{version="1"} 1` + "\n" + `x{git_commit="11edb1e"} 1`: "",
		`x corro_build_info{git_commit="11edb1e"} 1`:                           "",
	} {
		got := ""
		if found := buildInfo.FindStringSubmatch(in); found != nil {
			got = found[1]
		}
		if got != want {
			t.Errorf("commit of %s is %q, want %q", in, got, want)
		}
	}
}

func TestParseNames(t *testing.T) {
	for in, want := range map[string]string{
		`{"columns":["name"]}{"row":[1,["a"]]}{"row":[2,["b"]]}{"eoq":{"time":1e-7}}`: `["a" "b"] <nil>`,
		`{"columns":["name"]}{"row":[1,["a"]]}`:                                       `[] query: answer without end: EOF`,
		`{"columns":["name"]}{"error":"interrupted"}`:                                 `[] query: interrupted`,
		`{"row":[1,[2]]}{"eoq":{}}`:                                                   `[] query: row [1 [2]]: want a number and one text`,
		`{"row":[1]}`:                                                                 `[] query: row [1]: want a number and one text`,
		`<html>`:                                                                      `[] query: answer without end: invalid character '<' looking for beginning of value`,
	} {
		names, err := parseNames([]byte(in))
		if got := fmt.Sprintf("%q %v", names, err); got != want {
			t.Errorf("parseNames(%s) = %s, want %s", in, got, want)
		}
	}
}

func FuzzParseNames(f *testing.F) {
	f.Add([]byte(`{"columns":["name"]}{"row":[1,["a"]]}{"eoq":{"time":1e-7}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := parseNames(b); err != nil && out != nil {
			t.Errorf("%q with %v", out, err)
		}
	})
}

func TestOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		o := newOutput(log, "t0ken")
		w := &liner{emit: o.line}
		says := func(text, want string) {
			t.Helper()
			b.Reset()
			fmt.Fprint(w, text)
			if got := b.String(); got != want {
				t.Errorf("wrote %q, log\n%swant\n%s", text, got, want)
			}
		}
		says(`{"timestamp":"x","level":"INFO","fields":{"message":"hi t0ken"},"target":"k"}`+"\n", "level=DEBUG msg=\"corrosion agent says\" line=\"hi [token]\" target=k\n")
		says(`{"level":"WARN","fields":{"message":"hm","error":"bad"},"target":"k"}`+"\n", "level=WARN msg=\"corrosion agent says\" line=\"hm: bad\" target=k\n")
		says(`{"level":"ERROR",`, "")
		says(`"fields":{"message":"no"},"target":"k"}`+"\n\n", "level=ERROR msg=\"corrosion agent says\" line=no target=k\n")
		says("thread 'main' \x1b[31m panicked\n", "level=DEBUG msg=\"corrosion agent says\" line=\"thread 'main'  [31m panicked\" target=\"\"\n")
		says(strings.Repeat("\u00e9", 1<<20)+"\n", "level=DEBUG msg=\"corrosion agent says\" line="+strings.Repeat("\u00e9", 200)+"... target=\"\"\n")
		if cap(w.buf) > 2*maxLine {
			t.Errorf("holds %d bytes", cap(w.buf))
		}
		if want := []string{"hm: bad", "no", "thread 'main'  [31m panicked"}; !slices.Equal(o.lastLines()[:3], want) {
			t.Errorf("kept %q, want %q", o.lastLines(), want)
		}
		b.Reset()
		for range 1000 {
			fmt.Fprintln(w, "again")
		}
		if n := strings.Count(b.String(), "\n"); n != burst-5 {
			t.Errorf("%d lines passed on at once, want %d", n, burst-5)
		}
		if n := len(o.lastLines()); n != keepLines {
			t.Errorf("%d lines kept, want %d", n, keepLines)
		}
		time.Sleep(time.Second)
		says("last\n", "level=WARN msg=\"corrosion agent wrote too much\" \"lines dropped\"=965\nlevel=DEBUG msg=\"corrosion agent says\" line=last target=\"\"\n")
	})
}

func FuzzLine(f *testing.F) {
	f.Add(`{"level":"WARN","fields":{"message":"hm"},"target":"k"}`)
	f.Add("\xff\x00t0ken")
	f.Fuzz(func(t *testing.T, s string) {
		o := newOutput(slog.New(slog.DiscardHandler), "t0ken")
		w := &liner{emit: o.line}
		fmt.Fprintln(w, s)
		for _, l := range o.lastLines() {
			if strings.Contains(l, "t0ken") || len(l) > maxText+3 || strings.ContainsRune(l, '\n') {
				t.Errorf("%q of %q", l, s)
			}
		}
	})
}
