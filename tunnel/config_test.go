package tunnel

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

func TestConfigCheck(t *testing.T) {
	fine := Config{Name: "jiji0", Addresses: prefixes("10.210.1.1/32", "fdcc::1/128"), MTU: 1420, Key: wgkey.NewPrivate()}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		err    string // empty: none
	}{
		{"fine", func(*Config) {}, ""},
		{"no name", func(c *Config) { c.Name = "" }, `interface name ""`},
		{"long name", func(c *Config) { c.Name = "jiji567890123456" }, `interface name "jiji567890123456"`},
		{"a path", func(c *Config) { c.Name = "../x" }, `interface name "../x"`},
		{"a parent", func(c *Config) { c.Name = ".." }, `interface name ".."`},
		{"a pattern", func(c *Config) { c.Name = "jiji%d" }, `interface name "jiji%d"`}, // the kernel would number it
		{"small MTU", func(c *Config) { c.MTU = 1279 }, "MTU 1279: want 1280 to "},
		{"huge MTU", func(c *Config) { c.MTU = 70000 }, "MTU 70000: want 1280 to "},
		{"no key", func(c *Config) { c.Key = wgkey.Private{} }, "no private key"},
		{"no address", func(c *Config) { c.Addresses = make([]netip.Prefix, 1) }, "want an IPv4 or IPv6 prefix"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := fine
			tt.change(&cfg)
			err := cfg.check()
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}
