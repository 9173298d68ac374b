package node

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/registry/agent"
	"github.com/acidtib/jiji-node/registry/embedded"
)

// Problems that are not of package host.
const (
	kindMTU           host.Kind = "mtu"           // the uplinks carry too little
	kindState         host.Kind = "state"         // the state directory cannot be used
	kindAgent         host.Kind = "agent"         // there is no Corrosion agent to run
	kindConfiguration host.Kind = "configuration" // what was typed or configured is wrong
)

// preflight decides whether this machine can carry the node, before anything
// on it is touched, and what the node has to do without.
func (n *Node) preflight() error {
	problems, mtu, err := survey(n.cfg, n.members, 0, false)
	if err != nil {
		return err
	}
	n.ipv6 = true
	n.mtu.Store(int32(mtu))
	var refused []error
	for _, p := range problems {
		if !p.Degraded {
			refused = append(refused, p)
			continue
		}
		n.degrade(p.Text)
		if p.Kind == host.KindIPv6 {
			n.ipv6 = false
		}
	}
	return errors.Join(refused...)
}

// survey looks for what stands in the way of a start, and for the MTU that the
// machine allows. members is nil if the state cannot be used; own is the process
// of this very node if it runs already. ports says to look at those of registry and
// status page, too, which are had later than the others and may be taken until then.
func survey(cfg Config, members *membership.Membership, own int, ports bool) (problems []host.Problem, mtu int, err error) {
	want := host.Want{
		Link: cfg.Interface, ListenPort: cfg.ListenPort, DNSPort: cfg.DNSPort, Cluster: cfg.Cluster,
		Socket: filepath.Join(cfg.RuntimeDir, control.SocketName), Own: own, Network: cfg.EngineNetwork,
	}
	var servers []topology.Server
	if members != nil {
		topo, self := members.Topology(), members.Self()
		want.Cluster, want.Subnet, want.WireGuardIP = topo.Cluster, self.Subnet, self.WireGuardIP
		servers = topo.Servers
		if ports && cfg.Registry.Mode == control.Corrosion {
			want.Ports = registryPorts(cfg, self.ManagementIP)
		}
	}
	if ports && cfg.StatusListen.IsValid() {
		want.Ports = append(want.Ports, pagePort(cfg.StatusListen))
	}
	facts, err := host.Observe(want)
	if err != nil {
		return nil, 0, fmt.Errorf("observe this machine: %w", err)
	}
	problems = host.Check(facts, want)
	if err := statefile.CheckDir(cfg.StateDir); err != nil { // an orchestrator's volume may be like that
		problems = append(problems, host.Problem{Kind: kindState, Text: fmt.Sprintf("state directory %v", err), Degraded: true})
	}
	mtu, err = host.MTU(facts.Uplinks(cfg.Interface), ipv6Endpoints(servers), cfg.MTU)
	if err != nil {
		problems = append(problems, host.Problem{Kind: kindMTU, Text: err.Error()})
	}
	return problems, mtu, nil
}

// registryPorts are the ports of a node whose registry is Corrosion.
func registryPorts(cfg Config, management netip.Addr) []host.Port {
	c := cfg.Corrosion
	control, gossip := netip.AddrPortFrom(management, c.ControlPort), netip.AddrPortFrom(management, c.GossipPort)
	ports := []host.Port{
		{Proto: "tcp", Addr: control, What: "node-to-node control", Flag: "--control-port"},
		{Proto: "udp", Addr: control, What: "node-to-node control", Flag: "--control-port"},
	}
	if cfg.Registry.URL == "" {
		ports = append(ports,
			host.Port{Proto: "udp", Addr: gossip, What: "Corrosion gossip", Flag: "--gossip-port"},
			host.Port{Proto: "tcp", Addr: gossip, What: "Corrosion metrics", Flag: "--gossip-port"},
			host.Port{Proto: "tcp", Addr: c.API, What: "Corrosion API", Flag: "--corrosion-api"})
	}
	return ports
}

// A Readiness says whether a node could run here.
type Readiness struct {
	Ready    bool           `json:"ready"`             // no problem but such that the node can run with
	Running  int            `json:"running,omitempty"` // the process that is this very node; what it holds is no problem
	Problems []host.Problem `json:"problems"`
}

// Check is the preflight of Run alone. It makes, writes and takes nothing, and
// needs no state directory. Its error, marked by package usage if the
// configuration is to blame, says that a node would not run.
func Check(cfg Config) (Readiness, error) {
	r := Readiness{Problems: []host.Problem{}}
	fault := func(err error) {
		kind := kindState
		if usage.Is(err) {
			kind = kindConfiguration
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			r.Problems = append(r.Problems, host.Problem{Kind: kind, Text: line})
		}
	}
	var members *membership.Membership
	running, err := statefile.Holder(cfg.StateDir)
	if err == nil {
		r.Running = running
		members, err = membership.Open(cfg.membership())
	}
	if err == nil {
		err = embedded.Check(filepath.Join(cfg.StateDir, registryName))
	}
	if err != nil {
		fault(err)
	}
	if c := cfg.Registry; c.Mode == control.Corrosion && c.URL == "" {
		if _, err := agent.Find(cfg.Corrosion.Bin); err != nil {
			r.Problems = append(r.Problems, host.Problem{Kind: kindAgent, Text: fmt.Sprintf("registry: %v; without it the node goes on with what it knows", err), Degraded: true})
		}
	}
	found, _, err := survey(cfg, members, r.Running, true)
	if err != nil {
		return r, err
	}
	r.Problems = append(r.Problems, found...)

	refused, blame := 0, false
	for _, p := range r.Problems {
		if !p.Degraded {
			refused++
			blame = blame || p.Kind == kindConfiguration
		}
	}
	if r.Ready = refused == 0; r.Ready {
		return r, nil
	}
	err = fmt.Errorf("not ready to run; problems in the way: %d", refused)
	if blame {
		err = usage.Mark(err)
	}
	return r, err
}

// membership is what package membership has to know of cfg.
func (cfg Config) membership() membership.Config {
	return membership.Config{
		Dir: cfg.StateDir, NetworkFile: cfg.NetworkFile,
		Name: cfg.Name, Endpoints: cfg.Endpoints, Cluster: cfg.Cluster, Domain: cfg.Domain,
		Detect: func() []netip.AddrPort { return DetectEndpoints(cfg.ListenPort, cfg.Cluster) },
		Log:    cfg.Log,
	}
}
