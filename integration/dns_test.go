//go:build linux

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// What a container is answered, by the name server of its server.
func TestDNSAnswersInTheMesh(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1 := m.servers[0]
	outside := m.Server("outside").On(m.lan)
	startResolver(t, outside, "192.0.2.1")
	web1.SetResolvers(outside.Addr(m.lan))
	m.startAll()
	a := web1.Container("a", "10.210.0.10")
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10", "--project", "shop", "--id", "0123456789abcdef")
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.11", "--id", "fedcba9876543210")
	management := status(t, m.servers[1]).Server.ManagementIP.String()

	for _, c := range []struct {
		question string // of dig
		want     string // rcode, flag of authority, answers, and the type of the authority section's record
	}{
		{"api.jiji", "NOERROR aa 10.210.0.10"}, // its own project's
		{"API.Jiji", "NOERROR aa 10.210.0.10"},
		{"+search api", "NOERROR aa 10.210.0.10"},
		{"+tcp api.jiji", "NOERROR aa 10.210.0.10"},
		{"+noedns api.jiji", "NOERROR aa 10.210.0.10"},
		{"shop-api.jiji", "NOERROR aa 10.210.0.10"},
		{"api.web1.jiji", "NOERROR aa 10.210.0.10 10.210.0.11"},
		{"0123456789ab.api.jiji", "NOERROR aa 10.210.0.10"},
		{"api.jiji AAAA", "NOERROR aa SOA"},
		{"+tcp api.jiji AAAA", "NOERROR aa SOA"},
		{"-x 10.210.0.10", "NOERROR aa 0123456789ab.api.jiji."},
		{"-x 10.210.0.200", "NXDOMAIN aa SOA"},
		{"-x 10.210.1.1", "NOERROR aa web2.node.jiji."},
		{"web2.node.jiji", "NOERROR aa 10.210.1.1"},
		{"web2.node.jiji AAAA", "NOERROR aa " + management},
		{"-x " + management, "NOERROR aa web2.node.jiji."},
		{"nothing.jiji", "NXDOMAIN aa SOA"},
		{"+tcp nothing.jiji", "NXDOMAIN aa SOA"},
		{"node.jiji", "NOERROR aa SOA"},
		{"jiji SOA", "NOERROR aa web1.node.jiji."},
		{"jiji NS", "NOERROR aa web1.node.jiji."},
		{"www.example.org", "NOERROR 192.0.2.1"},
		{"+tcp www.example.org", "NOERROR 192.0.2.1"},
		{"absent.example.org", "NXDOMAIN SOA"},
		{"large.example.org TXT", "NOERROR large"}, // truncated, and asked again by TCP
	} {
		if got := ask(t, a.Host, strings.Fields(c.question)...); got != c.want {
			t.Errorf("%-30s %s, want %s", c.question, got, c.want)
		}
	}
	if got := ask(t, m.servers[1].Host, "@10.210.0.1", "api.jiji"); got != "NOERROR aa 10.210.0.10 10.210.0.11" {
		t.Errorf("another server's node is answered %s", got)
	}
	for name, want := range map[string]string{"api": "10.210.0.10", "www.example.org": "192.0.2.1"} {
		if out := a.Run("getent", "ahostsv4", name); !strings.Contains(out, want) {
			t.Errorf("getent: %s is %s", name, out)
		}
	}
}

