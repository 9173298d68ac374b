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
	beatEvery  = 30 * time.Second // how often this server's last_seen is written
	aloneAfter = 10 * time.Second // without a peer that answers, what the agent has is all there is
	settledFor = 30 * time.Second // after which peers are not waited for: they may have versions that nobody sends
	retryFirst = 500 * time.Millisecond
	retryMost  = 15 * time.Second

	// What somebody else made of a row of ours is put right, but not for ever.
	reassertEvery = time.Minute
	reassertMost  = 3 // in that time

	rowsOfOne    = 250  // rows of one transaction
	rememberMost = 1024 // deletions that are remembered, to tell who else writes such a row

	joinedKey = "cluster_joined" // of jiji_meta: rows that the registry had of this server are in the file
)

// own is the state of writing this server's rows.
type own struct {
	confirmed map[string]uint64 // digests of rows as they were written or seen right, by table and id
	deleted   int               // how many deletions were added to confirmed, at most
	reasserts []time.Time       // in the last minute
	target    []Versions        // what peers had; nil: not asked yet
	joined    bool
	beat      time.Time
	warned    bool
}

func newOwn() own { return own{confirmed: map[string]uint64{}} }

// baseCells are c's cells in the order of the columns of containers.
func baseCells(c registry.Container) []any {
	cells := []any{c.ID, c.Service, c.ServerID, c.IP.String(), milli(c.StartedAt), nil, string(c.Health), milli(c.LastCheck), int64(c.Failures), nil}
	if c.Instance != "" {
		cells[5] = c.Instance
	}
	if c.HealthPort != 0 {
		cells[9] = int64(c.HealthPort)
	}
	return cells
}

// extraCells likewise of jiji_containers.
func extraCells(c registry.Container) []any {
	external := int64(0)
	if c.External {
		external = 1
	}
	return []any{c.ID, c.ServerID, c.Project, c.Name, registry.FormatPorts(c.Ports), external}
}

// serverCells likewise of servers; last_seen is v's, removed_at NULL.
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

