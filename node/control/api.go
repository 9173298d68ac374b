// Package control is the node's local API: HTTP and JSON on a Unix socket that
// root and the group jiji may use, and the client that every other command is.
package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A Status is what `jiji-node status --json` prints. Times are RFC 3339, sizes
// bytes; fields may be added, none removed.
type Status struct {
	Version   string        `json:"version"`
	PID       int           `json:"pid"`
	Mode      string        `json:"mode"`  // "tun"
	State     string        `json:"state"` // "ready", "removed" once its own tombstone was read, or "starting" while its interface is made again
	StartedAt time.Time     `json:"startedAt"`
	StateDir  string        `json:"stateDir"`
	Server    Server        `json:"server"` // this node
	Cluster   netip.Prefix  `json:"clusterCidr"`
	Domain    string        `json:"serviceDomain"`
	Interface Interface     `json:"interface"`
	DNS       DNS           `json:"dns"`
	Registry  Registry      `json:"registry"`
	Engine    Engine        `json:"engine"`
	Topology  TopologyState `json:"topology"`
	Warnings  []string      `json:"warnings"` // what is degraded, one line each; empty if nothing
	Peers     []Peer        `json:"peers"`    // in order of id
}

// A Server is one row of the topology.
type Server struct {
	ID           string           `json:"id"`
	Hostname     string           `json:"hostname"`
	Subnet       netip.Prefix     `json:"subnet"`
	WireGuardIP  netip.Addr       `json:"wireguardIp"`
	Key          wgkey.Public     `json:"wireguardPublicKey"`
	ManagementIP netip.Addr       `json:"managementIp"`
	Endpoints    []netip.AddrPort `json:"endpoints"`
	RemovedAt    *time.Time       `json:"removedAt,omitempty"`
}

// An Interface is the WireGuard device.
type Interface struct {
	Name       string `json:"name"`
	MTU        int    `json:"mtu"`
	ListenPort uint16 `json:"listenPort"`
}

// A DNS is the state of the name server.
type DNS struct {
	Listen    []netip.AddrPort `json:"listen"`
	Upstreams []netip.AddrPort `json:"upstreams"`
	Names     int              `json:"names"` // owner names in the zone
	Queries   uint64           `json:"queries"`
	Refused   uint64           `json:"refused"`
	Host      HostDNS          `json:"host"`
}

// A HostDNS says how programs on the server itself find names of the mesh.
type HostDNS struct {
	Configured string `json:"configured"`     // auto or off
	By         string `json:"by"`             // "systemd-resolved" or "/etc/resolv.conf"; "" if nothing is known to
	Hint       string `json:"hint,omitempty"` // what makes them find names where nothing does
}

// Where the catalog is kept.
const (
	Embedded  = "embedded"  // in a file, this server's containers
	Corrosion = "corrosion" // replicated, those of all servers
)

// A RegistryMode says where the catalog is kept. With Corrosion and no URL the
// node runs the agent itself.
type RegistryMode struct {
	Mode      string `json:"mode"`
	URL       string `json:"url,omitempty"`       // of an agent that somebody else runs
	TokenFile string `json:"tokenFile,omitempty"` // that holds its token
}

// Check says what is wrong with the mode.
func (m RegistryMode) Check() error {
	switch {
	case m.Mode != Embedded && m.Mode != Corrosion:
		return fmt.Errorf("registry %q: want %s or %s", m.Mode, Embedded, Corrosion)
	case m.Mode == Embedded && (m.URL != "" || m.TokenFile != ""):
		return fmt.Errorf("registry %s: has no URL and no token", Embedded)
	case m.TokenFile != "" && m.URL == "":
		return errors.New("token file: goes with the URL of an agent that somebody else runs")
	case m.TokenFile != "" && !filepath.IsAbs(m.TokenFile):
		return fmt.Errorf("token file %q: want an absolute path", m.TokenFile)
	}
	return nil
}

// A Registry is the state of the catalog of containers.
type Registry struct {
	Mode       string     `json:"mode"`            // Embedded or Corrosion
	State      string     `json:"state"`           // "up", "down" or "catching up", before which nothing is written
	Since      *time.Time `json:"since,omitempty"` // up or down since; nil for Embedded
	Containers int        `json:"containers"`
	Skipped    []Skipped  `json:"skipped"`         // rows that are not believed
	Error      string     `json:"error,omitempty"` // what is wrong now

	// With Corrosion:
	Agent    *Agent      `json:"agent,omitempty"`
	Members  int         `json:"members"`            // other agents that this one sees
	Agents   []PeerAgent `json:"agents,omitempty"`   // of the other servers whose nodes told, in order of id
	Gaps     int         `json:"gaps"`               // versions that it knows of and has not got yet
	Pending  int         `json:"pending"`            // own rows that are not written yet
	FastLane bool        `json:"fastLane"`           // changes are read ahead of the subscriptions when a peer tells of them
	NoTables []string    `json:"noTables,omitempty"` // of ours, that the agent lacks
}

