package topology

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

var (
	noon    = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	cluster = netip.MustParsePrefix("10.210.0.0/16")
)

// server returns a valid server number n, with its subnet.
func server(n int) Server {
	subnet, err := ipplan.Subnet(netip.MustParsePrefix("10.0.0.0/8"), 210*256+n)
	if err != nil {
		panic(err)
	}
	return derive(Server{
		ID: fmt.Sprintf("s%d", n), Hostname: fmt.Sprintf("s%d.example.com", n), Subnet: subnet,
		Key: wgkey.Public{1, byte(n), byte(n >> 8), byte(n >> 16)}, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:51820")},
	})
}

func mesh(servers ...Server) Topology {
	return Topology{Cluster: cluster, Domain: "jiji", Discovery: "static", Servers: servers, CreatedAt: noon, UpdatedAt: noon}
}

func TestRoundTrip(t *testing.T) {
	gone := server(2)
	gone.RemovedAt = noon.Add(time.Hour)
	bare := derive(Server{ID: "bare", Key: wgkey.Public{9}})
	want := mesh(server(0), server(1), gone, bare)
	got, err := Parse("network.json", want.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) || !got.CreatedAt.Equal(want.CreatedAt) || !got.UpdatedAt.Equal(want.UpdatedAt) {
		t.Errorf("got %+v\nwant %+v\n%s", got, want, want.Marshal())
	}
}
