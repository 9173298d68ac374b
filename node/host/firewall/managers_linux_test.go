package firewall

import (
	"os"
	"path/filepath"
	"testing"
)

// A ufw that is installed but was never set up cannot say what it was told, and was
// told nothing: that is no fault of `down`.
func TestUFWThatWasNeverSetUp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "user.rules")
	u := ufw{program: "/bin/false", file: file}
	if changes, err := u.forget(nil); err != nil || len(changes) != 0 {
		t.Errorf("never set up: %v, %v", changes, err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := u.forget(nil); err == nil {
		t.Error("what it keeps cannot be asked for, and nobody is told")
	}
}
