//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

const (
	names          = 1000
	coreDNSModule  = "github.com/coredns/coredns"
	coreDNSVersion = "v1.15.0"
	dnsPause       = 300 * time.Millisecond // before each run of dnsperf
	saturation     = 3                      // seconds of as many queries as are answered
	outstanding    = 100                    // queries, at saturation
	paced          = 3                      // seconds of pacedRate queries
	pacedRate      = 10_000                 // a second
	queriesFile    = "/run/queries"
)

// A nameServer is a program that answers for the names, alone on its host.
type nameServer struct {
	host    *lab.Host
	program *lab.Process
	addr    netip.Addr
}

// measureDNS compares the name server of jiji-node with CoreDNS's hosts plugin.
func measureDNS(s *stage) *Part {
	p := &Part{
		Name:  "dns",
		Sides: [sides]string{"jiji-node", "CoreDNS", ""},
		Notes: []string{
			fmt.Sprintf("%d names with one A record each, on every side: external services in jiji-node's catalog, lines of a file for CoreDNS's hosts plugin, records of a zone for Knot DNS.", names),
			fmt.Sprintf("dnsperf asks for them in turn over loopback, on the same cores: %d s with %d queries outstanding, then %d s with %d a second.", saturation, outstanding, paced, pacedRate),
			"Queries per server core are queries per second of the server's own processor time, at saturation. Memory is the whole program's, after it.",
		},
	}
	qps := p.add("queries", "1000/s", 1, Bar{})
	perCore := p.add("queries per server core", "1000/s", 1, ratioAtLeast(2))
	p50 := p.add("latency at 10,000/s p50", "us", 0, Bar{})
	p99 := p.add("latency at 10,000/s p99", "us", 0, ratioAtMost(0.5))
	perCorePaced := p.add("queries per server core at 10,000/s", "1000/s", 1, Bar{})
	rss := p.add("memory, loaded", "MB", 0, Bar{})

	coredns := s.coreDNS()
	s.needDnsperf()
	l := lab.New(s)
	servers := [sides]*nameServer{jijiDNS(s, l), startCoreDNS(s, l, coredns), startKnot(s, l)}
	if servers[scale] != nil {
		p.Sides[scale] = "Knot DNS"
	}
	for _, v := range servers {
		if v == nil {
			continue
		}
		v.host.WriteFile(queriesFile, lines(func(i int) string { return name(i) + " A" }))
		lab.Eventually(s, 20*time.Second, v.program.Name+" answers", func() error {
			for _, i := range []int{0, names - 1} {
				out, err := v.host.Try("dig", "+short", "+tries=1", "+timeout=1", "@"+v.addr.String(), name(i))
				if err != nil || strings.TrimSpace(out) != address(i) {
					return fmt.Errorf("%s is %q (%v), want %s", name(i), out, err, address(i))
				}
			}
			return nil
		})
	}
	for n := range s.pairs {
		s.say("pair %d of %d", n+1, s.pairs)
		order := s.order(n, servers[scale] != nil)
		for _, v := range order {
			got, cpu := servers[v].ask(s, "-l", fmt.Sprint(saturation), "-q", fmt.Sprint(outstanding))
			qps.record(v, got.rate/1e3)
			perCore.record(v, float64(got.answered)/cpu.Seconds()/1e3)
			rss.record(v, s.memory(servers[v].program).now)
		}
		for _, v := range order {
			got, cpu := servers[v].ask(s, "-l", fmt.Sprint(paced), "-Q", fmt.Sprint(pacedRate), "-v")
			p50.record(v, quantile(got.micros, 0.5))
			p99.record(v, quantile(got.micros, 0.99))
			perCorePaced.record(v, float64(got.answered)/cpu.Seconds()/1e3)
		}
	}
	return p
}

