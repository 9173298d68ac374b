package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/engine"
	"github.com/acidtib/jiji-node/node/host/firewall"
	"github.com/acidtib/jiji-node/node/host/journal"
	"github.com/acidtib/jiji-node/node/statefile"
)

const (
	dockerPID    = "/var/run/docker.pid" // written at each start of dockerd
	maxConf      = 1 << 20               // bytes of an engine's configuration
	restartLimit = 2 * time.Minute       // for an engine to be restarted
)

// An engineDNS says how far the engine's containers have the mesh's name server.
type engineDNS struct {
	fault   string // why they will not; "" if they will
	restart string // the command after which they do; "" if they do
}

// keepDNS has the engine give its containers the mesh's name server.
func (p *enginePart) keepDNS(ctx context.Context, kind engine.Kind, nft bool) {
	d := engine.DNS{Server: p.members.Self().WireGuardIP, Search: p.members.Topology().Domain}
	if nft {
		d.Mark = fmt.Sprintf("%#x/%#[1]x", firewall.EngineMark)
	}
	var now engineDNS
	var err error
	switch kind {
	case engine.Podman: // its command reads the file each time
		err = p.writePodman(d)
	default:
		var changed bool
		changed, err = p.mergeDaemon(d)
		if err == nil && (changed || startedBefore(daemonFile())) {
			now.restart = "systemctl restart docker"
		}
	}
	if err != nil {
		now.fault = fmt.Sprintf("%s's containers get no name server of the mesh: %v", kind, err)
	}
	was := p.dns.Swap(&now)
	if now.fault != "" && (was == nil || was.fault != now.fault) {
		p.log.Error("container engine not given the mesh's name server", "err", now.fault)
	}
	if now.restart == "" || was != nil && was.restart == now.restart {
		return
	}
	if !p.cfg.RestartEngine {
		p.log.Warn("container engine has to be restarted for its containers to find names of the mesh; --restart-engine does it", "command", now.restart)
		return
	}
	p.log.Info("restarting the container engine, for its containers to find names of the mesh", "command", now.restart)
	p.restarting.Go(func() { // what the engine tells meanwhile does not wait for its end
		limited, cancel := context.WithTimeout(ctx, restartLimit)
		defer cancel()
		name, args, _ := strings.Cut(now.restart, " ")
		if out, err := exec.CommandContext(limited, name, strings.Fields(args)...).CombinedOutput(); err != nil && ctx.Err() == nil {
			p.log.Error("container engine not restarted", "command", now.restart, "err", fmt.Sprintf("%v: %s", err, bytes.TrimSpace(out)))
		}
	})
}

// writePodman keeps a file of ours, which Podman reads after the others.
func (p *enginePart) writePodman(d engine.DNS) error {
	want := engine.PodmanDNS(d)
	text, _, err := statefile.Read(engine.PodmanFile, maxConf)
	if err == nil && bytes.Equal(text, want) || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	changes := []journal.Change{{Kind: journal.File, Name: engine.PodmanFile, Set: []journal.Value{{Text: string(want), Mode: 0o644}}}}
	if err == nil { // of another version, or somebody else's by our name
		changes[0].Was = &journal.Value{Text: string(text), Mode: 0o644}
	}
	if err := p.makeDir(filepath.Dir(engine.PodmanFile), changes...); err != nil {
		return err
	}
	if err := statefile.Write(engine.PodmanFile, want, 0o644); err != nil {
		return err
	}
	p.log.Info("host changed", "change", engine.PodmanFile+" written")
	return nil
}

