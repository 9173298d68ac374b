//go:build linux

package integration_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// An engineMesh is two servers whose engines run containers in the mesh and beside
// it, and a neighbour of theirs who routes the mesh to the first.
type engineMesh struct {
	*mesh
	kind                   string // of the engine on web1
	web1, web2, neighbour  *lab.Server
	e1, e2                 *lab.Engine
	near, far, aside, path string // addresses: containers of the mesh, one that is not, and the neighbour
}

// newEngineMesh starts engines, nodes with further arguments, and containers: "near"
// in the mesh on web1, which publishes port 8080, "aside" on the engine's default
// bridge there, "far" in the mesh on web2. All of them and the neighbour serve HTTP.
func newEngineMesh(t *testing.T, kind string, args ...string) *engineMesh {
	t.Helper()
	m := &engineMesh{mesh: newMesh(t, 2), kind: kind}
	m.web1, m.web2 = m.servers[0], m.servers[1]
	m.neighbour = m.Server("neighbour").On(m.lan)
	m.path = m.neighbour.Addr(m.lan).String()
	m.neighbour.Run("sh", "-c", "mkdir -p /run/www && echo outside > /run/www/index.html")
	m.neighbour.Spawn("busybox", "httpd", "-f", "-p", "80", "-h", "/run/www")
	m.neighbour.Run("ip", "route", "add", "10.210.0.0/16", "via", m.web1.Addr(m.lan).String())
	m.neighbour.Run("ip", "route", "add", "172.16.0.0/12", "via", m.web1.Addr(m.lan).String())
	if kind == "docker" {
		m.e1 = m.web1.Docker("--live-restore")
	} else {
		m.e1 = m.web1.Podman()
	}
	m.e2 = m.web2.Docker()
	m.startAll(args...)
	waitEngine(t, m.web1, func(e control.Engine) error { return upAs(e, kind) })
	waitEngine(t, m.web2, func(e control.Engine) error { return upAs(e, "docker") })
	serve := []string{"--", "httpd", "-f", "-p", "80", "-h", "/www"}
	m.e1.Container("near", append([]string{"--network=jiji-mesh", "--cap-add=NET_RAW", "--publish=8080:80"}, serve...)...)
	m.e1.Container("aside", append([]string{"--cap-add=NET_RAW"}, serve...)...)
	m.e2.Container("far", append([]string{"--network=jiji-mesh", "--cap-add=NET_RAW"}, serve...)...)
	m.near, m.far = containerIP(t, m.web1, "near"), containerIP(t, m.web2, "far")
	m.aside = strings.Fields(m.e1.Run("exec", "aside", "hostname", "-i"))[0]
	return m
}

// get asks the web server at an address, from a host, and returns the last word of its answer.
func get(s *lab.Server, address netip.AddrPort) string {
	var conn net.Conn
	err := s.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", address.String(), 3*time.Second)
		return err
	})
	if err != nil {
		return "nothing"
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
	out, _ := io.ReadAll(conn) // what there is of it
	if f := strings.Fields(string(out)); len(f) > 0 {
		return f[len(f)-1]
	}
	return "nothing"
}

// web is the port of a web server.
func web(address string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(address), 80) }

