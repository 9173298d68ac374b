package peerlink

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// withoutAddress is for net.ListenConfig.Control: the socket may be bound to an
// address that no interface has (ip(7), IP_FREEBIND).
func withoutAddress(network, _ string, c syscall.RawConn) error {
	level, option := unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	if strings.HasSuffix(network, "4") {
		level, option = unix.IPPROTO_IP, unix.IP_FREEBIND
	}
	var err error
	cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(cerr, os.NewSyscallError("setsockopt", err))
}
