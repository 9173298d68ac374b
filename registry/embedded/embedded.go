// Package embedded keeps the catalog in an SQLite file: this server's own
// rows, for a server that has no distributed registry.
package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/acidtib/jiji-node/registry"
)

const timeout = 5 * time.Second // default of Config.BusyTimeout

// A Config says which file, and whose rows may be written.
type Config struct {
	Path        string        // required; made if absent, in a directory that exists
	ServerID    string        // required
	BusyTimeout time.Duration // how long to wait for another process's lock; zero: 5 s
	Log         *slog.Logger  // nil: none
}

// A Store is a registry.Store in a file.
type Store struct {
	cfg  Config
	db   *sql.DB       // of one connection: who holds it has the turn
	file fs.FileInfo   // of what the connection has open
	poll time.Duration // how often Run asks whether another process wrote

	snapshot atomic.Pointer[registry.Snapshot]
	changed  chan struct{}
	problem  atomic.Pointer[string] // of Run's last turn; nil: none
	version  int64                  // of the data in snapshot; belongs to who has the turn

	closed atomic.Bool
	close  func() error
}

var _ registry.Store = (*Store)(nil)

// Open opens the file, or makes it. A file that is damaged or not ours is
// refused and left as it is.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.BusyTimeout == 0 {
		cfg.BusyTimeout = timeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := registry.CheckServerID(cfg.ServerID); err != nil {
		return nil, fmt.Errorf("open registry %s: %w", cfg.Path, err)
	}
	file, err := prepare(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	dsn, err := dsn(cfg.Path, cfg.BusyTimeout)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open registry %s: %w", cfg.Path, err)
	}
	db.SetMaxOpenConns(1)
	s := &Store{cfg: cfg, db: db, file: file, poll: time.Second, changed: make(chan struct{}, 1)}
	s.close = sync.OnceValue(s.shut)
	err = s.turn(ctx, func(ctx context.Context, conn *sql.Conn) error {
		if err := migrate(ctx, conn); err != nil {
			return err
		}
		if err := restrict(cfg.Path); err != nil {
			return err
		}
		return s.read(ctx, conn)
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("open %w", err)
	}
	return s, nil
}

// Snapshot implements registry.Store; it is never nil.
func (s *Store) Snapshot() *registry.Snapshot { return s.snapshot.Load() }

// Changed implements registry.Store.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Register implements registry.Store.
func (s *Store) Register(ctx context.Context, c registry.Container) error {
	if c.ServerID == "" {
		c.ServerID = s.cfg.ServerID
	}
	c, err := c.Normalize()
	if err == nil && c.ServerID != s.cfg.ServerID {
		err = &registry.OwnerError{ID: c.ID, Owner: c.ServerID, Self: s.cfg.ServerID}
	}
	if err == nil {
		err = s.write(ctx, func(ctx context.Context, tx *writer) error {
			if err := tx.mine(ctx, c.ID); err != nil && !errors.Is(err, registry.ErrNotFound) {
				return err
			}
			return tx.put(ctx, c)
		})
	}
	if err != nil {
		return fmt.Errorf("register container: %w", err)
	}
	return nil
}

// SetHealth implements registry.Store.
func (s *Store) SetHealth(ctx context.Context, id string, h registry.Health, at time.Time) error {
	at, err := registry.CheckHealth(h, at)
	if err == nil {
		err = s.write(ctx, func(ctx context.Context, tx *writer) error {
			if err := tx.mine(ctx, id); err != nil {
				return err
			}
			return tx.setHealth(ctx, id, h, at)
		})
	}
	if err != nil {
		return fmt.Errorf("set health of container: %w", err)
	}
	return nil
}

// Deregister implements registry.Store.
func (s *Store) Deregister(ctx context.Context, ids ...string) (removed int, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *writer) error {
		removed = 0
		for _, id := range ids {
			err := tx.mine(ctx, id)
			if errors.Is(err, registry.ErrNotFound) {
				continue
			}
			if err == nil {
				err = tx.remove(ctx, id)
			}
			if err != nil {
				return err
			}
			removed++
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("deregister containers: %w", err)
	}
	return removed, nil
}

// Adopt makes the rows of former, an id that this server had before, its own,
// and returns how many containers there were.
func (s *Store) Adopt(ctx context.Context, former string) (adopted int, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *writer) (err error) {
		adopted, err = tx.adopt(ctx, former)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("adopt containers of %s: %w", former, err)
	}
	return adopted, nil
}

