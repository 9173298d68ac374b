//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// A Lab is one topology. Its methods may be used by several goroutines, as far as
// they do not end the test.
type Lab struct {
	tb    TB
	dir   string // of the artifacts; removed when the test passes
	world *Host
	plain bool // jiji-node is the one without the race detector

	sockets atomic.Int64 // numbers the notify sockets

	mu       sync.Mutex // guards what follows, and the rules of cuts
	networks []*Network
	servers  []*Server
	hosts    []*Host // all, in the order in which they were made
	running  []*Process
	captures []*Capture
	paths    []*Path
	blocks   []*Block
}

// New returns an empty lab that lasts as long as the test. Where this machine cannot
// have one the test is skipped, or fails when the environment says CI=true.
func New(tb TB) *Lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		unfit(tb, "needs root, to make network namespaces")
		return nil
	}
	if err := missingTools(); err != nil {
		unfit(tb, err.Error())
		return nil
	}
	if _, err := workdir(); err != nil {
		tb.Fatalf("lab: %v", err)
		return nil
	}
	l := &Lab{tb: tb}
	world, err := newHost(l, "world")
	if err != nil {
		unfit(tb, err.Error())
		return nil
	}
	l.world, l.hosts = world, []*Host{world}
	tb.Cleanup(l.close)
	if l.dir, err = claimArtifacts(tb.Name()); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := world.sysctl(file, "1"); err != nil && !os.IsNotExist(err) {
			tb.Fatalf("lab: %v", err)
		}
	}
	return l
}

// Plain has the lab's hosts run jiji-node as users do, without the race detector,
// whatever JIJI_LAB_RACE says: for what has to be done within a time. It is for a lab
// that runs nothing yet.
func (l *Lab) Plain() {
	l.tb.Helper()
	if l.plain = raceBuilt(); l.plain {
		must(l.tb)(plainBinary())
	}
}

func (l *Lab) nodeBinary() (string, error) {
	if l.plain {
		return plainBinary()
	}
	return nodeBinary()
}

// programs is the directory of the binaries that the lab's hosts run.
func (l *Lab) programs() string {
	if l.plain {
		return plainPrograms
	}
	return programs
}

func unfit(tb TB, reason string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatalf("lab: %s (with CI=true this is no reason to skip)", reason)
		return
	}
	tb.Skipf("lab: %s", reason)
}

// missingTools names the programs that are not installed, with their Debian packages.
func missingTools() error {
	var programs, packages []string
	for _, tool := range [][2]string{
		{"dig", "bind9-dnsutils"},
		{"ip", "iproute2"},
		{"mount", "mount"},
		{"nft", "nftables"},
		{"ping", "iputils-ping"},
		{"ss", "iproute2"},
		{"tcpdump", "tcpdump"},
		{"traceroute", "traceroute"},
		{"wg", "wireguard-tools"},
	} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			programs = append(programs, tool[0])
			if !slices.Contains(packages, tool[1]) {
				packages = append(packages, tool[1])
			}
		}
	}
	if programs == nil {
		return nil
	}
	return fmt.Errorf("not installed: %s (apt-get install %s)",
		strings.Join(programs, ", "), strings.Join(packages, " "))
}

// sysctl writes a file below /proc/sys/net, which shows the writing thread's namespace.
func (h *Host) sysctl(file, value string) error {
	return h.Do(func() error { return os.WriteFile(file, []byte(value), 0o644) })
}

// track adds v to one of the lab's lists.
func track[T any](l *Lab, list *[]T, v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*list = append(*list, v)
}

// close reports what went wrong, keeps what explains it, and ends everything.
func (l *Lab) close() {
	for _, p := range l.running {
		p.judge()
	}
	if l.tb.Failed() {
		l.keep()
	}
	for _, p := range l.paths {
		p.close()
	}
	for _, c := range l.captures {
		c.Stop()
	}
	for _, h := range slices.Backward(l.hosts) {
		h.life.Close() // all at once, so that they end at the same time
	}
	for _, h := range slices.Backward(l.hosts) {
		h.close()
	}
	for _, p := range l.running {
		<-p.ended
		p.log.Close()
	}
	for _, s := range l.servers {
		s.removeCgroups()
	}
	if l.dir != "" && !l.tb.Failed() {
		os.RemoveAll(l.dir)
	}
}

// keep writes what explains a failure into the artifacts and shows the short of it.
func (l *Lab) keep() {
	l.tb.Logf("the lab's logs are in %s", l.dir)
	l.tb.Logf("packets of each link:\n%s", l.linkTable())
	for _, h := range l.hosts {
		if err := os.WriteFile(filepath.Join(l.dir, h.Name+".state"), h.state(), 0o644); err != nil {
			l.tb.Logf("keep the state of %s: %v", h.Name, err)
		}
	}
	for _, c := range l.captures {
		if err := c.save(); err != nil {
			l.tb.Logf("keep the capture of %s: %v", c.name, err)
		}
	}
	os.Remove(filepath.Join(l.dir, ownerFile))
}

// state returns what the host's network tools say.
func (h *Host) state() []byte {
	var text strings.Builder
	for _, line := range []string{
		"ip -s -d addr",
		"ip route show table all",
		"ip neigh",
		"wg show all",
		"nft list ruleset",
		"ss -tulnpe",
		"cat /etc/resolv.conf",
		"ls -lR /run /var/lib/jiji",
		"ps -eo pid,ppid,stat,etimes,rss,args",
	} {
		out, _ := h.Try("sh", "-c", line+" 2>&1") // what failed says so itself
		fmt.Fprintf(&text, "## %s\n%s\n", line, out)
	}
	return []byte(text.String())
}

const ownerFile = ".owner" // in a directory of artifacts: the process that fills it

// claimArtifacts returns an empty directory for what the test leaves, named after it.
func claimArtifacts(test string) (string, error) {
	base := os.Getenv("JIJI_LAB_DIR")
	if base == "" {
		root, err := repository()
		if err != nil {
			return "", err
		}
		base = filepath.Join(root, "out", "lab")
	}
	owner, err := ownerOf(os.Getpid())
	if err != nil {
		return "", err
	}
	claims.Lock()
	defer claims.Unlock()
	name := strings.NewReplacer("/", "_", " ", "_").Replace(test)
	for n := 1; n <= 1000; n++ {
		dir := filepath.Join(base, name)
		if n > 1 {
			dir += "-" + strconv.Itoa(n)
		}
		if b, err := os.ReadFile(filepath.Join(dir, ownerFile)); err == nil && alive(string(b)) {
			continue // the same test, running at the same time
		}
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		return dir, os.WriteFile(filepath.Join(dir, ownerFile), []byte(owner), 0o644)
	}
	return "", fmt.Errorf("1000 labs named %s run at the same time", name)
}

var claims sync.Mutex // held while a directory of artifacts is looked for

// repository returns the directory of the go.mod above the working directory.
func repository() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod in %s or above it", wd)
		}
	}
}
