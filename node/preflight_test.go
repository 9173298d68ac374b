package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/usage"
)

// What a check of the configuration and of the state finds, whatever machine it runs on.
func TestCheckOfStateAndConfiguration(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux")
	}
	const known = `{"topology":{"clusterCidr":"10.99.0.0/16","serviceDomain":"jiji","discovery":"static","servers":[]}}`
	write := func(t *testing.T, dir, name, text string, mode os.FileMode) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		state func(t *testing.T, dir string)
		args  func(*Config)
		kind  host.Kind
		text  string
	}{
		{"another cluster", func(t *testing.T, dir string) { write(t, dir, "network.json", known, 0o600) },
			func(c *Config) { c.Cluster = host.FreeCluster(nil) }, kindConfiguration, "cluster CIDR 10.210.0.0/16: this machine belongs to the cluster 10.99.0.0/16"},
		{"another domain", func(t *testing.T, dir string) { write(t, dir, "network.json", known, 0o600) },
			func(c *Config) { c.Domain = "mesh" }, kindConfiguration, `domain "mesh": this machine belongs to a cluster with the domain "jiji"`},
		{"a topology that is none", func(t *testing.T, dir string) { write(t, dir, "network.json", "{", 0o600) },
			nil, kindConfiguration, "network.json"},
		{"a key that others can read", func(t *testing.T, dir string) { write(t, dir, "private.key", "x\n", 0o644) },
			nil, kindConfiguration, "chmod"},
		{"an MTU that is too small", nil, func(c *Config) { c.MTU = 1000 }, kindMTU, "mtu 1000: expected 1280"},
		{"a state directory that is none", func(t *testing.T, dir string) { write(t, filepath.Dir(dir), "state", "", 0o600) },
			nil, kindState, "not a directory"},
		{"a registry that is none", func(t *testing.T, dir string) { write(t, dir, registryName, "it was one before", 0o600) },
			nil, kindState, "registry.db: damaged, or not an SQLite database: move it away"},
		{"a registry that is too short", func(t *testing.T, dir string) { write(t, dir, registryName, "SQLite", 0o600) },
			nil, kindState, "registry.db: damaged, or not an SQLite database: move it away"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			cfg := Config{StateDir: dir, RuntimeDir: t.TempDir(), Interface: "jijitest0", ListenPort: 51820, Name: "a", Log: slog.New(slog.DiscardHandler)}
			if c.state != nil {
				c.state(t, dir)
			}
			if c.args != nil {
				c.args(&cfg)
			}
			before := tree(t, filepath.Dir(dir))
			r, err := Check(cfg)
			if r.Ready || err == nil || usage.Is(err) != (c.kind == kindConfiguration) {
				t.Errorf("ready %v, error %v, problems %+v", r.Ready, err, r.Problems)
			}
			found := 0
			for _, p := range r.Problems {
				if p.Kind == c.kind {
					found++
					if !strings.Contains(p.Text, c.text) || p.Degraded || strings.Contains(p.Text, "\n") {
						t.Errorf("problem %+v, want %q", p, c.text)
					}
				}
			}
			if found != 1 {
				t.Errorf("problems %+v, want one of kind %s", r.Problems, c.kind)
			}
			if after := tree(t, filepath.Dir(dir)); after != before {
				t.Errorf("files before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// Without the agent that it is to run a node can run, and is said to lack it.
func TestCheckWithoutAgent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux")
	}
	for _, c := range []struct {
		registry control.RegistryMode
		bin      string
		want     int
	}{
		{control.RegistryMode{Mode: control.Corrosion}, "/nonexistent/corrosion", 1},
		{control.RegistryMode{Mode: control.Corrosion}, "/bin/sh", 0},
		{control.RegistryMode{Mode: control.Corrosion, URL: "http://127.0.0.1:8080"}, "/nonexistent/corrosion", 0},
		{control.RegistryMode{Mode: control.Embedded}, "/nonexistent/corrosion", 0},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, registryName), nil, 0o600); err != nil { // one that is new
			t.Fatal(err)
		}
		cfg := Config{StateDir: dir, RuntimeDir: t.TempDir(), Interface: "jijitest0", ListenPort: 51820, Name: "a", Log: slog.New(slog.DiscardHandler), Registry: c.registry}
		cfg.Corrosion.Bin = c.bin
		r, _ := Check(cfg) // of which this machine may have other problems
		found := 0
		for _, p := range r.Problems {
			if p.Kind == kindAgent {
				found++
				if want := `registry: there is no corrosion binary "/nonexistent/corrosion": install it, or say where it is (--corrosion-bin); without it the node goes on with what it knows`; p.Text != want || !p.Degraded {
					t.Errorf("problem %+v, want %q", p, want)
				}
			} else if p.Kind == kindState {
				t.Errorf("problem %+v of an empty registry", p)
			}
		}
		if found != c.want {
			t.Errorf("%+v, %s: problems %+v, want %d of kind %s", c.registry, c.bin, r.Problems, c.want, kindAgent)
		}
	}
}

// tree lists all files below dir, with mode, size and time.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			b.WriteString(path + " " + info.Mode().String() + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
