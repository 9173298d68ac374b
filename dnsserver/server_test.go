package dnsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/dnstest"
)

const patience = 10 * time.Second // for what should be immediate

const forwardLimit = 2 * time.Second // for the answer to a question that is not ours

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// start runs a server of testConfig's zone on loopback until the test ends.
func start(t *testing.T, c Config) *Server {
	t.Helper()
	s := startEmpty(t, c)
	s.SetZone(newTestZone(t))
	return s
}

// startEmpty is start without a zone.
func startEmpty(t *testing.T, c Config) *Server {
	t.Helper()
	if c.Listen == nil {
		c.Listen = []netip.AddrPort{loopback}
	}
	c.Apex, c.Reverse = testConfig().Apex, testConfig().Reverse
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	return s
}

// ask sends q and returns the answer.
func askServer(t *testing.T, s *Server, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: patience, UDPSize: dns.MaxMsgSize}
	m, _, err := c.Exchange(q, s.Addrs()[0].String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, q.Question[0].Name, err)
	}
	return m
}

// dial opens a connection that speaks DNS messages.
func dial(t *testing.T, s *Server) *dns.Conn {
	t.Helper()
	nc, err := net.DialTimeout("tcp", s.Addrs()[0].String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &dns.Conn{Conn: nc}
}

func TestServerRotates(t *testing.T) {
	s := start(t, Config{})
	s.SetZone(crowdZone(t, crowd(4)))
	first := make(map[string]int)
	for range 200 { // as getaddrinfo does: A and AAAA in turns
		first[askServer(t, s, "udp", asking(t, "crowd.jiji. IN A")).Answer[0].String()]++
		askServer(t, s, "udp", asking(t, "crowd.jiji. IN AAAA"))
	}
	for rr, n := range first {
		if n < 20 {
			t.Errorf("%s came first %d times of 200", rr, n)
		}
	}
	if len(first) != 4 {
		t.Errorf("%d of 4 addresses came first", len(first))
	}
}

func TestBeforeTheFirstZone(t *testing.T) {
	up := dnstest.NewUpstream(t, func(q *dns.Msg) [][]byte { return [][]byte{dnstest.Answer(t, q, 1, nil)} }, nil)
	s := startEmpty(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up.Addr} }})
	for _, name := range []string{"api.jiji. IN A", "nope.jiji. IN AAAA", "1.0.210.10.in-addr.arpa. IN PTR", "api. IN A"} {
		if m := askServer(t, s, "udp", asking(t, name)); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: %s, want SERVFAIL", name, dns.RcodeToString[m.Rcode])
		}
	}
	if m := askServer(t, s, "udp", asking(t, "example.com. IN A")); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("outside: %v", m)
	}
	s.SetZone(newTestZone(t))
	if m := askServer(t, s, "udp", asking(t, "one.jiji. IN A")); len(m.Answer) != 1 {
		t.Errorf("after SetZone: %v", m)
	}
	if n := up.UDP.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want once: ours must not leave", n)
	}
}

func TestServerForwards(t *testing.T) {
	up := dnstest.NewUpstream(t,
		func(q *dns.Msg) [][]byte {
			return [][]byte{dnstest.Answer(t, q, 0, func(m *dns.Msg) { m.Truncated = true })}
		},
		func(q *dns.Msg) []byte { return dnstest.Answer(t, q, 100, func(m *dns.Msg) { m.Authoritative = true }) })
	s := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up.Addr} }})
	for _, c := range []struct {
		network string
		edns    uint16
		size    int
		tc      bool
	}{
		{"udp", 0, 512, true},
		{"udp", 1232, 1232, true},
		{"udp", 4096, 1232, true},
		{"tcp", 0, 65535, false},
	} {
		q := asking(t, "_dmarc.eXample.com. IN A") // B46
		if c.edns > 0 {
			q.SetEdns0(c.edns, false)
		}
		m := askServer(t, s, c.network, q)
		m.Compress = true
		if m.Truncated != c.tc || m.Len() > c.size || !c.tc && len(m.Answer) != 100 || m.Question[0].Name != "_dmarc.eXample.com." ||
			m.Authoritative || !m.RecursionAvailable {
			t.Errorf("%s, EDNS %d: %d bytes of %d: %v", c.network, c.edns, m.Len(), c.size, m)
		}
	}
	waitFor(t, "all to be counted", func() bool { return s.Stats().Queries >= 4 })
	st := s.Stats()
	if st.Forward.Answered != 1 || st.Forward.Hits != 3 || st.Queries != 4 || st.Zone != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestServerTurnsUpstreamFaultsIntoServfail(t *testing.T) {
	for _, c := range []struct {
		name    string
		packets func(q *dns.Msg) [][]byte
		want    int
	}{
		{"silent", func(*dns.Msg) [][]byte { return nil }, dns.RcodeServerFailure},
		{"wrong ID", func(q *dns.Msg) [][]byte { return [][]byte{dnstest.Answer(t, q, 1, func(m *dns.Msg) { m.Id++ })} }, dns.RcodeServerFailure},
		{"refused", func(q *dns.Msg) [][]byte {
			return [][]byte{dnstest.Answer(t, q, 0, func(m *dns.Msg) { m.Rcode = dns.RcodeRefused })}
		}, dns.RcodeRefused},
		{"truncated, TCP closed", func(q *dns.Msg) [][]byte {
			return [][]byte{dnstest.Answer(t, q, 0, func(m *dns.Msg) { m.Truncated = true })}
		}, dns.RcodeServerFailure},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			up := dnstest.NewUpstream(t, c.packets, nil)
			s := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up.Addr} }})
			begin := time.Now()
			m := askServer(t, s, "udp", asking(t, "example.com. IN A"))
			if m.Rcode != c.want || time.Since(begin) > forwardLimit+time.Second {
				t.Errorf("%s after %v, want %s in 2s", dns.RcodeToString[m.Rcode], time.Since(begin), dns.RcodeToString[c.want])
			}
		})
	}
}

