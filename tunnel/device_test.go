package tunnel

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A memNet delivers datagrams between memBinds. What is sent to an address that
// nobody has is lost.
type memNet struct {
	mu   sync.Mutex // guards the rest
	at   map[netip.AddrPort]*memBind
	sent map[netip.AddrPort]int         // handshake initiations, by destination
	hold map[netip.AddrPort]memDatagram // initiations, by destination, until there are two; nil: none is held
}

type memDatagram struct {
	from netip.AddrPort
	data []byte
}

// A memBind has several addresses, and sends from the first.
type memBind struct {
	net    *memNet
	addrs  []netip.AddrPort
	queue  chan memDatagram
	closed chan struct{}
}

type memEndpoint struct{ netip.AddrPort }

func (e memEndpoint) ClearSrc()           {}
func (e memEndpoint) SrcToString() string { return "" }
func (e memEndpoint) DstToString() string { return e.String() }
func (e memEndpoint) DstToBytes() []byte  { b, _ := e.MarshalBinary(); return b }
func (e memEndpoint) DstIP() netip.Addr   { return e.Addr() }
func (e memEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }

func newMemNet() *memNet {
	return &memNet{at: make(map[netip.AddrPort]*memBind), sent: make(map[netip.AddrPort]int)}
}

func (n *memNet) bind(addrs ...netip.AddrPort) *memBind {
	b := &memBind{net: n, addrs: addrs, queue: make(chan memDatagram, 1024)}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addrs {
		n.at[a] = b
	}
	return b
}

// initiations returns how many handshakes were sent to an address.
func (n *memNet) initiations(to netip.AddrPort) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent[to]
}

func (b *memBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	closed := make(chan struct{})
	b.closed = closed
	if port == 0 {
		port = 40000
	}
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case d := <-b.queue:
			sizes[0] = copy(packets[0], d.data)
			eps[0] = memEndpoint{d.from}
			return 1, nil
		}
	}}, port, nil
}

func (b *memBind) Close() error {
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *memBind) Send(packets [][]byte, ep conn.Endpoint) error {
	to := ep.(memEndpoint).AddrPort
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	for _, p := range packets {
		if p[0] == device.MessageInitiationType {
			b.net.sent[to]++
			if b.net.hold != nil {
				b.net.cross(to, memDatagram{b.addrs[0], bytes.Clone(p)})
				continue
			}
		}
		// Handshakes find room, however much data there is.
		if other := b.net.at[to]; other != nil && (p[0] != device.MessageTransportType || len(other.queue) < cap(other.queue)/2) {
			other.queue <- memDatagram{b.addrs[0], bytes.Clone(p)}
		}
	}
	return nil
}

// cross holds an initiation until there is one in the other direction, and then
// delivers both; n.mu is held.
func (n *memNet) cross(to netip.AddrPort, d memDatagram) {
	n.hold[to] = d
	if len(n.hold) < 2 {
		return
	}
	for to, d := range n.hold {
		n.at[to].queue <- d
	}
	n.hold = nil
}

func (b *memBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return memEndpoint{a}, err
}

func (b *memBind) SetMark(uint32) error { return nil }
func (b *memBind) BatchSize() int       { return 1 }

// A node is a tunnel without an interface: packets go through tun's channels.
type node struct {
	*Tunnel
	tun *tuntest.ChannelTUN
	key wgkey.Private
	ip  netip.Addr
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func newNode(t *testing.T, n *memNet, ip string, addrs ...netip.AddrPort) *node {
	t.Helper()
	nd := &node{tun: tuntest.NewChannelTUN(), key: wgkey.NewPrivate(), ip: netip.MustParseAddr(ip)}
	var err error
	nd.Tunnel, err = start(Config{Key: nd.key, Log: slog.New(slog.DiscardHandler)}, nd.tun.TUN(), n.bind(addrs...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nd.Close() })
	return nd
}

// peer is this node as others want it.
func (n *node) peer() Peer {
	return Peer{Key: n.key.Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(n.ip, 32)}, Keepalive: 25 * time.Second}
}