// name is the i-th name, and address what it resolves to.
func name(i int) string    { return fmt.Sprintf("name%04d.jiji", i) }
func address(i int) string { return fmt.Sprintf("192.168.%d.%d", i/250, 1+i%250) }

// lines returns a line for each name.
func lines(line func(i int) string) string {
	var b strings.Builder
	for i := range names {
		b.WriteString(line(i) + "\n")
	}
	return b.String()
}

// ask runs dnsperf against the server, and returns also how long the server was on a
// processor meanwhile.
func (v *nameServer) ask(s *stage, args ...string) (dnsperfResult, time.Duration) {
	s.sleep(dnsPause)
	before := s.cpuTime(v.program)
	out := v.host.Run("dnsperf", append([]string{"-s", v.addr.String(), "-d", queriesFile}, args...)...)
	cpu := s.cpuTime(v.program) - before
	r, err := parseDnsperf(out)
	s.check("dnsperf against "+v.program.Name, err)
	return r, cpu
}

// A dnsperfResult is what dnsperf prints.
type dnsperfResult struct {
	answered int
	rate     float64   // answers per second
	micros   []float64 // of each answer, with -v
}

// parseDnsperf reads the output of dnsperf. Answers other than NOERROR, and more than
// one query in a thousand without an answer, are an error.
func parseDnsperf(out string) (r dnsperfResult, err error) {
	lost := 0
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "> ") { // "> NOERROR name0001.jiji A 0.000123"
			fields := strings.Fields(line)
			seconds, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil { // "> T name0001.jiji A": counted as lost
				continue
			}
			r.micros = append(r.micros, seconds*1e6)
			continue
		}
		what, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch what {
		case "Queries completed":
			r.answered, err = strconv.Atoi(fields[0])
		case "Queries lost":
			lost, err = strconv.Atoi(fields[0])
		case "Queries per second":
			r.rate, err = strconv.ParseFloat(fields[0], 64)
		case "Response codes":
			if fields[0] != "NOERROR" || len(fields) > 3 {
				err = fmt.Errorf("response codes %s, want NOERROR only", strings.TrimSpace(value))
			}
		}
		if err != nil {
			return r, err
		}
	}
	if r.answered == 0 || r.rate == 0 || lost*1000 > r.answered {
		return r, fmt.Errorf("%d queries answered and %d lost at %v a second", r.answered, lost, r.rate)
	}
	return r, nil
}

// needDnsperf installs dnsperf if it is missing.
func (s *stage) needDnsperf() {
	if _, err := exec.LookPath("dnsperf"); err != nil {
		s.say("dnsperf is missing: installing Debian's package")
		cmd := exec.CommandContext(s.ctx, "sh", "-c", "apt-get update -q && apt-get install -qy --no-install-recommends dnsperf")
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			s.Fatalf("install dnsperf: %v\n%s", err, bytes.TrimSpace(out))
		}
	}
}

// jijiDNS runs a node with the names in its catalog.
func jijiDNS(s *stage, l *lab.Lab) *nameServer {
	h := l.Server("jiji").On(l.Network("lan", "192.0.2.0/24")).Host
	p := h.Start("run", "--name", "jiji")
	p.WaitReady()
	client := control.NewClient(h.Path("/run/jiji"))
	for i := range names {
		s.alive()
		_, err := client.Register(s.ctx, control.Container{
			ID: fmt.Sprintf("bench-%d", i), Service: strings.TrimSuffix(name(i), ".jiji"),
			IP: netip.MustParseAddr(address(i)), Health: "healthy", External: true,
		})
		s.check("register "+name(i), err)
	}
	return &nameServer{h, p, netip.MustParseAddr("10.210.0.1")}
}

var loopback = netip.MustParseAddr("127.0.0.1")

