package corrotest

import (
	"fmt"
	"slices"
)

// A subscription is one query that is followed, with its own copy of the rows.
// Everything in it is guarded by the agent's mutex.
type subscription struct {
	id, sql, hash string
	columns       []string
	*selection
	rows      map[string]*subRow            // by packed keys
	byKey     []map[string]map[*subRow]bool // for each table, by its packed key
	lastRow   int64                         // of the newest row, known to be there
	nextRow   int64                         // the number after the last one given out or burned
	lastID    int64                         // of the last change
	history   []pastChange
	todo      *candidates
	listeners map[*listener]bool
}

type subRow struct {
	id    int64
	name  string // packed keys of all tables
	keys  []value
	cells []value
}

type pastChange struct {
	id   int64
	line []byte
}

// candidates are keys whose rows have to be looked at again, in order.
type candidates struct {
	tables []string
	keys   map[string][]candidate
	index  map[rowName]int
}

type candidate struct {
	key []value
	cl  int64
}

func newCandidates() *candidates {
	return &candidates{keys: map[string][]candidate{}, index: map[rowName]int{}}
}

func (c *candidates) add(table string, key []value, cl int64) {
	name := rowName{table, string(pack(key))}
	if at, have := c.index[name]; have {
		c.keys[table][at].cl = cl
		return
	}
	if len(c.keys[table]) == 0 {
		c.tables = append(c.tables, table)
	}
	c.index[name] = len(c.keys[table])
	c.keys[table] = append(c.keys[table], candidate{key, cl})
}

func (c *candidates) len() int { return len(c.index) }

// newSubscription runs the query for the first time.
func newSubscription(s *store, id, sql string) (*subscription, error) {
	sel, err := newSelection(sql, s.tables)
	if err != nil {
		return nil, err
	}
	st, err := s.prepare(sql)
	if err != nil {
		return nil, err
	}
	columns := st.columns()
	st.finalize()
	sub := &subscription{
		id: id, sql: sql, hash: fmt.Sprintf("%016x", seahash([]byte(sql))), columns: columns, selection: sel,
		rows: map[string]*subRow{}, byKey: make([]map[string]map[*subRow]bool, len(sel.tables)),
		todo: newCandidates(), listeners: map[*listener]bool{},
	}
	for i := range sub.byKey {
		sub.byKey[i] = map[string]map[*subRow]bool{}
	}
	if st, err = s.prepare(sel.initial); err != nil {
		return nil, err
	}
	defer st.finalize()
	results, err := st.rows()
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		row := sub.split(r)
		if sub.rows[row.name] != nil {
			continue
		}
		sub.nextRow++
		row.id = sub.nextRow
		sub.put(row)
	}
	sub.lastRow = sub.nextRow
	return sub, nil
}

func (sub *subscription) split(result []value) *subRow {
	keys := slices.Clone(result[:sub.selection.keys])
	for i, k := range keys {
		if k == nil {
			keys[i] = ""
		}
	}
	return &subRow{name: string(pack(keys)), keys: keys, cells: result[sub.selection.keys:]}
}

func (sub *subscription) keyOf(r *subRow, i int) string {
	t := sub.tables[i]
	return string(pack(r.keys[t.first : t.first+len(t.table.key)]))
}

func (sub *subscription) put(r *subRow) {
	sub.rows[r.name] = r
	for i := range sub.tables {
		k := sub.keyOf(r, i)
		if sub.byKey[i][k] == nil {
			sub.byKey[i][k] = map[*subRow]bool{}
		}
		sub.byKey[i][k][r] = true
	}
}

func (sub *subscription) drop(r *subRow) {
	delete(sub.rows, r.name)
	for i := range sub.tables {
		k := sub.keyOf(r, i)
		if delete(sub.byKey[i][k], r); len(sub.byKey[i][k]) == 0 {
			delete(sub.byKey[i], k)
		}
	}
}

// snapshot returns the rows in order of their numbers.
func (sub *subscription) snapshot() []*subRow {
	rows := make([]*subRow, 0, len(sub.rows))
	for _, r := range sub.rows {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b *subRow) int { return compareOrdered(a.id, b.id) })
	return rows
}

// consider notes a change whose row may have to be looked at again.
func (sub *subscription) consider(c change) {
	for _, t := range sub.tables {
		if t.table.name == c.table && (c.cid == sentinel || t.columns[c.cid]) {
			sub.todo.add(c.table, c.key, c.cl)
		}
	}
}

