package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/acidtib/jiji-node/registry"
)

// migrations lead from version to version of the file, by addition only.
var migrations = []string{
	registry.SharedSchema + registry.OwnSchema,
	registry.ServersSchema,
}

// oldest is the first version whose programs can use a file of the newest.
const oldest = 1

// prepare makes the file if it is absent. It never opens one that is there:
// closing it again would drop the locks that this process has on it (POSIX).
func prepare(path string) (fs.FileInfo, error) {
	info, err := os.Stat(path)
	absent := errors.Is(err, fs.ErrNotExist)
	if err != nil && !absent {
		return nil, err
	}
	if !absent && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file (%v)", path, info.Mode())
	}
	if wal, err := os.Stat(path + "-wal"); err == nil && wal.Size() > 0 && (absent || info.Size() == 0) {
		// SQLite would drop the log, and all that is in it.
		return nil, fmt.Errorf("%s is absent or empty, but there is %s-wal: put the file that it belongs to back, or move it away", path, path)
	}
	if absent {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(f.Sync(), f.Close(), syncDir(filepath.Dir(path))); err != nil {
			return nil, err
		}
	}
	return os.Stat(path)
}

// Check says why Open would refuse the file, as far as its beginning tells. One that is
// absent is made by Open. It writes nothing.
func Check(path string) error {
	const magic = "SQLite format 3\x00" // https://www.sqlite.org/fileformat.html, section 1.3.1
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	begin := make([]byte, len(magic))
	n, err := io.ReadFull(f, begin)
	switch {
	case errors.Is(err, io.EOF): // empty: new
		return nil
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case string(begin[:n]) != magic:
		s := Store{cfg: Config{Path: path}}
		return s.fault(&damageError{"it begins with other bytes than one"})
	}
	return nil
}

// restrict gives the file and what SQLite put beside it their mode. SQLite
// makes new ones with the mode of the file.
func restrict(path string) error {
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.Chmod(name, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be synced there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// dsn names the file, which must exist, and what every connection is set to.
func dsn(path string, busy time.Duration) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	q := url.Values{
		"mode":          {"rw"},
		"_txlock":       {"immediate"}, // no transaction of ours only reads
		"_busy_timeout": {strconv.FormatInt(busy.Milliseconds(), 10)},
		"_synchronous":  {"FULL"},
		"_defensive":    {"1"},
		"_dqs":          {"0"},
		"_error_rc":     {"1"},
		"_pragma": {
			"cache_size(-256)", // KiB; the whole table of a server fits
			"temp_store(MEMORY)",
			"wal_autocheckpoint(128)", // pages
			"journal_size_limit(1048576)",
			"cell_size_check(ON)",
			"trusted_schema(OFF)",
		},
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(abs), RawQuery: q.Encode()}).String(), nil
}

// migrate brings the file to the newest version. It writes nothing to one
// that is damaged or holds somebody else's tables.
func migrate(ctx context.Context, conn *sql.Conn) error {
	var verdict string
	if err := conn.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return &damageError{strings.Join(strings.Fields(verdict), " ")}
	}
	have, err := fileVersion(ctx, conn)
	if err != nil || have >= len(migrations) {
		return err
	}
	if _, err := conn.ExecContext(ctx, `PRAGMA journal_mode = WAL`); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // nothing to do after Commit
	for _, m := range migrations[have:] {
		if _, err := tx.ExecContext(ctx, m); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `
		INSERT INTO jiji_meta (key, value) VALUES ('schema_version', ?), ('schema_oldest', ?)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value`, strconv.Itoa(len(migrations)), strconv.Itoa(oldest)); err != nil {
		return err
	}
	return tx.Commit()
}

// fileVersion returns 0 for an empty file. A newer one than ours is fine
// unless it says that it is not.
func fileVersion(ctx context.Context, conn *sql.Conn) (int, error) {
	rows, err := conn.QueryContext(ctx, `SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return 0, err
		}
		tables = append(tables, name)
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if len(tables) == 0 {
		return 0, nil
	}
	if !slices.Contains(tables, "jiji_meta") {
		return 0, fmt.Errorf("the file is a database of another program (tables %s): name another file", strings.Join(tables[:min(len(tables), 5)], ", "))
	}
	version, err := meta(ctx, conn, "schema_version")
	if err != nil {
		return 0, err
	}
	needs, err := meta(ctx, conn, "schema_oldest")
	if err != nil {
		return 0, err
	}
	if needs > len(migrations) {
		return 0, fmt.Errorf("the file has schema %d, for programs that know schema %d, and this one knows %d: run the newer jiji-node", version, needs, len(migrations))
	}
	return version, nil
}

func meta(ctx context.Context, conn *sql.Conn, key string) (int, error) {
	var text string
	err := conn.QueryRowContext(ctx, `SELECT value FROM jiji_meta WHERE key = ?`, key).Scan(&text)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, &damageError{fmt.Sprintf("%s is %q in jiji_meta, want a number from 1", key, text)}
	}
	return n, nil
}

// A damageError is found by us, not by SQLite.
type damageError struct{ what string }

func (e *damageError) Error() string { return e.what }

// fault names the file and says what SQLite's codes mean for who runs this.
func (s *Store) fault(err error) error {
	const refused = "damaged, or not an SQLite database: move it away together with its -wal and -shm files and start again"
	var (
		path     = s.cfg.Path
		owner    *registry.OwnerError
		damage   *damageError
		ofSQLite *sqlite.Error
	)
	switch {
	case errors.As(err, &owner), errors.Is(err, registry.ErrNotFound):
		return err // about a container, not about the file
	case errors.As(err, &damage):
		return fmt.Errorf("registry %s: %s: %w", path, refused, err)
	case errors.As(err, &ofSQLite):
	case s.closed.Load(): // as database/sql says in a way that nobody can test for
		return fmt.Errorf("%w: %s", registry.ErrClosed, path)
	default:
		return fmt.Errorf("registry %s: %w", path, err)
	}
	var what string
	switch ofSQLite.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		what = "disk full, nothing was written: "
	case sqlite3.SQLITE_BUSY:
		what = fmt.Sprintf("locked by another program for %v (fuser shows it): ", s.cfg.BusyTimeout)
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		what = refused + ": "
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		what = "not writable: "
	case sqlite3.SQLITE_CANTOPEN:
		what = "cannot be opened, or no -wal and -shm files beside it: "
	case sqlite3.SQLITE_IOERR:
		what = "the disk is full or faulty: "
	}
	return fmt.Errorf("registry %s: %s%w", path, what, err)
}
