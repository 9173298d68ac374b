// Package node is one server's part of the mesh: it builds tunnel, name server,
// registry and monitor, joins what they report, and keeps tunnel, routes and
// zone equal to the plan that follows from it.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/dnsserver/upstream"
	"github.com/acidtib/jiji-node/monitor"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/host/journal"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/rtt"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/embedded"
	"github.com/acidtib/jiji-node/tunnel"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const notifyLimit = time.Second // for the service manager to take a message

// A Config is what the user decided. Text has become types before.
type Config struct {
	StateDir    string // required
	RuntimeDir  string // of the control socket, required
	NetworkFile string // topology that others write; "": the state directory's own copy

	// For this machine's own entry; zero leaves a known one as it is.
	Name      string
	Endpoints []netip.AddrPort
	Cluster   netip.Prefix
	Domain    string

	Interface   string           // required
	ForwardFrom []string         // interfaces that may forward into the mesh and out of it
	Masquerade  bool             // others see the WireGuard IP in place of the containers' addresses
	ListenPort  uint16           // WireGuard's UDP port, required
	DNSPort     uint16           // required
	MTU         int              // of the interface; 0: from the underlay
	Upstreams   []netip.AddrPort // for names outside the mesh; none: the host's own
	RotateDNS   bool             // names answer their containers in turn, whichever is nearest
	HostDNS     bool             // this host's own programs are to find the mesh's names, where that takes no file of somebody else's

	Engine        string // auto, docker, podman or NoEngine; required
	RestartEngine bool   // where it has to be, for its containers to get the mesh's name server
	EngineNetwork string // the network of the mesh's containers in it; required

	StatusListen netip.AddrPort // of the status page; zero: none

	Registry  control.RegistryMode // zero: as `registry use` chose, else the file
	Corrosion CorrosionConfig

	Version  string            // of this program
	Settings []control.Setting // what `config show` prints
	Log      *slog.Logger      // required
}

// A Node is one that is running.
type Node struct {
	cfg     Config
	log     *slog.Logger
	started time.Time

	members   *membership.Membership
	key       wgkey.Public
	private   wgkey.Private
	local     *embedded.Store // this server's own containers
	engine    *enginePart
	cluster   atomic.Pointer[clusterPart]   // nil while the registry is the file alone
	tunnel    atomic.Pointer[tunnel.Tunnel] // nil while there is none
	monitor   *monitor.Monitor
	rtt       *rtt.Prober // nil if nothing can be measured
	dns       *dnsserver.Server
	upstreams func() []netip.AddrPort
	classes   *host.Classes
	mtu       atomic.Int32 // of the tunnel
	underlay  underlay
	ipv6      bool
	fresh     bool   // nothing of the host was changed before, as far as is known
	full      string // why the registry is one to read only; "": it is not

	namesChanged    chan struct{} // the catalog, or which servers answer
	timesChanged    chan struct{} // round-trip times to them
	registryChanged chan struct{} // another store has it
	hostChanged     chan struct{}
	firewallChanged chan struct{}
	underlayChanged chan struct{}
	resolverChanged chan struct{}                      // what names are asked by, or the interface that they are asked through
	downs           chan chan<- control.Undone         // requests to take the network off the host
	lifts           chan lift                          // calls to be made without the WireGuard IP
	lost            chan error                         // how the tunnel ended
	names           atomic.Int64                       // in the zone
	refused         atomic.Pointer[[]registry.Skipped] // containers that are not answered
	uses            chan use                           // requests to change the registry
	reopened        chan struct{}                      // the registry is to be opened anew
	quits           chan chan struct{}                 // the registry is to end; closed when it has
	rejoined        chan struct{}                      // this machine, which was removed, is to take part again
	moving          atomic.Bool                        // the node is about to start again with other addresses
	fault           atomic.Pointer[string]             // why the plan is not applied whole; "" if it is
	fights          atomic.Pointer[[]string]           // with other programs, one line each
	unguarded       atomic.Pointer[[]string]           // what the firewall does not do as wanted, one line each
	hostDNS         atomic.Pointer[hostDNS]            // nil before the first look, or without one
	clusterFault    atomic.Pointer[string]             // why the cluster's registry is not open; nil if it is, or not wanted
	lostChoice      atomic.Pointer[string]             // that the registry may be another one than it was; nil if not
	page            atomic.Pointer[string]             // why there is no status page; nil if there is one, or is to be none

	mu       sync.Mutex
	degraded []string // what the node does without, one line each; guarded by mu

	// The rest is the converge loop's alone.
	keeper    *host.Keeper
	plan      plan
	leaving   map[wgkey.Public]time.Time // servers that were removed, and until when they are told
	directory directory
	again     time.Duration // until a plan that could not be applied whole is tried again

	guard     guard
	stopGuard func() // ends guardLoop and waits for that

	stopEngine func() // likewise the enginePart
}

