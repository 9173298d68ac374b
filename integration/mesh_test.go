//go:build linux

// Package integration_test proves what the documentation promises, with the built
// program on real TUN devices, in the labs of package lab.
package integration_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/topology"
)

const (
	lanPrefix = "203.0.113.0/24" // of the README
	meshLimit = 10 * time.Second // for peers that can reach each other to be up

	// After a kill both ends may shake hands at one time, and one in many such
	// sessions carries nothing one way: WireGuard makes another after 15 s of silence.
	killedLimit = 25 * time.Second
)

// Tests here wait more than they work: more of them at a time than there are cores.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "5"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// A mesh is servers web1, web2 and so on with subnets 0, 1 and so on.
type mesh struct {
	*lab.Lab
	t       *testing.T
	nets    []*lab.Network
	lan     *lab.Network // the first of nets
	servers []*lab.Server
	nodes   []*lab.Process
	readme  [3]string // the commands of "Three servers": init, server add, run
}

// newMesh makes n servers on one network, each told of all by the commands of the
// README. No node runs yet.
func newMesh(t *testing.T, n int) *mesh {
	t.Helper()
	return newMeshOn(t, n, lanPrefix)
}

// newMeshOn is newMesh with all servers on several networks, and an endpoint on each.
func newMeshOn(t *testing.T, n int, prefixes ...string) *mesh {
	t.Helper()
	m := &mesh{Lab: lab.New(t), t: t, readme: readmeCommands(t)}
	for i, p := range prefixes {
		m.nets = append(m.nets, m.Network([]string{"lan", "dsl"}[i], p))
	}
	m.lan = m.nets[0]
	lab.Binary(t) // for the commands that a shell runs
	for range n {
		m.addServer()
	}
	for _, s := range m.servers {
		m.addEntries(s)
	}
	return m
}

// readmeCommands returns the code block of the README's chapter on three servers.
func readmeCommands(t *testing.T) (commands [3]string) {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, _ := strings.Cut(string(text), "## Three servers")
	_, block, _ := strings.Cut(chapter, "```sh\n")
	block, _, _ = strings.Cut(block, "\n```")
	lines := strings.Split(block, "\n")
	if len(lines) != len(commands) || !strings.HasPrefix(lines[0], "jiji-node init --name web1 --index 0 --endpoint 203.0.113.10 > web1.json") {
		t.Fatalf("the commands of README.md, \"Three servers\", have changed:\n%s", block)
	}
	return [3]string(lines)
}

// sh runs a line in a directory of the server's own.
func sh(s *lab.Server, line string) string { return s.Run("sh", "-c", "cd /run && "+line) }

// addServer makes the next server, with its identity, and gives its entry to all.
func (m *mesh) addServer() *lab.Server {
	m.t.Helper()
	i := len(m.servers)
	s := m.Server(fmt.Sprintf("web%d", i+1)).On(m.nets...)
	m.servers, m.nodes = append(m.servers, s), append(m.nodes, nil)
	var endpoints []string
	for _, k := range s.Links() {
		endpoints = append(endpoints, k.Addr().String())
	}
	sh(s, strings.NewReplacer("web1", s.Name, "--index 0", fmt.Sprintf("--index %d", i),
		"203.0.113.10", strings.Join(endpoints, " --endpoint ")).Replace(m.readme[0]))
	m.copyEntries()
	return s
}

// copyEntries copies the files of the entries of all servers to each.
func (m *mesh) copyEntries() {
	m.t.Helper()
	for _, from := range m.servers {
		for _, to := range m.servers {
			file := "/run/" + from.Name + ".json"
			to.WriteFile(file, from.ReadFile(file))
		}
	}
}

// addEntries has a server add the files of all.
func (m *mesh) addEntries(s *lab.Server) {
	m.t.Helper()
	var files []string
	for _, other := range m.servers {
		files = append(files, other.Name+".json")
	}
	sh(s, strings.Replace(m.readme[1], "web1.json web2.json web3.json", strings.Join(files, " "), 1))
}

// step does a part of the test, and logs how long it took or that it was the last.
func (m *mesh) step(name string, do func()) {
	m.t.Helper()
	start, outcome := time.Now(), "ended the test"
	defer func() { m.t.Logf("%-32s %s after %v", name, outcome, time.Since(start).Round(time.Millisecond)) }()
	do()
	outcome = "done"
}

