package membership

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

var endpoint = netip.MustParseAddrPort("192.0.2.1:51820")

func open(t *testing.T, dir string, change func(*Config)) (*Membership, error) {
	t.Helper()
	cfg := Config{Dir: dir, Name: "web1", Endpoints: []netip.AddrPort{endpoint}, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	return Open(cfg)
}

func mustOpen(t *testing.T, dir string, change func(*Config)) *Membership {
	t.Helper()
	m, err := open(t, dir, change)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// machine is a new one, with its state saved, and its entry for the others.
func machine(t *testing.T, name string, index int) (m *Membership, entry []byte) {
	t.Helper()
	m = mustOpen(t, t.TempDir(), func(c *Config) { c.Name, c.Index = name, &index })
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	return m, topology.Entry(m.Topology(), m.Self())
}

func ids(t topology.Topology) string {
	var out []string
	for _, s := range t.Servers {
		text := s.ID + "=" + s.Subnet.String()
		if !s.RemovedAt.IsZero() {
			text += " removed"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestOpenNewMachine(t *testing.T) {
	dir := t.TempDir()
	m := mustOpen(t, dir, nil)
	if got, want := ids(m.Topology()), "web1=10.210.0.0/24"; got != want {
		t.Errorf("topology %s, want %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, FileName)); !os.IsNotExist(err) {
		t.Error("a start that may be refused wrote the topology")
	}
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, dir, func(c *Config) { c.Name, c.Endpoints = "", nil })
	if !again.Self().Equal(m.Self()) {
		t.Errorf("opened again: %+v, want %+v", again.Self(), m.Self())
	}
}

func TestOpenRefusesAnotherCluster(t *testing.T) {
	m, _ := machine(t, "web1", 0)
	for _, change := range []func(*Config){
		func(c *Config) { c.Cluster = netip.MustParsePrefix("10.220.0.0/16") },
		func(c *Config) { c.Domain = "mesh" },
	} {
		if _, err := open(t, m.cfg.Dir, change); !usage.Is(err) || !strings.Contains(err.Error(), "belongs to") {
			t.Errorf("error %v", err)
		}
	}
}

func TestThreeMachinesByHand(t *testing.T) {
	a, ea := machine(t, "web1", 0)
	b, eb := machine(t, "web2", 1)
	c, ec := machine(t, "web3", 2)
	all := append(append(append([]byte{}, ea...), eb...), ec...)
	for _, m := range []*Membership{a, b, c} {
		added, err := m.Add("all", all, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(added) != 3 {
			t.Errorf("%d entries", len(added))
		}
		for _, id := range []string{"web1=10.210.0.0/24", "web2=10.210.1.0/24", "web3=10.210.2.0/24"} {
			if !strings.Contains(ids(m.Topology()), id) {
				t.Errorf("%s lacks %s", ids(m.Topology()), id)
			}
		}
		select {
		case <-m.Changed():
		default:
			t.Error("no news of the change")
		}
		if _, err := m.Add("all", all, false); err != nil {
			t.Errorf("the same again: %v", err)
		}
		select {
		case <-m.Changed():
			t.Error("news of no change")
		default:
		}
	}
}

func TestAddIsAllOrNone(t *testing.T) {
	a, _ := machine(t, "web1", 0)
	_, good := machine(t, "web2", 1)
	_, clash := machine(t, "web3", 0)
	_, err := a.Add("file", append(good, clash...), false)
	if !usage.Is(err) || !strings.Contains(err.Error(), "10.210.0.0/24") || !strings.Contains(err.Error(), "init --index 2") {
		t.Errorf("error %v", err)
	}
	if got := ids(a.Topology()); got != "web1=10.210.0.0/24" {
		t.Errorf("half applied: %s", got)
	}
}

func TestRemoveLeavesATombstone(t *testing.T) {
	a, _ := machine(t, "web1", 0)
	_, eb := machine(t, "web2", 1)
	if _, err := a.Add("b", eb, false); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Remove("WEB2"); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, a.cfg.Dir, nil)
	if got := ids(again.Topology()); got != "web1=10.210.0.0/24, web2=10.210.1.0/24 removed" {
		t.Errorf("after a restart: %s", got)
	}
	if _, err := a.Remove("web9"); !usage.Is(err) {
		t.Errorf("remove of nobody: %v", err)
	}
}

// A machine that was removed is introduced like any other, and takes part again
// when it is told of a member, after a restart too.
func TestAddRejoins(t *testing.T) {
	a, entry := machine(t, "web1", 0)
	_, eb := machine(t, "web2", 1)
	if _, err := a.Add("b", eb, false); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Remove("web1"); err != nil {
		t.Fatal(err)
	}
	at := a.Self().RemovedAt
	if now := topology.Entry(a.Topology(), a.Self()); string(now) != string(entry) {
		t.Errorf("the entry was\n%s, is\n%s", entry, now)
	}
	if _, err := a.Add("b", eb, false); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Membership{a, mustOpen(t, a.cfg.Dir, nil)} {
		if got := ids(m.Topology()); got != "web1=10.210.0.0/24, web2=10.210.1.0/24" {
			t.Errorf("topology %s", got)
		}
		if self := m.Self(); at.IsZero() || !self.RejoinedAfter.Equal(at) {
			t.Errorf("rejoined after %v, want %v", self.RejoinedAfter, at)
		}
	}
	if _, err := a.Remove("web1"); err != nil || a.Self().RemovedAt.IsZero() {
		t.Errorf("removed again: %+v, %v", a.Self(), err)
	}
}

func TestSetEntry(t *testing.T) {
	a, _ := machine(t, "web1", 0)
	seven := 7
	if _, err := a.SetEntry(Entry{Index: &seven}, true); !usage.Is(err) {
		t.Errorf("subnet of a running node moved: %v", err)
	}
	s, err := a.SetEntry(Entry{Name: "db.example.com", Index: &seven, Endpoints: []netip.AddrPort{endpoint}}, false)
	if err != nil || s.ID != "db-example-com" || s.WireGuardIP != netip.MustParseAddr("10.210.7.1") {
		t.Errorf("got %+v, %v", s, err)
	}
	big := 256
	if _, err := a.SetEntry(Entry{Index: &big}, false); !usage.Is(err) {
		t.Errorf("index 256: %v", err)
	}
}

func TestNetworkFileIsReadOnly(t *testing.T) {
	a, _ := machine(t, "web1", 0)
	_, eb := machine(t, "web2", 1)
	if _, err := a.Add("b", eb, false); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "network.json")
	if err := topology.Save(file, a.Topology()); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(file)
	given := func(c *Config) { c.NetworkFile, c.Name, c.Endpoints = file, "", nil }
	m := mustOpen(t, a.cfg.Dir, given)
	if len(m.Topology().Servers) != 2 {
		t.Errorf("topology %s", ids(m.Topology()))
	}
	_, errAdd := m.Add("b", eb, false)
	_, errRemove := m.Remove("web2")
	_, errSet := m.SetEntry(Entry{Name: "other"}, false)
	for _, err := range []error{errAdd, errRemove, errSet} {
		if !usage.Is(err) || !strings.Contains(err.Error(), file) {
			t.Errorf("error %v", err)
		}
	}
	if after, _ := os.ReadFile(file); string(after) != string(before) {
		t.Error("the file was written")
	}
	if _, err := open(t, t.TempDir(), given); !usage.Is(err) || !strings.Contains(err.Error(), "public key") {
		t.Errorf("a machine that is not in the file: %v", err)
	}
}

func TestMerge(t *testing.T) {
	s := func(id string, key byte, subnet string) topology.Server {
		return topology.Server{ID: id, Key: wgkey.Public{key}, Subnet: netip.MustParsePrefix(subnet)}
	}
	web1, web2, web3 := s("web1", 1, "10.210.0.0/24"), s("web2", 2, "10.210.1.0/24"), s("web3", 3, "10.210.2.0/24")
	gone := web2
	gone.RemovedAt = time.Now()
	for _, c := range []struct {
		name         string
		known, given []topology.Server
		want         string
		superseded   int
	}{
		{"absence is not removal", []topology.Server{web1, web2}, []topology.Server{web1}, "web1=10.210.0.0/24, web2=10.210.1.0/24", 0},
		{"nothing at all", []topology.Server{web1, web2}, nil, "web1=10.210.0.0/24, web2=10.210.1.0/24", 0},
		{"a new one", []topology.Server{web1}, []topology.Server{web1, web3}, "web1=10.210.0.0/24, web3=10.210.2.0/24", 0},
		{"a tombstone", []topology.Server{web1, web2}, []topology.Server{web1, gone}, "web1=10.210.0.0/24, web2=10.210.1.0/24 removed", 0},
		{"a new key under a known id", []topology.Server{web1, web2}, []topology.Server{web1, s("WEB2", 9, "10.210.1.0/24")}, "web1=10.210.0.0/24, WEB2=10.210.1.0/24", 1},
		{"a subnet given to another", []topology.Server{web1, web2}, []topology.Server{web1, s("web9", 9, "10.210.1.0/24")}, "web1=10.210.0.0/24, web9=10.210.1.0/24", 1},
		{"a subnet that a tombstone had", []topology.Server{web1, gone}, []topology.Server{web1, s("web9", 9, "10.210.1.0/24")}, "web1=10.210.0.0/24, web9=10.210.1.0/24, web2=10.210.1.0/24 removed", 0},
	} {
		got, superseded := merge(topology.Topology{Servers: c.known}, topology.Topology{Servers: c.given})
		if ids(got) != c.want || len(superseded) != c.superseded {
			t.Errorf("%s: %s (%d superseded), want %s (%d)", c.name, ids(got), len(superseded), c.want, c.superseded)
		}
	}
}

func TestFollow(t *testing.T) {
	a, _ := machine(t, "web1", 0)
	_, eb := machine(t, "web2", 1)
	_, ec := machine(t, "web3", 2)
	if _, err := a.Add("b", eb, false); err != nil {
		t.Fatal(err)
	}
	<-a.Changed()
	file := filepath.Join(t.TempDir(), "network.json")
	if err := topology.Save(file, a.Topology()); err != nil {
		t.Fatal(err)
	}
	m := mustOpen(t, a.cfg.Dir, func(c *Config) { c.NetworkFile, c.Name, c.Endpoints = file, "", nil })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	done := make(chan error, 1)
	go func() { done <- m.Follow(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	if _, err := a.Add("c", ec, false); err != nil {
		t.Fatal(err)
	}
	if err := topology.Save(file, a.Topology()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Changed():
	case <-ctx.Done():
		t.Fatal("no news of the added server")
	}
	if !strings.Contains(ids(m.Topology()), "web3=") {
		t.Errorf("topology %s", ids(m.Topology()))
	}

	if err := os.WriteFile(file, []byte(`{"topology":`), 0o644); err != nil {
		t.Fatal(err)
	}
	for m.Problem() == "" && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond) // a poll: the loop is bounded by ctx
	}
	if !strings.Contains(m.Problem(), file) {
		t.Errorf("problem %q does not name the file", m.Problem())
	}
	if !strings.Contains(ids(m.Topology()), "web3=") {
		t.Errorf("a bad file changed the topology: %s", ids(m.Topology()))
	}
}

func TestOpenTouchesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	m, err := open(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, created := m.Key()
	if !created || m.Known() || m.Self().Subnet.String() != "10.210.0.0/24" {
		t.Errorf("self %+v", m.Self())
	}
	others, _ := machine(t, "web2", 1)
	if _, err := open(t, dir, func(c *Config) { c.NetworkFile = others.path() }); !usage.Is(err) || !strings.Contains(err.Error(), "`jiji-node init`") {
		t.Errorf("somebody else's topology, and no key: %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the state directory was made: %v", err)
	}

	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	if m, err = open(t, dir, nil); err != nil {
		t.Fatal(err)
	}
	if again, created := m.Key(); again != key || created || !m.Known() {
		t.Errorf("another key than the one that was saved")
	}
}

// What says the same already is not written again: a full disk is no reason to
// stay away.
func TestSaveWritesOnlyNews(t *testing.T) {
	m, _ := machine(t, "web1", 0)
	before, err := os.Stat(m.path())
	if err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, m.cfg.Dir, nil)
	if err := again.Save(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(m.path()); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again: %v", err)
	}
}

func TestFollowWritesItsOwnCopyAgain(t *testing.T) {
	a, _ := machine(t, "web1", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	done := make(chan error, 1)
	go func() { done <- a.Follow(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	file := filepath.Join(a.cfg.Dir, FileName)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for ctx.Err() == nil {
		if known, err := topology.Load(file); err == nil {
			if !known.Equal(a.Topology()) {
				t.Errorf("written again as %s", ids(known))
			}
			break
		}
		time.Sleep(10 * time.Millisecond) // a poll: the loop is bounded by ctx
	}
	if ctx.Err() != nil {
		t.Error("the file did not come back")
	}
	if p := a.Problem(); p != "" {
		t.Errorf("problem %q", p)
	}
}
