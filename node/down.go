package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/host/journal"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/registry/agent"
)

// Down takes back what a node that runs no more changed on this machine,
// however it ended; link was its interface. Failing that is told in the result; the error is that
// nothing was done.
func Down(stateDir, link string) (control.Undone, error) {
	if _, err := os.Stat(stateDir); err == nil { // without one a node has run elsewhere, or never
		lock, err := statefile.LockDir(stateDir)
		if err != nil {
			return control.Undone{}, err
		}
		defer lock.Close()
	}
	return downLocked(stateDir, link)
}

func downLocked(stateDir, link string) (control.Undone, error) {
	aerr := agent.EndFormer(filepath.Join(stateDir, agentDir)) // first: it needs the interface to take its leave
	u, err := undo(stateDir, link)
	if err == nil && aerr != nil {
		u.Failed = append(u.Failed, aerr.Error())
	}
	return u, err
}

func undo(stateDir, link string) (control.Undone, error) {
	path := filepath.Join(stateDir, journal.FileName)
	undo, err := journal.Open(path)
	var corrupt *journal.CorruptError
	switch {
	case errors.As(err, &corrupt):
		u := undone(host.NewKeeper(nil).Undo(host.Engines, link, containerBridge))
		aside := path + ".damaged"
		if rerr := os.Rename(path, aside); rerr != nil {
			return u, errors.Join(err, rerr)
		}
		u.Failed = append(u.Failed, fmt.Sprintf("%v; what it told is not taken back, only what can be found without it; it is %s now", err, aside))
		return u, nil
	case err != nil:
		return control.Undone{}, err
	}
	engines := leaveEngines(undo)
	return joined(engines, undone(host.NewKeeper(undo).Undo(host.Engines, link, containerBridge))), nil
}

// joined is a, then b.
func joined(a, b control.Undone) control.Undone {
	return control.Undone{
		Undone: slices.Insert(b.Undone, 0, a.Undone...), Kept: slices.Insert(b.Kept, 0, a.Kept...), Failed: slices.Insert(b.Failed, 0, a.Failed...),
	}
}

// undone is u in the API's terms, with err, a line for each fault.
func undone(u host.Undone, err error) control.Undone {
	c := control.Undone{Undone: append([]string{}, u.Undone...), Kept: append([]string{}, u.Kept...), Failed: []string{}}
	if err != nil {
		c.Failed = strings.Split(err.Error(), "\n")
	}
	return c
}

// damaged says what to do about a journal that cannot be read.
func damaged(err error) error {
	var corrupt *journal.CorruptError
	if errors.As(err, &corrupt) {
		return fmt.Errorf("%w: run `jiji-node down`, which takes back what can be found without it and puts it aside", err)
	}
	return err
}

// Down has the converge loop take the network off the host and end the node.
func (n api) Down(ctx context.Context) (control.Undone, error) {
	reply := make(chan control.Undone, 1)
	select {
	case n.downs <- reply:
		return <-reply, nil // the loop never leaves a request unanswered
	case <-ctx.Done():
		return control.Undone{}, errors.New("the node is ending for another reason: try again")
	}
}

// takeDown takes everything of ours off the host.
func (n *Node) takeDown(ctx context.Context) control.Undone {
	n.log.Info("going down: taking the network off the host")
	n.endRegistry(ctx)
	n.stopGuard()
	n.stopEngine()
	cerr := n.closeTunnel()
	engines := leaveEngines(n.engine.undo)
	u, err := n.keeper.Undo(host.Engines, n.cfg.Interface, containerBridge)
	c := joined(engines, undone(u, errors.Join(cerr, err)))
	if cerr == nil {
		c.Undone = append([]string{fmt.Sprintf("interface %s removed", n.cfg.Interface)}, c.Undone...)
	}
	if p := n.cluster.Load(); p != nil && p.mode.URL != "" {
		c.Kept = append(c.Kept, fmt.Sprintf("the Corrosion agent at %s is not ours: if it still runs, stop it, for its gossip leaves this machine in the clear now", p.mode.URL))
	}
	for _, what := range c.Undone {
		n.log.Info("taken back", "what", what)
	}
	for _, what := range c.Kept {
		n.log.Warn("left as it is", "what", what)
	}
	for _, what := range c.Failed {
		n.log.Error("not taken back", "err", what)
	}
	return c
}

// stateFiles are what a node writes to its state directory, the lock last.
var stateFiles = []string{"private.key", "network.json", cacheFile, agentDir, registryName, registryName + "-wal", registryName + "-shm",
	journal.FileName, journal.FileName + ".damaged", statefile.LockName}

// State returns the files of a node, and the directory of its agent, that are in stateDir.
func State(stateDir string) (files []string, err error) {
	for _, name := range stateFiles {
		path := filepath.Join(stateDir, name)
		switch _, err := os.Lstat(path); {
		case err == nil:
			files = append(files, path)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return files, nil
}

// Uninstall is Down, and removes the node's files with their directory, unless
// somebody else has files there, or something could not be taken back.
func Uninstall(stateDir, link string) (control.Undone, error) {
	if _, err := os.Stat(stateDir); errors.Is(err, fs.ErrNotExist) {
		return Down(stateDir, link)
	}
	lock, err := statefile.LockDir(stateDir)
	if err != nil {
		return control.Undone{}, err
	}
	defer lock.Close()
	u, err := downLocked(stateDir, link)
	if err != nil || len(u.Failed) > 0 {
		return u, err
	}
	files, err := State(stateDir)
	if err != nil {
		return u, err
	}
	for _, file := range files {
		remove := statefile.Remove
		if filepath.Base(file) == agentDir {
			remove = os.RemoveAll
		}
		if err := remove(file); err != nil {
			return u, err
		}
		u.Undone = append(u.Undone, file+" removed")
	}
	switch err := os.Remove(stateDir); {
	case err == nil:
		u.Undone = append(u.Undone, stateDir+" removed")
	default:
		u.Kept = append(u.Kept, fmt.Sprintf("%s stays: %v", stateDir, err))
	}
	return u, nil
}
