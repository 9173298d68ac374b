// Package cluster is the catalog of a whole cluster: the rows of all servers,
// replicated by Corrosion, and this server's own, which it also keeps in a file.
//
// What this server says of itself and its containers is written to the file
// first and then to Corrosion, and written there again when something else comes
// back. So a registration needs no agent, and none is lost with one. What others
// say comes by subscription, and ahead of it where a peer tells that it wrote
// (see Heard). Losing the agent makes the view old, never empty.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/embedded"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// Versions say up to where an agent has the changes of each writer, by site id.
type Versions = map[[16]byte]int64

// A Config says where the rows are, and who writes.
type Config struct {
	Client   *corrosion.Client // required
	Local    *embedded.Store   // this server's own rows; required, closed by Close
	ServerID string            // required
	Key      wgkey.Public      // of this server
	BootID   string            // of this process
	Version  string            // of this program
	MTU      func() int        // of the tunnel, in bytes; nil: not told

	// Cached are other servers' containers as last known, until the agent has
	// been read.
	Cached []registry.Container

	// CachedVersions are those that the agent had then: an agent that has less
	// removes nothing.
	CachedVersions Versions

	// Peers asks some peers for their versions; it returns those that answered.
	// A node writes its own rows only when it has what they have. nil: there are none.
	Peers func(context.Context) []Versions

	// Others reports whether members are known that ought to answer: a server that
	// was never in the registry waits longer for them. nil: none are.
	Others func() bool

	// Held keeps own rows from being written, and from being taken over, before
	// SetSelf: only then it is known that this is the right cluster, and that the
	// id in it is this server's.
	Held bool

	// Wrote is told that the agent made a write of ours its version; nil: nobody is.
	Wrote func(writer [16]byte, version int64)

	// Blamed reports whether the log has been told already why there is no agent to
	// follow. nil: it has not.
	Blamed func() bool

	Log *slog.Logger // nil: none
}

// A Store is a registry.Store of a cluster.
type Store struct {
	cfg Config
	log *slog.Logger

	mu        sync.Mutex // guards all until the blank line
	tables    []*table
	catalog   *registry.Catalog
	alone     *registry.Catalog             // this server's own containers: all that is shown until the rest was read once
	local     map[string]registry.Container // this server's own, as in the file
	mine      map[string]struct{}           // ids whose row says that they are this server's
	extras    map[string]struct{}           // likewise in jiji_containers
	servers   map[string][]any              // cells of servers, by id
	added     map[string][]any              // cells of jiji_servers, by id
	metadata  map[string]string             // of the cluster
	moved     bool                          // servers, added or metadata changed since they were published
	self      *registry.Server              // this server's row as it is to be; nil: not yet
	upSince   time.Time                     // when all tables were followed; zero if they are not
	lostAt    time.Time                     // when the agent was lost, or the store opened; zero while it is followed
	toldLost  bool                          // the log was told of lostAt
	cached    bool                          // the catalog began with what was known earlier
	toldWhole bool                          // Changed was told of Whole
	wholeAt   time.Time                     // when all tables had been read once
	seen      Versions                      // the most that the agent has had

	containers, services, extra, server, serverExtra, meta *table

	snapshot atomic.Pointer[registry.Snapshot]
	view     atomic.Pointer[Servers]
	writing  atomic.Pointer[writing]
	running  atomic.Bool            // Run does
	copied   atomic.Pointer[string] // another process that is this server; nil: none was heard of
	changed  chan struct{}
	serversC chan struct{}

	publish   chan struct{} // there is news to publish
	doubts    chan struct{} // there are rows to read again
	sync      chan struct{} // own rows may differ
	turn      chan struct{} // held by who reads or writes rows ahead of events
	publisher sync.Mutex    // snapshots come in order
	own       own           // belongs to who has the turn
	lane      lane
}

// Servers is the servers of the cluster at one instant. It is shared: read only.
type Servers struct {
	List     []registry.Server // in order of id, removed ones included
	Skipped  []registry.Skipped
	Metadata map[string]string // of cluster_metadata
	Complete bool              // all rows that the agent has were read; false: more may come
}

