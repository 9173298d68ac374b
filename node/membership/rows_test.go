package membership

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

var cluster = netip.MustParsePrefix(ipplan.DefaultCluster)

func at(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}

// row is a member's; claimed is in seconds, 0: not known.
func row(id string, key byte, index int, claimed int64) Row {
	subnet, err := ipplan.Subnet(cluster, index)
	if err != nil {
		panic(err)
	}
	k := wgkey.Public{key}
	return Row{topology.Server{ID: id, Hostname: id, Subnet: subnet, WireGuardIP: ipplan.WireGuardIP(subnet), Key: k,
		ManagementIP: ipplan.Management(k), Endpoints: []netip.AddrPort{endpoint}}, at(claimed)}
}

func removed(r Row) Row {
	r.RemovedAt = at(9)
	return r
}

func rejoined(r Row, after int64) Row {
	r.RejoinedAfter = at(after)
	return r
}

// bare is a tombstone whose other cells never came.
func bare(id string, key byte) Row {
	return Row{Server: topology.Server{ID: id, Key: wgkey.Public{key}, RemovedAt: at(9)}}
}

func changed(r Row, change func(*Row)) Row {
	change(&r)
	return r
}

func topo(rows ...Row) topology.Topology {
	t := topology.Topology{Cluster: cluster, Domain: "jiji", Discovery: "static"}
	for _, r := range rows {
		t.Servers = append(t.Servers, r.Server)
	}
	return t
}

func liveOf(keys ...byte) func(wgkey.Public) bool {
	return func(k wgkey.Public) bool { return slices.Contains(keys, k[0]) }
}

func refusals(t Taken) string {
	var out []string
	for _, r := range t.Refused {
		out = append(out, r.ID+": "+r.Reason)
	}
	return strings.Join(out, "\n")
}

func sorted(t topology.Topology) string {
	t.Servers = slices.Clone(t.Servers)
	slices.SortFunc(t.Servers, func(a, b topology.Server) int { return strings.Compare(a.ID, b.ID) })
	return strings.ReplaceAll(ids(t), "invalid Prefix", "none")
}