func (n *node) set(t *testing.T, peers ...Peer) []Change {
	t.Helper()
	changes, err := n.SetPeers(peers)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// status is what n has of a peer.
func (n *node) status(t *testing.T, key wgkey.Public) PeerStatus {
	t.Helper()
	peers, err := n.Peers()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(peers, func(p PeerStatus) bool { return p.Key == key })
	if i < 0 {
		t.Fatalf("no peer %v", key)
	}
	return peers[i]
}

// mustGet sends a packet from one node to the other until one arrives, but gives
// up before WireGuard's own timers (5 s) can have helped.
func mustGet(t *testing.T, from, to *node) {
	t.Helper()
	packet := tuntest.Ping(to.ip, from.ip)
	deadline := time.After(3 * time.Second)
	for {
		select {
		case from.tun.Outbound <- packet:
		case <-deadline:
			t.Fatalf("the device of %v does not read", from.ip)
		}
		select {
		case got := <-to.tun.Inbound:
			if !bytes.Equal(got, packet) {
				t.Fatalf("got %x, want %x", got, packet)
			}
			return
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("no packet from %v arrived at %v", from.ip, to.ip)
		}
	}
}

// drain throws away what arrives at a node, until the test ends.
func (n *node) drain(t *testing.T) {
	go func() {
		for {
			select {
			case <-n.tun.Inbound:
			case <-t.Context().Done():
				return
			}
		}
	}()
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 3 s", what)
		}
	}
}

// running starts Run, and returns what it will return.
func running(ctx context.Context, tun *Tunnel) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- tun.Run(ctx) }()
	return ended
}

func within(t *testing.T, what string, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing happened for 10 s", what)
		return nil
	}
}

var (
	a1 = addrPort("192.0.2.1:51820")
	b1 = addrPort("192.0.2.2:51820")
	c1 = addrPort("192.0.2.3:51820")
	b2 = addrPort("[2001:db8::2]:51820")
)

func TestPacketsBothWays(t *testing.T) {
	n := newMemNet()
	a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1)
	a.set(t, b.peer())
	b.set(t, a.peer())
	if err := a.Move(b.key.Public(), b1); err != nil {
		t.Fatal(err)
	}
	mustGet(t, a, b)
	mustGet(t, b, a) // on the endpoint that it saw

	p := b.status(t, a.key.Public())
	if p.Endpoint != a1 || p.LastHandshake.IsZero() || p.RxBytes == 0 || p.TxBytes == 0 || p.Keepalive != 25*time.Second {
		t.Errorf("got %+v", p)
	}
}

func TestNewPeerSendsNothing(t *testing.T) {
	n := newMemNet()
	a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1)
	b.set(t, a.peer())
	for _, peer := range []Peer{b.peer(), {Key: b.key.Public()}, b.peer()} { // its keepalive on, off, on
		a.set(t, peer)
	}
	if got, want := a.status(t, b.key.Public()).Keepalive, 25*time.Second; got != want {
		t.Errorf("keepalive %v, want %v", got, want)
	}
	// Had it tried, this would do nothing for 5 s.
	if err := a.dev.LookupPeer(device.NoisePublicKey(b.key.Public())).SendHandshakeInitiation(false); err == nil {
		t.Error("a handshake was sent without an endpoint, or one before made this one wait")
	}

	b.set(t)
	a.set(t)
	a.set(t, b.peer())
	b.set(t, a.peer())
	if err := b.Move(a.key.Public(), a1); err != nil { // now a learns the endpoint from b
		t.Fatal(err)
	}
	mustGet(t, b, a)
	mustGet(t, a, b)
	if got := n.initiations(b1); got != 0 {
		t.Errorf("a sent %d handshakes, want none", got)
	}
}

