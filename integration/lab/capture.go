//go:build linux

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	snapLength   = 2048    // bytes kept of each packet
	packetLimit  = 20_000  // packets kept; more are only counted
	captureQueue = 8 << 20 // bytes of packets that wait in the kernel
)

// pcap(5) link types.
const (
	linkEthernet = 1
	linkRaw      = 101
)

// A Capture records packets that pass an interface. Unlike a tcpdump at its side it
// cannot miss any: when the kernel had to drop one the test fails.
type Capture struct {
	name string
	lab  *Lab
	link uint32 // link type

	socket  *os.File
	conn    syscall.RawConn
	drained chan struct{} // closed when the reading goroutine has ended

	mu      sync.Mutex // guards what follows, and reading the socket
	stopped bool
	packets []Packet
	count   int
	lost    uint32
}

// A Packet is what a capture has seen: an Ethernet frame, or an IP packet where the
// interface is a TUN device.
type Packet struct {
	Time time.Time
	Data []byte // at most 2048 bytes
	Size int    // in bytes, on the wire; offloading may make it more than the MTU
}

// Capture records what passes an interface of the host, such as jiji0, and matches a
// filter of tcpdump, "" for all. A link's packets are better taken with its own Capture,
// outside the server.
func (h *Host) Capture(device, filter string) *Capture {
	h.lab.tb.Helper()
	return h.capture(device, h.Name+"-"+device, filter)
}

func (h *Host) capture(device, name, filter string) *Capture {
	tb := h.lab.tb
	tb.Helper()
	c := &Capture{name: name, lab: h.lab, link: linkEthernet, drained: make(chan struct{})}
	link, err := h.nl.LinkByName(device)
	if err != nil {
		tb.Fatalf("capture on %s: find %s: %v", h.Name, device, err)
	}
	if len(link.Attrs().HardwareAddr) == 0 {
		c.link = linkRaw
	}
	program, err := compile(filter, c.link)
	if err != nil {
		tb.Fatalf("capture on %s of %s: %v", device, h.Name, err)
	}
	if err := h.Do(func() error { return c.open(link.Attrs().Index, program) }); err != nil {
		tb.Fatalf("capture on %s of %s: %v", device, h.Name, err)
	}
	if c.conn, err = c.socket.SyscallConn(); err != nil {
		tb.Fatalf("capture on %s of %s: %v", device, h.Name, err)
	}
	go c.read()
	track(h.lab, &h.lab.captures, c)
	return c
}

// compile has tcpdump turn a filter into a program for the kernel.
func compile(filter string, link uint32) ([]unix.SockFilter, error) {
	kind := "EN10MB"
	if link == linkRaw {
		kind = "RAW"
	}
	cmd := exec.Command("tcpdump", "-ddd", "-s", "262144", "-y", kind, filter)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("compile filter %q: %w: %s", filter, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var program []unix.SockFilter
	for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if i == 0 {
			continue // the number of lines
		}
		var f unix.SockFilter
		if _, err := fmt.Sscan(line, &f.Code, &f.Jt, &f.Jf, &f.K); err != nil {
			return nil, fmt.Errorf("compile filter %q: line %q: %w", filter, line, err)
		}
		program = append(program, f)
	}
	return program, nil
}

// open makes the packet socket. It takes packets only once its filter is there.
func (c *Capture) open(index int, program []unix.SockFilter) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	c.socket = os.NewFile(uintptr(fd), "packets of "+c.name)
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: unsafe.SliceData(program)}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureQueue),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}),
	)
	if err != nil {
		c.socket.Close()
		return fmt.Errorf("set up packet socket: %w", err)
	}
	return nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// read takes packets from the socket until it is closed.
func (c *Capture) read() {
	defer close(c.drained)
	c.conn.Read(func(fd uintptr) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.take(int(fd)) // false: come again when there is more
	})
}

// take takes what waits in the socket, and reports whether that was the end of it. The
// caller holds c.mu.
func (c *Capture) take(fd int) (ended bool) {
	buf := make([]byte, snapLength)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR || err == unix.ENETDOWN: // an interface set down says so once
			continue
		case err == unix.EAGAIN:
			return false
		case err != nil:
			return true
		}
		c.count++
		if len(c.packets) < packetLimit {
			c.packets = append(c.packets, Packet{Time: time.Now(), Data: bytes.Clone(buf[:min(n, len(buf))]), Size: n})
		}
	}
}

// catchUp takes all packets that have passed so far.
func (c *Capture) catchUp() {
	c.lab.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	c.conn.Control(func(fd uintptr) {
		c.take(int(fd))
		stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			c.lost += stats.Drops
		}
	})
	if c.lost > 0 {
		c.lab.tb.Errorf("capture of %s: the kernel dropped %d packets: it is not complete", c.name, c.lost)
		c.lost = 0
	}
}

// Count returns how many packets have passed so far.
func (c *Capture) Count() int {
	c.lab.tb.Helper()
	c.catchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// Packets returns the packets that have passed so far, the first 20,000 of them.
func (c *Capture) Packets() []Packet {
	c.lab.tb.Helper()
	c.catchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.packets[:len(c.packets):len(c.packets)]
}

// Stop ends the capture. What it has seen stays.
func (c *Capture) Stop() {
	c.lab.tb.Helper()
	c.catchUp()
	c.mu.Lock()
	again := c.stopped
	c.stopped = true
	c.mu.Unlock()
	if !again {
		c.socket.Close()
		<-c.drained
	}
}

// String returns the packets as tcpdump prints them.
func (c *Capture) String() string {
	cmd := exec.Command("tcpdump", "-n", "-r", "-")
	cmd.Stdin = bytes.NewReader(c.pcap())
	out, err := cmd.Output()
	if err != nil {
		return fmt.Sprintf("print capture of %s: %v", c.name, err)
	}
	return string(out)
}

// WriteFile writes the packets to a file that tcpdump and Wireshark read.
func (c *Capture) WriteFile(path string) error {
	return os.WriteFile(path, c.pcap(), 0o644)
}

// save writes the capture into the artifacts.
func (c *Capture) save() error {
	f, err := os.CreateTemp(c.lab.dir, c.name+"-*.pcap")
	if err != nil {
		return err
	}
	f.Close()
	return c.WriteFile(f.Name())
}

// pcap returns the packets in the format of pcap-savefile(5).
func (c *Capture) pcap() []byte {
	order := binary.LittleEndian
	var b []byte
	for _, v := range []uint32{0xa1b2c3d4, 2 | 4<<16, 0, 0, snapLength, c.link} {
		b = order.AppendUint32(b, v)
	}
	for _, p := range c.Packets() {
		b = order.AppendUint32(b, uint32(p.Time.Unix()))
		b = order.AppendUint32(b, uint32(p.Time.Nanosecond()/1000))
		b = order.AppendUint32(b, uint32(len(p.Data)))
		b = order.AppendUint32(b, uint32(p.Size))
		b = append(b, p.Data...)
	}
	return b
}
