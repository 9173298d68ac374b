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
	due  map[[16]byte]int64 // versions that writers say they have reached
	seen map[[16]byte]int64 // versions up to which their changes were looked at
	wake chan struct{}
}

func newLane() lane {
	return lane{due: map[[16]byte]int64{}, seen: map[[16]byte]int64{}, wake: make(chan struct{}, 1)}
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
	if writer == l.self || version <= l.seen[writer] || version <= l.due[writer] || version < 1 {
		return
	}
	if _, known := l.due[writer]; !known && len(l.due) >= laneWriters {
		return
	}
	l.due[writer] = version
	poke(l.wake)
}

// next are the writers to look at, and from which versions on.
func (l *lane) next() (from, to map[[16]byte]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	to, l.due = l.due, map[[16]byte]int64{}
	from = map[[16]byte]int64{}
	for writer, version := range to {
		from[writer] = version - 1
		if seen, ok := l.seen[writer]; ok {
			from[writer] = seen
		}
	}
	if len(l.seen) > laneWriters {
		clear(l.seen)
	}
	return from, to
}

func (s *Store) laneLoop(ctx context.Context) error {
	l := &s.lane
	l.works.Store(true)
	type wait struct {
		until time.Time
		next  time.Duration
	}
	from, to, waits := map[[16]byte]int64{}, map[[16]byte]int64{}, map[[16]byte]wait{}
	for {
		var again <-chan time.Time
		if len(to) > 0 {
			shortest := laneMost
			for writer := range to {
				shortest = min(shortest, waits[writer].next)
			}
			again = time.After(shortest)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-again:
		}
		moreFrom, moreTo := l.next()
		for writer, version := range moreTo {
			if _, known := to[writer]; !known {
				from[writer] = moreFrom[writer]
			}
			to[writer] = version
			waits[writer] = wait{time.Now().Add(laneLimit), laneFirst}
		}
		for writer, version := range to {
			reached, err := s.lookAt(ctx, writer, from[writer])
			if err != nil {
				if works := !errors.Is(err, corrosion.ErrNoTable); l.works.Swap(works) != works || works {
					s.log.Debug("changes not read ahead", "err", err)
				}
			} else {
				l.works.Store(true)
			}
			from[writer] = max(from[writer], reached)
			w := waits[writer]
			if err != nil || reached >= version || time.Now().After(w.until) {
				l.mu.Lock()
				l.seen[writer] = max(from[writer], l.seen[writer])
				l.mu.Unlock()
				delete(from, writer)
				delete(to, writer)
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

// lookAt reads the rows that the writer changed after version from, as far as
// the agent has its changes, and returns up to which version that is.
func (s *Store) lookAt(ctx context.Context, writer [16]byte, from int64) (reached int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, laneLimit)
	defer cancel()
	keys := map[string]map[string]struct{}{}
	count := 0
	err = s.query(ctx, 3, corrosion.SQL(`SELECT "table", pk, db_version FROM crsql_changes WHERE site_id = ? AND db_version > ?`, writer[:], from), func(cells []any) error {
		name, _ := cells[0].(string)
		pk, _ := cells[1].([]byte)
		version, _ := cells[2].(int64)
		reached = max(reached, version)
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
		return reached, err
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
	return reached, nil
}
