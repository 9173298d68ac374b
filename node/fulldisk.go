package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/acidtib/jiji-node/node/host/journal"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/embedded"
)

const (
	registryName  = "registry.db"
	registryCopy  = "registry-copy.db"
	registryLimit = 256 << 20 // bytes of a registry that is copied; that of a full server has under one
	registryRoom  = 128 << 10 // bytes that SQLite wants beside its file before it opens that
)

// leaveNothing takes back what a start noted that is refused now: undo was empty
// before, and so the sockets are all that can be in it.
func (n *Node) leaveNothing(undo *journal.Journal, lock *statefile.Lock) {
	for _, s := range n.sockets() {
		if err := undo.Forget(s); err != nil {
			n.log.Warn("note of a start that was refused stays", "err", err)
		}
	}
	lock.Abandon()
}

// save stores key and topology. A machine that has both does without, where the
// disk is full.
func (n *Node) save() error {
	err := n.members.Save()
	if statefile.IsFull(err) && n.members.Known() {
		n.degrade(fmt.Sprintf("the disk of %s is full: changes of the topology are not stored (%v)", n.cfg.StateDir, err))
		return nil
	}
	return err
}

// openRegistry opens the registry. SQLite needs room even to read: where there is
// none, it is given a copy in the runtime directory, for which n.full is set, and
// which removeCopy removes. A new machine has other things to write as well, and is
// refused.
func (n *Node) openRegistry(ctx context.Context, id string) (*embedded.Store, error) {
	cfg := embedded.Config{Path: filepath.Join(n.cfg.StateDir, registryName), ServerID: id, Log: n.log}
	store, err := embedded.Open(ctx, cfg)
	if err == nil || ctx.Err() != nil || n.fresh || !statefile.IsFull(statefile.Room(n.cfg.StateDir, registryRoom)) {
		return store, err
	}
	from := cfg.Path
	cfg.Path = filepath.Join(n.cfg.RuntimeDir, registryCopy)
	if cerr := errors.Join(n.removeCopy(), copyFile(cfg.Path, from), copyFile(cfg.Path+"-wal", from+"-wal")); cerr != nil {
		return nil, errors.Join(err, cerr)
	}
	if store, cerr := embedded.Open(ctx, cfg); cerr == nil {
		n.full = fmt.Sprintf("the disk of %s is full: services stay as they were registered; free space there and restart jiji-node", n.cfg.StateDir)
		n.degrade(n.full)
		return store, nil
	}
	return nil, err
}

// removeCopy removes the copy, if there is one.
func (n *Node) removeCopy() (err error) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		err = errors.Join(err, statefile.Remove(filepath.Join(n.cfg.RuntimeDir, registryCopy+suffix)))
	}
	return err
}

// copyFile makes to a copy of from, if there is one.
func copyFile(to, from string) error {
	data, _, err := statefile.Read(from, registryLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return statefile.Write(to, data, 0o600)
}

// unlessFull is the store, which takes no changes where they would be lost.
func (n *Node) unlessFull(store registry.Store) registry.Store {
	if n.full == "" {
		return store
	}
	return readOnly{store, n.full}
}

// A readOnly is a store that refuses changes.
type readOnly struct {
	registry.Store
	why string
}

func (r readOnly) Register(context.Context, registry.Container) error {
	return fmt.Errorf("register container: %s", r.why)
}

func (r readOnly) SetHealth(context.Context, string, registry.Health, time.Time) error {
	return fmt.Errorf("set health of container: %s", r.why)
}

func (r readOnly) Deregister(context.Context, ...string) (int, error) {
	return 0, fmt.Errorf("deregister containers: %s", r.why)
}