// This machine is web1, with key 1 and subnet 0, which it took at 10 s.
func TestMergeRows(t *testing.T) {
	web1, web2, web3 := row("web1", 1, 0, 10), row("web2", 2, 1, 20), row("web3", 3, 2, 30)
	us := view{self: wgkey.Public{1}, live: liveOf(), claimed: at(10)}
	new := view{self: wgkey.Public{1}, live: liveOf()}
	firm := view{self: wgkey.Public{1}, live: liveOf(2), claimed: at(10), firm: true}
	sees := func(keys ...byte) view { return view{self: wgkey.Public{1}, live: liveOf(keys...), claimed: at(10)} }
	for name, c := range map[string]struct {
		known   []Row
		view    view
		rows    []Row
		want    string // the topology
		refused string // a part of the refusals; "": none
		lost    string
		idOf    byte
		own     string // id of the own row
		gone    bool   // the own row is a tombstone that was set aside
	}{
		"no rows change nothing":   {known: []Row{web1, web2}, view: us, want: "web1=10.210.0.0/24, web2=10.210.1.0/24"},
		"a newcomer":               {known: []Row{web1}, view: us, rows: []Row{web1, web2}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24", own: "web1"},
		"own row is not taken":     {known: []Row{web1}, view: us, rows: []Row{row("web1", 1, 7, 10)}, want: "web1=10.210.0.0/24", own: "web1"},
		"a tombstone":              {known: []Row{web1, web2}, view: us, rows: []Row{removed(web2)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24 removed"},
		"a bare tombstone":         {known: []Row{web1, web2}, view: us, rows: []Row{bare("web2", 2)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24 removed"},
		"a bare one of a stranger": {known: []Row{web1}, view: us, rows: []Row{bare("ghost", 7)}, want: "ghost=none removed, web1=10.210.0.0/24"},
		"a tombstone with lies": {known: []Row{web1}, view: us, want: "ghost=none removed, web1=10.210.0.0/24",
			rows: []Row{removed(changed(row("ghost", 7, 1, 0), func(r *Row) { r.Subnet = netip.MustParsePrefix("10.0.0.0/8") }))}},
		"own tombstone":                {known: []Row{web1, web2}, view: us, rows: []Row{removed(web1)}, want: "web1=10.210.0.0/24 removed, web2=10.210.1.0/24"},
		"own tombstone, set aside":     {known: []Row{rejoined(web1, 9), web2}, view: us, rows: []Row{removed(web1)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24", gone: true},
		"own tombstone, a newer one":   {known: []Row{rejoined(web1, 8), web2}, view: us, rows: []Row{removed(web1)}, want: "web1=10.210.0.0/24 removed, web2=10.210.1.0/24"},
		"own row after a tombstone":    {known: []Row{rejoined(web1, 9), web2}, view: us, rows: []Row{web1}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24", own: "web1"},
		"own former id's tombstone":    {known: []Row{web1}, view: us, rows: []Row{removed(row("old", 1, 0, 1)), web1}, want: "web1=10.210.0.0/24", own: "web1"},
		"another's former id":          {known: []Row{web1, web2}, view: us, rows: []Row{web2, removed(row("old", 2, 1, 1))}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24"},
		"a tombstone of a key with id": {known: []Row{web1, web2}, view: us, rows: []Row{removed(row("WEB2", 3, 4, 1)), web2}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24"},
		"a tombstone with our id":      {known: []Row{web1}, view: us, rows: []Row{removed(row("WEB1", 3, 4, 1))}, want: "web1=10.210.0.0/24"},
		"two rows of one key": {known: []Row{web1, web2}, view: us, rows: []Row{web2, row("twin", 2, 5, 1)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24",
			refused: "twin: public key " + (wgkey.Public{2}).String() + ": is server web2's"},
		"two rows of an unknown key, one claimed": {known: []Row{web1}, view: us, rows: []Row{row("stray", 2, 5, 0), web2}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24", refused: "stray: public key"},
		"two rows of our key":                     {known: []Row{web1}, view: us, rows: []Row{web1, row("twin", 1, 5, 1)}, want: "web1=10.210.0.0/24", refused: "twin: public key", own: "web1"},
		"ids that differ in case": {known: []Row{web1, web2}, view: us, rows: []Row{web2, row("WEB2", 3, 5, 1)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24",
			refused: "WEB2: id WEB2: is that of server web2"},
		"our id, in another case": {known: []Row{web1}, view: us, rows: []Row{row("WEB1", 3, 5, 1)}, want: "web1=10.210.0.0/24", refused: "WEB1: id WEB1: is that of this machine, web1", idOf: 3},
		"our id, with a new key":  {known: []Row{web1, web2}, view: us, rows: []Row{row("web1", 3, 5, 1), web2}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24", refused: "server remove", idOf: 3},
		"another's id, with a new key": {known: []Row{web1, web2}, view: us, rows: []Row{row("web2", 3, 1, 40)},
			want: "web1=10.210.0.0/24, web2=10.210.1.0/24"},
		"a server under a new id": {known: []Row{web1, web2}, view: us, rows: []Row{row("moved", 2, 1, 20)}, want: "moved=10.210.1.0/24, web1=10.210.0.0/24"},
		"management of another key": {known: []Row{web1}, view: us, rows: []Row{changed(web2, func(r *Row) { r.ManagementIP = ipplan.Management(wgkey.Public{9}) })},
			want: "web1=10.210.0.0/24", refused: "does not follow from its public key"},
		"endpoint inside the mesh": {known: []Row{web1}, view: us, rows: []Row{changed(web2, func(r *Row) { r.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("10.210.0.1:1")} })},
			want: "web1=10.210.0.0/24", refused: "inside the mesh"},
		"a bad row of a known one": {known: []Row{web1, web2}, view: us, rows: []Row{changed(web2, func(r *Row) { r.Subnet = cluster })},
			want: "web1=10.210.0.0/24, web2=10.210.1.0/24", refused: "web2: server"},
		"a subnet of an older one": {known: []Row{web1, web2}, view: us, rows: []Row{web2, row("web3", 3, 1, 30)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24, web3=none",
			refused: "web3: subnet 10.210.1.0/24: belongs to server web2"},
		"a live one keeps it from an older": {known: []Row{web1, web2}, view: sees(2), rows: []Row{web2, row("web3", 3, 1, 1)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24, web3=none",
			refused: "web3: subnet"},
		"else the older takes it": {known: []Row{web1, web2}, view: us, rows: []Row{web2, row("web3", 3, 1, 1)}, want: "web1=10.210.0.0/24, web2=none, web3=10.210.1.0/24",
			refused: "web2: subnet"},
		"two live ones: the older": {known: []Row{web1, web2, changed(web3, func(r *Row) { r.Subnet, r.WireGuardIP = netip.Prefix{}, netip.Addr{} })}, view: sees(2, 3),
			rows: []Row{web2, row("web3", 3, 1, 1)}, want: "web1=10.210.0.0/24, web2=none, web3=10.210.1.0/24", refused: "web2: subnet"},
		"our subnet, younger":        {known: []Row{web1}, view: us, rows: []Row{row("web3", 3, 0, 30)}, want: "web1=10.210.0.0/24, web3=none", refused: "web3: subnet 10.210.0.0/24: belongs to server web1"},
		"our subnet, older":          {known: []Row{web1}, view: us, rows: []Row{row("web3", 3, 0, 5)}, want: "web1=10.210.0.0/24, web3=none", lost: "web3"},
		"our subnet, same age":       {known: []Row{web1}, view: us, rows: []Row{row("a", 3, 0, 10)}, want: "a=none, web1=10.210.0.0/24", lost: "a"},
		"our subnet, no claim":       {known: []Row{web1}, view: us, rows: []Row{row("web3", 3, 0, 0)}, want: "web1=10.210.0.0/24, web3=none", refused: "web3: subnet"},
		"our subnet, no claim, live": {known: []Row{web1}, view: sees(3), rows: []Row{row("web3", 3, 0, 0)}, want: "web1=10.210.0.0/24, web3=none", lost: "web3"},
		"our subnet, older, nobody":  {known: []Row{web1, web2}, view: firm, rows: []Row{row("web3", 3, 0, 5)}, want: "web1=10.210.0.0/24, web2=10.210.1.0/24, web3=none", refused: "web3: subnet"},
		"our subnet, older, live":    {known: []Row{web1, web2}, view: firm, rows: []Row{row("web2", 2, 0, 5)}, want: "web1=10.210.0.0/24, web2=none", lost: "web2"},
		"a newcomer's subnet":        {known: []Row{web1}, view: new, rows: []Row{row("web3", 3, 0, 30)}, want: "web1=10.210.0.0/24, web3=none", lost: "web3"},
		"a newcomer's row":           {known: []Row{web1}, view: new, rows: []Row{row("web3", 3, 0, 30), row("web1", 1, 4, 40)}, want: "web1=10.210.0.0/24, web3=none", own: "web1"},
		"a newcomer's row, lost":     {known: []Row{web1}, view: new, rows: []Row{row("web3", 3, 4, 30), row("web1", 1, 4, 40)}, want: "web1=10.210.0.0/24, web3=10.210.4.0/24", own: "web1", lost: "web3"},
		"a newcomer's row, older":    {known: []Row{web1}, view: new, rows: []Row{row("web3", 3, 4, 50), row("web1", 1, 4, 40)}, want: "web1=10.210.0.0/24, web3=10.210.4.0/24", own: "web1"},
		"a newcomer's row, bad": {known: []Row{web1}, view: new, rows: []Row{changed(row("web1", 1, 4, 40), func(r *Row) { r.Subnet = cluster })},
			want: "web1=10.210.0.0/24", refused: "web1: server"},
	} {
		known := topo(c.known...)
		before := known.Servers[0]
		merged, taken := mergeRows(known, c.view, c.rows)
		if got := sorted(merged); got != c.want {
			t.Errorf("%s: topology %s, want %s", name, got, c.want)
		}
		if got := refusals(taken); !strings.Contains(got, c.refused) || c.refused == "" && got != "" {
			t.Errorf("%s: refused %q, want %q", name, got, c.refused)
		}
		if taken.LostTo != c.lost || taken.IDOf != (wgkey.Public{c.idOf}) || taken.Own.ID != c.own {
			t.Errorf("%s: lost to %q, id of %v, own row %q; want %q, %v, %q", name, taken.LostTo, taken.IDOf, taken.Own.ID, c.lost, c.idOf, c.own)
		}
		if taken.Removed != c.gone {
			t.Errorf("%s: removed %v, want %v", name, taken.Removed, c.gone)
		}
		if err := topology.Check(merged); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !known.Servers[0].Equal(before) {
			t.Errorf("%s: what was known is changed", name)
		}
	}
}

// randomRows are of few keys, ids and subnets, so that they clash.
func randomRows(r *rand.Rand, n int) []Row {
	ids := []string{"web1", "WEB1", "web2", "Web2", "web3", "web4", "web5", "bad id"}
	rows, have := []Row{}, map[string]bool{}
	for range n {
		id := ids[r.IntN(len(ids))]
		if have[id] { // the primary key
			continue
		}
		have[id] = true
		v := row(id, byte(1+r.IntN(6)), r.IntN(5), int64(r.IntN(4)))
		switch r.IntN(12) {
		case 0:
			v = removed(v)
		case 1:
			v = bare(v.ID, v.Key[0])
		case 2:
			v.ManagementIP = netip.MustParseAddr("fdcc::1")
		case 3:
			v.Subnet = cluster
		case 4:
			v.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("10.210.0.1:1")}
		}
		rows = append(rows, v)
	}
	return rows
}

func randomView(r *rand.Rand) view {
	var keys []byte
	for k := range byte(7) {
		if r.IntN(2) == 0 {
			keys = append(keys, k)
		}
	}
	v := view{self: wgkey.Public{1}, live: liveOf(keys...), claimed: at(int64(r.IntN(4)))}
	v.firm = !v.claimed.IsZero() && r.IntN(2) == 0
	return v
}

// Whatever comes, in whatever order, the outcome is the same, a topology, and
// lacks nobody that no row excludes.
func TestMergeRowsAnyOrder(t *testing.T) {
	for seed := range uint64(6_000) {
		r := rand.New(rand.NewPCG(seed, 1))
		known := topo(row("web1", 1, 0, 1))
		known, _ = mergeRows(known, randomView(r), randomRows(r, r.IntN(6)))
		v, rows := randomView(r), randomRows(r, r.IntN(8))
		merged, taken := mergeRows(known, v, rows)
		fail := func(format string, args ...any) {
			t.Fatalf("seed %d: known %s\nrows %s\nmerged %s, refused %s\n%s", seed, ids(known), rowsText(rows), ids(merged), refusals(taken), fmt.Sprintf(format, args...))
		}
		if err := topology.Check(merged); err != nil {
			fail("no topology: %v", err)
		}
		r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		other, alike := mergeRows(known, v, rows)
		if !other.Equal(merged) || !reflect.DeepEqual(alike, taken) {
			fail("in another order: %s\n%+v\n%+v", ids(other), taken, alike)
		}
		for _, s := range known.Servers {
			excluded := slices.ContainsFunc(rows, func(r Row) bool { return r.Key == s.Key || strings.EqualFold(r.ID, s.ID) })
			at := slices.IndexFunc(merged.Servers, func(m topology.Server) bool { return m.Key == s.Key && m.ID == s.ID })
			if !excluded && (at < 0 || !merged.Servers[at].RemovedAt.Equal(s.RemovedAt)) {
				fail("%s is gone", s.ID)
			}
		}
		if self, ok := merged.Self(v.self); !ok || self.ID != "web1" || self.Subnet != row("web1", 1, 0, 1).Subnet {
			fail("this machine is another")
		}
		again, second := mergeRows(merged, v, rows)
		third, _ := mergeRows(again, v, rows)
		if !third.Equal(again) || len(second.Replaced) > 0 {
			fail("does not come to rest: %s, then %s; replaced %v", ids(again), ids(third), second.Replaced)
		}
	}
}

func rowsText(rows []Row) string {
	var out []string
	for _, r := range rows {
		out = append(out, fmt.Sprintf("%s key %d %s claimed %d removed %v", r.ID, r.Key[0], r.Subnet, r.ClaimedAt.Unix(), !r.RemovedAt.IsZero()))
	}
	return strings.Join(out, "\n     ")
}

// Of those that claim one subnet just one believes that it is its own, and all
// others agree, whoever of them looks.
func TestAllNodesDecideAlike(t *testing.T) {
	for seed := range uint64(2_000) {
		r := rand.New(rand.NewPCG(seed, 2))
		var rows []Row
		for k := range byte(2 + r.IntN(5)) {
			rows = append(rows, row(fmt.Sprintf("web%d", k+1), k+1, r.IntN(3), 1+int64(r.IntN(3))))
		}
		live := liveOf()
		if r.IntN(2) == 0 { // all see all, as after a partition that has healed
			live = func(wgkey.Public) bool { return true }
		}
		keepers := map[netip.Prefix][]string{}
		for _, self := range slices.Clone(rows) {
			r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
			_, taken := mergeRows(topo(self), view{self: self.Key, live: live, claimed: self.ClaimedAt, firm: r.IntN(2) == 0 && live(self.Key)}, rows)
			if taken.LostTo == "" {
				keepers[self.Subnet] = append(keepers[self.Subnet], self.ID)
			}
		}
		watcher := row("watcher", 99, 50, 1)
		seen, _ := mergeRows(topo(watcher), view{self: watcher.Key, live: liveOf(), claimed: at(1)}, rows)
		for subnet, ids := range keepers {
			if len(ids) != 1 {
				t.Fatalf("seed %d: %v keep %s\nrows %s", seed, ids, subnet, rowsText(rows))
			}
			at := slices.IndexFunc(seen.Servers, func(s topology.Server) bool { return s.Subnet == subnet })
			if at < 0 || seen.Servers[at].ID != ids[0] {
				t.Fatalf("seed %d: %s keeps %s, others see %s\nrows %s", seed, ids[0], subnet, sorted(seen), rowsText(rows))
			}
		}
		for _, s := range rows {
			if len(keepers[s.Subnet]) == 0 {
				t.Fatalf("seed %d: nobody keeps %s\nrows %s", seed, s.Subnet, rowsText(rows))
			}
		}
	}
}

func TestSettleSubnets(t *testing.T) {
	byID := func(a, b topology.Server) int { return strings.Compare(a.ID, b.ID) }
	a, b, c, gone := row("a", 1, 0, 0).Server, row("b", 2, 0, 0).Server, row("c", 3, 0, 0).Server, removed(row("d", 4, 0, 0)).Server
	none := topology.Server{ID: "e", Key: wgkey.Public{5}}
	lost := map[string]string{}
	servers := []topology.Server{c, gone, b, a, none}
	got := settleSubnets(servers, byID, func(loser, winner topology.Server) { lost[loser.ID] = winner.ID }, c.Key)
	if want := "c=10.210.0.0/24, d=10.210.0.0/24 removed, b=invalid Prefix, a=invalid Prefix, e=invalid Prefix"; ids(topology.Topology{Servers: got}) != want {
		t.Errorf("%s, want %s", ids(topology.Topology{Servers: got}), want)
	}
	if !reflect.DeepEqual(lost, map[string]string{"b": "a", "c": "a"}) {
		t.Errorf("lost %v", lost)
	}
	if !servers[2].Equal(b) {
		t.Error("the servers given were changed")
	}
}

func TestAdopt(t *testing.T) {
	m, _ := machine(t, "web1", 0)
	web2, web3 := row("web2", 2, 1, 0), row("web3", 3, 2, 0)
	if _, err := m.TakeRows([]Row{web2, web3}, liveOf(), time.Time{}); err != nil {
		t.Fatal(err)
	}
	self := m.Self()
	if moved, err := m.Adopt(self.ID, self.Hostname, self.Subnet); moved || err != nil {
		t.Errorf("as it is: %v, %v", moved, err)
	}
	if moved, err := m.Adopt("web1", "other", self.Subnet); moved || err != nil || m.Self().Hostname != "other" {
		t.Errorf("another host name: %v, %v, %s", moved, err, m.Self().Hostname)
	}
	for _, bad := range []struct {
		id, subnet string
	}{{"bad id", "10.210.5.0/24"}, {"web1", "10.99.0.0/24"}, {"web1", "10.210.0.0/16"}} {
		was := m.Topology()
		if moved, err := m.Adopt(bad.id, "web1", netip.MustParsePrefix(bad.subnet)); err == nil || moved || !m.Topology().Equal(was) {
			t.Errorf("%v: moved %v, %v, topology %s", bad, moved, err, ids(m.Topology()))
		}
	}
	before := m.Topology()
	beforeText := ids(before)
	if moved, err := m.Adopt("WEB3", "web1", web2.Subnet); !moved || err != nil {
		t.Errorf("others' id and subnet: %v, %v", moved, err)
	}
	if got, want := sorted(m.Topology()), "WEB3=10.210.1.0/24, web2=none"; got != want {
		t.Errorf("topology %s, want %s", got, want)
	}
	if ids(before) != beforeText {
		t.Error("an earlier topology was changed")
	}
	again := mustOpen(t, m.cfg.Dir, func(c *Config) { c.Name, c.Endpoints = "", nil })
	if !again.Topology().Equal(m.Topology()) {
		t.Errorf("read again: %s", ids(again.Topology()))
	}
}

// The subnet of a machine that was never in a mesh is a guess: it gives way.
func TestAddMovesNewMachine(t *testing.T) {
	_, web1 := machine(t, "web1", 0)
	fresh := mustOpen(t, t.TempDir(), func(c *Config) { c.Name = "web3" })
	if _, err := fresh.Add("web1.json", web1, false); err != nil {
		t.Fatal(err)
	}
	if got, want := sorted(fresh.Topology()), "web1=10.210.0.0/24, web3=10.210.1.0/24"; got != want {
		t.Errorf("topology %s, want %s", got, want)
	}
	zero := 0
	chosen := mustOpen(t, t.TempDir(), func(c *Config) { c.Name, c.Index = "web3", &zero })
	if _, err := chosen.Add("web1.json", web1, false); err == nil {
		t.Error("a subnet that was chosen gave way")
	}
	known, _ := machine(t, "web3", 0)
	known = mustOpen(t, known.cfg.Dir, func(c *Config) { c.Name = "" })
	if _, err := known.Add("web1.json", web1, false); err == nil {
		t.Error("a subnet that others may know gave way")
	}
}
