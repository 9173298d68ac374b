package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
)

const (
	callLimit   = 5 * time.Second           // for one answer, which takes an engine some milliseconds
	maxAnswer   = 64 << 20                  // bytes of one: thousands of containers
	podmanPause = "localhost/podman-pause:" // image of what holds a pod's network
	maxEvent    = 16 << 20                  // bytes of one event: it repeats the labels
)

// A Socket is where an engine may be reached.
type Socket struct {
	Kind Kind
	Path string
}

// Sockets are the engines' own defaults for those that root runs, in the order in
// which they are looked for.
func Sockets() []Socket {
	return []Socket{{Docker, "/var/run/docker.sock"}, {Podman, "/run/podman/podman.sock"}}
}

// errRootless is of engines that run without root: their containers' addresses
// are in a namespace of their own, out of reach of bridge and tunnel.
var errRootless = errors.New("runs without root, so that its containers cannot be on a network of this machine: run it as root")

// A Client speaks to one engine. Its methods may be called from any goroutine.
type Client struct {
	Kind    Kind
	Version string
	Socket  string
	NFT     bool // its firewall is nftables' own, whose drops nobody gets ahead of

	api    *client.Client
	stream *client.Client // for events, which do not end
	raw    *http.Client   // for what Docker's API cannot say, to Podman
}

// Dial asks the engine behind a socket what it is. Errors wrap fs.ErrNotExist if
// there is no socket, and errRootless.
func Dial(ctx context.Context, s Socket) (*Client, error) {
	if _, err := os.Stat(s.Path); err != nil {
		return nil, err
	}
	c := &Client{Kind: s.Kind, Socket: s.Path}
	c.raw = &http.Client{Transport: transport(s.Path, maxAnswer, false)}
	var err error
	if c.api, err = open(s.Path, maxAnswer, false); err != nil {
		return nil, err
	}
	if c.stream, err = open(s.Path, maxEvent, true); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	v, err := c.api.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, c.explain(err)
	}
	c.Version = v.Version
	c.Kind = Docker // whatever the file is called: podman-docker links docker.sock to Podman's
	if slices.ContainsFunc(v.Components, func(p system.ComponentVersion) bool { return p.Name == "Podman Engine" }) {
		c.Kind = Podman
	}
	return c, c.rootful(ctx)
}

// open returns a client that negotiates the API's version.
func open(path string, most int, lines bool) (*client.Client, error) {
	t := transport(path, most, lines)
	return client.New(client.WithHTTPClient(&http.Client{Transport: t}), client.WithHost("unix://"+path), client.WithDialContext(t.DialContext))
}

// transport reaches the socket with a connection for each request.
func transport(path string, most int, lines bool) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return &bounded{Conn: c, most: most, lines: lines, left: most}, nil
	}}
}

// A bounded connection ends after so many bytes, in all or, with lines, without a
// line's end among them.
type bounded struct {
	net.Conn
	most  int
	left  int
	lines bool
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("the engine's answer is longer than %d bytes", b.most)
	}
	if b.lines && slices.Contains(p[:n], '\n') {
		b.left = b.most
	}
	return n, err
}

// explain says what err means for who reads it.
func (c *Client) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: may not open its socket %s: permission denied; the node has to run as root, or in the socket's group", c.Kind, c.Socket)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s does not answer on %s within %v", c.Kind, c.Socket, callLimit)
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("%s: nobody listens on %s", c.Kind, c.Socket)
	}
	return fmt.Errorf("%s: %s", c.Kind, strings.Join(strings.Fields(err.Error()), " "))
}

// rootful fails unless root runs the engine.
func (c *Client) rootful(ctx context.Context) error {
	var info struct {
		Rootless        bool // Podman's
		SecurityOptions []string
		FirewallBackend struct{ Driver string } // Docker's, from 29 on
	}
	if err := c.get(ctx, "/info", &info); err != nil {
		return err
	}
	c.NFT = strings.HasPrefix(info.FirewallBackend.Driver, "nftables")
	if info.Rootless || slices.ContainsFunc(info.SecurityOptions, func(o string) bool { return strings.HasPrefix(o, "name=rootless") }) {
		return fmt.Errorf("%s on %s %w", c.Kind, c.Socket, errRootless)
	}
	return nil
}

// get reads what the client library has no type for.
func (c *Client) get(ctx context.Context, path string, answer any) error {
	return c.do(ctx, http.MethodGet, path, nil, answer)
}

