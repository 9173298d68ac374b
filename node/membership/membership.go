// Package membership keeps this machine's place in the mesh: its key, its own
// entry, and the topology as last known, in the state directory.
package membership

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/acidtib/jiji-node/node/identity"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// FileName is the name of the topology in the state directory.
const FileName = "network.json"

// A Config says where the topology comes from, and what a new machine begins with.
type Config struct {
	Dir         string // state directory, required; the caller holds its lock
	NetworkFile string // topology that others write, never written here; "": the state directory's own copy

	// For this machine's own entry. Zero leaves a known entry as it is; a new one gets the default.
	Name      string           // host name; default: the machine's
	Index     *int             // number of the subnet; default: the lowest free one
	Endpoints []netip.AddrPort // default: what Detect returns
	Detect    func() []netip.AddrPort

	Cluster netip.Prefix // must be the topology's if there is one; default: 10.210.0.0/16
	Domain  string       // likewise; default: jiji
	Log     *slog.Logger // required
}

// A Membership is open for one process at a time. Its methods may be called
// from several goroutines.
type Membership struct {
	cfg     Config
	key     wgkey.Private
	created bool // key was made by Open
	known   bool // the state directory had a topology, and the key
	changed chan struct{}

	mu      sync.Mutex // serialises changes of topo and of the file
	topo    atomic.Pointer[topology.Topology]
	problem atomic.Pointer[string] // why the newest content of the file is not in force
}

// Open reads key and topology, or makes them for a new machine. It writes
// neither: that is for Save and for changes, so that a start that is refused
// leaves nothing behind.
func Open(cfg Config) (*Membership, error) {
	key, created, err := loadKey(cfg)
	if err != nil {
		return nil, usage.Mark(err)
	}
	m := &Membership{cfg: cfg, key: key, created: created, changed: make(chan struct{}, 1)}
	known, err := topology.Load(m.path())
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return nil, usage.Mark(err)
	}
	m.known = !fresh && !created
	if cfg.NetworkFile != "" {
		given, err := topology.Load(cfg.NetworkFile)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w (named by --network)", err)
			}
			return nil, usage.Mark(err)
		}
		if created {
			return nil, usage.Errorf("%s: has no server with this machine's public key, for there is none yet in %s; add the entry that `jiji-node init` prints", cfg.NetworkFile, cfg.Dir)
		}
		if _, ok := given.Self(key.Public()); !ok {
			return nil, usage.Errorf("%s: has no server with this machine's public key %s; add the entry that `jiji-node init` prints", cfg.NetworkFile, key.Public())
		}
		if fresh {
			known = given
		} else if known, err = m.merge(known, given); err != nil {
			return nil, err
		}
	} else if fresh {
		known = topology.Topology{Cluster: cfg.Cluster, Domain: cfg.Domain, Discovery: "static", CreatedAt: now()}
		if !known.Cluster.IsValid() {
			known.Cluster = netip.MustParsePrefix(ipplan.DefaultCluster)
		}
		if known.Domain == "" {
			known.Domain = "jiji"
		}
	}
	if cfg.Cluster.IsValid() && cfg.Cluster != known.Cluster {
		hint := ""
		if cfg.NetworkFile == "" {
			hint = "; to begin anew, stop the node and move that file away"
		}
		return nil, usage.Errorf("cluster CIDR %s: this machine belongs to the cluster %s (%s)%s", cfg.Cluster, known.Cluster, m.source(), hint)
	}
	if cfg.Domain != "" && cfg.Domain != known.Domain {
		return nil, usage.Errorf("domain %q: this machine belongs to a cluster with the domain %q (%s)", cfg.Domain, known.Domain, m.source())
	}
	if known, err = m.withSelf(known, Entry{Name: cfg.Name, Index: cfg.Index, Endpoints: cfg.Endpoints}); err != nil {
		return nil, err
	}
	m.topo.Store(&known)
	return m, nil
}

