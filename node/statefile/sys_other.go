//go:build !linux

package statefile

import (
	"errors"
	"os"
)

// A node runs on Linux only. Elsewhere there are no locks: the commands that
// write state there are run by one person at a time.

const oNoFollow = 0

var errLocked = errors.New("locked")

func flock(*os.File, bool) error { return nil }

func syncDir(string) error { return nil }

func inode(*os.File) (uint64, error) { return 0, errors.ErrUnsupported }

// CheckDir checks nothing: the mode of a directory may mean nothing here.
func CheckDir(string) error { return nil }