// do makes a request that is bounded by ctx.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.raw.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		var fault struct{ Cause, Message string }
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if json.Unmarshal(text, &fault) != nil || fault.Message == "" {
			fault.Message = string(text)
		}
		return fmt.Errorf("%s: %s %s: %s: %s", c.Kind, method, path, resp.Status, strings.Join(strings.Fields(fault.Message), " "))
	}
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("%s: %s %s: %w", c.Kind, method, path, err)
	}
	return nil
}

// Running lists the ids of the containers that run.
func (c *Client) Running(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	list, err := c.api.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, c.explain(err)
	}
	ids := make([]string, len(list.Items))
	for i, item := range list.Items {
		ids[i] = item.ID
	}
	return ids, nil
}

// Inspect describes a container. It is not there if there is no such one.
func (c *Client) Inspect(ctx context.Context, id string) (v Container, there bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := c.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	switch {
	case errdefs.IsNotFound(err):
		return Container{}, false, nil
	case err != nil:
		return Container{}, false, c.explain(err)
	}
	return observed(r.Container), true, nil
}

// observed is what an engine's answer says.
func observed(r container.InspectResponse) Container {
	c := Container{ID: r.ID, Name: strings.TrimPrefix(r.Name, "/"), Labels: map[string]string{}, Addrs: map[string]netip.Addr{}}
	if r.Config != nil {
		c.Labels = labelsOf(r.Config.Labels)
		c.Infra = strings.HasPrefix(r.Config.Image, podmanPause)
	}
	if s := r.State; s != nil {
		c.Running = s.Running && !s.Paused && !s.Restarting && !s.Dead
		if t, err := time.Parse(time.RFC3339Nano, s.StartedAt); err == nil && t.UnixMilli() > 0 {
			c.StartedAt = time.UnixMilli(t.UnixMilli()).UTC()
		}
		if h := s.Health; h != nil {
			c.Health, c.Failures = string(h.Status), max(0, h.FailingStreak)
			if n := len(h.Log); n > 0 && h.Log[n-1] != nil {
				c.CheckedAt = h.Log[n-1].End
			}
		}
	}
	if r.HostConfig != nil {
		c.Joined, _ = strings.CutPrefix(string(r.HostConfig.NetworkMode), "container:")
		if c.Joined == string(r.HostConfig.NetworkMode) {
			c.Joined = ""
		}
	}
	if r.NetworkSettings != nil {
		for name, e := range r.NetworkSettings.Networks {
			if e != nil {
				c.Addrs[name] = e.IPAddress.Unmap()
			}
		}
	}
	return c
}

// An Event tells that something happened to a container, or to a network.
type Event struct {
	ID      string // of the container; "": it is about a network
	Ended   bool   // the container runs no more
	Health  bool   // its health was checked
	Network string // name, if it is about one
	At      time.Time
}

// Events tells what happens from since on, until ctx is done or the engine goes
// away; the error says how.
func (c *Client) Events(ctx context.Context, since time.Time, tell func(Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := c.stream.Events(ctx, client.EventsListOptions{
		Since:   fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()),
		Filters: client.Filters{}.Add("type", "container", "network"),
	})
	for {
		select {
		case m := <-r.Messages:
			if e, ok := eventOf(m); ok {
				tell(e)
			}
		case err := <-r.Err:
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("%s ended the connection", c.Kind)
			}
			return c.explain(err)
		}
	}
}

// eventOf is m, unless it says nothing that could change a row.
func eventOf(m events.Message) (Event, bool) {
	e := Event{At: time.Unix(0, m.TimeNano)}
	switch m.Type {
	case events.NetworkEventType:
		e.Network = m.Actor.Attributes["name"]
		switch m.Action {
		case events.ActionConnect, events.ActionDisconnect:
			if e.ID = m.Actor.Attributes["container"]; e.ID == "" {
				e.ID = m.Actor.ID // Podman's way
			}
			return e, e.ID != ""
		case events.ActionCreate, events.ActionDestroy, events.ActionRemove, events.ActionUpdate:
			return e, true
		}
		return e, false
	case events.ContainerEventType:
		e.ID = m.Actor.ID
		action, _, _ := strings.Cut(string(m.Action), ":")
		switch action {
		case "die", "died", "destroy", "remove":
			e.Ended = true
			return e, e.ID != ""
		case "health_status":
			e.Health = true
			return e, e.ID != ""
		case "start", "restart", "stop", "pause", "unpause", "rename", "update", "cleanup", "checkpoint", "restore", "kill":
			return e, e.ID != ""
		}
	}
	return e, false
}