// writing is what is known of writing own rows.
type writing struct {
	caughtUp  bool
	pending   int    // rows that are not in the registry as they should be
	problem   string // why; "" if nothing is wrong
	duplicate string // why this server does not write any more; "" if it does
}

// A State tells people how the registry is.
type State struct {
	Up        bool
	Since     time.Time // up or down since
	CaughtUp  bool      // this server has what its peers have, and writes
	Pending   int       // own rows that are not in the registry yet
	Problem   string    // one line; "" if there is none
	Duplicate string    // this server's identity is used elsewhere, too: one line
	NoTables  []string  // of ours, that the agent lacks
	FastLane  bool      // changes can be read ahead of the subscriptions
}

var _ registry.Store = (*Store)(nil)

// Open takes the own rows from the file and connects to nothing yet: Run does.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Client == nil || cfg.Local == nil {
		return nil, errors.New("open registry: want a client and a file")
	}
	if err := registry.CheckServerID(cfg.ServerID); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	s := &Store{
		cfg: cfg, log: cfg.Log, catalog: registry.NewCatalog(), alone: registry.NewCatalog(),
		local: map[string]registry.Container{}, mine: map[string]struct{}{}, extras: map[string]struct{}{},
		servers: map[string][]any{}, added: map[string][]any{}, metadata: map[string]string{}, lostAt: time.Now(), seen: Versions{},
		changed: make(chan struct{}, 1), serversC: make(chan struct{}, 1), publish: make(chan struct{}, 1),
		doubts: make(chan struct{}, 1), sync: make(chan struct{}, 1), turn: make(chan struct{}, 1),
		own: newOwn(), lane: newLane(),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.writing.Store(&writing{})
	s.makeTables()
	for _, c := range cfg.Cached {
		if c.ServerID == cfg.ServerID {
			continue
		}
		s.catalog.SetRow(c.ID, rowOf(c))
		s.catalog.SetExtra(c.ID, rowOf(c))
		s.containers.rows[c.ID], s.extra.rows[c.ID] = 0, 0
	}
	maps.Copy(s.seen, cfg.CachedVersions)
	s.cached, s.cfg.Cached = len(cfg.Cached) > 0, nil // the catalog has them now
	s.takeLocal()
	s.publishNow()
	return s, nil
}

func (s *Store) makeTables() {
	s.containers = newTable("containers", false, "id", "service", "server_id", "ip", "started_at", "instance_id",
		"health_status", "last_health_check", "consecutive_failures", "health_port")
	s.containers.put = func(id string, c []any) {
		if c[2] == s.cfg.ServerID {
			s.mine[id] = struct{}{}
			s.catalog.DropRow(id)
			poke(s.sync)
			return
		}
		if _, ok := s.mine[id]; ok {
			delete(s.mine, id)
			poke(s.sync)
		}
		s.catalog.SetRow(id, registry.Row{ID: c[0], Service: c[1], ServerID: c[2], IP: c[3], StartedAt: c[4], Instance: c[5],
			Health: c[6], LastCheck: c[7], Failures: c[8], HealthPort: c[9]})
	}
	s.containers.kept = s.catalog.ID
	s.containers.own = func(id string) bool { return has(s.mine, id) }
	s.containers.drop = func(id string) {
		delete(s.mine, id)
		s.catalog.DropRow(id)
		if _, ok := s.local[id]; ok {
			poke(s.sync)
		}
	}
	s.services = newTable("services", false, "name", "project")
	s.services.put = func(id string, c []any) { s.catalog.SetProject(id, c[1]) }
	s.services.drop = s.catalog.DropProject
	s.extra = newTable("jiji_containers", true, "id", "server_id", "project", "name", "ports", "external")
	s.extra.put = func(id string, c []any) {
		if c[1] == s.cfg.ServerID {
			s.extras[id] = struct{}{}
			s.catalog.DropExtra(id)
			poke(s.sync)
			return
		}
		delete(s.extras, id)
		s.catalog.SetExtra(id, registry.Row{ID: c[0], OursServerID: c[1], Project: c[2], Name: c[3], Ports: c[4], External: c[5]})
	}
	s.extra.kept = s.catalog.ID
	s.extra.own = func(id string) bool { return has(s.extras, id) }
	s.extra.drop = func(id string) {
		delete(s.extras, id)
		s.catalog.DropExtra(id)
		if _, ok := s.local[id]; ok {
			poke(s.sync)
		}
	}
	keep := func(rows map[string][]any) (put func(string, []any), drop func(string)) {
		put = func(id string, c []any) {
			known := rows[id]
			rows[id] = slices.Clone(c)
			if known != nil && len(c) == len(s.server.columns) && digest(seenNever(known)) == digest(seenNever(c)) {
				return // it lives, which is no news
			}
			s.moved = true
			if id == s.cfg.ServerID {
				poke(s.sync)
			}
		}
		return put, func(id string) {
			delete(rows, id)
			s.moved = true
			if id == s.cfg.ServerID {
				poke(s.sync)
			}
		}
	}
	s.server = newTable("servers", false, "id", "hostname", "subnet", "wireguard_ip", "wireguard_pubkey", "management_ip",
		"endpoints", "last_seen", "removed_at")
	s.server.put, s.server.drop = keep(s.servers)
	s.serverExtra = newTable("jiji_servers", true, "id", "version", "boot_id", "mtu", "claimed_at")
	s.serverExtra.put, s.serverExtra.drop = keep(s.added)
	s.meta = newTable("cluster_metadata", false, "key", "value")
	s.meta.put = func(id string, c []any) {
		if v, ok := c[1].(string); ok {
			s.metadata[id], s.moved = v, true
		}
	}
	s.meta.drop = func(id string) {
		delete(s.metadata, id)
		s.moved = true
	}
	s.server.own = func(id string) bool { return id == s.cfg.ServerID }
	s.serverExtra.own = s.server.own
	s.tables = []*table{s.server, s.serverExtra, s.meta, s.services, s.containers, s.extra}
}

