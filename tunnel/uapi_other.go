//go:build !linux

package tunnel

import "syscall"

func makePrivate(_, _ string, _ syscall.RawConn) error { return errNotLinux }
