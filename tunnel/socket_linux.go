package tunnel

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// fragmentable lets routers fragment what the UDP sockets on port send in IPv4,
// as kernel WireGuard does. Linux sends UDP with "don't fragment" set otherwise,
// and relies on ICMP from the router that cannot pass it on, which firewalls
// drop. In IPv6 routers do not fragment; the kernel does, once it was told.
//
// The module's bind does not let anybody near its sockets: they are found among
// this process's own descriptors.
func fragmentable(port uint16) error {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("find the UDP sockets: %w", err)
	}
	found := false
	for _, entry := range dir {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		ours, err := fragmentableSocket(fd, port)
		if err != nil {
			return fmt.Errorf("let IPv4 packets from port %d be fragmented: %w", port, err)
		}
		found = found || ours
	}
	if !found {
		return fmt.Errorf("find the UDP sockets: none has port %d", port)
	}
	return nil
}

// fragmentableSocket does it to one descriptor, if that is one of the sockets.
func fragmentableSocket(fd int, port uint16) (ours bool, err error) {
	fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // else it may be closed, and another one, meanwhile
	if err != nil {
		return false, nil // it is closed
	}
	defer unix.Close(fd)
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
		return false, nil // no socket, mostly
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return false, nil
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		if sa.Port != int(port) {
			return false, nil
		}
		return true, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	case *unix.SockaddrInet6:
		return sa.Port == int(port), nil
	}
	return false, nil
}
