package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/acidtib/jiji-node/node"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/engine"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/registry/corrosion"
)

// A runFlags is what `run` can be told.
type runFlags struct {
	network   string
	name      string
	endpoints []string
	cluster   string
	domain    string
	dnsPort   uint16
	upstreams []string
	dnsHost   string
	dnsOrder  string
	mtu       int
	forward   []string
	nat       string
	enabled   bool
	engine    string
	engineNet string
	restart   bool
	status    string
	registry  registryFlags
}

// A registryFlags is where the catalog is kept.
type registryFlags struct {
	mode, bin, url, tokenFile, api string
	gossipPort, controlPort        uint16
}

func (a *app) addRegistryFlags(f *pflag.FlagSet, r *registryFlags) {
	f.StringVar(&r.mode, "registry", "", "embedded: a file with this server's containers; corrosion: the cluster's (default: what `registry use` chose, else embedded)")
	f.StringVar(&r.bin, "corrosion-bin", "corrosion", "Corrosion's program, a path or a name in PATH, which the node runs")
	f.StringVar(&r.api, "corrosion-api", "127.0.0.1:8080", "address of the API of the agent that the node runs")
	f.StringVar(&r.url, "corrosion-url", "", "URL of an agent that somebody else runs, such as http://127.0.0.1:8080; with --registry corrosion")
	f.StringVar(&r.tokenFile, "corrosion-token-file", "", "file that holds the token of that agent")
	f.Uint16Var(&r.gossipPort, "gossip-port", 8787, "UDP port of Corrosion's gossip, and TCP port of its metrics, on the management address")
	f.Uint16Var(&r.controlPort, "control-port", 8786, "UDP and TCP port of the nodes' own messages on the management address")
}

// registryConfig turns text into types.
func (a *app) registryConfig(r registryFlags, cfg *node.Config) error {
	cfg.Registry = control.RegistryMode{Mode: r.mode, URL: r.url, TokenFile: r.tokenFile}
	if r.mode == "" && (r.url != "" || r.tokenFile != "") {
		return a.wrong("corrosion-url", errors.New("goes with --registry corrosion"))
	}
	if r.mode != "" {
		if err := cfg.Registry.Check(); err != nil {
			return a.wrong("registry", err)
		}
	}
	if err := checkURL(r.url); err != nil {
		return a.wrong("corrosion-url", err)
	}
	api, err := netip.ParseAddrPort(r.api)
	if err != nil || api.Port() == 0 || !api.Addr().IsLoopback() {
		return a.wrong("corrosion-api", fmt.Errorf("%q: want an address of this machine alone and a port, such as 127.0.0.1:8080", r.api))
	}
	for _, p := range []struct {
		name string
		port uint16
	}{{"gossip-port", r.gossipPort}, {"control-port", r.controlPort}} {
		if p.port == 0 {
			return a.wrong(p.name, errors.New("0, want 1 to 65535: the other servers have to know it"))
		}
	}
	if r.gossipPort == r.controlPort {
		return a.wrong("control-port", fmt.Errorf("%d: is the gossip port", r.controlPort))
	}
	cfg.Corrosion = node.CorrosionConfig{Bin: r.bin, API: api, GossipPort: r.gossipPort, ControlPort: r.controlPort}
	return nil
}

// checkURL fails unless text is empty or an agent's.
func checkURL(text string) error {
	if text == "" {
		return nil
	}
	_, err := corrosion.New(corrosion.Config{URL: text})
	return err
}

func (a *app) addRunFlags(f *pflag.FlagSet, r *runFlags) {
	f.StringVar(&r.network, "network", "", "topology file that others write (default: the state directory's own network.json)")
	f.StringVar(&r.name, "name", "", "host name of this server (default: the known one, else the machine's)")
	f.StringArrayVar(&r.endpoints, "endpoint", nil, "address under which others reach this server, IP or IP:PORT; may be repeated (default: the known ones, else the interfaces' addresses)")
	f.StringVar(&r.cluster, "cluster-cidr", ipplan.DefaultCluster, "addresses of the whole mesh, for a new one; else it has to be the cluster's")
	f.StringVar(&r.domain, "domain", "jiji", "domain of the mesh's names, for a new one; else it has to be the cluster's")
	a.addLinkFlags(f)
	f.IntVar(&r.mtu, "mtu", 0, "MTU of the interface, 1280 to 8921 (default: what the underlay carries)")
	f.Uint16Var(&r.dnsPort, "dns-port", 53, "UDP and TCP port of the name server on the WireGuard IP")
	f.StringArrayVar(&r.upstreams, "dns-upstream", nil, "name server for names outside the mesh, IP or IP:PORT; may be repeated (default: the host's own)")
	f.StringVar(&r.dnsOrder, "dns-order", "nearest", "nearest: a name answers this server's containers first, then by round-trip time, and equals in turn; rotate: all in turn")
	f.StringVar(&r.dnsHost, "dns-host", "auto", "auto: have systemd-resolved, where it runs, ask the node for names of the mesh, so that programs on this server find them; off: leave that alone")
	f.StringArrayVar(&r.forward, "forward-from", nil, "interface that may forward into the mesh and out of it; may be repeated")
	f.StringVar(&r.nat, "nat", "identity", "identity: others see the containers' addresses; masquerade: they see the WireGuard IP")
	f.StringVar(&r.engine, "engine", "auto", "container engine whose containers are registered: auto, docker, podman or none")
	f.StringVar(&r.engineNet, "engine-network", "jiji-mesh", "the containers' network in the engine")
	f.BoolVar(&r.restart, "restart-engine", false, "restart the engine where its containers would not get the mesh's name server else; containers may be restarted, too")
	f.StringVar(&r.status, "status-listen", "127.0.0.1:9187", "IP:PORT of a page that shows the node's state, with /metrics, /healthz and /readyz, over HTTP without a password; off: none")
	a.addRegistryFlags(f, &r.registry)
	f.BoolVar(&r.enabled, "network-enabled", true, "false: report ready and end at once")
}

