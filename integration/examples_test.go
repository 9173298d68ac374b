//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// A command of an example's README, and where it is to be run.
type exampleCommand struct {
	server int
	line   string
}

// exampleCommands are those of the README's code blocks, block by block.
func exampleCommands(t *testing.T, dir string) (blocks [][]exampleCommand) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	server := -1
	for _, part := range strings.Split(string(text), "```sh\n")[1:] {
		code, _, _ := strings.Cut(part, "\n```")
		var block []exampleCommand
		for line := range strings.Lines(code) {
			line = strings.TrimSpace(line)
			if n, err := fmt.Sscanf(line, "# on web%d", &server); n == 1 && err == nil {
				continue
			}
			block = append(block, exampleCommand{server - 1, line})
		}
		blocks = append(blocks, block)
	}
	return blocks
}

// An exampleLab is servers with Docker and nodes, and one example's files.
type exampleLab struct {
	*cluster
	engines []*lab.Engine
	blocks  [][]exampleCommand
}

// newExampleLab makes what an example's README asks for. images are stand-ins, by
// name, and the command that each runs.
func newExampleLab(t *testing.T, dir string, n int, images map[string]string) *exampleLab {
	t.Helper()
	if _, err := exec.LookPath("docker-compose"); err != nil {
		const missing = "docker-compose is not installed (apt-get install docker-compose)"
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	x := &exampleLab{cluster: newCluster(t, n), blocks: exampleCommands(t, dir)}
	for _, s := range x.servers {
		e := s.Docker()
		x.engines = append(x.engines, e)
		for image, command := range images {
			e.ImportBox(image, command)
		}
		files, err := filepath.Glob(dir + "/*.yml")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s.WriteFile("/run/example/"+filepath.Base(file), string(text))
		}
		// `docker compose` is a plugin; the one that Debian has is a program of its own.
		s.WriteFile("/run/docker-config/cli-plugins/docker-compose", `#!/bin/sh
[ "$1" = docker-cli-plugin-metadata ] && exec echo '{"SchemaVersion":"0.1.0","Vendor":"lab","Version":"1"}'
shift
exec docker-compose "$@"
`)
		s.Run("chmod", "+x", "/run/docker-config/cli-plugins/docker-compose")
		s.Setenv("DOCKER_CONFIG", "/run/docker-config")
	}
	x.startAll()
	for i, s := range x.servers {
		waitEngine(t, s, func(e control.Engine) error { return wantRestart(e, "systemctl restart docker") })
		x.engines[i].Stop()
		x.engines[i].Start()
		waitEngine(t, s, func(e control.Engine) error { return wantRestart(e, "") })
	}
	return x
}

// run runs the commands of a block, and returns what each printed.
func (x *exampleLab) run(block int) (outs []string) {
	x.t.Helper()
	for _, c := range x.blocks[block] {
		outs = append(outs, x.servers[c.server].Run("sh", "-c", "cd /run/example && "+c.line))
	}
	return outs
}

// everywhere waits until the service has these addresses on all servers.
func (x *exampleLab) everywhere(name string, ips ...string) {
	x.t.Helper()
	for i, s := range x.servers {
		answers(x.t, s, i, name, 20*time.Second, ips...)
	}
}

func has(t *testing.T, what, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("%s lacks %s:\n%s", what, w, out)
		}
	}
}

func TestContainersShow5TwoServers(t *testing.T) {
	t.Parallel()
	x := newExampleLab(t, "../examples/two-servers", 2, map[string]string{"busybox:1": "sh", "postgres:15": "nc -ll -p 5432 -e cat"})
	x.run(0)
	api := []string{containerIP(t, x.servers[0], "myapp_api_1"), containerIP(t, x.servers[1], "myapp_api_1")}
	x.everywhere("api.jiji", api...)
	x.everywhere("postgres.jiji", containerIP(t, x.servers[0], "myapp_postgres_1"))
	outs := x.run(1)
	has(t, "api.jiji", outs[1], api...)
	has(t, "myapp-api.jiji", outs[2], api...)
	has(t, "service list", outs[3], append(api, "postgres", "myapp")...)
	outs = x.run(2)
	x.everywhere("api.jiji", api[1])
	has(t, "resolve", outs[1], api[1])
	x.run(3)
	x.everywhere("api.jiji")
	x.everywhere("postgres.jiji")
}

func TestContainersShow5ThreeServers(t *testing.T) {
	t.Parallel()
	x := newExampleLab(t, "../examples/three-servers", 3, map[string]string{"nginx:alpine": "httpd -f -p 80 -h /www"})
	x.run(0)
	var web []string
	for _, s := range x.servers {
		web = append(web, containerIP(t, s, "site_web_1"))
	}
	x.everywhere("web.jiji", web...)
	outs := x.run(1)
	has(t, "resolve", outs[0], web...)
	has(t, "nslookup", outs[1], web...)
	x.run(2)
	x.everywhere("web.jiji")
}
