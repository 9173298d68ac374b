package corrotest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A siteID names the agent that made a change.
type siteID [16]byte

// sentinel is the column that stands for the row itself: that it was deleted,
// or inserted again.
const sentinel = "-1"

// A change is one cell, as agents send it to each other.
type change struct {
	table      string
	key        []value
	cid        string // column, or sentinel
	val        value
	colVersion int64 // how often the cell was written; the causal length for a sentinel
	dbVersion  int64 // version of the writer's database
	site       siteID
	cl         int64 // causal length of the row: odd is alive, even is deleted
	seq        int64 // place in its version
}

// A version is all that is left of one transaction of one agent.
type version struct {
	site      siteID
	dbVersion int64
	changes   []change // none if later ones overwrote them all
}

type clock struct {
	colVersion, dbVersion, seq int64
	site                       siteID
}

// A rowClock is what an agent remembers of a row, deleted ones included.
type rowClock struct {
	key   []value
	cl    int64 // zero: never seen
	cells map[string]clock
}

func (r *rowClock) clone() *rowClock {
	c := *r
	c.cells = maps.Clone(r.cells)
	return &c
}

// rowName finds a row: its table and packed key.
type rowName struct{ table, pk string }

// A store is the database of an agent: the tables, and the clocks that merge
// them. Its user holds the agent's mutex.
type store struct {
	*db
	site        siteID
	tables      map[string]*table
	clocks      map[rowName]*rowClock
	stale       map[rowName]bool // rows whose lines in crsql_changes are not written yet
	version     int64            // of this agent's own last transaction that changed something
	seen        map[siteID]*versions
	pending     []version // versions that the schema had no room for
	lastChanges int64     // rows_affected of the last statement that writes
}

func openStore(site siteID) (*store, error) {
	d, err := openDB()
	if err != nil {
		return nil, err
	}
	if err := d.script(internalSchema); err != nil {
		d.close()
		return nil, fmt.Errorf("create internal tables: %w", err)
	}
	return &store{db: d, site: site, tables: map[string]*table{}, clocks: map[rowName]*rowClock{}, stale: map[rowName]bool{}, seen: map[siteID]*versions{}}, nil
}

// applySchema adds the tables and columns of sql, all or none.
func (s *store) applySchema(sql string) error {
	tables, others, err := readSchema(sql)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, t := range tables {
		old := s.tables[t.name]
		if old == nil {
			fmt.Fprintf(&b, "%s;\n", t.sql)
		} else {
			if !slices.Equal(old.key, t.key) {
				return fmt.Errorf("can't modify the primary key of %s", t.name)
			}
			for _, c := range old.added {
				if !slices.Contains(t.added, c) {
					return fmt.Errorf("can't remove or change column %s of %s", c.name, t.name)
				}
			}
			for _, c := range t.added {
				if !slices.Contains(old.added, c) {
					fmt.Fprintf(&b, "ALTER TABLE %s ADD COLUMN %s;\n", quote(t.name), c.definition)
				}
			}
		}
		b.WriteString(t.triggers())
	}
	for _, o := range others {
		fmt.Fprintf(&b, "%s;\n", strings.TrimSuffix(o, ";"))
	}
	if err := s.script("BEGIN;" + b.String() + "COMMIT"); err != nil {
		s.rollback()
		return err
	}
	for _, t := range tables {
		s.tables[t.name] = t
	}
	return nil
}

func (s *store) rollback() {
	if s.inTransaction() {
		_, _ = s.run("ROLLBACK") // it can only fail when there is none
	}
}

// A logEntry is one row touched by a statement.
type logEntry struct {
	table *table
	op    string
	mask  int64
	key   []value
}

func (s *store) takeLog() ([]logEntry, error) {
	rows, err := s.run("SELECT tbl, op, mask, k0, k1, k2, k3, k4, k5, k6, k7 FROM __corrotest_log ORDER BY n")
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	if _, err := s.run("DELETE FROM __corrotest_log"); err != nil {
		return nil, err
	}
	log := make([]logEntry, len(rows))
	for i, r := range rows {
		t := s.tables[r[0].(string)]
		log[i] = logEntry{t, r[1].(string), r[2].(int64), r[3 : 3+len(t.key)]}
	}
	return log, nil
}

