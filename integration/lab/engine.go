//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const engineLimit = 30 * time.Second // for an engine to answer

// busybox is what the programs of the engines' containers are.
const busybox = "/bin/busybox"

// An Engine is Docker's or Podman's, on a server, with everything of its own: its
// data, its socket, its bridges and its rules in the server's firewall.
type Engine struct {
	Kind string // docker or podman, which is the name of its command, too
	*Process
	server *Server
	args   []string
}

// Docker starts Docker on the server, with arguments of dockerd. The image "box"
// holds busybox.
func (s *Server) Docker(args ...string) *Engine {
	s.lab.tb.Helper()
	needEngine(s.lab.tb, "dockerd", "docker.io")
	s.Spawn("containerd", "--log-level", "warn") // as services do it: a dockerd that is killed takes one of its own along
	const socket = "/run/containerd/containerd.sock"
	Eventually(s.lab.tb, engineLimit, "containerd listens on "+s.Name, func() error {
		c, err := net.Dial("unix", s.Path(socket))
		if err == nil {
			c.Close()
		}
		return err
	})
	e := &Engine{Kind: "docker", server: s, args: append([]string{"--containerd", socket, "--storage-driver", "overlay2", "--cgroup-parent", s.containerCgroup()}, args...)}
	e.Start()
	e.load()
	return e
}

// Podman starts Podman's service on the server. The image "box" holds busybox.
func (s *Server) Podman() *Engine {
	s.lab.tb.Helper()
	needEngine(s.lab.tb, "podman", "podman")
	s.WriteFile("/etc/containers/containers.conf", fmt.Sprintf(`[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
network_backend = "netavark"
[containers]
cgroup_parent = %q
`, s.containerCgroup()))
	s.Run("mkdir", "-p", "/run/podman")
	e := &Engine{Kind: "podman", server: s, args: []string{"system", "service", "--time=0", "unix:///run/podman/podman.sock"}}
	e.Start()
	e.load()
	return e
}

func needEngine(tb TB, program, pkg string) {
	tb.Helper()
	for _, need := range [][2]string{{program, pkg}, {"runc", "runc"}, {busybox, "busybox-static"}} {
		if _, err := exec.LookPath(need[0]); err != nil {
			unfit(tb, fmt.Sprintf("not installed: %s (apt-get install %s)", need[0], need[1]))
		}
	}
}

// containerCgroup is the parent of the cgroups of the server's containers, which the host's
// end leaves behind, for the machine has one tree of them: the lab removes it.
func (s *Server) containerCgroup() string { return fmt.Sprintf("/jiji-lab-%d-%s", s.Pid(), s.Name) }

// removeCgroups removes what engines made below the server's cgroup, once nothing runs there.
func (s *Server) removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, _ := filepath.Glob(pattern + s.containerCgroup())
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error { // what vanishes meanwhile is no loss
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				_ = os.Remove(dirs[i])
			}
		}
	}
}

// Start starts the engine, again if it ran before, with further arguments for this
// time, and waits until it answers.
func (e *Engine) Start(args ...string) {
	tb := e.server.lab.tb
	tb.Helper()
	program := "dockerd"
	if e.Kind == "podman" {
		program = "podman"
	}
	e.server.Run("rm", "-f", "/run/docker.pid", "/var/run/docker.pid") // of one that was killed: its number may be another's now
	e.Process = e.server.Spawn(program, slices.Concat(e.args, args)...)
	Eventually(tb, engineLimit, e.Kind+" answers on "+e.server.Name, func() error {
		if e.Ended() {
			return fmt.Errorf("it ended%s", e.tail())
		}
		return ping(e.server.Path(e.socket()))
	})
}

// ping asks the engine behind a socket whether it is there.
func ping(socket string) error {
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	r, err := (&http.Client{Transport: t, Timeout: 5 * time.Second}).Get("http://engine/_ping")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	return nil
}

// socket is where the engine listens.
func (e *Engine) socket() string {
	if e.Kind == "podman" {
		return "/run/podman/podman.sock"
	}
	return "/run/docker.sock"
}

// Run runs the engine's command, with arguments, to its end.
func (e *Engine) Run(args ...string) string {
	e.server.lab.tb.Helper()
	return strings.TrimSpace(e.server.Run(e.Kind, args...))
}

// Try is Run that returns an error instead of ending the test.
func (e *Engine) Try(args ...string) (string, error) {
	out, err := e.server.Try(e.Kind, args...)
	return strings.TrimSpace(out), err
}

// Container runs a container of image box in the background, with arguments of `run`.
// It sleeps, unless args has a command after "--".
func (e *Engine) Container(name string, args ...string) (id string) {
	e.server.lab.tb.Helper()
	command := []string{"sleep", "3600"}
	for i, a := range args {
		if a == "--" {
			args, command = args[:i], args[i+1:]
			break
		}
	}
	line := append([]string{"run", "--detach", "--name", name, "--stop-timeout", "0"}, args...)
	return e.Run(append(append(line, "box"), command...)...)
}

// BootedDocker is the Docker that a booted server's systemd runs. The image "box" holds
// busybox.
func (s *Server) BootedDocker() *Engine {
	s.lab.tb.Helper()
	needEngine(s.lab.tb, busybox, "busybox-static")
	e := &Engine{Kind: "docker", server: s}
	text, err := os.ReadFile(must(s.lab.tb)(boxImage()))
	if err != nil {
		s.lab.tb.Fatalf("read the image: %v", err)
	}
	s.WriteFile("/root/box.tar", string(text))
	e.Run("import", "/root/box.tar", "box")
	return e
}

// load imports the image.
func (e *Engine) load() {
	e.server.lab.tb.Helper()
	e.ImportBox("box", "")
}

// ImportBox makes the image once more, by another name, with a command that its
// containers run, until SIGTERM.
func (e *Engine) ImportBox(name, command string) {
	tb := e.server.lab.tb
	tb.Helper()
	args := []string{"import"}
	if command != "" {
		args = append(args, "--change", fmt.Sprintf("CMD [\"sh\", \"-c\", %q]", "trap 'exit 0' TERM; "+command+" & wait"))
	}
	e.Run(append(args, must(tb)(boxImage()), name)...)
}

// boxImage is a file with the root file system of the image.
var boxImage = sync.OnceValues(func() (string, error) {
	dir, err := workdir()
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "box")
	script := `set -e
mkdir -p "$1/bin" "$1/etc" "$1/tmp" "$1/www"
cp "$2" "$1/bin/busybox"
for name in $("$2" --list); do [ "$name" = busybox ] || ln -sf busybox "$1/bin/$name"; done
echo hello >"$1/www/index.html"
tar -C "$1" -cf "$1.tar" .`
	out, err := exec.Command("/bin/sh", "-c", script, "sh", root, busybox).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make an image: %w\n%s", err, out)
	}
	return root + ".tar", nil
})
