//go:build linux

package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const stateDir = "/var/lib/jiji"

// agentAPI sends one request to the API of a server's agent, as anybody with the
// token might.
func agentAPI(s *lab.Server, path string, body any) string {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	out, err := s.TryInput(string(text), "sh", "-c",
		`curl -sS --max-time 20 -H "Authorization: Bearer $(cat `+stateDir+`/corrosion/token)" -H "Content-Type: application/json" --data-binary @- http://127.0.0.1:8080/v1/`+path)
	if err != nil {
		return err.Error()
	}
	return out
}

// write runs a statement on a server's agent.
func (c *cluster) write(s *lab.Server, statement string, args ...any) {
	c.t.Helper()
	if args == nil {
		args = []any{}
	}
	out := agentAPI(s, "transactions", [][]any{{statement, args}})
	if !strings.Contains(out, "rows_affected") || strings.Contains(out, `"error"`) {
		c.t.Fatalf("%s on %s: %s", statement, s.Name, out)
	}
}

// read returns the rows that a query on a server's agent has.
func (c *cluster) read(s *lab.Server, query string) (rows [][]any) {
	c.t.Helper()
	out := agentAPI(s, "queries", query)
	for line := range strings.Lines(out) {
		var event struct {
			Row   []json.RawMessage `json:"row"`
			Error *string           `json:"error"`
		}
		if json.Unmarshal([]byte(line), &event) != nil || event.Error != nil {
			c.t.Fatalf("%s on %s: %s", query, s.Name, out)
		}
		if len(event.Row) == 2 {
			var cells []any
			if err := json.Unmarshal(event.Row[1], &cells); err != nil {
				c.t.Fatal(err)
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

// wipe stops server i and takes its state away, all but what keep names. The
// registry's database goes, too.
func (c *cluster) wipe(i int, keep ...string) {
	c.t.Helper()
	s := c.servers[i]
	c.nodes[i].Stop()
	line := "mkdir -p /run/kept && mv "
	for _, k := range keep {
		line += stateDir + "/" + k + " "
	}
	if len(keep) > 0 {
		s.Run("sh", "-c", line+"/run/kept/")
	}
	s.Run("sh", "-c", "find "+stateDir+" -mindepth 1 -delete")
	if len(keep) > 0 {
		s.Run("sh", "-c", "mv /run/kept/* "+stateDir)
	}
}

// newcomer makes a server that the mesh does not know, with an agent's
// resolver, and runs nothing on it.
func (c *cluster) newcomer(name string) *lab.Server {
	c.t.Helper()
	s := c.Server(name).On(c.nets...)
	s.SetResolvers(c.lan.Gateway())
	return s
}

// launchOn runs a node on a server that is no part of c.servers.
func (c *cluster) launchOn(s *lab.Server) *lab.Process {
	c.t.Helper()
	return s.Start(append([]string{"run"}, c.corrosion()...)...)
}

// is waits until a server is a peer of s that is up, with that subnet and key.
func peerIs(t *testing.T, s *lab.Server, id, subnet string, key wgkey.Public, limit time.Duration) {
	t.Helper()
	waitPeer(t, s, id, limit, func(p control.Peer) bool {
		return p.State == "up" && p.Subnet.String() == subnet && p.Key == key
	})
}

func keyOf(t *testing.T, s *lab.Server) wgkey.Public {
	t.Helper()
	key, err := wgkey.ParsePublic(strings.TrimSpace(s.Run("sh", "-c", "wg pubkey < "+stateDir+"/private.key")))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// warned waits until the status of s has a warning with all of these in it.
func warned(t *testing.T, s *lab.Server, limit time.Duration, parts ...string) string {
	t.Helper()
	var found string
	lab.Eventually(t, limit, fmt.Sprintf("status of %s warns of %q", s.Name, parts), func() error {
		st, err := tryStatus(t, s)
		if err != nil {
			return err
		}
		for _, line := range st.Warnings {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				found = line
				return nil
			}
		}
		return fmt.Errorf("it warns of %q; registry: %+v", st.Warnings, st.Registry)
	})
	return found
}

// A server that lost all but its key is what it was, with nothing but one peer to ask.
func TestRegistryShow4OldKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web3, key := c.servers[2], keyOf(t, c.servers[2])
	web3.Run("jiji-node", "service", "register", "api", "--ip", "10.210.2.10", "--project", "shop", "--id", "first", "--port", "8080")
	web3.Run("jiji-node", "service", "register", "api", "--ip", "10.210.2.11", "--id", "second")
	for i, s := range c.servers {
		answers(t, s, i, "api.jiji", 10*time.Second, "10.210.2.10", "10.210.2.11")
	}
	before := c.read(c.servers[0], "SELECT id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, removed_at FROM servers WHERE id = 'web3'")
	c.wipe(2, "private.key")
	c.step("Re-image", func() {
		sh(web3, "jiji-node server add web1.json")
		p := c.launch(2, c.corrosion()...)
		for _, s := range c.servers[:2] {
			waitPeer(t, web3, s.Name, time.Minute, func(p control.Peer) bool { return p.State == "up" })
		}
		lab.Eventually(t, time.Minute, "web3 has its subnet", func() error {
			st, err := tryStatus(t, web3)
			if err == nil && (st.Server.Subnet.String() != "10.210.2.0/24" || len(st.Warnings) > 0) {
				err = fmt.Errorf("it has %s and warns %q", st.Server.Subnet, st.Warnings)
			}
			return err
		})
		if st := status(t, web3); st.Server.ID != "web3" || st.Server.Subnet.String() != "10.210.2.0/24" || st.Server.Key != key {
			t.Errorf("web3 is %+v\n%s", st.Server, p.Log())
		}
	})
	for i, s := range c.servers {
		answers(t, s, i, "api.jiji", 10*time.Second, "10.210.2.10", "10.210.2.11")
		answers(t, s, i, "shop-api.jiji", 10*time.Second, "10.210.2.10")
		if i != 2 {
			peerIs(t, s, "web3", "10.210.2.0/24", key, 10*time.Second)
			reach(t, s.Host, "10.210.2.1", 10*time.Second)
		}
	}
	after := c.read(c.servers[0], "SELECT id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, removed_at FROM servers WHERE id = 'web3'")
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("row of web3 was %v, is %v", before, after)
	}
	if n := len(c.read(c.servers[0], "SELECT id FROM servers")); n != 3 {
		t.Errorf("%d rows of servers, want 3", n)
	}
	web3.Run("jiji-node", "service", "deregister", "second")
	answers(t, c.servers[0], 0, "api.jiji", 10*time.Second, "10.210.2.10")
}

// One with a new key and the same host name is another server: what the old
// key has stays its own.
func TestRegistryShow4NewKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1, web3, old := c.servers[0], c.servers[2], keyOf(t, c.servers[2])
	web3.Run("jiji-node", "service", "register", "api", "--ip", "10.210.2.10", "--id", "first")
	answers(t, web1, 0, "api.jiji", 10*time.Second, "10.210.2.10")
	c.wipe(2)
	var p *lab.Process
	c.step("Join with a new key", func() {
		sh(web3, "jiji-node init --endpoint "+web3.Links()[0].Addr().String()+" > web3new.json && jiji-node server add web2.json")
		web1.WriteFile("/run/web3new.json", web3.ReadFile("/run/web3new.json"))
		t.Logf("server add says %s", sh(web1, "jiji-node server add web3new.json"))
		p = c.launch(2, c.corrosion()...)
		lab.Eventually(t, time.Minute, "the newcomer has another id", func() error {
			st, err := tryStatus(t, web3)
			if err == nil && (st.Server.ID == "web3" || st.Registry.State != "up" || st.Registry.Pending != 0) {
				err = fmt.Errorf("it is %s, registry %+v", st.Server.ID, st.Registry)
			}
			return err
		})
	})
	key := keyOf(t, web3)
	if key == old {
		t.Fatal("the key is the old one")
	}
	st := status(t, web3)
	if st.Server.ID != "web3-1" || st.Server.Subnet.String() != "10.210.3.0/24" {
		t.Errorf("the newcomer is %s with subnet %s, want web3-1 with 10.210.3.0/24\n%s", st.Server.ID, st.Server.Subnet, p.Log())
	}
	for _, s := range c.servers[:2] {
		peerIs(t, s, "web3-1", "10.210.3.0/24", key, 15*time.Second)
	}
	rows := fmt.Sprint(c.read(web1, "SELECT id, subnet, wireguard_pubkey FROM servers WHERE id LIKE 'web3%' ORDER BY id"))
	if want := fmt.Sprintf("[[web3 10.210.2.0/24 %s] [web3-1 10.210.3.0/24 %s]]", old, key); rows != want {
		t.Errorf("rows are %s, want %s", rows, want)
	}
	t.Logf("log: %s", grep(p.Log(), "another server has this machine's id"))
	t.Logf("web3-1 warns %q, web1 warns %q", st.Warnings, status(t, web1).Warnings)
	c.step("Remove the old one", func() {
		lab.Eventually(t, time.Minute, "web3 is removed", func() error { // up for 30 s after its end
			_, err := web1.Try("jiji-node", "server", "remove", "web3")
			return err
		})
		for _, s := range []*lab.Server{web1, c.servers[1], web3} {
			lab.Eventually(t, 15*time.Second, "web3 is no peer of "+s.Name, func() error {
				if _, ok := peerOf(status(t, s), "web3"); ok {
					return errors.New("it is")
				}
				return nil
			})
		}
		peerIs(t, web1, "web3-1", "10.210.3.0/24", key, 15*time.Second)
	})
}

// grep returns the lines of text that have part in them.
func grep(text, part string) string {
	var found strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			found.WriteString(line)
		}
	}
	return found.String()
}

