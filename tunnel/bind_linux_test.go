package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// openUDP returns an open bind, what it receives and the endpoints of its sockets.
func openUDP(t *testing.T) (b *udpBind, received <-chan received, at []conn.Endpoint) {
	t.Helper()
	b = newBind().(*udpBind)
	receivers, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if len(receivers) != 2 {
		t.Fatalf("%d sockets, want one of each family", len(receivers))
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		ep, err := b.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(host), port).String())
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, ep)
	}
	got := collect(t, receivers)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, got, at
}

type received struct {
	packet []byte
	from   string
}

// collect receives a few packets at a time until the bind is closed.
func collect(t *testing.T, receivers []conn.ReceiveFunc) <-chan received {
	got := make(chan received, 1<<16)
	var ends sync.WaitGroup
	for _, receive := range receivers {
		ends.Go(func() {
			packets, sizes, eps := make([][]byte, 5), make([]int, 5), make([]conn.Endpoint, 5)
			for i := range packets {
				packets[i] = make([]byte, 1<<16)
			}
			for {
				n, err := receive(packets, sizes, eps)
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				for i := range n {
					got <- received{bytes.Clone(packets[i][:sizes[i]]), eps[i].DstToString()}
				}
			}
		})
	}
	t.Cleanup(ends.Wait)
	return got
}

// next returns what comes next, or fails after a while.
func next(t *testing.T, from <-chan received) received {
	t.Helper()
	select {
	case r := <-from:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("nothing more within 10 s")
	}
	panic("unreachable")
}

