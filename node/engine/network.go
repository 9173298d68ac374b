package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"
)

const (
	// Predecessor is what the network was called that this one takes the place of.
	Predecessor = "jiji"

	libpod    = "/v4.0.0/libpod" // the oldest that every Podman from 4.0 on answers
	ownLabel  = "jiji.network"   // of networks that we made; its value is the server's id
	trustFrom = "28.2"           // Docker's first version with optTrusted

	optBridge  = "com.docker.network.bridge.name"
	optMTU     = "com.docker.network.driver.mtu"
	optTrusted = "com.docker.network.bridge.trusted_host_interfaces"
)

// A NetworkConfig is the network that the mesh's containers are on.
type NetworkConfig struct {
	Name     string       // required
	Domain   string       // of the mesh's names
	ServerID string       // of this server
	Subnet   netip.Prefix // of this server; its first address is the gateway
	Bridge   string       // name of its interface
	Link     string       // name of the tunnel's interface
	MTU      func() int   // of the tunnel, bytes

	Note func(Kind, string) error                  // called before the network is made, with its name; may be nil
	Lift func(context.Context, func() error) error // calls while this machine does not have the gateway's address; may be nil
	Here func(bridge string) bool                  // whether there is such an interface; nil: as the machine says
}

func (c NetworkConfig) gateway() netip.Addr { return c.Subnet.Masked().Addr().Next() }

// A Network is one of an engine's.
type Network struct {
	Name     string
	Subnets  []netip.Prefix
	Gateway  netip.Addr // of the first subnet; zero: the engine's choice
	Bridge   string     // its interface; "": none, or not told
	MTU      int        // bytes; 0: the engine's default
	Resolver bool       // the engine answers DNS on its gateway
	Internal bool       // without a way out
	Own      bool       // made by us
	Trusted  []string   // interfaces from which containers may be asked directly
}

// IsNetworkName reports whether both engines take name for a network.
func IsNetworkName(name string) bool {
	for i, r := range name {
		alphanumeric := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !alphanumeric && (i == 0 || r != '_' && r != '.' && r != '-') {
			return false
		}
	}
	return name != "" && len(name) <= 128
}

// A verdict says what is to be done about the network.
type verdict struct {
	use      string // the network that containers are to be on
	create   bool
	problems []string // one line each
}

// judge looks for the mesh's network among all of an engine's. attached are the
// names of the containers on a network; nft says that the engine drops by nftables.
// It does no I/O.
func judge(kind Kind, nft bool, all []Network, cfg NetworkConfig, attached func(name string) []string) verdict {
	v := verdict{use: cfg.Name}
	problem := func(format string, args ...any) { v.problems = append(v.problems, fmt.Sprintf(format, args...)) }
	remove := func(n Network) string {
		line := fmt.Sprintf("%s network rm %s", kind, n.Name)
		if on := attached(n.Name); len(on) > 0 {
			line += fmt.Sprintf(", once these containers are gone from it: %s", strings.Join(on, ", "))
		}
		return line
	}
	i := slices.IndexFunc(all, func(n Network) bool { return n.Name == cfg.Name })
	if i < 0 {
		i = slices.IndexFunc(all, func(n Network) bool { return n.Name == Predecessor && slices.Contains(n.Subnets, cfg.Subnet) })
	}
	if i < 0 {
		for _, n := range all {
			if slices.ContainsFunc(n.Subnets, cfg.Subnet.Overlaps) {
				problem("%s network %q has %v, and this server's subnet is %v: no container gets into the mesh: %s", kind, n.Name, show(n.Subnets), cfg.Subnet, remove(n))
				return v
			}
		}
		if kind == Docker && strings.EqualFold(cfg.Name, cfg.Domain) {
			problem("--engine-network %s: is the domain of the mesh's names, too, so that Docker would answer <name>.%[1]s itself and nobody else's: want another name", cfg.Name)
			return v
		}
		v.create = true
		return v
	}
	n := all[i]
	v.use = n.Name
	if !slices.Contains(n.Subnets, cfg.Subnet) {
		problem("%s network %q has %v, and this server's subnet is %v: containers on it are not in the mesh: %s; then it is made anew", kind, n.Name, show(n.Subnets), cfg.Subnet, remove(n))
		return v
	}
	if kind == Docker && strings.EqualFold(n.Name, cfg.Domain) {
		problem("docker network %q is called like the domain of the mesh's names, so that Docker answers <name>.%s itself, with this server's containers only: %s; then %s is made in its place", n.Name, cfg.Domain, remove(n), cfg.Name)
	} else if n.Name != cfg.Name {
		problem("%s network %q is used, which has this server's subnet; %s is made in its place after: %s", kind, n.Name, cfg.Name, remove(n))
	}
	if n.Gateway.IsValid() && n.Gateway != cfg.gateway() {
		problem("%s network %q has gateway %v, want %v: what its containers send to the mesh is lost: %s; then it is made anew", kind, n.Name, n.Gateway, cfg.gateway(), remove(n))
	}
	if n.Internal {
		problem("%s network %q is internal, so that its containers reach nothing beyond it: %s; then it is made anew", kind, n.Name, remove(n))
	}
	if n.Resolver {
		problem("%s network %q has its own name server on %v, which is the node's: %s; then it is made anew, without", kind, n.Name, cfg.gateway(), remove(n))
	}
	if mtu := cfg.MTU(); mtu > 0 && n.MTU > mtu {
		problem("%s network %q has MTU %d, more than the tunnel's %d: large packets are lost where ICMP is: %s; then it is made anew", kind, n.Name, n.MTU, mtu, remove(n))
	}
	if kind == Docker && nft && !slices.Contains(n.Trusted, cfg.Link) {
		problem("docker network %q does not trust %s, so that Docker's nftables drop what comes from the mesh: %s; then it is made anew, with %s", n.Name, cfg.Link, remove(n), optTrusted)
	}
	if kind == Docker && n.Bridge != "" && cfg.Here != nil && !cfg.Here(n.Bridge) {
		problem("docker network %q has lost its interface %s: systemctl restart docker makes it again", n.Name, n.Bridge)
	}
	return v
}