// A PeerAgent is the Corrosion agent of another server, as its node tells.
type PeerAgent struct {
	Server  string `json:"server"`
	Version string `json:"version,omitempty"` // empty: its node does not know
	Seen    bool   `json:"seen"`              // this server's agent sees it where a node runs its agent
}

// An Agent is the Corrosion agent.
type Agent struct {
	URL      string `json:"url"`
	Managed  bool   `json:"managed"` // the node runs it; the rest is of such ones
	Running  bool   `json:"running,omitempty"`
	PID      int    `json:"pid,omitempty"`
	Version  string `json:"version,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
	LastExit string `json:"lastExit,omitempty"` // why it ended last
}

// An Engine is the container engine whose containers are registered.
type Engine struct {
	Configured string             `json:"configured"`        // auto, docker, podman or none
	Kind       string             `json:"kind"`              // docker or podman; "" if none was found
	Version    string             `json:"version"`           // of it
	Socket     string             `json:"socket"`            //
	Up         bool               `json:"up"`                // it answers
	Since      time.Time          `json:"since"`             // of Up
	Network    string             `json:"network"`           // that containers have to be on
	In         int                `json:"in"`                // containers that are in the mesh
	Refused    []RefusedContainer `json:"refused"`           // that ask to be and are not
	Restart    string             `json:"restart,omitempty"` // command without which its containers do not get the mesh's name server
	Problem    string             `json:"problem,omitempty"` // why it is not up
	Notes      []string           `json:"notes"`             // what is wrong otherwise, one line each
}

// A RefusedContainer is one that asks to be in the mesh and is not, and why.
type RefusedContainer struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// A Skipped row is one that the node does not believe, and why.
type Skipped struct {
	Table  string `json:"table"`
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// A TopologyState says where the list of servers comes from.
type TopologyState struct {
	Source    string    `json:"source"` // file name
	ReadOnly  bool      `json:"readOnly"`
	UpdatedAt time.Time `json:"updatedAt"`
	Error     string    `json:"error,omitempty"` // why the newest content is not in force
}

// A Peer is a server as seen from here through WireGuard.
type Peer struct {
	Server
	State         string         `json:"state"` // "up", "suspect", "down", or "unknown" if it was never heard and nothing is left to ask
	Since         time.Time      `json:"since"` // of State
	Endpoint      netip.AddrPort `json:"endpoint"`
	RTT           Duration       `json:"rtt,omitzero"` // through the tunnel, the least of the latest few; not there if none was answered
	LastHandshake *time.Time     `json:"lastHandshake"`
	RxBytes       uint64         `json:"rxBytes"`
	TxBytes       uint64         `json:"txBytes"`
	Changes       []PathChange   `json:"changes"` // the latest, oldest first
}

// A PathChange is one change of a peer's endpoint or state.
type PathChange struct {
	At     time.Time      `json:"at"`
	State  string         `json:"state"`
	Old    netip.AddrPort `json:"old"`
	New    netip.AddrPort `json:"new"`
	Reason string         `json:"reason"`
	Outage Duration       `json:"outage"` // how long the peer was silent; zero if it was not
}

// A Duration is written as Go writes it: "1.5s".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// A Resolution is what a name answers here, and why.
type Resolution struct {
	Name     string   `json:"name"` // the name that was asked after the search domain was applied
	Type     string   `json:"type"`
	Source   string   `json:"source"` // "zone", or the upstream: "192.0.2.1:53", "cache (192.0.2.1:53)", "stale cache (192.0.2.1:53)"
	Rcode    string   `json:"rcode"`
	Order    []string `json:"order,omitempty"` // the servers of these addresses, each once and with its round-trip time, unless that does not count
	Answers  []string `json:"answers"`         // records in zone-file text, in the order of one answer
	LeftOut  []string `json:"leftOut"`         // containers of the name that are not answered, and why
	Negative string   `json:"negative"`        // what an empty answer means here; empty if there are answers

	// Of the mesh's names, while the registry is not up: what changed on other
	// servers since then may be missing.
	Registry string     `json:"registry,omitempty"` // as in Registry.State
	Since    *time.Time `json:"since,omitempty"`
}

// A PingRequest asks for echo requests through the tunnel.
type PingRequest struct {
	Target   string   `json:"target"` // server id, mesh name or mesh address
	Count    int      `json:"count"`  // 1 to 1000
	Interval Duration `json:"interval"`
	Timeout  Duration `json:"timeout"` // for each answer
	Size     int      `json:"size"`    // bytes of payload
}

// A PingReply is one line of a ping's stream; the last one has Done set.
type PingReply struct {
	Target string     `json:"target"`
	IP     netip.Addr `json:"ip"`
	Seq    int        `json:"seq"`
	RTT    Duration   `json:"rtt"`
	Done   bool       `json:"done"`
	Sent   int        `json:"sent,omitempty"`     // with Done
	Recv   int        `json:"received,omitempty"` // with Done
	Min    Duration   `json:"min,omitempty"`
	Avg    Duration   `json:"avg,omitempty"`
	Max    Duration   `json:"max,omitempty"`
	Error  string     `json:"error,omitempty"`
}

// A WatchRequest asks for the queries of names, as they are answered; zero fields
// leave nothing out.
type WatchRequest struct {
	Name   string       `json:"name"`   // only this name and those below it
	Client netip.Prefix `json:"client"` // only of clients in it
	Every  int          `json:"every"`  // only one in as many of those
}

// A SeenQuery is one line of the stream of queries.
type SeenQuery struct {
	At        time.Time       `json:"at"`   // when it was read
	Took      Duration        `json:"took"` // until its answer was given to the kernel
	Client    netip.AddrPort  `json:"client"`
	Proto     string          `json:"proto"` // "udp" or "tcp"
	Name      string          `json:"name"`  // as it was asked; "" of what asks nothing
	Type      string          `json:"type"`
	Rcode     string          `json:"rcode"`
	Source    string          `json:"source"`             // "mesh", "forwarded", or "refused" for it came from outside
	Upstream  *netip.AddrPort `json:"upstream,omitempty"` // whose answer it is
	Cached    bool            `json:"cached,omitempty"`   // that was given before
	Stale     bool            `json:"stale,omitempty"`    // and past its time
	Answers   int             `json:"answers"`            // records
	Truncated bool            `json:"truncated,omitempty"`
	Size      int             `json:"size"`            // bytes of the answer
	Error     string          `json:"error,omitempty"` // why an upstream gave no newer answer, or none
	Missed    uint64          `json:"missed"`          // queries so far that came too fast to be told
}

// A Setting is one configuration value and where it came from.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"` // "flag", "environment JIJI_X", "file F:12" or "default"
}

