package registry

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"unsafe"
)

// catalogOf has that many containers, 32 to a service.
func catalogOf(n int) *Catalog {
	c := NewCatalog()
	for i := range n {
		r := containerRow(i, "healthy")
		c.SetRow(r.ID.(string), r)
		c.SetExtra(r.ID.(string), r)
	}
	c.Snapshot()
	return c
}

func containerRow(i int, health string) Row {
	server := fmt.Sprintf("web%d", i/253)
	return Row{ID: fmt.Sprintf("%012x%052x", i*7919, i), Service: fmt.Sprintf("service%d", i/32), ServerID: server,
		IP: fmt.Sprintf("10.210.%d.%d", i/253, 2+i%253), Health: health, StartedAt: int64(1700000000000),
		OursServerID: server, Project: "shop", Ports: `["8080/tcp"]`}
}

// BenchmarkCatalogChange changes one container and takes the next snapshot.
// What it costs does not follow the number of containers, but for a pointer to
// each service.
func BenchmarkCatalogChange(b *testing.B) {
	for _, n := range []int{1000, 64768} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := catalogOf(n)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r := containerRow(i%n, [...]string{"unhealthy", "healthy"}[i/n%2])
				c.SetRow(r.ID.(string), r)
				c.Snapshot()
			}
		})
	}
}

// A change shares all other services with the snapshot before it.
func TestCatalogSharesUnchanged(t *testing.T) {
	c := catalogOf(3200)
	was := c.Snapshot()
	r := containerRow(40, "unhealthy")
	c.SetRow(r.ID.(string), r)
	is := c.Snapshot()
	other := 0
	for i := range was.Services {
		if was.Services[i] != is.Services[i] {
			other++
		}
	}
	if other != 1 || len(is.Services) != 100 {
		t.Errorf("%d of %d services are others, want 1 of 100", other, len(is.Services))
	}
	if again := c.Snapshot(); again != is {
		t.Error("another snapshot without a change")
	}
}

// What a snapshot has stays as it is, whatever changes after it, how often before the
// next one.
func TestCatalogSnapshotsStay(t *testing.T) {
	c := NewCatalog()
	r := containerRow(1, "healthy")
	id := r.ID.(string)
	says := func(s *Snapshot, project string, health Health) {
		t.Helper()
		if got := s.Services[0].Containers[0]; len(s.Services) != 1 || s.Len() != 1 || got.Project != project || got.Health != health {
			t.Errorf("it has %d containers, the first %+v, want project %q, health %q", s.Len(), got, project, health)
		}
	}
	c.SetExtra(id, r) // before its container
	c.SetRow(id, r)
	r.Project = "other"
	c.SetExtra(id, r)
	first := c.Snapshot()
	r.Project = "third"
	c.SetExtra(id, r)
	r.Health = "unhealthy"
	c.SetRow(id, r)
	r.Health = "starting"
	c.SetRow(id, r)
	second := c.Snapshot()
	c.SetLocal(*second.Services[0].Containers[0])
	r.Project = "fourth"
	c.SetExtra(id, r)
	c.DropLocal(id)
	third := c.Snapshot()
	c.DropExtra(id)
	c.DropRow(id)
	if n := c.Snapshot().Len(); n != 0 {
		t.Errorf("%d containers are left", n)
	}
	says(first, "other", Healthy)
	says(second, "third", Starting)
	says(third, "fourth", Starting)
}

// Of an id that comes again and again, in rows of two tables, the first copy is kept.
func TestCatalogKeepsOneID(t *testing.T) {
	c := NewCatalog()
	fresh := func() Row { return containerRow(1, "healthy") }
	first := fresh().ID.(string)
	c.SetExtra(first, fresh())
	for _, change := range []func(string, Row){c.SetRow, c.SetExtra, c.SetRow} {
		r := fresh()
		change(r.ID.(string), r)
		shown := c.Snapshot().Services[0].Containers[0].ID
		for what, got := range map[string]string{"ID": c.ID(fresh().ID.(string)), "the container": shown, "a key": slices.Collect(maps.Keys(c.entries))[0]} {
			if got != first || unsafe.StringData(got) != unsafe.StringData(first) {
				t.Errorf("%s has another copy", what)
			}
		}
	}
	if got := c.ID("unknown"); got != "unknown" {
		t.Errorf("of one that it does not know it has %q", got)
	}
}

// Ports that many rows have are kept once.
func TestCatalogSharesPorts(t *testing.T) {
	list := catalogOf(2).Snapshot().Services[0].Containers
	if len(list[0].Ports) != 1 || &list[0].Ports[0] != &list[1].Ports[0] {
		t.Errorf("ports %v and %v are not the same ones", list[0].Ports, list[1].Ports)
	}
}

// Rows that come and go leave nothing behind.
func TestCatalogForgets(t *testing.T) {
	c := NewCatalog()
	for i := range 20000 {
		r := containerRow(i%60000, "healthy")
		id := r.ID.(string)
		r.Instance = fmt.Sprint("instance", i)
		c.SetRow(id, r)
		c.SetExtra(id, r)
		c.Snapshot()
		c.DropRow(id)
		c.DropExtra(id)
		c.Snapshot()
	}
	if n := len(c.words); n > 1100 {
		t.Errorf("%d words are kept of no rows", n)
	}
	if len(c.entries)+len(c.dirty)+len(c.groups)+len(c.services)+len(c.skipped) != 0 || c.Snapshot().Len() != 0 {
		t.Errorf("left behind: %d entries, %d dirty, %d groups, %d services, %d skipped", len(c.entries), len(c.dirty), len(c.groups), len(c.services), len(c.skipped))
	}
}
