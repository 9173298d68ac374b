package node

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/acidtib/jiji-node/monitor"
)

// Agents that lost each other for a while find each other again when one of them
// announces itself, which one that runs does every two to five minutes, and one that
// starts at once. So after a partition that has healed, an agent is started again:
// one that is alone, else one of the side that has not the least server id.
const (
	reunionLook  = time.Second      // how often newly reachable peers are looked for
	reunionSlow  = 10 * time.Second // the same, when none was found for some time
	reunionAfter = 2 * time.Second  // up, or answering, a peer's agent and ours should see each other
	reunionStep  = 4 * time.Second  // more to wait for each kind and number of servers that is to go first
	reunionRanks = 3                // servers of a side that may go, one after the other
	reunionTries = 3                // of one server
	reunionRest  = 20 * time.Second // between two tries, doubled by each
	reunionLimit = 5 * time.Minute  // agents announced themselves by then
	reunionAsked = 4                // peers whose agents are asked for at a time
	reunionSkip  = time.Minute      // at most, before one whose agent does not work is asked for again
)

// A reunion is the state of looking for the agents of peers that became reachable.
// Peers are known by their server ids.
type reunion struct {
	up      map[string]bool      // peers with a session at the last look
	since   map[string]time.Time // peers whose agents ours was not found to see, since they are up
	answers map[string]time.Time // those of them whose agents work, and since when
	skip    map[string]time.Time // those whose agents do not, until they are asked again
	next    time.Time            // nothing is asked before
	tries   int
	tried   time.Time
}

// note takes which peers have a session now, and reports whether it is time to
// ask our agent whom it sees.
func (r *reunion) note(up map[string]bool, now time.Time) bool {
	if r.since == nil {
		r.since, r.answers, r.skip = map[string]time.Time{}, map[string]time.Time{}, map[string]time.Time{}
	}
	for id := range up {
		if !r.up[id] {
			r.since[id] = now
			r.next = earlier(r.next, now.Add(reunionAfter))
		}
	}
	r.up = up
	for id, since := range r.since {
		if !up[id] || now.Sub(since) >= reunionLimit {
			r.forget(id)
		}
	}
	return len(r.since) > 0 && !now.Before(r.next)
}

func (r *reunion) forget(id string) {
	delete(r.since, id)
	delete(r.answers, id)
	delete(r.skip, id)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// decide takes whom our agent sees, and what asks for the agents of some peers and
// returns those that work. It returns the peer for which ours is to be started
// again; "" if it is not.
func (r *reunion) decide(self string, sees map[string]bool, ask func(peers []string) map[string]bool, now time.Time) string {
	var due []string
	r.next = now.Add(reunionSlow)
	for id, since := range r.since {
		if sees[id] {
			r.forget(id)
			continue
		}
		if now.Sub(since) < 2*reunionSlow {
			r.next = now.Add(reunionLook)
		}
		if now.Sub(since) >= reunionAfter && !now.Before(r.skip[id]) {
			due = append(due, id)
		}
	}
	if len(r.since) == 0 {
		r.tries = 0
	}
	if len(due) == 0 {
		return ""
	}
	broken := func(id string) int { // those that did not work last time come last
		if _, works := r.answers[id]; works {
			return 0
		}
		return 1
	}
	slices.SortFunc(due, func(a, b string) int { return cmp.Or(cmp.Compare(broken(a), broken(b)), cmp.Compare(a, b)) })
	due = due[:min(len(due), reunionAsked)]
	works := ask(due)
	other := ""
	for _, id := range due {
		if !works[id] {
			delete(r.answers, id)
			r.skip[id] = now.Add(min(reunionSkip, now.Sub(r.since[id])))
			continue
		}
		if _, known := r.answers[id]; !known {
			r.answers[id] = now
		}
		if other == "" || id < other {
			other = id
		}
	}
	if other == "" {
		return ""
	}
	steps := 0 // of servers that are to go before this one
	switch {
	case len(sees) > 0:
		rank := 0
		for id := range sees {
			if id < other {
				return ""
			}
			if id < self {
				rank++
			}
		}
		if self < other || rank >= reunionRanks {
			return ""
		}
		steps = 2 + rank
	case self < other:
		steps = 1
	}
	if now.Sub(r.answers[other]) < reunionAfter+time.Duration(steps)*reunionStep {
		return ""
	}
	if now.Sub(r.tried) >= 2*reunionLimit {
		r.tries = 0
	}
	if r.tries == reunionTries || r.tries > 0 && now.Sub(r.tried) < reunionRest<<(r.tries-1) {
		return ""
	}
	r.tries++
	r.tried = now
	return other
}

// reunionLoop brings agents together after a partition.
func (p *clusterPart) reunionLoop(ctx context.Context) error {
	tick := time.NewTicker(reunionLook)
	defer tick.Stop()
	var r reunion
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a, servers := p.agent.Load(), p.members.Topology().Servers
		up, states := map[string]bool{}, p.monitor.Peers()
		for _, s := range servers {
			if s.Key != p.key && s.RemovedAt.IsZero() && states[s.Key].State == monitor.Up {
				up[s.ID] = true
			}
		}
		if a == nil || !r.note(up, time.Now()) {
			continue
		}
		if st := a.State(); !st.Running || time.Since(st.Since) < reunionAfter {
			continue
		}
		members, err := a.Members(ctx)
		if err != nil {
			continue // healthLoop says what is wrong with it
		}
		sees, at := map[string]bool{}, map[string]netip.Addr{}
		for _, s := range servers {
			at[s.ID] = s.ManagementIP
			if slices.Contains(members, p.gossipOf(s)) {
				sees[s.ID] = true
			}
		}
		ask := func(peers []string) map[string]bool {
			works := make([]bool, len(peers))
			var asking sync.WaitGroup
			for i, id := range peers {
				asking.Go(func() { works[i] = p.couldSee(ctx, at[id]) })
			}
			asking.Wait()
			found := map[string]bool{}
			for i, id := range peers {
				found[id] = works[i]
			}
			return found
		}
		if other := r.decide(p.members.Self().ID, sees, ask, time.Now()); other != "" {
			p.log.Info("agent does not see that of a peer which is up: start it again, to announce itself", "peer", other, "sees", len(sees))
			a.Rejoin()
		}
	}
}

// couldSee reports whether the agent of the node at peer runs, answers, and is of our
// agent's version.
func (p *clusterPart) couldSee(ctx context.Context, peer netip.Addr) bool {
	l := p.link.Load()
	if l == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*reunionLook)
	defer cancel()
	theirs, err := l.Agent(ctx, peer)
	own := p.ownAgent().Version
	if err != nil || !theirs.Managed || theirs.Version == "" || own == "" {
		return false
	}
	if len(byVersion("", own, []agentOf{{version: theirs.Version}})) > 1 {
		return false
	}
	_, err = l.Versions(ctx, peer)
	return err == nil
}
