package registry

import (
	"maps"
	"slices"
	"strings"
)

// A Catalog makes Snapshots of rows that come one by one, in time proportional
// to what changed: a service with its containers, and one pointer for each of the
// other services. Its rows are keyed as in their tables. It belongs to one
// goroutine; the zero value is not usable.
type Catalog struct {
	entries  map[string]entry
	projects map[string]any    // the cells of services
	groups   map[string]*group // by service, in lower case
	services []*Service        // in order of name
	dirty    map[string]struct{}
	skipped  map[Skipped]int // how many rows have it
	count    int

	last        *Snapshot
	skipChanged bool
	words       map[string]string // those that many rows share, kept once
	ports       map[string][]Port // likewise, by the text of their cell
}

// A group is the containers of a service.
type group struct {
	service *Service              // as in the last snapshot; nil if it has none
	since   map[string]*Container // what changed since, by id; nil: it is gone
}

// An entry is all that is known of one container. For nearly all that follows
// from what is shown, and is not kept twice.
type entry struct {
	shown *Container // nil: nothing is
	both  bool       // shown is a row of containers with one of jiji_containers; else of containers alone
	odd   *facts     // what shown does not tell; nil: it tells all
}

// facts are what there is to say of a container.
type facts struct {
	id      string     // as it is kept
	row     Container  // of containers
	known   bool       // there is such a row, and it is to be believed
	fault   *Skipped   // why it is not
	more    extra      // of jiji_containers
	added   bool       // there is such a row
	local   *Container // said here, whatever the tables say
	skipped []Skipped  // the outcome, beside what is shown
}

// facts returns what e is made of.
func (e entry) facts() (f facts) {
	if e.odd != nil {
		return *e.odd
	}
	if e.shown == nil {
		return f
	}
	f.row, f.known = *e.shown, true
	if e.both {
		f.more, f.added = extra{owner: f.row.ServerID, project: f.row.Project, name: f.row.Name, ports: f.row.Ports, external: f.row.External}, true
	}
	f.row.Project, f.row.Name, f.row.External, f.row.Ports = "", "", false, nil // what jiji_containers and services add
	return f
}

// NewCatalog returns an empty one.
func NewCatalog() *Catalog {
	return &Catalog{
		entries: map[string]entry{}, projects: map[string]any{}, groups: map[string]*group{}, dirty: map[string]struct{}{},
		skipped: map[Skipped]int{}, words: map[string]string{}, ports: map[string][]Port{},
	}
}

// NewSnapshot returns what is to be believed of whole rows.
func NewSnapshot(rows []Row) *Snapshot {
	c := NewCatalog()
	for _, r := range rows {
		if r.ServiceProject != nil {
			if name, ok := r.Service.(string); ok {
				c.projects[name] = r.ServiceProject
			}
		}
		id := rowID(r.ID)
		if !empty(r.OursServerID) {
			c.SetExtra(id, r)
		}
		c.SetRow(id, r)
	}
	return c.Snapshot()
}

// rowID is the key of a row whose id need not be text.
func rowID(cell any) string {
	if s, ok := cell.(string); ok {
		return s
	}
	return show(cell)
}

// ID returns the copy of a container's id that the catalog keeps, or id if it keeps
// none: of tens of thousands of rows in two tables the same text is kept once.
func (c *Catalog) ID(id string) string {
	e := c.entries[id]
	switch {
	case e.odd != nil:
		return e.odd.id
	case e.shown != nil:
		return e.shown.ID
	}
	return id
}

// SetRow takes r as the row of containers with that id. Only the cells of that
// table are looked at.
func (c *Catalog) SetRow(id string, r Row) {
	id = c.ID(id)
	f := c.entries[id].facts()
	f.row, f.known, f.fault = Container{}, false, nil
	if !empty(r.Service) || !empty(r.ServerID) || !empty(r.IP) { // else it is not here yet
		row, err := r.base()
		if err != nil {
			f.fault = &Skipped{"containers", key(r.ID), err.Error()}
		} else {
			row.ID = id
			row.Service, row.ServerID = c.word(row.Service), c.word(row.ServerID)
			row.Health = Health(c.word(string(row.Health)))
			f.row, f.known = row, true
		}
	}
	c.settle(id, &f)
}

// DropRow says that containers has no such row.
func (c *Catalog) DropRow(id string) {
	f := c.entries[id].facts()
	f.row, f.known, f.fault = Container{}, false, nil
	c.settle(id, &f)
}

