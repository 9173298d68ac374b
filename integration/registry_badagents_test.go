//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
)

const silentAgent = `
import socket, time
s = socket.create_server(('127.0.0.1', 8080), backlog=200)
held = []
while True: held.append(s.accept())
`

// Whatever is wrong with the agent: one clear line says so, in the log and in
// status; tunnel, names and registrations of this server go on.
func TestRegistryShow8BadAgents(t *testing.T) {
	t.Parallel()
	bin := agenttest.Binary(t)
	external := []string{"--registry", "corrosion", "--corrosion-url", "http://127.0.0.1:8080"}
	managed := func(bin string) []string { return []string{"--registry", "corrosion", "--corrosion-bin", bin} }
	script := func(s *lab.Server, text string) string {
		s.WriteFile("/etc/agent.sh", "#!/bin/sh\n"+text+"\n")
		s.Run("chmod", "755", "/etc/agent.sh")
		return "/etc/agent.sh"
	}
	python := func(s *lab.Server, program string) {
		s.WriteFile("/etc/agent.py", program)
		s.Spawn("python3", "/etc/agent.py")
		lab.Eventually(t, 10*time.Second, "it listens on 8080", func() error {
			_, err := s.Try("sh", "-c", "ss -tlnH | grep -q :8080")
			return err
		})
	}
	for _, c := range []struct {
		name string
		args func(*lab.Server) []string
		says string // in the error of the registry
	}{
		{"PanicsAtStart", func(s *lab.Server) []string {
			return managed(script(s, `case "$1" in --version|-V) echo "corrosion 0.2.0"; exit;; esac; echo "thread 'main' panicked at no luck" >&2; exit 101`))
		}, "101"},
		{"DiskFull", func(s *lab.Server) []string {
			s.Run("mkdir", "-p", "/var/lib/jiji/corrosion")
			s.Run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/lib/jiji/corrosion")
			return managed(bin)
		}, "space"},
		{"SchemaRefused", func(s *lab.Server) []string {
			s.WriteFile("/etc/schema/old.sql", "CREATE TABLE containers (id TEXT PRIMARY KEY NOT NULL, service INTEGER NOT NULL DEFAULT 7);")
			s.WriteFile("/etc/old.toml", `
db = { path = "/var/lib/jiji/corrosion/state.db", schema_paths = ["/etc/schema"] }
gossip = { addr = "127.0.0.1:4001", plaintext = true }
api = { addr = "127.0.0.1:8081" }
admin = { path = "/run/old.sock" }
`)
			s.Run("mkdir", "-p", "-m", "700", "/var/lib/jiji/corrosion")
			old := s.Spawn(bin, "-c", "/etc/old.toml", "agent")
			lab.Eventually(t, 20*time.Second, "the old schema stands", func() error {
				_, err := s.Try("curl", "-sf", "-m", "2", "-H", "Content-Type: application/json", "-d", `"SELECT service FROM containers"`, "http://127.0.0.1:8081/v1/queries")
				return err
			})
			old.Kill9()
			return managed(bin)
		}, "containers"},
		{"WrongToken", func(s *lab.Server) []string {
			s.WriteFile("/etc/token", "wrong")
			s.Run("chmod", "600", "/etc/token")
			s.WriteFile("/etc/a.toml", `
db = { path = "/var/lib/a.db", schema_paths = [] }
gossip = { addr = "127.0.0.1:4001", plaintext = true }
api = { addr = "127.0.0.1:8080", authz = { bearer-token = "right" } }
admin = { path = "/run/a.sock" }
`)
			s.Spawn(bin, "-c", "/etc/a.toml", "agent")
			return append(external, "--corrosion-token-file", "/etc/token")
		}, "token"},
		{"NeverAnswers", func(s *lab.Server) []string {
			python(s, silentAgent)
			return external
		}, "has not answered for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, 2)
			web1, web2 := m.servers[0], m.servers[1]
			web1.SetResolvers(m.lan.Gateway())
			m.start(1)
			node := m.start(0, c.args(web1)...)
			m.waitUp(web1, web2)
			web1.Run("ping", "-n", "-c1", "-W2", wireGuardIP(1))
			limit := 20 * time.Second
			if c.name == "NeverAnswers" {
				limit = 90 * time.Second // an agent that is busy may answer after a minute
			}
			waitSays(t, web1, c.says, limit)
			began := time.Now()
			web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
			if took := time.Since(began); took > time.Second {
				t.Errorf("the registration took %v", took)
			}
			answers(t, web1, 0, "api.jiji", time.Second, "10.210.0.10")
			web1.Run("ping", "-n", "-c1", "-W2", wireGuardIP(1))
			complaints := func() (lines []string) {
				for line := range strings.Lines(node.Log()) {
					if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
						lines = append(lines, line)
					}
				}
				return lines
			}
			lab.Eventually(t, 10*time.Second, "the log says so", func() error {
				if len(complaints()) == 0 {
					return errors.New("it does not")
				}
				return nil
			})
			time.Sleep(4 * time.Second) // for lines that should not come
			if lines := complaints(); len(lines) != 1 || !strings.Contains(lines[0], c.says) {
				t.Errorf("complaints in the log, want one with %q:\n%s", c.says, strings.Join(lines, ""))
			}
		})
	}
}

// waitSays waits until the status names what is wrong with the registry.
func waitSays(t *testing.T, s *lab.Server, says string, limit time.Duration) {
	t.Helper()
	lab.Eventually(t, limit, fmt.Sprintf("status says %q", says), func() error {
		st, err := tryStatus(t, s)
		if err != nil {
			return err
		}
		for _, w := range st.Warnings {
			if strings.Contains(w, says) && !strings.Contains(w, "\n") {
				t.Logf("status: %s", w)
				return nil
			}
		}
		return fmt.Errorf("warnings are %q, registry %+v", st.Warnings, st.Registry)
	})
}

// What was wrong is mended, and the node takes part without being started again.
func TestRegistryShow8Recovers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	web1 := c.servers[0]
	web1.Setenv("LOG", "nonsense") // stops an agent that sees it
	web1.Setenv("DB", "nonsense")
	c.start(1, c.corrosion()...)
	c.start(0, "--registry", "corrosion", "--corrosion-bin", "/etc/corrosion")
	c.waitUp(c.servers...)
	waitSays(t, web1, "/etc/corrosion", 20*time.Second)
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
	web1.Run("ln", "-s", c.bin, "/etc/corrosion")
	for _, s := range c.servers {
		c.joined(s)
	}
	for i, s := range c.servers {
		answers(t, s, i, "api.jiji", 30*time.Second, "10.210.0.10")
	}
}