func TestMove(t *testing.T) {
	n := newMemNet()
	a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1, b2)
	a.set(t, b.peer())
	b.set(t, a.peer())
	dead := addrPort("192.0.2.99:51820")
	bKey := b.key.Public()

	t.Run("at once after a dead one", func(t *testing.T) {
		if err := a.Move(bKey, dead); err != nil {
			t.Fatal(err)
		}
		a.tun.Outbound <- tuntest.Ping(b.ip, a.ip)
		if err := a.Move(bKey, b1); err != nil {
			t.Fatal(err)
		}
		mustGet(t, a, b)
		if got := n.initiations(dead); got != 1 {
			t.Errorf("%d handshakes to the dead endpoint, want 1", got)
		}
		if got := n.initiations(b1); got != 1 {
			t.Errorf("%d handshakes to the live endpoint, want 1", got)
		}
	})

	// Packets that wait or come at the same time must not start a handshake of
	// their own, on the new endpoint or the old.
	t.Run("under traffic", func(t *testing.T) {
		b.drain(t)
		go func() {
			packet := tuntest.Ping(b.ip, a.ip)
			for t.Context().Err() == nil {
				select {
				case a.tun.Outbound <- packet:
				case <-t.Context().Done():
				}
			}
		}()
		for i := range 40 {
			time.Sleep(25 * time.Millisecond) // more than WireGuard's 20
			to := []netip.AddrPort{b1, b2}[i%2]
			before, moved := n.initiations(to), time.Now()
			if i%4 == 0 { // packets pile up
				if err := a.Move(bKey, dead); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.Move(bKey, to); err != nil {
				t.Fatal(err)
			}
			eventually(t, fmt.Sprintf("handshake %d", i), func() bool {
				return a.status(t, bKey).LastHandshake.After(moved)
			})
			if got := n.initiations(to) - before; got != 1 {
				t.Fatalf("move %d: %d handshakes to %v, want 1", i, got, to)
			}
		}
	})

	t.Run("refused", func(t *testing.T) {
		for _, tt := range []struct {
			key  wgkey.Public
			to   netip.AddrPort
			want string
		}{
			{bKey, netip.AddrPort{}, "want an address and a port"},
			{bKey, addrPort("192.0.2.2:0"), "want an address and a port"},
			{wgkey.Public{9}, b1, "there is no such peer"},
		} {
			if err := a.Move(tt.key, tt.to); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Move(%v, %v): %v, want %q", tt.key, tt.to, err, tt.want)
			}
		}
	})

	t.Run("an IPv4 address in IPv6 form", func(t *testing.T) {
		if err := a.Move(bKey, netip.AddrPortFrom(netip.AddrFrom16(dead.Addr().As16()), dead.Port())); err != nil {
			t.Fatal(err)
		}
		if got := a.status(t, bKey).Endpoint; got != dead {
			t.Errorf("endpoint %v, want %v", got, dead)
		}
	})
}

func TestAsk(t *testing.T) {
	n := newMemNet()
	a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1)
	a.set(t, b.peer())
	b.set(t, a.peer())
	key := b.key.Public()

	if err := a.Ask(wgkey.Public{9}); err == nil || !strings.Contains(err.Error(), "there is no such peer") {
		t.Errorf("a stranger: %v", err)
	}
	peer := a.dev.LookupPeer(device.NoisePublicKey(key))
	peer.SetEndpointFromPacket(memEndpoint{b1}) // as if from a packet
	if err := a.Ask(key); err != nil {
		t.Fatal(err)
	}
	eventually(t, "handshake", func() bool { return !a.status(t, key).LastHandshake.IsZero() })
	if err := a.Ask(key); err != nil {
		t.Fatal(err)
	}
	if got := n.initiations(b1); got != 1 {
		t.Errorf("%d handshakes within 5 s, want 1", got)
	}
	mustGet(t, a, b)

	c := newNode(t, n, "10.210.3.1", c1)
	a.set(t, b.peer(), c.peer())
	if err := a.Ask(c.key.Public()); err == nil || !strings.Contains(err.Error(), "no known endpoint") {
		t.Errorf("without an endpoint: %v", err)
	}
	c.set(t, a.peer())
	if err := a.Move(c.key.Public(), c1); err != nil {
		t.Errorf("given one: %v", err)
	}
	mustGet(t, a, c)
}