// Peers of both families, written to by several goroutines at one time: each gets what
// is for it.
func TestBindBothFamilies(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		var peers []*net.UDPConn
		var at []conn.Endpoint
		b := newBind()
		for _, a := range []string{"192.0.2.1/32", "2001:db8:1::2/128", "192.0.2.3/32", "2001:db8:2::4/128"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				t.Fatal(err)
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(lo, addr); err != nil {
				t.Fatal(err)
			}
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for heard := false; !heard; { // as an address that is new may take a moment
				if _, err := c.WriteTo([]byte{0}, c.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				_, err := c.Read(make([]byte, 1))
				heard = err == nil
			}
			ep, err := b.ParseEndpoint(c.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			peers, at = append(peers, c), append(at, ep)
		}
		if _, _, err := b.Open(0); err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		const each = 25 // which a small buffer holds, too
		var sending sync.WaitGroup
		for range 4 {
			sending.Go(func() {
				for range each {
					for i, ep := range at {
						if err := b.Send([][]byte{{byte(i)}}, ep); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		sending.Wait()
		for i, c := range peers {
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			for n := range 4 * each {
				var packet [2]byte
				if _, err := c.Read(packet[:]); err != nil || packet[0] != byte(i) {
					t.Fatalf("packet %d to %v: it is for %v, %v", n, at[i].DstToString(), at[packet[0]].DstToString(), err)
				}
			}
		}
	})
}

// An answer comes from the address that was written to. If that is gone, or routes
// changed, it comes from another.
func TestBindAnswersFromWhereItWasAsked(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range [][2]string{{"192.0.2.1/32", "192.0.2.2/32"}, {"2001:db8:1::1/128", "2001:db8:1::2/128"}} {
			var addrs []*netlink.Addr
			for _, a := range family {
				addr, err := netlink.ParseAddr(a)
				if err != nil {
					t.Fatal(err)
				}
				addr.Flags = unix.IFA_F_NODAD
				if err := netlink.AddrAdd(lo, addr); err != nil {
					t.Fatal(err)
				}
				addrs = append(addrs, addr)
			}
			b := newBind().(*udpBind)
			receivers, port, err := b.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			receive := receivers[0]
			if addrs[0].IP.To4() == nil {
				receive = receivers[1]
			}
			peer, err := net.ListenUDP("udp", &net.UDPAddr{IP: addrs[0].IP})
			if err != nil {
				t.Fatal(err)
			}
			peer.SetDeadline(time.Now().Add(10 * time.Second))
			asked := &net.UDPAddr{IP: addrs[1].IP, Port: int(port)}
			eps := make([]conn.Endpoint, 1)
			ask := func() {
				t.Helper()
				heard := make(chan struct{})
				var asking sync.WaitGroup
				asking.Go(func() {
					for { // again, as an address that is new may take a moment
						if _, err := peer.WriteTo([]byte{1}, asked); err != nil {
							t.Error(err)
						}
						select {
						case <-heard:
							return
						case <-time.After(100 * time.Millisecond):
						}
					}
				})
				if _, err := receive([][]byte{make([]byte, 2000)}, make([]int, 1), eps); err != nil {
					t.Error(err)
				}
				close(heard)
				asking.Wait()
			}
			ask()
			answer := func(when string, packets [][]byte, from net.IP) {
				t.Helper()
				if err := b.Send(packets, eps[0]); err != nil {
					t.Fatal(err)
				}
				for range packets {
					_, got, err := peer.ReadFrom(make([]byte, 2000))
					if err != nil {
						t.Fatal(err)
					}
					if ip := got.(*net.UDPAddr).IP; !ip.Equal(from) {
						t.Errorf("%s: an answer comes from %v, want %v", when, ip, from)
					}
				}
			}
			answer("written to", [][]byte{{1}}, asked.IP)
			answer("a batch", [][]byte{make([]byte, 1000), make([]byte, 1000), {1}}, asked.IP)
			if got := eps[0].SrcToString(); got != asked.IP.String() {
				t.Errorf("the source is %s, want %v", got, asked.IP)
			}
			asked1 := eps[0].(*udpEndpoint)
			elsewhere := &udpEndpoint{to: asked1.to, from: asked1.from}
			elsewhere.from.index++
			eps[0] = elsewhere
			answer("the route is another interface's", [][]byte{{1}}, addrs[0].IP)
			eps[0] = asked1
			answer("another time", [][]byte{{1}}, asked.IP)
			b.checkSources()
			answer("something changed elsewhere", [][]byte{{1}}, asked.IP)
			eps[0].ClearSrc()
			answer("cleared", [][]byte{{1}}, addrs[0].IP)
			ask()
			answer("heard again", [][]byte{{1}}, asked.IP)
			if err := netlink.AddrDel(lo, addrs[1]); err != nil {
				t.Fatal(err)
			}
			answer("the address is gone", [][]byte{{1}}, addrs[0].IP)
			ep := eps[0].(*udpEndpoint)
			eps[0] = &udpEndpoint{to: ep.to, from: ep.from}
			b.checkSources()
			answer("the address is gone, and it is known", [][]byte{{1}}, addrs[0].IP)
			peer.Close()
			b.Close()
		}
	})
}

// Batches of many sizes arrive as they were sent, with and without the kernel's help.
func TestBindBatches(t *testing.T) {
	for _, segments := range []bool{true, false} {
		a, _, aAt := openUDP(t)
		_, got, bAt := openUDP(t)
		for family := range a.sockets {
			s := a.sockets[family].Load()
			if segments && !s.segments.Load() {
				t.Skip("the kernel has no UDP_SEGMENT")
			}
			s.segments.Store(segments)
		}
		for family, to := range bAt {
			for _, sizes := range [][]int{
				{1}, {148}, {65000}, {1452, 1452}, {1452, 1452, 32}, {1452, 32, 1452}, {32, 1452, 1452},
				repeat(1452, 128), repeat(100, 128), repeat(32, 128), repeat(9000, 20), append(repeat(1452, 64), 80, 1452), append(repeat(1024, 63), 1023, 1024),
			} {
				t.Run(fmt.Sprintf("segments %v, family %d, %d of %d bytes", segments, family, len(sizes), sizes[0]), func(t *testing.T) {
					var packets [][]byte
					for i, size := range sizes {
						p := make([]byte, size)
						binary.PutUvarint(p, uint64(i%128))
						p[size-1] ^= byte(size)
						packets = append(packets, p)
					}
					if err := a.Send(packets, to); err != nil {
						t.Fatal(err)
					}
					for i, p := range packets {
						if r := next(t, got); !bytes.Equal(r.packet, p) || r.from != aAt[family].DstToString() {
							t.Fatalf("packet %d of %d: %d bytes from %s, want %d from %v", i, len(packets), len(r.packet), r.from, len(p), aAt[family])
						}
					}
				})
			}
		}
	}
}

func repeat(size, n int) (sizes []int) {
	for range n {
		sizes = append(sizes, size)
	}
	return sizes
}

// What cannot be sent is told, and does not keep back what comes after it.
func TestBindSendsOn(t *testing.T) {
	a, _, _ := openUDP(t)
	_, got, at := openUDP(t)
	err := a.Send([][]byte{{1}, make([]byte, 1<<16), {3, 3}}, at[0])
	if !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("%v, want %v", err, syscall.EMSGSIZE)
	}
	for _, want := range [][]byte{{1}, {3, 3}} {
		if r := next(t, got); !bytes.Equal(r.packet, want) {
			t.Errorf("got %v, want %v", r.packet, want)
		}
	}
}

func TestBindOpensAndCloses(t *testing.T) {
	b, _, _ := openUDP(t)
	if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("opened twice: %v", err)
	}
	for _, taken := range []struct{ network, addr string }{{"udp4", "127.0.0.1:0"}, {"udp6", "[::1]:0"}} {
		c, err := net.ListenPacket(taken.network, taken.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		other := newBind()
		port := uint16(c.LocalAddr().(*net.UDPAddr).Port)
		if _, _, err := other.Open(port); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("port of %s: %v, want %v", taken.network, err, syscall.EADDRINUSE)
		}
		c.Close()
		receivers, actual, err := other.Open(port)
		if err != nil || actual != port {
			t.Fatalf("once it is free: port %d, %v, want %d", actual, err, port)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
		for _, receive := range receivers {
			if _, err := receive([][]byte{make([]byte, 1)}, make([]int, 1), make([]conn.Endpoint, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("received after the close: %v, want %v", err, net.ErrClosed)
			}
		}
		if err := other.Send([][]byte{{0}}, &udpEndpoint{to: netip.MustParseAddrPort("127.0.0.1:9")}); err == nil {
			t.Error("sent after the close")
		}
	}
}
