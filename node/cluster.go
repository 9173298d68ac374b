package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/monitor"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/peerlink"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/agent"
	"github.com/acidtib/jiji-node/registry/cluster"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	claimKey      = "cluster_claimed" // of the file's notes: when this machine took its subnet, and which
	agentRetry    = 30 * time.Second  // after a state directory that the agent could not be prepared in
	tokenLook     = 5 * time.Second   // how often the token's file is read
	agentLook     = 5 * time.Second   // how often the agent is asked how it is,
	agentIdentify = time.Minute       // and what it is
	peerWait      = 3 * time.Second   // for a first session before the agent is started
	peerLook      = 50 * time.Millisecond
	askPeers      = 3                // how many peers are asked what they have
	copiesLook    = 10 * time.Second // how often a peer is asked for copies of this machine
)

// errMoved ends a node whose addresses are others now: it starts again.
var errMoved = errors.New("addresses moved")

// errRejoined ends a node that was removed, and told to take part again: it starts
// again, with nothing that it knew as a member.
var errRejoined = errors.New("rejoined")

// A clusterPart is what runs while the registry is Corrosion.
type clusterPart struct {
	*Node
	mode    control.RegistryMode
	boot    string // of this process
	token   string // of an agent that somebody else runs; "": none, or not readable yet
	store   *cluster.Store
	client  *corrosion.Client
	agent   atomic.Pointer[agent.Agent] // nil: somebody else runs it, or it is not prepared yet
	link    atomic.Pointer[peerlink.Link]
	news    chan struct{} // of servers, or of this machine's own entry
	cache   chan struct{} // of containers, for the file that a start without an agent reads
	peers   atomic.Pointer[[]netip.Addr]
	refused atomic.Pointer[[]registry.Skipped] // servers, and why
	problem atomic.Pointer[string]             // why this machine is not in the registry as it should be; "" if it is
	fault   atomic.Pointer[string]             // why the agent does not run; "" if it does
	health  atomic.Pointer[agentHealth]
	url     string                                     // of the agent's API
	told    atomic.Pointer[map[wgkey.Public]toldAgent] // what peers said of their agents

	claimed time.Time // of this machine's subnet; zero: not yet
	gone    bool      // it was told that this machine is removed
}

type agentHealth struct {
	gaps    int
	sees    map[netip.AddrPort]bool    // gossip addresses of agents that it calls alive
	missing map[wgkey.Public]time.Time // since when it does not see agents that it ought to
	lacks   shortfall
}

// reopenAfter is when a registry that could not be opened is tried again.
const reopenAfter = 10 * time.Second

// openCluster prepares what the mode asks for. A registry that cannot be had is
// no reason not to start, and is tried again.
func (n *Node) openCluster(ctx context.Context, mode control.RegistryMode) {
	n.clusterFault.Store(nil)
	if mode.Mode != control.Corrosion {
		return
	}
	p, err := n.newCluster(ctx, mode)
	if err != nil {
		text := fmt.Sprintf("registry: %v", err)
		n.clusterFault.Store(&text)
		n.log.Error("registry cannot be opened; trying on", "err", err)
		time.AfterFunc(reopenAfter, func() { poke(n.reopened) })
		return
	}
	n.cluster.Store(p)
}

func (n *Node) newCluster(ctx context.Context, mode control.RegistryMode) (*clusterPart, error) {
	p := &clusterPart{Node: n, mode: mode, news: make(chan struct{}, 1), cache: make(chan struct{}, 1)}
	cfg := corrosion.Config{URL: mode.URL, Log: n.log}
	if mode.URL == "" {
		a, err := p.prepareAgent()
		if err != nil { // tried again while the part runs, with the same token once there is one
			n.log.Error("agent cannot be prepared; trying on", "err", err)
			p.setFault(err.Error())
			cfg.URL = "http://" + n.cfg.Corrosion.API.String()
		} else {
			p.agent.Store(a)
			cfg.URL, cfg.Token, cfg.Trust = a.URL(), a.Token(), a.Trust
		}
	} else if mode.TokenFile != "" {
		token, err := readToken(mode.TokenFile)
		if err != nil { // read again while the part runs
			n.log.Error("agent's token cannot be read; trying on", "err", err)
			p.setFault(err.Error())
		}
		p.token, cfg.Token = token, token
	}
	if err := p.open(ctx, cfg); err != nil {
		return nil, err
	}
	return p, nil
}

