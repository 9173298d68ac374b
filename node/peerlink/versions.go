package peerlink

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	versionsPath = "/v1/versions"
	maxWriters   = 65536           // in an answer
	maxAnswer    = 64 * maxWriters // bytes; a writer takes at most 55
	maxFailure   = 256             // bytes of an answer that says why there is none
	maxHeader    = 4 << 10         // bytes

	askTimeout    = 2 * time.Second // for a whole question, unless its context says otherwise
	lookTimeout   = 2 * time.Second // for this node's registry
	headerTimeout = time.Second
	writeTimeout  = 5 * time.Second // from the header on, lookTimeout included
)

// A versionsAnswer is the body of the answer.
type versionsAnswer struct {
	Versions map[writerID]*int64 `json:"versions"`
}

// A writerID is a site id, as text 32 hexadecimal digits.
type writerID [16]byte

func (w writerID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, w[:]), nil }

func (w *writerID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(w) || hex.EncodeToString(b) != string(text) {
		return fmt.Errorf("writer %.40q: expected 32 hexadecimal digits, lower-case", text)
	}
	*w = writerID(b)
	return nil
}

// parseVersions reads the body of an answer.
func parseVersions(b []byte) (map[[16]byte]int64, error) {
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("more than %d bytes", maxAnswer)
	}
	var a versionsAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, err
	}
	if a.Versions == nil {
		return nil, errors.New(`no "versions": expected an object of that name`)
	}
	if len(a.Versions) > maxWriters {
		return nil, fmt.Errorf("%d writers: expected at most %d", len(a.Versions), maxWriters)
	}
	versions := make(map[[16]byte]int64, len(a.Versions))
	for w, v := range a.Versions {
		if v == nil || *v < 0 {
			text, _ := w.MarshalText()
			return nil, fmt.Errorf("writer %s: expected a version that is a number from 0", text)
		}
		versions[w] = *v
	}
	return versions, nil
}

// Versions asks the node at peer which version of each writer its registry has.
// It takes two seconds at most, unless ctx has a deadline.
func (l *Link) Versions(ctx context.Context, peer netip.Addr) (map[[16]byte]int64, error) {
	body, err := l.get(ctx, peer, versionsPath)
	if err != nil {
		return nil, fmt.Errorf("ask peer %v for its versions: %w", peer, err)
	}
	versions, err := parseVersions(body)
	if err != nil {
		return nil, fmt.Errorf("ask peer %v for its versions: parse the answer: %w", peer, err)
	}
	return versions, nil
}

// get returns the body of what the node at peer answers.
func (l *Link) get(ctx context.Context, peer netip.Addr, path string) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askTimeout)
		defer cancel()
	}
	at := netip.AddrPortFrom(peer, l.cfg.Addr.Port())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, nil)
	if err != nil {
		return nil, err
	}
	// The peer believes our management address alone. A proxy of the environment
	// would be none in the tunnel, and what is compressed has no limit.
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.cfg.Addr.Addr(), 0))}
	transport := &http.Transport{
		DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
	}
	answer, err := transport.RoundTrip(req) // follows no redirects
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(answer.Body, maxFailure))
		return nil, fmt.Errorf("it answered %q: %q", answer.Status, why)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return body, nil
}

// answer answers members on streams, which it closes, until ctx is done or
// streams fails.
func (l *Link) answer(ctx context.Context, streams net.Listener) error {
	srv := &http.Server{
		Handler:           http.HandlerFunc(l.handle),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      writeTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },

		DisableGeneralOptionsHandler: true,
	}
	srv.SetKeepAlivesEnabled(false) // so that a connection is a request: limits of one are limits of the other
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(listener{streams, l})
	if !stop() {
		<-ended
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve peers: %w", err)
}

// handle answers one request.
func (l *Link) handle(w http.ResponseWriter, r *http.Request) {
	fail := func(code int, text string) { http.Error(w, text, code) }
	switch {
	case r.URL.Path != versionsPath && r.URL.Path != bootsPath && r.URL.Path != agentPath:
		fail(http.StatusNotFound, "this node knows "+versionsPath+", "+bootsPath+" and "+agentPath+" only")
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		fail(http.StatusMethodNotAllowed, "expected GET")
		return
	case r.URL.Path == bootsPath:
		l.handleBoots(w, r)
		return
	case r.URL.Path == agentPath:
		l.handleAgent(w)
		return
	case l.cfg.Versions == nil:
		fail(http.StatusServiceUnavailable, "this node's registry has no versions")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookTimeout)
	defer cancel()
	versions, err := l.cfg.Versions(ctx)
	if err != nil {
		fail(http.StatusServiceUnavailable, err.Error())
		return
	}
	a := versionsAnswer{make(map[writerID]*int64, len(versions))}
	for writer, v := range versions {
		a.Versions[writer] = &v
	}
	l.stats.answered.Add(1)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // fails only when the peer went away
}

// A listener accepts members' connections within limits, and closes all others.
type listener struct {
	net.Listener
	link *Link
}

func (s listener) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			from = a.AddrPort().Addr().Unmap()
		}
		why, leave := s.link.members.enter(from)
		switch why {
		case stranger:
			s.link.stats.strangers.Add(1)
		case tooOften:
			s.link.stats.limited.Add(1)
		case tooManyAt:
			s.link.stats.rejected.Add(1)
		default:
			return &conn{c, sync.OnceFunc(leave)}, nil
		}
		c.Close()
	}
}

// A conn gives its place back when it is closed.
type conn struct {
	net.Conn
	leave func()
}

func (c *conn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