func startCoreDNS(s *stage, l *lab.Lab, binary string) *nameServer {
	h := l.Server("coredns").Host
	h.WriteFile("/run/hosts", lines(func(i int) string { return address(i) + " " + name(i) }))
	h.WriteFile("/run/Corefile", "jiji {\n\tbind 127.0.0.1\n\thosts /run/hosts jiji\n}\n")
	s.against = append(s.against, "CoreDNS "+coreDNSVersion+" (hosts)")
	return &nameServer{h, h.Spawn(binary, "-conf", "/run/Corefile"), loopback}
}

// coreDNS returns a CoreDNS of its own main package, built when this machine's cache has
// none. Its module stays outside of this one.
func (s *stage) coreDNS() string {
	cache, err := os.UserCacheDir()
	s.check("find a place for CoreDNS", err)
	dir := filepath.Join(cache, "jiji-node-bench", coreDNSVersion+"-"+runtime.Version())
	binary := filepath.Join(dir, "coredns")
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	s.say("building CoreDNS %s, which takes several minutes once", coreDNSVersion)
	s.check("build CoreDNS", os.MkdirAll(dir, 0o755))
	start := time.Now()
	cmd := exec.CommandContext(s.ctx, "go", "install", coreDNSModule+"@"+coreDNSVersion)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir, "GOFLAGS=", "GOWORK=off")
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		s.alive()
		s.Fatalf("build CoreDNS: %v\n%s", err, out)
	}
	s.say("CoreDNS is built, after %v", time.Since(start).Round(time.Second))
	return binary
}

// startKnot runs Knot DNS, or returns nil where Debian's package cannot be had.
func startKnot(s *stage, l *lab.Lab) *nameServer {
	program, err := s.knot()
	if err != nil {
		s.say("there is no Knot DNS, so no second scale: %v", err)
		return nil
	}
	h := l.Server("knot").Host
	h.WriteFile("/run/knot/jiji.zone", "@ 3600 SOA ns admin 1 3600 600 86400 60\n@ 3600 NS ns\nns A 127.0.0.1\n"+
		lines(func(i int) string { return name(i) + ". 60 A " + address(i) }))
	h.WriteFile("/run/knot/knot.conf", "server:\n  rundir: /run/knot\n  listen: 127.0.0.1@53\ndatabase:\n  storage: /run/knot/db\n"+
		"zone:\n  - domain: jiji\n    storage: /run/knot\n    file: jiji.zone\n")
	version, _, _ := strings.Cut(strings.TrimSpace(h.Run(program, "--version")), "\n")
	s.against = append(s.against, version)
	return &nameServer{h, h.Spawn(program, "-c", "/run/knot/knot.conf"), loopback}
}

// unpackKnot puts Debian's knot, and the packages it needs that are not installed, into
// the folder $1. To install the package would start it on the machine itself.
const unpackKnot = `
mkdir -p "$1/debs/partial"
apt-get update -q
apt-get install -qy --no-install-recommends --download-only -o Dir::Cache::archives="$1/debs" knot
for deb in "$1"/debs/*.deb; do dpkg -x "$deb" "$1/root"; done
printf '#!/bin/sh\nLD_LIBRARY_PATH=$(echo %s/usr/lib/*-linux-gnu) exec %s/usr/sbin/knotd "$@"\n' "$1/root" "$1/root" >"$1/knotd.new"
chmod 755 "$1/knotd.new"
"$1/knotd.new" --version
mv "$1/knotd.new" "$1/knotd"
`

// knot returns knotd: the machine's own, or one that this machine's cache has.
func (s *stage) knot() (string, error) {
	if path, err := exec.LookPath("knotd"); err == nil {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "jiji-node-bench", "knot")
	program := filepath.Join(dir, "knotd")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	s.say("unpacking Debian's Knot DNS")
	if out, err := exec.CommandContext(s.ctx, "sh", "-ec", unpackKnot, "sh", dir).CombinedOutput(); err != nil {
		s.alive()
		return "", fmt.Errorf("unpack Debian's package: %w\n%s", err, bytes.TrimSpace(out))
	}
	return program, nil
}
