package settings

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// flagSet returns the flags of an imaginary command after args were parsed.
func flagSet(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.String("config", filepath.Join(t.TempDir(), "absent.yaml"), "")
	f.Bool("help", false, "")
	f.String("state-dir", "/var/lib/jiji", "")
	f.Int("mtu", 0, "")
	f.Uint16("dns-port", 53, "")
	f.Bool("network-enabled", true, "")
	f.Duration("interval", time.Second, "")
	f.StringArray("endpoint", nil, "")
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrecedenceAndOrigin(t *testing.T) {
	file := write(t, `# what this server is
state-dir: /file
mtu: 1300
endpoint:
  - 203.0.113.10:51820
  - "[2001:db8::1]:51820"

network-enabled: false # for a while
watch: true
`)
	f := flagSet(t, "--config", file, "--state-dir=/flag")
	values, warnings, err := Resolve(Config{Flags: f, Known: []string{"watch"}, Environ: []string{
		"PATH=/bin", "JIJI_STATE_DIR=/environment", "JIJI_MTU=1400", "JIJI_MTU=1380", "JIJI_INTERVAL=", "JIJI_WATCH=x", "JIJI_STATEDIR=/x", "JIJI_VERY_OTHER_THING=1",
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Value{
		{"config", file, "flag"},
		{"dns-port", "53", "default"},
		{"endpoint", "203.0.113.10:51820,[2001:db8::1]:51820", "file " + file + ":4"},
		{"interval", "1s", "default"},
		{"mtu", "1380", "environment JIJI_MTU"},
		{"network-enabled", "false", "file " + file + ":8"},
		{"state-dir", "/flag", "flag"},
	}
	if !slices.Equal(values, want) {
		t.Errorf("got  %v\nwant %v", values, want)
	}
	wantWarnings := []string{
		"environment JIJI_STATEDIR: no such setting, ignored (did you mean JIJI_STATE_DIR?)",
		"environment JIJI_VERY_OTHER_THING: no such setting, ignored",
	}
	if !slices.Equal(warnings, wantWarnings) {
		t.Errorf("warnings %q", warnings)
	}
	if mtu, _ := f.GetInt("mtu"); mtu != 1380 || !f.Changed("mtu") || f.Changed("dns-port") {
		t.Errorf("mtu %d, changed %v, %v", mtu, f.Changed("mtu"), f.Changed("dns-port"))
	}
}

func TestListFromEnvironment(t *testing.T) {
	f := flagSet(t)
	_, _, err := Resolve(Config{Flags: f, Environ: []string{"JIJI_ENDPOINT=192.0.2.1, [2001:db8::1]:1"}})
	if got, _ := f.GetStringArray("endpoint"); err != nil || !slices.Equal(got, []string{"192.0.2.1", "[2001:db8::1]:1"}) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSingleValueForList(t *testing.T) {
	f := flagSet(t, "--config", write(t, "endpoint: 192.0.2.1\n"))
	_, _, err := Resolve(Config{Flags: f})
	if got, _ := f.GetStringArray("endpoint"); err != nil || !slices.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// Errors name the thing, the value, what was expected and where it came from.
func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		environ    []string
		want       string // FILE stands for the file's name
	}{
		{name: "environment", environ: []string{"JIJI_MTU=abc"}, want: `environment JIJI_MTU: "abc" is not a whole number`},
		{name: "two", environ: []string{"JIJI_MTU=abc", "JIJI_DNS_PORT=70000"},
			want: "environment JIJI_DNS_PORT: \"70000\" is not a number from 0 to 65535\nenvironment JIJI_MTU: \"abc\" is not a whole number"},
		{name: "bool", file: "\nnetwork-enabled: yes", want: `FILE:2: network-enabled: "yes" is not true or false`},
		{name: "duration", file: "interval: 10", want: `FILE:1: interval: "10" is not a duration, such as 10s or 5m`},
		{name: "list for one", file: "mtu: [1300, 1400]", want: `FILE:1: mtu is a list, want one value`},
		{name: "mapping", file: "mtu: {a: 1}", want: `FILE:1: mtu is a mapping, want a value or a list of values`},
		{name: "mapping in list", file: "endpoint:\n- a: 1\n", want: `FILE:1: endpoint: an item of the list is a mapping, want plain values`},
		{name: "nothing", file: "mtu:\n", want: `FILE:1: mtu is empty, want a value or a list of values`},
		{name: "anchor", file: "mtu: &x 1300\n", want: `FILE:1: mtu is a YAML anchor, want a value or a list of values`},
		{name: "unknown", file: "# x\nmtu: 1300\nstate_dir: /x\n", want: `FILE:3: no setting is called "state_dir" (did you mean state-dir?)`},
		{name: "unknown, none near", file: "listen-on-address: x\n", want: `FILE:1: no setting is called "listen-on-address"`},
		{name: "two unknown", file: "mtus: 1\nmtu: 1300\ninterva: 1s\n",
			want: "FILE:1: no setting is called \"mtus\" (did you mean mtu?)\nFILE:3: no setting is called \"interva\" (did you mean interval?)"},
		{name: "not in a file", file: "config: /x\n", want: `FILE:1: config cannot be set in a file`},
		{name: "duplicate", file: "mtu: 1300\nmtu: 1400\n", want: `FILE:2:1: mapping key "mtu" already defined at [1:1]`},
		{name: "syntax", file: "state-dir: /x\nmtu: 'abc\n", want: `FILE:2:6: could not find end character of single-quoted text`},
		{name: "tab", file: "mtu: 5\n\tstate-dir: x", want: `FILE:2:1: found character ' ' that cannot start any token`},
		{name: "brackets", file: "endpoint:\n- [2001:db8::1]:51820\n", want: `FILE:2:`},
		{name: "list of a file", file: "- mtu\n", want: "FILE:1: a list, want lines of the form `name: value`"},
		{name: "text", file: "hello\n", want: "FILE:1: a single value, want lines of the form `name: value`"},
		{name: "two documents", file: "mtu: 1300\n---\nmtu: 1400\n", want: `FILE:3: a second document, want one`},
		{name: "binary", file: "\xff\xfe\x00", want: `FILE: not UTF-8 text`},
		{name: "huge", file: strings.Repeat("# x\n", maxFile/4+1), want: `FILE: larger than 65536 bytes, which no configuration is`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := write(t, tc.file)
			_, _, err := Resolve(Config{Flags: flagSet(t, "--config", file), Environ: tc.environ})
			if err == nil {
				t.Fatal("no error")
			}
			got := strings.ReplaceAll(err.Error(), file, "FILE")
			if tc.name == "brackets" {
				if !strings.HasPrefix(got, tc.want) || !strings.Contains(got, "needs quotes") || strings.Contains(got, "\n") {
					t.Errorf("got %s", got)
				}
			} else if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestFileIsMissing(t *testing.T) {
	if _, _, err := Resolve(Config{Flags: flagSet(t)}); err != nil {
		t.Errorf("default file: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "x.yaml")
	for origin, cfg := range map[string]Config{
		"--config":                {Flags: flagSet(t, "--config", missing)},
		"environment JIJI_CONFIG": {Flags: flagSet(t), Environ: []string{"JIJI_CONFIG=" + missing}},
	} {
		_, _, err := Resolve(cfg)
		if want := "read configuration: stat " + missing + ": no such file or directory (named by " + origin + ")"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestFileIsNotRegular(t *testing.T) {
	dir := t.TempDir()
	_, _, err := Resolve(Config{Flags: flagSet(t, "--config", dir)})
	if want := dir + ": want a regular file, this is drwx"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if _, _, err := Resolve(Config{Flags: flagSet(t, "--config", os.DevNull)}); err == nil {
		t.Errorf("%s was read", os.DevNull)
	}
}

func TestFilesThatSetNothing(t *testing.T) {
	for _, content := range []string{"", "# only a comment\n", "---\n", "\ufeff", "null\n"} {
		if e, err := parseFile("f", []byte(content), nil); err != nil || len(e) != 0 {
			t.Errorf("%q: %v, %v", content, e, err)
		}
	}
	if e, err := parseFile("f", []byte("\ufeffmtu: 1300\r\nname: 007\r\n"), []string{"mtu", "name"}); err != nil || len(e) != 2 || e[1].values[0] != "007" || e[1].line != 2 {
		t.Errorf("%v, %v", e, err)
	}
}

func TestNearest(t *testing.T) {
	for args, want := range map[string]string{
		"--statedir=x":       "unknown flag: --statedir (did you mean --state-dir?)",
		"--mtux 5":           "unknown flag: --mtux (did you mean --mtu?)",
		"--something-else":   "unknown flag: --something-else",
		"-x":                 `unknown shorthand flag: 'x' in -x`,
		"--mtu=abc":          `--mtu: "abc" is not a whole number`,
		"--dns-port=-1":      `--dns-port: "-1" is not a number from 0 to 65535`,
		"--network-enabled=": `--network-enabled: "" is not true or false`,
		"--mtu":              "flag needs an argument: --mtu",
	} {
		f := flagSet(t)
		if err := Nearest(f.Parse(strings.Fields(args)), f); err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", args, err, want)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	for _, s := range []string{
		"mtu: 1300\nstate-dir: /x\n", "endpoint:\n- a\n- \"[::1]:5\"\n", "mtu: {a: 1", "? a\n: b\n", "<<: *a\n", "- [", "a: |\n  b\n", "%YAML 1.2\n---\n", "mtu: !!int 5 # x", "'",
	} {
		f.Add([]byte(s))
	}
	known := []string{"mtu", "state-dir", "endpoint", "config"}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4<<10 {
			return // for speed; the parser is quadratic
		}
		entries, err := parseFile("f.yaml", data, known)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if !strings.HasPrefix(line, "f.yaml:") {
					t.Errorf("a line of the error does not begin with the file: %q", err)
				}
			}
			return
		}
		seen := map[string]bool{}
		for _, e := range entries {
			if !slices.Contains(known, e.name) || seen[e.name] || e.line < 1 || !e.list && len(e.values) != 1 {
				t.Errorf("entry %+v", e)
			}
			seen[e.name] = true
		}
	})
}