// TestDNSShow1Resolvers: whatever program asks in a container, it gets the same.
func TestDNSShow1Resolvers(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1 := m.servers[0]
	outside := m.Server("outside").On(m.lan)
	startResolver(t, outside, "192.0.2.1")
	web1.SetResolvers(outside.Addr(m.lan))
	m.startAll()
	a := web1.Container("a", "10.210.0.10")
	for _, args := range [][]string{
		{"api", "--ip", "10.210.0.11", "--project", "shop", "--id", "0123456789abcdef"},
		{"api", "--ip", "10.210.0.12", "--project", "shop", "--instance", "2"},
		{"one", "--ip", "10.210.0.13"},
		{"sick", "--ip", "10.210.0.14", "--health", "unhealthy"},
	} {
		web1.Run("jiji-node", append([]string{"service", "register"}, args...)...)
	}
	management := status(t, m.servers[1]).Server.ManagementIP.String()
	both := "10.210.0.11 10.210.0.12"
	names := []struct{ name, v4, v6 string }{ // no address: the program says so
		{"api.jiji", both, ""},
		{"API.Jiji", both, ""},
		{"api.jiji.", both, ""},
		{"api", both, ""}, // by the search list
		{"shop-api", both, ""},
		{"shop-api-2.jiji", "10.210.0.12", ""},
		{"api.web1.jiji", both, ""},
		{"0123456789ab.api.jiji", "10.210.0.11", ""},
		{"one.jiji", "10.210.0.13", ""},
		{"web2.node.jiji", "10.210.1.1", management},
		{"sick.jiji", "", ""},
		{"nothing.jiji", "", ""},
		{"www.example.org", "192.0.2.1", ""},
		{"absent.example.org", "", ""},
	}
	goresolve := t.TempDir() + "/goresolve"
	build := exec.Command("go", "build", "-o", goresolve, "./testdata/goresolve")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	musl := compile(t, "musl-gcc", "testdata/resolve.c")
	column := func(n int) func(string) string {
		return func(line string) string {
			if f := strings.Fields(line); n < len(f) {
				return f[n]
			}
			return ""
		}
	}
	absolute := func(name string) string { // for tools without a search list
		if !strings.Contains(name, ".") {
			name += ".jiji"
		}
		return strings.TrimSuffix(name, ".") + "."
	}
	for _, r := range []struct {
		program string
		v6      bool // it asks for both
		run     func(name string) (string, error)
		address func(line string) string
	}{
		{"getent", true, func(name string) (string, error) { return a.Try("getent", "ahosts", name) }, column(0)},
		{"musl", true, func(name string) (string, error) { return a.Try(musl, name, "both") }, column(0)},
		{"busybox nslookup", true, func(name string) (string, error) {
			out, err := a.Try("busybox", "nslookup", absolute(name))
			var lines strings.Builder
			_, out, _ = strings.Cut(out, "\n\n") // the name server itself
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "Address") {
					lines.WriteString(line)
				}
			}
			return lines.String(), err
		}, column(1)},
		{"Go", true, func(name string) (string, error) { return a.Try(goresolve, name) }, column(0)},
		{"python", true, func(name string) (string, error) {
			return a.Try("python3", "-c", "import socket, sys\nfor a in socket.getaddrinfo(sys.argv[1], None): print(a[4][0])", name)
		}, column(0)},
		{"dig", false, func(name string) (string, error) { return a.Try("dig", "+search", "+short", "+tries=1", name) }, column(0)},
		{"drill", false, func(name string) (string, error) {
			out, err := a.Try("drill", absolute(name))
			_, out, _ = strings.Cut(out, ";; ANSWER SECTION:\n")
			out, _, _ = strings.Cut(out, "\n\n")
			return out, err
		}, column(4)},
		{"kdig", false, func(name string) (string, error) { return a.Try("kdig", "+short", "+retry=0", absolute(name)) }, column(0)},
	} {
		for _, n := range names {
			out, err := r.run(n.name)
			var got []string
			for line := range strings.Lines(out) {
				if ip, perr := netip.ParseAddr(r.address(line)); perr == nil && !slices.Contains(got, ip.String()) {
					got = append(got, ip.String())
				}
			}
			slices.Sort(got)
			want := strings.Fields(n.v4)
			if r.v6 && n.v6 != "" {
				want = append(want, n.v6)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %s is %v, want %v (%v)\n%s", r.program, n.name, got, want, err, out)
			}
		}
	}
}

