// Package packaging tests the service file that is shipped.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const unit = "jiji-node.service"

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
	out, err := analyze(t, "security", "--offline=true", "--threshold="+most, unit)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "Overall exposure level") {
			t.Log(strings.TrimSpace(line))
			return
		}
	}
	t.Errorf("no exposure level in\n%s", out)
}

// Nothing in the file is unknown to systemd, or wrong.
func TestUnitIsUnderstood(t *testing.T) {
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	start := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/jiji-node run$`)
	if !start.Match(text) {
		t.Fatal("ExecStart is not /usr/local/bin/jiji-node run")
	}
	copied := filepath.Join(t.TempDir(), unit)
	if err := os.WriteFile(copied, start.ReplaceAll(text, []byte("ExecStart=/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := analyze(t, "verify", copied)
	if err != nil || strings.Contains(out, unit) { // units of the machine may have faults of their own
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
