package statuspage

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/dnsserver/forward"
	"github.com/acidtib/jiji-node/node/control"
)

// source is a node with one of everything, whose metrics are all there.
func source() Source {
	now := time.Now()
	st := control.Status{
		Version: "1.2.3", Mode: "tun", State: "ready", StartedAt: now, Domain: "jiji",
		Server:   control.Server{ID: "web1"},
		Warnings: []string{"the uplink eth0 carries <1280"},
		Engine:   control.Engine{Kind: "docker", Up: true, In: 2},
		Peers: []control.Peer{
			{Server: control.Server{ID: `<script>alert(1)</script>`}, State: "up", Since: now, RTT: control.Duration(time.Millisecond), LastHandshake: &now, RxBytes: 2048, TxBytes: 1},
			{Server: control.Server{ID: "web3"}, State: "down", Since: now},
		},
	}
	st.Registry.Mode, st.Registry.State, st.Registry.Agent = control.Corrosion, "up", &control.Agent{Managed: true, Restarts: 3}
	return Source{
		Status: func() control.Status { return st },
		Names: func() dnsserver.Stats {
			var s dnsserver.Stats
			s.Forward.Upstreams = []forward.UpstreamStats{{Addr: netip.MustParseAddrPort("192.0.2.1:53"), RTT: time.Millisecond}}
			return s
		},
		Answers: func() []dnsserver.Answers {
			return []dnsserver.Answers{{
				Source: dnsserver.Mesh, Type: "A", Rcode: "NOERROR", Count: 3, Sum: time.Millisecond,
				Within: map[time.Duration]uint64{16 * time.Microsecond: 2, 32 * time.Microsecond: 3},
			}}
		},
	}
}

// get asks h as a browser or curl would.
func get(h http.Handler, method, host, path string) (code int, header http.Header, body string) {
	r := httptest.NewRequest(method, path, nil)
	r.Host = host
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Header(), w.Body.String()
}

func TestWhoIsAnswered(t *testing.T) {
	h := handler(source(), slog.New(slog.DiscardHandler))
	for _, tt := range []struct {
		method, host, path string
		code               int
		body               string
	}{
		{"GET", "127.0.0.1:9187", "/", 200, "<h1>web1"},
		{"GET", "[::1]:9187", "/healthz", 200, "alive\n"},
		{"GET", "[::1]", "/healthz", 200, "alive\n"},
		{"GET", "10.210.0.1:9187", "/readyz", 200, "ready\n"},
		{"GET", "localhost:9187", "/metrics", 200, "\njiji_node_ready 1\n"},
		{"GET", "LOCALHOST.", "/healthz", 200, "alive\n"},
		{"HEAD", "localhost", "/healthz", 200, ""},
		{"GET", "web1.node.jiji:9187", "/healthz", 200, "alive\n"},
		{"GET", "evil.example:9187", "/metrics", 421, "host \"evil.example:9187\": want an IP address, localhost or a name of the mesh\n"},
		{"GET", "127.0.0.1.evil.example", "/", 421, "want an IP address"},
		{"GET", "notjiji", "/", 421, "want an IP address"},
		{"GET", "", "/", 421, "want an IP address"},
		{"POST", "localhost", "/metrics", 405, "Method Not Allowed"},
		{"DELETE", "localhost", "/", 405, "Method Not Allowed"},
		{"GET", "localhost", "/else", 404, "not found"},
		{"GET", "localhost", "/debug/pprof/", 404, "not found"},
	} {
		code, header, body := get(h, tt.method, tt.host, tt.path)
		if code != tt.code || !strings.Contains(body, tt.body) {
			t.Errorf("%s %s %s: %d %q, want %d %q", tt.method, tt.host, tt.path, code, body, tt.code, tt.body)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s %s: headers %v", tt.method, tt.host, tt.path, header)
		}
	}
}

func TestNotReady(t *testing.T) {
	s := source()
	st := s.Status()
	st.State = "starting"
	s.Status = func() control.Status { return st }
	h := handler(s, slog.New(slog.DiscardHandler))
	if code, _, body := get(h, "GET", "localhost", "/readyz"); code != 503 || body != "not ready: starting\n" {
		t.Errorf("/readyz is %d %q", code, body)
	}
	if code, _, _ := get(h, "GET", "localhost", "/healthz"); code != 200 {
		t.Errorf("/healthz is %d, for one that lives", code)
	}
	if _, _, body := get(h, "GET", "localhost", "/metrics"); !strings.Contains(body, "\njiji_node_ready 0\n") {
		t.Errorf("metrics say that it is ready:\n%s", body)
	}
}

// What other servers call themselves is text.
func TestThePageEscapes(t *testing.T) {
	_, header, body := get(handler(source(), slog.New(slog.DiscardHandler)), "GET", "localhost", "/")
	for _, want := range []string{"&lt;script&gt;", "carries &lt;1280", "2.0 KiB", "1.00 ms", "<td>never"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page has no %q:\n%s", want, body)
		}
	}
	if strings.Contains(body, "<script") {
		t.Errorf("the page runs what a server is called:\n%s", body)
	}
	if csp := header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") {
		t.Errorf("its content policy is %q", csp)
	}
}

// Metrics keep to Prometheus' conventions, and each is documented.
func TestMetrics(t *testing.T) {
	c := collector{source()}
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if err := testutil.CollectAndCompare(c, strings.NewReader(`
# HELP jiji_dns_query_duration_seconds From when a query was read to when its answer was given to the kernel. zone: mesh, forwarded or refused, for it came from outside.
# TYPE jiji_dns_query_duration_seconds histogram
jiji_dns_query_duration_seconds_bucket{rcode="NOERROR",type="A",zone="mesh",le="1.6e-05"} 2
jiji_dns_query_duration_seconds_bucket{rcode="NOERROR",type="A",zone="mesh",le="3.2e-05"} 3
jiji_dns_query_duration_seconds_bucket{rcode="NOERROR",type="A",zone="mesh",le="+Inf"} 3
jiji_dns_query_duration_seconds_sum{rcode="NOERROR",type="A",zone="mesh"} 0.001
jiji_dns_query_duration_seconds_count{rcode="NOERROR",type="A",zone="mesh"} 3
`), "jiji_dns_query_duration_seconds"); err != nil {
		t.Error(err)
	}
	var there []string
	descs := make(chan *prometheus.Desc)
	go func() {
		c.Describe(descs)
		close(descs)
	}()
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		n := name.FindStringSubmatch(d.String())[1]
		there = append(there, n)
		if got, err := testutil.GatherAndCount(newRegistry(source()), n); err != nil || got == 0 {
			t.Errorf("%s is described and not sent: %v", n, err)
		}
	}
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(jiji_[a-z_]+)`").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	if !slices.Equal(there, documented) {
		t.Errorf("docs/metrics.md has\n%s\nwant\n%s", strings.Join(documented, "\n"), strings.Join(there, "\n"))
	}
}

// A port that somebody has is waited for, one that is free again taken.
func TestServeWaitsForItsPort(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(other.Addr().String())
	ctx, stop := context.WithCancel(t.Context())
	told, ended := make(chan error, 16), make(chan struct{})
	go func() {
		defer close(ended)
		Serve(ctx, addr, source(), func(err error) { told <- err }, slog.New(slog.DiscardHandler))
	}()
	if err := <-told; !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("told %v, want that the port is in use", err)
	}
	other.Close()
	for err := range told {
		if err == nil {
			break
		}
	}
	r, err := http.Get("http://" + addr.String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil || string(body) != "alive\n" {
		t.Errorf("says %q, %v", body, err)
	}
	stop()
	<-ended
}
