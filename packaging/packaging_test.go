// Package packaging tests the service files that are shipped.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// units are what is shipped, with what each starts.
var units = map[string]string{
	"jiji-node.service":      "/usr/local/bin/jiji-node run",
	"jiji-corrosion.service": "/usr/bin/env -i PATH=/usr/bin:/bin HOME=/var/lib/jiji-corrosion TMPDIR=/var/lib/jiji-corrosion/tmp /usr/local/bin/corrosion --config /etc/corrosion/jiji.toml agent",
}

// analyze runs systemd-analyze, and skips the test where there is none.
func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("needs systemd-analyze, which .ci/deps installs: %v", err)
		}
		t.Skip("needs systemd-analyze of Debian's package systemd")
	}
	out, err := exec.Command(path, append(args, "--no-pager")...).CombinedOutput()
	return string(out), err
}

func TestExposure(t *testing.T) {
	const most = "30" // tenths: 3.0
	for unit := range units {
		t.Run(unit, func(t *testing.T) {
			out, err := analyze(t, "security", "--offline=true", "--threshold="+most, unit)
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			for line := range strings.Lines(out) {
				if strings.Contains(line, "Overall exposure level") {
					t.Log(strings.TrimSpace(line))
					return
				}
			}
			t.Errorf("no exposure level in\n%s", out)
		})
	}
}

// Nothing in the files is unknown to systemd, or wrong.
func TestUnitsAreUnderstood(t *testing.T) {
	for unit, start := range units {
		t.Run(unit, func(t *testing.T) {
			text, err := os.ReadFile(unit)
			if err != nil {
				t.Fatal(err)
			}
			line := "\nExecStart=" + start + "\n"
			if strings.Count(string(text), line) != 1 {
				t.Fatalf("ExecStart is not %s", start)
			}
			copied := filepath.Join(t.TempDir(), unit)
			text = []byte(strings.Replace(string(text), line, "\nExecStart=/bin/true\n", 1))
			if err := os.WriteFile(copied, text, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := analyze(t, "verify", copied)
			if err != nil || strings.Contains(out, unit) { // units of the machine may have faults of their own
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
		})
	}
}

// The example is what a managed agent gets, and what the service file says.
func TestCorrosionExample(t *testing.T) {
	var got map[string]map[string]any
	if _, err := toml.DecodeFile("corrosion.toml", &got); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("jiji-corrosion.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{got["db"]["path"].(string), got["admin"]["path"].(string)} {
		name := filepath.Base(filepath.Dir(dir))
		if !strings.Contains(string(text), "Directory="+name) {
			t.Errorf("%s is in no directory of the service", dir)
		}
	}
	for key, want := range map[string]any{"gossip.plaintext": true, "gossip.max_mtu": int64(1232), "db.cache_size_kib": int64(-8192), "perf.wal_threshold_mb": int64(64), "perf.max_sync_backoff": int64(3)} {
		table, name, _ := strings.Cut(key, ".")
		if got[table][name] != want {
			t.Errorf("%s is %v, want %v", key, got[table][name], want)
		}
	}
}
