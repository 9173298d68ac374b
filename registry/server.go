package registry

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const maxEndpoints = 64 // of one server

// A Server is a row of servers, with what jiji_servers adds. Whether its
// addresses are ones that it may have is for the reader to judge.
type Server struct {
	ID           string
	Hostname     string
	Subnet       netip.Prefix
	WireGuardIP  netip.Addr
	Key          wgkey.Public
	ManagementIP netip.Addr
	Endpoints    []netip.AddrPort // in order of preference; may be empty
	LastSeen     time.Time        // zero if never
	RemovedAt    time.Time        // zero: a member

	// The rest is zero for servers without a row in jiji_servers.
	Version   string
	BootID    string
	MTU       int
	ClaimedAt time.Time // of its subnet
}

// A ServerRow is a server as the tables hold it: cells, as in Row.
type ServerRow struct {
	ID, Hostname, Subnet, WireGuardIP, Key, ManagementIP, Endpoints, LastSeen, RemovedAt any // servers
	Version, BootID, MTU, ClaimedAt                                                      any // jiji_servers; nil if there is no row
}

// Server returns what r says. It is not ok for a row that is not to be
// believed, which skipped names, and for one that is not here yet, because one
// of the cells that every server fills in is at its default. A removed server's
// row needs an id and a key, no more.
func (r ServerRow) Server() (s Server, ok bool, skipped *Skipped) {
	removed := r.RemovedAt != nil
	if empty(r.Key) || !removed && (empty(r.Hostname) || empty(r.Subnet) || empty(r.WireGuardIP) || empty(r.ManagementIP) || empty(r.Endpoints)) {
		return Server{}, false, nil
	}
	s, err := r.parse(removed)
	if err != nil {
		return Server{}, false, &Skipped{"servers", key(r.ID), err.Error()}
	}
	return s, true, nil
}

func (r ServerRow) parse(removed bool) (Server, error) {
	in := cells{}
	s := Server{
		ID:        in.text("id", r.ID),
		Hostname:  in.text("hostname", r.Hostname),
		LastSeen:  in.time("last_seen", r.LastSeen),
		RemovedAt: in.time("removed_at", r.RemovedAt),
		Version:   in.text("version", r.Version),
		BootID:    in.text("boot_id", r.BootID),
		MTU:       int(in.integer("mtu", r.MTU, math.MaxUint16)),
		ClaimedAt: in.time("claimed_at", r.ClaimedAt),
	}
	subnet, address := in.text("subnet", r.Subnet), in.text("wireguard_ip", r.WireGuardIP)
	public, management := in.text("wireguard_pubkey", r.Key), in.text("management_ip", r.ManagementIP)
	endpoints := in.text("endpoints", r.Endpoints)
	if in.err == nil && !isID(s.ID) {
		in.fail("id", s.ID, wantID)
	}
	if in.err == nil && removed && s.RemovedAt.IsZero() {
		in.fail("removed_at", show(r.RemovedAt), "a time in milliseconds, or NULL")
	}
	var err error
	if s.Key, err = wgkey.ParsePublic(public); err != nil {
		in.fail("wireguard_pubkey", public, "a WireGuard public key, 44 characters of base64")
	}
	if subnet != "" || !removed {
		if s.Subnet, err = netip.ParsePrefix(subnet); err != nil {
			in.fail("subnet", subnet, "a prefix like 10.210.1.0/24")
		}
	}
	if address != "" || !removed {
		if s.WireGuardIP, err = netip.ParseAddr(address); err != nil {
			in.fail("wireguard_ip", address, "an IPv4 address")
		}
	}
	if management != "" || !removed {
		if s.ManagementIP, err = netip.ParseAddr(management); err != nil {
			in.fail("management_ip", management, "an IPv6 address")
		}
	}
	if s.Endpoints, err = ParseEndpoints(endpoints); err != nil && !removed && in.err == nil {
		in.err = err
	}
	const wantName = "at most 255 bytes of printable UTF-8"
	if !isName(s.Version) {
		in.fail("version", s.Version, wantName)
	}
	if !isName(s.BootID) {
		in.fail("boot_id", s.BootID, wantName)
	}
	return s, in.err
}

// ParseEndpoints reads the cell of servers: a JSON array of "203.0.113.10:51820".
// Its error is an *InvalidError.
func ParseEndpoints(text string) ([]netip.AddrPort, error) {
	if text == "" {
		return nil, nil
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, &InvalidError{"endpoints", text, `a JSON array like ["203.0.113.10:51820"]`}
	}
	if len(list) > maxEndpoints {
		return nil, &InvalidError{"endpoints", fmt.Sprintf("%d of them", len(list)), fmt.Sprintf("at most %d", maxEndpoints)}
	}
	var eps []netip.AddrPort
	for _, s := range list {
		ep, err := netip.ParseAddrPort(s)
		if err != nil {
			return nil, &InvalidError{"endpoint", s, "an address and a port like 203.0.113.10:51820"}
		}
		ep = netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port())
		if !slices.Contains(eps, ep) {
			eps = append(eps, ep)
		}
	}
	return eps, nil
}

// FormatEndpoints is the reverse of ParseEndpoints.
func FormatEndpoints(eps []netip.AddrPort) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, ep := range eps {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + ep.String() + `"`)
	}
	b.WriteByte(']')
	return b.String()
}

// Equal reports whether s and o say the same of the server itself, whenever it
// was seen last.
func (s Server) Equal(o Server) bool {
	return s.ID == o.ID && s.Hostname == o.Hostname && s.Subnet == o.Subnet && s.WireGuardIP == o.WireGuardIP && s.Key == o.Key &&
		s.ManagementIP == o.ManagementIP && slices.Equal(s.Endpoints, o.Endpoints) && s.RemovedAt.Equal(o.RemovedAt)
}
