package cluster

import (
	"errors"
	"hash/maphash"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/registry/corrosion"
)

// settleTime is how long an event may contradict a row that was read ahead of
// it: Corrosion gathers changes for 0.6 s before it tells of them.
const settleTime = 10 * time.Second

// A table is what this node knows of one table of the registry. All of it is
// guarded by Store.mu.
type table struct {
	name    string
	columns []string // the first one is the primary key, a text
	ours    bool     // an agent may lack it

	put  func(id string, cells []any) // the row is new or another; cells are not kept
	drop func(id string)
	kept func(id string) string // the copy of id that is kept already, or id; nil: none is

	rows  map[string]uint64    // a digest of each known row; 0 for one from a cache
	marks map[string]time.Time // rows that were read or written ahead of their event, and when
	doubt map[string]struct{}  // rows to be read again

	// missing are rows that were known and that a reading of the whole table did
	// not have: an agent whose database is old or new has fewer than there are.
	missing map[string]struct{}
	own     func(id string) bool // the row is this server's to write; nil: none is

	complete bool  // seen whole once
	live     bool  // followed now
	absent   bool  // the agent has no such table
	lost     error // why it is not live; nil before the first attempt ended
}

func newTable(name string, ours bool, columns ...string) *table {
	return &table{name: name, ours: ours, columns: columns,
		rows: map[string]uint64{}, marks: map[string]time.Time{}, doubt: map[string]struct{}{}, missing: map[string]struct{}{}}
}

// all selects the whole table. Subscriptions are told apart by their text, and
// each costs the agent a database: it never changes.
func (t *table) all() corrosion.Statement {
	return corrosion.SQL("SELECT " + strings.Join(t.columns, ", ") + " FROM " + t.name)
}

// some selects rows by their keys.
func (t *table) some(ids []string) corrosion.Statement {
	params := make([]any, len(ids))
	for i, id := range ids {
		params[i] = id
	}
	return corrosion.SQL(t.all().SQL+" WHERE "+t.columns[0]+" IN (?"+strings.Repeat(", ?", len(ids)-1)+")", params...)
}

// event takes what a subscription says of a row; nil cells: it is gone. What is
// known to be newer is not replaced, but looked at again.
func (t *table) event(id string, cells []any) {
	delete(t.missing, id)
	if _, marked := t.marks[id]; !marked {
		t.set(id, cells)
		return
	}
	sum, known := t.rows[id]
	if known == (cells != nil) && (!known || sum == digest(cells)) {
		delete(t.marks, id)
		return
	}
	t.doubt[id] = struct{}{}
}

// read takes a row as it is in the agent's database now, ahead of any event.
func (t *table) read(id string, cells []any, now time.Time) {
	t.set(id, cells)
	delete(t.missing, id)
	t.marks[id] = now
	delete(t.doubt, id)
}

// set makes the row what cells say; nil: it is gone.
func (t *table) set(id string, cells []any) {
	sum, known := t.rows[id]
	if cells == nil {
		if known {
			delete(t.rows, id)
			t.drop(id)
		}
		return
	}
	if next := digest(cells); !known || sum != next {
		if t.kept != nil {
			id = t.kept(id) // an assignment keeps the key that it is given
		}
		t.rows[id] = next
		t.put(id, cells)
	}
}

// has reports whether the row is known to be just what cells say.
func (t *table) has(id string, cells []any) bool {
	sum, known := t.rows[id]
	return known && sum == digest(cells)
}

// overdue has rows read again whose event has not come in time.
func (t *table) overdue(now time.Time) {
	for id, at := range t.marks {
		if now.Sub(at) >= settleTime {
			t.doubt[id] = struct{}{}
		}
	}
}

// settle has missing rows read again: the agent has all that it ever had.
func (t *table) settle() {
	for id := range t.missing {
		t.doubt[id] = struct{}{}
	}
	clear(t.missing)
}

// A pass is one reading of a whole table: what it has not seen at its end is
// missing.
type pass struct {
	t    *table
	seen map[string]struct{}
}

func (t *table) begin() *pass { return &pass{t: t, seen: make(map[string]struct{}, len(t.rows))} }

func (p *pass) row(id string, cells []any) {
	p.seen[id] = struct{}{}
	p.t.event(id, cells)
}

func (p *pass) end() {
	for id := range p.t.rows {
		if _, ok := p.seen[id]; ok {
			continue
		}
		if p.t.own != nil && p.t.own(id) { // the file has it
			p.t.event(id, nil)
			continue
		}
		p.t.missing[id] = struct{}{}
	}
	p.t.complete = true
}

var seed = maphash.MakeSeed()

// digest is never 0.
func digest(cells []any) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, c := range cells {
		switch v := c.(type) {
		case nil:
			h.WriteByte(0)
		case string:
			h.WriteByte(1)
			maphash.WriteComparable(&h, v)
		case []byte:
			h.WriteByte(2)
			maphash.WriteComparable(&h, string(v))
		default: // int64, float64
			h.WriteByte(3)
			maphash.WriteComparable(&h, c)
		}
	}
	return h.Sum64() | 1
}

// key is the primary key of a row; not ok for one that no node writes, and for one
// that no agent sends.
func (t *table) key(cells []any) (id string, ok bool) {
	if len(cells) == len(t.columns) {
		id, ok = cells[0].(string)
	}
	return id, ok
}

// A follower is a table's side of its subscription.
type follower struct {
	s    *Store
	t    *table
	pass *pass
}

func (f *follower) do(change func()) {
	f.s.mu.Lock()
	change()
	f.s.mu.Unlock()
}

// Begin implements corrosion.View.
func (f *follower) Begin() { f.do(func() { f.pass = f.t.begin() }) }

// Row implements corrosion.View.
func (f *follower) Row(cells []any) {
	if id, ok := f.t.key(cells); ok {
		f.do(func() { f.pass.row(id, cells) })
	}
}

// End implements corrosion.View.
func (f *follower) End() {
	f.do(func() {
		f.pass.end()
		f.pass = nil
	})
	f.Resumed()
}

// Change implements corrosion.View.
func (f *follower) Change(kind corrosion.Kind, cells []any) {
	id, ok := f.t.key(cells)
	if !ok {
		return
	}
	if kind == corrosion.Delete {
		cells = nil
	}
	f.do(func() { f.t.event(id, cells) })
	f.s.news()
}

// Resumed implements corrosion.View.
func (f *follower) Resumed() {
	f.do(func() { f.t.live, f.t.absent, f.t.lost = true, false, nil })
	f.s.followed()
}

// Lost implements corrosion.View.
func (f *follower) Lost(err error) {
	f.do(func() { f.t.live, f.t.lost, f.t.absent = false, err, f.t.ours && errors.Is(err, corrosion.ErrNoTable) })
	f.s.followed()
}
