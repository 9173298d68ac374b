package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/acidtib/jiji-node/registry/changes"
	"github.com/acidtib/jiji-node/registry/corrosion"
)

// The fast lane: Corrosion tells subscribers of changes up to 0.6 s late. A peer
// that wrote says so itself, and then the changed keys, and the rows that they
// belong to, are read from our own agent as soon as it has them. It says only
// what to read; the subscriptions stay the authority.
const (
	laneLimit   = 2 * time.Second // how long a version is waited for
	laneKeys    = 1000            // more changes than that are left to the subscriptions
	laneWriters = 1024            // whose notices are kept at a time
	laneFirst   = 2 * time.Millisecond
	laneEager   = 12 * time.Millisecond  // between two looks while the change may come any moment
	lanePatient = 400 * time.Millisecond // after which it is late
	laneMost    = 100 * time.Millisecond
)

// A lane is what is known of others' versions.
type lane struct {
	works atomic.Bool // the agent has the tables for it

	mu   sync.Mutex
	self [16]byte           // this agent's site; zero if not known
	due  map[[16]byte]span  // what writers say they have written
	seen map[[16]byte]int64 // versions up to which their changes were looked at
	wake chan struct{}
}

// A span is the versions after one, up to another.
type span struct{ from, to int64 }

func newLane() lane {
	return lane{due: map[[16]byte]span{}, seen: map[[16]byte]int64{}, wake: make(chan struct{}, 1)}
}

func (l *lane) wrote(self [16]byte) {
	l.mu.Lock()
	l.self = self
	l.mu.Unlock()
}

// Heard tells that a writer says it has reached a version. It returns at once.
func (s *Store) Heard(writer [16]byte, version int64) {
	l := &s.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	seen, looked := l.seen[writer]
	due, known := l.due[writer]
	if writer == l.self || version < 1 || version <= seen || !known && len(l.due) >= laneWriters {
		return
	}
	from := version - 1
	if looked {
		from = seen
	}
	if !known || from < due.from {
		due.from = from
	}
	due.to = max(due.to, version)
	l.due[writer] = due
	poke(l.wake)
}

// next are the writers to look at, and which versions.
func (l *lane) next() map[[16]byte]span {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.due
	l.due = map[[16]byte]span{}
	if len(l.seen) > laneWriters {
		clear(l.seen)
	}
	return due
}

func (s *Store) laneLoop(ctx context.Context) error {
	l := &s.lane
	l.works.Store(true)
	type wait struct {
		span
		until time.Time
		next  time.Duration
		found glimpse // at the last look
	}
	waits := map[[16]byte]wait{}
	for {
		var again <-chan time.Time
		if len(waits) > 0 {
			shortest := laneMost
			for _, w := range waits {
				shortest = min(shortest, w.next)
			}
			again = time.After(shortest)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-again:
		}
		for writer, due := range l.next() {
			w, known := waits[writer]
			if !known || due.from < w.from {
				w.from, w.found = due.from, glimpse{}
			}
			if due.to > w.to || w.to-due.to > laneKeys { // notices overtake each other, too, but not by so much
				w.to = due.to
			}
			w.until, w.next = time.Now().Add(laneLimit), laneFirst
			waits[writer] = w
		}
		for writer, w := range waits {
			found, err := s.peek(ctx, writer, w.from)
			if err == nil && found != w.found && found.top > w.from {
				if err = s.lookAt(ctx, writer, w.from); err == nil {
					w.from = max(w.from, found.whole())
				}
			}
			w.found = found
			if err != nil {
				if works := !errors.Is(err, corrosion.ErrNoTable); l.works.Swap(works) != works || works {
					s.log.Debug("changes not read ahead", "err", err)
				}
			} else {
				l.works.Store(true)
			}
			done := err != nil || found.whole() >= w.to || time.Now().After(w.until)
			if err == nil && found.top > 0 { // else a notice may be wrong
				seen := min(w.from, found.top)
				if done {
					seen = found.top // what is missing may be so for ever
				}
				l.mu.Lock()
				l.seen[writer] = seen
				l.mu.Unlock()
			}
			if done {
				delete(waits, writer)
				continue
			}
			if w.next = min(2*w.next, laneEager); time.Until(w.until) < laneLimit-lanePatient {
				w.next = laneMost
			}
			waits[writer] = w
		}
	}
}

// A glimpse is which versions of a writer the agent has.
type glimpse struct {
	top int64 // the newest one; 0: none
	gap int64 // the first one that it lacks and knows of, after those looked at before; 0: none. Versions overtake each other.
}

// whole is up to where the agent has all versions.
func (g glimpse) whole() int64 {
	if g.gap > 0 {
		return min(g.top, g.gap-1)
	}
	return g.top
}

// peek asks for the versions after from.
func (s *Store) peek(ctx context.Context, writer [16]byte, from int64) (g glimpse, err error) {
	ctx, cancel := context.WithTimeout(ctx, laneLimit)
	defer cancel()
	err = s.query(ctx, 2, corrosion.SQL(`
		SELECT db_version, (SELECT min(start) FROM __corro_bookkeeping_gaps WHERE actor_id = ? AND "end" > ?)
		FROM crsql_db_versions WHERE site_id = ?`, writer[:], from, writer[:]), func(cells []any) error {
		g.top, _ = cells[0].(int64)
		g.gap, _ = cells[1].(int64)
		return nil
	})
	return g, err
}

// lookAt reads the rows that the writer changed after version from, as far as
// the agent has its changes.
func (s *Store) lookAt(ctx context.Context, writer [16]byte, from int64) error {
	ctx, cancel := context.WithTimeout(ctx, laneLimit)
	defer cancel()
	keys := map[string]map[string]struct{}{}
	count := 0
	err := s.query(ctx, 2, corrosion.SQL(`SELECT "table", pk FROM crsql_changes WHERE site_id = ? AND db_version > ?`, writer[:], from), func(cells []any) error {
		name, _ := cells[0].(string)
		pk, _ := cells[1].([]byte)
		id, err := changes.DecodeKey(pk)
		if err != nil || len(id) != 1 {
			return nil // not one of our tables
		}
		if text, ok := id[0].(string); ok {
			if keys[name] == nil {
				keys[name] = map[string]struct{}{}
			}
			if _, known := keys[name][text]; !known {
				count++
			}
			if count <= laneKeys {
				keys[name][text] = struct{}{}
			}
		}
		return nil
	})
	if err != nil || count > laneKeys {
		return err
	}
	for _, t := range s.tables {
		if len(keys[t.name]) == 0 {
			continue
		}
		var ids []string
		for id := range keys[t.name] {
			ids = append(ids, id)
		}
		s.readRows(ctx, t, ids, false)
	}
	return nil
}
