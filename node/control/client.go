package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	"github.com/acidtib/jiji-node/node/usage"
)

const (
	patience     = 30 * time.Second // with a node that took the request
	downPatience = 2 * time.Minute  // it runs programs that may be slow, and bounds each of them
)

// ErrNotRunning says that no node answers on the socket.
var ErrNotRunning = errors.New("no jiji-node is running")

// ErrNoAnswer says that a node took the request and did not answer in time.
var ErrNoAnswer = errors.New("it hangs, or was stopped by a signal")

// A Client talks to the node whose runtime directory it was made for.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the socket in dir; it connects with each call.
func NewClient(dir string) *Client {
	path := filepath.Join(dir, SocketName)
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 2 * time.Second}
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Status returns the node's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Settings returns the node's configuration.
func (c *Client) Settings(ctx context.Context) ([]Setting, error) {
	return call[[]Setting](ctx, c, http.MethodGet, "/v1/config", nil)
}

// Resolve asks what a name answers.
func (c *Client) Resolve(ctx context.Context, name, qtype string) (Resolution, error) {
	q := url.Values{"name": {name}, "type": {qtype}}
	return call[Resolution](ctx, c, http.MethodGet, "/v1/resolve?"+q.Encode(), nil)
}

// Containers lists the catalog.
func (c *Client) Containers(ctx context.Context) ([]Container, error) {
	return call[[]Container](ctx, c, http.MethodGet, "/v1/services", nil)
}

// Register puts a container into the catalog and returns it as stored.
func (c *Client) Register(ctx context.Context, v Container) (Container, error) {
	return call[Container](ctx, c, http.MethodPost, "/v1/services", v)
}

// SetHealth sets the health of one container.
func (c *Client) SetHealth(ctx context.Context, r HealthRequest) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/services/health", r)
	return err
}

// Deregister takes containers out and returns how many there were.
func (c *Client) Deregister(ctx context.Context, ids []string) (int, error) {
	return call[int](ctx, c, http.MethodPost, "/v1/services/deregister", ids)
}

// Cleanup removes unhealthy containers and returns them.
func (c *Client) Cleanup(ctx context.Context, r CleanupRequest) ([]Container, error) {
	return call[[]Container](ctx, c, http.MethodPost, "/v1/services/cleanup", r)
}

// Servers lists the topology, tombstones included.
func (c *Client) Servers(ctx context.Context) ([]Server, error) {
	return call[[]Server](ctx, c, http.MethodGet, "/v1/servers", nil)
}

// Init changes this server's own entry and returns it.
func (c *Client) Init(ctx context.Context, r InitRequest) (Added, error) {
	return call[Added](ctx, c, http.MethodPost, "/v1/servers/init", r)
}

// AddServers adds the entries of a file's content; source names it in errors.
func (c *Client) AddServers(ctx context.Context, entries []byte, source string) ([]Added, error) {
	q := url.Values{"source": {source}}
	return call[[]Added](ctx, c, http.MethodPost, "/v1/servers/add?"+q.Encode(), json.RawMessage(entries))
}

// RemoveServer puts a tombstone on a server.
func (c *Client) RemoveServer(ctx context.Context, id string, force bool) (Server, error) {
	return call[Server](ctx, c, http.MethodPost, "/v1/servers/remove", removeRequest{id, force})
}

// UseRegistry has the node keep the catalog elsewhere.
func (c *Client) UseRegistry(ctx context.Context, mode RegistryMode) (RegistryMode, error) {
	return call[RegistryMode](ctx, c, http.MethodPost, "/v1/registry/use", mode)
}

// Down has the node take the network off the host and end.
func (c *Client) Down(ctx context.Context) (Undone, error) {
	return callWithin[Undone](ctx, c, downPatience, http.MethodPost, "/v1/down", struct{}{})
}

// Ping calls reply for each line of the stream until the last, which has Done set.
func (c *Client) Ping(ctx context.Context, r PingRequest, reply func(PingReply)) error {
	res, err := c.do(ctx, http.MethodPost, "/v1/ping", r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	for d := json.NewDecoder(res.Body); ; {
		var p PingReply
		if err := d.Decode(&p); err != nil {
			return fmt.Errorf("the node ended before the ping did: %w", err)
		}
		if p.Error != "" {
			return errors.New(p.Error)
		}
		reply(p)
		if p.Done {
			return nil
		}
	}
}

// Watch calls saw for each query until ctx is done, for which it returns nil, or saw
// fails. begun is called once the node tells of them.
func (c *Client) Watch(ctx context.Context, r WatchRequest, begun func(), saw func(SeenQuery) error) error {
	res, err := c.do(ctx, http.MethodPost, "/v1/queries", r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	begun()
	for d := json.NewDecoder(res.Body); ; {
		var q SeenQuery
		if err := d.Decode(&q); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("the node does not tell of queries any more: %w", err)
		}
		if err := saw(q); err != nil {
			return err
		}
	}
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	return callWithin[T](ctx, c, patience, method, path, body)
}

func callWithin[T any](ctx context.Context, c *Client, limit time.Duration, method, path string, body any) (T, error) {
	var v T
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := c.do(ctx, method, path, body)
	if errors.Is(err, context.DeadlineExceeded) {
		return v, fmt.Errorf("the node on %s does not answer within %s: %w", c.path, limit, ErrNoAnswer)
	}
	if err != nil {
		return v, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the node's answer: %w", err)
	}
	return v, nil
}

// do returns the response of a request that succeeded; the caller closes its body.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var send io.Reader
	if raw, ok := body.(json.RawMessage); ok {
		send = bytes.NewReader(raw)
	} else if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, send)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: nothing answers on %s; start it with `jiji-node run`", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open %s: permission denied: be root, or a member of the group jiji", c.path)
	case err != nil:
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, fmt.Errorf("ask the node on %s: %w", c.path, err)
	case res.StatusCode == http.StatusOK:
		return res, nil
	}
	defer res.Body.Close()
	var p problem
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&p); err != nil {
		return nil, fmt.Errorf("the node answered %s", res.Status)
	}
	if p.Usage {
		return nil, usage.Mark(errors.New(p.Error))
	}
	return nil, errors.New(p.Error)
}
