package corrosion

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A promptConn acknowledges what it reads at once. klukai does not set TCP_NODELAY: of
// an answer in two parts it keeps the second until the first is acknowledged (RFC 896),
// and the kernel does that after 40 ms on a connection that has been used for a while
// (RFC 1122, 4.2.3.2), in case it has something to send along.
type promptConn struct {
	*net.TCPConn
	raw syscall.RawConn
	ack func(fd uintptr)
}

// prompt makes conn acknowledge at once, if it is by TCP.
func prompt(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	return promptConn{tcp, raw, func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) // lasts until the kernel thinks otherwise: tcp(7)
	}}
}

func (c promptConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if n > 0 {
		_ = c.raw.Control(c.ack)
	}
	return n, err
}
