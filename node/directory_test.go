package node

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// catalog is a snapshot of containers.
func catalog(containers ...registry.Container) *registry.Catalog {
	c := registry.NewCatalog()
	for _, v := range containers {
		c.SetLocal(v)
	}
	return c
}

// zoneOf is the zone that web0 makes of containers and servers.
func zoneOf(t testing.TB, topo topology.Topology, containers ...registry.Container) (*dnsserver.Zone, *directory) {
	t.Helper()
	d := &directory{}
	if _, err := d.update(view{topo: topo, key: server(0).Key, catalog: catalog(containers...).Snapshot(), down: nobody}); err != nil {
		t.Fatal(err)
	}
	return d.zone, d
}

// addresses are what a name answers in A records; "-" if it has none, "" if
// there is no such name.
func addresses(z *dnsserver.Zone, name string) string {
	r := z.Lookup(name+".jiji", dns.TypeA)
	if r.Rcode != "NOERROR" {
		return ""
	}
	ips := []string{}
	for _, line := range r.Records {
		ips = append(ips, line[strings.LastIndex(line, "\t")+1:])
	}
	if len(ips) == 0 {
		return "-"
	}
	return strings.Join(ips, " ")
}

func TestDirectoryNames(t *testing.T) {
	at := func(id, service, project, instance, ip string, h registry.Health) registry.Container {
		return registry.Container{ID: id, Service: service, Project: project, Instance: instance, ServerID: "web0", IP: netip.MustParseAddr(ip), Health: h}
	}
	elsewhere := func(id, server, ip string) registry.Container {
		return registry.Container{ID: id, Service: "mail", ServerID: server, IP: netip.MustParseAddr(ip), Health: registry.Healthy}
	}
	z, d := zoneOf(t, mesh(server(0), server(1)),
		at("0123456789abcdef", "API", "shop", "blue", "10.210.0.10", registry.Healthy),
		at("fedcba9876543210", "api", "", "", "10.210.0.11", registry.Healthy),
		at("aaaaaaaaaaaaaaaa", "db", "", "", "10.210.0.12", registry.Unhealthy),
		at("x.y", "db2", "", "", "10.210.0.13", registry.Starting),
		elsewhere("remote", "web1", "10.210.1.10"),
		elsewhere("refused", "web1", "10.210.0.20"),
		elsewhere("unknown", "web9", "10.210.9.10"),
	)
	if len(d.skipped) != 1 || d.skipped[0].Key != "refused" {
		t.Errorf("refused are %+v, want the container with another server's address", d.skipped)
	}
	want := map[string]string{
		"web0.node": "10.210.0.1", "web1.node": "10.210.1.1",
		"api": "10.210.0.10 10.210.0.11", "api.web0": "10.210.0.10 10.210.0.11",
		"shop-api": "10.210.0.10", "shop-api-blue": "10.210.0.10",
		"0123456789ab.api": "10.210.0.10", "fedcba987654.api": "10.210.0.11",
		"db": "-", "db.web0": "-", "aaaaaaaaaaaa.db": "-",
		"mail": "10.210.1.10", "mail.web1": "10.210.1.10", "remote.mail": "10.210.1.10",
		"db2": "-", "db2.web0": "-", "x-y.db2": "-",
		"refused.mail": "", "mail.web0": "", "unknown.mail": "", "mail.web9": "",
	}
	for name, w := range want {
		if g := addresses(z, name); g != w {
			t.Errorf("%s: %q, want %q", name, g, w)
		}
	}
	ptr := z.Lookup("10.1.210.10.in-addr.arpa", dns.TypePTR).Records
	if len(ptr) != 1 || !strings.HasSuffix(ptr[0], "remote.mail.jiji.") {
		t.Errorf("10.210.1.10 is %q", ptr)
	}
}

// Names that are fine each may be too long together: that must not take the zone
// away, which a row of any server could do then.
func TestDirectorySurvivesLongNames(t *testing.T) {
	long := strings.Repeat("p", 40)
	z, _ := zoneOf(t, mesh(server(0), server(1)), registry.Container{
		ID: strings.Repeat("c", 128), Service: strings.Repeat("s", 63), Project: long, Instance: long, ServerID: "web1",
		IP: netip.MustParseAddr("10.210.1.10"), Health: registry.Healthy,
	})
	if got := addresses(z, strings.Repeat("s", 63)); got != "10.210.1.10" {
		t.Errorf("the service has %q, want one address", got)
	}
}