// Two projects with a postgres each: every container gets its own, wherever that runs.
func TestDNSShow7ProjectsApart(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	m.startAll()
	for i, project := range []string{"shop", "blog", "wiki"} {
		ip := fmt.Sprintf("10.210.0.%d", 10+i)
		c := web1.Container(project, ip)
		web1.Run("jiji-node", "service", "register", "web", "--ip", ip, "--project", project)
		if project != "wiki" {
			web1.Run("jiji-node", "service", "register", "postgres", "--ip", fmt.Sprintf("10.210.0.%d", 20+i), "--project", project)
		}
		want := map[string]string{"shop": "10.210.0.20", "blog": "10.210.0.21", "wiki": "10.210.0.20 10.210.0.21"}[project]
		if got := ask(t, c.Host, "postgres.jiji"); got != "NOERROR aa "+want {
			t.Errorf("%s is answered %s, want %s", project, got, want)
		}
		if out := c.Run("getent", "ahostsv4", "postgres"); !strings.Contains(out, strings.Fields(want)[0]) || strings.Count(out, "STREAM") != len(strings.Fields(want)) {
			t.Errorf("getent in %s says\n%s, want %s", project, out, want)
		}
	}
	if got := ask(t, web1.Host, "@10.210.0.1", "postgres.jiji"); got != "NOERROR aa 10.210.0.20 10.210.0.21" {
		t.Errorf("the server itself is answered %s, want both", got)
	}
}

// Weak hosts answer on every interface for every address. Here the firewall drops what
// comes by the uplink, before the name server could refuse it.
func TestDNSShow7UplinkIsRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1 := m.servers[0]
	neighbour := m.Server("neighbour").On(m.lan)
	m.startAll()
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
	neighbour.Run("ip", "route", "add", "10.210.0.0/24", "via", web1.Addr(m.lan).String())
	// With an address of the mesh for a source an answer would go into the mesh.
	neighbour.Run("ip", "address", "add", "10.210.1.77/32", "dev", "lo")

	before := status(t, web1).DNS
	answers := web1.Capture("jiji0", "port 53")
	clear := web1.Link(m.lan).Capture("src port 53")
	for _, question := range []string{"api.jiji", "+tcp api.jiji", "www.example.org", "web1.node.jiji", "-b 10.210.1.77 api.jiji"} {
		args := append([]string{"+tries=1", "+timeout=1", "@10.210.0.1"}, strings.Fields(question)...)
		if out, err := neighbour.Try("dig", args...); err == nil {
			t.Errorf("%s is answered:\n%s", question, out)
		}
	}
	if now := status(t, web1).DNS; now.Queries != before.Queries || now.Refused != before.Refused {
		t.Errorf("%d queries reached the name server, want none", now.Queries+now.Refused-before.Queries-before.Refused)
	}
	if answers.Count() != 0 || clear.Count() != 0 {
		t.Errorf("%d packets in the mesh, %d answers outside of it; want none", answers.Count(), clear.Count())
	}

	// The server itself, a container and another server; the engine's default bridge is
	// TestContainersEngineDNS's.
	for _, h := range []*lab.Host{web1.Host, web1.Container("a", "10.210.0.11").Host, m.servers[1].Host} {
		if got := ask(t, h, "@10.210.0.1", "api.jiji"); got != "NOERROR aa 10.210.0.10" {
			t.Errorf("%s is answered %s", h.Name, got)
		}
	}
}

