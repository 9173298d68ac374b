package node

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/acidtib/jiji-node/monitor"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/peerlink"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	versionsLook   = 5 * time.Second  // how often peers are asked which agent they use
	versionsAtOnce = 8                // how many are asked then, in turn
	versionKept    = 10 * time.Minute // an answer; with 256 servers each is asked every three minutes
	unseenAfter    = 2 * time.Minute  // agents list who is there anew every minute
	namedAtMost    = 5                // servers or versions of one line
)

// A toldAgent is what a peer said of its agent.
type toldAgent struct {
	peerlink.Agent
	at time.Time
}

// An agentOf is the agent of one server as known here.
type agentOf struct {
	server  string // its id
	version string // "": not known
	seen    bool   // our agent sees it
	unseen  bool   // it ought to, and has not for unseenAfter
}

// A shortfall is what the agent knows of and does not get.
type shortfall struct {
	versions int       // the fewest that it lacked; 0: it lacks none
	since    time.Time // when it came to lack so few
}

// next is s after the agent was found to lack so many versions.
func (s shortfall) next(lacks int, now time.Time) shortfall {
	switch {
	case lacks == 0:
		return shortfall{}
	case s.versions == 0 || lacks < s.versions:
		return shortfall{lacks, now}
	}
	return s
}

// stuck is one line about versions that do not come; "" if there are none.
func (s shortfall) stuck(noTables []string, now time.Time) string {
	if s.versions == 0 || now.Sub(s.since) < unseenAfter {
		return ""
	}
	do := "what came before tables were added to it waits until it is started again"
	if len(noTables) > 0 {
		do = "it lacks " + listed(noTables, ", ") + ": give it the schema of `jiji-node registry schema`, and start it again"
	}
	return fmt.Sprintf("the agent has got none of the versions of others that it lacks (%d) since %s: %s", s.versions, s.since.Format(time.RFC3339), do)
}

// ownAgent is what peers are told.
func (p *clusterPart) ownAgent() peerlink.Agent {
	a := p.agent.Load()
	if a == nil {
		return peerlink.Agent{}
	}
	st := a.State()
	return peerlink.Agent{Version: st.Version, Managed: st.Running}
}

// versionsLoop asks peers which agents they use, a few at a time: agents of
// different versions may not understand each other, and do not say so.
func (p *clusterPart) versionsLoop(ctx context.Context) error {
	tick := time.NewTicker(versionsLook)
	defer tick.Stop()
	told := ""
	for turn := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		l := p.link.Load()
		if l == nil {
			continue
		}
		states := p.monitor.Peers()
		up := slices.DeleteFunc(slices.Clone(p.members.Topology().Servers), func(s topology.Server) bool {
			return s.Key == p.key || !s.RemovedAt.IsZero() || states[s.Key].State != monitor.Up
		})
		var mu sync.Mutex
		answers := map[wgkey.Public]toldAgent{}
		var asking sync.WaitGroup
		for range min(versionsAtOnce, len(up)) {
			s := up[turn%len(up)]
			turn++
			asking.Go(func() {
				if a, err := l.Agent(ctx, s.ManagementIP); err == nil {
					mu.Lock()
					answers[s.Key] = toldAgent{a, time.Now()}
					mu.Unlock()
				}
			})
		}
		asking.Wait()
		p.takeAgents(answers, time.Now())
		by := byVersion(p.members.Self().ID, p.ownAgent().Version, p.agents())
		versions := listed(slices.Sorted(maps.Keys(by)), "; ")
		if text := mixedAgents(by); text != "" && versions != told { // not again for each server
			p.log.Warn("agents of different versions", "agents", text)
		}
		told = versions
	}
}

// takeAgents adds answers to what is known, and forgets what is old.
func (p *clusterPart) takeAgents(answers map[wgkey.Public]toldAgent, now time.Time) {
	next := map[wgkey.Public]toldAgent{}
	if was := p.told.Load(); was != nil {
		for key, a := range *was {
			if now.Sub(a.at) <= versionKept {
				next[key] = a
			}
		}
	}
	maps.Copy(next, answers)
	p.told.Store(&next)
}

