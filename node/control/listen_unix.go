//go:build unix

package control

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

var umask sync.Mutex // the umask is the process's

// listenUnix makes the socket with mode 0600, from its first instant.
func listenUnix(path string) (net.Listener, error) {
	umask.Lock()
	defer umask.Unlock()
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}