// TestZoneDoesNotWait has every place of the forwarder taken by an upstream
// that is silent: the zone is answered all the same, by UDP and on a
// connection whose earlier query is still open; others are told at once.
func TestZoneDoesNotWait(t *testing.T) {
	silent := dnstest.NewUpstream(t, func(*dns.Msg) [][]byte { return nil }, nil)
	s := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{silent.Addr} }})
	c := dial(t, s)
	slow := asking(t, "slow.example. IN A")
	if err := c.WriteMsg(slow); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first query to be forwarded", func() bool { return silent.UDP.Load() > 0 })
	const others = 200 // of one client
	var flood sync.WaitGroup
	for i := range others {
		flood.Go(func() {
			m := askServer(t, s, "udp", asking(t, fmt.Sprintf("other%d.example. IN A", i)))
			if m.Rcode != dns.RcodeServerFailure {
				t.Errorf("nobody answers: %v", m)
			}
		})
	}
	waitFor(t, "the limit of one client", func() bool { return s.Stats().Forward.Busy > 0 })
	begin := time.Now()
	for range 100 {
		if m := askServer(t, s, "udp", asking(t, "one.jiji. IN A")); len(m.Answer) != 1 {
			t.Fatalf("UDP: %v", m)
		}
	}
	quick := asking(t, "one.jiji. IN A")
	if err := c.WriteMsg(quick); err != nil {
		t.Fatal(err)
	}
	if m, err := c.ReadMsg(); err != nil || m.Id != quick.Id || len(m.Answer) != 1 {
		t.Fatalf("TCP: %v, %v; want the answer from the zone first", m, err)
	}
	if d := time.Since(begin); d > forwardLimit/2 {
		t.Errorf("took %v", d)
	}
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil { // no more queries, but one is open
		t.Fatal(err)
	}
	if m, err := c.ReadMsg(); err != nil || m.Id != slow.Id || m.Rcode != dns.RcodeServerFailure {
		t.Fatalf("TCP: %v, %v; want SERVFAIL for the slow one", m, err)
	}
	flood.Wait()
	if st := s.Stats().Forward; st.Busy+st.Failed != 1+others {
		t.Errorf("stats %+v", st)
	}
}

