package cluster

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
	"github.com/acidtib/jiji-node/registry/embedded"
	"github.com/acidtib/jiji-node/registry/registrytest"
)

const schema = registry.SharedSchema + registry.OwnSchema + registry.ServersSchema

func TestConformanceOnRealAgent(t *testing.T) {
	registrytest.Test(t, func(t *testing.T) (registry.Store, registrytest.Outside) {
		a := agenttest.Start(t, agenttest.Options{Schema: schema})
		s := open(t, a.URL)
		return s, outside{client(t, a.URL), s}
	})
}

func client(t *testing.T, url string) *corrosion.Client {
	t.Helper()
	c, err := corrosion.New(corrosion.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func open(t *testing.T, url string) *Store {
	t.Helper()
	local, err := embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(t.TempDir(), "registry.db"), ServerID: registrytest.Self})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Client: client(t, url), Local: local, ServerID: registrytest.Self, BootID: "boot"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// outside is another client of the same agent.
type outside struct {
	c *corrosion.Client
	s *Store
}

func (o outside) Ready() bool { return o.s.followsNow() && o.s.writing.Load().caughtUp }

func (o outside) Exec(ctx context.Context, statement string, args ...any) error {
	_, err := o.c.Exec(ctx, corrosion.SQL(statement, args...))
	return err
}

func (o outside) Version(ctx context.Context) (version int64, err error) {
	err = o.c.Query(ctx, corrosion.SQL("SELECT coalesce(max(db_version), 0) FROM crsql_changes"), func(cells []any) error {
		version = cells[0].(int64)
		return nil
	})
	return version, err
}
