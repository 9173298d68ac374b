//go:build linux

package integration_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// New containers of an engine resolve names of the mesh, long and short, and of the
// world, on the mesh's network and on the engine's own, by glibc and by musl.
func TestContainersEngineDNS(t *testing.T) {
	for _, kind := range []string{"docker", "podman"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, 1)
			web1 := m.servers[0]
			outside := m.Server("outside").On(m.lan)
			startResolver(t, outside, "192.0.2.1")
			web1.SetResolvers(outside.Addr(m.lan))
			file, before := "/etc/docker/daemon.json", "{ \"log-level\": \"warn\",\n  \"dns\": [\"192.0.2.9\"] }\n"
			if kind == "docker" {
				web1.WriteFile(file, before)
			}
			e := engines[kind](web1)
			m.start(0)
			s := waitEngine(t, web1, func(e control.Engine) error { return upAs(e, kind) })
			if kind == "docker" {
				const command = "systemctl restart docker"
				if s = waitEngine(t, web1, func(e control.Engine) error { return wantRestart(e, command) }); s.Restart != command {
					t.Errorf("engine is %+v", s)
				}
				if n := strings.Count(m.nodes[0].Log(), "--restart-engine does it"); n != 1 {
					t.Errorf("the log says %d times what to do\n%s", n, m.nodes[0].Log())
				}
				e.Stop()
				e.Start()
			}
			waitEngine(t, web1, func(e control.Engine) error { return wantRestart(e, "") })

			programs := map[string]string{"glibc": compile(t, "gcc", "testdata/resolve.c")}
			if _, err := exec.LookPath("musl-gcc"); err == nil {
				programs["musl"] = compile(t, "musl-gcc", "testdata/resolve.c")
			} else {
				t.Log("musl-gcc is not installed (apt-get install musl-tools): not proved")
			}
			e.Container("api", "--network=jiji-mesh")
			ip := containerIP(t, web1, "api")
			for library, program := range programs {
				for _, network := range []string{"jiji-mesh", "default"} {
					name := library + "-" + network
					args := []string{"--volume=" + filepath.Dir(program) + ":/programs:ro"}
					if network != "default" {
						args = append(args, "--network="+network)
					}
					e.Container(name, args...)
					for question, want := range map[string]string{"api": ip, "api.jiji": ip, "www.example.org": "192.0.2.1"} {
						out, err := e.Try("exec", name, "/programs/"+filepath.Base(program), question)
						if err != nil || out != want {
							t.Errorf("%s is %s, %v, want %s; resolv.conf is\n%s", question, out, err, want, e.Run("exec", name, "cat", "/etc/resolv.conf"))
						}
					}
				}
			}

			e.Run(append([]string{"rm", "-f"}, strings.Fields(e.Run("ps", "-aq"))...)...)
			out := web1.Run("jiji-node", "down")
			if kind == "docker" {
				if after := web1.ReadFile(file); after != before {
					t.Errorf("%s is\n%s\nand was\n%s", file, after, before)
				}
				if !strings.Contains(out, "docker gives its containers the node's name server until it is restarted: systemctl restart docker") {
					t.Errorf("down says\n%s", out)
				}
			} else if _, err := web1.Try("test", "-e", "/etc/containers/containers.conf.d"); err == nil {
				t.Error("containers.conf.d is left")
			}
		})
	}
}

func wantRestart(e control.Engine, command string) error {
	if e.Restart != command {
		return fmt.Errorf("engine is %+v", e)
	}
	return nil
}

// A configuration that is not Docker's stays as it is, with one line about it, and
// so does one that dockerd would refuse; what is asked for is done by --restart-engine.
func TestContainersShow7Daemon(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	e := web1.Docker()
	const file = "/etc/docker/daemon.json"
	for _, tc := range []struct{ text, want string }{
		{"{\n  // mine\n  \"debug\": true\n}", "docker's containers get no name server of the mesh: /etc/docker/daemon.json: line 2: invalid character '/' looking for beginning of object key string (JSON has no comments); mend it, it stays as it is"},
		{"hello", "docker's containers get no name server of the mesh: /etc/docker/daemon.json: line 1: invalid character 'h' looking for beginning of value; mend it, it stays as it is"},
		{`{"dns": "192.0.2.9"}`, `docker's containers get no name server of the mesh: /etc/docker/daemon.json: "dns" is "192.0.2.9", want a list of texts; mend it, it stays as it is`},
	} {
		web1.WriteFile(file, tc.text)
		m.start(0)
		waitEngine(t, web1, func(e control.Engine) error {
			if !slices.Contains(e.Notes, tc.want) {
				return fmt.Errorf("notes are\n%s", strings.Join(e.Notes, "\n"))
			}
			return nil
		})
		if n := strings.Count(m.nodes[0].Log(), "container engine not given the mesh's name server"); n != 1 {
			t.Errorf("the log says so %d times\n%s", n, m.nodes[0].Log())
		}
		if after := web1.ReadFile(file); after != tc.text {
			t.Errorf("%q became %q", tc.text, after)
		}
		m.nodes[0].Stop()
	}

	web1.WriteFile(file, `{}`)
	web1.WriteFile("/run/fake/systemctl", "#!/bin/sh\necho \"$@\" >>/run/fake/calls\n")
	web1.Run("chmod", "+x", "/run/fake/systemctl")
	node := web1.Spawn("sh", "-c", "PATH=/run/fake:$PATH exec jiji-node run --restart-engine")
	node.WaitReady()
	lab.Eventually(t, 10*time.Second, "docker is restarted", func() error {
		out, err := web1.Try("cat", "/run/fake/calls")
		if err == nil && out != "restart docker\n" {
			err = fmt.Errorf("calls are %q", out)
		}
		return err
	})
	node.Stop()

	e.Kill9()
	web1.WriteFile(file, `{}`)
	e.Start("--dns=192.0.2.9")
	m.start(0)
	waitEngine(t, web1, func(e control.Engine) error {
		if want := "docker's containers get no name server of the mesh: docker is started with --dns, and refuses to start with the same in /etc/docker/daemon.json: take it out of there, and restart jiji-node"; !slices.Contains(e.Notes, want) {
			return fmt.Errorf("notes are\n%s", strings.Join(e.Notes, "\n"))
		}
		return nil
	})
}
