package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
)

const (
	beatEvery     = 30 * time.Second // how often this server's last_seen is written
	aloneAfter    = 10 * time.Second // without a peer that answers, what the agent has is all there is
	settledFor    = 30 * time.Second // without progress, after which peers are not waited for: they may have versions that nobody sends
	gapsFor       = 5 * time.Minute  // whatever progress there is: others write all the time
	complainAfter = 3 * time.Second  // an agent that is just started needs less
	retryFirst    = 500 * time.Millisecond
	retryMost     = 15 * time.Second

	// What somebody else made of a row of ours is put right, but not for ever.
	reassertEvery = time.Minute
	reassertMost  = 3 // in that time

	callLimit    = 10 * time.Second // for one transaction or short query, which take well under a second
	rowsOfOne    = 250              // rows of one transaction
	rememberMost = 1024             // deletions that are remembered, to tell who else writes such a row

	joinedKey = "cluster_joined" // of jiji_meta: rows that the registry had of this server are in the file
)

// own is the state of writing this server's rows.
type own struct {
	confirmed map[string]uint64 // digests of rows as they were written or seen right, by table and id
	deleted   int               // how many deletions were added to confirmed, at most
	reasserts []time.Time       // in the last minute
	target    []Versions        // what peers had; nil: not asked yet
	lacks     int64             // the fewest versions that the agent lacked of those that it knows of, since it heard of many more; 0: it was not asked, or lacked none
	lacksAt   time.Time         // when it came to lack so few
	joined    bool
	beat      time.Time
}

func newOwn() own { return own{confirmed: map[string]uint64{}} }

// serverCells are v's cells in the order of the columns of servers; last_seen is v's, removed_at NULL.
func serverCells(v registry.Server) []any {
	return []any{v.ID, v.Hostname, v.Subnet.String(), v.WireGuardIP.String(), v.Key.String(), v.ManagementIP.StringExpanded(),
		registry.FormatEndpoints(v.Endpoints), milli(v.LastSeen), nil}
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// SetSelf says what this server's own row is to be. Before, none is written.
func (s *Store) SetSelf(v registry.Server) {
	s.mu.Lock()
	s.self = &v
	s.mu.Unlock()
	poke(s.sync)
}

// syncLoop keeps this server's rows in the registry as they are in the file.
func (s *Store) syncLoop(ctx context.Context) error {
	wait := retryFirst
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.sync:
		case <-tick.C:
		}
		s.complain(time.Now())
		ok, caughtUp := s.push(ctx), s.writing.Load().caughtUp
		if wait = min(2*wait, retryMost); ok || !caughtUp {
			wait = retryFirst
		}
		if ok {
			tick.Reset(beatEvery / 3)
		} else {
			tick.Reset(wait)
		}
	}
}

// complain says once that the registry has been away for a while, which at a
// start is not said otherwise, unless the cause was.
func (s *Store) complain(now time.Time) {
	s.mu.Lock()
	silence := now.Sub(s.lostAt)
	late := !s.lostAt.IsZero() && !s.toldLost && silence >= complainAfter && !(s.cfg.Blamed != nil && s.cfg.Blamed())
	s.toldLost = s.toldLost || late
	s.mu.Unlock()
	if !late {
		return
	}
	why := s.Problem()
	if why == "" {
		why = fmt.Sprintf("the agent has not answered for %v", silence.Round(time.Second))
	}
	s.log.Warn("registry cannot be followed; going on with what is known", "err", why)
}

