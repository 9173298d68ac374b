package topology

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
)

const rest = 24 * time.Hour // for which the subnet of a removed server is not given to another

// Add returns t with the server that e introduces, as it then is: a member, with
// a subnet (the lowest free one if e has none) and an id of its own. A server
// is known by its key. One that is known keeps its id and its subnet and takes
// hostname and endpoints from e; one that was removed is a member again. If e
// says nothing new, t is returned as it is. The error wraps ipplan.ErrFull when
// the cluster is full.
func Add(t Topology, e EntryDoc, now time.Time) (Topology, Server, error) {
	s := derive(e.Server)
	if err := admissible(t, e, s); err != nil {
		return t, Server{}, err
	}
	known := t.index(s.Key)
	id, err := t.freeID(s, known)
	if err != nil {
		return t, Server{}, err
	}
	subnet, err := t.freeSubnet(s, known, now)
	if err != nil {
		return t, Server{}, err
	}
	s.ID, s.Subnet, s.WireGuardIP = id, subnet, ipplan.WireGuardIP(subnet)

	if known >= 0 {
		s.Hostname = cmp.Or(s.Hostname, t.Servers[known].Hostname)
		s.rest, s.RejoinedAfter = t.Servers[known].rest, t.Servers[known].RejoinedAfter
	}
	if known >= 0 && s.Equal(t.Servers[known]) {
		return t, s, nil
	}
	return t.With(s).stamped(now), s, nil
}

// admissible says why the server s of e cannot be in t whatever else is there.
func admissible(t Topology, e EntryDoc, s Server) error {
	name := nameOf(0, s)
	if e.Cluster.IsValid() && e.Cluster != t.Cluster {
		return fmt.Errorf("%s is of cluster %s, this topology of %s: start both with the same --cluster-cidr", name, e.Cluster, t.Cluster)
	}
	if e.Domain != "" && e.Domain != t.Domain {
		return fmt.Errorf("%s is of service domain %q, this topology of %q: start both with the same --domain", name, e.Domain, t.Domain)
	}
	if !s.RemovedAt.IsZero() {
		return fmt.Errorf("%s was removed at %s, only a member can be added", name, timeText(s.RemovedAt))
	}
	var c checker
	c.server(0, s, t.Cluster)
	var errs []error
	for _, f := range c.faults {
		errs = append(errs, f.err)
	}
	return errors.Join(errs...)
}

// freeID returns the id of s in t, where it is number known, or -1.
func (t Topology) freeID(s Server, known int) (string, error) {
	if known >= 0 {
		return t.Servers[known].ID, nil
	}
	taken := make(map[string]bool, len(t.Servers))
	for _, o := range t.Servers {
		taken[strings.ToLower(o.ID)] = true
	}
	return ipplan.ServerID(s.ID, func(id string) bool { return taken[strings.ToLower(id)] })
}

// freeSubnet returns the subnet of s in t, where it is number known, or -1.
func (t Topology) freeSubnet(s Server, known int, now time.Time) (netip.Prefix, error) {
	var old Server
	if known >= 0 {
		old = t.Servers[known]
	}
	owner := make(map[netip.Prefix]Server)
	for i, o := range t.Servers {
		if i != known && o.RemovedAt.IsZero() && o.Subnet.IsValid() {
			owner[o.Subnet] = o
		}
	}
	_, oldTaken := owner[old.Subnet]
	by, wantTaken := owner[s.Subnet]
	switch {
	case old.Subnet.IsValid() && old.RemovedAt.IsZero() && s.Subnet.IsValid() && s.Subnet != old.Subnet:
		return netip.Prefix{}, fmt.Errorf("%s has subnet %s in this topology, its entry says %s: on it, run `jiji-node init --index %s`",
			nameOf(0, old), old.Subnet, s.Subnet, t.number(old.Subnet))
	case wantTaken:
		free, err := Allocate(t, now)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("subnet %s of %s belongs to %s: %w", s.Subnet, nameOf(0, s), nameOf(0, by), err)
		}
		if strings.EqualFold(by.ID, s.ID) { // one machine set up anew, or two of one name
			return netip.Prefix{}, fmt.Errorf("subnet %s belongs to %s with another key: if it was set up anew, run `jiji-node server remove %s` and add it again; if both are there, run `jiji-node init --index %s` on the new one",
				s.Subnet, nameOf(0, by), by.ID, t.number(free))
		}
		return netip.Prefix{}, fmt.Errorf("subnet %s of %s belongs to %s: on %[2]s, run `jiji-node init --index %[4]s`",
			s.Subnet, nameOf(0, s), nameOf(0, by), t.number(free))
	case s.Subnet.IsValid():
		return s.Subnet, nil
	case old.Subnet.IsValid() && !oldTaken:
		return old.Subnet, nil
	default:
		return Allocate(t, now)
	}
}

// Allocate returns the lowest subnet of t's cluster that no member has, and no
// server that was removed in the last 24 hours. Its error wraps ipplan.ErrFull
// when there is none.
func Allocate(t Topology, now time.Time) (netip.Prefix, error) {
	var taken []netip.Prefix
	for _, s := range t.Servers {
		if s.Subnet.IsValid() && (s.RemovedAt.IsZero() || now.Sub(s.RemovedAt) < rest) {
			taken = append(taken, s.Subnet)
		}
	}
	return ipplan.LowestFree(t.Cluster, taken)
}

// number is the number of a subnet of t, as text for people.
func (t Topology) number(subnet netip.Prefix) string {
	n, err := ipplan.Index(t.Cluster, subnet)
	if err != nil {
		return "?"
	}
	return fmt.Sprint(n)
}

// Remove returns t in which the server id, in any case, is removed since now. A
// server that was removed before stays as it is.
func Remove(t Topology, id string, now time.Time) (Topology, error) {
	i := slices.IndexFunc(t.Servers, func(s Server) bool { return strings.EqualFold(s.ID, id) })
	if i < 0 {
		return t, fmt.Errorf("server %q: is not in this topology, see `jiji-node server list`", id)
	}
	if !t.Servers[i].RemovedAt.IsZero() {
		return t, nil
	}
	s := t.Servers[i]
	s.RemovedAt = stamp(now)
	return t.With(s).stamped(now), nil
}

func (t Topology) stamped(now time.Time) Topology {
	t.UpdatedAt = stamp(now)
	if t.CreatedAt.IsZero() {
		t.CreatedAt = t.UpdatedAt
	}
	return t
}

func stamp(now time.Time) time.Time { return now.UTC().Truncate(time.Second) }
