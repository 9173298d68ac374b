package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/cluster"
	"github.com/acidtib/jiji-node/registry/embedded"
)

const (
	modeKey   = "registry_mode" // of the registry file's notes: what `registry use` chose
	cacheFile = "containers.json"
	agentDir  = "corrosion" // of the agent that this node runs

	maxToken = 4096
	maxCache = 256 << 20 // bytes

	cacheRest  = 5 * time.Second // between two writings of the cache
	cacheShare = 50              // at least that many times as long as one takes
)

// A CorrosionConfig says how a Corrosion agent is run and reached.
type CorrosionConfig struct {
	Bin         string         // path, or a name that is looked up in PATH
	API         netip.AddrPort // of an agent that this node runs
	GossipPort  uint16         // UDP, and TCP for its metrics, on the management address
	ControlPort uint16         // of the nodes themselves, UDP and TCP, likewise
}

// A use is a request to keep the catalog elsewhere.
type use struct {
	mode  control.RegistryMode
	reply chan error
}

// store is the catalog.
func (n *Node) store() registry.Store {
	if c := n.cluster.Load(); c != nil {
		return n.unlessFull(c.store)
	}
	return n.unlessFull(n.local)
}

// registryMode is what the configuration says, else what `registry use` chose.
func (n *Node) registryMode(ctx context.Context) (control.RegistryMode, error) {
	if n.cfg.Registry.Mode != "" {
		return n.cfg.Registry, nil
	}
	return StoredMode(ctx, n.local)
}

// StoredMode is what `registry use` chose; the file alone if it chose nothing.
func StoredMode(ctx context.Context, local *embedded.Store) (mode control.RegistryMode, err error) {
	text, err := local.Meta(ctx, modeKey)
	if err != nil || text == "" {
		return control.RegistryMode{Mode: control.Embedded}, err
	}
	if err := json.Unmarshal([]byte(text), &mode); err != nil || mode.Check() != nil {
		return mode, fmt.Errorf("registry file: note %s is %q, want what `jiji-node registry use` writes", modeKey, text)
	}
	return mode, nil
}

// StoreMode keeps the choice of `registry use`.
func StoreMode(ctx context.Context, local *embedded.Store, mode control.RegistryMode) error {
	text, err := json.Marshal(mode)
	if err != nil {
		return err
	}
	return local.SetMeta(ctx, modeKey, string(text))
}

// UseRegistry keeps the choice where no node runs.
func UseRegistry(ctx context.Context, stateDir string, m *membership.Membership, mode control.RegistryMode) (err error) {
	local, err := embedded.Open(ctx, embedded.Config{Path: filepath.Join(stateDir, registryName), ServerID: m.Self().ID})
	if err != nil {
		return err
	}
	defer closing(&err, "close registry", local.Close)
	return StoreMode(ctx, local, mode)
}

// registryLoop runs the registry of the mode, and another one when told.
func (n *Node) registryLoop(ctx context.Context, mode control.RegistryMode) error {
	for {
		running, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- n.runRegistry(running) }()
		select {
		case err := <-ended:
			stop()
			if ctx.Err() != nil || err != nil {
				return err
			}
		case u := <-n.uses:
			stop()
			if err := <-ended; err != nil {
				u.reply <- err
				return err
			}
			mode = u.mode
			n.cluster.Store(nil)
			n.openCluster(ctx, mode)
			n.log.Info("registry changed", "mode", mode.Mode)
			poke(n.storeChanged)
			u.reply <- nil
		case <-n.reopened:
			stop()
			if err := <-ended; err != nil {
				return err
			}
			n.cluster.Store(nil)
			n.openCluster(ctx, mode)
			poke(n.storeChanged)
		}
		stop()
	}
}

func (n *Node) runRegistry(ctx context.Context) error {
	if c := n.cluster.Load(); c != nil {
		c.setPeers(n.members.Topology())
		return c.run(ctx)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.local.Run(ctx) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-n.local.Changed():
				poke(n.storeChanged)
			}
		}
	})
	return g.Wait()
}

// UseRegistry answers `registry use`.
func (n api) UseRegistry(ctx context.Context, mode control.RegistryMode) (control.RegistryMode, error) {
	if err := mode.Check(); err != nil {
		return mode, usage.Mark(err)
	}
	if n.cfg.Registry.Mode != "" && n.cfg.Registry != mode {
		return mode, usage.Errorf("registry: this node's configuration says %s: change it there (`jiji-node config show` tells where)", n.cfg.Registry.Mode)
	}
	if mode.TokenFile != "" {
		if _, err := readToken(mode.TokenFile); err != nil {
			return mode, usage.Mark(err)
		}
	}
	now, err := StoredMode(ctx, n.local)
	if err != nil {
		return mode, err
	}
	if now == mode {
		return mode, nil
	}
	if err := StoreMode(ctx, n.local, mode); err != nil {
		return mode, err
	}
	u := use{mode, make(chan error, 1)}
	select {
	case n.uses <- u:
	case <-ctx.Done():
		return mode, ctx.Err()
	}
	return mode, <-u.reply
}

