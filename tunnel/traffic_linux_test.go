package tunnel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// otherNamespace makes a second network namespace, for as long as the process
// lasts. What it returns runs a function on a thread inside.
func otherNamespace(t *testing.T) (ns *os.File, do func(func())) {
	t.Helper()
	work, done := make(chan func()), make(chan struct{})
	var err error
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = os.Open("/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net")
		}
		done <- struct{}{}
		for f := range work {
			f()
			done <- struct{}{}
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(work) })
	return ns, func(f func()) { work <- f; <-done }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An end is a tunnel with an uplink, in a namespace.
type end struct {
	tunnel, uplink string
	ip             netip.Addr // inside
	outside        netip.Addr
	key            wgkey.Private
	*Tunnel
}

// open is to run in the namespace of e.
func (e *end) open(t *testing.T, other *end) {
	up, err := netlink.LinkByName(e.uplink)
	must(t, err)
	must(t, netlink.AddrAdd(up, &netlink.Addr{IPNet: &net.IPNet{IP: e.outside.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	must(t, netlink.LinkSetUp(up))
	cfg := realConfig()
	cfg.Name, cfg.Key, cfg.Addresses = e.tunnel, e.key, []netip.Prefix{netip.PrefixFrom(e.ip, 32)}
	e.Tunnel = mustOpen(t, cfg)
	link, err := netlink.LinkByName(e.tunnel)
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Src:       e.ip.AsSlice(),
		Dst:       &net.IPNet{IP: other.ip.AsSlice(), Mask: net.CIDRMask(32, 32)},
	}))
	_, err = e.SetPeers([]Peer{{Key: other.key.Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(other.ip, 32)}}})
	must(t, err)
}

// Bulk data passes unharmed: segments and small packets, read and written in
// batches, and more of them than the gates let in.
func TestTraffic(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		ns, there := otherNamespace(t)
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1", PeerNamespace: netlink.NsFd(ns.Fd())}))
		a := &end{tunnel: "jiji0", uplink: "up0", ip: netip.MustParseAddr("10.210.1.1"), outside: netip.MustParseAddr("192.0.2.1"), key: wgkey.NewPrivate()}
		b := &end{tunnel: "jiji1", uplink: "up1", ip: netip.MustParseAddr("10.210.2.1"), outside: netip.MustParseAddr("192.0.2.2"), key: wgkey.NewPrivate()}
		a.open(t, b)
		there(func() { b.open(t, a) })
		must(t, a.Move(b.key.Public(), netip.AddrPortFrom(b.outside, b.ListenPort())))
		service := netip.AddrPortFrom(b.ip, 7000).String()

		t.Run("TCP", func(t *testing.T) {
			var l net.Listener
			var err error
			there(func() { l, err = net.Listen("tcp4", service) })
			must(t, err)
			defer l.Close()
			sum := make(chan []byte, 1)
			go func() {
				defer close(sum)
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				h := sha256.New()
				if _, err := io.Copy(h, c); err == nil {
					sum <- h.Sum(nil)
				}
			}()
			c, err := net.DialTimeout("tcp4", service, 5*time.Second)
			must(t, err)
			defer c.Close()
			must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			h := sha256.New()
			_, err = io.CopyN(io.MultiWriter(c, h), rand.NewChaCha8([32]byte{}), 64<<20)
			must(t, err)
			must(t, c.Close())
			select {
			case got := <-sum:
				if !bytes.Equal(got, h.Sum(nil)) {
					t.Error("what arrived is not what was sent")
				}
			case <-time.After(30 * time.Second):
				t.Error("the end does not arrive")
			}
		})

		t.Run("UDP", func(t *testing.T) {
			var l net.PacketConn
			var err error
			there(func() { l, err = net.ListenPacket("udp4", service) })
			must(t, err)
			defer l.Close()
			const count, size = 50000, 100
			arrived := make(chan int, 1)
			go func() {
				n, p := 0, make([]byte, 2*size)
				for {
					l.SetReadDeadline(time.Now().Add(time.Second)) // after the last
					m, _, err := l.ReadFrom(p)
					if err != nil {
						arrived <- n
						return
					}
					n++
					i := binary.BigEndian.Uint32(p)
					if m != size || i >= count || !bytes.Equal(p[4:m], bytes.Repeat([]byte{byte(i)}, size-4)) {
						t.Errorf("packet of %d bytes, number %d, is not as sent", m, i)
					}
				}
			}()
			c, err := net.Dial("udp4", service)
			must(t, err)
			defer c.Close()
			for i := range uint32(count) {
				p := append(binary.BigEndian.AppendUint32(nil, i), bytes.Repeat([]byte{byte(i)}, size-4)...)
				_, err := c.Write(p)
				must(t, err)
			}
			if got := <-arrived; got == 0 || got > count { // how many depends on the machine
				t.Errorf("%d of %d packets arrived", got, count)
			}
		})
	})
}
