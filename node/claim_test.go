package node

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry/embedded"
)

// A claim counts for the subnet and the membership that it was made for, whatever
// the clocks of this machine and of who removed it said.
func TestReadClaim(t *testing.T) {
	local, err := embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(t.TempDir(), "registry.db"), ServerID: "web1"})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	n := &Node{local: local}
	claimed, removed := time.UnixMilli(1_700_000_000_000), time.UnixMilli(1_700_000_000_000).Add(3*time.Hour) // by a clock that is ahead
	subnet, other := netip.MustParsePrefix("10.210.1.0/24"), netip.MustParsePrefix("10.210.2.0/24")
	for _, c := range []struct {
		name string
		note string
		self time.Time // RejoinedAfter
		of   netip.Prefix
		want string
	}{
		{"none", "", time.Time{}, subnet, "zero"},
		{"its own", claimText(claimed, subnet, time.Time{}), time.Time{}, subnet, "then"},
		{"as a member that was removed since", claimText(claimed, subnet, time.Time{}), removed, subnet, "zero"},
		{"after it was removed", claimText(claimed, subnet, removed), removed, subnet, "then"},
		{"after an earlier removal", claimText(claimed, subnet, removed.Add(-time.Hour)), removed, subnet, "zero"},
		{"of another subnet", claimText(claimed, other, time.Time{}), time.Time{}, subnet, "now"},
	} {
		if err := local.SetMeta(t.Context(), claimKey, c.note); err != nil {
			t.Fatal(err)
		}
		self := server(1)
		self.Subnet, self.RejoinedAfter = c.of, c.self
		at, err := n.readClaim(t.Context(), self)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got := "now"
		switch {
		case at.IsZero():
			got = "zero"
		case at.Equal(claimed):
			got = "then"
		}
		if got != c.want {
			t.Errorf("%s: claimed at %v, want %s", c.name, at, c.want)
		}
	}
	if err := local.SetMeta(t.Context(), claimKey, "soon"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.readClaim(t.Context(), server(1)); err == nil {
		t.Error("a note that is none was read")
	}
}