// Run is the node, from preflight to clean shutdown, until ctx is done. An
// error that the configuration is to blame for is marked by package usage.
func Run(ctx context.Context, cfg Config) error {
	for {
		err := run(ctx, cfg)
		switch {
		case errors.Is(err, errMoved):
			cfg.Log.Info("starting again with other addresses")
		case errors.Is(err, errRejoined):
			cfg.Log.Info("starting again as a member")
		default:
			return err
		}
	}
}

// run is Run until the node is to start again: then it returns errMoved or
// errRejoined.
func run(ctx context.Context, cfg Config) (err error) {
	n := &Node{
		cfg: cfg, log: cfg.Log, started: time.Now(), directory: directory{serial: uint32(time.Now().Unix())},
		namesChanged:    make(chan struct{}, 1),
		timesChanged:    make(chan struct{}, 1),
		registryChanged: make(chan struct{}, 1),
		hostChanged:     make(chan struct{}, 1),
		firewallChanged: make(chan struct{}, 1),
		underlayChanged: make(chan struct{}, 1),
		resolverChanged: make(chan struct{}, 1),
		reopened:        make(chan struct{}, 1),
		rejoined:        make(chan struct{}, 1),
		uses:            make(chan use, 1),
		quits:           make(chan chan struct{}),
		downs:           make(chan chan<- control.Undone),
		lifts:           make(chan lift),
		lost:            make(chan error, 1),
		leaving:         map[wgkey.Public]time.Time{},
	}
	n.log.Info("starting", "version", cfg.Version, "mode", "tun", "state_dir", cfg.StateDir)

	lock, err := statefile.LockDir(cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	leave := lock.Abandon // nothing, while the host is not touched
	defer func() { leave() }()
	n.members, err = membership.Open(cfg.membership())
	if err != nil {
		return err
	}
	private, created := n.members.Key()
	n.private, n.key = private, private.Public()
	undo, err := journal.Open(filepath.Join(cfg.StateDir, journal.FileName))
	if err != nil {
		return damaged(err)
	}
	if n.fresh = len(undo.Changes()) == 0; n.fresh {
		leave = func() { n.leaveNothing(undo, lock) }
	}
	n.keeper, n.guard.Guard = host.NewKeeper(undo), host.NewGuard(undo)
	if err := n.preflight(); err != nil {
		return err
	}
	if err := undo.Record(n.sockets()...); err != nil {
		return err
	}
	socket, err := control.Listen(cfg.RuntimeDir, n.log) // its clients wait until it is served
	if err != nil {
		return err
	}
	defer socket.Close() // for a start that fails; control.Serve closes it, too
	n.log.Info("preflight passed")
	if err := n.save(); err != nil {
		return err
	}
	self, topo := n.members.Self(), n.members.Topology()
	n.log.Info("identity ready", "id", self.ID, "public_key", n.key, "key_created", created)
	source, _ := n.members.Source()
	n.log.Info("plan ready", "cluster", topo.Cluster, "subnet", self.Subnet, "wireguard_ip", self.WireGuardIP,
		"management_ip", self.ManagementIP, "servers", len(members(topo)), "topology", source)

	store, err := n.openRegistry(ctx, self.ID)
	if err != nil {
		return n.unlessStopped(ctx, err)
	}
	defer closing(&err, "remove copy of registry", n.removeCopy)
	defer closing(&err, "close registry", store.Close)
	n.local = store
	if err := n.adopt(ctx, store, topo); err != nil {
		return n.unlessStopped(ctx, err)
	}
	mode, err := n.registryMode(ctx)
	if err != nil {
		return n.unlessStopped(ctx, err)
	}
	if err := n.noteLostChoice(ctx); err != nil {
		return n.unlessStopped(ctx, err)
	}
	if n.engine, err = n.openEngine(ctx, undo); err != nil {
		return n.unlessStopped(ctx, err)
	}
	n.log.Info("registry open", "mode", mode.Mode, "containers", store.Snapshot().Len())

	leave = func() {}
	if err := n.failClosed(); err != nil {
		return err
	}
	n.setFirewall(true, false)
	n.engine.prepare(ctx)
	t, err := n.openTunnel()
	if err != nil {
		return err
	}
	n.tunnel.Store(t)
	defer closing(&err, "close tunnel", n.closeTunnel)

	n.classes = host.NewClasses(cfg.Interface)
	if err := n.classes.Refresh(); err != nil {
		return fmt.Errorf("classify interfaces: %w", err)
	}
	followUpstreams := n.followUpstreams(self.WireGuardIP, self.ManagementIP)
	n.dns, err = dnsserver.Listen(dnsserver.Config{
		Listen:    []netip.AddrPort{netip.AddrPortFrom(self.WireGuardIP, cfg.DNSPort)},
		Apex:      topo.Domain,
		Reverse:   reverse(topo),
		Answer:    n.classes.Answer,
		Upstreams: n.upstreams,
		Log:       n.log,
	})
	if err != nil {
		return fmt.Errorf("start dns: %w", err)
	}
	n.monitor = monitor.New(monitor.Config{
		Self: n.key, Peers: n.observe, Move: n.move, Ask: n.ask, Report: n.onPath, Name: n.peerName, Log: n.log,
	})
	n.openRTT()
	n.openCluster(ctx, mode)
	n.settle(nil, true, true)
	if !n.faulty() {
		n.log.Info("routes set", "interface", cfg.Interface, "ip_forward", 1)
	}
	n.log.Info("dns listening", "addresses", n.dns.Addrs(), "names", n.names.Load(), "upstreams", n.upstreams())

	n.log.Info("control socket open", "path", socket.Addr())

	g, ctx := errgroup.WithContext(ctx)
	carry, stopCarrying := context.WithCancel(context.WithoutCancel(ctx)) // traffic and names, while an agent ends: that takes seconds
	g.Go(func() error {
		defer stopCarrying()
		return n.registryLoop(ctx, mode)
	})
	g.Go(func() error { return n.dns.Run(carry) })
	g.Go(func() error { return n.monitor.Run(carry) })
	if n.rtt != nil {
		g.Go(func() error { return n.rtt.Run(ctx) })
	}
	g.Go(func() error { return n.members.Follow(ctx) })
	g.Go(func() error { return followUpstreams(carry) })
	closed := n.closed()
	g.Go(func() error { return host.Watch(ctx, closed, n.onHost) })
	g.Go(func() error { return n.watchFirewall(ctx) })
	if cfg.HostDNS {
		g.Go(func() error { return n.watchResolved(ctx) })
		g.Go(func() error { return n.hostDNSLoop(ctx) })
	}
	n.stopGuard = stoppable(ctx, g, n.guardLoop)
	n.stopEngine = stoppable(ctx, g, n.engine.run)
	g.Go(func() error { return control.Serve(ctx, socket, n.api(), n.log) })
	if cfg.StatusListen.IsValid() {
		g.Go(func() error { n.serveStatusPage(ctx); return nil })
	}
	n.serveTunnel(ctx, g)
	g.Go(func() error { return n.convergeLoop(ctx, g) })
	n.notify(daemon.SdNotifyReady)
	n.log.Info("ready", "after", time.Since(n.started).Round(time.Millisecond))
	err = g.Wait()
	n.notify(daemon.SdNotifyStopping)
	n.log.Info("stopping")
	if errors.Is(err, errDown) {
		return nil
	}
	return err
}

// stoppable runs loop in g until ctx is done or stop is called, which waits for its end.
func stoppable(ctx context.Context, g *errgroup.Group, loop func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	g.Go(func() error {
		defer close(ended)
		defer cancel()
		return loop(ctx)
	})
	return func() {
		cancel()
		<-ended
	}
}

// errDown ends a node that was told to take the network off the host.
var errDown = errors.New("taken down")

// sockets are the files of this node that a kill leaves behind.
func (n *Node) sockets() []journal.Change {
	return []journal.Change{
		{Kind: journal.Socket, Name: filepath.Join(n.cfg.RuntimeDir, control.SocketName)},
		{Kind: journal.Socket, Name: "/var/run/wireguard/" + n.cfg.Interface + ".sock"},
		{Kind: journal.Socket, Name: n.agentSocket()},
	}
}

func (n *Node) agentSocket() string { return filepath.Join(n.cfg.RuntimeDir, "corrosion.sock") }

// failClosed is the first change of the host: without it a packet for the mesh
// leaves in the clear whenever there is no tunnel.
func (n *Node) failClosed() error {
	changes, err := n.keeper.Apply(host.Wanted{Closed: n.closed(), Subnet: n.members.Self().Subnet}, true)
	n.logChanges(changes)
	if err != nil {
		return fmt.Errorf("have packets for the mesh end where there is no tunnel: %w", err)
	}
	return nil
}

func (n *Node) closed() []netip.Prefix {
	return []netip.Prefix{n.members.Topology().Cluster, ipplan.ManagementPrefix}
}

// adopt takes over what this server registered under an id that it had before:
// an embedded registry holds nobody else's rows.
func (n *Node) adopt(ctx context.Context, store *embedded.Store, topo topology.Topology) error {
	known := map[string]bool{}
	for _, s := range topo.Servers {
		known[s.ID] = true
	}
	for c := range store.Snapshot().All() {
		if known[c.ServerID] {
			continue
		}
		known[c.ServerID] = true
		count, err := store.Adopt(ctx, c.ServerID)
		if err != nil {
			return err
		}
		n.log.Info("containers of a former id taken over", "former", c.ServerID, "containers", count)
	}
	return nil
}

// openTunnel opens the device, without a management address where IPv6 is off.
func (n *Node) openTunnel() (*tunnel.Tunnel, error) {
	self := n.members.Self()
	cfg := tunnel.Config{Name: n.cfg.Interface, MTU: int(n.mtu.Load()), ListenPort: n.cfg.ListenPort, Key: n.private, Log: n.log}
	cfg.Addresses = []netip.Prefix{host32(self.WireGuardIP)}
	if n.ipv6 {
		cfg.Addresses = append(cfg.Addresses, host32(self.ManagementIP))
	}
	t, err := tunnel.Open(cfg)
	if errors.Is(err, tunnel.ErrNoIPv6) { // off for new interfaces, in a way that the preflight did not see
		n.degrade(err.Error())
		n.ipv6, cfg.Addresses = false, cfg.Addresses[:1]
		t, err = tunnel.Open(cfg)
	}
	if err != nil {
		return nil, err
	}
	n.log.Info("tunnel up", "interface", cfg.Name, "mtu", cfg.MTU, "listen_port", cfg.ListenPort, "addresses", cfg.Addresses)
	return t, nil
}

func (n *Node) closeTunnel() error {
	if t := n.tunnel.Swap(nil); t != nil {
		return t.Close()
	}
	return nil
}

// unlessStopped returns err, the failure of a part of the start, unless that was
// told to end: then a start that ends is what was wanted.
func (n *Node) unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	n.log.Info("stopped during the start")
	return nil
}