// open makes the client and the store.
func (p *clusterPart) open(ctx context.Context, cfg corrosion.Config) (err error) {
	n := p.Node
	p.url = cfg.URL
	if p.client, err = corrosion.New(cfg); err != nil {
		return err
	}
	self := n.members.Self()
	if p.claimed, err = n.readClaim(ctx, self); err != nil {
		return err
	}
	boot := make([]byte, 8)
	rand.Read(boot)
	p.boot = hex.EncodeToString(boot)
	cached, versions := n.readCache()
	p.store, err = cluster.Open(ctx, cluster.Config{
		Client: p.client, Local: n.local, ServerID: self.ID, Key: n.key, BootID: p.boot, Version: n.cfg.Version,
		MTU: func() int { return int(n.mtu.Load()) }, Cached: cached, CachedVersions: versions, Peers: p.askPeers,
		Others: func() bool { return len(p.peersOf(n.members.Topology())) > 0 }, Held: true, Wrote: p.wrote,
		Blamed: p.blamed, Log: n.log,
	})
	return err
}

// tooOld returns why the agent, which answers, is older than those that a node can
// rely on; "" if it is not.
func (p *clusterPart) tooOld(ctx context.Context) string {
	if _, err := p.store.Versions(ctx); errors.Is(err, corrosion.ErrNoTable) {
		return fmt.Sprintf("agent at %s has no table crsql_db_versions, so it is from before September 2025, and changes may not reach it: give it a newer version", p.url)
	}
	return ""
}

func (p *clusterPart) prepareAgent() (*agent.Agent, error) {
	self, c := p.members.Self(), p.cfg.Corrosion
	if !p.ipv6 {
		return nil, errors.New("Corrosion gossips on the management address, and this machine has IPv6 disabled: sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0, then restart jiji-node")
	}
	gossip := netip.AddrPortFrom(self.ManagementIP, c.GossipPort)
	return agent.New(agent.Config{
		Bin: c.Bin, Dir: filepath.Join(p.cfg.StateDir, agentDir), Socket: p.agentSocket(),
		Gossip: gossip, Metrics: gossip, API: c.API, Bootstrap: p.bootstrap(),
		Schema: map[string]string{"jiji.sql": registry.Schema}, Log: p.log, Holder: host.Holder, Listener: host.Listener,
	})
}

// bootstrap are the gossip addresses of the other members.
func (p *clusterPart) bootstrap() []netip.AddrPort {
	var at []netip.AddrPort
	for _, a := range p.peersOf(p.members.Topology()) {
		at = append(at, netip.AddrPortFrom(a, p.cfg.Corrosion.GossipPort))
	}
	return at
}

// peersOf are the management addresses of the other members.
func (p *clusterPart) peersOf(t topology.Topology) []netip.Addr {
	var at []netip.Addr
	for _, s := range t.Servers {
		if s.RemovedAt.IsZero() && s.Key != p.key {
			at = append(at, s.ManagementIP)
		}
	}
	return at
}

// setPeers tells the parts who the members are now.
func (p *clusterPart) setPeers(t topology.Topology) {
	peers := p.peersOf(t)
	was := p.peers.Swap(&peers)
	if was != nil && slices.Equal(*was, peers) {
		return
	}
	if a := p.agent.Load(); a != nil {
		a.SetBootstrap(p.bootstrap())
	}
	poke(p.news)
}

