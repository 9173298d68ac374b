package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/tunnel"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// An api answers the control socket.
type api struct{ *Node }

func (n *Node) api() control.Node { return api{n} }

func (n api) Status() control.Status {
	topo, self := n.members.Topology(), n.members.Self()
	source, readOnly := n.members.Source()
	stats, snapshot := n.dns.Stats(), n.store().Snapshot()
	s := control.Status{
		Version: n.cfg.Version, PID: os.Getpid(), Mode: "tun", State: "ready", StartedAt: n.started, StateDir: n.cfg.StateDir,
		Server: ServerOf(self), Cluster: topo.Cluster, Domain: topo.Domain,
		Interface: control.Interface{Name: n.cfg.Interface, MTU: int(n.mtu.Load()), ListenPort: n.cfg.ListenPort},
		DNS:       control.DNS{Listen: n.dns.Addrs(), Upstreams: append([]netip.AddrPort{}, n.upstreams()...), Names: int(n.names.Load()), Queries: stats.Queries, Refused: stats.Refused, Host: n.hostDNSStatus()},
		Registry:  n.registryStatus(snapshot),
		Engine:    n.engine.status(),
		Topology:  control.TopologyState{Source: source, ReadOnly: readOnly, UpdatedAt: topo.UpdatedAt, Error: n.members.Problem()},
		Warnings:  n.warnings(),
		Peers:     n.peers(topo),
	}
	if !self.RemovedAt.IsZero() {
		s.State = "removed"
		s.Warnings = append(s.Warnings, "this server was removed from the mesh at "+self.RemovedAt.Format(time.RFC3339)+": it has no peers; to take part again, run `jiji-node server add` with its entry on a member, and with that one's entry here")
	}
	if n.tunnel.Load() == nil {
		s.State = "starting"
	}
	if s.Topology.Error != "" {
		s.Warnings = append(s.Warnings, strings.Split(s.Topology.Error, "\n")...)
	}
	if s.Registry.Error != "" {
		s.Warnings = append(s.Warnings, s.Registry.Error)
	}
	if s.Engine.Problem != "" {
		s.Warnings = append(s.Warnings, "containers: "+s.Engine.Problem)
	}
	if s.Engine.Restart != "" {
		s.Warnings = append(s.Warnings, fmt.Sprintf("containers: %s was started before it was given the mesh's name server, so that its containers do not find names: %s", s.Engine.Kind, s.Engine.Restart))
	}
	for _, line := range s.Engine.Notes {
		s.Warnings = append(s.Warnings, "containers: "+line)
	}
	for _, r := range s.Engine.Refused {
		s.Warnings = append(s.Warnings, fmt.Sprintf("container %s (%s) is not in the mesh: %s", r.Name, r.ID[:min(len(r.ID), 12)], r.Reason))
	}
	if c := n.cluster.Load(); c != nil {
		s.Warnings = append(s.Warnings, c.agentsStatus(&s.Registry)...)
	}
	for _, r := range s.Registry.Skipped {
		s.Warnings = append(s.Warnings, fmt.Sprintf("registry: row %s of %s skipped: %s", r.Key, r.Table, r.Reason))
	}
	return s
}

