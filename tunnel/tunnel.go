// Package tunnel owns the WireGuard device: it opens the TUN, addresses it, and
// holds exactly the wanted peers.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// ErrClosed is returned when the device has ended: by Close, or because the
// interface was taken from under it.
var ErrClosed = errors.New("tunnel is closed")

// ErrNoIPv6 is wrapped by what Open and Restore return when an IPv6 address
// cannot be added because IPv6 is disabled, for the interface or the machine. To
// run without, call Open again with the IPv4 addresses alone.
var ErrNoIPv6 = errors.New("IPv6 is disabled")

const (
	minMTU      = 1280            // RFC 8200, section 5
	socketCheck = 2 * time.Second // how often Run looks whether the socket file is still there
)

// A Config says what the device is. Peers come later.
type Config struct {
	Name       string         // of the interface, at most 15 bytes; required
	Addresses  []netip.Prefix // of the interface, such as 10.210.1.1/32 and fdcc:…/128
	MTU        int            // of the interface, in bytes; required, at least 1280
	ListenPort uint16         // UDP, on every address of the machine; zero: any free one
	Key        wgkey.Private  // required
	Log        *slog.Logger   // required
}

// A Tunnel is a WireGuard device and its interface. Its methods are safe for
// concurrent use.
type Tunnel struct {
	cfg      Config // ListenPort is the one in use, MTU the first
	dev      *device.Device
	tun      *limitedTUN
	udp      conn.Bind // beneath bind
	bind     *crossingBind
	tooLarge chan struct{}

	setting sync.Mutex // held between reading the device or its interface and changing it accordingly

	mu     sync.Mutex // guards socket and closed
	socket *socket    // nil: none
	closed bool
}

// Open makes the interface, with its addresses and up, the device behind it, and
// the socket /var/run/wireguard/<name>.sock. An interface of that name, a port
// that is taken and a socket that another process serves are errors.
func Open(cfg Config) (*Tunnel, error) {
	t, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	return t, nil
}

func open(cfg Config) (*Tunnel, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	dev, err := openTUN(cfg.Name, cfg.MTU)
	if err != nil {
		return nil, err
	}
	t, err := start(cfg, dev, newBind())
	if err != nil {
		return nil, err
	}
	if _, err := configureLink(cfg.Name, cfg.MTU, cfg.Addresses); err != nil {
		t.Close()
		return nil, err
	}
	if t.socket, err = listenSocket(filepath.Join(socketDir, cfg.Name+".sock")); err != nil {
		t.Close()
		return nil, fmt.Errorf("listen for wg(8): %w", err)
	}
	return t, nil
}

func (cfg Config) check() error {
	switch {
	case cfg.Name == "" || len(cfg.Name) > 15 || cfg.Name == "." || cfg.Name == ".." || strings.ContainsFunc(cfg.Name, notInName):
		return fmt.Errorf("interface name %q: want 1 to 15 letters, digits, dots, dashes or underscores", cfg.Name)
	case cfg.MTU < minMTU || cfg.MTU > device.MaxContentSize:
		return fmt.Errorf("MTU %d: want %d to %d", cfg.MTU, minMTU, device.MaxContentSize)
	case cfg.Key.IsZero():
		return errors.New("no private key")
	}
	for _, a := range cfg.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() {
			return fmt.Errorf("address %v: want an IPv4 or IPv6 prefix", a)
		}
	}
	return nil
}

func notInName(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
}