// Owner returns whose the row of containers with that id is, "" if there is none
// that can be believed.
func (c *Catalog) Owner(id string) string {
	f := c.entries[id].facts()
	return f.row.ServerID
}

// SetExtra takes r as the row of jiji_containers with that id.
func (c *Catalog) SetExtra(id string, r Row) {
	id = c.ID(id)
	f := c.entries[id].facts()
	f.more, f.added = extra{}, false
	if !empty(r.OursServerID) { // else it is not here yet
		f.more, f.added = c.ours(r), true
	}
	c.settle(id, &f)
}

// ours is r.ours with what many rows share kept once.
func (c *Catalog) ours(r Row) extra {
	text, isText := r.Ports.(string)
	list, known := c.ports[text]
	if isText && known {
		r.Ports = nil
	}
	more := r.ours()
	more.owner, more.project = c.word(more.owner), c.word(more.project)
	switch {
	case more.err != nil || !isText:
	case known:
		more.ports = list
	case len(text) < maxShared:
		if len(c.ports) > len(c.entries)+1024 { // as word does
			clear(c.ports)
		}
		c.ports[strings.Clone(text)] = more.ports
	}
	return more
}

// maxShared is how long a cell may be, in bytes, to be kept to share it.
const maxShared = 1024

// DropExtra says that jiji_containers has no such row.
func (c *Catalog) DropExtra(id string) {
	f := c.entries[id].facts()
	f.more, f.added = extra{}, false
	c.settle(id, &f)
}

// SetProject takes a row of services.
func (c *Catalog) SetProject(service string, project any) {
	was, wasText := c.projects[service].(string)
	if text, isText := project.(string); wasText && isText && text == was {
		return
	}
	c.projects[service] = project // compared as text only: other cells may not be comparable
	c.resettle(service)
}

// DropProject says that services has no such row.
func (c *Catalog) DropProject(service string) {
	if _, ok := c.projects[service]; ok {
		delete(c.projects, service)
		c.resettle(service)
	}
}

func (c *Catalog) resettle(service string) {
	g := c.groups[strings.ToLower(service)]
	if g == nil {
		return
	}
	ids := slices.Collect(maps.Keys(g.since))
	if g.service != nil {
		for _, v := range g.service.Containers {
			ids = append(ids, v.ID)
		}
	}
	for _, id := range ids {
		f := c.entries[id].facts()
		c.settle(id, &f)
	}
}

// SetLocal has v shown under its id, whatever the tables say.
func (c *Catalog) SetLocal(v Container) {
	f := c.entries[v.ID].facts()
	f.local = &v
	c.settle(v.ID, &f)
}

// DropLocal takes that back.
func (c *Catalog) DropLocal(id string) {
	f := c.entries[id].facts()
	f.local = nil
	c.settle(id, &f)
}

func (c *Catalog) word(s string) string {
	if w, ok := c.words[s]; ok {
		return w
	}
	if len(c.words) > 4*len(c.entries)+1024 { // most are of rows that are gone; the rest comes again
		clear(c.words)
	}
	w := strings.Clone(s)
	c.words[w] = w
	return w
}

// settle shows what follows from f, and marks what that changes.
func (c *Catalog) settle(id string, f *facts) {
	was := c.entries[id]
	var wasSkipped []Skipped
	if was.odd != nil {
		wasSkipped = was.odd.skipped
	}
	next, ok, skipped := c.show(id, f)
	if !slices.Equal(skipped, wasSkipped) {
		c.skipChanged = true
		for _, k := range wasSkipped {
			if c.skipped[k]--; c.skipped[k] == 0 {
				delete(c.skipped, k)
			}
		}
		for _, k := range skipped {
			c.skipped[k]++
		}
	}
	old := was.shown
	var shown *Container
	switch {
	case !ok:
	case old != nil && next.same(old):
		shown = old
	case old != nil && strings.EqualFold(old.Service, next.Service) && c.fresh(id, old):
		// Rows of two tables make a container. If each of the many that come at first
		// took another place, what is left of the former ones would stay in use.
		*old = next
		shown = old
	default:
		shown = new(Container)
		*shown = next
	}
	switch {
	case !f.known && f.fault == nil && !f.added && f.local == nil:
		delete(c.entries, id)
	case f.local == nil && f.fault == nil && f.known && len(skipped) == 0:
		c.entries[id] = entry{shown: shown, both: f.added}
	default:
		odd := *f
		odd.id, odd.skipped = id, skipped
		c.entries[id] = entry{shown: shown, odd: &odd}
	}
	if shown == old {
		return
	}
	if old != nil && (shown == nil || !strings.EqualFold(old.Service, shown.Service)) {
		c.mark(old.Service, id, nil)
		c.count--
		old = nil
	}
	if shown != nil {
		c.mark(shown.Service, id, shown)
		if old == nil {
			c.count++
		}
	}
}