// degrade notes what the node has to do without.
func (n *Node) degrade(problem string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.degraded = append(n.degraded, problem)
	n.log.Warn("degraded", "problem", problem)
}

// warnings are what is not as it should be, one line each.
func (n *Node) warnings() []string {
	n.mu.Lock()
	lines := append([]string{}, n.degraded...)
	n.mu.Unlock()
	for _, more := range []*[]string{n.fights.Load(), n.unguarded.Load()} {
		if more != nil {
			lines = append(lines, *more...)
		}
	}
	if tight := n.underlay.tight.Load(); tight != nil && *tight != "" {
		lines = append(lines, *tight)
	}
	if h := n.hostDNS.Load(); h != nil {
		lines = append(lines, h.fights...)
		if h.fault != "" {
			lines = append(lines, h.fault)
		}
	}
	for _, line := range []*string{n.page.Load(), n.lostChoice.Load(), n.clusterFault.Load()} {
		if line != nil {
			lines = append(lines, *line)
		}
	}
	if n.faulty() {
		lines = append(lines, strings.Split(*n.fault.Load(), "\n")...)
	}
	return lines
}

// closing runs a deferred close and keeps its error if there is no earlier one.
func closing(err *error, what string, close func() error) {
	if cerr := close(); cerr != nil && *err == nil {
		*err = fmt.Errorf("%s: %w", what, cerr)
	}
}

