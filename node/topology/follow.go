package topology

import (
	"context"
	"crypto/sha256"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/acidtib/jiji-node/node/statefile"
)

const (
	poll   = time.Minute            // between looks at a file that nothing was heard of
	blind  = 5 * time.Second        // the same where the system tells nothing
	settle = 100 * time.Millisecond // of silence before a change is looked at
	hurry  = time.Second            // after the first event of a change it is looked at in any case
)

// Follow calls news with what is in the file at path, first at once and then
// whenever it has changed, until ctx is done; it then returns nil. An absent or
// wrong file is an error, once for each, never an empty topology. The file may
// be written in place, replaced, reached through symbolic links that move, and
// it and its directory may go away and come back. Calls do not overlap.
func Follow(ctx context.Context, path string, news func(Topology, error)) error {
	f := follower{path: filepath.Clean(path), news: news, poll: poll, blind: blind}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		f.watcher = w
	} // else the system has no watcher left to give, and looking every few seconds does
	return f.run(ctx)
}

type follower struct {
	path        string
	news        func(Topology, error)
	watcher     *fsnotify.Watcher // nil: there is none
	poll, blind time.Duration

	last   [sha256.Size]byte // of what news was called with
	target string            // where the path leads; the path itself if nowhere
}

func (f *follower) run(ctx context.Context) error {
	var events chan fsnotify.Event
	var errs chan error
	if f.watcher != nil {
		events, errs = f.watcher.Events, f.watcher.Errors
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var since time.Time // of the first event not looked at yet; zero if there is none
	for {
		heard := false
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				events = nil
			}
			heard = f.concerns(e)
		case _, ok := <-errs: // events were lost
			if !ok {
				errs = nil
			}
			heard = ok
		case <-timer.C:
			since = time.Time{}
			watched := f.watch()
			f.look()
			if watched {
				timer.Reset(f.poll)
			} else {
				timer.Reset(f.blind)
			}
		}
		if heard {
			if since.IsZero() {
				since = time.Now()
			}
			timer.Reset(max(0, min(settle, hurry-time.Since(since))))
		}
	}
}

// concerns reports whether e may change what is read at the path. Next to the
// file others are written all the time, but only one that comes or goes can be
// a link that leads to it.
func (f *follower) concerns(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	return e.Has(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) || e.Op != 0 && (name == filepath.Base(f.path) || name == filepath.Base(f.target))
}

// watch finds the target, and has its directory and that of the path watched,
// and no other. It reports whether that went well.
func (f *follower) watch() bool {
	var err error
	if f.target, err = filepath.EvalSymlinks(f.path); err != nil {
		f.target = f.path
	}
	if f.watcher == nil {
		return false
	}
	want := []string{filepath.Dir(f.path), filepath.Dir(f.target)}
	for _, dir := range f.watcher.WatchList() {
		if !slices.Contains(want, dir) {
			_ = f.watcher.Remove(dir) // it may be gone, and its watch with it
		}
	}
	ok := true
	for _, dir := range want {
		ok = f.watcher.Add(dir) == nil && ok
	}
	return ok
}

// look reads the file and calls news if it is another than the last time.
func (f *follower) look() {
	data, _, err := statefile.Read(f.path, maxSize)
	sum := sha256.Sum256(data)
	if err != nil {
		sum = sha256.Sum256([]byte(err.Error()))
	}
	if sum == f.last {
		return
	}
	f.last = sum
	if err != nil {
		f.news(Topology{}, err)
		return
	}
	f.news(Parse(f.path, data))
}
