package node

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/acidtib/jiji-node/registry"
)

// fullSnapshot is the largest cluster's: 2,024 services.
func fullSnapshot() *registry.Catalog { return catalogOf(fullContainers) }

// catalogOf is the first n of its containers, of 32 to a service.
func catalogOf(n int) *registry.Catalog {
	c := registry.NewCatalog()
	for i := range n {
		server := i / 253
		v := registry.Container{
			ID: fmt.Sprintf("%064x", i), Service: fmt.Sprintf("service%d", i/32), Project: fmt.Sprintf("project%d", i%16), Instance: fmt.Sprintf("i%d", i%40),
			Name: fmt.Sprintf("c%d", i), ServerID: fmt.Sprintf("web%d", server), IP: netip.AddrFrom4([4]byte{10, 210, byte(server), byte(2 + i%253)}),
			Health: registry.Healthy,
		}
		c.SetLocal(v)
	}
	return c
}

// BenchmarkFirstZone makes the zone of the largest cluster's first snapshot.
func BenchmarkFirstZone(b *testing.B) {
	v := view{topo: fullMesh(), key: fullMesh().Servers[0].Key, catalog: fullSnapshot().Snapshot(), down: nobody}
	b.ReportAllocs()
	for b.Loop() {
		var d directory
		if _, err := d.update(v); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkZoneAfterOneChange follows the change of one container in it, from
// the row to the zone.
func BenchmarkZoneAfterOneChange(b *testing.B) {
	catalog := fullSnapshot()
	v := view{topo: fullMesh(), key: fullMesh().Servers[0].Key, catalog: catalog.Snapshot(), down: nobody}
	var d directory
	if _, err := d.update(v); err != nil {
		b.Fatal(err)
	}
	c := *v.catalog.Services[0].Containers[0]
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.Health = []registry.Health{registry.Unhealthy, registry.Healthy}[i%2]
		catalog.SetLocal(c)
		v.catalog = catalog.Snapshot()
		if changed, err := d.update(v); err != nil || !changed {
			b.Fatal(changed, err)
		}
	}
}

// TestRegistryShow5ChangeCostsTheChange: from a row to the zone, a change does as
// much in the largest cluster as in a sixteenth of it, but for the pointers to the services.
func TestRegistryShow5ChangeCostsTheChange(t *testing.T) {
	cost := func(containers int) (mallocs, bytes uint64) {
		catalog := catalogOf(containers)
		v := view{topo: fullMesh(), key: fullMesh().Servers[0].Key, catalog: catalog.Snapshot(), down: nobody}
		var d directory
		if _, err := d.update(v); err != nil {
			t.Fatal(err)
		}
		const changes = 200
		c := *v.catalog.Services[0].Containers[0]
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range changes {
			c.Health = []registry.Health{registry.Unhealthy, registry.Healthy}[i%2]
			catalog.SetLocal(c)
			v.catalog = catalog.Snapshot()
			if changed, err := d.update(v); err != nil || !changed {
				t.Fatal(changed, err)
			}
		}
		runtime.ReadMemStats(&after)
		return (after.Mallocs - before.Mallocs) / changes, (after.TotalAlloc - before.TotalAlloc) / changes
	}
	smallMallocs, smallBytes := cost(fullContainers / 16)
	mallocs, bytes := cost(fullContainers)
	t.Logf("a change allocates %d times, %d bytes; in a sixteenth of the cluster %d times, %d bytes", mallocs, bytes, smallMallocs, smallBytes)
	pointers := uint64(fullContainers / 32 * 8)
	if mallocs > smallMallocs+smallMallocs/4+4 || bytes > smallBytes+smallBytes/4+pointers*5/4 {
		t.Errorf("want about %d times, and %d bytes with a pointer to each service", smallMallocs, smallBytes+pointers)
	}
}