// readToken reads the token of an agent that somebody else runs.
func readToken(file string) (string, error) {
	text, mode, err := statefile.Read(file, maxToken)
	if err != nil {
		return "", fmt.Errorf("token of the agent: %w", err)
	}
	if mode.Perm()&0o007 != 0 {
		return "", fmt.Errorf("token of the agent: %s has mode %#o, so everybody has it, want 0600 or 0640: chmod o-rwx %s, and give the agent another token", file, mode.Perm(), file)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("token of the agent: %s is empty, want the token in one line", file)
	}
	return token, nil
}

func (n api) registryStatus(snapshot *registry.Snapshot) control.Registry {
	r := control.Registry{Mode: control.Embedded, State: "up", Containers: snapshot.Len(), Skipped: []control.Skipped{}, Error: n.store().Problem()}
	for _, k := range snapshot.Skipped {
		r.Skipped = append(r.Skipped, control.Skipped(k))
	}
	if refused := n.refused.Load(); refused != nil {
		for _, k := range *refused {
			r.Skipped = append(r.Skipped, control.Skipped(k))
		}
	}
	c := n.cluster.Load()
	if c == nil {
		return r
	}
	s := c.store.State()
	r.Mode, r.Since, r.Pending, r.FastLane, r.NoTables = control.Corrosion, &s.Since, s.Pending, s.FastLane, s.NoTables
	switch {
	case !s.Up:
		r.State = "down"
	case !s.CaughtUp:
		r.State = "catching up"
	}
	if h := c.health.Load(); h != nil {
		r.Members, r.Gaps = h.members, h.gaps
	}
	r.Agent = &control.Agent{URL: c.mode.URL}
	if a := c.agent.Load(); a != nil && c.mode.URL == "" {
		st := a.State()
		r.Agent = &control.Agent{URL: a.URL(), Managed: true, Running: st.Running, PID: st.PID, Version: st.Version, Restarts: st.Restarts, LastExit: st.LastExit}
		if !st.Running && st.LastExit != "" {
			r.Error = "registry: agent: " + st.LastExit
		}
	}
	for _, text := range []*string{c.problem.Load(), c.fault.Load()} {
		if text != nil && *text != "" {
			r.Error = "registry: " + *text
		}
	}
	if refused := c.refused.Load(); refused != nil {
		for _, k := range *refused {
			r.Skipped = append(r.Skipped, control.Skipped(k))
		}
	}
	return r
}

// A cacheDoc is containers.json: others' containers as last known, for a start
// without an agent. Its fields are the catalog's; some may be added.
type cacheDoc struct {
	Containers []control.Container `json:"containers"`
	Versions   map[string]int64    `json:"versions,omitempty"` // that the agent had of each writer, by its site id in hexadecimal digits
	WrittenAt  time.Time           `json:"writtenAt"`
}

func (n *Node) cachePath() string { return filepath.Join(n.cfg.StateDir, cacheFile) }

// readCache returns what the last run knew. A file that cannot be read is none.
func (n *Node) readCache() ([]registry.Container, cluster.Versions) {
	text, _, err := statefile.Read(n.cachePath(), maxCache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var doc cacheDoc
	if err == nil {
		err = json.Unmarshal(text, &doc)
	}
	if err != nil {
		n.log.Warn("containers of other servers as last known cannot be read; waiting for the registry", "file", n.cachePath(), "err", err)
		return nil, nil
	}
	var list []registry.Container
	for _, v := range doc.Containers {
		if c, err := cachedContainer(v); err == nil {
			list = append(list, c)
		}
	}
	versions := cluster.Versions{}
	for site, version := range doc.Versions {
		if id, err := hex.DecodeString(site); err == nil && len(id) == 16 {
			versions[[16]byte(id)] = version
		}
	}
	return list, versions
}

// cachedContainer is the reverse of containerOf.
func cachedContainer(v control.Container) (registry.Container, error) {
	c := registry.Container{ID: v.ID, Service: v.Service, Project: v.Project, Instance: v.Instance, Name: v.Name, ServerID: v.ServerID, IP: v.IP,
		StartedAt: v.StartedAt, Health: registry.Health(v.Health), Failures: v.Failures, HealthPort: v.HealthPort, External: v.External}
	if v.LastCheck != nil {
		c.LastCheck = *v.LastCheck
	}
	for _, text := range v.Ports {
		number, proto, _ := strings.Cut(text, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return c, err
		}
		c.Ports = append(c.Ports, registry.Port{Number: uint16(n), Proto: proto})
	}
	return c.Normalize()
}

// cacheLoop keeps the file of others' containers.
func (p *clusterPart) cacheLoop(ctx context.Context) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-p.cache:
		}
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		began := time.Now()
		err := p.writeCache()
		if err != nil && !failing {
			p.log.Error("containers of other servers not written for the next start", "err", err)
		}
		failing = err != nil
		rest.Reset(max(cacheRest, cacheShare*time.Since(began)))
	}
}

func (p *clusterPart) writeCache() error {
	if !p.store.Whole() {
		return nil
	}
	doc := cacheDoc{Containers: []control.Container{}, Versions: map[string]int64{}, WrittenAt: time.Now().UTC().Truncate(time.Second)}
	self := p.members.Self().ID
	for c := range p.store.Snapshot().All() {
		if c.ServerID != self {
			doc.Containers = append(doc.Containers, containerOf(*c))
		}
	}
	for site, version := range p.store.Seen() {
		doc.Versions[hex.EncodeToString(site[:])] = version
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return statefile.Write(p.cachePath(), append(text, '\n'), 0o600)
}
