//go:build !linux

package agent

import (
	"errors"
	"os"
	"syscall"
)

// A node runs on Linux only.

const oNoFollow = 0

var errLocked = errors.New("locked")

func lock(*os.File) error { return errors.ErrUnsupported }

func attributes() *syscall.SysProcAttr { return nil }

func holder(*os.File, int, int) (*os.Process, error) { return nil, errors.ErrUnsupported }