func TestRunEndsWithQueriesOpen(t *testing.T) {
	silent := dnstest.NewUpstream(t, func(*dns.Msg) [][]byte { return nil }, nil)
	s, err := Listen(Config{Listen: []netip.AddrPort{loopback}, Apex: "jiji", Upstreams: func() []netip.AddrPort { return []netip.AddrPort{silent.Addr} }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	c := dial(t, s)
	if err := c.WriteMsg(asking(t, "slow.example. IN A")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the query to be forwarded", func() bool { return silent.UDP.Load() > 0 })
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(forwardLimit / 2):
		t.Error("Run waits for the upstream")
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close after Run: %v", err)
	}
	again, err := Listen(Config{Listen: s.Addrs(), Apex: "jiji"}) // the sockets are closed
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestGarbage(t *testing.T) {
	s := start(t, Config{})
	nc, err := net.Dial("udp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	query, err := asking(t, "one.jiji. IN A").Pack()
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func([]byte)) []byte {
		b := slices.Clone(query)
		change(b)
		return b
	}
	for _, c := range []struct {
		name   string
		packet []byte
		want   int // rcode; -1: no answer
	}{
		{"empty", nil, -1},
		{"short", query[:11], -1},
		{"an answer", with(func(b []byte) { b[2] |= 0x80 }), -1},
		{"noise", []byte(strings.Repeat("\xff", 40)), -1},
		{"header alone", query[:12], dns.RcodeFormatError},
		{"cut in the name", query[:15], dns.RcodeFormatError},
		{"pointer to itself", with(func(b []byte) { b[12], b[13] = 0xc0, 12 }), dns.RcodeFormatError},
		{"two questions", with(func(b []byte) { b[5] = 2 }), dns.RcodeFormatError},
		{"no question", with(func(b []byte) { b[5] = 0 }), dns.RcodeFormatError},
		{"update", with(func(b []byte) { b[2] = 5 << 3 }), dns.RcodeNotImplemented},
		{"notify", with(func(b []byte) { b[2] = 4 << 3 }), dns.RcodeNotImplemented},
		{"opcode 15", with(func(b []byte) { b[2] = 15 << 3 }), dns.RcodeNotImplemented},
		{"fine", query, dns.RcodeSuccess},
	} {
		nc.SetDeadline(time.Now().Add(patience))
		if _, err := nc.Write(c.packet); err != nil {
			t.Fatal(err)
		}
		if c.want < 0 {
			continue // the next answer shows that this got none
		}
		b := make([]byte, 512)
		n, err := nc.Read(b)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b[:n]); err != nil || m.Rcode != c.want || m.Id != binary.BigEndian.Uint16(query) || !m.Response {
			t.Errorf("%s: %v, %v; want %s", c.name, m, err, dns.RcodeToString[c.want])
		}
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	l := &listener{clients: make(map[netip.Addr]int)}
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 210, byte(i >> 8), byte(i)}) }
	for i := range maxPerClient {
		if !l.enter(client(0), false) {
			t.Fatalf("connection %d of one client was turned away", i)
		}
	}
	if l.enter(client(0), false) {
		t.Error("one client has too many connections")
	}
	for i := range maxConns - maxPerClient {
		if !l.enter(client(1+i), false) {
			t.Fatalf("connection %d was turned away", i)
		}
	}
	if l.enter(client(5000), false) {
		t.Error("too many connections")
	}
	for i := range maxStrangers {
		if !l.enter(client(0), true) {
			t.Fatalf("connection %d of strangers was turned away", i)
		}
	}
	if l.enter(client(0), true) {
		t.Error("too many connections of strangers")
	}
	l.leave(client(0), false)
	l.leave(client(0), true)
	if !l.enter(client(0), false) || !l.enter(client(0), true) {
		t.Error("places were not given back")
	}
	for range maxPerClient {
		l.leave(client(0), false)
	}
	for i := range maxConns - maxPerClient {
		l.leave(client(1+i), false)
	}
	if l.conns != 0 || len(l.clients) != 0 {
		t.Errorf("%d connections of %d clients are left", l.conns, len(l.clients))
	}
}

func TestTooManyConnectionsOfOneClient(t *testing.T) {
	s := start(t, Config{})
	conns := make([]*dns.Conn, maxPerClient)
	for i := range conns {
		conns[i] = dial(t, s)
	}
	waitFor(t, "the connections to be accepted", func() bool {
		l := s.streams[0]
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.conns == maxPerClient
	})
	if _, err := dial(t, s).Read(make([]byte, 2)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one connection too many: %v, want it closed", err)
	}
	conns[0].Close()
	waitFor(t, "a place", func() bool {
		c := dial(t, s)
		if err := c.WriteMsg(asking(t, "one.jiji. IN A")); err != nil {
			return false
		}
		_, err := c.ReadMsg()
		return err == nil
	})
	if s.Stats().Rejected == 0 {
		t.Error("not counted")
	}
}

// TestSlowClients: whoever sends nothing, or a query byte by byte, is left.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	s := start(t, Config{})
	silent, dripping := dial(t, s), dial(t, s)
	begin := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, b := range append([]byte{0, 200}, make([]byte, 200)...) {
			if _, err := dripping.Conn.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error("a query of 20 seconds was read to its end")
	})
	for _, c := range []*dns.Conn{silent, dripping} {
		if _, err := c.Conn.Read(make([]byte, 2)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read: %v, want the connection closed", err)
		}
	}
	if d := time.Since(begin); d > readTimeout+2*time.Second {
		t.Errorf("left after %v, want %v", d, readTimeout)
	}
	wg.Wait()
}