// record advances copies of the clocks by what the log says, as version v.
func (s *store) record(log []logEntry, v int64) (order []rowName, touched map[rowName]*rowClock) {
	touched = map[rowName]*rowClock{}
	seq := int64(0)
	var left map[string]clock // the cells of the row that a "leave" was about
	for _, e := range log {
		name := rowName{e.table.name, string(pack(e.key))}
		r := touched[name]
		if r == nil {
			if old := s.clocks[name]; old != nil {
				r = old.clone()
			} else {
				r = &rowClock{key: e.key, cells: map[string]clock{}}
			}
			touched[name] = r
			order = append(order, name)
		}
		write := func(cid string, colVersion int64) {
			r.cells[cid] = clock{colVersion, v, seq, s.site}
			seq++
		}
		remove := func() {
			if r.cl%2 == 1 {
				r.cl++
				clear(r.cells)
				write(sentinel, r.cl)
			}
		}
		switch e.op {
		case "delete":
			remove()
		case "leave": // the row goes on under another key, and so do its counts
			left = maps.Clone(r.cells)
			remove()
		case "insert":
			remove() // there is one to remove with INSERT OR REPLACE
			r.cl++
			if r.cl > 1 || len(e.table.cells) == 0 {
				write(sentinel, r.cl)
			}
			for _, c := range e.table.cells {
				write(c, 1)
			}
		case "arrive":
			remove()
			r.cl++
			write(sentinel, r.cl)
			for _, c := range e.table.cells {
				write(c, left[c].colVersion+1)
			}
		case "update":
			for i, c := range e.table.cells {
				if e.mask&(1<<i) != 0 {
					write(c, r.cells[c].colVersion+1)
				}
			}
		}
	}
	return order, touched
}

// cellsOf returns the cells of a row by name, nil if there is no such row.
func (s *store) cellsOf(t *table, key []value) (map[string]value, error) {
	if len(t.cells) == 0 {
		return map[string]value{}, nil
	}
	rows, err := s.run("SELECT "+quoteAll(t.cells)+" FROM "+quote(t.name)+" WHERE "+equals(t.key, " AND "), key...)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	cells := make(map[string]value, len(t.cells))
	for i, c := range t.cells {
		cells[c] = rows[0][i]
	}
	return cells, nil
}

func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quote(n)
	}
	return strings.Join(quoted, ", ")
}

func equals(names []string, between string) string {
	each := make([]string, len(names))
	for i, n := range names {
		each[i] = quote(n) + " = ?"
	}
	return strings.Join(each, between)
}

// commit ends a local transaction and returns what it changed; no changes make
// no version.
func (s *store) commit() (version, error) {
	log, err := s.takeLog()
	if err != nil {
		return version{}, err
	}
	v := version{site: s.site, dbVersion: s.version + 1}
	order, touched := s.record(log, v.dbVersion)
	for _, name := range order {
		changes, err := s.changesOf(name, touched[name], func(c clock) bool {
			return c.site == v.site && c.dbVersion == v.dbVersion
		})
		if err != nil {
			return version{}, err
		}
		v.changes = append(v.changes, changes...)
	}
	if _, err := s.run("COMMIT"); err != nil {
		return version{}, err
	}
	if len(v.changes) == 0 {
		return version{}, nil
	}
	slices.SortStableFunc(v.changes, func(a, b change) int { return int(a.seq - b.seq) })
	for name, r := range touched {
		s.clocks[name], s.stale[name] = r, true
	}
	s.version = v.dbVersion
	s.see(v.site, v.dbVersion)
	return v, nil
}

// changesOf returns the cells of a row that keep says, with their values.
func (s *store) changesOf(name rowName, r *rowClock, keep func(clock) bool) ([]change, error) {
	t := s.tables[name.table]
	var changes []change
	var cells map[string]value
	for _, cid := range append([]string{sentinel}, t.cells...) {
		c, ok := r.cells[cid]
		if !ok || !keep(c) {
			continue
		}
		if cells == nil && cid != sentinel {
			var err error
			if cells, err = s.cellsOf(t, r.key); err != nil {
				return nil, err
			}
		}
		changes = append(changes, change{name.table, r.key, cid, cells[cid], c.colVersion, c.dbVersion, c.site, r.cl, c.seq})
	}
	return changes, nil
}