// loadKey reads this machine's key, or makes one up.
func loadKey(cfg Config) (key wgkey.Private, created bool, err error) {
	key, err = identity.Load(cfg.Dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	return wgkey.NewPrivate(), true, nil
}

// now is the time with the precision that the topology's file keeps.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

func (m *Membership) path() string { return filepath.Join(m.cfg.Dir, FileName) }

// source names the file that the topology comes from.
func (m *Membership) source() string {
	if m.cfg.NetworkFile != "" {
		return m.cfg.NetworkFile
	}
	return m.path()
}

// Source names the file that the topology comes from, and whether it is
// somebody else's, which is never written.
func (m *Membership) Source() (file string, readOnly bool) {
	return m.source(), m.cfg.NetworkFile != ""
}

// Key returns this machine's private key, and whether Open made it.
func (m *Membership) Key() (key wgkey.Private, created bool) { return m.key, m.created }

// Topology returns the topology in force; it is not to be modified.
func (m *Membership) Topology() topology.Topology { return *m.topo.Load() }

// Self returns this machine's own entry.
func (m *Membership) Self() topology.Server {
	self, _ := m.topo.Load().Self(m.key.Public())
	return self
}

// Problem says why the newest content of the file is not in force; "" if it is.
func (m *Membership) Problem() string {
	if p := m.problem.Load(); p != nil {
		return *p
	}
	return ""
}

// Known reports whether key and topology were there when Open read them, so
// that a start can do without Save.
func (m *Membership) Known() bool { return m.known }

// Changed receives after each change of the topology; it has one consumer.
func (m *Membership) Changed() <-chan struct{} { return m.changed }

// Save writes key and topology to the state directory, where they are not there
// already.
func (m *Membership) Save() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.save(*m.topo.Load())
}

// save writes the key, if it is new, and t; m.mu is held.
func (m *Membership) save(t topology.Topology) error {
	if m.created {
		key, _, err := identity.Create(m.cfg.Dir, m.key)
		if err != nil {
			return err
		}
		if key != m.key {
			return fmt.Errorf("store private key: another process has just put one into %s: try again", m.cfg.Dir)
		}
	}
	return topology.Save(m.path(), t)
}

// set saves t and puts it in force; m.mu is held.
func (m *Membership) set(t topology.Topology) error {
	t.UpdatedAt = now()
	if err := m.save(t); err != nil {
		return err
	}
	m.topo.Store(&t)
	select {
	case m.changed <- struct{}{}:
	default:
	}
	return nil
}

// An Entry is what can be said of this machine's own entry; zero fields leave it.
type Entry struct {
	Name      string
	Index     *int
	Endpoints []netip.AddrPort
}

// withSelf returns t with this machine in it, as e wants it.
func (m *Membership) withSelf(t topology.Topology, e Entry) (topology.Topology, error) {
	self, known := t.Self(m.key.Public())
	if known && m.cfg.NetworkFile != "" && (e.Name != "" && e.Name != self.Hostname || e.Index != nil || len(e.Endpoints) > 0) {
		return t, usage.Errorf("this machine's entry is in %s, which jiji-node never writes: change it there", m.cfg.NetworkFile)
	}
	if !known {
		self = topology.Server{Key: m.key.Public(), ManagementIP: ipplan.Management(m.key.Public())}
	}
	hint := ""
	if e.Name == "" && self.Hostname == "" {
		host, err := os.Hostname()
		if err != nil {
			return t, fmt.Errorf("read this machine's host name: %w", err)
		}
		if host == "" {
			return t, usage.Errorf("this machine has no host name: choose one for the server with --name")
		}
		e.Name, hint = host, ", which is this machine's host name: choose one for the server with --name"
	}
	if e.Name != "" && e.Name != self.Hostname {
		id, err := ipplan.ServerID(e.Name, func(id string) bool { return idTaken(t, id, self.Key) })
		if err != nil {
			return t, usage.Errorf("%w%s", err, hint)
		}
		self.ID, self.Hostname = id, e.Name
	}
	if len(e.Endpoints) > 0 {
		self.Endpoints = e.Endpoints
	} else if !known && m.cfg.Detect != nil {
		self.Endpoints = m.cfg.Detect()
	}
	if e.Index != nil {
		subnet, err := ipplan.Subnet(t.Cluster, *e.Index)
		if err != nil {
			return t, usage.Mark(err)
		}
		self.Subnet, self.WireGuardIP = subnet, ipplan.WireGuardIP(subnet)
	}
	if !known || !self.Subnet.IsValid() {
		with, _, err := topology.Add(t, topology.EntryDoc{Server: self}, now())
		if errors.Is(err, ipplan.ErrFull) {
			return t, err
		}
		return with, usage.Mark(err)
	}
	t = t.With(self)
	return t, usage.Mark(topology.Check(t))
}