func show(list []netip.Prefix) string {
	if len(list) == 0 {
		return "no subnet"
	}
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = p.String()
	}
	return strings.Join(words, " and ")
}

// Networks lists the engine's networks.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if c.Kind == Podman {
		return c.podmanNetworks(ctx)
	}
	list, err := c.api.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return nil, c.explain(err)
	}
	var all []Network
	for _, item := range list.Items {
		all = append(all, dockerNetwork(item.Network))
	}
	return all, nil
}

func dockerNetwork(item network.Network) Network {
	n := Network{Name: item.Name, Internal: item.Internal, Bridge: item.Options[optBridge], Own: item.Labels[ownLabel] != ""}
	if list := item.Options[optTrusted]; list != "" {
		n.Trusted = strings.Split(list, ":")
	}
	n.MTU, _ = strconv.Atoi(item.Options[optMTU]) // else the engine's default
	for i, r := range item.IPAM.Config {
		if r.Subnet.IsValid() {
			n.Subnets = append(n.Subnets, r.Subnet.Masked())
		}
		if i == 0 {
			n.Gateway = r.Gateway
		}
	}
	if n.Bridge == "" && item.Driver == "bridge" && len(item.ID) >= 12 {
		n.Bridge = "br-" + item.ID[:12]
	}
	return n
}

