package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// makePrivate, between socket and bind, makes the file appear with mode 0600.
func makePrivate(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
		return e
	}
	return err
}
