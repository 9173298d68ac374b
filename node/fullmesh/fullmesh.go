// Package fullmesh is the largest cluster that a /16 holds, as load for tests and
// measurements: its servers, the rows of a registry that has all of them, and a
// proxy in front of an agent that sees when its last byte came.
package fullmesh

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// How much there is of it.
const (
	Servers    = 256
	OnEach     = 253 // containers of a server
	Containers = Servers * OnEach
	Services   = 2000
)

// Topology is its servers, web0 to web255.
func Topology() topology.Topology {
	t := topology.Topology{Cluster: netip.MustParsePrefix(ipplan.DefaultCluster), Domain: "jiji"}
	for n := range Servers {
		id := fmt.Sprintf("web%d", n)
		s := topology.Server{ID: id, Hostname: id, Key: wgkey.Public{byte(n), 1}, Subnet: netip.MustParsePrefix(fmt.Sprintf("10.210.%d.0/24", n))}
		s.WireGuardIP = ipplan.WireGuardIP(s.Subnet)
		s.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 51820)}
		s.ManagementIP = ipplan.Management(s.Key)
		t.Servers = append(t.Servers, s)
	}
	return t
}

// Fill writes the rows of servers, and of all containers of the mesh, as 256 agents
// would have.
func Fill(ctx context.Context, c *corrosion.Client, servers []topology.Server) error {
	for _, s := range servers {
		_, err := c.Exec(ctx, corrosion.SQL(`INSERT INTO servers (id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, 1)`,
			s.ID, s.Hostname, s.Subnet.String(), s.WireGuardIP.String(), s.Key.String(), s.ManagementIP.StringExpanded(), registry.FormatEndpoints(s.Endpoints)))
		if err != nil {
			return err
		}
	}
	const some = 2000 // rows at a time
	for first := 0; first < Containers; first += some {
		const numbers = `WITH RECURSIVE r(n) AS (SELECT ? UNION ALL SELECT n + 1 FROM r WHERE n < ?) `
		last := min(first+some, Containers) - 1
		for _, insert := range []string{
			fmt.Sprintf(`INSERT INTO containers (id, service, server_id, ip, started_at, instance_id, health_status, last_health_check)
				SELECT printf('%%012x%%052x', n * 7919, n), 'service' || (n %% %d), 'web' || (n / 253), '10.210.' || (n / 253) || '.' || (2 + n %% 253),
					1700000000000 + n, NULL, 'healthy', 1700000000000 FROM r`, Services),
			`INSERT INTO jiji_containers (id, server_id, project, name, ports)
				SELECT printf('%012x%052x', n * 7919, n), 'web' || (n / 253), 'shop', 'shop-' || n, '["8080/tcp"]' FROM r`,
		} {
			if _, err := c.Exec(ctx, corrosion.SQL(numbers+insert, first, last)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ID is the id of container n.
func ID(n int) string { return fmt.Sprintf("%012x%052x", n*7919, n) }
