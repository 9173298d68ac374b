package engine

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/acidtib/jiji-node/registry"
)

// A claim is a container with the address that it is to have.
type claim struct {
	Container
	row      registry.Container
	attached bool   // the engine gave it the address; else a label says so
	network  string // id of the container whose network it is in
}

// Plan says which containers are in the mesh, and why those are not that ask to
// be. probes are the results of probing their health ports, by id. It does no I/O.
func Plan(all []Container, rules Rules, probes map[string]Probe) View {
	var v View
	byID := map[string]Container{}
	for _, c := range all {
		byID[c.ID] = c
	}
	refuse := func(c Container, err error) {
		v.Refused = append(v.Refused, Refused{c.ID, c.Name, strings.ReplaceAll(err.Error(), "\n", " ")})
	}
	var claims []claim
	for _, c := range all {
		if !c.Running || c.Infra {
			continue
		}
		k, ok, err := claimOf(c, byID, rules)
		switch {
		case err != nil:
			refuse(c, err)
		case ok:
			claims = append(claims, k)
		}
	}
	// Who has an address keeps it: first those that the engine gave one, then who was there first.
	slices.SortFunc(claims, func(a, b claim) int {
		if a.attached != b.attached {
			return cmp.Compare(boolInt(b.attached), boolInt(a.attached))
		}
		return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.ID, b.ID))
	})
	gateway := rules.Subnet.Masked().Addr().Next()
	holder := map[netip.Addr]claim{}
	for _, k := range claims {
		h, taken := holder[k.row.IP]
		// The server's own address is that of all that share the server's network.
		if taken && h.network != k.network && k.row.IP != gateway {
			refuse(k.Container, fmt.Errorf("ip %q: is the address of container %s (%s), too", k.row.IP, h.Name, short(h.ID)))
			continue
		}
		if !taken {
			holder[k.row.IP] = k
		}
		k.row = health(k.row, k.Container, probes[k.ID])
		v.In = append(v.In, k.row)
	}
	slices.SortFunc(v.In, func(a, b registry.Container) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(v.Refused, func(a, b Refused) int { return cmp.Compare(a.ID, b.ID) })
	return v
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// claimOf is what c, which runs, is to be registered as. It is not ok for one that
// has nothing to do with the mesh.
func claimOf(c Container, byID map[string]Container, rules Rules) (k claim, ok bool, err error) {
	k = claim{Container: c, network: c.ID}
	addrs := c.Addrs
	if lender, joined := byID[c.Joined]; joined {
		k.network = lender.ID
		if len(addrs) == 0 && lender.Running {
			addrs = lender.Addrs
		}
	}
	ip, attached := addrs[rules.Network]
	k.attached = ip.IsValid()
	label, err := c.labelled()
	switch {
	case err != nil:
		return k, false, err
	case label.IsValid():
		k.attached = label == ip
		ip = label
	case attached && !ip.IsValid():
		return k, false, nil // the engine is about to say which
	case !attached && c.ours():
		return k, false, fmt.Errorf("is not attached to network %s and has no label %s", rules.Network, labelIP)
	case !attached:
		return k, false, nil
	}
	if k.row, err = c.describe(registry.Container{ServerID: rules.ServerID, IP: ip, Health: registry.Healthy}); err == nil {
		err = registry.CheckAddress(k.row, rules.Subnet, rules.Cluster)
	}
	return k, err == nil, err
}

// health is row with what the engine and the probe say of c.
func health(row registry.Container, c Container, p Probe) registry.Container {
	switch c.Health {
	case "starting":
		row.Health = registry.Starting
	case "unhealthy":
		row.Health = registry.Unhealthy
	}
	row.Failures, row.LastCheck = c.Failures, c.CheckedAt
	if row.HealthPort != 0 {
		if p.Target != targetOf(row) {
			p = Probe{Health: registry.Starting} // of what it was before
		}
		if row.Health == registry.Healthy || row.Health == registry.Starting && p.Health == registry.Unhealthy {
			row.Health, row.Failures, row.LastCheck = p.Health, p.Failures, p.At
		}
	}
	if n, err := row.Normalize(); err == nil { // else the time of the check is none
		return n
	}
	row.Failures, row.LastCheck = 0, row.StartedAt
	return row
}

func short(id string) string { return id[:min(len(id), 12)] }

// Reconcile says which rows are to be written and which deleted, so that the rows
// of this server are as view says. rows are this server's, mine are ids of those
// that an engine's containers were registered as, pending those of containers that
// the engine has and has not described yet. Rows of others, which were registered
// by hand, stay. It does no I/O.
func Reconcile(view View, rows iter.Seq[*registry.Container], mine, pending map[string]bool) (put []registry.Container, gone []string) {
	known := map[string]*registry.Container{}
	in := map[string]bool{}
	for _, c := range view.In {
		in[c.ID] = true
	}
	for row := range rows {
		known[row.ID] = row
		if mine[row.ID] && !in[row.ID] && !pending[row.ID] {
			gone = append(gone, row.ID)
		}
	}
	for _, c := range view.In {
		row := known[c.ID]
		if row != nil {
			c = settled(c, *row)
		}
		if row == nil || !slices.Equal(row.Cells(), c.Cells()) || !slices.Equal(row.ExtraCells(), c.ExtraCells()) {
			put = append(put, c)
		}
	}
	slices.Sort(gone)
	return put, gone
}

// settled is c as it is to be written over row: an engine that was restarted begins
// its checks anew and says "starting" of what it had found to be healthy before, and
// so does a probe of ours; and a check that finds the same is no news.
func settled(c, row registry.Container) registry.Container {
	if c.StartedAt.Equal(row.StartedAt) && c.Health == registry.Starting && (row.Health == registry.Healthy || row.Health == registry.Unhealthy) &&
		c.HealthPort == row.HealthPort && c.IP == row.IP {
		c.Health = row.Health
	}
	if c.Health == row.Health {
		c.LastCheck, c.Failures = row.LastCheck, row.Failures
	}
	return c
}