// push brings the registry to what the file says, as far as it may and can; it
// reports whether nothing is left to do. Who waits for it does so for writePatience.
func (s *Store) push(ctx context.Context) bool {
	if !s.take(ctx) {
		return false
	}
	defer s.give()
	was := *s.writing.Load()
	w := writing{caughtUp: was.caughtUp, duplicate: was.duplicate}
	defer func() {
		if ctx.Err() != nil { // somebody waits no longer: that is no problem of the agent
			w.problem = was.problem
		}
		s.writing.Store(&w)
		if w.problem != was.problem && w.problem != "" {
			s.log.Warn("own rows not written", "err", w.problem)
		}
		if w.caughtUp != was.caughtUp {
			s.log.Info("registry caught up; writing own rows")
			s.mu.Lock()
			s.moved = true
			s.mu.Unlock()
			s.news()
		}
	}()
	if other := s.copied.Load(); other != nil && w.duplicate == "" {
		w.duplicate = s.duplicate(*other)
	}
	if w.duplicate != "" {
		return true
	}
	if !w.caughtUp {
		if w.caughtUp = s.catchUp(ctx) && s.readServers(ctx); !w.caughtUp {
			w.pending = len(s.plan())
			return false
		}
	}
	s.mu.Lock()
	removed, held := s.removed(), s.cfg.Held && s.self == nil
	s.mu.Unlock()
	if removed || held { // it may not write any more, or not yet
		return true
	}
	if err := s.importOwn(ctx); err != nil {
		w.problem = "registry: take over own rows: " + word(err)
		return false
	}
	now := time.Now()
	ops := s.plan()
	foreign, lost := s.foreignHand(ops)
	if foreign {
		s.own.reasserts = slices.DeleteFunc(s.own.reasserts, func(t time.Time) bool { return now.Sub(t) >= reassertEvery })
		if len(s.own.reasserts) >= reassertMost {
			w.pending = len(ops)
			if other := s.otherBoot(); other != "" {
				w.duplicate = s.duplicate(other)
				return true
			}
			who := "somebody else changes"
			if lost {
				who = "the agent's database loses, or somebody else deletes,"
			}
			w.problem = fmt.Sprintf("registry: %s the rows of server %s again and again (%s); they are put right %d times a minute", who, s.cfg.ServerID, ops[0], reassertMost)
			return false
		}
		s.own.reasserts = append(s.own.reasserts, now)
	}
	if err := s.write(ctx, ops); err != nil {
		w.pending, w.problem = len(ops), "registry: write own rows: "+word(err)
		return false
	}
	switch {
	case lost:
		s.log.Warn("own rows were gone, with the agent's database or by somebody else's hand; written again", "rows", len(ops), "first", ops[0].String())
	case foreign:
		s.log.Warn("own rows were changed by somebody else; written again", "rows", len(ops), "first", ops[0].String())
	}
	if err := s.beatNow(ctx, now); err != nil {
		w.problem = "registry: write that this server lives: " + word(err)
		return false
	}
	return true
}

// duplicate says, and tells the log, that another process is this server, too.
func (s *Store) duplicate(other string) string {
	s.log.Error("duplicate identity; no own rows are written any more", "other_boot", other, "boot", s.cfg.BootID)
	return fmt.Sprintf("duplicate identity: another process (boot %s) is server %s, too, so this one writes nothing any more; two machines have one key: on the copy, stop jiji-node, remove its state directory and add it as a new server, then restart jiji-node here", other, s.cfg.ServerID)
}

// Duplicate says that another process with this server's key was heard of: its
// rows cannot be told from ours, if it has a copy of our agent's database.
func (s *Store) Duplicate(boot string) {
	if s.copied.CompareAndSwap(nil, &boot) {
		poke(s.sync)
	}
}

