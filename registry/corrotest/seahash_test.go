package corrotest

import (
	"fmt"
	"testing"
)

func TestSeahash(t *testing.T) {
	if got := fmt.Sprintf("%016x", seahash([]byte("SELECT * FROM services"))); got != "463fcc0175c52b52" {
		t.Errorf("hash %s, want 463fcc0175c52b52 (as recorded)", got)
	}
}
