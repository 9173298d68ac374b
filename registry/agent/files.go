package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/acidtib/jiji-node/node/statefile"
)

// Names in the agent's directory.
const (
	configName = "config.toml"
	schemaName = "schema"
	tokenName  = "token"
	tempName   = "tmp" // the agent unpacks a library there and loads it
	dbName     = "state.db"
	lockName   = "agent.lock"
	usedName   = "agent.version" // of the agent that opened the database last
)

const (
	maxSocket = 100     // bytes; sun_path of unix(7) has 108, elsewhere 104
	maxFile   = 1 << 20 // bytes of a file of ours
	tokenLen  = 32      // bytes, written as twice as many hexadecimal digits
)

// HasDatabase reports whether an agent of this directory has run.
func HasDatabase(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, dbName))
	return err == nil
}

func (c Config) check() error {
	switch {
	case c.Log == nil:
		return errors.New("Log: required")
	case c.Bin == "":
		return errors.New("Bin: required")
	case !filepath.IsAbs(c.Dir):
		return fmt.Errorf("Dir %q: want an absolute path", c.Dir)
	case !filepath.IsAbs(c.Socket):
		return fmt.Errorf("Socket %q: want an absolute path", c.Socket)
	case len(c.Socket) > maxSocket:
		return fmt.Errorf("Socket %q has %d bytes, a path of a Unix socket has at most %d", c.Socket, len(c.Socket), maxSocket)
	case !c.Gossip.IsValid() || c.Gossip.Port() == 0 || c.Gossip.Addr().IsUnspecified():
		return fmt.Errorf("Gossip %v: want an address and a port that peers reach", c.Gossip)
	case !c.API.IsValid() || c.API.Port() == 0:
		return fmt.Errorf("API %v: want an address and a port", c.API)
	case c.Metrics != (netip.AddrPort{}) && (!c.Metrics.IsValid() || c.Metrics.Port() == 0):
		return fmt.Errorf("Metrics %v: want an address and a port, or nothing", c.Metrics)
	}
	for _, text := range []string{c.Dir, c.Socket} {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return fmt.Errorf("path %q: want UTF-8", text)
		}
	}
	for name, sql := range c.Schema {
		if name != filepath.Base(name) || strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".sql") {
			return fmt.Errorf("Schema: file name %q: want a name that ends in .sql", name)
		}
		if len(sql) > maxFile || !utf8.ValidString(sql) {
			return fmt.Errorf("Schema: %s: want at most %d bytes of UTF-8", name, maxFile)
		}
	}
	return nil
}

func makeDirs(c Config) error {
	for _, dir := range []string{c.Dir, filepath.Join(c.Dir, schemaName), filepath.Join(c.Dir, tempName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}

// readToken returns the token at path, a new one where there is none or what is
// there cannot be used.
func readToken(path string, log *slog.Logger) (string, error) {
	data, mode, err := statefile.Read(path, maxFile)
	text := strings.TrimSpace(string(data))
	var reason string
	switch b, bad := hex.DecodeString(text); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", fmt.Errorf("read token: %w", err)
	case bad != nil || len(b) != tokenLen:
		reason = fmt.Sprintf("it is not %d hexadecimal digits", 2*tokenLen)
	case mode.Perm()&0o077 != 0:
		reason = fmt.Sprintf("its mode is %#o, and others may have read it", mode.Perm())
	default:
		return text, nil
	}
	if reason != "" {
		log.Warn("corrosion token replaced", "file", path, "reason", reason)
	}
	var b [tokenLen]byte
	rand.Read(b[:]) // never fails
	text = hex.EncodeToString(b[:])
	if err := statefile.Write(path, []byte(text+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write token: %w", err)
	}
	return text, nil
}

// noteUse notes which agent has opened the database.
func noteUse(dir, version string) error {
	return update(filepath.Join(dir, usedName), []byte(version+"\n"))
}

// usedBefore says that another agent than this one, of version, opened the database
// last: an older one may not be able to. "" if there is no such thing to say.
func usedBefore(dir, version string) string {
	data, _, err := statefile.Read(filepath.Join(dir, usedName), maxFile)
	last := oneLine(string(data))
	if err != nil || last == "" || last == version || strings.HasPrefix(last, version+" (") {
		return ""
	}
	return fmt.Sprintf("its database was last used by %s, and an older agent may not read it: use that again, or stop the node and remove %s* in %s: the other servers fill a new one", last, dbName, dir)
}

// writeFiles writes the configuration and the schema, where they differ from
// what is there, and returns the peers that it wrote.
func (a *Agent) writeFiles() ([]netip.AddrPort, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(a.cfg.Schema)) {
		if err := update(filepath.Join(a.cfg.Dir, schemaName, name), []byte(a.cfg.Schema[name])); err != nil {
			return nil, fmt.Errorf("write schema: %w", err)
		}
	}
	old, err := filepath.Glob(filepath.Join(a.cfg.Dir, schemaName, "*.sql"))
	if err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	for _, path := range old { // of another version; what they made stays
		if _, ours := a.cfg.Schema[filepath.Base(path)]; ours {
			continue
		}
		if err := statefile.Remove(path); err != nil {
			return nil, fmt.Errorf("remove old schema: %w", err)
		}
	}
	if err := update(filepath.Join(a.cfg.Dir, configName), render(a.cfg, a.token, a.wanted)); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return a.wanted, nil
}

// update writes path, which is ours alone to read, unless it has this content.
func update(path string, data []byte) error {
	if old, mode, err := statefile.Read(path, maxFile); err == nil && bytes.Equal(old, data) && mode.Perm() == 0o600 {
		return nil
	}
	return statefile.Write(path, data, 0o600)
}

// render returns the text of config.toml.
func render(c Config, token string, peers []netip.AddrPort) []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by jiji-node at each start of the agent: changes are lost.")
	line("[db]")
	line("path = %s", quote(filepath.Join(c.Dir, dbName)))
	line("schema_paths = [%s]", quote(filepath.Join(c.Dir, schemaName)))
	line("cache_size_kib = -8192 # for each connection that writes; without this 1 GiB")
	line("\n[gossip]")
	line("addr = %s", quote(c.Gossip.String()))
	line("client_addr = %s", quote(netip.AddrPortFrom(c.Gossip.Addr(), 0).String()))
	quoted := make([]string, len(peers))
	for i, p := range peers {
		quoted[i] = quote(p.String())
	}
	line("bootstrap = [%s]", strings.Join(quoted, ", "))
	line("plaintext = true # inside the tunnel")
	line("max_mtu = 1232 # what the smallest tunnel takes: 1280 less 48")
	line("\n[api]")
	line("addr = %s", quote(c.API.String()))
	line("authz.bearer-token = %s", quote(token))
	line("\n[admin]")
	line("path = %s", quote(c.Socket))
	if c.Metrics.IsValid() {
		line("\n[telemetry]")
		line("prometheus.addr = %s", quote(c.Metrics.String()))
	}
	line("\n[perf]")
	line("max_sync_backoff = 3 # seconds, between two syncs of an agent that has run for a while; without this 15")
	line("wal_threshold_mb = 64 # without this the write-ahead log grows to 5 GiB")
	line("\n[log]")
	line(`format = "json"`)
	return b.Bytes()
}

// quote returns s, which is UTF-8, as a basic string of TOML 1.0.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
