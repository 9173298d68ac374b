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
	Refused  []Refusal         // in order of id and reason
	Replaced []topology.Server // that were known and whose id has another key now
	Own      Row               // this machine's, zero if there is none to be believed, or only a tombstone
	LostTo   string            // the server that this machine has to leave its subnet to, or, before it took one, that of Own; "" if none
	Removed  bool              // the row of this machine is the tombstone that it set aside when it was told to take part again
	IDOf     wgkey.Public      // the key of another server that has this machine's id; zero if none
}

// settledFor is how long a machine has had its subnet when a row alone, of a
// server that it has no session with, does not take it away any more.
const settledFor = time.Minute

// TakeRows merges the rows of the registry into the topology. Absence is never
// removal. live says whether there is a session with a server now: it keeps its
// subnet. claimed is when this machine took its own; zero if it has not yet.
func (m *Membership) TakeRows(rows []Row, live func(wgkey.Public) bool, claimed time.Time) (Taken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.topo.Load()
	v := view{self: m.key.Public(), live: live, claimed: claimed}
	v.firm = !claimed.IsZero() && time.Since(claimed) >= settledFor && slices.ContainsFunc(known.Servers, func(s topology.Server) bool {
		return s.Key != v.self && s.RemovedAt.IsZero() && live(s.Key)
	})
	merged, taken := mergeRows(known, v, rows)
	if err := topology.Check(merged); err != nil {
		return taken, fmt.Errorf("rows of the registry not taken over: %w", err)
	}
	if merged.Equal(known) {
		return taken, nil
	}
	return taken, m.set(merged)
}

// A view is what this machine alone sees.
type view struct {
	self    wgkey.Public
	live    func(wgkey.Public) bool
	claimed time.Time // of its subnet; zero: not yet
	firm    bool      // it has had its subnet for long, and has sessions: it counts as live
}

// mergeRows is the pure part. All nodes decide alike from the same rows, in any
// order, but for sessions that only some of them have.
func mergeRows(known topology.Topology, v view, rows []Row) (topology.Topology, Taken) {
	var t Taken
	refuse := func(id, format string, args ...any) {
		t.Refused = append(t.Refused, Refusal{id, fmt.Sprintf(format, args...)})
	}
	own, _ := known.Self(v.self)
	byKey := map[wgkey.Public]topology.Server{}
	for _, s := range known.Servers {
		if k, twice := byKey[s.Key]; !twice || !k.RemovedAt.IsZero() {
			byKey[s.Key] = s
		}
	}
	members, removed := believed(rows, known.Cluster, refuse)
	isKnown := func(r Row) bool { return byKey[r.Key].ID == r.ID }
	slices.SortFunc(members, func(a, b Row) int {
		return cmp.Or(-compareBool(isKnown(a), isKnown(b)), -compareBool(!a.ClaimedAt.IsZero(), !b.ClaimedAt.IsZero()), older(a, b))
	})
	merged := known
	merged.Servers = slices.Clone(known.Servers)
	claims := map[wgkey.Public]time.Time{v.self: v.claimed}
	keys, ids := map[wgkey.Public]Row{}, map[string]Row{}
	for _, r := range members {
		if first, twice := keys[r.Key]; twice {
			refuse(r.ID, "public key %s: is server %s's", r.Key, first.ID)
			continue
		}
		if strings.EqualFold(r.ID, own.ID) && r.Key != v.self {
			t.IDOf = r.Key
			refuse(r.ID, "id %s: is that of this machine, %s, with key %s; if that one was set up anew under the same name, remove the row of the old key with `jiji-node server remove`", r.ID, own.ID, v.self)
			continue
		}
		if first, twice := ids[strings.ToLower(r.ID)]; twice {
			refuse(r.ID, "id %s: is that of server %s, with key %s", r.ID, first.ID, first.Key)
			continue
		}
		keys[r.Key], ids[strings.ToLower(r.ID)] = r, r
		if r.Key == v.self {
			t.Own = r
			continue
		}
		claims[r.Key] = r.ClaimedAt
		for _, s := range merged.Servers {
			if s.Key != r.Key && strings.EqualFold(s.ID, r.ID) && s.RemovedAt.IsZero() {
				t.Replaced = append(t.Replaced, s)
			}
		}
		merged = without(merged, r.ID, r.Key).With(r.Server)
	}
	for _, r := range removed {
		_, member := keys[r.Key]
		other, taken := ids[strings.ToLower(r.ID)]
		switch {
		case r.Key == v.self:
			if !strings.EqualFold(r.ID, own.ID) {
				break
			}
			if own.RemovedAt.IsZero() && r.RemovedAt.Equal(own.RejoinedAfter) {
				t.Removed = true
				break
			}
			own.RemovedAt = r.RemovedAt
			merged = merged.With(own)
		case member: // an id that the server had before
		case taken && other.Key != r.Key, strings.EqualFold(r.ID, own.ID): // somebody has the id now
			merged.Servers = slices.DeleteFunc(slices.Clone(merged.Servers), func(s topology.Server) bool { return s.Key == r.Key })
		default:
			if s, ok := byKey[r.Key]; ok { // the tombstone may have lost the rest
				s.RemovedAt = r.RemovedAt
				r.Server = s
			}
			keys[r.Key], ids[strings.ToLower(r.ID)] = r, r
			merged = without(merged, r.ID, r.Key).With(r.Server)
		}
	}

	order := func(a, b topology.Server) int {
		return cmp.Or(compareBool(v.holds(b, a, byKey, claims), v.holds(a, b, byKey, claims)), older(Row{a, v.claimOf(claims, a.Key)}, Row{b, v.claimOf(claims, b.Key)}))
	}
	if v.claimed.IsZero() && t.Own.Subnet.IsValid() { // what it is about to take
		next := own
		next.Subnet = t.Own.Subnet
		claims[v.self] = t.Own.ClaimedAt
		settleSubnets(merged.With(next).Servers, order, func(loser, winner topology.Server) {
			if loser.Key == v.self {
				t.LostTo = winner.ID
			}
		}, v.self)
		delete(claims, v.self)
	}
	merged.Servers = settleSubnets(merged.Servers, order, func(loser, winner topology.Server) {
		switch {
		case loser.Key != v.self:
			refuse(loser.ID, "subnet %s: belongs to server %s", loser.Subnet, winner.ID)
		case !v.claimed.IsZero() || t.Own.Key.IsZero():
			t.LostTo = winner.ID
		}
	}, v.self)
	slices.SortFunc(t.Refused, func(a, b Refusal) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.Reason, b.Reason))
	})
	return merged, t
}