func (a *app) addLinkFlags(f *pflag.FlagSet) {
	a.addInterfaceFlag(f)
	f.Uint16Var(&a.listenPort, "listen-port", 51820, "UDP port of WireGuard")
}

func (a *app) addInterfaceFlag(f *pflag.FlagSet) {
	f.StringVar(&a.link, "interface", "jiji0", "name of the WireGuard interface")
}

func (a *app) runCommand() *cobra.Command {
	var r runFlags
	check, asJSON := false, false
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the node in the foreground, until SIGTERM",
		Long: `Run the node in the foreground, until SIGTERM. A new machine needs no arguments:
it gets a key, subnet 0 and an embedded registry. What is in the way is said
before anything is touched; with --check that is all that is done, and nothing is
touched at all.`,
		Example: "  jiji-node run --check && jiji-node run\n  jiji-node run --network /etc/jiji/network.json --endpoint 203.0.113.10",
		Args:    count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && !check {
				return usage.Errorf("--json: goes with --check")
			}
			if !r.enabled && check {
				return printReadiness(cmd.OutOrStdout(), node.Readiness{Ready: true, Problems: []host.Problem{}}, asJSON)
			}
			if !r.enabled {
				return node.RunDisabled(a.log.With("from", a.origin("network-enabled")))
			}
			cfg, err := a.nodeConfig(r)
			if err != nil {
				return err
			}
			if check {
				ready, err := node.Check(cfg)
				return errors.Join(printReadiness(cmd.OutOrStdout(), ready, asJSON), err)
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			saveMemory(ctx)
			return node.Run(ctx, cfg)
		},
	}
	a.addRunFlags(c.Flags(), &r)
	c.Flags().BoolVar(&check, "check", false, "say what stands in the way of a start, touch nothing, and end: with 0 if the node can run")
	c.Flags().BoolVar(&asJSON, "json", false, "with --check: print JSON")
	return c
}

