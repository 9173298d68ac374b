package node

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/registry"
)

// fullSnapshot is the largest cluster's: 2,024 services.
func fullSnapshot() *registry.Catalog {
	c := registry.NewCatalog()
	for i := range fullContainers {
		server := i / 253
		v := registry.Container{
			ID: fmt.Sprintf("%064x", i), Service: fmt.Sprintf("service%d", i%2024), Project: fmt.Sprintf("project%d", i%16), Instance: fmt.Sprintf("i%d", i%40),
			Name: fmt.Sprintf("c%d", i), ServerID: fmt.Sprintf("web%d", server), IP: netip.AddrFrom4([4]byte{10, 210, byte(server), byte(2 + i%253)}),
			Health: registry.Healthy,
		}
		c.SetLocal(v)
	}
	return c
}

func BenchmarkPlanAndZone(b *testing.B) {
	topo := fullMesh()
	snapshot := fullSnapshot().Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		p := makePlan(topo, topo.Servers[0].Key, snapshot.All(), true, true, nobody, unlimited)
		if _, err := dnsserver.NewZone(p.zone); err != nil {
			b.Fatal(err)
		}
	}
}
