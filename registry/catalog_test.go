package registry

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// A model is what a Catalog was told, and nothing of what it makes of it.
type model struct {
	rows, extras map[string]Row
	projects     map[string]any
	local        map[string]Container
}

// snapshot makes it anew by the definition of a row.
func (m model) snapshot() string {
	var shown []Container
	skipped := map[Skipped]bool{}
	for _, id := range slices.Sorted(maps.Keys(m.rows)) {
		if _, own := m.local[id]; own {
			continue
		}
		r := m.rows[id]
		if e, ok := m.extras[id]; ok {
			r.OursServerID, r.Project, r.Name, r.Ports, r.External = e.OursServerID, e.Project, e.Name, e.Ports, e.External
		}
		if name, ok := r.Service.(string); ok {
			r.ServiceProject = m.projects[name]
		}
		c, ok, why := r.Container()
		for _, k := range why {
			skipped[k] = true
		}
		if ok {
			shown = append(shown, c)
		}
	}
	for _, c := range m.local {
		shown = append(shown, c)
	}
	return text(shown, slices.Collect(maps.Keys(skipped)))
}

func text(containers []Container, skipped []Skipped) string {
	var lines []string
	for _, c := range containers {
		lines = append(lines, fmt.Sprintf("%s %+v", strings.ToLower(c.Service), c))
	}
	for _, k := range skipped {
		lines = append(lines, fmt.Sprintf("skipped %+v", k))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func textOf(t *testing.T, s *Snapshot) string {
	t.Helper()
	var all []Container
	names := []string{}
	for _, g := range s.Services {
		names = append(names, g.Name)
		for i, c := range g.Containers {
			if strings.ToLower(c.Service) != g.Name || i > 0 && g.Containers[i-1].ID >= c.ID {
				t.Fatalf("service %s has container %d, %+v", g.Name, i, c)
			}
			all = append(all, *c)
		}
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) || len(all) != s.Len() {
		t.Fatalf("services %v, %d containers of %d", names, len(all), s.Len())
	}
	return text(all, s.Skipped)
}

func randomRow(r *rand.Rand, id string) Row {
	pick := func(of ...any) any { return of[r.IntN(len(of))] }
	row := Row{ID: id, Service: pick("api", "API", "db"), ServerID: pick("web1", "web2"), IP: pick("10.210.1.15", "10.210.1.16"), StartedAt: int64(1), Health: pick("healthy", "starting")}
	switch r.IntN(8) {
	case 0:
		row.Service, row.ServerID, row.IP = "", "", "" // not here yet
	case 1:
		row.IP = pick("nonsense", int64(7), nil, []byte("x"))
	case 2:
		row.Health = pick("fine", int64(1))
	}
	return row
}

func randomExtra(r *rand.Rand, id string) Row {
	pick := func(of ...any) any { return of[r.IntN(len(of))] }
	return Row{ID: id, OursServerID: pick("web1", "web1", "web2", ""), Project: pick("shop", "", "no project"), Name: pick("x", ""), Ports: pick(`["80/tcp"]`, "[]", "nonsense"), External: int64(r.IntN(2))}
}

// After any changes a catalog has what one made anew of the same rows has, and
// earlier snapshots are what they were.
func TestCatalogIsItsRows(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		c, m := NewCatalog(), model{map[string]Row{}, map[string]Row{}, map[string]any{}, map[string]Container{}}
		earlier, was := []*Snapshot{}, []string{}
		for step := range 150 {
			id := fmt.Sprintf("c%d", r.IntN(8))
			name := []string{"api", "API", "db"}[r.IntN(3)]
			what := r.IntN(10)
			switch what {
			case 0, 1, 2:
				m.rows[id] = randomRow(r, id)
				c.SetRow(id, m.rows[id])
			case 3:
				delete(m.rows, id)
				c.DropRow(id)
			case 4:
				m.extras[id] = randomExtra(r, id)
				c.SetExtra(id, m.extras[id])
			case 5:
				delete(m.extras, id)
				c.DropExtra(id)
			case 6:
				m.projects[name] = []any{"shop", "blog", "no project", "", int64(5)}[r.IntN(5)]
				c.SetProject(name, m.projects[name])
			case 7:
				delete(m.projects, name)
				c.DropProject(name)
			case 8:
				v := valid()
				v.ID, v.Service = id, name
				m.local[id] = v
				c.SetLocal(v)
			case 9:
				delete(m.local, id)
				c.DropLocal(id)
			}
			if r.IntN(3) > 0 {
				continue
			}
			s := c.Snapshot()
			if got, want := textOf(t, s), m.snapshot(); got != want {
				t.Fatalf("seed %d, step %d, %d:\n%s\nwant\n%s", seed, step, what, got, want)
			}
			if c.Snapshot() != s {
				t.Fatal("another snapshot without a change")
			}
			earlier, was = append(earlier, s), append(was, textOf(t, s))
			var rows []Row
			for id, row := range m.rows {
				if e, ok := m.extras[id]; ok {
					row.OursServerID, row.Project, row.Name, row.Ports, row.External = e.OursServerID, e.Project, e.Name, e.Ports, e.External
				}
				row.ServiceProject = m.projects[fmt.Sprint(row.Service)]
				rows = append(rows, row)
			}
			if len(m.local) == 0 && textOf(t, NewSnapshot(rows)) != textOf(t, s) {
				t.Fatalf("seed %d, step %d: NewSnapshot of the same rows is\n%s\nnot\n%s", seed, step, textOf(t, NewSnapshot(rows)), textOf(t, s))
			}
		}
		for i, s := range earlier {
			if textOf(t, s) != was[i] {
				t.Fatalf("seed %d: snapshot %d was changed after it was made", seed, i)
			}
		}
		for id := range m.rows {
			c.DropRow(id)
		}
		for id := range m.extras {
			c.DropExtra(id)
		}
		for id := range m.local {
			c.DropLocal(id)
		}
		if s := c.Snapshot(); s.Len() != 0 || len(s.Skipped) != 0 || len(c.entries) != 0 || len(c.dirty) != 0 || len(c.groups) != 0 {
			t.Fatalf("seed %d: all rows are gone, %d containers, %v skipped, %d entries, %d services stay", seed, s.Len(), s.Skipped, len(c.entries), len(c.dirty))
		}
	}
}