// fresh reports whether v, which is shown under id, is in no snapshot yet.
func (c *Catalog) fresh(id string, v *Container) bool {
	g := c.groups[strings.ToLower(v.Service)]
	return g != nil && g.since[id] == v
}

// mark notes what a service has under an id now.
func (c *Catalog) mark(service, id string, v *Container) {
	name := strings.ToLower(service)
	g := c.groups[name]
	if g == nil {
		g = &group{}
		c.groups[name] = g
	}
	if g.since == nil {
		g.since = map[string]*Container{}
	}
	g.since[id] = v
	c.dirty[name] = struct{}{}
}

// same reports whether c and o say the same.
func (c *Container) same(o *Container) bool {
	return c.ID == o.ID && c.Service == o.Service && c.Project == o.Project && c.Instance == o.Instance && c.Name == o.Name &&
		c.ServerID == o.ServerID && c.IP == o.IP && c.StartedAt.Equal(o.StartedAt) && c.Health == o.Health && c.LastCheck.Equal(o.LastCheck) &&
		c.Failures == o.Failures && c.HealthPort == o.HealthPort && c.External == o.External && slices.Equal(c.Ports, o.Ports)
}

// show returns what follows from f, of the container with that id; not ok: nothing is
// to be shown.
func (c *Catalog) show(id string, f *facts) (shown Container, ok bool, skipped []Skipped) {
	switch {
	case f.local != nil:
		return *f.local, true, nil
	case f.fault != nil:
		return shown, false, []Skipped{*f.fault}
	case !f.known:
		return shown, false, nil
	}
	project, err := serviceProject(c.projects[f.row.Service])
	if err != nil {
		skipped = append(skipped, Skipped{"services", key(f.row.Service), err.Error()})
	}
	shown = f.row
	if f.added {
		if shown, err = f.more.of(f.row); err == nil {
			return shown, true, skipped
		}
		shown = f.row
		skipped = append(skipped, Skipped{"jiji_containers", key(id), err.Error()})
	}
	if project != "" {
		shown.Project = c.word(project)
	}
	return shown, true, skipped
}

// Snapshot returns the catalog as it is now; the same pointer as the last time
// if nothing changed.
func (c *Catalog) Snapshot() *Snapshot {
	if c.last != nil && len(c.dirty) == 0 && !c.skipChanged {
		return c.last
	}
	for name := range c.dirty {
		g := c.groups[name]
		g.service = g.next(name)
		g.since = nil
		at, known := slices.BinarySearchFunc(c.services, name, func(s *Service, name string) int { return strings.Compare(s.Name, name) })
		switch {
		case g.service == nil:
			delete(c.groups, name)
			if known {
				c.services = slices.Delete(c.services, at, at+1)
			}
		case known:
			c.services[at] = g.service
		default:
			c.services = slices.Insert(c.services, at, g.service)
		}
	}
	clear(c.dirty)
	s := &Snapshot{Services: slices.Clone(c.services), count: c.count}
	if c.last != nil && !c.skipChanged {
		s.Skipped = c.last.Skipped
	} else {
		s.Skipped = slices.SortedFunc(maps.Keys(c.skipped), func(a, b Skipped) int {
			return strings.Compare(a.Table+"\x00"+a.Key+"\x00"+a.Reason, b.Table+"\x00"+b.Key+"\x00"+b.Reason)
		})
	}
	c.skipChanged = false
	c.last = s
	return s
}

// next returns the service with what changed since, nil if it has no containers.
func (g *group) next(name string) *Service {
	var list []*Container
	if g.service != nil {
		list = make([]*Container, 0, len(g.service.Containers)+len(g.since))
		for _, v := range g.service.Containers {
			if _, changed := g.since[v.ID]; !changed {
				list = append(list, v)
			}
		}
	}
	for _, v := range g.since {
		if v != nil {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b *Container) int { return strings.Compare(a.ID, b.ID) })
	return &Service{Name: name, Containers: slices.Clip(list)}
}
