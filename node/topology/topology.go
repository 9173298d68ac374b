// Package topology holds the list of a cluster's servers: as a value, with the
// rules that it keeps, and as the file network.json.
package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A Topology is what a node knows of its cluster. It is replaced, never changed.
type Topology struct {
	Cluster   netip.Prefix
	Domain    string   // of the mesh's names, in lower case: "jiji"
	Discovery string   // how servers are found, in the cluster's words: "static", "corrosion"
	Servers   []Server // in the order of the file, removed ones included
	CreatedAt time.Time
	UpdatedAt time.Time

	rest   string // members that a newer version added, as JSON without braces; "": none
	beside string // likewise, those beside the topology in its file
}

// A Server is one machine of the cluster.
type Server struct {
	ID           string // unique in its topology whatever the case, among removed servers too
	Hostname     string
	Subnet       netip.Prefix // zero: not allocated yet
	WireGuardIP  netip.Addr   // follows from Subnet
	Key          wgkey.Public
	ManagementIP netip.Addr       // follows from Key
	Endpoints    []netip.AddrPort // in order of preference; empty for a server that nobody can dial
	RemovedAt    time.Time        // zero: a member

	// RejoinedAfter is the removal that this machine set aside when it was told to
	// take part again: what others may still say of it is no news. Zero: none.
	RejoinedAfter time.Time

	rest string // as that of Topology
}

// An EntryDoc is a server as it is introduced to another machine, with what that
// machine has to agree on.
type EntryDoc struct {
	Server
	Cluster netip.Prefix // zero: not said
	Domain  string       // empty: not said
}

// Self returns the server that has key: the member, or else the removed one.
func (t Topology) Self(key wgkey.Public) (Server, bool) {
	if i := t.index(key); i >= 0 {
		return t.Servers[i], true
	}
	return Server{}, false
}

func (t Topology) index(key wgkey.Public) int {
	removed := -1
	for i, s := range t.Servers {
		if s.Key != key {
			continue
		}
		if s.RemovedAt.IsZero() {
			return i
		}
		removed = i
	}
	return removed
}

// With returns t with s in the place of the server that has its key, or at the end.
func (t Topology) With(s Server) Topology {
	t.Servers = slices.Clone(t.Servers)
	if i := t.index(s.Key); i >= 0 {
		t.Servers[i] = s
	} else {
		t.Servers = append(t.Servers, s)
	}
	return t
}

// Equal reports whether t and o say the same, whenever each was written.
func (t Topology) Equal(o Topology) bool {
	return t.Cluster == o.Cluster && t.Domain == o.Domain && t.Discovery == o.Discovery && t.rest == o.rest && t.beside == o.beside &&
		slices.EqualFunc(t.Servers, o.Servers, Server.Equal)
}

// Equal reports whether s and o say the same.
func (s Server) Equal(o Server) bool {
	return s.ID == o.ID && s.Hostname == o.Hostname && s.Subnet == o.Subnet && s.WireGuardIP == o.WireGuardIP &&
		s.Key == o.Key && s.ManagementIP == o.ManagementIP && slices.Equal(s.Endpoints, o.Endpoints) && s.RemovedAt.Equal(o.RemovedAt) &&
		s.RejoinedAfter.Equal(o.RejoinedAfter) && s.rest == o.rest
}

// derive returns s with what follows from the rest of it and it does not say
// itself: id, WireGuard and management address. No endpoint stays in it twice.
func derive(s Server) Server {
	if s.ID == "" {
		// A hostname that no id can be made of leaves it empty, which Check reports.
		s.ID, _ = ipplan.ServerID(s.Hostname, func(string) bool { return false })
	}
	if !s.WireGuardIP.IsValid() {
		s.WireGuardIP = ipplan.WireGuardIP(s.Subnet)
	}
	if !s.ManagementIP.IsValid() && !s.Key.IsZero() {
		s.ManagementIP = ipplan.Management(s.Key)
	}
	var once []netip.AddrPort
	for _, ep := range s.Endpoints {
		ep = netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port())
		if !slices.Contains(once, ep) {
			once = append(once, ep)
		}
	}
	s.Endpoints = once
	return s
}

// ParseDomain reads the domain of the mesh's names, one or more DNS labels, and
// returns it in lower case without a dot at its end.
func ParseDomain(text string) (string, error) {
	domain := strings.ToLower(strings.TrimSuffix(text, "."))
	if len(domain) > maxDomain {
		return "", fmt.Errorf("service domain %q: has %d characters, want at most %d", text, len(domain), maxDomain)
	}
	for label := range strings.SplitSeq(domain, ".") {
		if !isLabel(label) {
			return "", fmt.Errorf("service domain %q: want labels of 1 to 63 letters, digits and inner hyphens, such as jiji or mesh.example", text)
		}
	}
	return domain, nil
}

// maxDomain leaves room for the longest name in it: <service>.<server>.
const maxDomain = 253 - 2*64

func isLabel(s string) bool {
	return len(s) > 0 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}
