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
	entries  map[string]*entry
	projects map[string]any // the cells of services
	services map[string]map[string]*Container
	groups   map[string]*Service
	names    []string // of groups, sorted
	dirty    map[string]bool
	skipped  map[Skipped]int // how many rows have it
	count    int

	last        *Snapshot
	skipChanged bool
	words       map[string]string // those that many rows share, kept once
}

// An entry is all that is known of one container.
type entry struct {
	row     *Container // of containers; nil if there is none, or none to be believed
	fault   *Skipped   // why the row is not believed
	more    *extra     // of jiji_containers
	local   *Container // said here, whatever the tables say
	shown   *Container // the outcome
	skipped []Skipped
}

// NewCatalog returns an empty one.
func NewCatalog() *Catalog {
	return &Catalog{
		entries: map[string]*entry{}, projects: map[string]any{}, services: map[string]map[string]*Container{},
		groups: map[string]*Service{}, dirty: map[string]bool{}, skipped: map[Skipped]int{}, words: map[string]string{},
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

// SetRow takes r as the row of containers with that id. Only the cells of that
// table are looked at.
func (c *Catalog) SetRow(id string, r Row) {
	e := c.entry(id)
	e.row, e.fault = nil, nil
	if !empty(r.Service) || !empty(r.ServerID) || !empty(r.IP) { // else it is not here yet
		row, err := r.base()
		if err != nil {
			e.fault = &Skipped{"containers", key(r.ID), err.Error()}
		} else {
			row.Service, row.ServerID = c.word(row.Service), c.word(row.ServerID)
			row.Health = Health(c.word(string(row.Health)))
			e.row = &row
		}
	}
	c.settle(id, e)
}

// DropRow says that containers has no such row.
func (c *Catalog) DropRow(id string) {
	if e := c.entries[id]; e != nil {
		e.row, e.fault = nil, nil
		c.settle(id, e)
	}
}

// Row returns the row of containers with that id, nil if there is none that
// can be believed.
func (c *Catalog) Row(id string) *Container {
	if e := c.entries[id]; e != nil {
		return e.row
	}
	return nil
}

// SetExtra takes r as the row of jiji_containers with that id.
func (c *Catalog) SetExtra(id string, r Row) {
	e := c.entry(id)
	more := r.ours()
	more.owner, more.project = c.word(more.owner), c.word(more.project)
	e.more = &more
	if empty(r.OursServerID) { // it is not here yet
		e.more = nil
	}
	c.settle(id, e)
}

// DropExtra says that jiji_containers has no such row.
func (c *Catalog) DropExtra(id string) {
	if e := c.entries[id]; e != nil {
		e.more = nil
		c.settle(id, e)
	}
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
	for id := range maps.Clone(c.services[strings.ToLower(service)]) {
		c.settle(id, c.entries[id])
	}
}

// SetLocal has v shown under its id, whatever the tables say.
func (c *Catalog) SetLocal(v Container) {
	e := c.entry(v.ID)
	e.local = &v
	c.settle(v.ID, e)
}

// DropLocal takes that back.
func (c *Catalog) DropLocal(id string) {
	if e := c.entries[id]; e != nil {
		e.local = nil
		c.settle(id, e)
	}
}

// Shown returns the container with that id as the next Snapshot has it, or nil.
func (c *Catalog) Shown(id string) *Container {
	if e := c.entries[id]; e != nil {
		return e.shown
	}
	return nil
}

func (c *Catalog) entry(id string) *entry {
	e := c.entries[id]
	if e == nil {
		e = &entry{}
		c.entries[id] = e
	}
	return e
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

// settle makes e.shown anew, and marks what that changes.
func (c *Catalog) settle(id string, e *entry) {
	shown, skipped := c.show(id, e)
	if !slices.Equal(skipped, e.skipped) {
		c.skipChanged = true
		for _, k := range e.skipped {
			if c.skipped[k]--; c.skipped[k] == 0 {
				delete(c.skipped, k)
			}
		}
		for _, k := range skipped {
			c.skipped[k]++
		}
		e.skipped = skipped
	}
	defer func() {
		if e.row == nil && e.fault == nil && e.more == nil && e.local == nil {
			delete(c.entries, id)
		}
	}()
	if shown == e.shown {
		return
	}
	if old := e.shown; old != nil && (shown == nil || !strings.EqualFold(old.Service, shown.Service)) {
		name := strings.ToLower(old.Service)
		delete(c.services[name], id)
		c.dirty[name] = true
		c.count--
	}
	if shown != nil {
		name := strings.ToLower(shown.Service)
		ids := c.services[name]
		if ids == nil {
			ids = map[string]*Container{}
			c.services[name] = ids
		}
		if ids[id] == nil {
			c.count++
		}
		ids[id] = shown
		c.dirty[name] = true
	}
	e.shown = shown
}

func (c *Catalog) show(id string, e *entry) (*Container, []Skipped) {
	if e.local != nil {
		return e.local, nil
	}
	if e.row == nil {
		if e.fault != nil {
			return nil, []Skipped{*e.fault}
		}
		return nil, nil
	}
	var skipped []Skipped
	shown := e.row
	project, err := serviceProject(c.projects[shown.Service])
	if err != nil {
		skipped = append(skipped, Skipped{"services", key(shown.Service), err.Error()})
	} else if project != "" && e.more == nil {
		with := *shown
		with.Project = c.word(project)
		shown = &with
	}
	if e.more != nil {
		with, err := e.more.of(*e.row)
		if err != nil {
			with = *e.row
			with.Project = project
			skipped = append(skipped, Skipped{"jiji_containers", key(id), err.Error()})
		}
		shown = &with
	}
	return shown, skipped
}

// Snapshot returns the catalog as it is now; the same pointer as the last time
// if nothing changed.
func (c *Catalog) Snapshot() *Snapshot {
	if c.last != nil && len(c.dirty) == 0 && !c.skipChanged {
		return c.last
	}
	for name := range c.dirty {
		at, known := slices.BinarySearch(c.names, name)
		ids := c.services[name]
		if len(ids) == 0 {
			delete(c.services, name)
			delete(c.groups, name)
			if known {
				c.names = slices.Delete(c.names, at, at+1)
			}
			continue
		}
		if !known {
			c.names = slices.Insert(c.names, at, name)
		}
		g := &Service{Name: name, Containers: make([]*Container, 0, len(ids))}
		for _, v := range ids {
			g.Containers = append(g.Containers, v)
		}
		slices.SortFunc(g.Containers, func(a, b *Container) int { return strings.Compare(a.ID, b.ID) })
		c.groups[name] = g
	}
	clear(c.dirty)
	s := &Snapshot{Services: make([]*Service, len(c.names)), count: c.count}
	for i, name := range c.names {
		s.Services[i] = c.groups[name]
	}
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