func idTaken(t topology.Topology, id string, own wgkey.Public) bool {
	for _, s := range t.Servers {
		if strings.EqualFold(s.ID, id) && s.Key != own {
			return true
		}
	}
	return false
}

// merge returns known with what given says. Absence is never removal: a server
// that given does not have stays, unless another one has its id, key or subnet.
func (m *Membership) merge(known, given topology.Topology) (topology.Topology, error) {
	if given.Cluster != known.Cluster {
		return known, usage.Errorf("%s: cluster CIDR %s: this machine belongs to the cluster %s (%s)", m.source(), given.Cluster, known.Cluster, m.path())
	}
	if given.Domain != known.Domain {
		return known, usage.Errorf("%s: domain %q: this machine belongs to a cluster with the domain %q (%s)", m.source(), given.Domain, known.Domain, m.path())
	}
	merged, superseded := merge(known, given)
	for _, s := range superseded {
		m.cfg.Log.Warn("server superseded", "id", s.ID, "key", s.Key, "subnet", s.Subnet, "source", m.source())
	}
	return merged, nil
}

// merge is the pure part. superseded are the servers of known that given's
// others exclude.
func merge(known, given topology.Topology) (merged topology.Topology, superseded []topology.Server) {
	keys := map[wgkey.Public]bool{}
	ids := map[string]bool{}
	subnets := map[netip.Prefix]bool{}
	for _, s := range given.Servers {
		keys[s.Key] = true
		ids[strings.ToLower(s.ID)] = true
		if s.RemovedAt.IsZero() && s.Subnet.IsValid() {
			subnets[s.Subnet] = true
		}
	}
	merged = given
	merged.CreatedAt = known.CreatedAt
	merged.Servers = append([]topology.Server(nil), given.Servers...)
	for _, s := range known.Servers {
		switch {
		case keys[s.Key]:
		case ids[strings.ToLower(s.ID)] || s.RemovedAt.IsZero() && subnets[s.Subnet]:
			superseded = append(superseded, s)
		default:
			merged.Servers = append(merged.Servers, s)
		}
	}
	return merged, superseded
}

// Follow takes over what others write to the topology's file, until ctx is
// done. Content that is wrong is logged, named by Problem and changes nothing.
func (m *Membership) Follow(ctx context.Context) error {
	return topology.Follow(ctx, m.source(), func(given topology.Topology, err error) {
		switch {
		case err == nil:
			err = m.take(given)
		case errors.Is(err, fs.ErrNotExist) && m.cfg.NetworkFile == "": // a restart would begin a mesh of its own
			if err = m.Save(); err == nil {
				m.cfg.Log.Warn("topology was gone; written again", "file", m.path())
			}
		}
		problem := ""
		if err != nil {
			problem = err.Error()
		}
		if old := m.problem.Swap(&problem); err != nil && (old == nil || *old != problem) {
			m.cfg.Log.Error("topology not taken over; the last good one stays in force", "err", err)
		}
	})
}

func (m *Membership) take(given topology.Topology) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.NetworkFile == "" { // what was read may be from before our own latest change
		var err error
		if given, err = topology.Load(m.path()); err != nil {
			return err
		}
	}
	known := *m.topo.Load()
	merged, err := m.merge(known, given)
	if err != nil {
		return err
	}
	was, _ := known.Self(m.key.Public())
	is, ok := merged.Self(m.key.Public())
	if !ok {
		return fmt.Errorf("%s: another server has this machine's id %s or subnet %s", m.source(), was.ID, was.Subnet)
	}
	if is.Subnet != was.Subnet {
		return fmt.Errorf("%s: moves this machine from subnet %s to %s: restart jiji-node to apply that", m.source(), was.Subnet, is.Subnet)
	}
	if err := topology.Check(merged); err != nil {
		return err
	}
	if merged.Equal(known) {
		return nil
	}
	return m.set(merged)
}

// SetEntry changes this machine's own entry. The subnet of a node that is
// running cannot move.
func (m *Membership) SetEntry(e Entry, running bool) (topology.Server, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.topo.Load()
	changed, err := m.withSelf(known, e)
	if err != nil {
		return topology.Server{}, err
	}
	was, _ := known.Self(m.key.Public())
	is, _ := changed.Self(m.key.Public())
	if running && is.Subnet != was.Subnet {
		return was, usage.Errorf("subnet %s: the node is running on %s: stop it first", is.Subnet, was.Subnet)
	}
	if changed.Equal(known) {
		return was, nil
	}
	return is, m.set(changed)
}