// start runs the node of server i, with further arguments, until it is ready.
func (m *mesh) start(i int, args ...string) *lab.Process {
	m.t.Helper()
	m.nodes[i] = m.launch(i, args...)
	m.nodes[i].WaitReady()
	return m.nodes[i]
}

// launch runs the node of server i and does not wait.
func (m *mesh) launch(i int, args ...string) *lab.Process {
	m.t.Helper()
	m.nodes[i] = m.servers[i].Start(append(strings.Fields(m.readme[2])[1:], args...)...)
	return m.nodes[i]
}

// startAll runs all nodes, and waits until each has all others as peers that are up.
func (m *mesh) startAll(args ...string) {
	m.t.Helper()
	for i := range m.servers {
		m.launch(i, args...)
	}
	for _, p := range m.nodes {
		p.WaitReady()
	}
	m.waitUp(m.servers...)
}

// waitUp waits until each of the servers has every other one as a peer that is up.
func (m *mesh) waitUp(servers ...*lab.Server) {
	m.t.Helper()
	for _, s := range servers {
		for _, other := range servers {
			if other != s {
				waitPeer(m.t, s, other.Name, meshLimit, func(p control.Peer) bool { return p.State == "up" })
			}
		}
	}
}

// waitPeer waits until a peer of s is as wanted, and returns it.
func waitPeer(t *testing.T, s *lab.Server, id string, limit time.Duration, is func(control.Peer) bool) control.Peer {
	t.Helper()
	var p control.Peer
	lab.Eventually(t, limit, "peer "+id+" of "+s.Name, func() error {
		var known bool
		st, err := tryStatus(t, s)
		if err != nil {
			return err
		}
		if p, known = peerOf(st, id); !known {
			return fmt.Errorf("%s does not know it", s.Name)
		}
		if !is(p) {
			return fmt.Errorf("it is %+v", p)
		}
		return nil
	})
	return p
}

func tryStatus(t *testing.T, s *lab.Server) (control.Status, error) {
	return clientOf(s).Status(t.Context())
}

// clientOf returns a client of the server's node, for what a test asks many times.
func clientOf(s *lab.Server) *control.Client { return control.NewClient(s.Path("/run/jiji")) }

// status is what `jiji-node status` says.
func status(t *testing.T, s *lab.Server) (st control.Status) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.Run("jiji-node", "status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func peerOf(st control.Status, id string) (control.Peer, bool) {
	i := slices.IndexFunc(st.Peers, func(p control.Peer) bool { return p.ID == id })
	if i < 0 {
		return control.Peer{}, false
	}
	return st.Peers[i], true
}

// peer returns a peer of s, which has to know it.
func peer(t *testing.T, s *lab.Server, id string) control.Peer {
	t.Helper()
	p, ok := peerOf(status(t, s), id)
	if !ok {
		t.Fatalf("%s has no peer %s", s.Name, id)
	}
	return p
}

// wireGuardIP is the address of server i in the mesh.
func wireGuardIP(i int) string { return fmt.Sprintf("10.210.%d.1", i) }

// reach waits until the host gets an answer from a mesh address.
func reach(t *testing.T, from *lab.Host, to string, limit time.Duration) {
	t.Helper()
	lab.Eventually(t, limit, from.Name+" reaches "+to, func() error {
		_, err := from.Try("ping", "-n", "-c1", "-W1", to)
		return err
	})
}

// editTopology changes the topology in a file of the server, and replaces the file as
// an editor does.
func editTopology(t *testing.T, s *lab.Server, file string, edit func(*topology.Topology)) {
	t.Helper()
	topo, err := topology.Parse(file, []byte(s.ReadFile(file)))
	if err != nil {
		t.Fatal(err)
	}
	edit(&topo)
	replaceFile(t, s, file, string(topo.Marshal()))
}

func replaceFile(t *testing.T, s *lab.Server, file, text string) {
	t.Helper()
	s.WriteFile(file+".new", text)
	if err := os.Rename(s.Path(file+".new"), s.Path(file)); err != nil {
		t.Fatal(err)
	}
}

// compile builds a program of testdata for containers of another C library.
func compile(t *testing.T, compiler, source string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	out, err := runHere(compiler, "-static", "-O1", "-Wall", "-Werror", "-o", program, source)
	if err != nil {
		t.Fatalf("%s: %v\n%s", compiler, err, out)
	}
	return program
}