// Two servers that are added at the same moment, on two members, get two subnets.
func TestRegistryShow4JoinAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	a, b := c.newcomer("web4"), c.newcomer("web5")
	for i, s := range []*lab.Server{a, b} {
		file := "/run/" + s.Name + ".json"
		sh(s, "jiji-node init --endpoint "+s.Links()[0].Addr().String()+" > "+file)
		on := c.servers[i]
		on.WriteFile(file, s.ReadFile(file))
		peer := "/run/" + c.servers[i+1].Name + ".json"
		s.WriteFile(peer, c.servers[i+1].ReadFile(peer))
		s.Run("jiji-node", "server", "add", peer)
	}
	start := time.Now()
	added := make(chan error, 2)
	for i, s := range []*lab.Server{a, b} {
		go func() {
			out, err := c.servers[i].Try("jiji-node", "server", "add", "/run/"+s.Name+".json")
			t.Logf("%s: %s", c.servers[i].Name, strings.TrimSpace(out))
			added <- err
		}()
	}
	for range 2 {
		if err := <-added; err != nil {
			t.Fatal(err)
		}
	}
	nodes := []*lab.Process{c.launchOn(a), c.launchOn(b)}
	all := append(slices.Clone(c.servers), a, b)
	c.step("Join", func() {
		lab.Eventually(t, 90*time.Second, "five servers with five subnets", func() error {
			first := ""
			for _, s := range all {
				st, err := tryStatus(t, s)
				if err != nil {
					return err
				}
				subnets := map[netip.Prefix]string{st.Server.Subnet: st.Server.ID}
				for _, p := range st.Peers {
					if p.State != "up" {
						return fmt.Errorf("on %s, %s is %s", s.Name, p.ID, p.State)
					}
					if subnets[p.Subnet] != "" {
						return fmt.Errorf("on %s, subnet %s is that of %s and %s", s.Name, p.Subnet, subnets[p.Subnet], p.ID)
					}
					subnets[p.Subnet] = p.ID
				}
				if len(subnets) != 5 || len(st.Warnings) > 0 {
					return fmt.Errorf("%s has %v and warns %q", s.Name, subnets, st.Warnings)
				}
				if first == "" {
					first = fmt.Sprint(subnets)
				}
				if fmt.Sprint(subnets) != first {
					return fmt.Errorf("%s has %v, %s has %s", s.Name, subnets, all[0].Name, first)
				}
			}
			return nil
		})
	})
	t.Logf("two subnets everywhere after %v: %s %s, %s %s", time.Since(start).Round(time.Millisecond), a.Name, status(t, a).Server.Subnet, b.Name, status(t, b).Server.Subnet)
	for _, from := range all {
		for _, to := range all {
			if from != to {
				reach(t, from.Host, status(t, to).Server.WireGuardIP.String(), 5*time.Second)
			}
		}
	}
	for i, p := range nodes {
		t.Logf("newcomer %d moved %d times: %s", i, strings.Count(p.Log(), "starting again"), grep(p.Log(), "subnet"))
	}
}

