package corrotest

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// A link is how two agents reach each other.
type link struct{ up atomic.Bool }

// Link lets two agents gossip, and syncs them. It stands until the tests end.
func Link(a, b *Agent) {
	l := &link{}
	for _, pair := range [][2]*Agent{{a, b}, {b, a}} {
		self, other := pair[0], pair[1]
		other.mu.Lock()
		site, addr := other.store.site, other.addr
		other.mu.Unlock()
		self.mu.Lock()
		self.links[other] = l
		state := fmt.Sprintf(`{"id":{"id":%q,"addr":%q,"ts":0,"cluster_id":0,"member_id":null},"incarnation":0,"state":"Alive"}`, uuid(site), addr)
		_, err := self.store.run("INSERT OR REPLACE INTO __corro_members (actor_id, address, foca_state) VALUES (?, ?, ?)", site[:], addr, state)
		self.mu.Unlock()
		if err != nil {
			self.tb.Errorf("corrotest: write __corro_members: %v", err)
		}
	}
	Heal(a, b)
}

// Partition cuts the link of two agents. They stay members for each other.
func Partition(a, b *Agent) { between(a, b).up.Store(false) }

// Heal mends the link of two agents, and returns when they agree.
func Heal(a, b *Agent) {
	between(a, b).up.Store(true)
	syncBoth(a, b)
}

func between(a, b *Agent) *link {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.links[b]
	if l == nil {
		a.tb.Fatalf("corrotest: agents %s and %s are not linked", a.addr, b.addr)
	}
	return l
}

// syncBoth gives each of two agents what only the other has.
func syncBoth(a, b *Agent) {
	for _, pair := range [][2]*Agent{{a, b}, {b, a}} {
		from, to := pair[0], pair[1]
		to.mu.Lock()
		running := to.server != nil
		seen := map[siteID]*versions{}
		for site, v := range to.store.seen {
			seen[site] = v.clone()
		}
		to.mu.Unlock()
		from.mu.Lock()
		running = running && from.server != nil
		missing, err := from.store.missing(seen)
		from.mu.Unlock()
		if err != nil {
			from.tb.Errorf("corrotest: read what is to sync: %v", err)
		}
		if !running {
			return
		}
		for _, v := range missing {
			to.receive(v)
		}
	}
}

// upLinks returns the agents that a reaches. The mutex is held.
func (a *Agent) upLinks() []*Agent {
	var up []*Agent
	for other, l := range a.links {
		if l.up.Load() {
			up = append(up, other)
		}
	}
	return up
}

// gossip gives v to the agents that a reaches.
func (a *Agent) gossip(v version) {
	a.mu.Lock()
	others := a.upLinks()
	a.mu.Unlock()
	for _, other := range others {
		other.receive(v)
	}
}

// receive merges a version of another agent and passes it on, or holds it.
func (a *Agent) receive(v version) {
	a.mu.Lock()
	if a.held != nil {
		if !slices.ContainsFunc(a.held.versions, v.same) && !a.store.seen[v.site].has(v.dbVersion) {
			a.held.versions = append(a.held.versions, v)
		}
		a.mu.Unlock()
		return
	}
	isNew := a.merge(v)
	a.mu.Unlock()
	if isNew {
		a.gossip(v)
	}
}

func (v version) same(w version) bool { return v.site == w.site && v.dbVersion == w.dbVersion }

// merge merges v, or keeps it for the next start if the schema has no room for it;
// it reports whether v is new. The mutex is held.
func (a *Agent) merge(v version) bool {
	s := a.store
	if a.server == nil || s.seen[v.site].has(v.dbVersion) || slices.ContainsFunc(s.pending, v.same) {
		return false
	}
	if !s.room(v) {
		s.pending = append(s.pending, v)
		return true
	}
	a.take(v.changes)
	s.see(v.site, v.dbVersion)
	return true
}

// take merges changes and tells subscribers. The mutex is held.
func (a *Agent) take(changes []change) {
	won, err := a.store.merge(changes)
	if err != nil {
		a.tb.Errorf("corrotest: %v", err)
		return
	}
	a.lastSync = time.Now()
	a.announce(won)
}

// Held are changes of other agents that arrived and wait for the test.
type Held struct {
	agent    *Agent
	versions []version // in order of arrival; guarded by the agent's mutex
}

// HoldChanges makes changes of other agents wait until the test delivers them:
// in another order, or in parts.
func (a *Agent) HoldChanges() *Held {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held == nil {
		a.held = &Held{agent: a}
	}
	return a.held
}

// Len is how many versions wait.
func (h *Held) Len() int {
	h.agent.mu.Lock()
	defer h.agent.mu.Unlock()
	return len(h.versions)
}

// Deliver merges the i-th version that waits, and takes it off the list.
func (h *Held) Deliver(i int) {
	a := h.agent
	a.mu.Lock()
	v := h.versions[i]
	h.versions = slices.Delete(h.versions, i, i+1)
	isNew := a.merge(v)
	a.mu.Unlock()
	if isNew {
		a.gossip(v)
	}
}

// DeliverCells merges only some columns of the i-th version that waits. The row
// has defaults in the others, as a reader sees it when an old version arrives
// whose cells were partly overwritten. The version stays on the list.
func (h *Held) DeliverCells(i int, columns ...string) {
	a := h.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	var part []change
	for _, c := range h.versions[i].changes {
		if slices.Contains(columns, c.cid) {
			part = append(part, c)
		}
	}
	a.take(part)
}

// Release delivers what waits, in order, and ends the holding.
func (h *Held) Release() {
	a := h.agent
	for h.Len() > 0 {
		h.Deliver(0)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = nil
}
