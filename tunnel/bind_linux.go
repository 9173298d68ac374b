package tunnel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	socketBuffer = 7 << 20 // bytes for each direction, as the module's own bind has it
	portTries    = 100     // for one that is free in both families

	maxSegments = 64        // datagrams in one message (UDP_MAX_SEGMENTS of the kernel)
	maxDatagram = 1<<16 - 1 // bytes
	maxPayload4 = maxDatagram - 20 - 8
	maxPayload6 = maxDatagram - 8 // of what follows IPv6's own header

	readAtOnce = conn.IdealBatchSize / maxSegments // messages: more cost memory, and gain nothing
)

// A udpBind is a conn.Bind on a UDP socket for IPv4 and one for IPv6. It sends and
// receives batches, with the kernel's segmentation offload in both directions where
// it has that (udp(7), UDP_SEGMENT and UDP_GRO).
//
// A peer gets answers from the address that it wrote to: what is in between may let
// nothing else through. As with kernel WireGuard that is so where they leave by the
// interface on which it arrived; else the kernel chooses an address that fits the route.
//
// The module's own bind sends to wrong addresses where peers are of both families:
// it reuses addresses, and of an IPv6 address that takes the place of an IPv4 one it
// copies four bytes. And where the kernel coalesces datagrams it answers from whatever
// address the kernel prefers.
type udpBind struct {
	mu      sync.Mutex // held by Open and Close
	sockets [2]atomic.Pointer[udpSocket]
	epoch   atomic.Uint32 // of routes and addresses
}

// checkSources has it asked again whether sources fit the routes.
func (b *udpBind) checkSources() { b.epoch.Add(1) }

// A udpEndpoint is where a peer is, and the address of ours that it wrote to.
type udpEndpoint struct {
	to    netip.AddrPort
	from  source // zero: the peer was not heard from there
	state atomic.Uint64
}

// A source is an address of ours where something arrived.
type source struct {
	addr  netip.Addr
	index int // of the interface
}

// Values of udpEndpoint.state: what was found, and above it in which epoch.
const (
	unchecked = iota // whether from fits the route to the peer
	fits             // it does
	differs          // it does not: the kernel chooses
	cleared          // it was of no use: the kernel chooses until the peer is heard

	epochShift = 2
)

func (e *udpEndpoint) ClearSrc()           { e.state.Store(cleared) }
func (e *udpEndpoint) DstToString() string { return e.to.String() }
func (e *udpEndpoint) DstIP() netip.Addr   { return e.to.Addr() }
func (e *udpEndpoint) SrcToString() string { return e.SrcIP().String() }

func (e *udpEndpoint) DstToBytes() []byte {
	b, _ := e.to.MarshalBinary()
	return b
}

func (e *udpEndpoint) SrcIP() netip.Addr {
	if e.found() == fits {
		return e.from.addr
	}
	return netip.Addr{}
}

func (e *udpEndpoint) found() uint64 { return e.state.Load() % (1 << epochShift) }

// source returns the address to send from in an epoch; the zero one if the kernel is to
// choose.
func (e *udpEndpoint) source(epoch uint32) netip.Addr {
	if !e.from.addr.IsValid() {
		return netip.Addr{}
	}
	if old := e.state.Load(); old != cleared && (old == unchecked || uint32(old>>epochShift) != epoch) {
		e.state.CompareAndSwap(old, uint64(epoch)<<epochShift|e.check())
	}
	return e.SrcIP()
}

// check asks the kernel for the route from our address to the peer.
func (e *udpEndpoint) check() uint64 {
	routes, err := netlink.RouteGetWithOptions(e.to.Addr().AsSlice(), &netlink.RouteGetOptions{SrcAddr: e.from.addr.AsSlice()})
	if err != nil || len(routes) == 0 || routes[0].LinkIndex != e.from.index {
		return differs
	}
	return fits
}

// newBind returns a bind that is not open.
func newBind() conn.Bind { return &udpBind{} }

