//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	tcpWindow  = 2500 * time.Millisecond
	udpWindow  = 3 * time.Second
	echoWindow = time.Second
	settling   = 2 * time.Second // of daemons that are up, before their idle memory is read
	tunnelMTU  = 1420
)

// A link is two servers that are joined by a veth, with or without a tunnel on it.
type link struct {
	a, b    *lab.Server
	under   [2]netip.Addr // of the veth
	target  netip.Addr    // of b, to send to
	daemons []*lab.Process
	start   func() []*lab.Process
}

// measureTunnel compares jiji-node with wireguard-go as its authors publish it.
func measureTunnel(s *stage) *Part {
	p := &Part{
		Name:  "tunnel",
		Sides: [sides]string{"jiji-node", "wireguard-go", "no tunnel"},
		Notes: []string{
			fmt.Sprintf("Two namespaces on this machine joined by a veth of 1500 bytes, MTU %d in the tunnel, sender and receiver on the same cores.", tunnelMTU),
			fmt.Sprintf("Both daemons are fresh in each pair of rounds; of each load the first %v are left out. UDP is sent as fast as the kernel takes it, and what arrives counts: without a tunnel that is the sender's limit.", warmUp),
			"Processor time is of both daemons, memory of the larger one, in 10^6 bytes; the peak is of everything up to the end of the one stream.",
		},
	}
	one := p.add("TCP, 1 stream", "Gbit/s", 2, ratioAtLeast(0.97))
	four := p.add("TCP, 4 streams", "Gbit/s", 2, Bar{})
	packets := p.add("UDP, 100 bytes", "1000/s", 0, ratioAtLeast(3))
	p50 := p.add("round trip of UDP p50", "us", 0, Bar{})
	p99 := p.add("round trip of UDP p99", "us", 0, Bar{})
	cpu := p.add("processor time, 1 stream", "s/GB", 2, Bar{})
	cpu4 := p.add("processor time, 4 streams", "s/GB", 2, Bar{})
	peak := p.add("memory, 1 stream, peak", "MB", 0, atMost(64))
	steady := p.add("memory, 1 stream, steady", "MB", 0, Bar{})
	idle := p.add("memory, idle", "MB", 0, Bar{})

	l := lab.New(s)
	links := [sides]*link{jijiLink(s, l), stockLink(s, l), plainLink(s, l)}
	tcp := func(k *link, streams int) load {
		return s.measure(s.streams(k.a.Host, k.b.Host, k.target, streams), tcpWindow, k.daemons)
	}
	gigabits := func(v load) float64 { return float64(v.received) * 8 / v.took.Seconds() / 1e9 }
	perGB := func(v load) float64 { return v.cpu.Seconds() / (float64(v.received) / 1e9) }

	for n := range s.pairs {
		s.say("pair %d of %d", n+1, s.pairs)
		order := s.order(n, true)
		for _, v := range order {
			links[v].up(s)
		}
		s.sleep(settling)
		for _, v := range order {
			if k := links[v]; k.daemons != nil {
				idle.record(v, s.largest(k.daemons...).now)
			}
		}
		for _, v := range order {
			k := links[v]
			micros := s.roundTrips(k.a.Host, k.b.Host, k.target, echoWindow)
			p50.record(v, quantile(micros, 0.5))
			p99.record(v, quantile(micros, 0.99))
		}
		for _, v := range order {
			k := links[v]
			got := tcp(k, 1)
			one.record(v, gigabits(got))
			if k.daemons != nil {
				cpu.record(v, perGB(got))
				steady.record(v, got.memory)
				peak.record(v, s.largest(k.daemons...).peak)
			}
		}
		for _, v := range order {
			k := links[v]
			got := tcp(k, 4)
			four.record(v, gigabits(got))
			if k.daemons != nil {
				cpu4.record(v, perGB(got))
			}
		}
		for _, v := range order {
			k := links[v]
			got := s.measure(s.datagrams(k.a.Host, k.b.Host, k.target), udpWindow, k.daemons)
			packets.record(v, float64(got.received)/got.took.Seconds()/1e3)
		}
		for _, v := range order {
			links[v].down()
		}
	}
	return p
}

// up starts the daemons and waits until the far end answers through them.
func (k *link) up(s *stage) {
	if k.start != nil {
		k.daemons = k.start()
	}
	lab.Eventually(s, 20*time.Second, fmt.Sprintf("%s reaches %v", k.a.Name, k.target), func() error {
		_, err := k.a.Try("ping", "-n", "-c1", "-W1", k.target.String())
		return err
	})
}

func (k *link) down() {
	for _, p := range k.daemons {
		p.Stop()
	}
	k.daemons = nil
}

// newLink makes the two servers, without a daemon.
func newLink(s *stage, l *lab.Lab, name string) *link {
	k := &link{a: l.Server(name + "1"), b: l.Server(name + "2")}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = "eth0", 1500, netlink.NsPid(k.a.Pid())
	s.check("join "+k.a.Name+" and "+k.b.Name, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerMTU: 1500, PeerNamespace: netlink.NsPid(k.b.Pid()),
	}))
	for i, v := range []*lab.Server{k.a, k.b} {
		addr := fmt.Sprintf("192.0.2.%d", i+1)
		k.under[i] = netip.MustParseAddr(addr)
		v.Run("ip", "address", "add", addr+"/24", "dev", "eth0")
		v.Run("ip", "link", "set", "eth0", "up")
	}
	k.target = k.under[1]
	return k
}

func plainLink(s *stage, l *lab.Lab) *link { return newLink(s, l, "plain") }

// jijiLink meshes two nodes by the commands of the README.
func jijiLink(s *stage, l *lab.Lab) *link {
	k := newLink(s, l, "jiji")
	entries := ""
	for i, v := range []*lab.Server{k.a, k.b} {
		entries += v.Run("jiji-node", "init", "--name", v.Name, "--index", fmt.Sprint(i), "--endpoint", k.under[i].String())
	}
	for _, v := range []*lab.Server{k.a, k.b} {
		v.RunInput(entries, "jiji-node", "server", "add", "-")
	}
	k.target = netip.MustParseAddr("10.210.1.1")
	k.start = func() (daemons []*lab.Process) {
		for _, v := range []*lab.Server{k.a, k.b} {
			daemons = append(daemons, v.Start("run", "--mtu", fmt.Sprint(tunnelMTU)))
		}
		for _, p := range daemons {
			p.WaitReady()
		}
		return daemons
	}
	return k
}

func stockLink(s *stage, l *lab.Lab) *link {
	k := newLink(s, l, "stock")
	s.against = append(s.against, "wireguard-go "+moduleVersion("golang.zx2c4.com/wireguard"))
	keys := [2]wgkey.Private{wgkey.NewPrivate(), wgkey.NewPrivate()}
	inside := [2]netip.Prefix{netip.MustParsePrefix("10.211.0.1/32"), netip.MustParsePrefix("10.211.1.1/32")}
	k.target = inside[1].Addr()
	k.start = func() (daemons []*lab.Process) {
		for i, v := range []*lab.Server{k.a, k.b} {
			daemons = append(daemons, v.StartStockWireGuard(lab.StockConfig{
				Key: keys[i], Addresses: []netip.Prefix{inside[i]}, MTU: tunnelMTU,
				Peers: []lab.StockPeer{{
					Key:        keys[1-i].Public(),
					Endpoint:   netip.AddrPortFrom(k.under[1-i], 51820),
					AllowedIPs: []netip.Prefix{inside[1-i]},
				}},
			}))
		}
		return daemons
	}
	return k
}
