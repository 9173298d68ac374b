//go:build linux

package integration_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// The commands that users of the seed know, on a cluster that runs.
func TestRegistryShow7SeedsCommands(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.startAll()
	web1, web2 := c.servers[0], c.servers[1]
	var want []string
	for _, s := range c.servers {
		want = append(want, status(t, s).Server.ManagementIP.String())
	}
	got := strings.Fields(sh(web1, "jq -r '.topology.servers[].managementIp' /var/lib/jiji/network.json"))
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("management addresses %v, want %v", got, want)
	}
	listening := sh(web2, "ss -tlnp | grep 8787")
	if !strings.Contains(listening, "["+want[1]+"]:8787") || strings.Count(listening, "\n") != 1 {
		t.Errorf("listening on 8787:\n%swant %s alone", listening, want[1])
	}
	metrics := sh(web1, "curl -sS -m 5 http://["+want[1]+"]:8787/metrics")
	if !strings.Contains(metrics, "corro_") {
		t.Errorf("metrics of web2 from web1: %.300s", metrics)
	}
	for _, at := range []string{wireGuardIP(1), web2.Addr(c.lan).String()} {
		if out, err := web1.Try("curl", "-sS", "-m", "2", "http://"+at+":8787/metrics"); err == nil {
			t.Errorf("metrics on %s, too: %.100s", at, out)
		}
	}
}

// A mesh that runs goes over to Corrosion, and back: nothing restarts, nothing
// that was registered is lost, and no packet.
func TestRegistryUse(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.mesh.startAll("--corrosion-bin", c.bin)
	web1, web2 := c.servers[0], c.servers[1]
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10", "--project", "shop", "--port", "80")
	web2.Run("jiji-node", "service", "register", "db", "--ip", "10.210.1.10")
	before := status(t, web1)
	ping := web1.Spawn("ping", "-n", "-i0.1", "-c", "80", wireGuardIP(1))
	use := func(mode string) {
		for _, s := range c.servers {
			s.Run("jiji-node", "registry", "use", mode)
			s.Run("jiji-node", "registry", "use", mode) // said again
		}
	}
	use("corrosion")
	for i, s := range c.servers {
		c.joined(s)
		answers(t, s, i, "api.jiji", 30*time.Second, "10.210.0.10")
		answers(t, s, i, "shop-api.jiji", 30*time.Second, "10.210.0.10")
		answers(t, s, i, "db.jiji", 30*time.Second, "10.210.1.10")
	}
	if code := ping.Wait(30 * time.Second); code != 0 || !strings.Contains(ping.Log(), " 0% packet loss") {
		t.Errorf("ping through it:\n%s", ping.Log())
	}
	after := status(t, web1)
	if after.PID != before.PID || after.StartedAt != before.StartedAt {
		t.Errorf("the node was started again: %+v, %+v", before, after)
	}
	use("embedded")
	answers(t, web1, 0, "api.jiji", 10*time.Second, "10.210.0.10")
	answers(t, web1, 0, "db.jiji", 10*time.Second)
	if r := status(t, web1).Registry; r.Mode != control.Embedded || r.Agent != nil {
		t.Errorf("registry is %+v", r)
	}
}

// A removed server hears of it, says so and leaves; the others let it go.
func TestRegistryServerRemove(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	if _, err := c.servers[0].Try("jiji-node", "server", "remove", "web3"); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("remove of a server that is up: %v", err)
	}
	c.servers[0].Run("jiji-node", "server", "remove", "web3", "--force")
	for _, s := range c.servers[:2] {
		lab.Eventually(t, 10*time.Second, "web3 is no peer of "+s.Name, func() error {
			st, err := tryStatus(t, s)
			if _, known := peerOf(st, "web3"); err == nil && known {
				return fmt.Errorf("it is")
			}
			return err
		})
	}
	lab.Eventually(t, 10*time.Second, "web3 knows", func() error {
		st, err := tryStatus(t, c.servers[2])
		if err == nil && (st.State != "removed" || len(st.Peers) != 0 && st.Peers[0].State == "up") {
			return fmt.Errorf("it is %s with %d peers", st.State, len(st.Peers))
		}
		return err
	})
}

