package tunnel

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

var (
	from4, to4 = netip.MustParseAddr("10.210.1.10"), netip.MustParseAddr("10.210.2.10")
	from6, to6 = netip.MustParseAddr("fdcc:1::1"), netip.MustParseAddr("fdcc:2::2")
)

// tcpPacket makes a packet with TCP flags and options, which are filled up to a
// multiple of 4 bytes, and a right checksum.
func tcpPacket(from, to netip.Addr, flags byte, options ...byte) []byte {
	options = append(options, make([]byte, -len(options)&3)...)
	tcp := binary.BigEndian.AppendUint32(nil, 40000<<16|80)
	tcp = append(tcp, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, byte(5+len(options)/4)<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	tcp = append(tcp, options...)
	var b []byte
	if from.Is4() {
		b = []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocolTCP, 0, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(ipv4Header+len(tcp)))
	} else {
		b = []byte{0x60, 0, 0, 0, 0, 0, protocolTCP, 64}
		binary.BigEndian.PutUint16(b[4:], uint16(len(tcp)))
	}
	b = slices.Concat(b, from.AsSlice(), to.AsSlice(), tcp)
	tcp = b[len(b)-len(tcp):]
	binary.BigEndian.PutUint16(tcp[tcpSum:], ^sumTCP(b, tcp))
	return b
}

