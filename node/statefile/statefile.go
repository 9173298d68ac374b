// Package statefile keeps files that a process may be killed over: at any
// instant each holds its old content or its new one, never a part. It also
// locks the directory that they are in.
package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A file is written under another name first: prefix, its own name, suffix.
const (
	tempPrefix = "."
	tempSuffix = ".jiji-tmp"
)

const maxTries = 100 // to get hold of the temporary file while others come and go

// Write replaces the content of path, which need not exist, and its mode. If
// path is a symbolic link, the link is replaced. Concurrent writers of one path
// take turns.
func Write(path string, data []byte, mode fs.FileMode) error {
	return WriteBy(path, mode, whole(data))
}

// WriteBy is Write of what content writes, which is not kept in memory. If content
// fails, the file stays as it is.
func WriteBy(path string, mode fs.FileMode, content func(io.Writer) error) error {
	if err := replace(path, content, mode, func() error { return nil }); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// whole writes data.
func whole(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// Create is Write for a path that must not exist: of several processes that
// create one path the first wins, the others get an error that wraps fs.ErrExist.
func Create(path string, data []byte, mode fs.FileMode) error {
	err := replace(path, whole(data), mode, func() error {
		switch _, err := os.Lstat(path); {
		case err == nil:
			return fs.ErrExist
		case errors.Is(err, fs.ErrNotExist):
			return nil
		default:
			return err
		}
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// replace writes content to the temporary file of path and renames that file to
// path, if allowed returns nil once nobody else is at it.
func replace(path string, content func(io.Writer) error, mode fs.FileMode, allowed func() error) error {
	dir, name := filepath.Split(path)
	temp := dir + tempPrefix + name + tempSuffix
	f, err := openTemp(temp, mode)
	if err != nil {
		return err
	}
	defer f.Close() // releases the lock, after the rename or removal
	if err := fill(f, content, mode, allowed); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(filepath.Dir(path))
}

// Remove removes path and what killed writers of it left, for good when it
// returns. That path is absent is no error.
func Remove(path string) error {
	dir, name := filepath.Split(path)
	if err := ignoreNotExist(os.Remove(path)); err != nil {
		return err // names the path
	}
	if err := removeStale(dir + tempPrefix + name + tempSuffix); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

func fill(f *os.File, content func(io.Writer) error, mode fs.FileMode, allowed func() error) error {
	if err := allowed(); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := content(f); err != nil {
		return err
	}
	return f.Sync()
}

// Room reports whether a file of size bytes can be written in dir now: its error
// says why not.
func Room(dir string, size int) error {
	temp := filepath.Join(dir, tempPrefix+"room"+tempSuffix)
	f, err := openTemp(temp, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(fill(f, whole(make([]byte, size)), 0o600, func() error { return nil }), os.Remove(temp))
}

// openTemp opens the temporary file, empty and locked. What a killed writer
// left there is used again, so at most one such file exists for each path.
func openTemp(temp string, mode fs.FileMode) (*os.File, error) {
	for range maxTries {
		f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|oNoFollow, mode)
		if err != nil {
			return nil, err
		}
		if err := flock(f, true); err != nil {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: temp, Err: err}
		}
		if !isAt(f, temp) { // while we waited, its writer renamed it, or sweep removed it
			f.Close()
			continue
		}
		if err := f.Truncate(0); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("%s was replaced by others %d times", temp, maxTries)
}

func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// Read returns the content and the mode of path, which must be a regular file,
// or lead to one, of at most limit bytes.
func Read(path string, limit int64) ([]byte, fs.FileMode, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would wait for its writer
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is %s, want a regular file", path, kind(info.Mode()))
	}
	if info.Size() > limit {
		return nil, 0, tooLarge(path, info.Size(), limit)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, 0, err
	}
	if int64(len(data)) > limit { // it grows, or hides its size as /proc does
		return nil, 0, tooLarge(path, limit+1, limit)
	}
	return data, info.Mode(), nil
}

func tooLarge(path string, size, limit int64) error {
	return fmt.Errorf("%s has %d bytes, want at most %d", path, size, limit)
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	default:
		return "no file"
	}
}

// sweep removes the temporary files that killed writers left in dir.
func sweep(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !strings.HasPrefix(n.Name(), tempPrefix) || !strings.HasSuffix(n.Name(), tempSuffix) || !n.Type().IsRegular() {
			continue
		}
		temp := filepath.Join(dir, n.Name())
		if err := removeStale(temp); err != nil {
			return fmt.Errorf("remove %s: %w", temp, err)
		}
	}
	return nil
}

func removeStale(temp string) error {
	f, err := os.OpenFile(temp, os.O_RDWR|oNoFollow, 0)
	if err != nil {
		return ignoreNotExist(err)
	}
	defer f.Close()
	switch err := flock(f, false); {
	case errors.Is(err, errLocked):
		return nil // its writer is at work
	case err != nil:
		return err
	}
	if !isAt(f, temp) {
		return nil
	}
	return ignoreNotExist(os.Remove(temp))
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
