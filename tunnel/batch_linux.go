package tunnel

import (
	"os"

	"golang.org/x/sys/unix"
)

// readable returns a function that tells, without waiting, whether there is
// something to read from f. It is for one goroutine at a time.
func readable(f *os.File) (func() bool, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fds := []unix.PollFd{{Events: unix.POLLIN}}
	poll := func(fd uintptr) {
		fds[0].Fd, fds[0].Revents = int32(fd), 0
		unix.Poll(fds, 0) // leaves Revents zero when it fails
	}
	return func() bool {
		return c.Control(poll) == nil && fds[0].Revents == unix.POLLIN
	}, nil
}
