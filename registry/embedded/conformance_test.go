package embedded

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/registrytest"
)

func TestConformance(t *testing.T) {
	registrytest.Test(t, func(t *testing.T) (registry.Store, registrytest.Outside) {
		path := filepath.Join(t.TempDir(), "registry.db")
		return open(t, path), openOutside(t, path)
	})
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self})
	if err != nil {
		t.Fatal(err)
	}
	s.poll = 20 * time.Millisecond
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// outside is another connection to the file.
type outside struct{ conn *sql.Conn }

func openOutside(t *testing.T, path string) outside {
	t.Helper()
	name, err := dsn(path, timeout)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return outside{conn}
}

func (o outside) Exec(ctx context.Context, statement string, args ...any) error {
	_, err := o.conn.ExecContext(ctx, statement, args...)
	return err
}

func (outside) Ready() bool { return true }

func (o outside) Version(ctx context.Context) (int64, error) { return dataVersion(ctx, o.conn) }
