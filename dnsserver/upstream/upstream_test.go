package upstream

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, text string
		servers    []string
		problems   []string
	}{
		{"empty", "", nil, nil},
		{"usual", "# made by NetworkManager\nsearch lan\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions edns0\n", []string{"192.0.2.1", "2001:db8::1"}, nil},
		{"tabs, blanks, comments", "nameserver\t 192.0.2.1 ; first\nnameserver 192.0.2.2#second\n;nameserver 192.0.2.3\n", []string{"192.0.2.1", "192.0.2.2"}, nil},
		{"no newline at the end", "nameserver 192.0.2.1", []string{"192.0.2.1"}, nil},
		{"from Windows", "nameserver 192.0.2.1\r\nnameserver 192.0.2.2\r\n", []string{"192.0.2.1", "192.0.2.2"}, nil},
		{"scope", "nameserver fe80::1%eth0\n", []string{"fe80::1%eth0"}, nil},
		{"mapped", "nameserver ::ffff:192.0.2.1\n", []string{"192.0.2.1"}, nil},
		{"twice", "nameserver 192.0.2.1\nnameserver 192.0.2.1\n", []string{"192.0.2.1"}, nil},
		{"more than three", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
			[]string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, nil},
		{"not at the beginning of the line", " nameserver 192.0.2.1\nnameservers 192.0.2.2\nnameserver\n", nil, nil},
		{"a name", "nameserver dns.example\n", nil, []string{`line 1: nameserver "dns.example": want an IPv4 or IPv6 address`}},
		{"nothing", "\nnameserver   \n", nil, []string{`line 2: nameserver "": want an IPv4 or IPv6 address`}},
		{"octal", "nameserver 010.0.0.1\n", nil, []string{`line 1: nameserver "010.0.0.1": want an IPv4 or IPv6 address`}},
		{"nobody", "nameserver 0.0.0.0\nnameserver 224.0.0.251\nnameserver 192.0.2.1\n", []string{"192.0.2.1"},
			[]string{"line 1: nameserver 0.0.0.0: want the address of one machine", "line 2: nameserver 224.0.0.251: want the address of one machine"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			servers, problems := Parse([]byte(c.text))
			var gotServers, gotProblems []string
			for _, s := range servers {
				gotServers = append(gotServers, s.String())
			}
			for _, p := range problems {
				gotProblems = append(gotProblems, p.Error())
			}
			if !slices.Equal(gotServers, c.servers) || !slices.Equal(gotProblems, c.problems) {
				t.Errorf("got %v, %v\nwant %v, %v", gotServers, gotProblems, c.servers, c.problems)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\nnameserver\tfe80::1%eth0 # x\r\n;\nnameserver ::\n"))
	f.Add([]byte("nameserver\n\x00nameserver \xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		servers, problems := Parse(data)
		if lines := strings.Count(string(data), "\n") + 1; len(servers)+len(problems) > lines {
			t.Fatalf("%d servers and %d problems of %d lines", len(servers), len(problems), lines)
		}
		for i, s := range servers {
			if !s.IsValid() || s.IsUnspecified() || s.IsMulticast() || s.Is4In6() || slices.Contains(servers[:i], s) {
				t.Fatalf("server %v of %v", s, servers)
			}
		}
	})
}

// A host is a directory with the files of one.
type host struct{ dir, conf, resolved string }

func newHost(t *testing.T) host {
	dir := t.TempDir()
	h := host{dir, filepath.Join(dir, "etc", "resolv.conf"), filepath.Join(dir, "run", "systemd", "resolve", "resolv.conf")}
	if err := os.MkdirAll(filepath.Dir(h.conf), 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h host) config() Config {
	own := netip.MustParseAddr("10.210.0.1")
	return Config{Path: h.conf, Resolved: h.resolved, Self: func(ip netip.Addr) bool { return ip == own }}
}

// replace writes a file as programs do that care: beside it, then renamed.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		name, conf, resolved, want string
	}{
		{"plain", "nameserver 192.0.2.1\nnameserver 192.0.2.2\n", "", "[192.0.2.1:53 192.0.2.2:53]"},
		{"ourselves", "nameserver 10.210.0.1\nnameserver 192.0.2.2\n", "", "[192.0.2.2:53]"},
		{"only ourselves", "nameserver 10.210.0.1\n", "", "[]"},
		{"another resolver on this host", "nameserver 127.0.0.1\n", "", "[127.0.0.1:53]"},
		{"stub", "nameserver 127.0.0.53\noptions edns0 trust-ad\n", "nameserver 192.0.2.7\nnameserver 2001:db8::7\n", "[192.0.2.7:53 [2001:db8::7]:53]"},
		{"both stubs", "nameserver 127.0.0.53\nnameserver 127.0.0.54\n", "nameserver 192.0.2.7\n", "[192.0.2.7:53]"},
		{"stub whose servers are we", "nameserver 127.0.0.53\n", "nameserver 10.210.0.1\n", "[]"},
		{"stub without servers", "nameserver 127.0.0.53\n", "# No DNS servers known.\n", "[]"},
		{"stub and no file of its servers", "nameserver 127.0.0.53\n", "", "[127.0.0.53:53]"},
		{"stub and another", "nameserver 127.0.0.53\nnameserver 192.0.2.1\n", "nameserver 192.0.2.7\n", "[127.0.0.53:53 192.0.2.1:53]"},
		{"no file", "", "nameserver 192.0.2.7\n", "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			if c.conf != "" {
				replace(t, h.conf, c.conf)
			}
			if c.resolved != "" {
				replace(t, h.resolved, c.resolved)
			}
			if got := fmt.Sprint(New(h.config()).Current()); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestRun takes a host through what its files go through in years.
func TestRun(t *testing.T) {
	h := newHost(t)
	replace(t, h.conf, "nameserver 192.0.2.1\n")
	f := New(h.config())
	done := make(chan error, 1)
	go func() { done <- f.Run(t.Context()) }()
	t.Cleanup(func() { // t.Context is done by now
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	expect := func(want string) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second) // well before the poll that would find it too
		for fmt.Sprint(f.Current()) != want {
			if time.Now().After(deadline) {
				t.Fatalf("upstreams %v, want %s", f.Current(), want)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	expect("[192.0.2.1:53]")
	replace(t, h.conf, "nameserver 192.0.2.2\n") // by rename
	expect("[192.0.2.2:53]")
	if err := os.WriteFile(h.conf, []byte("nameserver 192.0.2.3\n"), 0o644); err != nil { // in place
		t.Fatal(err)
	}
	expect("[192.0.2.3:53]")
	if err := os.Remove(h.conf); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * settle)
	expect("[192.0.2.3:53]") // those of before
	replace(t, h.conf, "# none\n")
	expect("[]")
	managed := filepath.Join(h.dir, "run", "manager", "resolv.conf") // by a link to elsewhere
	replace(t, managed, "nameserver 192.0.2.4\n")
	link(t, "../run/manager/resolv.conf", h.conf)
	expect("[192.0.2.4:53]")
	replace(t, managed, "nameserver 192.0.2.5\n") // behind the link
	expect("[192.0.2.5:53]")
	if err := os.RemoveAll(filepath.Join(h.dir, "run")); err != nil { // the manager ends, and the link dangles
		t.Fatal(err)
	}
	time.Sleep(3 * settle)
	expect("[192.0.2.5:53]")
	replace(t, managed, "nameserver 192.0.2.8\n") // in a directory that is made again
	expect("[192.0.2.8:53]")
	link(t, filepath.Join(h.dir, "nowhere", "at", "all"), h.conf)
	time.Sleep(3 * settle)
	expect("[192.0.2.8:53]")
	replace(t, filepath.Join(h.dir, "nowhere", "at", "all"), "nameserver 192.0.2.9\n")
	expect("[192.0.2.9:53]")
	stub := filepath.Join(h.dir, "run", "systemd", "resolve", "stub-resolv.conf") // systemd-resolved moves in
	replace(t, h.resolved, "nameserver 192.0.2.6\n")
	replace(t, stub, "nameserver 127.0.0.53\n")
	link(t, stub, h.conf)
	expect("[192.0.2.6:53]")
	replace(t, h.resolved, "nameserver 192.0.2.7\n") // and learns of another
	expect("[192.0.2.7:53]")
}