// A Container is one row of the catalog.
type Container struct {
	ID         string     `json:"id"`
	Service    string     `json:"service"`
	Project    string     `json:"project"`
	Instance   string     `json:"instance"`
	Name       string     `json:"name"`
	ServerID   string     `json:"serverId"`
	IP         netip.Addr `json:"ip"`
	Health     string     `json:"health"`
	StartedAt  time.Time  `json:"startedAt"`
	LastCheck  *time.Time `json:"lastHealthCheck"`
	Failures   int        `json:"consecutiveFailures"`
	HealthPort uint16     `json:"healthPort"`
	Ports      []string   `json:"ports"` // "80/tcp"
	External   bool       `json:"external"`
}

// A HealthRequest sets the health of one container.
type HealthRequest struct {
	ID     string `json:"id"`
	Health string `json:"health"`
}

// A CleanupRequest removes this server's containers that are unhealthy.
type CleanupRequest struct {
	Service   string   `json:"service"`   // empty: all services
	OlderThan Duration `json:"olderThan"` // since the last health check, or the registration if there was none
	DryRun    bool     `json:"dryRun"`
}

// An InitRequest changes this server's own entry; empty fields leave it as it is.
type InitRequest struct {
	Name      string           `json:"name"`
	Index     *int             `json:"index"` // number of the subnet
	Endpoints []netip.AddrPort `json:"endpoints"`
}

// An Added server is the outcome of one entry of `server add`.
type Added struct {
	Server
	Entry string `json:"entry"` // as a file for other servers
	Note  string `json:"note"`  // what was decided about it: "added", "unchanged", …
}

// An Undone says what became of the changes of the host, one line each.
type Undone struct {
	Undone []string `json:"undone"` // taken back
	Kept   []string `json:"kept"`   // left as somebody else has it or needs it
	Failed []string `json:"failed"` // still there, and why
}

// A Node is what the API needs of the running node. Errors that the request is
// to blame for are marked by package usage.
type Node interface {
	Status() Status
	Settings() []Setting
	Resolve(ctx context.Context, name, qtype string) (Resolution, error)
	Ping(ctx context.Context, r PingRequest, reply func(PingReply)) error
	// Watch tells saw of queries until ctx is done, for which it returns nil, or saw
	// fails. begun is called once it does.
	Watch(ctx context.Context, r WatchRequest, begun func(), saw func(SeenQuery) error) error

	Containers() []Container
	Register(ctx context.Context, c Container) (Container, error)
	SetHealth(ctx context.Context, r HealthRequest) error
	Deregister(ctx context.Context, ids []string) (int, error)
	Cleanup(ctx context.Context, r CleanupRequest) ([]Container, error)

	Servers() []Server
	Init(r InitRequest) (Added, error)
	AddServers(ctx context.Context, entries []byte, source string) ([]Added, error)
	RemoveServer(ctx context.Context, id string, force bool) (Server, error)

	// UseRegistry keeps the catalog elsewhere from now on.
	UseRegistry(ctx context.Context, mode RegistryMode) (RegistryMode, error)

	// Down takes the network off the host; the node ends once it was answered.
	Down(ctx context.Context) (Undone, error)
}
