// Package upstream finds the name servers that this host uses, and follows
// them when they change.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	pollInterval = 30 * time.Second       // for what inotify does not tell: a directory that appears, a file system without it
	settle       = 100 * time.Millisecond // after the first sign of a change: editors and DHCP clients write in steps
	maxFileSize  = 64 << 10               // bytes; there is no reason for more
)

// Of systemd-resolved: where it listens on this host and where it writes down
// the servers that it asks (systemd-resolved.service(8)).
var (
	stubs        = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53}), netip.AddrFrom4([4]byte{127, 0, 0, 54})}
	resolvedFile = "/run/systemd/resolve/resolv.conf"
)

// A Config says where the servers are written down.
type Config struct {
	Path     string                // zero: /etc/resolv.conf
	Resolved string                // read instead if Path names nothing but systemd-resolved's stub; zero: /run/systemd/resolve/resolv.conf
	Self     func(netip.Addr) bool // whether we answer on that address ourselves: never an upstream; nil: on none
	Log      *slog.Logger          // nil: none
}

// A Follower knows the host's current name servers.
type Follower struct {
	cfg     Config
	current atomic.Pointer[[]netip.AddrPort]
	last    string // what was logged last
}

// New reads the servers for the first time. A file that cannot be read is
// logged and means none: it may appear while Run follows it. Later it means
// those of before: files go away for a moment, and with them the link's target.
func New(c Config) *Follower {
	if c.Path == "" {
		c.Path = "/etc/resolv.conf"
	}
	if c.Resolved == "" {
		c.Resolved = resolvedFile
	}
	if c.Self == nil {
		c.Self = func(netip.Addr) bool { return false }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f := &Follower{cfg: c}
	f.read()
	return f
}

// Current returns the servers in their order; empty: none. The slice is shared
// and must not be changed.
func (f *Follower) Current() []netip.AddrPort { return *f.current.Load() }

// Run follows the files until ctx is done and returns nil.
func (f *Follower) Run(ctx context.Context) error {
	var events <-chan fsnotify.Event
	var errs <-chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		f.cfg.Log.Warn("cannot watch for changes of the name servers, looking now and then", "interval", pollInterval, "err", err)
	} else {
		defer watcher.Close()
		events, errs = watcher.Events, watcher.Errors
	}
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	var settled <-chan time.Time // nil: nothing has changed
	for {
		if settled == nil {
			f.watch(watcher) // before reading, so that no change falls between
			f.read()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			if settled == nil {
				settled = time.After(settle)
			}
		case err := <-errs: // events were lost: read
			f.cfg.Log.Debug("watch name servers", "err", err)
		case <-settled:
			settled = nil
		case <-poll.C:
		}
	}
}

// watch watches the directories of the files and of what they are links to:
// files are replaced by renaming, which a watch on the file would not see.
func (f *Follower) watch(w *fsnotify.Watcher) {
	if w == nil {
		return
	}
	var want []string
	for _, path := range []string{f.cfg.Path, f.cfg.Resolved} {
		want = append(want, linkDirs(path)...)
	}
	have := w.WatchList()
	for _, dir := range have {
		if !slices.Contains(want, dir) {
			w.Remove(dir)
		}
	}
	for _, dir := range want {
		if !slices.Contains(have, dir) {
			if err := w.Add(dir); err != nil {
				f.cfg.Log.Debug("watch name servers", "directory", dir, "err", err)
			}
		}
	}
}

// linkDirs returns the directory of path and those of the files it links to.
func linkDirs(path string) []string {
	var dirs []string
	for range 8 { // links of links
		dirs = append(dirs, nearest(filepath.Dir(path)))
		target, err := os.Readlink(path) // which need not exist
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return dirs
}

// nearest returns dir, or of the directories above it the first that exists: it
// is where dir will appear.
func nearest(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// read reads the files and replaces the current servers.
func (f *Follower) read() {
	servers, problems, err := f.servers()
	var ups []netip.AddrPort
	for _, ip := range servers {
		if !f.cfg.Self(ip) {
			ups = append(ups, netip.AddrPortFrom(ip, 53))
		}
	}
	if err != nil {
		problems = append(problems, err)
		if last := f.current.Load(); last != nil {
			ups = *last
		}
	}
	f.current.Store(&ups)
	if news := fmt.Sprint(ups, problems); news != f.last {
		f.last = news
		f.cfg.Log.Info("name servers for other domains", "upstreams", ups)
		if len(problems) > 0 {
			f.cfg.Log.Warn("cannot use all of the host's name servers", "err", errors.Join(problems...))
		}
	}
}

// OfPrograms returns the servers that this host's programs ask by /etc/resolv.conf,
// ours among them, and whether the first one is systemd-resolved.
func OfPrograms() (servers []netip.Addr, resolved bool) {
	servers, _, _ = parseFile("/etc/resolv.conf") // one that cannot be read leads nowhere
	return servers, len(servers) > 0 && slices.Contains(stubs, servers[0])
}

// servers returns the servers that the files name, ours among them. An error
// is that the file could not be read.
func (f *Follower) servers() (servers []netip.Addr, problems []error, err error) {
	servers, problems, err = parseFile(f.cfg.Path)
	if len(servers) == 0 || slices.ContainsFunc(servers, func(ip netip.Addr) bool { return !slices.Contains(stubs, ip) }) {
		return servers, problems, err
	}
	behind, more, err := parseFile(f.cfg.Resolved)
	if err != nil {
		return servers, append(problems, err), nil // the stub itself is better than nothing
	}
	return behind, append(problems, more...), nil
}

// parseFile parses one file; its problems name it.
func parseFile(path string) (servers []netip.Addr, problems []error, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFileSize))
	if err != nil {
		return nil, nil, err
	}
	servers, problems = Parse(data)
	for i, err := range problems {
		problems[i] = fmt.Errorf("%s: %w", path, err)
	}
	return servers, problems, nil
}
