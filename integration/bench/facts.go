//go:build linux

package main

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Facts say what was measured on what.
type Facts struct {
	Time    time.Time `json:"time"`
	Commit  string    `json:"commit"`
	Go      string    `json:"go"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Kernel  string    `json:"kernel"`
	Load    string    `json:"load"` // of the machine before the start, over 1, 5 and 15 minutes
	Pairs   int       `json:"pairs"`
	Against []string  `json:"against"` // the programs and versions that it is compared with
}

func facts(pairs int) Facts {
	f := Facts{
		Time: time.Now().Truncate(time.Second), Go: runtime.Version(), Cores: runtime.NumCPU(), Pairs: pairs,
		CPU: "unknown", Commit: "unknown", Kernel: "unknown",
	}
	if out, err := exec.Command("git", "describe", "--always", "--dirty", "--tags").Output(); err == nil {
		f.Commit = strings.TrimSpace(string(out))
	}
	if given := os.Getenv("JIJI_NODE_BINARY"); given != "" {
		f.Commit = "that of " + given
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		f.CPU = cpuModel(string(text))
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		f.Load = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		f.Kernel = unix.ByteSliceToString(name.Release[:]) + " " + runtime.GOARCH
	}
	return f
}

// moduleVersion returns the version of a module that this one depends on.
func moduleVersion(path string) string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", path).Output()
	if err != nil {
		return "of an unknown version"
	}
	return strings.TrimSpace(string(out))
}

// cpuModel returns the name of the first processor of /proc/cpuinfo.
func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown" // as on arm64
}