func (s *store) see(site siteID, v int64) {
	if s.seen[site] == nil {
		s.seen[site] = &versions{above: map[int64]bool{}}
	}
	s.seen[site].add(v)
}

// newest returns the newest version seen of each site.
func (s *store) newest() map[siteID]int64 {
	heads := map[siteID]int64{}
	for site, seen := range s.seen {
		heads[site] = seen.head
	}
	return heads
}

// missing returns what s has and other has not: newest first, as agents sync,
// and without the cells that were overwritten since.
func (s *store) missing(other map[siteID]*versions) ([]version, error) {
	wanted := map[siteID]map[int64]*version{}
	var versions []*version
	for site, seen := range s.seen {
		wanted[site] = map[int64]*version{}
		for v := range seen.all() {
			if !other[site].has(v) {
				w := &version{site: site, dbVersion: v}
				wanted[site][v] = w
				versions = append(versions, w)
			}
		}
	}
	for name, r := range s.clocks {
		for _, c := range r.cells {
			if wanted[c.site][c.dbVersion] == nil {
				continue
			}
			changes, err := s.changesOf(name, r, func(c clock) bool { return wanted[c.site][c.dbVersion] != nil })
			if err != nil {
				return nil, err
			}
			for _, c := range changes {
				w := wanted[c.site][c.dbVersion]
				w.changes = append(w.changes, c)
			}
			break
		}
	}
	slices.SortFunc(versions, func(a, b *version) int {
		if c := bytes.Compare(a.site[:], b.site[:]); c != 0 {
			return c
		}
		return int(b.dbVersion - a.dbVersion)
	})
	result := make([]version, len(versions))
	for i, w := range versions {
		slices.SortFunc(w.changes, func(a, b change) int { return int(a.seq - b.seq) })
		result[i] = *w
	}
	return result, nil
}

// room says whether the schema has every table and column of v.
func (s *store) room(v version) bool {
	for _, c := range v.changes {
		if t := s.tables[c.table]; t == nil || c.cid != sentinel && !t.cell(c.cid) || len(t.key) != len(c.key) {
			return false
		}
	}
	return true
}

// merge puts changes of another agent into the tables, and returns those that
// won: corrosion.md, section 6.
func (s *store) merge(changes []change) ([]change, error) {
	if _, err := s.run("BEGIN IMMEDIATE"); err != nil {
		return nil, err
	}
	touched := map[rowName]*rowClock{}
	var won []change
	for _, c := range changes {
		name := rowName{c.table, string(pack(c.key))}
		r := touched[name]
		if r == nil {
			r = &rowClock{key: c.key, cells: map[string]clock{}}
			if old := s.clocks[name]; old != nil {
				r = old.clone()
			}
		}
		wins, err := s.mergeCell(r, c)
		if err != nil {
			s.rollback()
			return nil, fmt.Errorf("merge %s.%s: %w", c.table, c.cid, err)
		}
		if wins {
			touched[name] = r
			won = append(won, c)
		}
	}
	if _, err := s.takeLog(); err != nil { // what was merged is no change of our own
		s.rollback()
		return nil, err
	}
	if _, err := s.run("COMMIT"); err != nil {
		s.rollback()
		return nil, err
	}
	for name, r := range touched {
		s.clocks[name], s.stale[name] = r, true
	}
	return won, nil
}