// TestClientThatDoesNotRead: answers that nobody takes end the connection.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	s := start(t, Config{})
	s.SetZone(crowdZone(t, crowd(1000)))
	c := dial(t, s)
	c.Conn.(*net.TCPConn).SetReadBuffer(4096)
	q, err := asking(t, "crowd.jiji. IN A").Pack()
	if err != nil {
		t.Fatal(err)
	}
	frame := append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	for range 1 << 20 {
		if _, err := c.Conn.Write(frame); err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Error("the connection stays open")
			}
			return
		}
	}
	t.Error("a million queries were taken")
}

func TestAnswerIsAskedPerQuery(t *testing.T) {
	var mu sync.Mutex
	allowed := true
	s := start(t, Config{Answer: func(int) bool { mu.Lock(); defer mu.Unlock(); return allowed }})
	c := dial(t, s)
	for _, want := range []int{dns.RcodeSuccess, dns.RcodeRefused} {
		q := asking(t, "one.jiji. IN A")
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		if m, err := c.ReadMsg(); err != nil || m.Rcode != want {
			t.Errorf("TCP: %v, %v; want %s", m, err, dns.RcodeToString[want])
		}
		if m := askServer(t, s, "udp", q); m.Rcode != want {
			t.Errorf("UDP: %v; want %s", m, dns.RcodeToString[want])
		}
		mu.Lock()
		allowed = false
		mu.Unlock()
	}
	waitFor(t, "two refusals to be counted", func() bool { return s.Stats().Refused == 2 })
}

func TestListenFails(t *testing.T) {
	first, err := Listen(Config{Listen: []netip.AddrPort{loopback}, Apex: "jiji"})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	taken := first.Addrs()[0]
	_, err = Listen(Config{Listen: []netip.AddrPort{loopback, taken}, Apex: "jiji"})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), "udp4 "+taken.String()) {
		t.Errorf("taken port: error %v", err)
	}
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcpTaken := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	l, err := net.Listen("tcp4", tcpTaken.String())
	pc.Close()
	if err != nil {
		t.Skipf("no port: %v", err)
	}
	defer l.Close()
	_, err = Listen(Config{Listen: []netip.AddrPort{tcpTaken}, Apex: "jiji"})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), "tcp4 "+tcpTaken.String()) {
		t.Errorf("port taken for TCP: error %v", err)
	}
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{Apex: "jiji"}, "no address to listen on"},
		{Config{Apex: "jiji", Listen: make([]netip.AddrPort, 1)}, "listen on invalid AddrPort: want an IP address and a port"},
		{Config{Listen: []netip.AddrPort{loopback}}, `apex: "" has a label of 0 characters, want 1 to 63`},
	} {
		if _, err := Listen(c.config); err == nil || err.Error() != c.want {
			t.Errorf("error %v, want %s", err, c.want)
		}
	}
}

func TestNeverAsksItself(t *testing.T) {
	var own []netip.AddrPort
	s := start(t, Config{
		Listen:    []netip.AddrPort{loopback, netip.MustParseAddrPort("0.0.0.0:0")},
		Upstreams: func() []netip.AddrPort { return own },
	})
	own = []netip.AddrPort{s.Addrs()[0], netip.AddrPortFrom(netip.MustParseAddr("127.0.0.5"), s.Addrs()[1].Port())}
	if _, err := s.Resolve(t.Context(), "example.com", "A"); err == nil || !strings.HasSuffix(fmt.Sprint(err), "no upstream") {
		t.Errorf("error %v, want that there is no upstream", err)
	}
	if s.own(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), s.Addrs()[1].Port())) {
		t.Error("an address of nobody is taken for ours")
	}
}

