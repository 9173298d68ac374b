package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Engines names the container engines that are in use on this machine, by their
// sockets and processes, as far as they can be seen from here.
func Engines() []string { return enginesIn("/") }

// enginesIn is Engines for the files below root.
func enginesIn(root string) (names []string) {
	for socket, name := range map[string]string{
		"run/docker.sock":                    "docker",
		"run/podman/podman.sock":             "podman",
		"run/containerd/containerd.sock":     "containerd",
		"run/k3s/containerd/containerd.sock": "k3s",
		"run/crio/crio.sock":                 "crio",
	} {
		if _, err := os.Stat(filepath.Join(root, socket)); err == nil {
			names = append(names, name)
		}
	}
	processes, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*/comm")) // the pattern is right
	for _, file := range processes {
		comm, err := os.ReadFile(file)
		if err != nil {
			continue // it ended
		}
		switch name := strings.TrimSpace(string(comm)); name {
		case "dockerd":
			names = append(names, "docker")
		case "conmon": // one for each container of podman's
			names = append(names, "podman")
		case "podman", "containerd", "crio":
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