// push brings the registry to what the file says, as far as it may and can; it
// reports whether nothing is left to do. Who waits for it does so for patience.
func (s *Store) push(ctx context.Context) bool {
	if !s.take(ctx) {
		return false
	}
	defer s.give()
	was := *s.writing.Load()
	w := writing{caughtUp: was.caughtUp, duplicate: was.duplicate}
	defer func() {
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
	if w.duplicate != "" {
		return true
	}
	if !w.caughtUp {
		if w.caughtUp = s.catchUp(ctx); !w.caughtUp {
			w.pending = len(s.plan())
			return false
		}
	}
	if err := s.importOwn(ctx); err != nil {
		w.problem = "registry: take over own rows: " + word(err)
		return false
	}
	now := time.Now()
	ops := s.plan()
	if len(ops) > 0 && s.foreignHand(ops) {
		s.own.reasserts = slices.DeleteFunc(s.own.reasserts, func(t time.Time) bool { return now.Sub(t) >= reassertEvery })
		if len(s.own.reasserts) >= reassertMost {
			w.pending = len(ops)
			if other := s.otherBoot(); other != "" {
				w.duplicate = fmt.Sprintf("duplicate identity: another process (boot %s) writes the rows of server %s, too, so this one has stopped; two machines have one key: on the copy, stop jiji-node, remove its state directory and add it as a new server", other, s.cfg.ServerID)
				s.log.Error("duplicate identity; no own rows are written any more", "other_boot", other, "boot", s.cfg.BootID)
				return true
			}
			w.problem = fmt.Sprintf("registry: somebody else changes the rows of server %s again and again (%s); they are put right %d times a minute", s.cfg.ServerID, ops[0], reassertMost)
			return false
		}
		s.own.reasserts = append(s.own.reasserts, now)
		s.log.Warn("own rows were changed by somebody else; written again", "rows", len(ops), "first", ops[0].String())
	}
	if err := s.write(ctx, ops); err != nil {
		w.pending, w.problem = len(ops), "registry: write own rows: "+word(err)
		return false
	}
	if err := s.beatNow(ctx, now); err != nil {
		w.problem = "registry: write that this server lives: " + word(err)
		return false
	}
	return true
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
	if err := s.cfg.Client.Query(ctx, corrosion.SQL("SELECT count(*) FROM __corro_bookkeeping_gaps"), func(cells []any) error {
		gaps, _ = cells[0].(int64)
		return nil
	}); err != nil && !errors.Is(err, corrosion.ErrNoTable) || gaps > 0 {
		return false
	}
	if len(s.own.target) == 0 {
		ask, cancel := context.WithTimeout(ctx, patience)
		s.own.target = s.cfg.Peers(ask)
		cancel()
	}
	if len(s.own.target) == 0 {
		return age >= aloneAfter
	}
	have, err := s.Versions(ctx)
	if err != nil {
		return false
	}
	for _, target := range s.own.target {
		for writer, version := range target {
			if have[writer] < version {
				return age >= settledFor
			}
		}
	}
	return true
}

// Versions returns what the agent has of each writer.
func (s *Store) Versions(ctx context.Context) (Versions, error) {
	v := Versions{}
	err := s.cfg.Client.Query(ctx, corrosion.SQL("SELECT site_id, db_version FROM crsql_db_versions"), func(cells []any) error {
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
	err = s.cfg.Client.Query(ctx, corrosion.SQL(`
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
		if row := s.catalog.Row(id); row != nil && s.ofAnother(row.ServerID) {
			continue // said by foreignRows
		}
		if cells := baseCells(c); !s.containers.has(id, cells) {
			ops = append(ops, op{table: s.containers, id: id, cells: cells, service: c.Service, project: c.Project})
		}
		if cells := extraCells(c); !s.extra.absent && !s.extra.has(id, cells) {
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
// more though nothing else was wanted since.
func (s *Store) foreignHand(ops []op) bool {
	for _, o := range ops {
		if sum, ok := s.own.confirmed[o.key()]; ok && sum == o.sum() {
			return true
		}
	}
	return false
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

// exec runs one transaction and tells the peers of it. It ends at ctx's deadline,
// not when ctx is canceled, for a write that was begun is best known of.
func (s *Store) exec(ctx context.Context, list ...corrosion.Statement) error {
	limit := queryLimit
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
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
		return []corrosion.Statement{corrosion.SQL(upsertExtra, o.cells...)}
	}
	return []corrosion.Statement{
		corrosion.SQL("INSERT INTO services (name, project) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", o.service, o.project),
		corrosion.SQL(upsertContainer, o.cells...),
	}
}

const (
	upsertContainer = `
		INSERT INTO containers (id, service, server_id, ip, started_at, instance_id,
			health_status, last_health_check, consecutive_failures, health_port)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			service = excluded.service, server_id = excluded.server_id, ip = excluded.ip,
			started_at = excluded.started_at, instance_id = excluded.instance_id,
			health_status = excluded.health_status, last_health_check = excluded.last_health_check,
			consecutive_failures = excluded.consecutive_failures, health_port = excluded.health_port
		WHERE (containers.service, containers.server_id, containers.ip, containers.started_at, containers.instance_id,
			containers.health_status, containers.last_health_check, containers.consecutive_failures, containers.health_port)
		IS NOT (excluded.service, excluded.server_id, excluded.ip, excluded.started_at, excluded.instance_id,
			excluded.health_status, excluded.last_health_check, excluded.consecutive_failures, excluded.health_port)`
	upsertExtra = `
		INSERT INTO jiji_containers (id, server_id, project, name, ports, external)
		VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			server_id = excluded.server_id, project = excluded.project, name = excluded.name,
			ports = excluded.ports, external = excluded.external
		WHERE (jiji_containers.server_id, jiji_containers.project, jiji_containers.name,
			jiji_containers.ports, jiji_containers.external)
		IS NOT (excluded.server_id, excluded.project, excluded.name, excluded.ports, excluded.external)`
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
	if err := s.exec(ctx, corrosion.SQL("UPDATE servers SET last_seen = ? WHERE id = ? AND wireguard_pubkey = ?", now.UnixMilli(), s.cfg.ServerID, s.cfg.Key.String())); err != nil {
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
