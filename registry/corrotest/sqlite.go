package corrotest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// The database/sql driver hides what the agent's answers show: the offset of an
// error in the statement, whether a statement writes, and its text with the
// parameters put in. Hence this thin layer over SQLite's own interface.

// A value is a cell: nil, int64, float64, string or []byte.
type value any

// A db is one SQLite database in memory. Its user sees to it that one goroutine
// at a time is inside; only interrupt may come from outside.
type db struct {
	tls    *libc.TLS
	handle uintptr
	out    uintptr          // room for one pointer that SQLite hands back
	cache  map[string]*stmt // statements of our own, by text
}

func openDB() (*db, error) {
	d := &db{tls: libc.NewTLS(), cache: map[string]*stmt{}}
	name, err := libc.CString(":memory:")
	if err != nil {
		return nil, err
	}
	defer libc.Xfree(d.tls, name)
	d.out = libc.Xmalloc(d.tls, 16)
	rc := lib.Xsqlite3_open_v2(d.tls, name, d.out, lib.SQLITE_OPEN_READWRITE|lib.SQLITE_OPEN_CREATE|lib.SQLITE_OPEN_MEMORY, 0)
	d.handle = libc.AtomicLoadPUintptr(d.out)
	if rc != lib.SQLITE_OK {
		return nil, fmt.Errorf("open a database in memory: %s", d.message())
	}
	return d, nil
}

func (d *db) close() {
	for _, s := range d.cache {
		s.finalize()
	}
	lib.Xsqlite3_close_v2(d.tls, d.handle)
	libc.Xfree(d.tls, d.out)
	d.tls.Close()
}

// interruptAfter makes statements that run longer fail with "interrupted"; the
// function it returns ends that. Zero means never.
func (d *db) interruptAfter(limit time.Duration) (stop func()) {
	if limit <= 0 {
		return func() {}
	}
	done := make(chan struct{})
	t := time.AfterFunc(limit, func() {
		defer close(done)
		tls := libc.NewTLS()
		defer tls.Close()
		lib.Xsqlite3_interrupt(tls, d.handle)
	})
	return func() {
		if !t.Stop() {
			<-done
		}
	}
}

func (d *db) message() string { return libc.GoString(lib.Xsqlite3_errmsg(d.tls, d.handle)) }

func (d *db) changes() int64 { return int64(lib.Xsqlite3_changes(d.tls, d.handle)) }

func (d *db) inTransaction() bool { return lib.Xsqlite3_get_autocommit(d.tls, d.handle) == 0 }

var errMultiple = errors.New("Multiple statements provided") //lint:ignore ST1005 the agent's words

// prepare compiles the one statement of sql. Errors have the agent's words.
// A statement of nothing, as of "", is fine until it is stepped.
func (d *db) prepare(sql string) (*stmt, error) {
	s, tail, err := d.compile(sql)
	if err != nil {
		return nil, err
	}
	for strings.TrimSpace(tail) != "" {
		next, rest, err := d.compile(tail)
		if err == nil {
			next.finalize()
		}
		if err != nil || next.handle != 0 {
			s.finalize()
			return nil, errMultiple
		}
		if len(rest) >= len(tail) {
			break
		}
		tail = rest
	}
	return s, nil
}

// compile compiles the first statement of sql and returns what follows it.
func (d *db) compile(sql string) (*stmt, string, error) {
	text, err := libc.CString(sql)
	if err != nil {
		return nil, "", err
	}
	defer libc.Xfree(d.tls, text)
	if rc := lib.Xsqlite3_prepare_v2(d.tls, d.handle, text, -1, d.out, d.out+8); rc != lib.SQLITE_OK {
		msg := d.message()
		if at := lib.Xsqlite3_error_offset(d.tls, d.handle); at >= 0 {
			msg = fmt.Sprintf("%s in %s at offset %d", msg, sql, at)
		}
		return nil, "", errors.New(msg)
	}
	s := &stmt{db: d, handle: libc.AtomicLoadPUintptr(d.out)}
	return s, libc.GoString(libc.AtomicLoadPUintptr(d.out + 8)), nil
}

// script runs every statement of sql.
func (d *db) script(sql string) error {
	for strings.TrimSpace(sql) != "" {
		s, rest, err := d.compile(sql)
		if err != nil {
			return err
		}
		if s.handle != 0 {
			for more := true; more && err == nil; {
				more, err = s.step()
			}
		}
		s.finalize()
		if err != nil {
			return err
		}
		sql = rest
	}
	return nil
}

// run executes a statement of ours and returns its rows. Statements are kept.
func (d *db) run(sql string, args ...value) ([][]value, error) {
	s := d.cache[sql]
	if s == nil {
		var err error
		if s, err = d.prepare(sql); err != nil {
			return nil, err
		}
		d.cache[sql] = s
	}
	defer s.reset()
	for i, a := range args {
		if err := s.bind(i+1, a); err != nil {
			return nil, err
		}
	}
	return s.rows()
}