func has(set map[string]struct{}, id string) bool {
	_, ok := set[id]
	return ok
}

// seenNever is a row of servers without last_seen.
func seenNever(c []any) []any {
	c = slices.Clone(c)
	c[7] = nil
	return c
}

// rowOf is c as rows of containers and jiji_containers.
func rowOf(c registry.Container) registry.Row {
	base, extra := c.Cells(), c.ExtraCells()
	return registry.Row{ID: base[0], Service: base[1], ServerID: base[2], IP: base[3], StartedAt: base[4], Instance: base[5],
		Health: base[6], LastCheck: base[7], Failures: base[8], HealthPort: base[9],
		OursServerID: extra[1], Project: extra[2], Name: extra[3], Ports: extra[4], External: extra[5]}
}

// Snapshot implements registry.Store; it is never nil.
func (s *Store) Snapshot() *registry.Snapshot { return s.snapshot.Load() }

// Changed implements registry.Store.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Servers returns the latest view of the servers, never nil.
func (s *Store) Servers() *Servers { return s.view.Load() }

// ServersChanged is received from once after any number of changes of Servers or
// of State().CaughtUp. It is for one consumer.
func (s *Store) ServersChanged() <-chan struct{} { return s.serversC }

// Whole reports whether the snapshot has the whole cluster's containers, if old
// ones: a name that is not in it does not exist.
func (s *Store) Whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole()
}

// whole is Whole; s.mu is held. Part of a first reading is no view of anything: a
// service would be answered with some of its containers.
func (s *Store) whole() bool {
	if s.cached {
		return true
	}
	for _, t := range []*table{s.containers, s.services, s.extra} {
		if !t.complete && !t.absent {
			return false
		}
	}
	return true
}

// State tells how the registry is.
func (s *Store) State() State {
	w := s.writing.Load()
	st := State{CaughtUp: w.caughtUp, Pending: w.pending, Problem: s.Problem(), Duplicate: w.duplicate, FastLane: s.lane.works.Load()}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Up = s.lostAt.IsZero()
	st.Since = s.lostAt
	if st.Up {
		st.Since = s.upSince
	}
	for _, t := range s.tables {
		if t.absent {
			st.NoTables = append(st.NoTables, t.name)
		}
	}
	return st
}