// A podmanNetwork is one in libpod's words.
type podmanNetwork struct {
	Name      string            `json:"name"`
	Driver    string            `json:"driver"`
	Interface string            `json:"network_interface,omitempty"`
	Subnets   []podmanSubnet    `json:"subnets,omitempty"`
	Internal  bool              `json:"internal"`
	IPv6      bool              `json:"ipv6_enabled"`
	DNS       bool              `json:"dns_enabled"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
}

type podmanSubnet struct {
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

func (c *Client) podmanNetworks(ctx context.Context) ([]Network, error) {
	var list []podmanNetwork
	if err := c.get(ctx, libpod+"/networks/json", &list); err != nil {
		return nil, err
	}
	var all []Network
	for _, item := range list {
		n := Network{Name: item.Name, Bridge: item.Interface, Internal: item.Internal, Resolver: item.DNS, Own: item.Labels[ownLabel] != ""}
		n.MTU, _ = strconv.Atoi(item.Options["mtu"]) // else the engine's default
		for i, s := range item.Subnets {
			n.Subnets = append(n.Subnets, s.Subnet.Masked())
			if i == 0 {
				n.Gateway = s.Gateway
			}
		}
		all = append(all, n)
	}
	return all, nil
}

// attached are the names of the containers on a network, also of those that do
// not run: they would not start again without it.
func (c *Client) attached(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	list, err := c.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("network", name)})
	if err != nil {
		return nil, c.explain(err)
	}
	names := []string{}
	for _, item := range list.Items {
		if item.NetworkSettings != nil {
			if _, on := item.NetworkSettings.Networks[name]; !on { // the filter takes the beginning of an id, too
				continue
			}
		}
		if len(item.Names) > 0 {
			names = append(names, strings.TrimPrefix(item.Names[0], "/"))
		} else {
			names = append(names, short(item.ID))
		}
	}
	slices.Sort(names)
	return names, nil
}

// create makes the network.
func (c *Client) create(ctx context.Context, cfg NetworkConfig) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	labels := map[string]string{ownLabel: cfg.ServerID}
	if c.Kind == Podman {
		body, err := json.Marshal(podmanNetwork{Name: cfg.Name, Driver: "bridge", Interface: cfg.Bridge, Labels: labels,
			Subnets: []podmanSubnet{{cfg.Subnet, cfg.gateway()}}, Options: map[string]string{"mtu": strconv.Itoa(cfg.MTU())}})
		if err != nil {
			return err
		}
		return c.post(ctx, libpod+"/networks/create", body)
	}
	options := map[string]string{optBridge: cfg.Bridge, optMTU: strconv.Itoa(cfg.MTU())}
	if !versions.LessThan(c.Version, trustFrom) {
		options[optTrusted] = cfg.Link
	}
	_, err := c.api.NetworkCreate(ctx, cfg.Name, client.NetworkCreateOptions{Driver: "bridge", Options: options, Labels: labels,
		IPAM: &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: cfg.Subnet, Gateway: cfg.gateway()}}}})
	return c.explain(err)
}

// post makes a request whose answer is only whether it was done.
func (c *Client) post(ctx context.Context, path string, body []byte) error {
	return c.do(ctx, "POST", path, bytes.NewReader(body), nil)
}

// Keep makes the network if there is none, and returns the name of the one that
// containers are to be on, and what is wrong with it. The error is that the engine
// does not say which networks it has: nothing is known of them then.
func (c *Client) Keep(ctx context.Context, cfg NetworkConfig) (name string, problems []string, err error) {
	all, err := c.Networks(ctx)
	if err != nil {
		return "", nil, err
	}
	if cfg.Here == nil {
		cfg.Here = isInterface
	}
	v := judge(c.Kind, c.NFT, all, cfg, func(name string) []string {
		names, err := c.attached(ctx, name)
		if err != nil {
			return []string{"not known, for " + err.Error()}
		}
		return names
	})
	if !v.create {
		return v.use, v.problems, nil
	}
	if cfg.Note != nil {
		err = cfg.Note(c.Kind, cfg.Name)
	}
	if err == nil {
		make := func() error { return c.create(ctx, cfg) }
		if c.Kind == Podman && cfg.Lift != nil { // it refuses a subnet of which the machine has an address
			err = cfg.Lift(ctx, make)
		} else {
			err = make()
		}
	}
	if err != nil {
		return v.use, append(v.problems, fmt.Sprintf("make network %q: %v", cfg.Name, err)), nil
	}
	return v.use, v.problems, nil
}

func isInterface(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// holds returns the name of c's network with that subnet; "" if it has none, or does not say.
func (c *Client) holds(ctx context.Context, subnet netip.Prefix) string {
	all, err := c.Networks(ctx)
	if err != nil {
		return ""
	}
	i := slices.IndexFunc(all, func(n Network) bool { return slices.Contains(n.Subnets, subnet) })
	if i < 0 {
		return ""
	}
	return all[i].Name
}

// RemoveNetwork removes a network that we made, unless containers are on it: then
// kept says which. One that is not there, or is not ours, is left alone.
func RemoveNetwork(ctx context.Context, sockets []Socket, kind Kind, name string) (removed bool, kept string, err error) {
	i := slices.IndexFunc(sockets, func(s Socket) bool { return s.Kind == kind })
	if i < 0 {
		return false, "", fmt.Errorf("%s: its socket is not known", kind)
	}
	c, err := Dial(ctx, sockets[i])
	if err != nil {
		return false, fmt.Sprintf("network %s of %s stays: %v", name, kind, err), nil
	}
	all, err := c.Networks(ctx)
	if err != nil {
		return false, "", err
	}
	if !slices.ContainsFunc(all, func(n Network) bool { return n.Name == name && n.Own }) {
		return false, "", nil
	}
	on, err := c.attached(ctx, name)
	if err != nil {
		return false, "", err
	}
	if len(on) > 0 {
		return false, fmt.Sprintf("network %s of %s stays, for containers are on it: %s", name, kind, strings.Join(on, ", ")), nil
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	_, err = c.api.NetworkRemove(ctx, name, client.NetworkRemoveOptions{})
	if err != nil && !errdefs.IsNotFound(err) {
		return false, "", fmt.Errorf("remove network %s: %w", name, c.explain(err))
	}
	return true, "", nil
}

// Prepare makes the network in Podman, if that is what is here, ahead of Run: before
// this machine has the gateway's address, with which Podman would refuse it. What
// fails, Run tries again and tells. Docker, which may be waiting for this very
// program to have started, is not asked.
func (w *Watcher) Prepare(ctx context.Context) {
	i := slices.IndexFunc(w.cfg.Sockets, func(s Socket) bool { return s.Kind == Podman })
	other := func(s Socket) bool {
		_, err := os.Stat(s.Path)
		return s.Kind != Podman && err == nil
	}
	if i < 0 || w.cfg.Engine != string(Podman) && (w.cfg.Engine != "auto" || w.owner != Podman && slices.ContainsFunc(w.cfg.Sockets, other)) {
		return
	}
	c, err := Dial(ctx, w.cfg.Sockets[i])
	if err != nil || c.Kind != Podman {
		return
	}
	cfg := w.cfg.Network
	cfg.Lift = nil // there is no address to lift
	c.Keep(ctx, cfg)
}
