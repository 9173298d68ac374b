//go:build linux

package lab

import (
	"testing"
	"time"
)

func TestThreeServersPingEachOther(t *testing.T) {
	start := time.Now()
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24", "2001:db8::/64")
	a, b, c := l.Server("a").On(lan), l.Server("b").On(lan), l.Server("c").On(lan)
	a.Container("web-a", "10.210.0.10")
	b.Container("web-b", "10.210.1.10")
	c.Container("web-c", "10.210.2.10")
	t.Logf("made in %v", time.Since(start))
	for _, from := range []*Server{a, b, c} {
		for _, to := range []*Server{a, b, c} {
			for _, addr := range to.Link(lan).Addrs() {
				from.Run("ping", "-c1", "-W1", addr.String())
			}
		}
	}
	t.Logf("done in %v", time.Since(start))
}
