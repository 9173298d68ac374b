//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

const (
	nodeProgram = "jiji-node"
	stockModule = "golang.zx2c4.com/wireguard" // whose main package is wireguard-go
)

// Binary returns the path of jiji-node, which it builds when this process first asks
// for it, with the race detector if JIJI_LAB_RACE is 1. JIJI_NODE_BINARY names another.
func Binary(tb TB) string {
	tb.Helper()
	return must(tb)(nodeBinary())
}

// PlainBinary is Binary without the race detector whatever JIJI_LAB_RACE says, as
// `make build` makes it, and never another.
func PlainBinary(tb TB) string {
	tb.Helper()
	return must(tb)(plainBinary())
}

// StockWireGuard returns the path of wireguard-go as its authors publish it, in the
// version that this module depends on.
func StockWireGuard(tb TB) string {
	tb.Helper()
	return must(tb)(stockBinary())
}

func must(tb TB) func(string, error) string {
	tb.Helper()
	return func(path string, err error) string {
		tb.Helper()
		if err != nil {
			tb.Fatalf("lab: %v", err)
		}
		return path
	}
}

var nodeBinary = sync.OnceValues(func() (string, error) {
	target, err := binaryPath(programs, nodeProgram)
	if err != nil {
		return "", err
	}
	if given := os.Getenv("JIJI_NODE_BINARY"); given != "" {
		abs, err := filepath.Abs(given)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(abs); err != nil {
			return "", fmt.Errorf("JIJI_NODE_BINARY: %w", err)
		}
		return target, os.Symlink(abs, target)
	}
	if raceBuilt() {
		return target, build(target, "./cmd/jiji-node", "CGO_ENABLED=1", "-race")
	}
	return target, build(target, "./cmd/jiji-node", "CGO_ENABLED=0")
})

// plainBinary is jiji-node without the race detector, beside the one that has it.
var plainBinary = sync.OnceValues(func() (string, error) {
	target, err := binaryPath(plainPrograms, nodeProgram)
	if err != nil {
		return "", err
	}
	return target, build(target, "./cmd/jiji-node", "CGO_ENABLED=0")
})

func raceBuilt() bool {
	return os.Getenv("JIJI_LAB_RACE") == "1" && os.Getenv("JIJI_NODE_BINARY") == ""
}

var stockBinary = sync.OnceValues(func() (string, error) {
	target, err := binaryPath(programs, "wireguard-go")
	if err != nil {
		return "", err
	}
	return target, build(target, stockModule, "CGO_ENABLED=0")
})

// Directories of binaries, one of which is in the PATH of a lab's hosts.
const (
	programs      = "bin"
	plainPrograms = "bin-plain"
)

// binaryPath returns where a binary for the labs of this process belongs.
func binaryPath(kind, name string) (string, error) {
	dir, err := workdir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, kind)
	return filepath.Join(dir, name), os.MkdirAll(dir, 0o755)
}

// build compiles a main package of the repository's module or of its dependencies.
func build(target, pkg, env string, flags ...string) error {
	root, err := repository()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", append(append([]string{"build", "-o", target}, flags...), pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}