// catchUp reports whether the agent has what its peers had when they were
// first asked, or has had nobody to ask for a while.
func (s *Store) catchUp(ctx context.Context) bool {
	s.mu.Lock()
	whole, live := s.wholeAt, s.lostAt.IsZero()
	s.mu.Unlock()
	if whole.IsZero() {
		return false
	}
	if s.cfg.Peers == nil {
		return true
	}
	if !live {
		return false
	}
	age := time.Since(whole)
	var gaps int64
	if err := s.query(ctx, 1, corrosion.SQL(`SELECT coalesce(sum("end" - start + 1), 0) FROM __corro_bookkeeping_gaps`), func(cells []any) error {
		gaps, _ = cells[0].(int64)
		return nil
	}); err != nil && !errors.Is(err, corrosion.ErrNoTable) {
		return false
	}
	switch lacks := s.own.lacks; {
	case gaps == 0:
		s.own.lacks = 0
	case age >= gapsFor: // for ever where versions have rows of tables that this agent lacks
	case lacks == 0 || gaps < lacks || gaps > 2*lacks: // it gets them, or heard of more
		s.own.lacks, s.own.lacksAt = gaps, time.Now()
		return false
	case time.Since(s.own.lacksAt) < settledFor:
		return false
	}
	if len(s.own.target) == 0 {
		ask, cancel := context.WithTimeout(ctx, patience)
		s.own.target = s.cfg.Peers(ask)
		cancel()
	}
	if len(s.own.target) == 0 {
		first, err := s.cfg.Local.Meta(ctx, joinedKey)
		if err == nil && first == "" && s.cfg.Others != nil && s.cfg.Others() {
			return age >= settledFor // what a newcomer claims alone others may have
		}
		return age >= aloneAfter
	}
	have, err := s.Versions(ctx)
	if err != nil {
		return false
	}
	return covers(have, s.own.target...) || age >= settledFor
}

// readServers reads what the agent has of servers, ahead of the subscriptions:
// what this server claims next must not be what a row on its way says already.
func (s *Store) readServers(ctx context.Context) bool {
	for _, t := range []*table{s.server, s.serverExtra, s.meta} {
		found := map[string][]any{}
		query, cancel := context.WithTimeout(ctx, queryLimit)
		err := s.cfg.Client.Query(query, t.all(), func(cells []any) error {
			if id, ok := t.key(cells); ok {
				found[id] = slices.Clone(cells)
			}
			return nil
		})
		cancel()
		if err != nil && !(t.ours && errors.Is(err, corrosion.ErrNoTable)) {
			return false
		}
		s.mu.Lock()
		now := time.Now()
		for id, cells := range found {
			t.read(id, cells, now)
		}
		s.mu.Unlock()
	}
	s.publishNow()
	return true
}

// query is the client's Query for short results of rows of that many cells: a stranger who answers
// in the agent's place may send any.
func (s *Store) query(ctx context.Context, width int, q corrosion.Statement, row func(cells []any) error) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return s.cfg.Client.Query(ctx, q, func(cells []any) error {
		if len(cells) != width {
			return fmt.Errorf("a row of %d cells, want %d", len(cells), width)
		}
		return row(cells)
	})
}