// One that reads its own tombstone says so, writes nothing any more and leaves.
func TestRegistryShow4Tombstone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1, web3 := c.servers[0], c.servers[2]
	c.step("Remove", func() {
		web1.Run("jiji-node", "server", "remove", "--force", "web3")
		lab.Eventually(t, 30*time.Second, "web3 leaves", func() error {
			st, err := tryStatus(t, web3)
			if err != nil {
				return err
			}
			if st.State != "removed" || len(st.Peers) != 0 {
				return fmt.Errorf("it is %s with %d peers", st.State, len(st.Peers))
			}
			return nil
		})
	})
	t.Logf("it warns %q, its log says %s", warned(t, web3, time.Second, "removed"), grep(c.nodes[2].Log(), "removed"))
	if grep(c.nodes[2].Log(), "removed from the mesh; it has no peers") == "" {
		t.Error("its log does not say that it was removed")
	}
	for _, s := range c.servers[:2] {
		lab.Eventually(t, 10*time.Second, "web3 is no peer of "+s.Name, func() error {
			if _, ok := peerOf(status(t, s), "web3"); ok {
				return errors.New("it is")
			}
			return nil
		})
	}
	web3.Run("jiji-node", "service", "register", "late", "--ip", "10.210.2.10")
	versions := func() string {
		return fmt.Sprint(c.read(web3, "SELECT max(db_version) FROM crsql_changes WHERE site_id = crsql_site_id()"))
	}
	lab.Eventually(t, 10*time.Second, "web3 is done writing", func() error {
		st, err := tryStatus(t, web3)
		if err == nil && st.Registry.State == "catching up" {
			err = errors.New("it is catching up")
		}
		return err
	})
	was := versions()
	holds(t, 35*time.Second, "web3 writes nothing", func() error { // longer than the time between two beats
		if now := versions(); now != was {
			return fmt.Errorf("its version was %s and is %s", was, now)
		}
		return nil
	})
	row := fmt.Sprint(c.read(web1, "SELECT removed_at IS NULL FROM servers WHERE id = 'web3'"))
	if row != "[[0]]" {
		t.Errorf("its tombstone is gone: %s", row)
	}
	c.nodes[2].Stop()
	c.launch(2, c.corrosion()...).WaitReady()
	warned(t, web3, 10*time.Second, "removed")
}