func TestDiscard(t *testing.T) {
	n := newMemNet()
	a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1)
	a.set(t, b.peer())
	b.set(t, a.peer())
	key := b.key.Public()
	a.Discard(wgkey.Public{9}) // nobody's
	old := tuntest.Ping(b.ip, a.ip)
	for range 20 { // for which there is no session
		a.tun.Outbound <- old
	}
	a.tun.Outbound <- tuntest.Ping(netip.MustParseAddr("10.210.9.9"), a.ip) // nobody's: it was read, so the others wait
	a.Discard(key)
	fresh := tuntest.Ping(b.ip, a.ip)
	fresh[len(fresh)-1] ^= 0xff
	a.tun.Outbound <- fresh
	if err := a.Move(key, b1); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-b.tun.Inbound:
		if !bytes.Equal(got, fresh) {
			t.Error("a packet came that was discarded")
		}
	case <-time.After(3 * time.Second):
		t.Error("the packet that came after did not arrive")
	}
}

// wg sets what wg(8) would with that text.
func (n *node) wg(t *testing.T, text string) {
	t.Helper()
	if err := n.dev.IpcSet(text); err != nil {
		t.Fatal(err)
	}
}

func TestSetPeersPutsBack(t *testing.T) {
	n := newMemNet()
	a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1)
	stranger, other := wgkey.NewPrivate().Public(), Peer{Key: wgkey.Public{7}, AllowedIPs: prefixes("10.210.3.0/24")}
	want := []Peer{b.peer(), other}
	b.set(t, a.peer())
	if got := a.set(t, want...); len(got) != 2 {
		t.Errorf("changes %v, want two peers added", got)
	}
	if err := a.Move(b.key.Public(), b1); err != nil {
		t.Fatal(err)
	}
	mustGet(t, a, b)
	if got := a.set(t, want...); len(got) != 0 {
		t.Errorf("changes %v, want none", got)
	}

	key, none := b.key.Public(), wgkey.Public{}
	for _, tt := range []struct {
		name, wg string
		want     []Change
	}{
		{"private key", "private_key=" + hexOf(stranger), []Change{{none, "private key"}}},
		{"port", "listen_port=4", []Change{{none, "listen port"}}},
		{"fwmark", "fwmark=4", []Change{{none, "fwmark"}}},
		{"stranger", "public_key=" + hexOf(stranger) + "\nallowed_ip=10.9.9.9/32", []Change{{stranger, "removed"}}},
		{"peer gone", "public_key=" + hexOf(other.Key) + "\nremove=true", []Change{{other.Key, "added"}}},
		{"keepalive", "public_key=" + hexOf(key) + "\npersistent_keepalive_interval=0", []Change{{key, "keepalive"}}},
		{"preshared key", "public_key=" + hexOf(key) + "\npreshared_key=" + hexOf(stranger), []Change{{key, "preshared key"}}},
		{"more allowed IPs", "public_key=" + hexOf(key) + "\nallowed_ip=::/0", []Change{{key, "allowed ips"}}},
		{"other allowed IPs", "public_key=" + hexOf(key) + "\nreplace_allowed_ips=true\nallowed_ip=10.210.3.0/24", []Change{{key, "allowed ips"}, {other.Key, "allowed ips"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a.wg(t, tt.wg+"\n")
			if got := a.set(t, want...); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("changes %v, want %v", got, tt.want)
			}
			if got := a.set(t, want...); len(got) != 0 {
				t.Errorf("then changes %v, want none", got)
			}
			if got := a.status(t, key).Endpoint; got != b1 {
				t.Errorf("endpoint %v, want %v as before", got, b1)
			}
		})
	}
	time.Sleep(25 * time.Millisecond) // more than WireGuard's 20
	if err := a.Move(key, b1); err != nil {
		t.Fatal(err)
	}
	mustGet(t, a, b)
}