func TestResolve(t *testing.T) {
	up := dnstest.NewUpstream(t, func(q *dns.Msg) [][]byte { return [][]byte{dnstest.Answer(t, q, 1, nil)} }, nil)
	s := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up.Addr} }})
	for _, c := range []struct{ name, qtype, want string }{
		{"one.jiji", "A", "ours NOERROR [one.jiji.\t5\tIN\tA\t10.210.0.10] 5s invalid AddrPort"},
		{"nope.jiji", "aaaa", "ours NXDOMAIN [] 5s invalid AddrPort"},
		{"one.jiji", "ANY", "ours REFUSED [] 0s invalid AddrPort"},
		{"example.com", "A", "NOERROR [example.com.\t300\tIN\tA\t198.51.100.0] 5m0s " + up.Addr.String()},
		{"4.3.168.192.in-addr.arpa", "PTR", "ours NXDOMAIN [] 3h0m0s invalid AddrPort"},
		{"example.com", "ADDRESS", `unknown record type "ADDRESS"`},
		{"a..b", "A", `"a..b" is not a domain name`},
	} {
		r, err := s.Resolve(t.Context(), c.name, c.qtype)
		got := fmt.Sprintf("%s %v %v %v", r.Rcode, r.Records, r.TTL, r.Upstream)
		if r.Ours {
			got = "ours " + got
		}
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s %s: %s, want %s", c.name, c.qtype, got, c.want)
		}
	}
}

// TestDig asks as people do.
func TestDig(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("needs dig (Debian: bind9-dnsutils)")
	}
	s := start(t, Config{})
	s.SetZone(mustZone(t, func(c *ZoneConfig) {
		c.Nodes = append(c.Nodes, Node{ID: "a"})
		c.Services = append(c.Services, crowd(200))
	}))
	addr := s.Addrs()[0]
	dig := func(args string) string {
		t.Helper()
		cmd := exec.Command("dig", append([]string{"@" + addr.Addr().String(), "-p", fmt.Sprint(addr.Port()), "+tries=1", "+timeout=5"}, strings.Fields(args)...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	for _, c := range []struct {
		args string
		want []string
	}{
		{"+short api.jiji", []string{"10.210.0.9\n10.210.1.15\n10.210.3.30\n"}},
		{"+short +tcp api.jiji", []string{"10.210.0.9\n10.210.1.15\n10.210.3.30\n"}},
		{"+short web1.node.jiji aaaa", []string{"fdcc:630d:cd29:66c4:3366:9112:5448:bbb2\n"}},
		{"+short -x 10.210.1.15", []string{"bbbb2222bbbb.api.jiji.\n"}},
		{"+short _8080._tcp.api.jiji srv", []string{"0 0 8080 aaaa1111aaaa.api.jiji.\n1 0 8080 bbbb2222bbbb.api.jiji.\n2 0 8080 cccc3333cccc.api.jiji.\n"}},
		{"+short -x fdcc:630d:cd29:66c4:3366:9112:5448:bbb2", []string{"web1.node.jiji.\n"}},
		{"+short jiji soa", []string{"web1.node.jiji. hostmaster.jiji. 42 3600 600 86400 5\n"}},
		{"nope.jiji", []string{"status: NXDOMAIN", "flags: qr aa rd ra; QUERY: 1, ANSWER: 0, AUTHORITY: 1", "EDNS: version: 0, flags:; udp: 1232"}},
		{"api.jiji aaaa", []string{"status: NOERROR", "ANSWER: 0, AUTHORITY: 1", "jiji.\t\t\t5\tIN\tSOA"}},
		{"+noedns aPi.jIjI", []string{"aPi.jIjI.\t\t5\tIN\tA\t10.210.0.9", "ADDITIONAL: 0"}},
		{"api.jiji any +notcp", []string{"status: REFUSED"}},
		{"jiji axfr", []string{"Transfer failed"}},
		{"+edns=1 +noednsneg api.jiji", []string{"status: BADVERS"}},
		{"+opcode=status api.jiji", []string{"status: NOTIMP"}},
		{"ch txt version.bind", []string{"status: REFUSED"}},
		{"+ignore +noedns crowd.jiji", []string{"flags: qr aa tc rd ra", "ANSWER: 30"}},
		{"+ignore crowd.jiji", []string{"flags: qr aa tc rd ra"}},
		{"crowd.jiji", []string{"Truncated, retrying in TCP mode", "ANSWER: 200"}},
		{"+subnet=192.0.2.0/24 +cookie +nsid one.jiji", []string{"status: NOERROR", "10.210.0.10"}},
	} {
		out := dig(c.args)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("dig %s: want %q in\n%s", c.args, want, out)
			}
		}
		if strings.Contains(out, "WARNING") && !strings.Contains(c.args, "+opcode") {
			t.Errorf("dig %s warns:\n%s", c.args, out)
		}
	}
}

func mustZone(t *testing.T, change func(*ZoneConfig)) *Zone {
	t.Helper()
	c := testConfig()
	change(&c)
	z, err := NewZone(c)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// waitFor waits until what is said is true.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}