var networks = [...]string{"udp4", "udp6"} // of udpBind.sockets

func (b *udpBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.sockets {
		if b.sockets[i].Load() != nil {
			return nil, 0, conn.ErrBindAlreadyOpen
		}
	}
	for try := 1; ; try++ {
		sockets, actual, err := listenUDP(port, &b.epoch)
		if port == 0 && try < portTries && errors.Is(err, syscall.EADDRINUSE) {
			continue // in IPv6 only
		}
		if err != nil {
			return nil, 0, err
		}
		var receivers []conn.ReceiveFunc
		for i, s := range sockets {
			if s != nil {
				b.sockets[i].Store(s)
				receivers = append(receivers, s.receive)
			}
		}
		return receivers, actual, nil
	}
}

// listenUDP returns the socket of each family that the kernel has, on one port.
func listenUDP(port uint16, epoch *atomic.Uint32) (sockets [len(networks)]*udpSocket, actual uint16, err error) {
	actual = port
	for i, network := range networks {
		s, e := newUDPSocket(network, actual, epoch)
		if errors.Is(e, syscall.EAFNOSUPPORT) {
			continue
		}
		if err = e; err != nil {
			break
		}
		sockets[i], actual = s, uint16(s.conn.LocalAddr().(*net.UDPAddr).Port)
	}
	if err == nil && sockets == [len(networks)]*udpSocket{} {
		err = syscall.EAFNOSUPPORT
	}
	if err != nil {
		for _, s := range sockets {
			if s != nil {
				s.conn.Close()
			}
		}
	}
	return sockets, actual, err
}

func (b *udpBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for i := range b.sockets {
		if s := b.sockets[i].Swap(nil); s != nil {
			err = errors.Join(err, s.conn.Close())
		}
	}
	return err
}