// notify tells systemd; without it there is nothing to do.
func (n *Node) notify(state string) {
	if err := sdNotify(state); err != nil {
		n.log.Warn("service manager not told", "state", state, "err", err)
	}
}

// sdNotify is daemon.SdNotify for a manager that may have stopped reading: a
// full socket must keep neither convergence nor the end of the node waiting.
func sdNotify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(notifyLimit))
	_, err = c.Write([]byte(state))
	return err
}

// DetectEndpoints are the addresses of this machine under which others may
// reach its WireGuard port.
func DetectEndpoints(port uint16, cluster netip.Prefix) []netip.AddrPort {
	links, err := host.Links()
	if err != nil {
		return nil // a server without endpoints dials the others
	}
	if !cluster.IsValid() {
		cluster = netip.MustParsePrefix(ipplan.DefaultCluster)
	}
	return host.Endpoints(port, links, cluster)
}

// followUpstreams fills in n.upstreams and returns what keeps it up to date.
func (n *Node) followUpstreams(own ...netip.Addr) (follow func(context.Context) error) {
	if len(n.cfg.Upstreams) > 0 {
		n.upstreams = func() []netip.AddrPort { return n.cfg.Upstreams }
		return func(context.Context) error { return nil }
	}
	f := upstream.New(upstream.Config{Self: func(a netip.Addr) bool { return slices.Contains(own, a) }, Log: n.log})
	n.upstreams = f.Current
	return f.Run
}

func (n *Node) onHost() {
	if t := n.tunnel.Load(); t != nil {
		t.CheckSources()
	}
	poke(n.hostChanged)
}

// poke leaves one piece of news, if there is none yet.
func poke(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}

// RunDisabled is the node where JIJI_NETWORK_ENABLED=false: it says so and ends.
func RunDisabled(log *slog.Logger) error {
	log.Info("network disabled by configuration; nothing to do", "setting", "network-enabled")
	if err := sdNotify(daemon.SdNotifyReady); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