// An agent that somebody else runs, with a token, without our tables: the rows of
// the shared ones are read and written all the same, those of older programs too.
func TestRegistryExternalWithoutOurTables(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	web1, web2 := c.servers[0], c.servers[1]
	web1.WriteFile("/etc/agent/schema/shared.sql", sharedSchema(web1))
	web1.WriteFile("/etc/agent/token", "s3cret\n")
	web1.Run("chmod", "600", "/etc/agent/token")
	management := strings.TrimSpace(sh(web1, "jq -r '.topology.servers[] | select(.id==\"web1\") | .managementIp' /var/lib/jiji/network.json"))
	web1.WriteFile("/etc/agent/config.toml", fmt.Sprintf(`
[db]
path = "/var/lib/agent/state.db"
schema_paths = ["/etc/agent/schema"]
[gossip]
addr = "[%s]:8787"
plaintext = true
max_mtu = 1232
[api]
addr = "127.0.0.1:8080"
authz.bearer-token = "s3cret"
[admin]
path = "/run/agent.sock"
`, management))
	web1.Run("mkdir", "-p", "/var/lib/agent")
	web1.WriteFile("/run/agent.sh", "while :; do "+c.bin+" -c /etc/agent/config.toml agent & echo $! >/run/agent.pid; wait; sleep 0.2; done\n") // it fails until its address is there
	web1.Spawn("sh", "/run/agent.sh")
	c.start(0, "--registry", "corrosion", "--corrosion-url", "http://127.0.0.1:8080", "--corrosion-token-file", "/etc/agent/token")
	c.start(1, c.corrosion()...)
	c.waitUp(c.servers...)
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10", "--project", "shop")
	web2.Run("jiji-node", "service", "register", "db", "--ip", "10.210.1.10")
	for i, s := range c.servers {
		answers(t, s, i, "api.jiji", time.Minute, "10.210.0.10")
		answers(t, s, i, "db.jiji", time.Minute, "10.210.1.10")
	}
	if r := status(t, web1).Registry; len(r.NoTables) == 0 || r.Agent == nil || r.Agent.Managed {
		t.Errorf("registry of web1 is %+v", r)
	}
	// What the predecessor wrote of a server that runs no jiji-node: no added tables.
	sql := func(s *lab.Server, token, statement string) {
		t.Helper()
		s.Run("curl", "-sS", "-f", "-m", "10", "-H", "Authorization: Bearer "+token, "-H", "Content-Type: application/json",
			"-d", "["+strconv.Quote(statement)+"]", "http://127.0.0.1:8080/v1/transactions")
	}
	key := strings.TrimSpace(sh(web1, "wg genkey | wg pubkey"))
	parsed, err := wgkey.ParsePublic(key)
	if err != nil {
		t.Fatal(err)
	}
	sql(web1, "s3cret", "INSERT INTO servers (id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, last_seen) VALUES ('old', 'old.example.com', '10.210.7.0/24', '10.210.7.1', '"+
		key+"', '"+ipplan.Management(parsed).StringExpanded()+`', '["203.0.113.77:51820"]', 1767225600000)`)
	sql(web1, "s3cret", "INSERT INTO services (name, project) VALUES ('legacy', 'attic')")
	sql(web1, "s3cret", "INSERT INTO containers (id, service, server_id, ip, started_at, instance_id) VALUES ('old1', 'legacy', 'old', '10.210.7.77', 1767225600000, 'blue')")
	for i, s := range c.servers {
		answers(t, s, i, "legacy.jiji", 30*time.Second, "10.210.7.77")
		answers(t, s, i, "attic-legacy-blue.jiji", 30*time.Second, "10.210.7.77")
		answers(t, s, i, "old.node.jiji", 30*time.Second, "10.210.7.1")
	}
	// What is in our tables does not reach the agent, nor do versions with a part of it.
	web2.Run("jiji-node", "service", "register", "cart", "--ip", "10.210.1.11", "--port", "8080")
	answers(t, web1, 0, "cart.jiji", 30*time.Second, "10.210.1.11")
	ports := func() string {
		return sh(web1, "jiji-node service list --json | jq -r '.[] | select(.service == \"cart\") | .ports[]?'")
	}
	if got := ports(); got != "" {
		t.Errorf("web1 knows ports of cart: %s", got)
	}
	t.Log(warned(t, web1, 4*time.Minute, "the agent has got none of the versions of others that it lacks", "jiji_containers", "`jiji-node registry schema`, and start it again"))
	sh(web1, "jiji-node registry schema >/etc/agent/schema/jiji.sql && kill $(cat /run/agent.pid)")
	lab.Eventually(t, time.Minute, "web1 knows ports of cart", func() error {
		if got := ports(); got != "8080/tcp\n" {
			return fmt.Errorf("it knows %q", got)
		}
		return nil
	})
	waitRegistry(t, web1, time.Minute, func(r control.Registry) error {
		if r.Gaps != 0 || len(r.NoTables) != 0 || r.Error != "" {
			return fmt.Errorf("registry is %+v", r)
		}
		return nil
	})
}

// sharedSchema is the part of the schema that clusters of other programs have, too.
func sharedSchema(s *lab.Server) string {
	text := s.Run("jiji-node", "registry", "schema")
	shared, _, _ := strings.Cut(text, "CREATE TABLE IF NOT EXISTS jiji_meta")
	return shared
}