func (b *udpBind) SetMark(mark uint32) error {
	var err error
	for i := range b.sockets {
		if s := b.sockets[i].Load(); s != nil {
			err = errors.Join(err, s.set(unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
		}
	}
	return err
}

func (*udpBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	to, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &udpEndpoint{to: netip.AddrPortFrom(to.Addr().Unmap(), to.Port())}, nil
}

func (*udpBind) BatchSize() int { return conn.IdealBatchSize }

func (b *udpBind) Send(packets [][]byte, ep conn.Endpoint) error {
	to := ep.(*udpEndpoint)
	family := 0
	if to.DstIP().Is6() {
		family = 1
	}
	s := b.sockets[family].Load()
	if s == nil {
		return syscall.EAFNOSUPPORT
	}
	return s.send(packets, to)
}

// A batcher sends and receives several messages at once.
type batcher interface {
	ReadBatch([]ipv6.Message, int) (int, error)
	WriteBatch([]ipv6.Message, int) (int, error)
}

type udpSocket struct {
	conn       *net.UDPConn
	raw        syscall.RawConn
	batch      batcher
	maxPayload int         // bytes of one message
	segments   atomic.Bool // the kernel makes several datagrams of one message
	out        sync.Pool   // of *outgoing
	epoch      *atomic.Uint32

	// The rest belongs to the goroutine that receives.
	in   []ipv6.Message
	read int    // messages in in
	next int    // of those, the next one
	rest []byte // of the one before: datagrams
	size int    // of each in rest but the last, in bytes
	from *udpEndpoint
}

// newUDPSocket returns a socket on a port of every address of the network's family.
func newUDPSocket(network string, port uint16, epoch *atomic.Uint32) (*udpSocket, error) {
	c, err := net.ListenPacket(network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	s := &udpSocket{conn: c.(*net.UDPConn), maxPayload: maxPayload4, epoch: epoch}
	if err := s.setUp(network); err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

func (s *udpSocket) setUp(network string) error {
	var err error
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return err
	}
	for option, force := range map[int]int{unix.SO_RCVBUF: unix.SO_RCVBUFFORCE, unix.SO_SNDBUF: unix.SO_SNDBUFFORCE} {
		if s.set(unix.SOL_SOCKET, force, socketBuffer) != nil { // without CAP_NET_ADMIN
			s.set(unix.SOL_SOCKET, option, socketBuffer) // up to what the administrator lets everybody have
		}
	}
	switch network {
	case "udp4":
		s.batch = ipv4.NewPacketConn(s.conn)
		// Lets routers fragment, as kernel WireGuard does. Linux sends UDP with "don't
		// fragment" set otherwise, and relies on ICMP from the router that cannot pass it
		// on, which firewalls drop. In IPv6 routers do not fragment; the kernel does, once
		// it was told.
		err = errors.Join(s.set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT),
			s.set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	case "udp6":
		s.batch, s.maxPayload = ipv6.NewPacketConn(s.conn), maxPayload6
		err = s.set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	if err != nil {
		return err
	}
	s.segments.Store(s.has(unix.UDP_SEGMENT))
	// A kernel that cannot be asked (before 5.12) has it with faults.
	if s.has(unix.UDP_GRO) {
		err = s.set(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	}
	s.out.New = func() any { return newOutgoing() }
	s.in = make([]ipv6.Message, readAtOnce)
	for i := range s.in {
		s.in[i].Buffers = [][]byte{make([]byte, maxDatagram)}
		s.in[i].OOB = make([]byte, unix.CmsgSpace(4)+unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	}
	return err
}

func (s *udpSocket) set(level, option, value int) error {
	var err error
	if e := s.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }); e != nil {
		return e
	}
	return err
}

// has reports whether the kernel knows an option of UDP.
func (s *udpSocket) has(option int) bool {
	var err error
	e := s.raw.Control(func(fd uintptr) { _, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, option) })
	return e == nil && err == nil
}

// receive returns the datagrams of some messages.
func (s *udpSocket) receive(packets [][]byte, sizes []int, eps []conn.Endpoint) (n int, err error) {
	if len(s.rest) == 0 && s.next == s.read {
		s.next = 0
		if s.read, err = s.batch.ReadBatch(s.in, 0); err != nil {
			s.read = 0
			return 0, err
		}
	}
	for n < len(packets) {
		if len(s.rest) == 0 {
			if s.next == s.read {
				break
			}
			m := &s.in[s.next]
			s.next++
			s.rest, s.size = m.Buffers[0][:m.N], m.N
			size, from := parseControl(m.OOB[:m.NN])
			if size > 0 {
				s.size = size
			}
			s.hear(m.Addr.(*net.UDPAddr).AddrPort(), from)
			continue // it may be empty
		}
		size := min(s.size, len(s.rest))
		sizes[n], eps[n] = copy(packets[n], s.rest[:size]), s.from
		s.rest = s.rest[size:]
		n++
	}
	return n, nil
}

// hear makes s.from the endpoint of a message. Mostly it is that of the one before.
func (s *udpSocket) hear(to netip.AddrPort, from source) {
	if e := s.from; e == nil || e.to != to || e.from != from || e.found() == cleared {
		s.from = &udpEndpoint{to: to, from: from}
	}
}

// parseControl returns what the kernel tells of a received message: the size of each of
// the datagrams, but the last, that it was made of, 0 if it is one, and the address that
// it was sent to.
func parseControl(control []byte) (size int, from source) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		switch {
		case header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			from.index = int(binary.NativeEndian.Uint32(data))
			from.addr = netip.AddrFrom4([4]byte(data[4:])) // ipi_spec_dst
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			from.addr = netip.AddrFrom16([16]byte(data))
			from.index = int(binary.NativeEndian.Uint32(data[16:]))
		}
		control = rest
	}
	return size, from
}

// An outgoing is room for what is sent with one call.
type outgoing struct {
	to       net.UDPAddr
	messages []ipv6.Message
	source   []byte   // control message with the address to send from
	control  [][]byte // for each message: source and the size of its segments
}

func newOutgoing() *outgoing {
	o := &outgoing{messages: make([]ipv6.Message, conn.IdealBatchSize), control: make([][]byte, conn.IdealBatchSize)}
	o.to.IP = make([]byte, 0, net.IPv6len)
	o.source = make([]byte, 0, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for i := range o.control {
		o.control[i] = make([]byte, 0, cap(o.source)+unix.CmsgSpace(2))
	}
	return o
}

// appendControl appends a control message with room for size bytes, and returns that.
func appendControl(to []byte, level, kind, size int) (all, data []byte) {
	n := len(to)
	all = append(to, make([]byte, unix.CmsgSpace(size))...)
	header := (*unix.Cmsghdr)(unsafe.Pointer(&all[n]))
	header.Level, header.Type = int32(level), int32(kind)
	header.SetLen(unix.CmsgLen(size))
	return all, all[n+unix.CmsgLen(0):][:size]
}

// send sends each packet as a datagram. Of an error it tells the first: what comes
// after a packet that fails is sent.
func (s *udpSocket) send(packets [][]byte, ep *udpEndpoint) error {
	o := s.out.Get().(*outgoing)
	o.address(ep, s.epoch.Load())
	err := s.write(o.pack(packets, s.segments.Load(), s.maxPayload))
	if err != nil && len(o.source) > 0 && !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EIO) {
		ep.ClearSrc() // the address may be gone
		o.source = o.source[:0]
		err = s.write(o.pack(packets, s.segments.Load(), s.maxPayload))
	}
	if errors.Is(err, unix.EIO) && s.segments.Swap(false) { // no checksum offload on the way out, as it turns out
		err = s.write(o.pack(packets, false, s.maxPayload))
	}
	clear(o.messages) // of packets
	s.out.Put(o)
	return err
}

// address has messages go to an endpoint, from what it wrote to.
func (o *outgoing) address(ep *udpEndpoint, epoch uint32) {
	to := ep.to.Addr()
	o.to.IP = append(o.to.IP[:0], to.AsSlice()...)
	o.to.Port, o.to.Zone = int(ep.to.Port()), to.Zone()
	o.source = o.source[:0]
	from := ep.source(epoch)
	if !from.IsValid() {
		return
	}
	var data []byte
	if from.Is4() {
		o.source, data = appendControl(o.source, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		copy(data[4:], from.AsSlice()) // ipi_spec_dst
	} else {
		o.source, data = appendControl(o.source, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		copy(data, from.AsSlice())
	}
}

// pack returns packets as messages: with segmentation, each of as many as the kernel
// makes from one, of one size and maybe a smaller one at the end.
func (o *outgoing) pack(packets [][]byte, segments bool, maxPayload int) []ipv6.Message {
	n := 0
	for len(packets) > 0 {
		size, total, count := len(packets[0]), len(packets[0]), 1
		for segments && count < min(len(packets), maxSegments) {
			next := len(packets[count])
			if next > size || total+next > maxPayload {
				break
			}
			total += next
			count++
			if next < size {
				break
			}
		}
		control := append(o.control[n][:0], o.source...)
		if count > 1 {
			var data []byte
			control, data = appendControl(control, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
			binary.NativeEndian.PutUint16(data, uint16(size))
		}
		o.control[n] = control
		o.messages[n] = ipv6.Message{Buffers: packets[:count], OOB: control, Addr: &o.to}
		packets = packets[count:]
		n++
	}
	return o.messages[:n]
}

func (s *udpSocket) write(messages []ipv6.Message) error {
	var first error
	for len(messages) > 0 {
		n, err := s.batch.WriteBatch(messages, 0)
		if err != nil {
			if first == nil {
				first = err
			}
			n = max(n, 0) + 1 // the one that it is about
		}
		messages = messages[min(n, len(messages)):]
	}
	return first
}