// Versions returns what the agent has of each writer.
func (s *Store) Versions(ctx context.Context) (Versions, error) {
	v := Versions{}
	err := s.query(ctx, 2, corrosion.SQL("SELECT site_id, db_version FROM crsql_db_versions"), func(cells []any) error {
		id, ok := cells[0].([]byte)
		version, isInt := cells[1].(int64)
		if !ok || len(id) != 16 || !isInt {
			return fmt.Errorf("site %v at version %v, want 16 bytes and an integer", cells[0], cells[1])
		}
		v[[16]byte(id)] = version
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	return v, nil
}

// importOwn takes over, once in the life of the file, what the registry has of
// this server: a machine that was set up anew keeps what was registered on it.
func (s *Store) importOwn(ctx context.Context) error {
	if s.own.joined {
		return nil
	}
	done, err := s.cfg.Local.Meta(ctx, joinedKey)
	if err != nil || done != "" {
		s.own.joined = err == nil
		return err
	}
	var rows []registry.Container
	err = s.query(ctx, 15, corrosion.SQL(`
		SELECT c.id, c.service, c.server_id, c.ip, c.started_at, c.instance_id, c.health_status, c.last_health_check,
			c.consecutive_failures, c.health_port, j.server_id, j.project, j.name, j.ports, j.external
		FROM containers c LEFT JOIN jiji_containers j ON j.id = c.id WHERE c.server_id = ?`, s.cfg.ServerID), func(c []any) error {
		row := registry.Row{ID: c[0], Service: c[1], ServerID: c[2], IP: c[3], StartedAt: c[4], Instance: c[5], Health: c[6], LastCheck: c[7],
			Failures: c[8], HealthPort: c[9], OursServerID: c[10], Project: c[11], Name: c[12], Ports: c[13], External: c[14]}
		if v, ok, _ := row.Container(); ok {
			rows = append(rows, v)
		}
		return nil
	})
	if err != nil && !errors.Is(err, corrosion.ErrNoTable) {
		return err
	}
	for _, c := range rows {
		s.mu.Lock()
		_, known := s.local[c.ID]
		s.mu.Unlock()
		if known {
			continue
		}
		if err := s.cfg.Local.Register(ctx, c); err != nil {
			return err
		}
	}
	if len(rows) > 0 {
		s.log.Info("own containers taken over from the registry", "containers", len(rows))
	}
	if err := s.cfg.Local.SetMeta(ctx, joinedKey, time.Now().UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	s.own.joined = true
	s.takeLocal()
	s.news()
	return nil
}

// An op is one row that is to be written or deleted.
type op struct {
	table   *table
	id      string
	cells   []any // nil: deleted
	service string
	project string
}

func (o op) String() string { return o.table.name + " " + o.id }

func (o op) key() string { return o.table.name + "\x00" + o.id }

// plan says which rows of this server are other than they are to be. Rows of
// the shared tables come first.
func (s *Store) plan() []op {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ops, more []op
	if s.self != nil && !s.removed() {
		want := serverCells(*s.self)
		if !sameServer(s.servers[s.self.ID], want) {
			ops = append(ops, op{table: s.server, id: s.self.ID, cells: want})
		}
		mtu := 0
		if s.cfg.MTU != nil {
			mtu = s.cfg.MTU()
		}
		extra := []any{s.self.ID, s.cfg.Version, s.cfg.BootID, int64(mtu), milli(s.self.ClaimedAt)}
		if !s.serverExtra.absent && !s.serverExtra.has(s.self.ID, extra) {
			more = append(more, op{table: s.serverExtra, id: s.self.ID, cells: extra})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.local)) {
		c := s.local[id]
		if owner := s.catalog.Owner(id); owner != "" && s.ofAnother(owner) {
			continue // said by foreignRows
		}
		if cells := c.Cells(); !s.containers.has(id, cells) {
			ops = append(ops, op{table: s.containers, id: id, cells: cells, service: c.Service, project: c.Project})
		}
		if cells := c.ExtraCells(); !s.extra.absent && !s.extra.has(id, cells) {
			more = append(more, op{table: s.extra, id: id, cells: cells})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.mine)) {
		if _, ok := s.local[id]; !ok {
			ops = append(ops, op{table: s.containers, id: id})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.extras)) {
		if _, ok := s.local[id]; !ok {
			more = append(more, op{table: s.extra, id: id})
		}
	}
	return append(ops, more...)
}

// ofAnother reports whether a row of that server is not ours to write: it is a
// member with another key. s.mu is held.
func (s *Store) ofAnother(id string) bool {
	row := s.servers[id]
	return row != nil && row[4] != s.cfg.Key.String() && row[8] == nil
}

// removed reports whether this server's row is a tombstone; s.mu is held.
func (s *Store) removed() bool {
	row := s.servers[s.cfg.ServerID]
	return row != nil && row[8] != nil && row[4] == s.cfg.Key.String()
}

// sameServer compares all but last_seen.
func sameServer(row, want []any) bool {
	return row != nil && digest(row[:7]) == digest(want[:7]) && row[8] == want[8]
}

// foreignHand reports whether a row among ops had been right, and is not any
// more though nothing else was wanted since; lost: all such rows are gone, as they are
// from a new database of the agent.
func (s *Store) foreignHand(ops []op) (foreign, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost = true
	for _, o := range ops {
		if sum, ok := s.own.confirmed[o.key()]; ok && sum == o.sum() {
			_, there := o.table.rows[o.id]
			foreign, lost = true, lost && !there && o.cells != nil
		}
	}
	return foreign, foreign && lost
}

// deletion is in place of a digest, which is never so small but by chance.
const deletion = 1

// sum is the digest of what o wants, or deletion.
func (o op) sum() uint64 {
	switch {
	case o.cells == nil:
		return deletion
	case o.table.name == "servers":
		return digest(o.cells[:7])
	}
	return digest(o.cells)
}

// otherBoot returns the boot id in this server's row if it is another process's.
func (s *Store) otherBoot() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if row := s.added[s.cfg.ServerID]; row != nil {
		if boot, _ := row[2].(string); boot != s.cfg.BootID {
			return boot
		}
	}
	return ""
}

// write applies ops, those of shared and those of our tables in transactions of
// their own: an agent that lacks ours must still take the others.
func (s *Store) write(ctx context.Context, ops []op) error {
	for len(ops) > 0 {
		n := 1
		for n < len(ops) && n < rowsOfOne && ops[n].table.ours == ops[0].table.ours {
			n++
		}
		part := ops[:n]
		ops = ops[n:]
		var list []corrosion.Statement
		for _, o := range part {
			list = append(list, o.statements(s.cfg.ServerID)...)
		}
		if err := s.exec(ctx, list...); err != nil {
			if part[0].table.ours && errors.Is(err, corrosion.ErrNoTable) {
				continue // its follower finds out, too
			}
			return err
		}
		now := time.Now()
		s.mu.Lock()
		for _, o := range part {
			cells := o.cells
			if o.table == s.server { // what else is in the row stays
				cells = slices.Clone(o.cells)
				if row := s.servers[o.id]; row != nil {
					cells[7] = row[7]
				}
			}
			o.table.read(o.id, cells, now)
			s.own.confirmed[o.key()] = o.sum()
			if o.cells == nil {
				s.own.deleted++
			}
		}
		s.mu.Unlock()
		if s.own.deleted > rememberMost {
			s.own.deleted = 0
			maps.DeleteFunc(s.own.confirmed, func(_ string, sum uint64) bool { return sum == deletion })
		}
		s.news()
	}
	return nil
}

// exec runs one transaction and tells the peers of it. Whether one happened whose
// answer does not come is not known: all of them may be repeated.
func (s *Store) exec(ctx context.Context, list ...corrosion.Statement) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	out, err := s.cfg.Client.Exec(ctx, list...)
	if err != nil {
		return err
	}
	if out.Changed {
		s.lane.wrote(out.Actor)
		if s.cfg.Wrote != nil {
			s.cfg.Wrote(out.Actor, out.Version)
		}
	}
	return nil
}

func (o op) statements(self string) []corrosion.Statement {
	switch {
	case o.cells == nil:
		return []corrosion.Statement{corrosion.SQL("DELETE FROM "+o.table.name+" WHERE id = ? AND server_id = ?", o.id, self)}
	case o.table.name == "servers":
		return []corrosion.Statement{corrosion.SQL(upsertServer, o.cells[:8]...)}
	case o.table.name == "jiji_servers":
		return []corrosion.Statement{corrosion.SQL(upsertServerExtra, o.cells...)}
	case o.table.name == "jiji_containers":
		return []corrosion.Statement{corrosion.SQL(registry.UpsertExtra, o.cells...)}
	}
	return []corrosion.Statement{
		corrosion.SQL(registry.InsertService, o.service, o.project),
		corrosion.SQL(registry.UpsertContainer, o.cells...),
	}
}

const (
	upsertServer = `
		INSERT INTO servers (id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, last_seen)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			hostname = excluded.hostname, subnet = excluded.subnet, wireguard_ip = excluded.wireguard_ip,
			wireguard_pubkey = excluded.wireguard_pubkey, management_ip = excluded.management_ip, endpoints = excluded.endpoints
		WHERE (servers.hostname, servers.subnet, servers.wireguard_ip, servers.wireguard_pubkey, servers.management_ip, servers.endpoints)
		IS NOT (excluded.hostname, excluded.subnet, excluded.wireguard_ip, excluded.wireguard_pubkey, excluded.management_ip, excluded.endpoints)`
	upsertServerExtra = `
		INSERT INTO jiji_servers (id, version, boot_id, mtu, claimed_at)
		VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			version = excluded.version, boot_id = excluded.boot_id, mtu = excluded.mtu, claimed_at = excluded.claimed_at
		WHERE (jiji_servers.version, jiji_servers.boot_id, jiji_servers.mtu, jiji_servers.claimed_at)
		IS NOT (excluded.version, excluded.boot_id, excluded.mtu, excluded.claimed_at)`
)

// beatNow writes that this server lives, if it is time.
func (s *Store) beatNow(ctx context.Context, now time.Time) error {
	s.mu.Lock()
	due := s.self != nil && !s.removed() && s.servers[s.cfg.ServerID] != nil && now.Sub(s.own.beat) >= beatEvery
	s.mu.Unlock()
	if !due {
		return nil
	}
	// Peers are not told: nobody waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryLimit)
	defer cancel()
	if _, err := s.cfg.Client.Exec(ctx, corrosion.SQL("UPDATE servers SET last_seen = ? WHERE id = ? AND wireguard_pubkey = ?", now.UnixMilli(), s.cfg.ServerID, s.cfg.Key.String())); err != nil {
		return err
	}
	s.own.beat = now
	return nil
}

// SetMetadata writes the cluster's metadata where it has none yet.
func (s *Store) SetMetadata(ctx context.Context, pairs map[string]string) error {
	var list []corrosion.Statement
	for _, k := range slices.Sorted(maps.Keys(pairs)) {
		list = append(list, corrosion.SQL("INSERT INTO cluster_metadata (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE cluster_metadata.value = ''", k, pairs[k]))
	}
	if err := s.exec(ctx, list...); err != nil {
		return fmt.Errorf("write cluster metadata: %w", err)
	}
	return nil
}

// AddServer inserts a newcomer's row on its behalf, or makes a removed server a
// member again. A row that a member has is its own to change, and stays.
func (s *Store) AddServer(ctx context.Context, v registry.Server) error {
	cells := serverCells(v)
	err := s.exec(ctx, corrosion.SQL(`
		INSERT INTO servers (id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, last_seen)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			hostname = excluded.hostname, subnet = excluded.subnet, wireguard_ip = excluded.wireguard_ip,
			wireguard_pubkey = excluded.wireguard_pubkey, management_ip = excluded.management_ip, endpoints = excluded.endpoints,
			removed_at = NULL
		WHERE servers.removed_at IS NOT NULL OR servers.wireguard_pubkey = ''`, cells[:8]...))
	if err != nil {
		return fmt.Errorf("add server %s to the registry: %w", v.ID, err)
	}
	s.readAgain(ctx, s.server, v.ID)
	if !v.ClaimedAt.IsZero() && !s.absent(s.serverExtra) {
		err := s.exec(ctx, corrosion.SQL("INSERT INTO jiji_servers (id, claimed_at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING", v.ID, milli(v.ClaimedAt)))
		if err != nil && !errors.Is(err, corrosion.ErrNoTable) {
			return fmt.Errorf("add server %s to the registry: %w", v.ID, err)
		}
	}
	return nil
}

// RemoveServer puts a tombstone on the server's row. The first one stays.
func (s *Store) RemoveServer(ctx context.Context, id string, at time.Time) error {
	if err := s.exec(ctx, corrosion.SQL("UPDATE servers SET removed_at = ? WHERE id = ? AND removed_at IS NULL", at.UnixMilli(), id)); err != nil {
		return fmt.Errorf("remove server %s from the registry: %w", id, err)
	}
	s.readAgain(ctx, s.server, id)
	return nil
}

func (s *Store) absent(t *table) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.absent
}

func (s *Store) readAgain(ctx context.Context, t *table, ids ...string) {
	s.readRows(ctx, t, ids, false)
}