// followUp looks at the rows that changed and returns the events, in order:
// table by table, first what was inserted or updated, then what was deleted.
func (sub *subscription) followUp(s *store) ([]pastChange, error) {
	todo := sub.todo
	sub.todo = newCandidates()
	var events []pastChange
	emit := func(kind string, r *subRow) error {
		line, err := changeEvent(kind, r.id, r.cells, sub.lastID+1)
		if err != nil {
			return err
		}
		sub.lastID++
		events = append(events, pastChange{sub.lastID, line})
		return nil
	}
	newest := sub.lastRow
	for _, name := range todo.tables {
		for i, t := range sub.tables {
			if t.table.name != name {
				continue
			}
			results, err := sub.changedRows(s, t, todo.keys[name])
			if err != nil {
				return nil, err
			}
			found := map[string]bool{}
			for _, r := range results {
				found[r.name] = true
			}
			var gone []*subRow
			for _, c := range todo.keys[name] {
				for r := range sub.byKey[i][string(pack(c.key))] {
					if !found[r.name] {
						gone = append(gone, r)
					}
				}
			}
			for _, r := range results {
				old := sub.rows[r.name]
				if old != nil && string(pack(old.cells)) == string(pack(r.cells)) {
					continue
				}
				sub.nextRow++ // burned by an update too: SQLite's upsert takes a number first
				kind := "update"
				if old != nil {
					r.id = old.id
					sub.drop(old)
				} else {
					r.id = sub.nextRow
				}
				if r.id > sub.lastRow {
					kind = "insert"
				}
				newest = max(newest, r.id)
				sub.put(r)
				if err := emit(kind, r); err != nil {
					return nil, err
				}
			}
			slices.SortFunc(gone, func(a, b *subRow) int { return slices.CompareFunc(a.keys, b.keys, compareValues) })
			for _, r := range gone {
				sub.drop(r)
				if err := emit("delete", r); err != nil {
					return nil, err
				}
			}
		}
	}
	sub.lastRow = newest
	return events, nil
}

// changedRows runs the query of t for some keys; the rows come sorted, without
// duplicates, as out of an EXCEPT.
func (sub *subscription) changedRows(s *store, t selected, keys []candidate) ([]*subRow, error) {
	if _, err := s.run("DELETE FROM __corrotest_keys"); err != nil {
		return nil, err
	}
	for _, c := range keys {
		args := make([]value, maxKey)
		copy(args, c.key)
		if _, err := s.run("INSERT INTO __corrotest_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)", args...); err != nil {
			return nil, err
		}
	}
	results, err := s.run(t.changed)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(results, func(a, b []value) int { return slices.CompareFunc(a, b, compareValues) })
	results = slices.CompactFunc(results, func(a, b []value) bool { return slices.CompareFunc(a, b, compareValues) == 0 })
	rows := make([]*subRow, len(results))
	for i, r := range results {
		rows[i] = sub.split(r)
	}
	return rows, nil
}

// catchUp returns what a listener that says from gets first; ends says that
// nothing follows.
func (sub *subscription) catchUp(from int64, skipRows bool) (lines [][]byte, ends bool) {
	switch {
	case from > 0:
		if len(sub.history) > 0 && from+1 < sub.history[0].id {
			return [][]byte{errorEvent(fmt.Sprintf("subscription already deleted older changes, min change id: %d", sub.history[0].id))}, true
		}
		for _, c := range sub.history {
			if c.id > from {
				lines = append(lines, c.line)
			}
		}
		return lines, false
	case skipRows:
		return nil, false
	}
	lines = append(lines, columnsEvent(sub.columns))
	for _, r := range sub.snapshot() {
		line, err := rowEvent(r.id, r.cells)
		if err != nil {
			return append(lines, errorEvent(err.Error())), true
		}
		lines = append(lines, line)
	}
	return append(lines, eoqEvent(&sub.lastID)), false
}

// purge forgets the changes but for the newest keep.
func (sub *subscription) purge(keep int) {
	if n := len(sub.history); n > keep {
		sub.history = append([]pastChange(nil), sub.history[n-keep:]...)
	}
}

// A tableUpdates is what /v1/updates of one table has: an ID and the keys to
// tell.
type tableUpdates struct {
	id        string
	table     string
	todo      *candidates
	listeners map[*listener]bool
}

func (u *tableUpdates) followUp() ([][]byte, error) {
	todo := u.todo
	u.todo = newCandidates()
	var lines [][]byte
	for _, c := range todo.keys[u.table] {
		kind := "update"
		if c.cl%2 == 0 {
			kind = "delete"
		}
		line, err := notifyEvent(kind, c.key)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}