// peers joins what topology, device and monitor know of each other server.
func (n api) peers(topo topology.Topology) []control.Peer {
	device := map[wgkey.Public]tunnel.PeerStatus{}
	if t := n.tunnel.Load(); t != nil {
		seen, _ := t.Peers() // none of a device that just died
		for _, p := range seen {
			device[p.Key] = p
		}
	}
	states, times := n.monitor.Peers(), n.times()
	out := []control.Peer{}
	if self, _ := topo.Self(n.key); !self.RemovedAt.IsZero() {
		return out
	}
	for _, s := range members(topo) {
		if s.Key == n.key {
			continue
		}
		d := device[s.Key]
		p := control.Peer{Server: ServerOf(s), State: "unknown", Since: n.started, Endpoint: d.Endpoint, RTT: control.Duration(times[s.WireGuardIP]), RxBytes: d.RxBytes, TxBytes: d.TxBytes, Changes: []control.PathChange{}}
		if !d.LastHandshake.IsZero() {
			p.LastHandshake = &d.LastHandshake
		}
		if m, ok := states[s.Key]; ok {
			p.State, p.Since = m.State.String(), m.Since
			for _, e := range m.Changes {
				p.Changes = append(p.Changes, control.PathChange{At: e.At, State: e.To.String(), Old: e.Old, New: e.New, Reason: e.Reason, Outage: control.Duration(e.Outage)})
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b control.Peer) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// peerName is what logs call a peer: its id, or its key when it has none.
func (n *Node) peerName(key wgkey.Public) string {
	for _, s := range n.members.Topology().Servers {
		if s.Key == key {
			return s.ID
		}
	}
	return key.String()
}

// ServerOf is s in the API's terms.
func ServerOf(s topology.Server) control.Server {
	c := control.Server{
		ID: s.ID, Hostname: s.Hostname, Subnet: s.Subnet, WireGuardIP: s.WireGuardIP,
		Key: s.Key, ManagementIP: s.ManagementIP, Endpoints: append([]netip.AddrPort{}, s.Endpoints...),
	}
	if !s.RemovedAt.IsZero() {
		c.RemovedAt = &s.RemovedAt
	}
	return c
}

func (n api) Settings() []control.Setting { return n.cfg.Settings }

func (n api) Servers() []control.Server { return ServersOf(n.members.Topology()) }

// ServersOf lists the topology in order of subnet, tombstones included.
func ServersOf(t topology.Topology) []control.Server {
	out := make([]control.Server, 0, len(t.Servers))
	for _, s := range t.Servers {
		out = append(out, ServerOf(s))
	}
	slices.SortFunc(out, func(a, b control.Server) int {
		if c := a.Subnet.Addr().Compare(b.Subnet.Addr()); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

func (n api) Init(r control.InitRequest) (control.Added, error) {
	return InitEntry(n.members, r, true)
}

// InitEntry changes this machine's own entry; running says whether a node
// carries traffic on it.
func InitEntry(m *membership.Membership, r control.InitRequest, running bool) (control.Added, error) {
	self, err := m.SetEntry(membership.Entry{Name: r.Name, Index: r.Index, Endpoints: r.Endpoints}, running)
	if err != nil {
		return control.Added{}, err
	}
	return control.Added{Server: ServerOf(self), Entry: string(topology.Entry(m.Topology(), self))}, nil
}

func (n api) AddServers(ctx context.Context, entries []byte, source string) ([]control.Added, error) {
	c := n.cluster.Load()
	if c == nil {
		return AddEntries(n.members, entries, source, false)
	}
	if !n.members.Self().RemovedAt.IsZero() {
		added, err := AddEntries(n.members, entries, source, false)
		if err == nil {
			poke(n.rejoined)
		}
		return added, err
	}
	if state := c.store.State(); !state.Up || !state.CaughtUp {
		claimed, err := n.local.Meta(ctx, claimKey)
		switch {
		case err != nil:
			return nil, err
		case claimed == "": // a newcomer, which learns of its first peers so, and introduces them when it joins
			return AddEntries(n.members, entries, source, false)
		}
		return nil, errors.New("the registry is down or catching up, and without it the others do not learn of the server: try again when `jiji-node status` says that it is up")
	}
	added, err := AddEntries(n.members, entries, source, true)
	if err != nil {
		return nil, err
	}
	for _, a := range added {
		if a.Key == n.key {
			continue
		}
		row := registry.Server{ID: a.ID, Hostname: a.Hostname, Subnet: a.Subnet, WireGuardIP: a.WireGuardIP, Key: a.Key,
			ManagementIP: a.ManagementIP, Endpoints: a.Endpoints, ClaimedAt: time.Now()}
		if err := c.store.AddServer(ctx, row); err != nil {
			return nil, fmt.Errorf("added here, but not in the registry: %w: say it again", err)
		}
	}
	return added, nil
}

// AddEntries puts a file's entries into the topology, all or none. If free, a
// newcomer whose subnet is taken gets another, which its node learns of.
func AddEntries(m *membership.Membership, entries []byte, source string, free bool) ([]control.Added, error) {
	added, err := m.Add(source, entries, free)
	if err != nil {
		return nil, err
	}
	out := make([]control.Added, 0, len(added))
	for _, a := range added {
		c := control.Added{Server: ServerOf(a.Server), Entry: string(topology.Entry(m.Topology(), a.Server)), Note: "unchanged"}
		switch {
		case a.Changed && a.Allocated && free && a.Renamed:
			c.Note = fmt.Sprintf("added under another id, its own was taken; its node takes that and subnet %s when it joins", a.Server.Subnet)
		case a.Changed && a.Allocated && free:
			c.Note = fmt.Sprintf("added; its node takes subnet %s when it joins", a.Server.Subnet)
		case a.Changed && a.Allocated:
			c.Note = fmt.Sprintf("added; it came without a subnet: on it, run `jiji-node init --index %d`", index(m, a.Server))
		case a.Changed && a.Renamed:
			c.Note = "added under another id, its own was taken: `jiji-node init --name` on it chooses one"
		case a.Changed:
			c.Note = "added"
		}
		out = append(out, c)
	}
	return out, nil
}

// index is the number of s's subnet.
func index(m *membership.Membership, s topology.Server) int {
	i, err := ipplan.Index(m.Topology().Cluster, s.Subnet)
	if err != nil { // impossible: the topology was checked
		panic(err)
	}
	return i
}

func (n api) RemoveServer(ctx context.Context, id string, force bool) (control.Server, error) {
	if self := n.members.Self(); strings.EqualFold(self.ID, id) && !force {
		return control.Server{}, usage.Errorf("%s is this machine: removing it takes it out of the mesh; --force does it", self.ID)
	}
	for _, p := range n.peers(n.members.Topology()) {
		if strings.EqualFold(p.ID, id) && p.State == "up" && !force {
			return control.Server{}, usage.Errorf("%s is up: removing it cuts it off; stop its node first (for 30 s after that it still counts as up), or use --force", p.ID)
		}
	}
	if c := n.cluster.Load(); c != nil {
		if !c.store.State().Up {
			return control.Server{}, fmt.Errorf("the registry is down, and without it the others do not learn of the removal: try again when `jiji-node status` says that it is up")
		}
		known := n.members.Topology().Servers
		if i := slices.IndexFunc(known, func(s topology.Server) bool { return strings.EqualFold(s.ID, id) }); i >= 0 {
			if err := c.store.RemoveServer(ctx, known[i].ID, time.Now()); err != nil {
				return control.Server{}, err
			}
		}
	}
	s, err := n.members.Remove(id)
	return ServerOf(s), err
}

func (n api) Containers() []control.Container {
	out := []control.Container{}
	for c := range n.containers() {
		out = append(out, containerOf(*c))
	}
	return out
}

func containerOf(c registry.Container) control.Container {
	v := control.Container{
		ID: c.ID, Service: c.Service, Project: c.Project, Instance: c.Instance, Name: c.Name, ServerID: c.ServerID,
		IP: c.IP, Health: string(c.Health), StartedAt: c.StartedAt, Failures: c.Failures, HealthPort: c.HealthPort,
		Ports: []string{}, External: c.External,
	}
	if !c.LastCheck.IsZero() {
		v.LastCheck = &c.LastCheck
	}
	for _, p := range c.Ports {
		v.Ports = append(v.Ports, fmt.Sprintf("%d/%s", p.Number, p.Proto))
	}
	return v
}

func (n api) Register(ctx context.Context, v control.Container) (control.Container, error) {
	self := n.members.Self()
	c := registry.Container{
		ID: v.ID, Service: v.Service, Project: v.Project, Instance: v.Instance, Name: v.Name, ServerID: self.ID,
		IP: v.IP, Health: registry.Health(v.Health), HealthPort: v.HealthPort, External: v.External,
		StartedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	if c.ID == "" {
		c.ID = handID(self.Key, c.Service, c.IP)
	}
	if c.Health == "" {
		c.Health = registry.Healthy
	}
	for _, p := range v.Ports {
		port, err := parsePort(p)
		if err != nil {
			return v, usage.Mark(err)
		}
		c.Ports = append(c.Ports, port)
	}
	for known := range n.containers() {
		if known.ID == c.ID { // the same container said again: it did not start again
			c.StartedAt = known.StartedAt
		}
	}
	c, err := c.Normalize()
	if err == nil {
		err = registry.CheckAddress(c, self.Subnet, n.members.Topology().Cluster)
	}
	if err == nil {
		err = n.store().Register(ctx, c)
	}
	if err != nil {
		return v, blame(err)
	}
	return containerOf(c), nil
}

// handID is the id of what no engine runs: stable, so that saying it again
// changes the row instead of adding one.
func handID(server wgkey.Public, service string, ip netip.Addr) string {
	sum := sha256.Sum256([]byte("by hand\n" + server.String() + "\n" + strings.ToLower(service) + "\n" + ip.String()))
	return hex.EncodeToString(sum[:])
}

// parsePort reads "80", "80/tcp" or "53/udp".
func parsePort(text string) (registry.Port, error) {
	number, proto, ok := strings.Cut(text, "/")
	if !ok {
		proto = "tcp"
	}
	v, err := strconv.ParseUint(number, 10, 16)
	if err != nil || v == 0 || proto != "tcp" && proto != "udp" {
		return registry.Port{}, fmt.Errorf("port %q: want NUMBER, NUMBER/tcp or NUMBER/udp, 1 to 65535", text)
	}
	return registry.Port{Number: uint16(v), Proto: proto}, nil
}

// blame marks the registry's errors that the request is to blame for.
func blame(err error) error {
	var invalid *registry.InvalidError
	var owner *registry.OwnerError
	if errors.As(err, &invalid) || errors.As(err, &owner) || errors.Is(err, registry.ErrNotFound) {
		return usage.Mark(err)
	}
	return err
}

func (n api) SetHealth(ctx context.Context, r control.HealthRequest) error {
	return blame(n.store().SetHealth(ctx, r.ID, registry.Health(r.Health), time.Now().UTC().Truncate(time.Millisecond)))
}

func (n api) Deregister(ctx context.Context, ids []string) (int, error) {
	removed, err := n.store().Deregister(ctx, ids...)
	return removed, blame(err)
}

func (n api) Cleanup(ctx context.Context, r control.CleanupRequest) ([]control.Container, error) {
	stale := staleContainers(n.containers(), n.members.Self().ID, r, time.Now())
	out, ids := []control.Container{}, []string{}
	for _, c := range stale {
		out, ids = append(out, containerOf(c)), append(ids, c.ID)
	}
	if r.DryRun || len(ids) == 0 {
		return out, nil
	}
	_, err := n.store().Deregister(ctx, ids...)
	return out, err
}

// staleContainers are those of server that have been other than healthy for as
// long as r asks.
func staleContainers(all iter.Seq[*registry.Container], server string, r control.CleanupRequest, now time.Time) []registry.Container {
	var stale []registry.Container
	for c := range all {
		last := c.LastCheck
		if last.IsZero() {
			last = c.StartedAt
		}
		if c.ServerID == server && c.Health != registry.Healthy &&
			(r.Service == "" || strings.EqualFold(r.Service, c.Service)) && now.Sub(last) >= time.Duration(r.OlderThan) {
			stale = append(stale, *c)
		}
	}
	return stale
}