// Problem implements registry.Store.
func (s *Store) Problem() string {
	w := s.writing.Load()
	if w.duplicate != "" {
		return w.duplicate
	}
	s.mu.Lock()
	for _, t := range s.tables {
		if !t.live && !t.absent && t.lost != nil {
			defer s.mu.Unlock()
			return fmt.Sprintf("registry: table %s cannot be followed: %v", t.name, t.lost)
		}
	}
	s.mu.Unlock()
	return w.problem
}

// Close implements registry.Store.
func (s *Store) Close() error { return s.cfg.Local.Close() }

// Run implements registry.Store.
func (s *Store) Run(ctx context.Context) error {
	if err := s.joined(ctx); err != nil { // that the file is closed, too
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("follow %w", err)
	}
	s.running.Store(true)
	defer s.running.Store(false)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.cfg.Local.Run(ctx) })
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error { return s.publishLoop(ctx) })
	g.Go(func() error { return s.doubtLoop(ctx) })
	g.Go(func() error { return s.syncLoop(ctx) })
	g.Go(func() error { return s.laneLoop(ctx) })
	return g.Wait()
}

// joined reads the file once, so that a closed one is an error.
func (s *Store) joined(ctx context.Context) error {
	_, err := s.cfg.Local.Meta(ctx, joinedKey)
	return err
}

const (
	compareEvery = 5 * time.Minute // how often the view is compared with the tables
	queryLimit   = 30 * time.Second
	askEvery     = 5 * time.Second  // how often the agent is asked whether it answers
	askLimit     = 10 * time.Second // for that answer
)

// follow follows all tables, and begins anew where their streams turn out to
// have missed something, or the agent not to answer any more.
func (s *Store) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		var silent error
		streams, stop := context.WithCancel(ctx)
		g, streams := errgroup.WithContext(streams)
		for _, t := range s.tables {
			g.Go(func() error { return s.cfg.Client.Follow(streams, t.all(), &follower{s: s, t: t}) })
		}
		g.Go(func() error {
			defer stop()
			silent = s.listen(streams)
			return nil
		})
		g.Go(func() error {
			defer stop()
			tick := time.NewTicker(compareEvery)
			defer tick.Stop()
			for {
				select {
				case <-streams.Done():
					return nil
				case <-tick.C:
				}
				if deaf := s.compare(streams); deaf != "" {
					s.log.Warn("registry did not tell of a change; following it anew", "table", deaf)
					return nil
				}
			}
		})
		err := g.Wait()
		stop()
		if err != nil {
			return fmt.Errorf("follow registry: %w", err)
		}
		if silent != nil {
			s.awaitAnswer(ctx, silent)
		}
	}
	return nil
}

// listen returns an error once the agent does not answer any more, nil when ctx is
// done. The streams do not tell: a process that is stopped keeps its connections.
func (s *Store) listen(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(askEvery):
		}
		if err := s.ask(ctx); err != nil {
			return err
		}
	}
}

// ask returns an error if the agent keeps a question for askLimit. One that
// refuses it does not.
func (s *Store) ask(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if have, err := s.Versions(limited); err == nil {
		s.mu.Lock()
		for writer, version := range have {
			s.seen[writer] = max(s.seen[writer], version)
		}
		s.mu.Unlock()
	}
	if limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("the agent has not answered for %v", askLimit)
	}
	return nil
}

// awaitAnswer notes that the agent is lost, and returns when it answers again.
func (s *Store) awaitAnswer(ctx context.Context, silent error) {
	s.mu.Lock()
	for _, t := range s.tables {
		t.live, t.lost = false, silent
	}
	s.mu.Unlock()
	s.followed()
	for ctx.Err() == nil && s.ask(ctx) != nil {
	}
}

// compare reads all tables and returns the name of one that has rows which its
// subscription should have told of long ago.
func (s *Store) compare(ctx context.Context) (deaf string) {
	for _, t := range s.tables {
		found := s.differing(ctx, t)
		if len(found) == 0 {
			continue
		}
		select { // by now the subscription has told of what was on its way
		case <-ctx.Done():
			return ""
		case <-time.After(settleTime):
		}
		again := s.differing(ctx, t)
		for id, sum := range found {
			if next, ok := again[id]; ok && next == sum {
				return t.name
			}
		}
	}
	return ""
}