// run runs the part until ctx is done. The agent is stopped last.
func (p *clusterPart) run(ctx context.Context) error {
	agentCtx, stopAgent := context.WithCancel(context.WithoutCancel(ctx))
	var ended sync.WaitGroup
	ended.Go(func() { p.runAgent(agentCtx) })
	defer func() {
		stopAgent()
		ended.Wait()
		p.client.Close()
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.store.Run(ctx) })
	g.Go(func() error { return p.serversLoop(ctx) })
	g.Go(func() error { return p.cacheLoop(ctx) })
	g.Go(func() error { return p.healthLoop(ctx) })
	g.Go(func() error { return p.copiesLoop(ctx) })
	g.Go(func() error { return p.versionsLoop(ctx) })
	g.Go(func() error { return p.reunionLoop(ctx) })
	g.Go(func() error {
		p.runLink(ctx)
		return nil
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-p.store.Changed():
				poke(p.namesChanged)
				poke(p.cache)
			}
		}
	})
	return g.Wait()
}

func (p *clusterPart) runAgent(ctx context.Context) {
	if p.mode.URL != "" {
		p.watchToken(ctx)
		return
	}
	p.awaitPeer(ctx)
	for a := p.agent.Load(); ; a = p.agent.Load() {
		if a != nil {
			p.setFault("")
			a.SetBootstrap(p.bootstrap())
			if err := a.Run(ctx); err != nil {
				p.log.Error("agent ended", "err", err)
				p.setFault(err.Error())
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(agentRetry):
		}
		if a != nil {
			continue
		}
		a, err := p.prepareAgent()
		if err != nil {
			p.setFault(err.Error())
			continue
		}
		// The client has no token for this agent: the part is made anew.
		p.log.Info("agent prepared")
		p.setFault("")
		p.agent.Store(a)
		poke(p.reopened)
		return
	}
}

// watchToken has the part made anew when the file has another token: the client
// keeps the one that it was made with.
func (p *clusterPart) watchToken(ctx context.Context) {
	if p.mode.TokenFile == "" {
		return
	}
	tick := time.NewTicker(tokenLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		token, err := readToken(p.mode.TokenFile)
		if err == nil && token != p.token {
			p.log.Info("agent's token read", "file", p.mode.TokenFile)
			poke(p.reopened)
			return
		}
	}
}

// awaitPeer waits a little for the first session: what an agent says to its
// peers before is lost, and said again seconds later only.
func (p *clusterPart) awaitPeer(ctx context.Context) {
	for range peerWait / peerLook {
		peers := p.members.Topology().Servers
		if len(peers) < 2 || slices.ContainsFunc(peers, func(s topology.Server) bool { return p.live(s.Key) }) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(peerLook):
		}
	}
}

// blamed reports whether the log was told why the agent is of no use.
func (p *clusterPart) blamed() bool {
	fault, a := p.fault.Load(), p.agent.Load()
	return fault != nil && *fault != "" || a != nil && (a.Complaint() != "" || a.State().LastExit != "") // one that is started again and again runs now and then
}

func (p *clusterPart) setFault(text string) { p.fault.Store(&text) }

