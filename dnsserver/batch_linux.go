package dnsserver

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/dnsserver/arrival"
)

// sendBuffer is for how many bytes of replies the kernel has room, with about 1 KB for
// each. They mostly leave at once, but not to clients whose MAC address nobody knows:
// those wait for some seconds.
const sendBuffer = 8 << 20

// widen gives c room for replies, as much as we may.
func widen(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		}
	})
}

// A packetBatch is datagrams that are read, and answered, with one system call
// (recvmmsg(2), sendmmsg(2)). It belongs to one goroutine. Its memory is allocated
// once: what a library makes of each address is much of what a query costs.
type packetBatch struct {
	conn    syscall.RawConn
	in, out [batch]mmsghdr
	names   [batch]unix.RawSockaddrInet6 // room for a RawSockaddrInet4, too
	inVecs  [batch]unix.Iovec
	outVecs [batch]unix.Iovec
	oobs    [batch][arrival.Size]byte
	queries [batch][maxQuery + 1]byte

	read    int // queries
	replies int
	sent    int // of them

	// Of the latest system call. The functions are made once, as each call would put
	// one on the heap.
	done  int
	errno syscall.Errno
	recv  func(fd uintptr) bool
	send  func(fd uintptr)
}

// An mmsghdr is struct mmsghdr.
type mmsghdr struct {
	unix.Msghdr
	size uint32
}

func newPacketBatch(c *net.UDPConn) (*packetBatch, error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &packetBatch{conn: conn, read: batch}
	for i := range p.in {
		in, out := &p.in[i], &p.out[i]
		p.inVecs[i].Base = &p.queries[i][0]
		p.inVecs[i].SetLen(len(p.queries[i]))
		in.Iov, out.Iov = &p.inVecs[i], &p.outVecs[i]
		in.SetIovlen(1)
		out.SetIovlen(1)
		in.Name = (*byte)(unsafe.Pointer(&p.names[i]))
		in.Control = &p.oobs[i][0]
	}
	p.recv = func(fd uintptr) bool {
		p.done, p.errno = mmsg(unix.SYS_RECVMMSG, fd, p.in[:])
		return p.errno != unix.EAGAIN
	}
	p.send = func(fd uintptr) { p.done, p.errno = mmsg(unix.SYS_SENDMMSG, fd, p.out[p.sent:p.replies]) }
	return p, nil
}

// mmsg makes one of the system calls, which does not wait, and returns how many
// messages it dealt with.
//
// The scheduler is not told of it. A batch takes longer than the 20 us after which
// that has another thread look for work, time and again in vain: this was a quarter
// of what a query cost under load, and half at 10,000 a second.
func mmsg(call, fd uintptr, ms []mmsghdr) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(call, fd, uintptr(unsafe.Pointer(&ms[0])), uintptr(len(ms)), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// receive waits for queries and returns how many came.
func (p *packetBatch) receive() (int, error) {
	for i := range p.read { // the kernel wrote into these
		p.in[i].Namelen = unix.SizeofSockaddrInet6
		p.in[i].SetControllen(arrival.Size)
	}
	p.read, p.replies = 0, 0
	if err := p.conn.Read(p.recv); err != nil {
		return 0, err
	}
	if p.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", p.errno)
	}
	p.read = p.done
	return p.read, nil
}

// query returns query i, who asks, and the control messages that came with it.
func (p *packetBatch) query(i int) (q []byte, client netip.AddrPort, oob []byte) {
	in := &p.in[i]
	return p.queries[i][:in.size], addrPort(&p.names[i]), p.oobs[i][:in.Controllen]
}

// reply has b sent to who asked query i, with control messages.
func (p *packetBatch) reply(i int, b, oob []byte) {
	out := &p.out[p.replies]
	out.Name, out.Namelen = p.in[i].Name, p.in[i].Namelen
	p.outVecs[p.replies].Base = &b[0]
	p.outVecs[p.replies].SetLen(len(b))
	out.Control = unsafe.SliceData(oob)
	out.SetControllen(len(oob))
	p.replies++
}

// flush sends the replies, and returns how many the kernel did not take: to a client
// that cannot be reached, or because it has too many of them already. It does not
// wait, for that would keep all the others waiting.
func (p *packetBatch) flush() (unsent int) {
	for p.sent = 0; p.sent < p.replies; p.sent += p.done {
		err := p.conn.Control(p.send)             // not Write: that is one at a time, and others may wait
		if err != nil || p.errno == unix.EAGAIN { // closed, or full
			return unsent + p.replies - p.sent
		}
		if p.errno != 0 {
			unsent++
			p.done = 1
		}
	}
	return unsent
}

// addrPort is a as an address; zero if it is of neither family.
func addrPort(a *unix.RawSockaddrInet6) netip.AddrPort {
	switch a.Family {
	case unix.AF_INET:
		a4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(a4.Addr), port(&a4.Port))
	case unix.AF_INET6:
		ip := netip.AddrFrom16(a.Addr)
		if a.Scope_id != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(a.Scope_id), 10))
		}
		return netip.AddrPortFrom(ip, port(&a.Port))
	}
	return netip.AddrPort{}
}

// port is a port that is in the order of the network.
func port(p *uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(p))
	return uint16(b[0])<<8 | uint16(b[1])
}
