package corrotest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A token is a word, a quoted name, a text or one other character of SQL.
type token struct {
	text       string
	start, end int
	depth      int // of parentheses
}

func (t token) is(words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, t.text) })
}

// name returns the identifier that t is, "" if it is none.
func (t token) name() string {
	switch c := t.text[0]; {
	case c == '"' || c == '`' || c == '[':
		if len(t.text) < 2 {
			return ""
		}
		return strings.ReplaceAll(t.text[1:len(t.text)-1], `""`, `"`)
	case wordByte(c) && (c < '0' || c > '9'):
		return t.text
	}
	return ""
}

func wordByte(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// tokens splits SQL that SQLite has already compiled; it reports no errors.
func tokens(sql string) []token {
	var found []token
	depth := 0
	for i := 0; i < len(sql); {
		start := i
		c := sql[i]
		switch {
		case strings.IndexByte(" \t\r\n\f", c) >= 0:
			i++
			continue
		case strings.HasPrefix(sql[i:], "--"):
			i = after(sql, i, "\n")
			continue
		case strings.HasPrefix(sql[i:], "/*"):
			i = after(sql, i+2, "*/")
			continue
		case c == '\'' || c == '"' || c == '`':
			for i = after(sql, i+1, string(c)); i < len(sql) && sql[i] == c; {
				i = after(sql, i+1, string(c))
			}
		case c == '[':
			i = after(sql, i, "]")
		case wordByte(c):
			for i < len(sql) && wordByte(sql[i]) {
				i++
			}
		default:
			i++
		}
		if c == ')' {
			depth--
		}
		found = append(found, token{sql[start:i], start, i, depth})
		if c == '(' {
			depth++
		}
	}
	return found
}

func after(sql string, from int, what string) int {
	if at := strings.Index(sql[from:], what); at >= 0 {
		return from + at + len(what)
	}
	return len(sql)
}

// A selection is a SELECT made ready to be followed: the keys of its tables are
// selected too, and for each table there is a query of its changed rows alone.
// As with the agent, what does not fit this (aggregates, LIMIT, tables that are
// only in subqueries) is accepted and followed wrongly.
type selection struct {
	tables  []selected
	initial string // the keys of all tables, then the columns
	keys    int    // how many columns the keys take
}

type selected struct {
	table   *table
	columns map[string]bool // whose changes matter
	first   int             // where its key starts among the selected columns
	changed string          // like initial, of the rows whose keys are in __corrotest_keys
}

var (
	errUnsupported = errors.New("unsupported statement")
	errNoTable     = errors.New("at least 1 table is required in FROM / JOIN clause")
)

// errPanic is what makes the agent's handler die: a join with a table that the
// schema has not.
var errPanic = errors.New("handler panics")

type source struct {
	table *table
	alias string
	left  [2]int // where LEFT OUTER stands, if it is joined so
}

func newSelection(sql string, schema map[string]*table) (*selection, error) {
	all := tokens(sql)
	for len(all) > 0 && all[len(all)-1].is(";") {
		all = all[:len(all)-1]
	}
	if len(all) == 0 || !all[0].is("SELECT") {
		return nil, errUnsupported
	}
	end := all[len(all)-1].end
	list, from, where, tail := all[0].end, -1, -1, end
	if len(all) > 1 && all[1].is("DISTINCT", "ALL") {
		list = all[1].end
	}
	for _, t := range all {
		if t.depth > 0 {
			continue
		}
		switch {
		case from < 0 && t.is("FROM"):
			from = t.start
		case where < 0 && t.is("WHERE"):
			where = t.start
		case tail == end && t.is("GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT", "UNION", "INTERSECT", "EXCEPT"):
			tail = t.start
		}
	}
	if from < 0 {
		return nil, errNoTable
	}
	sourceEnd := tail
	if where >= 0 {
		sourceEnd = where
	}
	var between []token
	for _, t := range all {
		if t.depth == 0 && t.start > from && t.end <= sourceEnd {
			between = append(between, t)
		}
	}
	sources, err := readSources(between, schema)
	if err != nil {
		return nil, err
	}

	sel := &selection{}
	var keys []string
	for _, src := range sources {
		sel.tables = append(sel.tables, selected{table: src.table, columns: usedColumns(all, src.table), first: len(keys)})
		for _, k := range src.table.key {
			keys = append(keys, quote(src.alias)+"."+quote(k))
		}
	}
	sel.keys = len(keys)
	head := sql[:list] + " " + strings.Join(keys, ", ") + ", " + sql[list:from]
	sel.initial = head + sql[from:end]
	condition := ""
	if where >= 0 {
		condition = " AND (" + sql[where+len("WHERE"):tail] + "\n)"
	}
	for i, src := range sources {
		joined := sql[from:sourceEnd]
		if i > 0 && src.left[1] > 0 {
			joined = sql[from:src.left[0]] + "INNER" + sql[src.left[1]:sourceEnd]
		}
		own := make([]string, len(src.table.key))
		places := make([]string, len(src.table.key))
		for j := range own {
			own[j], places[j] = keys[sel.tables[i].first+j], fmt.Sprint("k", j)
		}
		sel.tables[i].changed = fmt.Sprintf("%s%s\nWHERE (%s) IN (SELECT %s FROM __corrotest_keys)%s %s",
			head, joined, strings.Join(own, ", "), strings.Join(places, ", "), condition, sql[tail:end])
	}
	return sel, nil
}

// readSources reads the tables of a FROM clause; expressions and subqueries in
// it are skipped.
func readSources(between []token, schema map[string]*table) ([]source, error) {
	var sources []source
	expect := true
	var left [2]int
	for i := 0; i < len(between); i++ {
		t := between[i]
		switch {
		case t.is("JOIN", ","):
			expect = true
		case t.is("LEFT"):
			left = [2]int{t.start, t.end}
		case t.is("OUTER") && left[1] > 0:
			left[1] = t.end
		case expect && t.name() != "":
			expect = false
			name := t.name()
			src := source{table: schema[name], alias: name, left: left}
			left = [2]int{}
			if src.table == nil {
				if len(sources) > 0 {
					return nil, errPanic
				}
				return nil, fmt.Errorf("table not found in schema: %s", name)
			}
			if i+1 < len(between) && between[i+1].is("AS") {
				i++
			}
			if i+1 < len(between) && between[i+1].name() != "" && !between[i+1].is(
				"JOIN", "LEFT", "INNER", "CROSS", "NATURAL", "RIGHT", "FULL", "OUTER", "ON", "USING", "INDEXED", "NOT") {
				i++
				src.alias = between[i].name()
			}
			sources = append(sources, src)
		case expect:
			expect = false // a subquery
		}
	}
	if len(sources) == 0 {
		return nil, errNoTable
	}
	return sources, nil
}

func usedColumns(all []token, t *table) map[string]bool {
	used := map[string]bool{}
	for i, tok := range all {
		star := tok.is("*") && all[i-1].is("SELECT", "DISTINCT", "ALL", ",", ".")
		for _, c := range t.cells {
			if star || strings.EqualFold(tok.name(), c) {
				used[c] = true
			}
		}
	}
	return used
}
