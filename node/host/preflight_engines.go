package host

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
)

// engines are the sockets of the container engines, which speak Docker's API.
var engines = []struct{ name, socket string }{
	{"docker", "/var/run/docker.sock"},
	{"podman", "/run/podman/podman.sock"},
}

const maxNetworks = 16 << 20 // bytes of an engine's answer: some thousands of networks

// An EngineNetwork is a range that an engine gives to containers. No interface
// need have it: Podman takes the bridge away with the last container.
type EngineNetwork struct {
	Engine string // docker or podman
	Name   string
	Subnet netip.Prefix
}

func (n EngineNetwork) String() string {
	return fmt.Sprintf("%s network %q (%v)", n.Engine, n.Name, n.Subnet)
}

// remove is the command that ends n.
func (n EngineNetwork) remove() string { return n.Engine + " network rm " + n.Name }

// isOurs reports whether n is the network of our own containers: it has their
// subnet, and its name is the node's or the predecessor's, or its bridge is here.
func (c *checker) isOurs(n EngineNetwork) bool {
	return n.Subnet == c.Want.Subnet && (n.Name == c.Want.Network || n.Name == "jiji" ||
		slices.ContainsFunc(c.Links, func(l LinkInfo) bool { return l.Kind == "bridge" && c.hasGateway(l) }))
}

// readEngines lists the networks of the engines on this machine. One that does
// not answer until ctx is done has none.
func readEngines(ctx context.Context) (all []EngineNetwork) {
	answers := make([]chan []EngineNetwork, len(engines))
	for i, e := range engines {
		answers[i] = make(chan []EngineNetwork, 1)
		go func() {
			networks, _ := askEngine(ctx, e.name, e.socket) // absent, busy, or not for us: see above
			answers[i] <- networks
		}()
	}
	for _, answer := range answers {
		for _, n := range <-answer { // askEngine ends with ctx
			known := func(k EngineNetwork) bool { return k.Name == n.Name && k.Subnet == n.Subnet }
			if !slices.ContainsFunc(all, known) { // docker.sock may be Podman's
				all = append(all, n)
			}
		}
	}
	return all
}

// askEngine lists the networks of the engine behind a socket.
func askEngine(ctx context.Context, engine, socket string) ([]EngineNetwork, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/networks", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("list networks of %s: %s", engine, resp.Status)
	}
	return parseNetworks(engine, io.LimitReader(resp.Body, maxNetworks))
}

// parseNetworks reads the answer to GET /networks of Docker's API. A network
// whose subnet is not understood is left out: it is no range that could overlap.
func parseNetworks(engine string, r io.Reader) ([]EngineNetwork, error) {
	var list []struct {
		Name string
		IPAM struct{ Config []struct{ Subnet string } }
	}
	if err := json.NewDecoder(r).Decode(&list); err != nil {
		return nil, fmt.Errorf("list networks of %s: %w", engine, err)
	}
	var out []EngineNetwork
	for _, n := range list {
		for _, c := range n.IPAM.Config {
			if p, err := netip.ParsePrefix(c.Subnet); err == nil {
				out = append(out, EngineNetwork{engine, n.Name, p.Masked()})
			}
		}
	}
	return out, nil
}