// holds checks for a while that ok is content.
func holds(t *testing.T, limit time.Duration, what string, ok func() error) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Second) {
		if err := ok(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// stray inserts a row of a server that nobody runs, as a stranger would.
func (c *cluster) stray(s *lab.Server, id, subnet string, claimed int64) wgkey.Public {
	c.t.Helper()
	key := wgkey.NewPrivate().Public()
	p := netip.MustParsePrefix(subnet)
	c.write(s, "INSERT INTO servers (id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		id, id, subnet, ipplan.WireGuardIP(p).String(), key.String(), ipplan.Management(key).String(), `["203.0.113.99:51820"]`, 1)
	if claimed != 0 {
		c.write(s, "INSERT INTO jiji_servers (id, claimed_at) VALUES (?, ?)", id, claimed)
	}
	return key
}

// One that has containers in a subnet that another server had before it says
// what to do, keeps working, and moves once they are gone.
func TestRegistryShow4Attached(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1, web3 := c.servers[0], c.servers[2]
	web3.Run("jiji-node", "service", "register", "api", "--ip", "10.210.2.10", "--id", "first")
	answers(t, web1, 0, "api.jiji", 10*time.Second, "10.210.2.10")
	c.step("Lose the subnet", func() {
		c.stray(web1, "older", "10.210.2.0/24", 1)
		t.Log(warned(t, web3, 15*time.Second, "10.210.2.0/24", "belongs to older", "first", "deregister"))
	})
	answers(t, web1, 0, "api.jiji", 5*time.Second, "10.210.2.10")
	reach(t, web1.Host, "10.210.2.1", 5*time.Second)
	web3.Run("jiji-node", "service", "register", "more", "--ip", "10.210.2.11", "--id", "second")
	answers(t, web1, 0, "more.jiji", 10*time.Second, "10.210.2.11")
	c.step("Move", func() {
		web3.Run("jiji-node", "service", "deregister", "first", "second")
		lab.Eventually(t, time.Minute, "web3 has another subnet", func() error {
			st, err := tryStatus(t, web3)
			if err == nil && st.Server.Subnet.String() != "10.210.3.0/24" {
				err = fmt.Errorf("it has %s and warns %q", st.Server.Subnet, st.Warnings)
			}
			return err
		})
		for _, s := range c.servers[:2] {
			waitPeer(t, s, "web3", 15*time.Second, func(p control.Peer) bool {
				return p.State == "up" && p.Subnet.String() == "10.210.3.0/24"
			})
		}
		reach(t, web1.Host, "10.210.3.1", 10*time.Second)
	})
}

// Rows of strangers are named and harm nobody, and mended ones are taken.
func TestRegistryShow4HostileRows(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1, web2 := c.servers[0], c.servers[1]
	key := wgkey.NewPrivate().Public()
	row := func(id string, cells map[string]any) {
		all := map[string]any{"hostname": id, "subnet": "10.210.9.0/24", "wireguard_ip": "10.210.9.1", "wireguard_pubkey": key.String(),
			"management_ip": ipplan.Management(key).String(), "endpoints": `["203.0.113.99:51820"]`, "last_seen": 1, "removed_at": nil}
		names, marks, args := []string{"id"}, []string{"?"}, []any{id}
		for name, v := range all {
			if changed, ok := cells[name]; ok {
				v = changed
			}
			names, marks, args = append(names, name), append(marks, "?"), append(args, v)
		}
		c.write(web1, "INSERT INTO servers ("+strings.Join(names, ", ")+") VALUES ("+strings.Join(marks, ", ")+")", args...)
	}
	own := keyOf(t, web2)
	hostile := []struct {
		id     string
		cells  map[string]any
		reason string
	}{
		{"huge", map[string]any{"hostname": strings.Repeat("x", 4_000)}, "253"},
		{"blob", map[string]any{"subnet": 7.5}, "subnet"},
		{"type", map[string]any{"last_seen": "yesterday"}, "last_seen"},
		{"inside", map[string]any{"endpoints": `["10.210.0.1:51820"]`}, "inside the mesh"},
		{"mgmt", map[string]any{"management_ip": "fdcc::1"}, "does not follow from its public key"},
		{"many", map[string]any{"endpoints": "[" + strings.Repeat(`"203.0.113.9:1",`, 70) + `"203.0.113.9:2"]`}, ""},
		{"outside", map[string]any{"subnet": "10.99.0.0/24", "wireguard_ip": "10.99.0.1"}, "outside cluster"},
		{"wide", map[string]any{"subnet": "10.210.0.0/16", "wireguard_ip": "10.210.0.1"}, "/24"},
		{"overlap", map[string]any{"subnet": "10.210.1.0/24", "wireguard_ip": "10.210.1.1", "wireguard_pubkey": wgkey.Public{1}.String(), "management_ip": ipplan.Management(wgkey.Public{1}).String()}, "10.210.1.0/24"},
		{"twice", map[string]any{"subnet": "10.210.8.0/24", "wireguard_ip": "10.210.8.1", "wireguard_pubkey": own.String(), "management_ip": ipplan.Management(own).String()}, "web2"},
		{"WEB2", map[string]any{"subnet": "10.210.7.0/24", "wireguard_ip": "10.210.7.1", "wireguard_pubkey": wgkey.Public{2}.String(), "management_ip": ipplan.Management(wgkey.Public{2}).String()}, "web2"},
		{"bad id!", nil, "id"},
		{"notjson", map[string]any{"endpoints": "nonsense"}, "endpoints"},
	}
	for _, h := range hostile {
		row(h.id, h.cells)
	}
	c.write(web1, "INSERT INTO servers (id, wireguard_pubkey, removed_at) VALUES ('ghost', ?, 5)", wgkey.Public{3}.String())
	c.write(web1, "INSERT INTO servers (id, removed_at) VALUES ('nobody', 5)")
	for _, s := range c.servers {
		for _, h := range hostile {
			if h.reason != "" {
				line := warned(t, s, 20*time.Second, h.id, h.reason)
				if s == web1 {
					t.Logf("%.300s", line)
				}
			}
		}
	}
	for i, s := range c.servers {
		st := status(t, s)
		if st.Server.Subnet.String() != fmt.Sprintf("10.210.%d.0/24", i) || st.Server.ID != fmt.Sprintf("web%d", i+1) || strings.Contains(c.nodes[i].Log(), "starting again") {
			t.Errorf("%s is %s with %s", s.Name, st.Server.ID, st.Server.Subnet)
		}
		for _, p := range st.Peers {
			if strings.HasPrefix(p.ID, "web") && p.State != "up" {
				t.Errorf("on %s, %s is %s", s.Name, p.ID, p.State)
			}
		}
	}
	c.waitUp(c.servers...)
	reach(t, web1.Host, "10.210.1.1", 5*time.Second)
	web2.Run("jiji-node", "service", "register", "api", "--ip", "10.210.1.10")
	answers(t, web1, 0, "api.jiji", 5*time.Second, "10.210.1.10")
	c.step("Mend", func() {
		c.write(web1, "DELETE FROM servers WHERE id IN ('huge', 'blob', 'type', 'many', 'inside', 'outside', 'wide', 'overlap', 'twice', 'WEB2', 'bad id!', 'notjson', 'nobody')")
		c.write(web1, "UPDATE servers SET management_ip = ? WHERE id = 'mgmt'", ipplan.Management(key).String())
		for _, s := range c.servers {
			waitPeer(t, s, "mgmt", 15*time.Second, func(p control.Peer) bool { return p.Subnet.String() == "10.210.9.0/24" })
			lab.Eventually(t, 15*time.Second, s.Name+" warns of nothing", func() error {
				if st, err := tryStatus(t, s); err != nil || len(st.Warnings) > 0 {
					return fmt.Errorf("%v %q", err, st.Warnings)
				}
				return nil
			})
		}
	})
}

// A copy of a whole machine, Corrosion's database and all, that runs beside it: both
// say so and write nothing any more; the others' rows are as they were.
func TestRegistryShow4Clone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1, web3 := c.servers[0], c.servers[2]
	c.register(0, "api", "one", "10.210.0.10")
	c.register(2, "db", "three", "10.210.2.10")
	answers(t, web1, 0, "db.jiji", 20*time.Second, "10.210.2.10")
	c.nodes[2].Stop()
	clone := c.Server("clone").On(c.lan)
	clone.SetResolvers(c.lan.Gateway())
	if out, err := runHere("cp", "-a", web3.Path("/var/lib/jiji"), clone.Path("/var/lib/")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.nodes[2] = c.start(2, c.corrosion()...)
	copied := clone.Start(append([]string{"run"}, c.corrosion()...)...)
	copied.WaitReady()
	for _, s := range []*lab.Server{web3, clone} {
		lab.Eventually(t, 3*time.Minute, s.Name+" says so", func() error {
			st, err := tryStatus(t, s)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.Contains(w, "duplicate identity") }) {
				return fmt.Errorf("it warns %q", st.Warnings)
			}
			return nil
		})
	}
	for _, p := range []*lab.Process{c.nodes[2], copied} {
		if n := strings.Count(p.Log(), "duplicate identity; no own rows"); n != 1 {
			t.Errorf("the log says so %d times", n)
		}
		if n := strings.Count(p.Log(), "written again"); n > 3 {
			t.Errorf("own rows were written again %d times", n)
		}
	}
	answers(t, web1, 0, "api.jiji", 5*time.Second, "10.210.0.10")
	answers(t, web1, 0, "db.jiji", 5*time.Second, "10.210.2.10")
	if st := status(t, web1); len(st.Peers) != 2 {
		t.Errorf("web1 has %d peers, want 2", len(st.Peers))
	}
}