// A stmt is a compiled statement.
type stmt struct {
	db     *db
	handle uintptr // zero for the statement of nothing
}

func (s *stmt) finalize() { lib.Xsqlite3_finalize(s.db.tls, s.handle) }

func (s *stmt) reset() {
	lib.Xsqlite3_reset(s.db.tls, s.handle)
	lib.Xsqlite3_clear_bindings(s.db.tls, s.handle)
}

func (s *stmt) readOnly() bool { return lib.Xsqlite3_stmt_readonly(s.db.tls, s.handle) != 0 }

func (s *stmt) parameters() int {
	return int(lib.Xsqlite3_bind_parameter_count(s.db.tls, s.handle))
}

// parameter returns the index of the parameter with that name, zero if none.
func (s *stmt) parameter(name string) int {
	text, err := libc.CString(name)
	if err != nil {
		return 0
	}
	defer libc.Xfree(s.db.tls, text)
	return int(lib.Xsqlite3_bind_parameter_index(s.db.tls, s.handle, text))
}

// expanded returns the text with the parameters put in, and "" if there is none.
func (s *stmt) expanded() string {
	if s.handle == 0 {
		return ""
	}
	p := lib.Xsqlite3_expanded_sql(s.db.tls, s.handle)
	defer lib.Xsqlite3_free(s.db.tls, p)
	return libc.GoString(p)
}

const transient = ^uintptr(0) // SQLITE_TRANSIENT: SQLite copies what is bound

func (s *stmt) bind(i int, v value) error {
	tls, at := s.db.tls, int32(i)
	var rc int32
	switch v := v.(type) {
	case nil:
		rc = lib.Xsqlite3_bind_null(tls, s.handle, at)
	case int64:
		rc = lib.Xsqlite3_bind_int64(tls, s.handle, at, v)
	case float64:
		rc = lib.Xsqlite3_bind_double(tls, s.handle, at, v)
	case string:
		p, err := libc.CString(v)
		if err != nil {
			return err
		}
		defer libc.Xfree(tls, p)
		rc = lib.Xsqlite3_bind_text(tls, s.handle, at, p, int32(len(v)), transient)
	case []byte:
		p, err := libc.CString(string(v))
		if err != nil {
			return err
		}
		defer libc.Xfree(tls, p)
		rc = lib.Xsqlite3_bind_blob(tls, s.handle, at, p, int32(len(v)), transient)
	default:
		return fmt.Errorf("bind parameter %d: a %T is no SQLite value", i, v)
	}
	if rc != lib.SQLITE_OK {
		return errors.New(s.db.message())
	}
	return nil
}

// step reports whether there is a row.
func (s *stmt) step() (bool, error) {
	if s.handle == 0 {
		return false, errors.New("bad parameter or other API misuse")
	}
	switch lib.Xsqlite3_step(s.db.tls, s.handle) {
	case lib.SQLITE_ROW:
		return true, nil
	case lib.SQLITE_DONE:
		return false, nil
	}
	return false, errors.New(s.db.message())
}

func (s *stmt) columns() []string {
	names := make([]string, lib.Xsqlite3_column_count(s.db.tls, s.handle))
	for i := range names {
		names[i] = libc.GoString(lib.Xsqlite3_column_name(s.db.tls, s.handle, int32(i)))
	}
	return names
}

func (s *stmt) row() []value {
	row := make([]value, lib.Xsqlite3_column_count(s.db.tls, s.handle))
	for i := range row {
		tls, at := s.db.tls, int32(i)
		switch lib.Xsqlite3_column_type(tls, s.handle, at) {
		case lib.SQLITE_INTEGER:
			row[i] = lib.Xsqlite3_column_int64(tls, s.handle, at)
		case lib.SQLITE_FLOAT:
			f := lib.Xsqlite3_column_double(tls, s.handle, at)
			if math.IsNaN(f) {
				continue
			}
			row[i] = f
		case lib.SQLITE_TEXT:
			p := lib.Xsqlite3_column_text(tls, s.handle, at)
			row[i] = string(libc.GoBytes(p, int(lib.Xsqlite3_column_bytes(tls, s.handle, at))))
		case lib.SQLITE_BLOB:
			b := []byte{}
			if n := int(lib.Xsqlite3_column_bytes(tls, s.handle, at)); n > 0 {
				b = bytes.Clone(libc.GoBytes(lib.Xsqlite3_column_blob(tls, s.handle, at), n))
			}
			row[i] = b
		}
	}
	return row
}

func (s *stmt) rows() ([][]value, error) {
	var rows [][]value
	for {
		more, err := s.step()
		if err != nil || !more {
			return rows, err
		}
		rows = append(rows, s.row())
	}
}
