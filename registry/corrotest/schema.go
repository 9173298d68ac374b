package corrotest

import (
	"fmt"
	"slices"
	"strings"
)

const (
	maxKey   = 8  // columns of a key, the width of the log below
	maxCells = 62 // other columns: what changed is a mask in one integer
)

// A table is one replicated table.
type table struct {
	name  string
	key   []string // columns of the primary key, in its order
	cells []string // the other columns
	sql   string   // its CREATE TABLE
	added []column // all columns, as they would be added to a table
}

type column struct {
	name       string
	definition string
}

func (t *table) cell(name string) bool { return slices.Contains(t.cells, name) }

// internalSchema is what an agent has beside the tables of its schema. What
// readers see of the changes are views: nobody writes to them.
const internalSchema = `
CREATE TABLE __corro_members (actor_id BLOB PRIMARY KEY NOT NULL, address TEXT NOT NULL, foca_state JSON, rtt_min INTEGER, updated_at DATETIME NOT NULL DEFAULT 0);
CREATE TABLE __corro_bookkeeping_gaps (actor_id BLOB NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, PRIMARY KEY (actor_id, start)) WITHOUT ROWID;
CREATE TABLE __corrotest_versions (site_id BLOB NOT NULL, db_version INTEGER NOT NULL);
CREATE TABLE __corrotest_changes ("table" TEXT NOT NULL, pk BLOB NOT NULL, cid TEXT NOT NULL, val, col_version INTEGER NOT NULL, db_version INTEGER NOT NULL, site_id BLOB NOT NULL, cl INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY ("table", pk, cid)) WITHOUT ROWID;
CREATE INDEX __corrotest_changes_site ON __corrotest_changes (site_id, db_version);
CREATE VIEW crsql_db_versions AS SELECT site_id, db_version FROM __corrotest_versions;
CREATE VIEW crsql_changes AS SELECT "table", pk, cid, val, col_version, db_version, site_id, cl, seq FROM __corrotest_changes;
CREATE TEMP TABLE __corrotest_log (n INTEGER PRIMARY KEY, tbl TEXT, op TEXT, mask INTEGER, k0, k1, k2, k3, k4, k5, k6, k7);
CREATE TEMP TABLE __corrotest_keys (k0, k1, k2, k3, k4, k5, k6, k7);
`

// readSchema runs sql in a database of its own and returns its tables, or why
// an agent refuses them.
func readSchema(sql string) ([]*table, []string, error) {
	d, err := openDB()
	if err != nil {
		return nil, nil, err
	}
	defer d.close()
	var others []string // statements that make no table
	for rest := sql; strings.TrimSpace(rest) != ""; {
		s, tail, err := d.compile(rest)
		if err != nil {
			return nil, nil, err
		}
		text := strings.TrimSpace(rest[:len(rest)-len(tail)])
		if s.handle == 0 {
			s.finalize()
			break
		}
		words := strings.Fields(strings.ToUpper(s.expanded()))
		_, err = s.rows()
		s.finalize()
		if err != nil {
			return nil, nil, err
		}
		switch {
		case len(words) > 1 && words[0] == "CREATE" && words[1] == "TABLE":
		case len(words) > 1 && words[1] == "INDEX":
			others = append(others, text)
		default:
			return nil, nil, fmt.Errorf("unsupported schema statement %q", text)
		}
		rest = tail
	}
	names, err := d.run(`SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid`)
	if err != nil {
		return nil, nil, err
	}
	var tables []*table
	for _, n := range names {
		t, err := readTable(d, n[0].(string), n[1].(string))
		if err != nil {
			return nil, nil, err
		}
		tables = append(tables, t)
	}
	return tables, others, nil
}

