package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/agent"
	"github.com/acidtib/jiji-node/registry/embedded"
)

const (
	modeKey  = "registry_mode" // of the registry file's notes: what `registry use` chose
	agentDir = "corrosion"     // of the agent that this node runs

	maxToken = 4096
)

// A CorrosionConfig says how a Corrosion agent is run and reached.
type CorrosionConfig struct {
	Bin         string         // path, or a name that is looked up in PATH
	API         netip.AddrPort // of an agent that this node runs
	GossipPort  uint16         // UDP, and TCP for its metrics, on the management address
	ControlPort uint16         // of the nodes themselves, UDP and TCP, likewise
}

// A use is a request to keep the catalog where StoredMode says.
type use struct{ reply chan error }

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

// noteLostChoice warns of a node that goes on alone although it was in a cluster, as
// one whose registry file was lost: what was chosen is in there.
func (n *Node) noteLostChoice(ctx context.Context) error {
	if n.cfg.Registry.Mode != "" {
		return nil
	}
	chosen, err := n.local.Meta(ctx, modeKey)
	if err != nil || chosen != "" {
		return err
	}
	dir := filepath.Join(n.cfg.StateDir, agentDir)
	if !agent.HasDatabase(dir) {
		return nil
	}
	text := fmt.Sprintf("%s has the database of a Corrosion agent, but nothing says that the registry is that one, as when %s was lost: "+
		"names of other servers are not answered; `jiji-node registry use corrosion` takes it up again, `jiji-node registry use embedded` leaves it",
		dir, filepath.Join(n.cfg.StateDir, registryName))
	n.lostChoice.Store(&text)
	n.log.Warn("registry may not be the one that it was", "problem", text)
	return nil
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

// registryLoop runs the registry of the mode, and another one when told, or none any
// more.
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
			stored, err := StoredMode(ctx, n.local) // maybe of a later request, whose client is gone
			if err == nil {
				mode = stored
			}
			n.cluster.Store(nil)
			n.openCluster(ctx, mode)
			n.log.Info("registry changed", "mode", mode.Mode)
			poke(n.registryChanged)
			u.reply <- err
		case gone := <-n.quits:
			stop()
			if err := <-ended; err != nil {
				n.log.Error("registry ended", "err", err)
			}
			close(gone)
			return nil
		case <-n.rejoined:
			stop()
			return errors.Join(<-ended, errRejoined)
		case <-n.reopened:
			stop()
			if err := <-ended; err != nil {
				return err
			}
			n.cluster.Store(nil)
			n.openCluster(ctx, mode)
			poke(n.registryChanged)
		}
		stop()
	}
}

// endRegistry ends the registry, with the agent that this node runs: that needs the
// interface to take its leave, and goes on sending without it, to wherever its packets
// then get.
func (n *Node) endRegistry(ctx context.Context) {
	gone := make(chan struct{})
	select {
	case n.quits <- gone:
		<-gone
	case <-ctx.Done():
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
				poke(n.namesChanged)
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
	if now == mode && n.lostChoice.Load() == nil {
		return mode, nil
	}
	if err := StoreMode(ctx, n.local, mode); err != nil {
		return mode, err
	}
	n.lostChoice.Store(nil)
	if now == mode {
		return mode, nil
	}
	u := use{make(chan error, 1)}
	select {
	case n.uses <- u: // and is done, whether or not the client waits
	case <-ctx.Done(): // there is one waiting, that will do it
		return mode, ctx.Err()
	}
	select {
	case err := <-u.reply:
		return mode, err
	case <-ctx.Done():
		return mode, ctx.Err()
	}
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
		r.Members, r.Gaps = len(h.sees), h.gaps
	}
	r.Agent = &control.Agent{URL: c.mode.URL}
	if a := c.agent.Load(); a != nil && c.mode.URL == "" {
		st := a.State()
		r.Agent = &control.Agent{URL: a.URL(), Managed: true, Running: st.Running, PID: st.PID, Version: st.Version, Restarts: st.Restarts, LastExit: st.LastExit}
		if text := a.Complaint(); text != "" {
			r.Error = "registry: agent: " + text
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