// Meta returns a note that was kept in the file, empty if there is none.
func (s *Store) Meta(ctx context.Context, key string) (value string, err error) {
	err = s.turn(ctx, func(ctx context.Context, conn *sql.Conn) error {
		err := conn.QueryRowContext(ctx, `SELECT value FROM jiji_meta WHERE key = ?`, key).Scan(&value)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return value, err
}

// SetMeta keeps a note in the file.
func (s *Store) SetMeta(ctx context.Context, key, value string) error {
	return s.write(ctx, func(ctx context.Context, tx *writer) error {
		_, err := tx.tx.ExecContext(ctx, `INSERT INTO jiji_meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
		return err
	})
}

// Run implements registry.Store: it publishes what another process wrote to
// the file, within about a second.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(s.poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := s.turn(ctx, s.refresh)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, registry.ErrClosed):
			return fmt.Errorf("follow %w", err)
		case err != nil && err.Error() != s.Problem():
			problem := err.Error()
			s.problem.Store(&problem)
			s.cfg.Log.Error("registry cannot be read", "err", err)
		case err == nil && s.Problem() != "":
			s.problem.Store(nil)
			s.cfg.Log.Info("registry can be read again")
		}
	}
}

// Problem implements registry.Store.
func (s *Store) Problem() string {
	if p := s.problem.Load(); p != nil {
		return *p
	}
	return ""
}

// Close implements registry.Store. It moves what is in the write-ahead log
// into the file, unless another process has it open.
func (s *Store) Close() error { return s.close() }

func (s *Store) shut() error {
	s.closed.Store(true)
	if err := s.db.Close(); err != nil { // its last connection checkpoints
		return fmt.Errorf("close registry %s: %w", s.cfg.Path, err)
	}
	return nil
}

// turn calls f with the connection, which is waited for until ctx is done.
// f itself is not interrupted, so that nobody is left guessing whether a
// write happened: the busy timeout bounds it.
func (s *Store) turn(ctx context.Context, f func(context.Context, *sql.Conn) error) error {
	if err := ctx.Err(); err != nil {
		return s.fault(err)
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return s.fault(err)
	}
	defer conn.Close()
	if err := f(context.WithoutCancel(ctx), conn); err != nil {
		return s.fault(err)
	}
	return nil
}

// write runs f in a transaction and publishes what it changed.
func (s *Store) write(ctx context.Context, f func(context.Context, *writer) error) error {
	return s.turn(ctx, func(ctx context.Context, conn *sql.Conn) error {
		if err := s.unmoved(); err != nil {
			return err
		}
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // nothing to do after Commit
		w := &writer{tx: tx, self: s.cfg.ServerID}
		if err := f(ctx, w); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		if w.changes == 0 {
			return s.refresh(ctx, conn)
		}
		if err := s.read(ctx, conn); err != nil {
			return fmt.Errorf("written, but not read back: %w", err)
		}
		return nil
	})
}

// refresh reads everything if another process wrote since the last time.
func (s *Store) refresh(ctx context.Context, conn *sql.Conn) error {
	if err := s.unmoved(); err != nil {
		return err
	}
	version, err := dataVersion(ctx, conn)
	if err != nil || version == s.version {
		return err
	}
	return s.read(ctx, conn)
}

// read publishes a new snapshot.
func (s *Store) read(ctx context.Context, conn *sql.Conn) error {
	version, err := dataVersion(ctx, conn) // first: what comes between is read twice, not never
	if err != nil {
		return err
	}
	rows, err := readRows(ctx, conn)
	if err != nil {
		return err
	}
	next := registry.NewSnapshot(rows)
	var known []registry.Skipped
	if last := s.snapshot.Load(); last != nil {
		known = last.Skipped
	}
	for _, k := range next.Skipped {
		if !slices.Contains(known, k) {
			s.cfg.Log.Warn("registry row skipped", "table", k.Table, "key", k.Key, "reason", k.Reason)
		}
	}
	s.version = version
	s.snapshot.Store(next)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// unmoved reports whether the path still leads to the open file: writes to one
// that was deleted would be lost with the process.
func (s *Store) unmoved() error {
	now, err := os.Stat(s.cfg.Path)
	if err == nil && os.SameFile(s.file, now) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.New("the file was removed or replaced while in use: put it back or restart jiji-node")
}
