//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// The service beside Docker's own, both under a booted systemd: what the hardening leaves
// is enough to find the engine, make its network, give its containers the name server,
// restart it where that is asked for, and take all of it back.
func TestServiceWithDocker(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	m.Plain()
	web1, web2 := m.servers[0], m.servers[1]
	b := web2.Container("b", "10.210.1.10")
	bootWithUnit(t, web1, bootedKind{prepare: `systemctl -q mask ufw firewalld; systemctl -q unmask docker.service docker.socket containerd.service
		mkdir -p /var/lib/docker /etc/docker
		mount -t tmpfs tmpfs /var/lib/docker
		echo '{"log-driver": "json-file"}' >/etc/docker/daemon.json`})
	docker := web1.BootedDocker()
	m.start(1)
	mainPID := func() string {
		return strings.TrimSpace(web1.Run("systemctl", "show", "docker", "-p", "MainPID", "--value"))
	}
	first := mainPID()

	web1.Run("sh", "-c", unitCommands(t)[3])
	m.waitUp(web1, web2)
	if line := waitLine(t, web1, "has to be restarted"); !strings.Contains(line, "systemctl restart docker") {
		t.Errorf("it says %s", line)
	}
	if now := mainPID(); now != first {
		t.Errorf("Docker was restarted without being asked for: %s, %s before", now, first)
	}
	web1.Run("sh", "-c", "mkdir -p /etc/jiji; echo 'restart-engine: true' >>/etc/jiji/node.yaml; systemctl restart jiji-node")
	lab.Eventually(t, 60*time.Second, "the node restarts Docker", func() error {
		if out, err := docker.Try("info", "--format", "{{.ServerVersion}}"); err != nil || mainPID() == first {
			return fmt.Errorf("main process %s, %s, %v", mainPID(), out, err)
		}
		return nil
	})

	id := docker.Container("api-1", "--restart", "always", "--network", "jiji-mesh", "--label", "jiji.service=api")
	answered := func(when string) {
		t.Helper()
		addr := docker.Run("inspect", "--format", "{{(index .NetworkSettings.Networks \"jiji-mesh\").IPAddress}}", id)
		lab.Eventually(t, 30*time.Second, "api has its address "+when, func() error {
			if out, _ := web1.Try("jiji-node", "resolve", "api"); !strings.Contains(out, addr) {
				return fmt.Errorf("resolve says %s", out)
			}
			if _, err := b.Try("ping", "-n", "-c1", "-W0.5", addr); err != nil {
				return err
			}
			return nil
		})
		if out := docker.Run("exec", id, "nslookup", "web2.node.jiji"); !strings.Contains(out, wireGuardIP(1)) {
			t.Errorf("%s: a container does not find web2.node.jiji:\n%s", when, out)
		}
		docker.Run("exec", id, "ping", "-c1", "-W2", b.Addr.String())
	}
	answered("at first")
	web1.Run("systemctl", "restart", "docker")
	answered("after a restart of Docker")
	web1.Run("systemctl", "restart", "jiji-node")
	answered("after a restart of the node")
	if st := status(t, web1); st.State != "ready" || len(st.Warnings) != 0 {
		t.Errorf("state %s, warnings:\n%s", st.State, strings.Join(st.Warnings, "\n"))
	}

	docker.Run("rm", "--force", id)
	out := web1.Run("jiji-node", "down")
	if text := web1.ReadFile("/etc/docker/daemon.json"); text != "{\"log-driver\": \"json-file\"}\n" {
		t.Errorf("daemon.json is\n%s\ndown said:\n%s", text, out)
	}
	if networks := docker.Run("network", "ls", "--format", "{{.Name}}"); strings.Contains(networks, "jiji") {
		t.Errorf("networks are left: %s\ndown said:\n%s", networks, out)
	}
	for line := range strings.Lines(journalOf(web1)) {
		if strings.Contains(line, "level=ERROR") && !strings.Contains(line, "no known endpoint") {
			t.Errorf("the journal has: %s", line)
		}
	}
}

// waitLine waits for a line of the service's journal, and returns it.
func waitLine(t *testing.T, s *lab.Server, part string) (found string) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, "the journal has "+part, func() error {
		for line := range strings.Lines(journalOf(s)) {
			if strings.Contains(line, part) {
				found = line
				return nil
			}
		}
		return fmt.Errorf("it has\n%s", journalOf(s))
	})
	return found
}