// start makes the device on dev and bind, with its key and port, and up. It
// closes dev when it fails.
func start(cfg Config, dev tun.Device, bind conn.Bind) (*Tunnel, error) {
	in, out := newGate(), newGate()
	wrapped, err := wrap(dev, in, out)
	if err != nil {
		dev.Close()
		return nil, err
	}
	t := &Tunnel{cfg: cfg, tun: &limitedTUN{Device: wrapped}, udp: bind, tooLarge: make(chan struct{}, 1)}
	var checker device.CookieChecker
	checker.Init(device.NoisePublicKey(cfg.Key.Public()))
	t.bind = newCrossingBind(sizedBind{bind, t.tooLarge}, checker.CheckMAC1)
	t.tun.limits.Store(newLimits(cfg.MTU, nil))
	t.dev = device.NewDevice(t.tun, &gatedBind{t.bind, in, out, newIndices()}, deviceLog(cfg.Log))
	lines, _, _ := diff(state{}, want{key: cfg.Key, port: cfg.ListenPort})
	if err := t.dev.IpcSet(lines); err != nil {
		t.dev.Close()
		return nil, fmt.Errorf("configure the device: %w", err)
	}
	if err := t.dev.Up(); err != nil { // opens the UDP sockets
		t.dev.Close()
		return nil, fmt.Errorf("listen on UDP port %d: %w", cfg.ListenPort, err)
	}
	s, err := t.read()
	if err != nil {
		t.dev.Close()
		return nil, err
	}
	t.cfg.ListenPort = s.port
	return t, nil
}

// CheckSources is to be called when addresses, interfaces or routes changed: what is
// sent to a peer leaves from the address that it wrote to only as long as that fits.
func (t *Tunnel) CheckSources() {
	if b, ok := t.udp.(interface{ checkSources() }); ok { // ours, on Linux
		b.checkSources()
	}
}

// ListenPort returns the UDP port in use.
func (t *Tunnel) ListenPort() uint16 { return t.cfg.ListenPort }

// Restore gives the interface again what somebody took from it: MTU, addresses,
// being up. It returns what that was, for people to read.
func (t *Tunnel) Restore() ([]string, error) {
	if t.isClosed() {
		return nil, ErrClosed
	}
	t.setting.Lock()
	defer t.setting.Unlock()
	var changed []string
	if slices.ContainsFunc(t.cfg.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		switch was, err := enableIPv6(t.cfg.Name); {
		case err != nil:
			return nil, fmt.Errorf("restore interface: %w", err)
		case was:
			changed = append(changed, "IPv6")
		}
	}
	more, err := configureLink(t.cfg.Name, t.MTU(), t.cfg.Addresses)
	changed = append(changed, more...)
	if err != nil {
		return changed, fmt.Errorf("restore interface: %w", err)
	}
	return changed, nil
}

// Run serves wg(8) until ctx is done, and returns nil then. It returns ErrClosed
// when the device ends first. A socket file that disappears is made again.
func (t *Tunnel) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	serve := func() {
		t.mu.Lock()
		s := t.socket
		t.mu.Unlock()
		if s != nil {
			serving.Go(func() { t.serve(ctx, s.l) })
		}
	}
	serve()
	check := time.NewTicker(socketCheck)
	defer check.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-t.dev.Wait():
			return ErrClosed
		case <-check.C:
			again, err := t.renewSocket()
			if err != nil && !failing {
				t.cfg.Log.Warn("cannot make the socket for wg(8) again", "err", err)
			}
			failing = err != nil
			if again {
				t.cfg.Log.Warn("the socket for wg(8) was gone, made it again")
				serve()
			}
		}
	}
}

// renewSocket replaces the socket if its file is no longer there.
func (t *Tunnel) renewSocket() (renewed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.socket == nil || t.socket.inPlace() {
		return false, nil
	}
	s, err := listenSocket(t.socket.path)
	if err != nil {
		return false, err
	}
	t.socket.Close()
	t.socket = s
	return true, nil
}

// serve answers clients of l until ctx is done or l is closed.
func (t *Tunnel) serve(ctx context.Context, l *net.UnixListener) {
	var clients sync.WaitGroup
	defer clients.Wait()
	defer context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			clients.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				answer(t.dev, c) // closes c
			})
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			t.cfg.Log.Warn("cannot accept a client of wg(8)", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // out of file descriptors, most likely
			}
		}
	}
}

// Close ends the device and removes the interface and the socket file.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.dev.Close()
	if t.socket == nil {
		return nil
	}
	return t.socket.Close()
}

func (t *Tunnel) isClosed() bool {
	select {
	case <-t.dev.Wait():
		return true
	default:
		return false
	}
}
