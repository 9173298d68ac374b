package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/registry"
)

func TestNearness(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for _, c := range []struct {
		rtt       time.Duration
		was, want int
	}{
		{0, unmeasured, unmeasured}, {0, 3, unmeasured}, {1, unmeasured, 0},
		{999 * us, unmeasured, 0}, {ms, unmeasured, 1}, {1999 * us, unmeasured, 1}, {2 * ms, unmeasured, 2}, {3999 * us, unmeasured, 2},
		{4 * ms, unmeasured, 3}, {40 * ms, unmeasured, 6}, {1023 * ms, unmeasured, 10}, {1024 * ms, unmeasured, 11}, {1999 * ms, unmeasured, 11}, {time.Hour, unmeasured, 11},

		{1249 * us, 0, 0}, {1250 * us, 0, 1}, // a quarter above
		{750 * us, 1, 1}, {749 * us, 1, 0}, // a quarter below
		{2499 * us, 1, 1}, {2500 * us, 1, 2}, {1500 * us, 2, 2}, {1499 * us, 2, 1},
		{80 * ms, 0, 7}, {100 * us, 7, 0}, {768 * ms, 11, 11}, {767 * ms, 11, 10}, {2 * time.Second, 11, 11},
	} {
		if got := nearness(c.rtt, c.was); got != c.want {
			t.Errorf("%v from class %d: %d, want %d", c.rtt, c.was, got, c.want)
		}
	}
}

// TestNearnessDoesNotFlap: times that vary by a fifth around any value change the
// class once at most, from whichever it was.
func TestNearnessDoesNotFlap(t *testing.T) {
	for d := 100 * time.Microsecond; d < 2*time.Second; d += d / 16 {
		for was := range unmeasured + 1 {
			class, changes := was, 0
			for i := range 20 {
				next := nearness(d*time.Duration(9+2*(i%2))/10, class)
				if next != class {
					changes++
				}
				class = next
			}
			if changes > 1 {
				t.Errorf("%v, first class %d: %d changes", d, was, changes)
			}
		}
	}
}

// TestDirectoryOrder: this server's own, then by class, those without a time last;
// equals take turns; in plain rotation all do.
func TestDirectoryOrder(t *testing.T) {
	var containers []registry.Container
	for i := range 5 {
		containers = append(containers, registry.Container{
			ID: fmt.Sprintf("c%d", i), Service: "api", ServerID: fmt.Sprintf("web%d", i), Health: registry.Healthy,
			IP: netip.AddrFrom4([4]byte{10, 210, byte(i), 10}), Ports: []registry.Port{{Number: 80, Proto: "tcp"}},
		})
	}
	times := map[netip.Addr]time.Duration{
		server(1).WireGuardIP: 40 * time.Millisecond, server(2).WireGuardIP: 300 * time.Microsecond, server(3).WireGuardIP: 900 * time.Microsecond,
	}
	v := view{
		topo: mesh(server(0), server(1), server(2), server(3), server(4)), key: server(0).Key,
		catalog: catalog(containers...).Snapshot(), times: times, down: nobody,
	}
	var d directory
	if _, err := d.update(v); err != nil {
		t.Fatal(err)
	}
	// order is the answer's, with the priority of each container in SRV: equals have
	// the same one, and take turns in the name server.
	order := func() string {
		var list []string
		for _, line := range d.zone.Lookup("_80._tcp.api.jiji", dns.TypeSRV).Records {
			f := strings.Fields(line)
			list = append(list, f[4]+f[7][:2])
		}
		return strings.Join(list, " ")
	}
	if got, want := order(), "0c0 1c2 1c3 2c1 3c4"; got != want {
		t.Errorf("order is %s, want %s", got, want)
	}
	if got, want := addresses(d.zone, "api"), "10.210.0.10 10.210.2.10 10.210.3.10 10.210.1.10 10.210.4.10"; got != want {
		t.Errorf("addresses are %s, want %s", got, want)
	}

	times[server(3).WireGuardIP] = 1100 * time.Microsecond // not much
	if changed, err := d.update(v); changed || err != nil {
		t.Errorf("a time within a quarter of the bound changed the zone: %v, %v", changed, err)
	}
	times[server(3).WireGuardIP] = 5 * time.Millisecond
	if _, err := d.update(v); err != nil {
		t.Fatal(err)
	}
	if got, want := order(), "0c0 1c2 2c3 3c1 4c4"; got != want {
		t.Errorf("order is %s, want %s", got, want)
	}

	v.rotate, d = true, directory{}
	if _, err := d.update(v); err != nil {
		t.Fatal(err)
	}
	if got, want := order(), "0c0 0c1 0c2 0c3 0c4"; got != want {
		t.Errorf("in plain rotation the order is %s, want %s", got, want)
	}
	times[server(3).WireGuardIP] = time.Second
	if changed, err := d.update(v); changed || err != nil {
		t.Errorf("in plain rotation a time changed the zone: %v, %v", changed, err)
	}
}

// TestDirectoryWithoutChangeCostsNothing: it is asked once a second, because a time changed.
func TestDirectoryWithoutChangeCostsNothing(t *testing.T) {
	times := map[netip.Addr]time.Duration{}
	topo := fullMesh()
	for i, s := range topo.Servers {
		times[s.WireGuardIP] = time.Duration(i+1) * time.Millisecond
	}
	v := view{topo: topo, key: topo.Servers[0].Key, catalog: catalogOf(fullContainers / 16).Snapshot(), times: times, down: nobody}
	var d directory
	if _, err := d.update(v); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(10, func() {
		if changed, err := d.update(v); changed || err != nil {
			t.Fatal(changed, err)
		}
	}); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// BenchmarkZoneAfterOneClass has a server go from one class to another and back, in the
// largest cluster.
func BenchmarkZoneAfterOneClass(b *testing.B) {
	times := map[netip.Addr]time.Duration{}
	topo := fullMesh()
	v := view{topo: topo, key: topo.Servers[0].Key, catalog: fullSnapshot().Snapshot(), times: times, down: nobody}
	var d directory
	if _, err := d.update(v); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		times[topo.Servers[1].WireGuardIP] = []time.Duration{time.Millisecond, 10 * time.Millisecond}[i%2]
		if changed, err := d.update(v); err != nil || !changed {
			b.Fatal(changed, err)
		}
	}
}

func TestInOrder(t *testing.T) {
	got := inOrder([]string{"api.jiji.\t5\tIN\tA\t10.210.0.2", "api.jiji.\t5\tIN\tA\t10.210.2.2", "api.jiji.\t5\tIN\tA\t10.210.2.3", "api.jiji.\t5\tIN\tA\t10.210.1.2", "api.jiji.\t5\tIN\tA\t192.0.2.1"},
		mesh(server(0), server(1), server(2)).Servers, "web0", map[netip.Addr]time.Duration{server(2).WireGuardIP: 1234 * time.Microsecond})
	if want := []string{"web0 (this server)", "web2 (1.23 ms)", "web1 (not measured)"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