// runLink serves and tells peers, once the address is there.
func (p *clusterPart) runLink(ctx context.Context) {
	if !p.ipv6 {
		return
	}
	for failed := false; ; failed = true {
		l, err := peerlink.Listen(peerlink.Config{
			Addr:  netip.AddrPortFrom(p.members.Self().ManagementIP, p.cfg.Corrosion.ControlPort),
			Peers: func() []netip.Addr { return *p.peers.Load() },
			Heard: func(_ netip.Addr, n peerlink.Notice) { p.store.Heard(n.Writer, n.Version) },
			Versions: func(ctx context.Context) (map[[16]byte]int64, error) {
				return p.store.Versions(ctx)
			},
			Agent: p.ownAgent,
			Log:   p.log,
		})
		if err == nil {
			p.link.Store(l)
			err = l.Run(ctx)
			l.Close()
			p.link.Store(nil)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failed {
			p.log.Warn("peers are not told of writes; they notice by themselves, later", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(agentRetry):
		}
	}
}

func (p *clusterPart) wrote(writer [16]byte, version int64) {
	if l := p.link.Load(); l != nil {
		l.Tell(peerlink.Notice{Writer: writer, Version: version})
	}
}

// askPeers asks peers that are up what their registries have.
func (p *clusterPart) askPeers(ctx context.Context) []cluster.Versions {
	l := p.link.Load()
	if l == nil {
		return nil
	}
	states := p.monitor.Peers()
	var mu sync.Mutex
	var answers []cluster.Versions
	var asking sync.WaitGroup
	asked := 0
	for _, s := range p.members.Topology().Servers {
		if states[s.Key].State != monitor.Up || asked == askPeers || !s.RemovedAt.IsZero() {
			continue
		}
		asked++
		asking.Go(func() {
			if v, err := l.Versions(ctx, s.ManagementIP); err == nil {
				mu.Lock()
				answers = append(answers, v)
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	return answers
}

// copiesLoop asks one peer after another which processes call from this machine's
// address. One that called after this one began to is a copy: a process of before a
// restart calls no more.
func (p *clusterPart) copiesLoop(ctx context.Context) error {
	first := map[netip.Addr]time.Time{} // when peers answered first
	tick := time.NewTicker(copiesLook)
	defer tick.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		peers := slices.DeleteFunc(slices.Clone(p.members.Topology().Servers), func(s topology.Server) bool {
			return s.Key == p.key || !s.RemovedAt.IsZero()
		})
		l := p.link.Load()
		if l == nil || len(peers) == 0 {
			continue
		}
		peer := peers[turn%min(len(peers), askPeers)].ManagementIP
		boots, err := l.Boots(ctx, peer, p.boot)
		if err != nil {
			continue // another one is asked next
		}
		for _, b := range boots {
			if began := first[peer]; !began.IsZero() && b.Age < time.Since(began) {
				p.store.Duplicate(b.ID)
			}
		}
		if first[peer].IsZero() {
			first[peer] = time.Now()
		}
	}
}

// live reports whether there is a session with a peer.
func (p *clusterPart) live(key wgkey.Public) bool { return p.monitor.Peers()[key].State == monitor.Up }

// serversLoop brings what the registry says of servers into the topology, and
// this machine into the registry.
func (p *clusterPart) serversLoop(ctx context.Context) error {
	var again <-chan time.Time // after a problem, which others than the registry may solve
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-p.news:
		case <-p.store.ServersChanged():
		}
		problem := ""
		err := p.settleServers(ctx)
		switch {
		case errors.Is(err, errMoved):
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil:
			problem = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if again = nil; problem != "" {
			again = time.After(convergeRetry)
		}
		if was := p.problem.Swap(&problem); problem != "" && (was == nil || *was != problem) {
			p.log.Error("servers of the registry", "err", problem)
		}
	}
}

func (p *clusterPart) settleServers(ctx context.Context) error {
	view, topo := p.store.Servers(), p.members.Topology()
	if !view.Complete {
		return nil
	}
	if err := sameCluster(view.Metadata, topo); err != nil {
		return err
	}
	rows := make([]membership.Row, len(view.List))
	for i, s := range view.List {
		rows[i] = membership.Row{Server: serverOfRow(s), ClaimedAt: s.ClaimedAt}
	}
	taken, err := p.members.TakeRows(rows, p.live, p.claimed)
	p.tellRefused(taken, view.Skipped)
	if err != nil {
		return err
	}
	self := p.members.Self()
	switch {
	case !self.RemovedAt.IsZero():
		if !p.gone {
			p.gone = true
			p.log.Error("this server was removed from the mesh; it has no peers and writes nothing to the registry any more", "id", self.ID, "removed_at", self.RemovedAt)
		}
		return nil
	case !p.store.State().CaughtUp:
		return nil
	case taken.Removed:
		return fmt.Errorf("this server was removed at %s, and no member has added it again: run `jiji-node server add` on one, with what `jiji-node init` prints here", self.RejoinedAfter.Format(time.RFC3339))
	case p.claimed.IsZero():
		return p.claim(ctx, rows, taken)
	case taken.LostTo != "":
		err = p.yield(ctx, taken.LostTo)
	}
	if !errors.Is(err, errMoved) {
		p.store.SetSelf(p.rowOf(p.members.Self()))
	}
	return err
}

// sameCluster refuses the registry of another cluster.
func sameCluster(metadata map[string]string, t topology.Topology) error {
	if c := metadata["cluster_cidr"]; c != "" && c != t.Cluster.String() {
		return fmt.Errorf("the registry's cluster CIDR is %s, this machine's %s: it is another cluster's registry, or this machine has to begin anew with --cluster-cidr %[1]s", c, t.Cluster)
	}
	if d := metadata["service_domain"]; d != "" && d != t.Domain {
		return fmt.Errorf("the registry's service domain is %q, this machine's %q: it is another cluster's registry, or this machine has to begin anew with --domain %[1]s", d, t.Domain)
	}
	return nil
}

func serverOfRow(s registry.Server) topology.Server {
	return topology.Server{ID: s.ID, Hostname: s.Hostname, Subnet: s.Subnet, WireGuardIP: s.WireGuardIP, Key: s.Key,
		ManagementIP: s.ManagementIP, Endpoints: s.Endpoints, RemovedAt: s.RemovedAt}
}

func (p *clusterPart) rowOf(s topology.Server) registry.Server {
	return registry.Server{ID: s.ID, Hostname: s.Hostname, Subnet: s.Subnet, WireGuardIP: s.WireGuardIP, Key: s.Key,
		ManagementIP: s.ManagementIP, Endpoints: s.Endpoints, LastSeen: time.Now(), ClaimedAt: p.claimed}
}

// tellRefused logs each refusal once.
func (p *clusterPart) tellRefused(t membership.Taken, skipped []registry.Skipped) {
	refused := slices.Clone(skipped)
	for _, r := range t.Refused {
		refused = append(refused, registry.Skipped{Table: "servers", Key: r.ID, Reason: r.Reason})
	}
	was := p.refused.Swap(&refused)
	for _, r := range refused {
		if was == nil || !slices.Contains(*was, r) {
			p.log.Warn("registry row refused", "table", r.Table, "key", r.Key, "reason", r.Reason)
		}
	}
	for _, s := range t.Replaced {
		p.log.Error("a server has another key now: was it set up anew?", "id", s.ID, "former_key", s.Key)
	}
}

// claim puts this machine into the registry for the first time: as the row that
// was inserted on its behalf or that it had before says, else as it is, with
// another id or subnet where others have them.
func (p *clusterPart) claim(ctx context.Context, rows []membership.Row, taken membership.Taken) (err error) {
	self := p.members.Self()
	id, hostname, subnet := self.ID, self.Hostname, self.Subnet
	if !taken.Own.Key.IsZero() {
		id, hostname, subnet = taken.Own.ID, taken.Own.Hostname, taken.Own.Subnet
		if _, readOnly := p.members.Source(); !readOnly && len(self.Endpoints) == 0 && len(taken.Own.Endpoints) > 0 {
			if _, err := p.members.SetEntry(membership.Entry{Endpoints: taken.Own.Endpoints}, true); err != nil {
				return err
			}
		}
	} else if !taken.IDOf.IsZero() {
		var ids []string
		for _, r := range rows {
			ids = append(ids, r.ID)
		}
		if id, err = p.members.FreeID(hostname, ids...); err != nil {
			return err
		}
		p.log.Warn("another server has this machine's id; taking the next", "id", self.ID, "its_key", taken.IDOf, "new_id", id)
	}
	if taken.LostTo != "" {
		if subnet, err = p.members.FreeSubnet(); err != nil {
			return err
		}
		p.log.Warn("subnet belongs to another server; taking a free one", "server", taken.LostTo, "new_subnet", subnet)
	}
	if subnet != self.Subnet {
		if err := p.unattached(subnet, taken.LostTo); err != nil {
			return err
		}
	}
	if err := p.take(ctx, id, hostname, subnet); err != nil {
		return err
	}
	return p.introduce(ctx, rows)
}

// yield takes another subnet in place of the one that another server keeps.
func (p *clusterPart) yield(ctx context.Context, winner string) error {
	self := p.members.Self()
	subnet, err := p.members.FreeSubnet()
	if err != nil {
		return err
	}
	if err := p.unattached(subnet, winner); err != nil {
		return err
	}
	p.log.Warn("subnet left to the server that had it before", "subnet", self.Subnet, "server", winner, "new_subnet", subnet)
	return p.take(ctx, self.ID, self.Hostname, subnet)
}

// unattached fails if containers have addresses of this machine's subnet.
func (p *clusterPart) unattached(subnet netip.Prefix, winner string) error {
	self := p.members.Self()
	for c := range p.local.Snapshot().All() {
		if !c.External && self.Subnet.Contains(c.IP) {
			if winner == "" {
				winner = "another server"
			}
			return fmt.Errorf("subnet %s: belongs to %s, and container %s is registered in it here: deregister this server's containers, and it takes %s by itself", self.Subnet, winner, c.ID, subnet)
		}
	}
	return nil
}

// take makes id, host name and subnet this machine's own, and returns errMoved
// if its addresses are others then. Killed half way, it is done again: the note
// that it is done comes last.
func (p *clusterPart) take(ctx context.Context, id, hostname string, subnet netip.Prefix) error {
	p.moving.Store(true) // what follows from the new entry waits for the new start
	moved, err := p.members.Adopt(id, hostname, subnet)
	if err != nil || !moved {
		p.moving.Store(false)
	}
	if err != nil {
		return err
	}
	now := time.UnixMilli(time.Now().UnixMilli())
	err = p.local.SetMeta(ctx, claimKey, claimText(now, subnet, p.members.Self().RejoinedAfter))
	if moved {
		p.log.Info("addresses taken from the registry", "id", id, "subnet", subnet)
		return errMoved
	}
	if err != nil {
		return err
	}
	p.claimed = now
	p.store.SetSelf(p.rowOf(p.members.Self()))
	return nil
}

// introduce writes what only a first member knows: the cluster's metadata, and
// servers that the registry has no row of.
func (p *clusterPart) introduce(ctx context.Context, rows []membership.Row) error {
	topo := p.members.Topology()
	err := p.store.SetMetadata(ctx, map[string]string{
		"cluster_cidr": topo.Cluster.String(), "service_domain": topo.Domain, "discovery": "corrosion",
		"created_at": topo.CreatedAt.UTC().Format(time.RFC3339),
	})
	if err != nil {
		return err
	}
	for _, s := range topo.Servers {
		there := slices.ContainsFunc(rows, func(r membership.Row) bool { return r.Key == s.Key || strings.EqualFold(r.ID, s.ID) })
		if there || s.Key == p.key || !s.RemovedAt.IsZero() || !s.Subnet.IsValid() {
			continue
		}
		row := p.rowOf(s)
		row.LastSeen, row.ClaimedAt = time.Time{}, time.Time{}
		if err := p.store.AddServer(ctx, row); err != nil {
			return err
		}
	}
	return nil
}

// claimText is the note of a claim: when, of which subnet, and after which removal
// that this machine set aside, if any. Times are Unix ms of different clocks.
func claimText(at time.Time, subnet netip.Prefix, rejoined time.Time) string {
	text := fmt.Sprintf("%d %s", at.UnixMilli(), subnet)
	if !rejoined.IsZero() {
		text += fmt.Sprintf(" %d", rejoined.UnixMilli())
	}
	return text
}

// readClaim returns when this machine took its subnet, zero if it has not, or did as
// the member that it was before it was removed.
func (n *Node) readClaim(ctx context.Context, self topology.Server) (time.Time, error) {
	text, err := n.local.Meta(ctx, claimKey)
	if err != nil || text == "" {
		return time.Time{}, err
	}
	ms, rest, _ := strings.Cut(text, " ")
	at, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("registry file: note %s is %q, want milliseconds and a subnet", claimKey, text)
	}
	of, rejoined, _ := strings.Cut(rest, " ")
	want := ""
	if !self.RejoinedAfter.IsZero() {
		want = strconv.FormatInt(self.RejoinedAfter.UnixMilli(), 10)
	}
	switch {
	case rejoined != want:
		return time.Time{}, nil
	case of != self.Subnet.String(): // it was given another since: it is new to that
		return time.UnixMilli(time.Now().UnixMilli()), nil
	}
	return time.UnixMilli(at), nil
}

// agentMembers returns the gossip addresses of the other agents that the agent has in
// its cluster: as it says now or, of one that cannot be asked so, as it noted within
// the last minute.
func (p *clusterPart) agentMembers(ctx context.Context) (map[netip.AddrPort]bool, error) {
	sees := map[netip.AddrPort]bool{}
	if a := p.agent.Load(); a != nil {
		if list, err := a.Members(ctx); err == nil {
			for _, at := range list {
				sees[at] = true
			}
			return sees, nil
		}
	}
	err := p.client.Query(ctx, corrosion.SQL("SELECT foca_state, address FROM __corro_members"), func(cells []any) error {
		var state struct{ State string }
		if len(cells) != 2 {
			return errors.New("want two cells")
		}
		if text, ok := cells[0].(string); ok && json.Unmarshal([]byte(text), &state) == nil && state.State == "Alive" {
			address, _ := cells[1].(string)
			at, err := netip.ParseAddrPort(address)
			sees[at] = err == nil
		}
		return nil
	})
	delete(sees, netip.AddrPort{}) // what is no address
	return sees, err
}

// healthLoop asks the agent how it is, for status.
func (p *clusterPart) healthLoop(ctx context.Context) error {
	tick := time.NewTicker(agentLook)
	defer tick.Stop()
	old, asked := "", time.Time{} // what was found of its version, and when
	for {
		ask, cancel := context.WithTimeout(ctx, agentLook)
		h := &agentHealth{}
		var err error
		if h.sees, err = p.agentMembers(ask); err == nil {
			err = p.client.Query(ask, corrosion.SQL(`SELECT coalesce(sum("end" - start + 1), 0) FROM __corro_bookkeeping_gaps`), func(cells []any) error {
				if len(cells) != 1 {
					return errors.New("want one cell")
				}
				gaps, _ := cells[0].(int64)
				h.gaps = int(gaps)
				return nil
			})
		}
		if err == nil { // it answers: is it what is wanted?
			if time.Since(asked) >= agentIdentify {
				was := old
				if old, asked = p.tooOld(ask), time.Now(); old != "" && was == "" {
					p.log.Warn("agent is too old", "err", old)
				}
			}
			fault := old
			if a := p.agent.Load(); a != nil && !p.store.State().Up {
				if err := a.Ready(ask); err != nil && ctx.Err() == nil {
					fault = err.Error()
				}
			}
			if p.mode.TokenFile == "" || p.token != "" { // else that is the fault
				p.setFault(fault)
			}
		}
		cancel()
		if err != nil {
			h, asked = nil, time.Time{} // the store says why; what answers next may be another agent
		} else {
			was, now := agentHealth{}, time.Now()
			if last := p.health.Load(); last != nil {
				was = *last
			}
			h.missing, h.lacks = p.missing(h.sees, was.missing, now), was.lacks.next(h.gaps, now)
		}
		p.health.Store(h)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
