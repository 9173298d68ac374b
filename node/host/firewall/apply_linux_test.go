package firewall

import (
	"strings"
	"testing"
)

// A program that prints without end neither fills the memory nor hangs us.
func TestRunOfAProgramThatPrintsTooMuch(t *testing.T) {
	if _, err := run("", "/bin/sh", "-c", "head -c 70000000 /dev/zero"); err == nil || !strings.Contains(err.Error(), "it printed more than 64 MB") {
		t.Errorf("error %v", err)
	}
	if out, err := run("in", "/bin/cat"); err != nil || out != "in" {
		t.Errorf("%q, %v", out, err)
	}
}