// differing are the rows of a table, with their digests, that are other than
// what is known of them; 0: the row is gone. It knows none of a table that is not
// followed now or cannot be read.
func (s *Store) differing(ctx context.Context, t *table) map[string]uint64 {
	s.mu.Lock()
	live := t.live
	s.mu.Unlock()
	if !live {
		return nil
	}
	now := map[string]uint64{}
	ctx, cancel := context.WithTimeout(ctx, queryLimit)
	defer cancel()
	err := s.cfg.Client.Query(ctx, t.all(), func(cells []any) error {
		if id, ok := t.key(cells); ok {
			now[id] = digest(cells)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	found := map[string]uint64{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, sum := range now {
		if t.rows[id] != sum {
			found[id] = sum
		}
	}
	for id := range t.rows {
		if _, ok := now[id]; !ok && !has(t.missing, id) {
			found[id] = 0
		}
	}
	return found
}

// followed notes whether all tables are followed, and tells of it.
func (s *Store) followed() {
	s.mu.Lock()
	now := time.Now()
	live, whole := true, true
	var lost error
	for _, t := range s.tables {
		if !t.absent && !t.live {
			live = false
			if t.lost != nil {
				lost = t.lost
			}
		}
		whole = whole && (t.complete || t.absent)
	}
	if whole && s.wholeAt.IsZero() {
		s.wholeAt = now
	}
	began := live && !s.lostAt.IsZero()
	ended := !live && s.lostAt.IsZero()
	first := s.upSince.IsZero()
	since := s.lostAt
	switch {
	case began:
		s.upSince, s.lostAt, s.toldLost = now, time.Time{}, false
	case ended:
		s.lostAt, s.toldLost = now, true
	}
	s.moved = s.moved || began
	s.mu.Unlock()
	switch {
	case began && first:
		s.log.Info("registry followed", "after", now.Sub(since).Round(time.Millisecond))
	case began:
		s.log.Info("registry followed again", "after", now.Sub(since).Round(time.Millisecond))
	case ended:
		s.log.Warn("registry lost; going on with what is known", "err", lost)
	}
	poke(s.sync)
	s.news()
}

// news has what changed published soon.
func (s *Store) news() { poke(s.publish) }

func (s *Store) publishLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.publish:
			s.publishNow()
		case <-s.cfg.Local.Changed():
			s.takeLocal()
			s.publishNow()
			poke(s.sync)
		}
	}
}

// publishNow publishes what is known.
func (s *Store) publishNow() {
	s.publisher.Lock()
	defer s.publisher.Unlock()
	s.mu.Lock()
	next := s.alone.Snapshot()
	if s.whole() {
		next = s.catalog.Snapshot()
	}
	doubted := false
	for _, t := range s.tables {
		doubted = doubted || len(t.doubt) > 0 || len(t.missing) > 0
	}
	var view *Servers
	if s.moved || s.view.Load() == nil {
		view, s.moved = s.serversNow(), false
	}
	whole := s.whole() && !s.toldWhole
	s.toldWhole = s.toldWhole || whole
	s.mu.Unlock()
	if last := s.snapshot.Swap(next); last != next {
		s.logSkipped(last, next)
		poke(s.changed)
	} else if whole { // which makes names that are not in it unknown ones
		poke(s.changed)
	}
	if view != nil {
		s.view.Store(view)
		poke(s.serversC)
	}
	if doubted {
		poke(s.doubts)
	}
}

func (s *Store) logSkipped(last, next *registry.Snapshot) {
	for _, k := range next.Skipped {
		if last == nil || !slices.Contains(last.Skipped, k) {
			s.log.Warn("registry row skipped", "table", k.Table, "key", k.Key, "reason", k.Reason)
		}
	}
}

// serversNow reads the rows of servers; s.mu is held.
func (s *Store) serversNow() *Servers {
	v := &Servers{Metadata: maps.Clone(s.metadata), Complete: s.server.complete && s.meta.complete && (s.serverExtra.complete || s.serverExtra.absent)}
	for _, id := range slices.Sorted(maps.Keys(s.servers)) {
		server, ok, skipped := serverOf(s.servers[id], s.added[id])
		if ok {
			v.List = append(v.List, server)
		}
		if skipped != nil {
			v.Skipped = append(v.Skipped, *skipped)
		}
	}
	return v
}

func serverOf(c, added []any) (registry.Server, bool, *registry.Skipped) {
	r := registry.ServerRow{ID: c[0], Hostname: c[1], Subnet: c[2], WireGuardIP: c[3], Key: c[4], ManagementIP: c[5],
		Endpoints: c[6], LastSeen: c[7], RemovedAt: c[8]}
	if added != nil {
		r.Version, r.BootID, r.MTU, r.ClaimedAt = added[1], added[2], added[3], added[4]
	}
	return r.Server()
}

// takeLocal has the catalog show what the file says.
func (s *Store) takeLocal() {
	s.mu.Lock() // before the snapshot is taken: an older one must not come after a newer one
	defer s.mu.Unlock()
	next := map[string]registry.Container{}
	for c := range s.cfg.Local.Snapshot().All() {
		if c.ServerID == s.cfg.ServerID {
			next[c.ID] = *c
		}
	}
	for id := range s.local {
		if _, ok := next[id]; !ok {
			s.catalog.DropLocal(id)
			s.alone.DropLocal(id)
		}
	}
	for id, c := range next {
		if known, ok := s.local[id]; !ok || !same(known, c) {
			s.catalog.SetLocal(c)
			s.alone.SetLocal(c)
		}
	}
	s.local = next
}

func same(a, b registry.Container) bool {
	return digest(a.Cells()) == digest(b.Cells()) && digest(a.ExtraCells()) == digest(b.ExtraCells())
}

// Register implements registry.Store. The container is registered once it is
// in the file; it reaches the others as soon as the agent can be written to.
func (s *Store) Register(ctx context.Context, c registry.Container) error {
	s.look(ctx)
	if err := s.foreign(c.ID); err != nil {
		return fmt.Errorf("register container: %w", err)
	}
	if err := s.cfg.Local.Register(ctx, c); err != nil {
		return err
	}
	s.written(ctx)
	return nil
}

// SetHealth implements registry.Store.
func (s *Store) SetHealth(ctx context.Context, id string, h registry.Health, at time.Time) error {
	s.look(ctx)
	if err := s.foreign(id); err != nil {
		return fmt.Errorf("set health of container: %w", err)
	}
	if err := s.cfg.Local.SetHealth(ctx, id, h, at); err != nil {
		return err
	}
	s.written(ctx)
	return nil
}

// Deregister implements registry.Store.
func (s *Store) Deregister(ctx context.Context, ids ...string) (removed int, err error) {
	s.look(ctx)
	for _, id := range ids {
		if err := s.foreign(id); err != nil {
			return 0, fmt.Errorf("deregister containers: %w", err)
		}
	}
	if removed, err = s.cfg.Local.Deregister(ctx, ids...); err != nil {
		return removed, err
	}
	s.written(ctx)
	return removed, nil
}

// foreign returns an *OwnerError if the container is another server's.
func (s *Store) foreign(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.local[id]; ok {
		return nil
	}
	if owner := s.catalog.Owner(id); owner != "" {
		return &registry.OwnerError{ID: id, Owner: owner, Self: s.cfg.ServerID}
	}
	return nil
}

// written publishes a change of the file and brings it to the agent. One that is
// lost is not waited for, and another not for long: syncLoop goes on with it.
func (s *Store) written(ctx context.Context) {
	s.takeLocal()
	s.publishNow()
	if s.running.Load() && !(s.followsNow() && s.writing.Load().caughtUp) {
		poke(s.sync)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writePatience)
	defer cancel()
	if !s.push(ctx) {
		poke(s.sync)
	}
}

func (s *Store) followsNow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lostAt.IsZero()
}