// Whatever the device has, SetPeers leads to what is wanted.
func TestSetPeersReachesAnything(t *testing.T) {
	nd := newNode(t, newMemNet(), "10.210.1.1", a1)
	r := rand.New(rand.NewPCG(1, 2))
	random := func() []Peer {
		var peers []Peer
		for k := range byte(6) {
			if r.IntN(3) == 0 {
				continue
			}
			peers = append(peers, Peer{Key: wgkey.Public{k + 1}, Keepalive: time.Duration(r.IntN(2)*25) * time.Second})
		}
		for i := range byte(12) {
			if len(peers) == 0 || r.IntN(3) == 0 {
				continue
			}
			p := &peers[r.IntN(len(peers))]
			p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 210, i, 1}), 20+int(i)%5))
			// Several are the same once masked; only the first to want it may.
			if (want{key: nd.key, peers: peers}).check() != nil {
				p.AllowedIPs = p.AllowedIPs[:len(p.AllowedIPs)-1]
			}
		}
		r.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
		return peers
	}
	for i := range 300 {
		peers := random()
		nd.set(t, peers...)
		got, err := nd.Peers()
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(peers, func(a, b Peer) int { return bytes.Compare(a.Key[:], b.Key[:]) })
		if len(got) != len(peers) {
			t.Fatalf("round %d: %d peers, want %d", i, len(got), len(peers))
		}
		for j, p := range peers {
			ips := canonical(p.AllowedIPs)
			slices.SortFunc(ips, netip.Prefix.Compare)
			slices.SortFunc(got[j].AllowedIPs, netip.Prefix.Compare)
			if got[j].Key != p.Key || got[j].Keepalive != p.Keepalive || !slices.Equal(got[j].AllowedIPs, ips) {
				t.Fatalf("round %d: got %+v, want %+v", i, got[j], p)
			}
		}
		if again := nd.set(t, peers...); len(again) != 0 {
			t.Fatalf("round %d: again changes %v", i, again)
		}
	}
}

func TestSetPeersRefused(t *testing.T) {
	nd := newNode(t, newMemNet(), "10.210.1.1", a1)
	nd.set(t, Peer{Key: wgkey.Public{1}})
	_, err := nd.SetPeers([]Peer{{Key: wgkey.Public{2}}, {Key: wgkey.Public{2}}})
	if err == nil || !strings.Contains(err.Error(), "wanted twice") {
		t.Errorf("got %v", err)
	}
	nd.status(t, wgkey.Public{1}) // still there
}

func TestDeviceDies(t *testing.T) {
	nd := newNode(t, newMemNet(), "10.210.1.1", a1)
	ended := running(t.Context(), nd.Tunnel)
	nd.dev.Close() // as it does when the TUN is gone
	if err := within(t, "Run", ended); err != ErrClosed {
		t.Errorf("Run: %v, want ErrClosed", err)
	}
	_, peersErr := nd.Peers()
	_, setErr := nd.SetPeers(nil)
	_, restoreErr := nd.Restore()
	for what, err := range map[string]error{
		"Peers": peersErr, "SetPeers": setErr, "Restore": restoreErr,
		"Move": nd.Move(wgkey.Public{1}, b1), "Ask": nd.Ask(wgkey.Public{1}),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", what, err)
		}
	}
	if err := nd.Close(); err != nil {
		t.Error(err)
	}
}

// Nothing that the device says, at any level, holds the private key.
func TestLogHidesPrivateKey(t *testing.T) {
	var mu sync.Mutex
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return logged.Write(p)
	}), &slog.HandlerOptions{Level: slog.LevelDebug}))

	n := newMemNet()
	key := wgkey.NewPrivate()
	tun, err := start(Config{Key: key, Log: log}, tuntest.NewChannelTUN().TUN(), n.bind(a1))
	if err != nil {
		t.Fatal(err)
	}
	tun.SetPeers([]Peer{{Key: wgkey.Public{1}, Keepalive: time.Second}})
	tun.Move(wgkey.Public{1}, b1)
	tun.dev.IpcSet("private_key=" + strings.Repeat("1", 64) + "\n")
	tun.SetPeers(nil)
	tun.dev.IpcSet("nonsense\n")
	tun.Close()

	mu.Lock()
	defer mu.Unlock()
	b := key.Bytes()
	for _, secret := range []string{hex.EncodeToString(b[:]), base64.StdEncoding.EncodeToString(b[:])} {
		if strings.Contains(logged.String(), secret) {
			t.Error("the log holds the private key")
		}
	}
	for _, want := range []string{`level=DEBUG msg=wireguard detail=`, `level=ERROR msg=wireguard detail=`} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("no line with %q", want)
		}
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