// believed parts rows into those of members and tombstones, each in an order
// that is the same everywhere, and refuses the rest. Of a tombstone no more than
// id and key need be there.
func believed(rows []Row, cluster netip.Prefix, refuse func(id, format string, args ...any)) (members, removed []Row) {
	for _, r := range slices.SortedFunc(slices.Values(rows), older) {
		err := topology.CheckServer(r.Server, cluster)
		if err != nil && !r.RemovedAt.IsZero() {
			r.Server = topology.Server{ID: r.ID, Key: r.Key, ManagementIP: ipplan.Management(r.Key), RemovedAt: r.RemovedAt}
			err = topology.CheckServer(r.Server, cluster)
		}
		switch {
		case err != nil:
			refuse(r.ID, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		case r.RemovedAt.IsZero():
			members = append(members, r)
		default:
			removed = append(removed, r)
		}
	}
	return members, removed
}

// without returns t without other servers of that id.
func without(t topology.Topology, id string, key wgkey.Public) topology.Topology {
	t.Servers = slices.DeleteFunc(slices.Clone(t.Servers), func(s topology.Server) bool { return s.Key != key && strings.EqualFold(s.ID, id) })
	return t
}

// holds reports whether s keeps its subnet though o may have claimed it first.
// Between this machine and one that it has a session with there is no such
// right: both would have it. A row without a claim, which a stranger may have
// written, counts as the oldest only if its server is there.
func (v view) holds(s, o topology.Server, known map[wgkey.Public]topology.Server, claims map[wgkey.Public]time.Time) bool {
	switch v.self {
	case s.Key:
		return !v.live(o.Key) && (v.firm || !v.claimed.IsZero() && claims[o.Key].IsZero())
	case o.Key:
		return false
	}
	// A server that lost its subnet here and did not notice is as live as the one that has it.
	k, ok := known[s.Key]
	return ok && k.RemovedAt.IsZero() && (k.Subnet == s.Subnet || !k.Subnet.IsValid()) && v.live(s.Key)
}

// compareBool is like cmp.Compare; false is less.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// claimOf is when a server took its subnet. This machine has taken none before
// it says so: then it is the youngest.
func (v view) claimOf(claims map[wgkey.Public]time.Time, key wgkey.Public) time.Time {
	at, ok := claims[key]
	if key == v.self && (!ok || at.IsZero()) {
		return time.Unix(1<<40, 0)
	}
	return at
}

func older(a, b Row) int {
	return cmp.Or(a.ClaimedAt.Compare(b.ClaimedAt), strings.Compare(strings.ToLower(a.ID), strings.ToLower(b.ID)), strings.Compare(a.ID, b.ID), strings.Compare(a.Key.String(), b.Key.String()))
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
	t = without(t, id, next.Key)
	for i, s := range t.Servers { // a subnet that a server here only seemed to have
		if s.Key != next.Key && s.RemovedAt.IsZero() && s.Subnet == subnet {
			t.Servers[i].Subnet, t.Servers[i].WireGuardIP = netip.Prefix{}, netip.Addr{}
		}
	}
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