func printReadiness(w io.Writer, r node.Readiness, asJSON bool) error {
	if asJSON {
		return writeJSON(w, r)
	}
	var b strings.Builder
	if r.Running != 0 {
		fmt.Fprintf(&b, "running   process %d is this node: what it holds is no problem\n", r.Running)
	}
	for _, p := range r.Problems {
		severity := "problem"
		if p.Degraded {
			severity = "warning"
		}
		fmt.Fprintf(&b, "%s   %s\n", severity, p.Text)
	}
	if r.Ready {
		b.WriteString("ready to run\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// parseStatusListen returns where the status page is to be, zero for nowhere. It
// is open to whoever reaches it, so that nobody gets it on all addresses.
func (a *app) parseStatusListen(text string) (netip.AddrPort, error) {
	if text == "off" {
		return netip.AddrPort{}, nil
	}
	at, err := netip.ParseAddrPort(text)
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if err != nil || at.Port() == 0 || at.Addr().IsUnspecified() || at.Addr().IsMulticast() {
		return at, a.wrong("status-listen", fmt.Errorf("%q: want one address of this server and a port, such as 127.0.0.1:9187, or off", text))
	}
	return at, nil
}

// nodeConfig turns text into types.
func (a *app) nodeConfig(r runFlags) (node.Config, error) {
	cfg := node.Config{
		StateDir: a.stateDir, RuntimeDir: a.runtimeDir, NetworkFile: r.network, Name: r.name,
		Interface: a.link, ForwardFrom: r.forward, Masquerade: r.nat == "masquerade", RotateDNS: r.dnsOrder == "rotate", HostDNS: r.dnsHost == "auto", ListenPort: a.listenPort, DNSPort: r.dnsPort, MTU: r.mtu,
		Engine: r.engine, EngineNetwork: r.engineNet, RestartEngine: r.restart,
		Version: version, Settings: a.settings(), Log: a.log,
	}
	err := a.registryConfig(r.registry, &cfg)
	if err != nil {
		return cfg, err
	}
	if cfg.Endpoints, err = a.parseAddrs("endpoint", r.endpoints, a.listenPort); err != nil {
		return cfg, err
	}
	if cfg.StatusListen, err = a.parseStatusListen(r.status); err != nil {
		return cfg, err
	}
	if cfg.Upstreams, err = a.parseAddrs("dns-upstream", r.upstreams, 53); err != nil {
		return cfg, err
	}
	if a.chosen("cluster-cidr") {
		if cfg.Cluster, err = a.parseCluster(r.cluster); err != nil {
			return cfg, err
		}
	}
	if a.chosen("domain") {
		if cfg.Domain, err = a.parseDomain(r.domain); err != nil {
			return cfg, err
		}
	}
	for _, name := range r.forward {
		if badInterface(name) || name == "lo" || name == a.link {
			return cfg, usage.Errorf("--forward-from %q: want the name of an interface, other than lo and the tunnel's", name)
		}
	}
	switch {
	case r.nat != "identity" && r.nat != "masquerade":
		return cfg, usage.Errorf("--nat %q: want identity or masquerade", r.nat)
	case r.dnsOrder != "nearest" && r.dnsOrder != "rotate":
		return cfg, a.wrong("dns-order", fmt.Errorf("%q: want nearest or rotate", r.dnsOrder))
	case r.dnsHost != "auto" && r.dnsHost != "off":
		return cfg, a.wrong("dns-host", fmt.Errorf("%q: want auto or off", r.dnsHost))
	case r.engine != "auto" && r.engine != string(engine.Docker) && r.engine != string(engine.Podman) && r.engine != node.NoEngine:
		return cfg, a.wrong("engine", fmt.Errorf("%q: want auto, docker, podman or none", r.engine))
	case !engine.IsNetworkName(r.engineNet):
		return cfg, a.wrong("engine-network", fmt.Errorf("%q: want letters, digits, dots, hyphens and underscores, a letter or digit first", r.engineNet))
	case a.listenPort == 0:
		return cfg, a.wrong("listen-port", errors.New("0, want 1 to 65535: peers have to know it"))
	case r.dnsPort == 0:
		return cfg, a.wrong("dns-port", errors.New("0, want 1 to 65535: containers have to know it"))
	case !newInterface.MatchString(a.link) || slices.Contains([]string{".", "..", "lo", "all", "default"}, a.link): // the last two are the kernel's words for all of them
		return cfg, a.wrong("interface", fmt.Errorf("%q: want 1 to 15 letters, digits, dots, dashes or underscores, and none of the names that the kernel keeps for itself", a.link))
	case r.mtu != 0 && (r.mtu < 1280 || r.mtu > 8921):
		return cfg, a.wrong("mtu", fmt.Errorf("%d, want 1280 to 8921", r.mtu))
	}
	return cfg, nil
}

// newInterface is the name of an interface that everybody can handle. Others exist.
var newInterface = regexp.MustCompile(`^[A-Za-z0-9._-]{1,15}$`)

func badInterface(name string) bool {
	return name == "" || len(name) > 15 || strings.HasSuffix(name, "+") || strings.ContainsAny(name, "/ \t\n\v\f\r\"'\\!:%")
}

// origin says where the value of a setting came from.
func (a *app) origin(name string) string {
	for _, v := range a.values {
		if v.Name == name {
			return v.Origin
		}
	}
	return "default"
}

// chosen reports whether the user set a flag in any way.
func (a *app) chosen(name string) bool { return a.origin(name) != "default" }

func (a *app) settings() []control.Setting {
	out := make([]control.Setting, 0, len(a.values))
	for _, v := range a.values {
		if v.Name == "check" || v.Name == "json" { // say how a command runs, not how the node does
			continue
		}
		out = append(out, control.Setting{Name: v.Name, Value: v.Text, Origin: v.Origin})
	}
	return out
}

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "The configuration", Example: "  jiji-node config show", Args: group, RunE: showHelp}
	var r runFlags
	asJSON := false
	show := &cobra.Command{
		Use: "show", Short: "Print each setting of `run` and where it came from",
		Long:    "Print each setting of the node that runs and where it came from; if none runs,\nwhat `jiji-node run` with the same flags would use.",
		Example: "  jiji-node config show\n  JIJI_MTU=1300 jiji-node config show --json", Args: count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []control.Setting
			err := a.either(cmd.Context(), func() (err error) {
				list, err = a.client().Settings(cmd.Context())
				return err
			}, func() error {
				_, err := a.nodeConfig(r)
				list = a.settings()
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			t := table(cmd.OutOrStdout(), "SETTING", "VALUE", "FROM")
			for _, s := range list {
				t.row(s.Name, s.Value, s.Origin)
			}
			return t.flush()
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	a.addRunFlags(show.Flags(), &r)
	c.AddCommand(show)
	return c
}