// look reads the tables if the store does not run, so that nobody follows them.
func (s *Store) look(ctx context.Context) {
	if s.running.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, t := range s.tables {
		rows := [][]any{}
		err := s.cfg.Client.Query(ctx, t.all(), func(cells []any) error {
			rows = append(rows, slices.Clone(cells))
			return nil
		})
		if err != nil && !(t.ours && errors.Is(err, corrosion.ErrNoTable)) {
			return
		}
		s.mu.Lock()
		t.absent = err != nil
		p := t.begin()
		for _, cells := range rows {
			if id, ok := t.key(cells); ok {
				p.row(id, cells)
			}
		}
		p.end()
		s.mu.Unlock()
	}
	s.mu.Lock()
	if s.wholeAt.IsZero() {
		s.wholeAt = time.Now()
	}
	s.mu.Unlock()
	s.publishNow()
}

const (
	patience      = 2 * time.Second        // of who asks peers, or reads all tables
	writePatience = 500 * time.Millisecond // of who registers something: it is in the file already

	batch     = 200 // rows that are read at once
	doubtRest = 50 * time.Millisecond
)

// doubtLoop reads rows again of which an event says other than what was read
// ahead of it.
func (s *Store) doubtLoop(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.doubts:
		case now := <-tick.C:
			s.mu.Lock()
			for _, t := range s.tables {
				t.overdue(now)
			}
			s.mu.Unlock()
		}
		if s.misses() && s.hasAll(ctx) {
			s.mu.Lock()
			for _, t := range s.tables {
				t.settle()
			}
			s.mu.Unlock()
		}
		for _, t := range s.tables {
			s.mu.Lock()
			ids := slices.Collect(maps.Keys(t.doubt))
			s.mu.Unlock()
			if len(ids) > 0 {
				s.readRows(ctx, t, ids, true)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(doubtRest):
		}
	}
}

