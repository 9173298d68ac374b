// Package corrosion is a client of the HTTP API of a Corrosion agent: it runs
// transactions and queries, and follows subscriptions across everything that
// ends them. It knows no tables.
//
// It works with agents from September 2025 (no health route, errors as status
// 500) to v1.0 and later. A cell is one of SQLite's values: nil, int64, float64,
// string or []byte.
package corrosion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A Config says which agent to talk to, and how. However it is printed, the
// token is not; but fmt does not ask what is in a field that is not exported, so
// let nobody print a struct with such a one.
type Config struct {
	// URL is http://HOST:PORT and nothing more; required. The API has no TLS.
	URL string

	// Token is sent as a bearer token; empty sends none.
	Token string `json:"-"`

	// Log gets a line at Debug for each stream; nil: none. What a caller has to
	// know comes back as an error, or through the View.
	Log *slog.Logger

	// Dial connects to the agent; nil: over TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `json:"-"`

	// Trust returns why who listens at URL must not be told the token; it is asked
	// before and after each connection is made. nil: anybody may.
	Trust func() error `json:"-"`

	// DialTimeout is for a connection over TCP; zero: 5 s.
	DialTimeout time.Duration

	// ReplyTimeout is for the headers of a response, and for all of the short
	// ones (Exec, Health); zero: 60 s. An agent that is busy writing answers a
	// transaction late: its own limit for one is a minute.
	ReplyTimeout time.Duration

	// EventTimeout is for the first bytes of a result, and for the silence
	// inside one; zero: 30 s. A stream whose result is complete may be silent
	// for ever, see Follow.
	EventTimeout time.Duration

	// MaxResult is for the bytes of one result of Query or Follow; zero: 256 MiB.
	MaxResult int64
}

const (
	maxToken   = 4096
	maxHeaders = 64 << 10
)

// Format prints c without its token, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) { io.WriteString(f, c.text()) }

// LogValue is c without its token.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.text()) }

func (c Config) text() string {
	if c.Token == "" {
		return c.URL + " without token"
	}
	return c.URL + " with token"
}

// A Client talks to one agent. Its methods may be called at any time from any
// goroutine.
type Client struct {
	cfg       Config // without the token; zero values replaced
	base      string // http://HOST:PORT
	http      *http.Client
	transport *http.Transport
	authorize func(http.Header)        // a function, so that printing a Client shows no token
	redact    func(text string) string // takes the token out of what an agent said
	log       *slog.Logger
}

// Format prints which agent c is for.
func (c *Client) Format(f fmt.State, _ rune) { io.WriteString(f, "client of "+c.base) }