// mergeDaemon puts the name server into Docker's configuration.
func (p *enginePart) mergeDaemon(d engine.DNS) (changed bool, err error) {
	path := daemonFile()
	for _, flag := range []string{"--dns", "--dns-search", "--dns-opt"} {
		if _, given := dockerFlag(flag); given {
			return false, fmt.Errorf("docker is started with %s, and refuses to start with the same in %s: take it out of there, and restart jiji-node", flag, path)
		}
	}
	text, mode, err := statefile.Read(path, maxConf)
	absent := errors.Is(err, fs.ErrNotExist)
	if err != nil && !absent {
		return false, err
	}
	merged, dropped, err := engine.MergeDaemon(text, d)
	if err != nil {
		return false, fmt.Errorf("%s: %w; mend it, it stays as it is", path, err)
	}
	if bytes.Equal(text, merged) {
		return false, nil
	}
	c := journal.Change{Kind: journal.Daemon, Name: path}
	if absent {
		mode = 0o644
	} else {
		c.Was = &journal.Value{Text: string(text), Mode: mode}
	}
	if err := p.makeDir(filepath.Dir(path), c); err != nil {
		return false, err
	}
	if err := statefile.Write(path, merged, mode.Perm()); err != nil {
		return false, err
	}
	p.log.Info("host changed", "change", fmt.Sprintf("%s: name server of the mesh set; what there was is in %s", path, journal.FileName))
	if len(dropped) > 0 {
		p.log.Warn("docker's own name servers are asked no more: the node asks the host's, unless it is told of others by --dns-upstream", "were", dropped)
	}
	return true, nil
}

// makeDir notes changes, and that of a directory if it is missing, and makes that.
func (p *enginePart) makeDir(dir string, changes ...journal.Change) error {
	if _, err := os.Stat(dir); err == nil {
		return p.undo.Record(changes...)
	}
	if err := p.undo.Record(append([]journal.Change{{Kind: journal.Directory, Name: dir}}, changes...)...); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o755)
}

// daemonFile is Docker's configuration, behind any links.
func daemonFile() string {
	path := engine.DaemonFile
	if given, ok := dockerFlag("--config-file"); ok && filepath.IsAbs(given) {
		path = given
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// dockerFlag returns the value of a flag that the running dockerd was started with.
func dockerFlag(flag string) (value string, given bool) {
	text, err := os.ReadFile(dockerPID)
	if err != nil {
		return "", false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return "", false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "", false
	}
	args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	if len(args) == 0 || filepath.Base(args[0]) != "dockerd" { // of one that ended
		return "", false
	}
	for i, a := range args {
		if name, v, ok := strings.Cut(a, "="); ok && name == flag {
			return v, true
		}
		if a == flag && i+1 < len(args) {
			return args[i+1], true
		}
	}
	return "", false
}

// startedBefore reports whether dockerd runs since before the file was written.
func startedBefore(file string) bool {
	f, err := os.Stat(file)
	if err != nil {
		return false
	}
	started, err := os.Stat(dockerPID)
	return err == nil && started.ModTime().Before(f.ModTime())
}

// undoDaemon puts back what Docker's configuration said of name servers. What else
// was changed in it since stays.
func undoDaemon(undo *journal.Journal, c journal.Change, u *control.Undone) {
	_, absent := os.Stat(dockerPID)
	uses := absent == nil && !startedBefore(c.Name) // dockerd read it as we left it
	taken, err := unmerge(c)
	if err == nil {
		err = undo.Forget(c)
	}
	if err != nil {
		u.Failed = append(u.Failed, fmt.Sprintf("%s: %v", c.Name, err))
		return
	}
	if taken == "" {
		return
	}
	u.Undone = append(u.Undone, taken)
	if uses {
		u.Kept = append(u.Kept, "docker gives its containers the node's name server until it is restarted: systemctl restart docker")
	}
}

// unmerge takes our name server out of the file, and says so.
func unmerge(c journal.Change) (taken string, err error) {
	now, mode, err := statefile.Read(c.Name, maxConf)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var was []byte
	if c.Was != nil {
		was = []byte(c.Was.Text)
	}
	back, err := engine.UnmergeDaemon(now, was)
	switch {
	case err != nil:
		return "", err
	case back == nil:
		return c.Name + " removed", statefile.Remove(c.Name)
	}
	how := "name servers put back to what they were"
	if same, err := engine.UnmergeDaemon(was, was); err == nil && bytes.Equal(same, back) {
		back, mode, how = was, c.Was.Mode, "written as it was" // to the last space
	}
	if bytes.Equal(now, back) {
		return "", nil
	}
	return c.Name + ": " + how, statefile.Write(c.Name, back, mode.Perm())
}