// A container that is not healthy is not answered, from the next query on.
func TestDNSLeavesOutTheUnhealthyAtOnce(t *testing.T) {
	t.Parallel()
	const limit = 200 * time.Millisecond
	m := newMesh(t, 1)
	web1 := m.servers[0]
	a := web1.Container("a", "10.210.0.10")
	m.start(0)
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10", "--id", "one")
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.11", "--id", "two")
	conn := dialUDP(t, a.Host, netip.MustParseAddrPort("10.210.0.1:53"))

	becomes := func(id, health, want string) time.Duration {
		t.Helper()
		start := time.Now()
		if err := clientOf(web1).SetHealth(t.Context(), control.HealthRequest{ID: id, Health: health}); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, 5*time.Second, fmt.Sprintf("api.jiji is %s after %s became %s", want, id, health), func() error {
			if got := addresses(t, conn, "api.jiji."); got != want {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
		return time.Since(start)
	}
	var took []time.Duration
	for range 5 {
		took = append(took,
			becomes("one", "unhealthy", "10.210.0.11"),
			becomes("two", "starting", ""),
			becomes("one", "healthy", "10.210.0.10"),
			becomes("two", "healthy", "10.210.0.10 10.210.0.11"))
	}
	slices.Sort(took)
	t.Logf("after %v in the median, %v at most", took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > limit {
		t.Errorf("the answers changed after %v in the median, want at most %v", median, limit)
	}
	web1.Run("jiji-node", "service", "deregister", "one", "two")
	if got := ask(t, a.Host, "api.jiji"); got != "NXDOMAIN aa SOA" {
		t.Errorf("api.jiji after the last one was deregistered: %s", got)
	}
}

// The name servers of the host are followed when they change.
func TestDNSFollowsTheHostsNameServers(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	a := web1.Container("a", "10.210.0.10")
	first, second := m.Server("first").On(m.lan), m.Server("second").On(m.lan)
	startResolver(t, first, "192.0.2.1")
	startResolver(t, second, "192.0.2.2")
	m.start(0)
	if got := ask(t, a.Host, "www.example.org"); got != "SERVFAIL" {
		t.Errorf("without a name server: %s, want SERVFAIL", got)
	}
	follows := func(want string) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, "www.example.org is "+want, func() error {
			if got := ask(t, a.Host, "www.example.org"); got != want {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	}
	web1.SetResolvers(first.Addr(m.lan))
	follows("NOERROR 192.0.2.1")
	replaceFile(t, web1, "/etc/resolv.conf", fmt.Sprintf("nameserver %s\n", second.Addr(m.lan)))
	follows("NOERROR 192.0.2.2")
	if up := status(t, web1).DNS.Upstreams; len(up) != 1 || up[0].Addr() != second.Addr(m.lan) {
		t.Errorf("status has the name servers %v", up)
	}
	// Our own address among them is no loop, and one that is dead no obstacle.
	web1.SetResolvers(netip.MustParseAddr("10.210.0.1"), m.Server("dead").On(m.lan).Addr(m.lan), first.Addr(m.lan))
	follows("NOERROR 192.0.2.1")
}

// Nodes that are each other's name servers say so at once, and forward nothing.
func TestDNSLoopOfNodes(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1, web2 := m.servers[0], m.servers[1]
	web1.SetResolvers(netip.MustParseAddr("10.210.1.1"))
	web2.SetResolvers(netip.MustParseAddr("10.210.0.1"))
	m.startAll()
	m.waitUp(m.servers...)
	a := web1.Container("a", "10.210.0.10")
	before := status(t, web1).DNS.Queries + status(t, web2).DNS.Queries
	for range 3 {
		start := time.Now()
		if got := ask(t, a.Host, "www.example.org"); got != "SERVFAIL" {
			t.Errorf("answered %s, want SERVFAIL", got)
		}
		took := time.Since(start)
		t.Logf("SERVFAIL after %v", took.Round(time.Millisecond))
		if took > time.Second {
			t.Errorf("after %v, want at once", took)
		}
		time.Sleep(1100 * time.Millisecond) // failures are kept for a second
	}
	if n := status(t, web1).DNS.Queries + status(t, web2).DNS.Queries - before; n > 9 {
		t.Errorf("%d queries for 3 questions, want three each", n)
	}
	m.nodes[0].WaitLog("an upstream sends our own questions back to us", 5*time.Second)
}

// ask digs from the host, and returns the rcode, "aa" if it is authoritative, the
// answers' data in order and the types of the authority section.
func ask(t *testing.T, h *lab.Host, question ...string) string {
	t.Helper()
	out := h.Run("dig", append([]string{"+tries=1", "+timeout=5", "+nosearch"}, question...)...)
	_, rest, _ := strings.Cut(out, "status: ")
	rcode, _, _ := strings.Cut(rest, ",")
	words := []string{rcode}
	if _, flags, _ := strings.Cut(rest, ";; flags: "); strings.Contains(strings.Split(flags, ";")[0], "aa") {
		words = append(words, "aa")
	}
	if _, section, found := strings.Cut(out, ";; ANSWER SECTION:\n"); found {
		section, _, _ = strings.Cut(section, "\n\n")
		var data []string
		for line := range strings.Lines(section) {
			value := strings.Fields(line)[4]
			if text, is := strings.CutPrefix(value, `"`); is {
				value, _, _ = strings.Cut(text, "-")
			}
			if !slices.Contains(data, value) {
				data = append(data, value)
			}
		}
		slices.Sort(data)
		words = append(words, data...)
	} else if _, section, found := strings.Cut(out, ";; AUTHORITY SECTION:\n"); found {
		words = append(words, strings.Fields(section)[3])
	}
	return strings.Join(words, " ")
}

// startResolver runs a name server on port 53 of a host: www.example.org is addr.
func startResolver(t *testing.T, s *lab.Server, addr string) {
	t.Helper()
	at := netip.AddrPortFrom(s.Links()[0].Addr(), 53)
	udp := listenUDP(t, s.Host, at)
	var tcp *net.TCPListener
	err := s.Do(func() (err error) {
		tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	records := map[dns.Question]string{
		{Name: "www.example.org.", Qtype: dns.TypeA, Qclass: dns.ClassINET}:     "www.example.org. 60 A " + addr,
		{Name: "large.example.org.", Qtype: dns.TypeTXT, Qclass: dns.ClassINET}: "large.example.org. 60 TXT " + strings.Repeat(`"large-`+strings.Repeat("x", 200)+`" `, 20),
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		q := r.Question[0]
		q.Name = strings.ToLower(q.Name)
		if text, ok := records[q]; ok {
			rr, _ := dns.NewRR(text)
			m.Answer = []dns.RR{rr}
		} else {
			if strings.HasPrefix(q.Name, "absent.") {
				m.Rcode = dns.RcodeNameError
			}
			soa, _ := dns.NewRR("example.org. 60 SOA ns.example.org. root.example.org. 1 2 3 4 60")
			m.Ns = []dns.RR{soa}
		}
		if opt := r.IsEdns0(); opt != nil {
			m.SetEdns0(1232, false)
		}
		if _, isUDP := w.RemoteAddr().(*net.UDPAddr); isUDP {
			m.Truncate(1232)
		}
		w.WriteMsg(m)
	})
	for _, srv := range []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
		started, ended := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			srv.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			srv.ShutdownContext(ctx)
			<-ended
		})
	}
}

func dialUDP(t *testing.T, h *lab.Host, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// addresses asks for the addresses of a name, and returns them in order.
func addresses(t *testing.T, c *net.UDPConn, name string) string {
	t.Helper()
	query := new(dns.Msg).SetQuestion(name, dns.TypeA)
	c.SetDeadline(time.Now().Add(2 * time.Second))
	conn := dns.Conn{Conn: c}
	err := conn.WriteMsg(query)
	for err == nil {
		var reply *dns.Msg
		if reply, err = conn.ReadMsg(); err == nil && reply.Id == query.Id {
			if reply.Rcode != dns.RcodeSuccess {
				err = errors.New(dns.RcodeToString[reply.Rcode])
				break
			}
			var all []string
			for _, rr := range reply.Answer {
				all = append(all, rr.(*dns.A).A.String())
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
	}
	t.Fatalf("ask for %s: %v", name, err)
	return ""
}
