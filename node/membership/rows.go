package membership

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A Row is a server as the registry of the cluster has it.
type Row struct {
	topology.Server
	ClaimedAt time.Time // of its subnet; zero if not known, which counts as the oldest
}

// A Refusal says why a server's row, or a part of it, is not believed.
type Refusal struct{ ID, Reason string }

// A Taken is what became of the registry's rows.
type Taken struct {
	Refused  []Refusal
	Replaced []topology.Server // that were known and whose id has another key now
	LostTo   string            // the server that this machine has to leave its subnet to; "" if none
	IDOf     wgkey.Public      // the key of another server that has this machine's id; zero if none
}

// TakeRows merges the rows of the registry into the topology. Absence is never
// removal. live says whether there is a session with a server now: it keeps its
// subnet. claimed is when this machine took its own; zero if it has not yet.
func (m *Membership) TakeRows(rows []Row, live func(wgkey.Public) bool, claimed time.Time) (Taken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.topo.Load()
	merged, taken := mergeRows(known, m.key.Public(), rows, live, claimed)
	if err := topology.Check(merged); err != nil {
		return taken, fmt.Errorf("rows of the registry not taken over: %w", err)
	}
	if merged.Equal(known) {
		return taken, nil
	}
	return taken, m.set(merged)
}

// mergeRows is the pure part. All nodes decide alike from the same rows, but
// for sessions that only some of them have.
func mergeRows(known topology.Topology, self wgkey.Public, rows []Row, live func(wgkey.Public) bool, claimed time.Time) (topology.Topology, Taken) {
	var t Taken
	refuse := func(id, format string, args ...any) {
		t.Refused = append(t.Refused, Refusal{id, fmt.Sprintf(format, args...)})
	}
	own, _ := known.Self(self)
	byKey := map[wgkey.Public]topology.Server{}
	for _, s := range known.Servers {
		byKey[s.Key] = s
	}
	claims := map[wgkey.Public]time.Time{self: claimed}
	chosen := map[wgkey.Public]Row{}
	order := []wgkey.Public{}
	for _, r := range slices.SortedFunc(slices.Values(rows), older) {
		if err := topology.CheckServer(r.Server, known.Cluster); err != nil {
			refuse(r.ID, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		first, twice := chosen[r.Key]
		switch {
		case !twice:
			order = append(order, r.Key)
		case !r.RemovedAt.IsZero():
			continue // an id that the server had before
		case first.RemovedAt.IsZero() && r.ID != byKey[r.Key].ID:
			refuse(r.ID, "public key %s: is server %s's", r.Key, first.ID)
			continue
		case first.RemovedAt.IsZero():
			refuse(first.ID, "public key %s: is server %s's", r.Key, r.ID)
		}
		chosen[r.Key] = r
	}

	merged := known
	merged.Servers = slices.Clone(known.Servers)
	for _, key := range order {
		r := chosen[key]
		if strings.EqualFold(r.ID, own.ID) && key != self && r.RemovedAt.IsZero() {
			t.IDOf = key
			refuse(r.ID, "id %s: is this machine's, with key %s; if that one was set up anew under the same name, remove the row of the old key with `jiji-node server remove`", r.ID, self)
			continue
		}
		claims[key] = r.ClaimedAt
		if key == self {
			if !r.RemovedAt.IsZero() && strings.EqualFold(r.ID, own.ID) {
				own.RemovedAt = r.RemovedAt
				merged = merged.With(own)
			}
			continue
		}
		merged.Servers = slices.DeleteFunc(merged.Servers, func(s topology.Server) bool {
			other := s.Key != key && strings.EqualFold(s.ID, r.ID)
			if other && s.RemovedAt.IsZero() {
				t.Replaced = append(t.Replaced, s)
			}
			return other
		})
		if !r.RemovedAt.IsZero() { // a tombstone may have lost the rest
			if s, ok := byKey[key]; ok {
				s.RemovedAt = r.RemovedAt
				merged = merged.With(s)
				continue
			}
		}
		merged = merged.With(r.Server)
	}
	merged.Servers = settleSubnets(merged.Servers, func(a, b topology.Server) int {
		holds := func(s topology.Server) int {
			if k, ok := byKey[s.Key]; ok && k.Subnet == s.Subnet && k.RemovedAt.IsZero() && (s.Key == self && !claimed.IsZero() || s.Key != self && live(s.Key)) {
				return 0
			}
			return 1
		}
		if c := cmp.Compare(holds(a), holds(b)); c != 0 && a.Key != self && b.Key != self {
			return c
		}
		return older(Row{a, claimOf(claims, a.Key, self)}, Row{b, claimOf(claims, b.Key, self)})
	}, func(loser, winner topology.Server) {
		if loser.Key == self {
			t.LostTo = winner.ID
			return
		}
		refuse(loser.ID, "subnet %s: belongs to server %s", loser.Subnet, winner.ID)
	}, self)
	return merged, t
}

// claimOf is when a server took its subnet. This machine has taken none before
// it says so: then it is the youngest.
func claimOf(claims map[wgkey.Public]time.Time, key, self wgkey.Public) time.Time {
	at := claims[key]
	if key == self && at.IsZero() {
		return time.Unix(1<<40, 0)
	}
	return at
}

func older(a, b Row) int {
	return cmp.Or(a.ClaimedAt.Compare(b.ClaimedAt), strings.Compare(strings.ToLower(a.ID), strings.ToLower(b.ID)), strings.Compare(a.Key.String(), b.Key.String()))
}

// settleSubnets leaves each subnet to one member, the first by order. Others
// stay members without one: they can be told so only through the mesh. So does
// this machine keep its own until it takes another.
func settleSubnets(servers []topology.Server, order func(a, b topology.Server) int, lost func(loser, winner topology.Server), self wgkey.Public) []topology.Server {
	holders := map[netip.Prefix][]int{}
	for i, s := range servers {
		if s.RemovedAt.IsZero() && s.Subnet.IsValid() {
			holders[s.Subnet] = append(holders[s.Subnet], i)
		}
	}
	servers = slices.Clone(servers)
	for _, at := range holders {
		if len(at) == 1 {
			continue
		}
		slices.SortFunc(at, func(i, j int) int { return order(servers[i], servers[j]) })
		winner := servers[at[0]]
		keeps := at[0]
		for _, i := range at {
			if servers[i].Key == self {
				keeps = i // here; the others leave it only when this machine's row says so
			}
		}
		for _, i := range at[1:] {
			lost(servers[i], winner)
		}
		for _, i := range at {
			if i != keeps {
				servers[i].Subnet, servers[i].WireGuardIP = netip.Prefix{}, netip.Addr{}
			}
		}
	}
	return servers
}

// Adopt gives this machine the id, host name and subnet that the registry has
// for it, or the subnet that was found free for it. It reports whether its
// addresses moved.
func (m *Membership) Adopt(id, hostname string, subnet netip.Prefix) (moved bool, err error) {
	if m.cfg.NetworkFile != "" {
		return false, usage.Errorf("this machine's entry is in %s, which jiji-node never writes: give it subnet %s there", m.cfg.NetworkFile, subnet)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.topo.Load()
	self, _ := known.Self(m.key.Public())
	next := self
	next.ID, next.Hostname, next.Subnet, next.WireGuardIP = id, hostname, subnet, ipplan.WireGuardIP(subnet)
	if next.Equal(self) {
		return false, nil
	}
	t := known.With(next)
	t.Servers = slices.DeleteFunc(t.Servers, func(s topology.Server) bool { // an id or a subnet that a server here only seemed to have
		return s.Key != next.Key && strings.EqualFold(s.ID, id)
	})
	if err := topology.Check(t); err != nil {
		return false, err
	}
	return next.Subnet != self.Subnet || next.ID != self.ID, m.set(t)
}

// FreeSubnet returns the lowest subnet that no member has.
func (m *Membership) FreeSubnet() (netip.Prefix, error) {
	return topology.Allocate(m.Topology(), now())
}

// FreeID returns id, or with a number behind it if another server has it.
func (m *Membership) FreeID(hostname string, taken ...string) (string, error) {
	t := m.Topology()
	return ipplan.ServerID(hostname, func(id string) bool {
		return idTaken(t, id, m.key.Public()) || slices.ContainsFunc(taken, func(s string) bool { return strings.EqualFold(s, id) })
	})
}