// An Added is what became of one entry.
type Added struct {
	Server    topology.Server
	Renamed   bool // its id was another server's
	Allocated bool // it came without a subnet, which was chosen here
	Changed   bool // false: the topology had it like this already
}

// Add puts the entries of text into the topology, all or none. If free, a
// newcomer whose subnet another server has gets one that is free. A machine that
// was removed takes part again: what else would it add others for?
func (m *Membership) Add(source string, text []byte, free bool) ([]Added, error) {
	if m.cfg.NetworkFile != "" {
		return nil, usage.Errorf("the topology comes from %s, which jiji-node never writes: add the entry there", m.cfg.NetworkFile)
	}
	entries, err := topology.ParseEntries(source, strings.NewReader(string(text)))
	if err != nil {
		return nil, usage.Mark(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.topo.Load()
	t := known
	var added []Added
	for _, e := range entries {
		if _, known := t.Self(e.Key); free && !known && slices.ContainsFunc(t.Servers, func(s topology.Server) bool { return s.RemovedAt.IsZero() && s.Subnet == e.Subnet }) {
			e.Subnet, e.WireGuardIP = netip.Prefix{}, netip.Addr{}
		}
		if t, err = m.giveWay(t, e); err != nil {
			return nil, err
		}
		next, s, err := topology.Add(t, e, now())
		if errors.Is(err, ipplan.ErrFull) {
			return nil, err
		} else if err != nil {
			return nil, usage.Mark(err)
		}
		added = append(added, Added{Server: s, Renamed: e.ID != s.ID, Allocated: !e.Subnet.IsValid(), Changed: !next.Equal(t)})
		t = next
	}
	if was, _ := known.Self(m.key.Public()); !was.RemovedAt.IsZero() {
		if t, err = rejoin(t, was); err != nil {
			return nil, err
		}
	}
	if t.Equal(known) {
		return added, nil
	}
	return added, m.set(t)
}

// rejoin makes this machine, which was removed, a member of t again.
func rejoin(t topology.Topology, was topology.Server) (topology.Topology, error) {
	again := was
	again.RemovedAt, again.Subnet, again.WireGuardIP = time.Time{}, netip.Prefix{}, netip.Addr{}
	t, self, err := topology.Add(t, topology.EntryDoc{Server: again}, now())
	if err != nil {
		return t, err
	}
	self.RejoinedAfter = was.RemovedAt
	return t.With(self), nil
}

// giveWay moves this machine to a free subnet if e has its, and nobody knows of
// this machine yet: its entry was never kept, and its number is a guess.
func (m *Membership) giveWay(t topology.Topology, e topology.EntryDoc) (topology.Topology, error) {
	self, _ := t.Self(m.key.Public())
	if m.known || m.cfg.Index != nil || e.Key == self.Key || !e.Subnet.IsValid() || e.Subnet != self.Subnet {
		return t, nil
	}
	var taken []netip.Prefix
	for _, s := range t.Servers {
		if s.Subnet.IsValid() {
			taken = append(taken, s.Subnet)
		}
	}
	subnet, err := ipplan.LowestFree(t.Cluster, taken)
	if err != nil {
		return t, err
	}
	self.Subnet, self.WireGuardIP = subnet, ipplan.WireGuardIP(subnet)
	return t.With(self), nil
}

// Remove puts a tombstone on the server with that id.
func (m *Membership) Remove(id string) (topology.Server, error) {
	if m.cfg.NetworkFile != "" {
		return topology.Server{}, usage.Errorf("the topology comes from %s, which jiji-node never writes: set removedAt there", m.cfg.NetworkFile)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := topology.Remove(*m.topo.Load(), id, now())
	if err != nil {
		return topology.Server{}, usage.Mark(err)
	}
	i := slices.IndexFunc(t.Servers, func(s topology.Server) bool { return strings.EqualFold(s.ID, id) })
	if t.Equal(*m.topo.Load()) {
		return t.Servers[i], nil
	}
	return t.Servers[i], m.set(t)
}