// sumTCP returns the Internet sum of a segment and its pseudo-header: 0xffff if
// the checksum is right.
func sumTCP(packet, tcp []byte) uint16 {
	addrs := packet[12:20]
	if packet[0]>>4 == 6 {
		addrs = packet[8:40]
	}
	sum := uint64(protocolTCP + len(tcp))
	for _, part := range [][]byte{addrs, tcp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint64(part[i]) << 8
			if i+1 < len(part) {
				sum += uint64(part[i+1])
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// extend puts an IPv6 extension header in front of what follows the first header.
func extend(b []byte, kind byte, header ...byte) []byte {
	header[0] = b[6]
	b = slices.Concat(b[:ipv6Header], header, b[ipv6Header:])
	b[6] = kind
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Header))
	return b
}

// with returns a copy of b that edit has changed.
func with(b []byte, edit func([]byte)) []byte {
	b = slices.Clone(b)
	edit(b)
	return b
}

func upTo(mtu int) func(int) int { return func(packet int) int { return min(packet, mtu) } }

func TestLimitMSS(t *testing.T) {
	mss := func(v uint16) []byte { return []byte{optionMSS, lengthMSS, byte(v >> 8), byte(v)} }
	syn4 := func(options ...byte) []byte { return tcpPacket(from4, to4, syn, options...) }
	syn6 := func(options ...byte) []byte { return tcpPacket(from6, to6, syn, options...) }
	linux := func(v uint16) []byte {
		return append(mss(v), 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7)
	}
	const mtu = 1420
	for _, c := range []struct {
		name     string
		in, want []byte
	}{
		{"SYN", syn4(linux(1460)...), syn4(linux(1380)...)},
		{"SYN-ACK", tcpPacket(from4, to4, syn|0x10, linux(8960)...), tcpPacket(from4, to4, syn|0x10, linux(1380)...)},
		{"ECN SYN", tcpPacket(from4, to4, syn|0xc0, mss(1460)...), tcpPacket(from4, to4, syn|0xc0, mss(1380)...)},
		{"IPv6", syn6(linux(1440)...), syn6(linux(1360)...)},
		{"just right", syn4(mss(1380)...), syn4(mss(1380)...)},
		{"one more", syn4(mss(1381)...), syn4(mss(1380)...)},
		{"never raised", syn4(mss(536)...), syn4(mss(536)...)},
		{"zero", syn4(mss(0)...), syn4(mss(0)...)},
		{"largest", syn4(mss(65535)...), syn4(mss(1380)...)},
		{"no options", syn4(), syn4()},
		{"no MSS", syn4(4, 2, 1, 3, 3, 7), syn4(4, 2, 1, 3, 3, 7)},
		{"at an odd place", syn4(append([]byte{optionNop}, mss(1460)...)...), syn4(append([]byte{optionNop}, mss(1380)...)...)},
		{"behind others", syn4(append([]byte{8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mss(1460)...)...), syn4(append([]byte{8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mss(1380)...)...)},
		{"twice", syn4(append(mss(1460), mss(9000)...)...), syn4(append(mss(1380), mss(1380)...)...)},
		{"behind the end", syn4(append([]byte{optionEnd}, mss(1460)...)...), nil},
		{"of another length", syn4(optionMSS, 3, 5, 0xb4), nil},
		{"cut off", syn4(optionNop, optionNop, optionMSS, 4), nil},
		{"length of 0", syn4(append([]byte{9, 0}, mss(1460)...)...), nil},
		{"no SYN", tcpPacket(from4, to4, 0x10, mss(1460)...), nil},
		{"RST", tcpPacket(from4, to4, syn|rst, mss(1460)...), nil},
		{"FIN", tcpPacket(from4, to4, syn|fin, mss(1460)...), nil},
		{"wrong checksum stays wrong", with(syn4(mss(1460)...), func(b []byte) { b[37] ^= 1 }), with(syn4(mss(1380)...), func(b []byte) { b[37] ^= 1 })},
		{"first fragment", with(syn4(mss(1460)...), func(b []byte) { b[6] = moreFragments >> 8 }), with(syn4(mss(1380)...), func(b []byte) { b[6] = moreFragments >> 8 })},
		{"later fragment", with(syn4(mss(1460)...), func(b []byte) { b[7] = 1 }), nil},
		{"header not whole", syn4(mss(1460)...)[:42], nil},
		{"header says more than there is", with(syn4(mss(1460)...), func(b []byte) { b[32] = 0xf0 }), nil},
		{"header says less than it needs", with(syn4(mss(1460)...), func(b []byte) { b[32] = 0x40 }), nil},
		{"packet says less than there is", with(syn4(mss(1460)...), func(b []byte) { b[3] = 43 }), nil},
		{"UDP", with(syn4(mss(1460)...), func(b []byte) { b[9] = 17 }), nil},
		{"IPv6 with extensions",
			extend(extend(syn6(mss(1440)...), destination, make([]byte, 16)...), hopByHop, make([]byte, 8)...), nil}, // 16: the length says 8
		{"IPv6 hop by hop", extend(syn6(mss(1440)...), hopByHop, make([]byte, 8)...), extend(syn6(mss(1360)...), hopByHop, make([]byte, 8)...)},
		{"IPv6 routing", extend(syn6(mss(1440)...), routing, 0, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8),
			extend(syn6(mss(1360)...), routing, 0, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8)},
		{"IPv6 two", extend(extend(syn6(mss(1440)...), destination, make([]byte, 8)...), hopByHop, make([]byte, 8)...),
			extend(extend(syn6(mss(1360)...), destination, make([]byte, 8)...), hopByHop, make([]byte, 8)...)},
		{"IPv6 first fragment", extend(syn6(mss(1440)...), fragment, 0, 0, 0, 1, 1, 2, 3, 4), extend(syn6(mss(1360)...), fragment, 0, 0, 0, 1, 1, 2, 3, 4)},
		{"IPv6 later fragment", extend(syn6(mss(1440)...), fragment, 0, 0, 0, 8, 1, 2, 3, 4), nil},
		{"IPv6 encrypted", extend(syn6(mss(1440)...), 50, make([]byte, 8)...), nil},
		{"IPv6 extension longer than the packet", extend(syn6(mss(1440)...), hopByHop, 0, 255, 0, 0, 0, 0, 0, 0), nil},
		{"empty", nil, nil},
		{"neither", with(syn4(mss(1460)...), func(b []byte) { b[0] = 0x55 }), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want == nil {
				c.want = c.in
			}
			got := slices.Clone(c.in)
			if mayLimitMSS(got) {
				limitMSS(got, upTo(mtu))
			} else if !bytes.Equal(c.in, c.want) {
				t.Error("mayLimitMSS says no")
			}
			if !bytes.Equal(got, c.want) {
				t.Errorf("got  %x\nwant %x", got, c.want)
			}
		})
	}
}

// Whatever arrives: it keeps its length, nothing but the MSS and the checksum of
// a SYN differs, no MSS grows, a right checksum stays right and a wrong one wrong.
func FuzzLimitMSS(f *testing.F) {
	f.Add(tcpPacket(from4, to4, syn, 2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7), uint16(1420))
	f.Add(tcpPacket(from4, to4, syn|0x10, 1, 2, 4, 0xff, 0xff), uint16(576))
	f.Add(tcpPacket(from6, to6, syn, 2, 4, 5, 0xb4, 2, 4, 5, 0xb4), uint16(1280))
	f.Add(extend(tcpPacket(from6, to6, syn, 2, 4, 5, 0xb4), fragment, 0, 0, 0, 1, 1, 2, 3, 4), uint16(1232))
	f.Add(extend(tcpPacket(from6, to6, syn, 2, 4, 5, 0xb4), hopByHop, make([]byte, 8)...), uint16(0))
	f.Fuzz(func(t *testing.T, in []byte, mtu uint16) {
		tcp, _ := findTCP(in)
		if len(tcp) >= tcpHeader+2 { // make most checksums right
			in = slices.Clone(in)
			tcp, _ = findTCP(in)
			if tcp[len(tcp)-1]&1 == 0 {
				tcp[tcpSum], tcp[tcpSum+1] = 0, 0
				binary.BigEndian.PutUint16(tcp[tcpSum:], ^sumTCP(in, tcp))
			}
		}
		out := slices.Clone(in)
		limitMSS(out, upTo(int(mtu)))
		if len(out) != len(in) {
			t.Fatalf("%d bytes became %d", len(in), len(out))
		}
		if bytes.Equal(in, out) {
			return
		}
		if !mayLimitMSS(in) {
			t.Error("mayLimitMSS says no")
		}
		after, _ := findTCP(out)
		if was, is := sumTCP(in, tcp), sumTCP(out, after); was != is && was%0xffff != is%0xffff {
			t.Errorf("sum %#x became %#x", was, is)
		}
		start := cap(in) - cap(tcp)
		for i := range in {
			if in[i] != out[i] && (i < start+tcpSum || i >= start+tcpSum+2 && i < start+tcpHeader || i >= start+60) {
				t.Errorf("byte %d changed", i)
			}
		}
		if again := slices.Clone(out); !bytes.Equal(again, with(again, func(b []byte) { limitMSS(b, upTo(int(mtu))) })) {
			t.Error("a second time changes it again")
		}
	})
}

// A memoryTUN reads and takes batches of packets.
type memoryTUN struct {
	reads [][][]byte
	wrote [][]byte
}

func (m *memoryTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(m.reads) == 0 {
		return 0, os.ErrClosed
	}
	batch := m.reads[0]
	m.reads = m.reads[1:]
	for i, b := range batch {
		sizes[i] = copy(bufs[i][offset:], b)
	}
	return len(batch), nil
}

func (m *memoryTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		m.wrote = append(m.wrote, slices.Clone(b[offset:]))
	}
	return len(bufs), nil
}

func (m *memoryTUN) File() *os.File           { return nil }
func (m *memoryTUN) MTU() (int, error)        { return 1420, nil }
func (m *memoryTUN) Name() (string, error)    { return "memory", nil }
func (m *memoryTUN) Events() <-chan tun.Event { return nil }
func (m *memoryTUN) Close() error             { return nil }
func (m *memoryTUN) BatchSize() int           { return 128 }

// readAll reads batches until there are no more.
func readAll(t *testing.T, d tun.Device) (batches [][][]byte) {
	t.Helper()
	bufs, sizes := make([][]byte, 16), make([]int, 16)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	for range 100 {
		n, err := d.Read(bufs, sizes, 16)
		if err != nil {
			return batches
		}
		var batch [][]byte
		for i, b := range bufs[:n] {
			batch = append(batch, slices.Clone(b[16:16+sizes[i]]))
		}
		batches = append(batches, batch)
	}
	t.Fatal("there is no end of it")
	return nil
}

var limitedPeers = []Peer{
	{AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.210.2.0/24"), netip.MustParsePrefix("fdcc:2::2/128")}, MTU: 1232},
	{AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.210.3.0/24")}},
	{AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.210.4.0/24")}, MTU: 1500},
}

func TestLimitedTUN(t *testing.T) {
	mem := &memoryTUN{}
	d := &limitedTUN{Device: mem}
	d.limits.Store(newLimits(1420, limitedPeers))
	addr := netip.MustParseAddr
	syn := func(from, to netip.Addr, mss uint16) []byte {
		return tcpPacket(from, to, syn, 2, 4, byte(mss>>8), byte(mss))
	}
	in := [][]byte{
		syn(from4, to4, 1460), syn(to4, from4, 1460), // the peer's at either end
		syn(from6, to6, 1460), syn(to6, from6, 1460),
		syn(from4, addr("10.210.3.10"), 1460), syn(from4, addr("10.210.4.10"), 1460),
		syn(from4, from4, 1381), syn(from4, from4, 1380), syn(from4, from4, 1379), // the far end's MTU: larger, equal, smaller
		syn(from4, from4, 1368), syn(from4, from4, 1300), syn(from4, from4, 0),
		nil,
	}
	want := [][]byte{
		syn(from4, to4, 1192), syn(to4, from4, 1380),
		syn(from6, to6, 1172), syn(to6, from6, 1360),
		syn(from4, addr("10.210.3.10"), 1380), syn(from4, addr("10.210.4.10"), 1380),
		syn(from4, from4, 1380), syn(from4, from4, 1380), syn(from4, from4, 1379),
		syn(from4, from4, 1368), syn(from4, from4, 1300), syn(from4, from4, 0),
		{},
	}
	mem.reads = [][][]byte{in}
	if got := readAll(t, d); len(got) != 1 || !slices.EqualFunc(got[0], want, bytes.Equal) {
		t.Errorf("read  %x\nwant %x", got, want)
	}

	var bufs [][]byte
	for _, b := range in {
		bufs = append(bufs, append(make([]byte, 16), b...))
	}
	want[0], want[1] = syn(from4, to4, 1380), syn(to4, from4, 1192)
	want[2], want[3] = syn(from6, to6, 1360), syn(to6, from6, 1172)
	copy(want[6:], [][]byte{
		syn(from4, from4, 1380), syn(from4, from4, 1380), syn(from4, from4, 1368),
		syn(from4, from4, 1368), syn(from4, from4, 1288), syn(from4, from4, 0),
	})
	if _, err := d.Write(bufs, 16); err != nil || !slices.EqualFunc(mem.wrote, want, bytes.Equal) {
		t.Errorf("wrote %x, %v\nwant  %x", mem.wrote, err, want)
	}
}

// A batchBind sends no batch and no message larger than its limit.
type batchBind struct {
	conn.Bind
	limit int
	sent  *[]string
}

func (b batchBind) Send(packets [][]byte, _ conn.Endpoint) error {
	for _, p := range packets {
		if len(packets) > 1 && len(p) > 1 || len(p) > b.limit {
			return &net.OpError{Op: "write", Err: os.NewSyscallError("sendmmsg", syscall.EMSGSIZE)}
		}
		*b.sent = append(*b.sent, string(p))
	}
	return nil
}

func TestSizedBind(t *testing.T) {
	var sent []string
	tooLarge := make(chan struct{}, 1)
	b := sizedBind{batchBind{limit: 3, sent: &sent}, tooLarge}
	for _, c := range []struct {
		packets string
		sent    string
		told    int
		ok      bool
	}{
		{"a b c", "a b c", 0, true},
		{"aaa", "aaa", 0, true},
		{"aa bb c", "aa bb c", 1, true},
		{"aaaa", "", 1, false},
		{"a bbbb ccc", "a a ccc", 1, false}, // the first was sent in the batch
	} {
		sent = nil
		var packets [][]byte
		for _, p := range strings.Fields(c.packets) {
			packets = append(packets, []byte(p))
		}
		err := b.Send(packets, nil)
		if got := strings.Join(sent, " "); got != c.sent || len(tooLarge) != c.told || (err == nil) != c.ok {
			t.Errorf("%s: sent %q, told %d times, %v; want %q, %d, ok %v", c.packets, got, len(tooLarge), err, c.sent, c.told, c.ok)
		}
		if len(tooLarge) > 0 {
			<-tooLarge
		}
	}
}

func BenchmarkLimitedTUN(b *testing.B) {
	full := func(packet []byte) []byte { return append(packet, make([]byte, 1420-len(packet))...) }
	for _, c := range []struct {
		name   string
		packet []byte
	}{
		{"data4", full(tcpPacket(from4, to4, 0x10, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8))},
		{"data6", full(tcpPacket(from6, to6, 0x10, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8))},
		{"udp4", with(tcpPacket(from4, to4, 0), func(b []byte) { b[9] = 17 })},
		{"syn4", tcpPacket(from4, to4, syn, 2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7)},
	} {
		b.Run(c.name, func(b *testing.B) { // per packet, with batches of 64
			const batch = 64
			d := &limitedTUN{Device: &discardTUN{}}
			d.limits.Store(newLimits(1420, limitedPeers))
			bufs := make([][]byte, batch)
			for i := range bufs {
				bufs[i] = append(make([]byte, 16), c.packet...)
			}
			for i := 0; i < b.N; i += batch {
				d.Write(bufs, 16)
			}
		})
	}
}

type discardTUN struct{ memoryTUN }

func (*discardTUN) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