// New connects to nothing yet. It fails if cfg is not as Config says.
func New(cfg Config) (*Client, error) {
	base, err := baseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if i := strings.IndexFunc(cfg.Token, func(r rune) bool { return r <= ' ' || r > '~' }); i >= 0 {
		return nil, fmt.Errorf("corrosion token: byte %d is not printable ASCII: want no space, line end or other character", i+1)
	}
	if len(cfg.Token) > maxToken {
		return nil, fmt.Errorf("corrosion token: %d bytes, want at most %d", len(cfg.Token), maxToken)
	}
	for _, d := range []struct {
		name string
		at   *time.Duration
		zero time.Duration
	}{
		{"DialTimeout", &cfg.DialTimeout, 5 * time.Second},
		{"ReplyTimeout", &cfg.ReplyTimeout, time.Minute},
		{"EventTimeout", &cfg.EventTimeout, 30 * time.Second},
	} {
		if *d.at < 0 {
			return nil, fmt.Errorf("corrosion %s %v: want a positive time, or zero for %v", d.name, *d.at, d.zero)
		}
		if *d.at == 0 {
			*d.at = d.zero
		}
	}
	if cfg.MaxResult < 0 {
		return nil, fmt.Errorf("corrosion MaxResult %d: want a positive number of bytes, or zero for 256 MiB", cfg.MaxResult)
	}
	if cfg.MaxResult == 0 {
		cfg.MaxResult = 256 << 20
	}
	c := &Client{
		base:      base,
		log:       cfg.Log,
		authorize: func(http.Header) {},
		redact:    func(s string) string { return s },
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if token := cfg.Token; token != "" {
		c.authorize = func(h http.Header) { h.Set("Authorization", "Bearer "+token) }
		c.redact = func(s string) string { return strings.ReplaceAll(s, token, "[token]") }
	}
	cfg.Token = ""
	c.cfg = cfg
	if cfg.Dial == nil {
		// The agent sends no heartbeats: only the kernel tells a stream that is
		// dead from a silent one. It gives up after 11 s.
		cfg.Dial = (&net.Dialer{
			Timeout:         cfg.DialTimeout,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		}).DialContext
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c.transport = &http.Transport{
		DialContext:            cfg.dial,
		Proxy:                  nil, // an agent is never behind the environment's
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConns:           2,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: maxHeaders,
		ReadBufferSize:         16 << 10,
	}
	c.http = &http.Client{
		Transport:     c.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// dial connects to an agent that is trusted from before until after that.
func (c Config) dial(ctx context.Context, network, address string) (net.Conn, error) {
	trust := c.Trust
	if trust == nil {
		trust = func() error { return nil }
	}
	if err := trust(); err != nil {
		return nil, err
	}
	conn, err := c.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if err := trust(); err != nil {
		conn.Close()
		return nil, err
	}
	return prompt(conn), nil
}

// baseURL returns text as http://HOST:PORT.
func baseURL(text string) (string, error) {
	const want = "want http://HOST:PORT like http://127.0.0.1:8080"
	u, err := url.Parse(text)
	if err != nil { // whose text would quote a password
		return "", fmt.Errorf("corrosion URL: not a URL: %s", want)
	}
	if u.User != nil {
		return "", fmt.Errorf("corrosion URL of %s: has a user or password: %s", u.Host, want)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case u.Scheme != "http" || u.Hostname() == "" || err != nil || port == 0,
		u.Path != "" && u.Path != "/", u.RawQuery != "", u.ForceQuery, u.Fragment != "", strings.HasSuffix(text, "#"):
		return "", fmt.Errorf("corrosion URL %q: %s", clip(text, 200), want)
	}
	if host := u.Hostname(); strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return "", fmt.Errorf("corrosion URL %q: %s", clip(text, 200), want)
		}
	}
	return "http://" + u.Host, nil
}

// Close lets go of idle connections. Those in use end with the calls that use
// them. It may be called more than once.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

var (
	// ErrUnauthorized is wrapped when the agent wants a token, or another one.
	ErrUnauthorized = errors.New("wrong or missing token")
	// ErrNoTable is wrapped when the agent's schema has no such table.
	ErrNoTable = errors.New("no such table")
	// ErrBusy is wrapped when the agent sheds load: the request was not run.
	ErrBusy = errors.New("agent is overloaded")
	// ErrNoHealth is wrapped by Health for agents older than its route.
	ErrNoHealth = errors.New("agent has no health route")
)

// An Error is what the agent said instead of doing what it was asked.
type Error struct {
	Request string // "POST http://127.0.0.1:8080/v1/transactions"
	Status  int    // of HTTP; 200 if it said so inside a stream that had begun
	Message string // its text in one line, cut at 500 bytes; may be empty
}

func (e *Error) Error() string {
	s := e.Request + ": agent "
	if e.Status == http.StatusOK {
		s += "failed"
	} else {
		s += strings.TrimSpace("answered " + strconv.Itoa(e.Status) + " " + http.StatusText(e.Status))
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Is(ErrUnauthorized) {
		s += ": " + ErrUnauthorized.Error()
	}
	return s
}

// Is makes errors.Is work with ErrUnauthorized, ErrNoTable and ErrBusy.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized
	case ErrNoTable:
		return strings.Contains(e.Message, "no such table") || strings.Contains(e.Message, "table not found in schema")
	case ErrBusy:
		return e.Status == http.StatusServiceUnavailable
	}
	return false
}

// clip cuts s to about n bytes, between characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