func (s *store) mergeCell(r *rowClock, c change) (wins bool, err error) {
	t := s.tables[c.table]
	mine := clock{c.colVersion, c.dbVersion, c.seq, c.site}
	where := quote(t.name) + " WHERE " + equals(t.key, " AND ")
	switch {
	case c.cl < r.cl || c.cl == r.cl && c.cl%2 == 0:
		return false, nil
	case c.cl > r.cl && c.cl%2 == 0:
		if _, err := s.run("DELETE FROM "+where, c.key...); err != nil {
			return false, err
		}
		r.cl = c.cl
		clear(r.cells)
		r.cells[sentinel] = mine
		return true, nil
	case c.cl > r.cl: // a row is born, or born again: defaults until its cells are here
		marks := strings.TrimSuffix(strings.Repeat("?, ", len(c.key)), ", ")
		if _, err := s.run("DELETE FROM "+where, c.key...); err != nil {
			return false, err
		}
		if _, err := s.run("INSERT INTO "+quote(t.name)+" ("+quoteAll(t.key)+") VALUES ("+marks+")", c.key...); err != nil {
			return false, err
		}
		r.cl = c.cl
		clear(r.cells)
		if c.cl > 1 {
			r.cells[sentinel] = clock{c.cl, c.dbVersion, c.seq, c.site}
		}
	}
	if c.cid == sentinel {
		old, have := r.cells[sentinel]
		if have && bytes.Compare(c.site[:], old.site[:]) <= 0 && old != mine {
			return false, nil
		}
		r.cells[sentinel] = mine
		return true, nil
	}
	if old, have := r.cells[c.cid]; have {
		cells, err := s.cellsOf(t, c.key)
		if err != nil {
			return false, err
		}
		if compareCells(mine, c.val, old, cells[c.cid]) <= 0 {
			return false, nil
		}
	}
	args := append([]value{c.val}, c.key...)
	if _, err := s.run("UPDATE "+quote(t.name)+" SET "+quote(c.cid)+" = ? WHERE "+equals(t.key, " AND "), args...); err != nil {
		return false, err
	}
	r.cells[c.cid] = mine
	return true, nil
}

// compareCells says which of two writes to one cell of one life of a row wins:
// more writes, then the larger value, then the larger site.
func compareCells(a clock, x value, b clock, y value) int {
	if a.colVersion != b.colVersion {
		return compareOrdered(a.colVersion, b.colVersion)
	}
	if rx, ry := mergeRank(x), mergeRank(y); rx != ry {
		return rx - ry
	}
	if c := compareSameKind(x, y); c != 0 {
		return c
	}
	return bytes.Compare(a.site[:], b.site[:])
}

func mergeRank(v value) int {
	switch v.(type) {
	case int64:
		return 5
	case float64:
		return 4
	case string:
		return 3
	case []byte:
		return 2
	}
	return 1
}

// refresh writes the internal tables that sql reads.
func (s *store) refresh(sql string) error {
	sql = strings.ToLower(sql)
	if strings.Contains(sql, "crsql_changes") {
		for name := range s.stale {
			if err := s.writeChanges(name); err != nil {
				return fmt.Errorf("write crsql_changes: %w", err)
			}
			delete(s.stale, name)
		}
	}
	if strings.Contains(sql, "crsql_db_versions") {
		if _, err := s.run("DELETE FROM __corrotest_versions"); err != nil {
			return err
		}
		for site, v := range s.newest() {
			if _, err := s.run("INSERT INTO __corrotest_versions VALUES (?, ?)", site[:], v); err != nil {
				return err
			}
		}
	}
	if strings.Contains(sql, "__corro_bookkeeping_gaps") {
		if _, err := s.run("DELETE FROM __corro_bookkeeping_gaps"); err != nil {
			return err
		}
		for _, g := range s.gaps() {
			if _, err := s.run("INSERT INTO __corro_bookkeeping_gaps VALUES (?, ?, ?)", g.site[:], g.start, g.end); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *store) writeChanges(name rowName) error {
	if _, err := s.run(`DELETE FROM __corrotest_changes WHERE "table" = ? AND pk = ?`, name.table, []byte(name.pk)); err != nil {
		return err
	}
	changes, err := s.changesOf(name, s.clocks[name], func(clock) bool { return true })
	if err != nil {
		return err
	}
	for _, c := range changes {
		if _, err := s.run("INSERT INTO __corrotest_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
			c.table, []byte(name.pk), c.cid, c.val, c.colVersion, c.dbVersion, c.site[:], c.cl, c.seq); err != nil {
			return err
		}
	}
	return nil
}

type gap struct {
	site       siteID
	start, end int64
}

// gaps returns the versions below the newest that were not seen.
func (s *store) gaps() []gap {
	var gaps []gap
	for site, head := range s.newest() {
		for v := s.seen[site].upto + 1; v < head; v++ {
			if s.seen[site].has(v) {
				continue
			}
			if n := len(gaps); n > 0 && gaps[n-1].site == site && gaps[n-1].end == v-1 {
				gaps[n-1].end = v
			} else {
				gaps = append(gaps, gap{site, v, v})
			}
		}
	}
	return gaps
}