// agents returns the agents of the other members that are known, in order of id.
func (p *clusterPart) agents() []agentOf {
	told, health := p.told.Load(), p.health.Load()
	if told == nil {
		return nil
	}
	var list []agentOf
	for _, s := range p.members.Topology().Servers {
		a, ok := (*told)[s.Key]
		if !ok || s.Key == p.key || !s.RemovedAt.IsZero() {
			continue
		}
		known := agentOf{server: s.ID, version: a.Version}
		if health != nil {
			known.seen = health.sees[p.gossipOf(s)]
			since, ought := health.missing[s.Key]
			known.unseen = ought && time.Since(since) >= unseenAfter
		}
		list = append(list, known)
	}
	slices.SortFunc(list, func(a, b agentOf) int { return strings.Compare(a.server, b.server) })
	return list
}

// gossipOf is where a server's node has its agent gossip.
func (p *clusterPart) gossipOf(s topology.Server) netip.AddrPort {
	return netip.AddrPortFrom(s.ManagementIP, p.cfg.Corrosion.GossipPort)
}

// missing returns since when our agent does not see which agents that it ought
// to: those whose nodes run them, and whose tunnels are up.
func (p *clusterPart) missing(sees map[netip.AddrPort]bool, was map[wgkey.Public]time.Time, now time.Time) map[wgkey.Public]time.Time {
	told := p.told.Load()
	if told == nil {
		return nil
	}
	next := map[wgkey.Public]time.Time{}
	for _, s := range p.members.Topology().Servers {
		if s.Key == p.key || !s.RemovedAt.IsZero() || !(*told)[s.Key].Managed || !p.live(s.Key) || sees[p.gossipOf(s)] {
			continue
		}
		next[s.Key] = now
		if since, ok := was[s.Key]; ok {
			next[s.Key] = since
		}
	}
	return next
}

// byVersion returns which servers have an agent of which version, ours included,
// of those whose version is known. One that has not told its commit yet, or cannot,
// is no version of its own beside one that has.
func byVersion(self, own string, others []agentOf) map[string][]string {
	by := map[string][]string{}
	for _, a := range append([]agentOf{{server: self, version: own}}, others...) {
		if a.version != "" {
			by[a.version] = append(by[a.version], a.server)
		}
	}
	maps.DeleteFunc(by, func(version string, _ []string) bool {
		for v := range by {
			if strings.HasPrefix(v, version+" (") {
				return true
			}
		}
		return false
	})
	return by
}

// mixedAgents is one line about agents of different versions; "" if all have the same.
func mixedAgents(by map[string][]string) string {
	if len(by) < 2 {
		return ""
	}
	var parts []string
	for _, version := range slices.Sorted(maps.Keys(by)) {
		slices.Sort(by[version])
		parts = append(parts, version+" on "+listed(by[version], ", "))
	}
	return listed(parts, "; ")
}

// unseenAgents is one line about agents that ours does not see; "" if there are
// none.
func unseenAgents(self, own string, others []agentOf) string {
	var list []string
	for _, a := range others {
		if a.unseen {
			text := a.server
			if a.version != own && a.version != "" {
				text += " (" + a.version + ")"
			}
			list = append(list, text)
		}
	}
	if len(list) == 0 {
		return ""
	}
	if own != "" {
		self += " (" + own + ")"
	}
	return fmt.Sprintf("the agent of %s does not see that of %s, though the tunnel is up: what is registered on one side is not known on the other; if their versions differ, give all the same", self, listed(list, ", "))
}

// listed joins a list for a line of text, and cuts it where it is long.
func listed(list []string, between string) string {
	if n := len(list) - namedAtMost; n > 0 {
		list = append(slices.Clone(list[:namedAtMost]), fmt.Sprintf("%d more", n))
	}
	return strings.Join(list, between)
}

// agentsStatus adds to r what is known of the agents of others.
func (p *clusterPart) agentsStatus(r *control.Registry) (warnings []string) {
	self, own, others := p.members.Self().ID, p.ownAgent().Version, p.agents()
	for _, a := range others {
		r.Agents = append(r.Agents, control.PeerAgent{Server: a.server, Version: a.version, Seen: a.seen})
	}
	if text := mixedAgents(byVersion(self, own, others)); text != "" {
		warnings = append(warnings, "registry: agents of different versions: "+text)
	}
	if text := unseenAgents(self, own, others); text != "" {
		warnings = append(warnings, "registry: "+text)
	}
	if h := p.health.Load(); h != nil {
		if text := h.lacks.stuck(r.NoTables, time.Now()); text != "" {
			warnings = append(warnings, "registry: "+text)
		}
	}
	return warnings
}