func readTable(d *db, name, sql string) (*table, error) {
	t := &table{name: name, sql: sql}
	if strings.Contains(strings.ToLower(sql), "autoincrement") {
		return nil, fmt.Errorf("Table %s has AUTOINCREMENT", name) //lint:ignore ST1005 like the agent's words
	}
	columns, err := d.run(`SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?) ORDER BY cid`, name)
	if err != nil {
		return nil, err
	}
	keys := map[int64]string{}
	for _, c := range columns {
		name, kind := c[0].(string), c[1].(string)
		definition := quote(name) + " " + kind
		if c[2] == int64(1) {
			definition += " NOT NULL"
		}
		if text, ok := c[3].(string); ok {
			definition += " DEFAULT " + text
		}
		t.added = append(t.added, column{name, definition})
		place := c[4].(int64)
		switch {
		case place > 0 && c[2] == int64(0):
			return nil, noKey(t.name)
		case place > 0:
			keys[place] = name
		case c[2] == int64(1) && c[3] == nil:
			return nil, fmt.Errorf("Table %s: column %s is NOT NULL and has no default", t.name, name) //lint:ignore ST1005 like the agent's words
		default:
			t.cells = append(t.cells, name)
		}
	}
	for i := range int64(len(keys)) {
		t.key = append(t.key, keys[i+1])
	}
	unique, err := d.run(`SELECT name FROM pragma_index_list(?) WHERE "unique" = 1 AND origin <> 'pk'`, name)
	if err != nil {
		return nil, err
	}
	foreign, err := d.run(`SELECT id FROM pragma_foreign_key_list(?)`, name)
	if err != nil {
		return nil, err
	}
	switch {
	case len(t.key) == 0:
		return nil, noKey(name)
	case len(unique) > 0:
		return nil, fmt.Errorf("Table %s has a unique index", name) //lint:ignore ST1005 like the agent's words
	case len(foreign) > 0:
		return nil, fmt.Errorf("Table %s has a foreign key", name) //lint:ignore ST1005 like the agent's words
	case len(t.key) > maxKey || len(t.cells) > maxCells:
		return nil, fmt.Errorf("corrotest: table %s has %d key and %d other columns, at most %d and %d work", name, len(t.key), len(t.cells), maxKey, maxCells)
	}
	return t, nil
}

func noKey(table string) error {
	return fmt.Errorf("Table %s has no primary key or primary key is nullable. CRRs must have a non nullable primary key", table) //lint:ignore ST1005 the agent's words
}

// triggers returns statements that log every change of a row of t, by the
// agent's own means: the log holds which rows were touched and which cells got
// another value, in order.
func (t *table) triggers() string {
	var b strings.Builder
	into := func(of, op, mask string) string {
		values := make([]string, len(t.key))
		places := make([]string, len(t.key))
		for i, k := range t.key {
			values[i], places[i] = of+"."+quote(k), fmt.Sprint("k", i)
		}
		return fmt.Sprintf("INSERT INTO __corrotest_log (tbl, op, mask, %s) VALUES (%s, '%s', %s, %s);\n",
			strings.Join(places, ", "), quoteText(t.name), op, mask, strings.Join(values, ", "))
	}
	mask := "0"
	for i, c := range t.cells {
		mask += fmt.Sprintf(" + ((OLD.%[1]s IS NOT NEW.%[1]s) << %[2]d)", quote(c), i)
	}
	moved := "0"
	for _, k := range t.key {
		moved += fmt.Sprintf(" OR OLD.%[1]s IS NOT NEW.%[1]s", quote(k))
	}
	for _, trigger := range []struct{ name, on, when, body string }{
		{"insert", "INSERT", "1", into("NEW", "insert", "0")},
		{"delete", "DELETE", "1", into("OLD", "delete", "0")},
		{"update", "UPDATE", "NOT (" + moved + ") AND (" + mask + ") <> 0", into("NEW", "update", mask)},
		{"move", "UPDATE", moved, into("OLD", "leave", "0") + into("NEW", "arrive", "0")},
	} {
		name := quote("__corrotest_" + trigger.name + "_" + t.name)
		fmt.Fprintf(&b, "DROP TRIGGER IF EXISTS %s;\nCREATE TEMP TRIGGER %s AFTER %s ON main.%s WHEN %s BEGIN\n%sEND;\n",
			name, name, trigger.on, quote(t.name), trigger.when, trigger.body)
	}
	return b.String()
}

// quote quotes an identifier, quoteText a text.
func quote(name string) string     { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
func quoteText(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }
