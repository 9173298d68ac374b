//go:build linux

package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	idleSettling = 4 * time.Second // of all daemons, before they are watched
	idleWindow   = 8 * time.Second
	keepalive    = 25 * time.Second
	statusRuns   = 5 // of which the median counts
	readyLimit   = 20 * time.Second
)

// A crowd is the daemons that have the same number of peers, and what is measured of them.
type crowd struct {
	daemons                    [2]*idler // ours and theirs
	ready, memory, cpu, status *Figure
}

// An idler is a daemon with peers that do not answer, on a server of its own.
type idler struct {
	server  *lab.Server
	start   func() *lab.Process // returns when it is ready
	status  []string            // the command that shows its peers
	program *lab.Process        // while it runs
}

// measureNode compares a node that has nothing to do with an idle wireguard-go.
func measureNode(s *stage) *Part {
	p := &Part{
		Name:  "node",
		Sides: [sides]string{"jiji-node", "wireguard-go", ""},
		Notes: []string{
			fmt.Sprintf("Peers have two endpoints that never answer, in a topology file; wireguard-go has the first of them, and a keepalive of %v.", keepalive),
			"Ready is what sd_notify(3) is told by jiji-node; for wireguard-go, that its socket has taken all peers and its interface is up.",
			fmt.Sprintf("Memory and processor time are those of %v, from %v after the last start, of all daemons at the same time.", idleWindow, idleSettling),
			"Status is the whole command: `jiji-node status` and `wg show`.",
			"The bars are of 255 peers and 64,768 containers. The embedded registry cannot hold those: they are in the part registry.",
		},
	}
	l := lab.New(s)
	internet := l.Network("internet", "192.0.2.0/24")
	stock := lab.StockWireGuard(s)
	s.against = append(s.against, "wireguard-go "+moduleVersion("golang.zx2c4.com/wireguard"))
	var crowds []*crowd
	for _, n := range []int{0, 50, 255} {
		var bars [3]Bar
		if n == 255 {
			bars = [3]Bar{atMost(3000), atMost(120), atMost(2)}
		}
		peers := deadPeers(n)
		crowds = append(crowds, &crowd{
			daemons: [2]*idler{
				ours:   s.idleNode(l.Server(fmt.Sprintf("jiji%d", n)).On(internet), peers),
				theirs: s.idleStock(l.Server(fmt.Sprintf("stock%d", n)).On(internet), peers, stock),
			},
			ready:  p.add(fmt.Sprintf("start to ready, %d peers", n), "ms", 0, bars[0]),
			memory: p.add(fmt.Sprintf("memory, idle, %d peers", n), "MB", 1, bars[1]),
			cpu:    p.add(fmt.Sprintf("processor, idle, %d peers", n), "% of a core", 2, bars[2]),
			status: p.add(fmt.Sprintf("status, %d peers", n), "ms", 1, Bar{}),
		})
	}

	for n := range s.pairs {
		s.say("pair %d of %d", n+1, s.pairs)
		order := s.order(n, false)
		for _, c := range crowds {
			for _, v := range order {
				start := time.Now()
				c.daemons[v].program = c.daemons[v].start()
				c.ready.record(v, milliseconds(time.Since(start)))
			}
		}
		s.sleep(idleSettling)
		before := make(map[*idler]time.Duration)
		for _, c := range crowds {
			for _, d := range c.daemons {
				before[d] = s.cpuTime(d.program)
			}
		}
		start := time.Now()
		s.sleep(idleWindow)
		for _, c := range crowds {
			for v, d := range c.daemons {
				used := s.cpuTime(d.program) - before[d]
				c.cpu.record(side(v), 100*used.Seconds()/time.Since(start).Seconds())
				c.memory.record(side(v), s.memory(d.program).now)
			}
		}
		for _, c := range crowds {
			for _, v := range order {
				var took []float64
				for range statusRuns {
					start := time.Now()
					c.daemons[v].server.Run(c.daemons[v].status[0], c.daemons[v].status[1:]...)
					took = append(took, milliseconds(time.Since(start)))
				}
				c.status.record(v, median(took))
			}
		}
		for _, c := range crowds {
			for _, d := range c.daemons {
				d.program.Stop()
			}
		}
	}
	return p
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// deadPeers returns servers with the subnets from 1 on, at addresses that are nobody's
// (RFC 2544).
func deadPeers(n int) (peers []topology.Server) {
	cluster := netip.MustParsePrefix(ipplan.DefaultCluster)
	for i := 1; i <= n; i++ {
		key := wgkey.NewPrivate().Public()
		subnet, err := ipplan.Subnet(cluster, i)
		if err != nil {
			panic(err) // the default cluster holds 256
		}
		id := fmt.Sprintf("dead%d", i)
		peers = append(peers, topology.Server{
			ID: id, Hostname: id, Subnet: subnet, WireGuardIP: ipplan.WireGuardIP(subnet),
			Key: key, ManagementIP: ipplan.Management(key),
			Endpoints: []netip.AddrPort{
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), 51820),
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, 0, byte(i)}), 51820),
			},
		})
	}
	return peers
}

const topologyFile = "/run/network.json"

func (s *stage) idleNode(v *lab.Server, peers []topology.Server) *idler {
	entry := v.Run("jiji-node", "init", "--index", "0", "--endpoint", v.Links()[0].Addr().String())
	own, err := topology.ParseEntries("init", strings.NewReader(entry))
	s.check("read the entry of "+v.Name, err)
	t := topology.Topology{
		Cluster: netip.MustParsePrefix(ipplan.DefaultCluster), Domain: "jiji", Discovery: "static",
		Servers: append([]topology.Server{own[0].Server}, peers...), CreatedAt: time.Now(), UpdatedAt: time.Now(),
	}
	s.check("make a topology", topology.Check(t))
	v.WriteFile(topologyFile, string(t.Marshal()))
	return &idler{
		server: v,
		status: []string{"jiji-node", "status"},
		start: func() *lab.Process {
			p := v.Start("run", "--network", topologyFile)
			p.WaitReady()
			return p
		},
	}
}

func (s *stage) idleStock(v *lab.Server, peers []topology.Server, binary string) *idler {
	conf := stockSettings(wgkey.NewPrivate(), peers)
	return &idler{
		server: v,
		status: []string{"wg", "show"},
		start: func() *lab.Process {
			p := v.Spawn(binary, "-f", "wg0")
			for start := time.Now(); ; time.Sleep(200 * time.Microsecond) {
				err := configure(v.Path("/run/wireguard/wg0.sock"), conf)
				if err == nil {
					break
				}
				if p.Ended() || time.Since(start) > readyLimit {
					s.Fatalf("configure %s: %v\n%s", p.Name, err, p.Log())
				}
			}
			v.Run("ip", "link", "set", "wg0", "up")
			return p
		},
	}
}

// stockSettings returns what sets a WireGuard device up in one go, in the language of
// its socket: https://www.wireguard.com/xplatform.
func stockSettings(key wgkey.Private, peers []topology.Server) string {
	secret := key.Bytes()
	var b strings.Builder
	fmt.Fprintf(&b, "set=1\nprivate_key=%s\nlisten_port=51820\n", hex.EncodeToString(secret[:]))
	for _, p := range peers {
		fmt.Fprintf(&b, "public_key=%s\nendpoint=%v\npersistent_keepalive_interval=%d\nallowed_ip=%v\n",
			hex.EncodeToString(p.Key[:]), p.Endpoints[0], int(keepalive.Seconds()), p.Subnet)
	}
	return b.String() + "\n"
}

// configure writes settings to a WireGuard device's socket.
func configure(socket, settings string) error {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, settings); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, err := c.Read(answer)
	if got := strings.TrimSpace(string(answer[:n])); got != "errno=0" {
		return errors.Join(fmt.Errorf("it answers %q, want errno=0", got), err)
	}
	return nil
}
