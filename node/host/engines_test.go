package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestEngines(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"none", map[string]string{"proc/1/comm": "systemd\n", "proc/self/comm": "dockerd\n"}, nil},
		{"sockets", map[string]string{"run/docker.sock": "", "run/podman/podman.sock": ""}, []string{"docker", "podman"}},
		{"processes", map[string]string{"proc/7/comm": "dockerd\n", "proc/8/comm": "conmon\n", "proc/9/comm": "conmon\n"}, []string{"docker", "podman"}},
		{"both", map[string]string{"run/docker.sock": "", "proc/7/comm": "dockerd\n"}, []string{"docker"}},
	} {
		root := t.TempDir()
		for name, text := range c.files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := enginesIn(root); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