// TestDirectoryFollows: after any changes the zone is what it would be if it
// were made anew.
func TestDirectoryFollows(t *testing.T) {
	c := registry.NewCatalog()
	topo := mesh(server(0), server(1), server(2))
	down := map[wgkey.Public]bool{}
	times := map[netip.Addr]time.Duration{}
	v := view{topo: topo, key: server(0).Key, catalog: c.Snapshot(), partial: true, times: times, down: func(k wgkey.Public) bool { return down[k] }}
	var d directory
	step := func(what string, wantChange bool) {
		t.Helper()
		v.catalog = c.Snapshot()
		serial := d.serial
		changed, err := d.update(v)
		if err != nil {
			t.Fatal(err)
		}
		if changed != wantChange || changed != (d.serial != serial) {
			t.Errorf("%s: changed %v, serial %d after %d; want change %v", what, changed, d.serial, serial, wantChange)
		}
		var anew directory
		if _, err := anew.update(v); err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{"nope": true}
		for v := range v.catalog.All() {
			for _, n := range []string{v.Service, "shop-" + v.Service, v.Service + "." + v.ServerID, v.ID + "." + v.Service} {
				names[n] = true
			}
		}
		for i := range 6 {
			names[fmt.Sprintf("web%d.node", i)] = true
			names[fmt.Sprintf("service%d", i)] = true
		}
		for n := range names {
			if got, want := addresses(d.zone, n), addresses(anew.zone, n); got != want {
				t.Errorf("%s: %s is %q, made anew %q", what, n, got, want)
			}
		}
		for i := range 20 {
			n := fmt.Sprintf("%d.1.210.10.in-addr.arpa", i)
			got, want := d.zone.Lookup(n, dns.TypePTR), anew.zone.Lookup(n, dns.TypePTR)
			if got.Rcode != want.Rcode || !slices.Equal(got.Records, want.Records) {
				t.Errorf("%s: %s is %v %v, made anew %v %v", what, n, got.Rcode, got.Records, want.Rcode, want.Records)
			}
		}
		if d.zone.Len() != anew.zone.Len() || !slices.Equal(d.skipped, anew.skipped) {
			t.Errorf("%s: %d names, refused %v; made anew %d, %v", what, d.zone.Len(), d.skipped, anew.zone.Len(), anew.skipped)
		}
	}
	at := func(i int, service, server, ip string, h registry.Health) registry.Container {
		return registry.Container{ID: fmt.Sprintf("c%d", i), Service: service, Project: "shop", ServerID: server, IP: netip.MustParseAddr(ip), Health: h}
	}
	step("first", true)
	step("nothing", false)
	c.SetLocal(at(1, "service1", "web0", "10.210.0.2", registry.Healthy))
	c.SetLocal(at(2, "service1", "web1", "10.210.1.2", registry.Healthy))
	c.SetLocal(at(3, "service2", "web1", "10.210.1.3", registry.Healthy))
	step("three containers", true)
	v.partial = false
	step("whole", true)
	c.SetLocal(at(2, "service1", "web1", "10.210.1.2", registry.Unhealthy))
	step("unhealthy", true)
	c.SetLocal(at(2, "service1", "web1", "10.210.1.4", registry.Healthy))
	step("another address", true)
	c.SetLocal(at(3, "service3", "web1", "10.210.1.3", registry.Healthy))
	step("another service", true)
	c.SetLocal(at(4, "service0", "web1", "10.210.0.9", registry.Healthy))
	step("refused", true)
	c.SetLocal(at(4, "service0", "web1", "10.210.1.9", registry.Healthy))
	step("no longer refused", true)
	down[server(1).Key] = true
	step("a server is down", true)
	step("it still is", false)
	c.SetLocal(at(5, "service3", "web2", "10.210.2.3", registry.Healthy))
	step("another owner", true)
	delete(down, server(1).Key)
	step("a server is up", true)
	times[server(2).WireGuardIP] = 3 * time.Millisecond
	step("one was measured", true)
	times[server(2).WireGuardIP] = 2 * time.Millisecond
	step("again", false)
	times[server(1).WireGuardIP] = time.Millisecond / 2
	step("another one was", true)
	delete(times, server(2).WireGuardIP)
	step("the first one no more", true)
	v.topo = mesh(server(0), server(1), server(2), server(3))
	c.SetLocal(at(6, "service4", "web3", "10.210.3.3", registry.Healthy))
	step("another server", true)
	moved := v.topo.Servers[3]
	moved.Endpoints = nil
	v.topo.Servers = append(slices.Clone(v.topo.Servers[:3]), moved)
	step("other endpoints", false)
	moved.Subnet = netip.MustParsePrefix("10.210.77.0/24")
	v.topo.Servers = append(slices.Clone(v.topo.Servers[:3]), moved)
	step("another subnet", true)
	moved.RemovedAt = time.Now()
	v.topo.Servers = append(slices.Clone(v.topo.Servers[:3]), moved)
	step("removed", true)
	for i := range 6 {
		c.DropLocal(fmt.Sprintf("c%d", i+1))
		step("dropped", true)
	}
	if want := map[string]standing{"web1": {class: 0}, "web2": {class: unmeasured}}; !maps.Equal(d.standing, want) || len(d.refused) != 0 {
		t.Errorf("left over: %+v", d)
	}
}