// inside is get from inside a container.
func inside(e *lab.Engine, container, address string) string {
	out, err := e.Try("exec", container, "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 3 `+address+" 80")
	f := strings.Fields(out)
	if err != nil || len(f) == 0 {
		return "nothing"
	}
	return f[len(f)-1]
}

// open checks what has to work.
func (m *engineMesh) open() error {
	for _, c := range []struct{ what, got, want string }{
		{"near to far", inside(m.e1, "near", m.far), "hello"},
		{"far to near", inside(m.e2, "far", m.near), "hello"},
		{"the published port", get(m.neighbour, netip.AddrPortFrom(m.web1.Addr(m.lan), 8080)), "hello"},
		{"near to the world", inside(m.e1, "near", m.path), "outside"},
		{"aside to the world", inside(m.e1, "aside", m.path), "outside"},
		{"the server to near", get(m.web1, web(m.near)), "hello"},
	} {
		if c.got != c.want {
			return fmt.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	return nil
}

// closed checks what must not.
func (m *engineMesh) closed() {
	m.t.Helper()
	var asking sync.WaitGroup // at once, for nothing takes its time
	for what, ask := range map[string]func() string{
		"aside to near":         func() string { return inside(m.e1, "aside", m.near) },
		"aside to far":          func() string { return inside(m.e1, "aside", m.far) },
		"the neighbour to near": func() string { return get(m.neighbour, web(m.near)) },
		"the neighbour to far":  func() string { return get(m.neighbour, web(m.far)) },
	} {
		asking.Go(func() {
			if got := ask(); got != "nothing" {
				m.t.Errorf("%s: %s", what, got)
			}
		})
	}
	asking.Wait()
}

// Nobody but the mesh reaches its containers, what they had before keeps working, and
// all of it is so again after anything that somebody does to it.
func TestContainersShow4And6(t *testing.T) {
	for _, kind := range []string{"docker", "podman"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			m := newEngineMesh(t, kind)
			lab.Eventually(t, 10*time.Second, "all that has to work", m.open)
			m.closed()
			inClear := m.web1.Link(m.lan).Capture("net 10.210.0.0/16 and not udp port 51820 and not host " + m.path)
			for _, tc := range []struct {
				what  string
				limit time.Duration
				do    func()
			}{
				{"our rules flushed", 5 * time.Second, func() {
					m.web1.Run("sh", "-c", "for t in raw filter nat mangle; do iptables -t $t -S | sed -n 's/^-N \\(JIJI-.*\\)/\\1/p' | while read c; do iptables -t $t -F $c; done; done; nft delete table inet jiji")
				}},
				{"routes deleted", 5 * time.Second, func() { m.web1.Run("sh", "-c", "ip route flush proto 86; ip -6 route flush proto 86") }},
				{"ip_forward off", time.Minute, func() { m.web1.Run("sysctl", "-qw", "net.ipv4.ip_forward=0") }},
				{"everything flushed", time.Minute, func() {
					m.web1.Run("sh", "-c", "for t in raw filter nat mangle; do iptables -t $t -F; done; nft delete table inet jiji")
					if kind == "docker" {
						m.e1.Kill9()
						m.e1.Start()
					} else {
						m.e1.Run("network", "disconnect", "jiji-mesh", "near") // Podman makes its rules with a container's network
						m.e1.Run("network", "connect", "--ip="+m.near, "jiji-mesh", "near")
						m.e1.Run("restart", "--time=0", "aside")
					}
				}},
				{"engine restarted", 5 * time.Second, func() {
					m.e1.Stop()
					m.e1.Start()
				}},
			} {
				began := time.Now()
				tc.do()
				done := time.Now()
				lab.Eventually(t, tc.limit+10*time.Second, tc.what+": all that has to work", m.open)
				took := time.Since(done)
				t.Logf("%-20s repaired %v after it, which took %v", tc.what+":", took.Round(time.Millisecond), done.Sub(began).Round(time.Millisecond))
				if took > tc.limit {
					t.Errorf("%s: repaired after %v, want at most %v", tc.what, took, tc.limit)
				}
				m.closed()
			}
			if n := inClear.Count(); n != 0 {
				t.Errorf("%d packets left in the clear:\n%s", n, inClear)
			}
		})
	}
}

// --forward-from opens the mesh to just the interface that it names.
func TestContainersShow6ForwardFrom(t *testing.T) {
	t.Parallel()
	m := newEngineMesh(t, "docker", "--forward-from", "docker0")
	lab.Eventually(t, 10*time.Second, "all that has to work", m.open)
	for what, address := range map[string]string{"near": m.near, "far": m.far} {
		if got := inside(m.e1, "aside", address); got != "hello" {
			t.Errorf("aside to %s: %s", what, got)
		}
	}
	for what, address := range map[string]string{"near": m.near, "far": m.far} {
		if got := get(m.neighbour, web(address)); got != "nothing" {
			t.Errorf("the neighbour to %s: %s", what, got)
		}
	}
}

// down leaves nothing of ours beside an engine, but a network that containers are on.
func TestContainersShow4Down(t *testing.T) {
	for _, kind := range []string{"docker", "podman"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, 1)
			web1 := m.servers[0]
			web1.Run("rm", "-f", "/etc/sysctl.d/90-jiji.conf") // this machine may have one
			e := engines[kind](web1)
			e.Run("network", "create", "other") // makes what an engine keeps once it had any
			e.Run("run", "--rm", "--network=other", "box", "true")
			state := func() string { return strings.ReplaceAll(wholeState(web1), " linkdown ", " ") } // as bridges without containers are, a moment later
			before := state()
			same := func(what string) {
				t.Helper()
				sameState(t, what, before, state())
			}
			run := func() {
				t.Helper()
				m.start(0)
				waitEngine(t, web1, func(e control.Engine) error { return upAs(e, kind) })
			}

			run()
			e.Container("api", "--network=jiji-mesh")
			containerIP(t, web1, "api")
			const stays = "network jiji-mesh of %s stays, for containers are on it: api"
			if out := web1.Run("jiji-node", "down"); !strings.Contains(out, fmt.Sprintf(stays, kind)) {
				t.Errorf("down says\n%s", out)
			}
			m.nodes[0].Wait(5 * time.Second)
			if out := e.Run("inspect", "--format", "{{.State.Running}}", "api"); out != "true" {
				t.Errorf("the container runs: %s", out)
			}
			e.Run("stop", "--time=0", "api") // it is on the network all the same
			if out := web1.Run("jiji-node", "down"); !strings.Contains(out, fmt.Sprintf(stays, kind)) {
				t.Errorf("down of a node that does not run says\n%s", out)
			}
			e.Run("rm", "-f", "api")
			if out := web1.Run("jiji-node", "down"); !strings.Contains(out, "network jiji-mesh of "+kind+" removed") {
				t.Errorf("down without containers says\n%s", out)
			}
			same("down of a node that did not run")

			run()
			if out := web1.Run("jiji-node", "down"); !strings.Contains(out, "network jiji-mesh of "+kind+" removed") {
				t.Errorf("down without containers says\n%s", out)
			}
			m.nodes[0].Wait(5 * time.Second)
			same("down of a node that ran")
		})
	}
}