func (s *Store) misses() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.tables, func(t *table) bool { return len(t.missing) > 0 })
}

// hasAll reports whether the agent has all that it ever had, or else all that peers
// have who answer: what it lacks then is gone.
func (s *Store) hasAll(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, queryLimit)
	defer cancel()
	have, err := s.Versions(ctx)
	if err != nil {
		return errors.Is(err, corrosion.ErrNoTable) // an agent that cannot tell is believed
	}
	s.mu.Lock()
	all := covers(have, s.seen)
	s.mu.Unlock()
	if all {
		return true
	}
	var targets []Versions
	if s.cfg.Peers != nil {
		targets = s.cfg.Peers(ctx)
	}
	if len(targets) == 0 || !covers(have, targets...) {
		return false
	}
	s.mu.Lock()
	s.seen = have // nobody has the rest
	s.mu.Unlock()
	return true
}

// covers reports whether have is not behind any of the others.
func covers(have Versions, others ...Versions) bool {
	for _, o := range others {
		for writer, version := range o {
			if have[writer] < version {
				return false
			}
		}
	}
	return true
}

// Seen returns the most that the agent has had of each writer.
func (s *Store) Seen() Versions {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.seen)
}

// readRows takes rows as they are in the agent's database. If settled, the next
// event is believed whatever it says of those that are as they were known.
func (s *Store) readRows(ctx context.Context, t *table, ids []string, settled bool) {
	for chunk := range slices.Chunk(ids, batch) {
		if !s.take(ctx) {
			return
		}
		found := map[string][]any{}
		query, cancel := context.WithTimeout(ctx, queryLimit)
		err := s.cfg.Client.Query(query, t.some(chunk), func(cells []any) error {
			if id, ok := t.key(cells); ok {
				found[id] = slices.Clone(cells)
			}
			return nil
		})
		cancel()
		if err == nil {
			now := time.Now()
			s.mu.Lock()
			for _, id := range chunk {
				old := t.marks[id]
				t.read(id, found[id], now)
				if settled && now.Sub(old) >= settleTime {
					delete(t.marks, id)
				}
			}
			s.mu.Unlock()
		}
		s.give()
		if err != nil {
			return // the subscription goes on, or says why not
		}
	}
	s.publishNow()
}

// take waits for the turn to read or write ahead of events; give ends it.
func (s *Store) take(ctx context.Context) bool {
	select {
	case s.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Store) give() { <-s.turn }

// poke leaves one piece of news, if there is none yet.
func poke(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}

// word is one line of an error for people.
func word(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
